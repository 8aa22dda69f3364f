//! Data and prompt generators, shared by recipes (which train on them) and experiments (which
//! rebuild the same data from a checkpoint's recorded parameters and seed).
//!
//! Invariant: every generator is a pure function of its arguments and a seed.

pub mod modular;
