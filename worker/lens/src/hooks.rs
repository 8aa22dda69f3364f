//! Observers and editors of one forward pass.
//!
//! [`Hooks`] is borrowed by the pass, so a hook cannot outlive it: there is nothing to remove or to
//! reset. The model asks [`Hooks::wants`] before it makes an activation that it would not need
//! otherwise, so unwanted activations cost nothing. Editors compose as tuples, first to last.

use tch::Tensor;

use crate::hook::{Hook, Site};

/// Observer and editor of one forward pass.
pub trait Hooks {
    /// Whether [`visit`](Hooks::visit) is to be called for this activation.
    fn wants(&self, hook: Hook) -> bool;

    /// Sees an activation and returns what the model continues with: usually the same tensor, always
    /// one of the same shape.
    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor;
}

/// No hooks.
impl Hooks for () {
    fn wants(&self, _hook: Hook) -> bool {
        false
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        activation
    }
}

impl<H: Hooks + ?Sized> Hooks for &mut H {
    fn wants(&self, hook: Hook) -> bool {
        (**self).wants(hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        (**self).visit(hook, activation)
    }
}

impl<H: Hooks + ?Sized> Hooks for Box<H> {
    fn wants(&self, hook: Hook) -> bool {
        (**self).wants(hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        (**self).visit(hook, activation)
    }
}

/// The first, then the second on what the first returned.
impl<A: Hooks, B: Hooks> Hooks for (A, B) {
    fn wants(&self, hook: Hook) -> bool {
        self.0.wants(hook) || self.1.wants(hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let activation = visit_if_wanted(&mut self.0, hook, activation);
        visit_if_wanted(&mut self.1, hook, activation)
    }
}

/// All in order, each on what the one before returned.
impl<H: Hooks> Hooks for Vec<H> {
    fn wants(&self, hook: Hook) -> bool {
        self.iter().any(|hooks| hooks.wants(hook))
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        self.iter_mut()
            .fold(activation, |activation, hooks| visit_if_wanted(hooks, hook, activation))
    }
}

fn visit_if_wanted<H: Hooks>(hooks: &mut H, hook: Hook, activation: Tensor) -> Tensor {
    if hooks.wants(hook) { hooks.visit(hook, activation) } else { activation }
}

/// Passes an activation to the hooks, if they want it.
///
/// # Panics
/// When a hook returns another shape: the model could not continue with it.
pub(crate) fn at(hooks: &mut dyn Hooks, hook: Hook, activation: Tensor) -> Tensor {
    if !hooks.wants(hook) {
        return activation;
    }
    let expected = activation.size();
    let activation = hooks.visit(hook, activation);
    let actual = activation.size();
    assert!(
        actual == expected,
        "hook at `{hook}` returned shape {actual:?}, expected {expected:?}"
    );
    activation
}

/// Replaces an activation, or one head or position of it, by given values.
#[derive(Debug)]
pub struct Patch {
    at: Hook,
    with: Tensor,
    /// Axis from the end and index on it; everything is replaced when empty.
    only: Vec<(i64, i64)>,
}

impl Patch {
    /// Replaces the whole activation by `with`, which is broadcast to its shape.
    pub fn new(at: Hook, with: Tensor) -> Self {
        Patch { at, with, only: Vec::new() }
    }

    /// Restricts the patch to one head.
    ///
    /// # Panics
    /// When the activation has no head axis.
    #[must_use]
    pub fn head(mut self, head: i64) -> Self {
        let axis = self.at.head_axis().unwrap_or_else(|| panic!("`{}` has no heads", self.at));
        self.only.push((axis, head));
        self
    }

    /// Restricts the patch to one position (of the query, for scores and patterns).
    #[must_use]
    pub fn position(mut self, position: i64) -> Self {
        self.only.push((self.at.position_axis(), position));
        self
    }
}

impl Hooks for Patch {
    fn wants(&self, hook: Hook) -> bool {
        hook == self.at
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        let with = self.with.to_kind(activation.kind()).expand_as(&activation);
        if self.only.is_empty() {
            return with;
        }
        let narrow = |tensor: &Tensor| {
            self.only
                .iter()
                .fold(tensor.shallow_clone(), |part, &(axis, index)| part.narrow(axis, index, 1))
        };
        // A copy, because others may hold the original.
        let patched = activation.copy();
        narrow(&patched).copy_(&narrow(&with));
        patched
    }
}

/// Removes heads: their mixed values `z` become zero, so that they write nothing.
#[derive(Debug, Clone, Default)]
pub struct Ablate {
    heads: Vec<(u32, i64)>,
}

impl Ablate {
    /// Removes the given heads, each as (layer, head).
    pub fn heads(heads: impl IntoIterator<Item = (u32, i64)>) -> Self {
        Ablate { heads: heads.into_iter().collect() }
    }
}

impl Hooks for Ablate {
    fn wants(&self, hook: Hook) -> bool {
        matches!(hook, Hook::Block { layer, site: Site::Z } if self.heads.iter().any(|h| h.0 == layer))
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        let n_heads = activation.size()[activation.dim() - 2];
        let keep: Vec<f32> = (0..n_heads)
            .map(|head| {
                f32::from(!self.heads.iter().any(|&h| (Some(h.0), h.1) == (hook.layer(), head)))
            })
            .collect();
        let keep =
            Tensor::from_slice(&keep).to_kind(activation.kind()).to_device(activation.device());
        activation * keep.unsqueeze(-1) // [batch, pos, head, d_head]
    }
}

/// A closure at one activation, or at all that a predicate accepts.
pub struct FnHook<W, F> {
    wants: W,
    function: F,
}

impl<F: FnMut(Hook, Tensor) -> Tensor> FnHook<Box<dyn Fn(Hook) -> bool>, F> {
    /// Calls `function` at one activation.
    pub fn new(at: Hook, function: F) -> Self {
        FnHook { wants: Box::new(move |hook| hook == at), function }
    }
}

impl<W: Fn(Hook) -> bool, F: FnMut(Hook, Tensor) -> Tensor> FnHook<W, F> {
    /// Calls `function` at every activation that `wants` accepts.
    pub fn matching(wants: W, function: F) -> Self {
        FnHook { wants, function }
    }
}

impl<W: Fn(Hook) -> bool, F: FnMut(Hook, Tensor) -> Tensor> Hooks for FnHook<W, F> {
    fn wants(&self, hook: Hook) -> bool {
        (self.wants)(hook)
    }

    fn visit(&mut self, hook: Hook, activation: Tensor) -> Tensor {
        (self.function)(hook, activation)
    }
}
