//! Two trained models in one basin: permutations of hidden units that bring them together (D34), and the loss on the
//! straight line between them (D33).
//!
//! # Layout
//! - `assignment`: the exact assignment solver;
//! - `symmetry`: which axes of which tensors one permutation acts on, for perceptrons and transformers (D34t);
//! - `matching`: weight and activation matching;
//! - `barrier`: interpolation and barriers;
//! - `confusion`: what matched neurons follow, before and after.
//!
//! Everything is a pure function of weights (float64 on the CPU) and, where it draws, of a random stream.

mod assignment;
mod barrier;
mod confusion;
mod matching;
mod symmetry;

pub use assignment::{assign_max, objective};
pub use barrier::{Barrier, N_POINTS, interpolate, line};
pub use confusion::frequency_confusion;
pub use matching::{Matching, activation_matching, weight_matching};
pub use symmetry::{HeadSymmetry, Place, Symmetries, Symmetry};
