//! Recording of activations.
//!
//! [`Cache`] keeps the activations it was asked for, without copying them and with their gradient
//! graph: run the pass under [`tch::no_grad`] when gradients are not wanted.

use std::{collections::BTreeMap, ops::Index};

use tch::Tensor;

use crate::{hook::Hook, hooks::Hooks};

/// Records the wanted activations of one forward pass.
pub struct Cache {
    wants: Box<dyn Fn(Hook) -> bool>,
    activations: BTreeMap<Hook, Tensor>,
}

impl Cache {
    /// Records everything, which also makes what the model would skip otherwise.
    pub fn all() -> Self {
        Self::only(|_| true)
    }

    /// Records the activations that `wants` accepts.
    pub fn only(wants: impl Fn(Hook) -> bool + 'static) -> Self {
        Cache { wants: Box::new(wants), activations: BTreeMap::new() }
    }

    /// Records the named activations.
    pub fn of(hooks: &[Hook]) -> Self {
        let hooks = hooks.to_vec();
        Self::only(move |hook| hooks.contains(&hook))
    }

    /// Returns a recorded activation.
    pub fn get(&self, hook: Hook) -> Option<&Tensor> {
        self.activations.get(&hook)
    }

    /// Takes a recorded activation out.
    pub fn take(&mut self, hook: Hook) -> Option<Tensor> {
        self.activations.remove(&hook)
    }

    /// Iterates over what was recorded, in the order of [`Hook`].
    pub fn iter(&self) -> impl Iterator<Item = (Hook, &Tensor)> {
        self.activations.iter().map(|(hook, activation)| (*hook, activation))
    }

    /// Number of recorded activations.
    pub fn len(&self) -> usize {
        self.activations.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.activations.is_empty()
    }
}

impl Hooks for Cache {
    fn wants(&self, hook: Hook) -> bool {
        (self.wants)(hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        self.activations.insert(hook, activation.shallow_clone());
        activation
    }
}

/// # Panics
/// When the activation was not recorded: it was not asked for, or the model has none of this name.
impl Index<Hook> for Cache {
    type Output = Tensor;

    fn index(&self, hook: Hook) -> &Tensor {
        self.get(hook).unwrap_or_else(|| panic!("activation `{hook}` was not recorded"))
    }
}
