//! Tests of the transformer as its users see it.
//!
//! Few and dense on purpose: each test is a process of its own that has to load libtorch. Unit tests of
//! what needs no tensors lie beside the code.

mod checkpoints;
mod gradients;
mod hand_built;
mod hooks;
mod models;
mod parity;
mod passes;
