//! Is a metric curve a phase transition or a smooth trend? (D29, D29b)
//!
//! # Layout
//! - [`change_point`]: optimal segmentation (D30);
//! - [`fit`]: the five curve models and how they are fitted and scored;
//! - [`growth`]: does it fall as a product of growing components?
//! - [`least_squares`]: the numerical core (affine fits, Levenberg-Marquardt);
//! - [`order`]: what comes first, and how far runs agree on it;
//! - [`transition`]: onset, end, width, verdict, bracket and bootstrap interval of one curve;
//! - [`abruptness`]: model-free shape measures.
//!
//! Everything is plain f64 on slices: no tensors, no randomness but the stream handed in.

pub mod abruptness;
pub mod change_point;
pub mod fit;
pub mod growth;
pub mod least_squares;
pub mod order;
pub mod transition;
