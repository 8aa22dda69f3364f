//! Is a metric curve a phase transition or a smooth trend? (D29, D29b)
//!
//! # Layout
//! - [`change_point`]: optimal segmentation (D30);
//! - [`cloud`]: curves that have no groups, as a null;
//! - [`cluster`]: groups of curves of one shape;
//! - [`corner`]: where a path turns, or a loss stops being convex;
//! - [`fit`]: the five curve models and how they are fitted and scored;
//! - [`growth`]: does it fall as a product of growing components?
//! - [`lag`]: which of two curves moves first;
//! - [`least_squares`]: the numerical core (affine fits, Levenberg-Marquardt);
//! - [`order`]: what comes first, and how far runs agree on it;
//! - [`spread`]: curves of one shape at times of their own, as a null;
//! - [`transition`]: onset, end, width, verdict, bracket and bootstrap interval of one curve;
//! - [`abruptness`]: model-free shape measures.
//!
//! Everything is plain f64 on slices: no tensors, no randomness but the stream handed in.

pub mod abruptness;
pub mod change_point;
pub mod cloud;
pub mod cluster;
pub mod corner;
pub mod fit;
pub mod growth;
pub mod lag;
pub mod least_squares;
pub mod order;
pub mod spread;
pub mod transition;
