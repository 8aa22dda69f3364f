//! Data and prompt generators, shared by recipes (which train on them) and experiments (which
//! rebuild the same data from a checkpoint's recorded parameters and seed).
//!
//! Invariant: every generator is a pure function of its arguments and a seed.

pub mod addition;
pub mod bpe;
pub mod ioi;
pub mod modular;
pub mod parity;
pub mod probes;
pub mod repeats;
pub mod sorting;
pub mod synonyms;
pub mod text;
pub mod toy_ioi;
