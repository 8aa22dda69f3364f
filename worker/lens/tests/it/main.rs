//! Tests of the transformer as its users see it.
//!
//! Few and dense on purpose: each test is a process of its own that has to load libtorch. Unit tests of
//! what needs no tensors lie beside the code.

#[cfg(test)]
mod checkpoints;
#[cfg(test)]
mod families;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod formats;
#[cfg(test)]
mod formats_fuzz;
#[cfg(test)]
mod gradients;
#[cfg(test)]
mod hand_built;
#[cfg(test)]
mod hooks;
#[cfg(test)]
mod models;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod passes;
mod perceptron;
#[cfg(test)]
mod pitfalls;
#[cfg(test)]
mod processing;
#[cfg(test)]
mod tokenizers;

/// Counts what Rust code allocates: readers of foreign bytes have a budget.
#[global_allocator]
static HEAP: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;
