//! Every experiment, in alphabetical order. Adding one: write `foo.rs`, add its two lines here.

use crate::experiment::AnyExperiment;

/// All experiments this build can run; the worker advertises exactly this list.
pub static EXPERIMENTS: &[&dyn AnyExperiment] = &[];
