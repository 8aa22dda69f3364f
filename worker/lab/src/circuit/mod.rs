//! What the experiments on circuits share: prompts with an indirect object, passes that are read at the end
//! of each prompt, and the causal tools (attribution, patching, ablation, copying).
//!
//! Main types: [`prompts::IoiSet`] holds prompts of any model, [`batch::Batch`] a few of them as tensors,
//! [`batch::Meter`] measures logit differences. Invariants: nothing here knows of cards and sinks but the
//! progress that [`batch::Passes`] reports; sums over prompts are taken in f64 in the order of the prompts.

pub(crate) mod ablation;
pub(crate) mod attention;
pub(crate) mod attribution;
pub(crate) mod batch;
pub(crate) mod classes;
pub(crate) mod copying;
pub(crate) mod heads;
pub(crate) mod lexicon;
pub(crate) mod params;
pub(crate) mod paths;
pub(crate) mod prompts;
