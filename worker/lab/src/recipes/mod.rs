//! Every training recipe, in alphabetical order. Adding one: write `foo.rs`, add its two lines here.

use crate::recipe::AnyRecipe;

pub mod addition;
pub mod finetune;
pub mod induction;
pub mod modular_addition;
pub mod modular_addition_mlp;
pub mod multitask_parity;
pub mod paired_synonyms;
pub mod s_curve;
pub mod sorting;
pub mod text_lm;
pub mod toy_ioi;

/// All recipes this build can train; the worker advertises exactly this list.
pub static RECIPES: &[&dyn AnyRecipe] = &[
    &addition::Addition,
    &finetune::Finetune,
    &induction::Induction,
    &modular_addition::ModularAddition,
    &modular_addition_mlp::ModularAdditionMlp,
    &multitask_parity::MultitaskParity,
    &paired_synonyms::PairedSynonyms,
    &s_curve::SCurve,
    &sorting::Sorting,
    &text_lm::TextLm,
    &toy_ioi::ToyIoi,
];
