//! One hooked transformer for every model family: TransformerLens in libtorch.
//!
//! # Map
//! - [`Config`] and [`Weights`] describe a model by TransformerLens' names; [`Transformer`] checks them
//!   against each other once and runs the forward pass.
//! - [`Hook`] names an activation; [`Hooks`] observes and edits activations during one pass.
//! - [`families`] reads published models; [`processing`] rewrites weights into
//!   equivalent ones that are easier to read.
//! - [`checkpoint`] turns a model into bytes and back, [`tensor_file`] does so for any named tensors.
//! - [`formats`] reads the files of other programs, [`tokenizer`] turns text into ids as they do.
//! - [`init`] draws seeded parameters, [`device`] finds the GPU.
//!
//! # Invariants
//! - Activation and parameter names and shapes are TransformerLens' for every family. A population has
//!   one more leading axis `[n_models, …]` on parameters and activations.
//! - No network, clock, environment or global random state; the only files read are those that a caller
//!   names, and none is written.

pub mod checkpoint;
pub mod device;
pub mod families;
pub mod formats;
pub mod init;
pub mod processing;
pub mod tensor_file;
pub mod tokenizer;

mod activation;
mod attention;
mod axes;
mod block;
mod cache;
mod config;
mod embed;
mod error;
mod hook;
mod hooks;
mod linear;
mod mlp;
mod model;
mod norm;
mod parameter;
mod perceptron;
mod rotary;
mod token_table;
mod weights;

pub use tch::{Device, Kind, Reduction, Tensor};

pub use crate::{
    cache::Cache,
    config::{
        ActFn, Architecture, AttnType, Config, NormPosition, Normalization, Positional,
        RotaryScaling,
    },
    error::{Class, Error, Problem, Result},
    hook::{Hook, Norm, Site},
    hooks::{Ablate, FnHook, Hooks, Patch},
    model::{Run, Transformer},
    parameter::Parameter,
    weights::Weights,
};
