//! Every training recipe, in alphabetical order. Adding one: write `foo.rs`, add its two lines here.

use crate::recipe::AnyRecipe;

pub mod modular_addition;
pub mod modular_addition_mlp;

/// All recipes this build can train; the worker advertises exactly this list.
pub static RECIPES: &[&dyn AnyRecipe] =
    &[&modular_addition::ModularAddition, &modular_addition_mlp::ModularAdditionMlp];
