//! Normalization in front of a component, or behind it.
//!
//! The epsilon stands inside the square root and the variance is that of the population (divided by
//! the width). Half-precision inputs are normalized in f32, as TransformerLens does.

use tch::{Kind, Tensor};

use crate::{
    config::Normalization,
    error::Result,
    hook::{Hook, Norm},
    hooks::{self, Hooks},
    linear::broadcast,
    weights::Weights,
};

/// One norm with its parameters.
#[derive(Debug)]
pub(crate) struct NormLayer {
    normalization: Normalization,
    eps: f64,
    w: Option<Tensor>,
    b: Option<Tensor>,
}

impl NormLayer {
    pub(crate) fn new(
        name: &str,
        normalization: Normalization,
        eps: f64,
        weights: &Weights,
    ) -> Result<Self> {
        let w = if normalization.has_weight() {
            Some(weights.require(&format!("{name}.w"))?.shallow_clone())
        } else {
            None
        };
        let b = match normalization {
            Normalization::Ln => weights.get(&format!("{name}.b")).map(Tensor::shallow_clone),
            Normalization::None
            | Normalization::LnPre
            | Normalization::Rms
            | Normalization::RmsPre => None,
        };
        Ok(NormLayer { normalization, eps, w, b })
    }

    /// Normalizes over the last axis.
    ///
    /// # Shapes
    /// `[(n_models,) batch, pos, width]` to the same; `hook` names the norm's two activations.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        hook: impl Fn(Norm) -> Hook,
        hooks: &mut dyn Hooks,
    ) -> Tensor {
        if self.normalization == Normalization::None {
            return x.shallow_clone();
        }
        let kind = x.kind();
        let wide = match kind {
            Kind::Float | Kind::Double => x.shallow_clone(),
            _ => x.to_kind(Kind::Float),
        };
        let observed = hooks.wants(hook(Norm::Scale)) || hooks.wants(hook(Norm::Normalized));
        let is_centered = self.normalization.is_centered();
        if is_centered && !observed && kind == wide.kind() {
            return self.fused_layer_norm(&wide);
        }
        let mean = |x: &Tensor| x.mean_dim(&[-1i64][..], true, None::<Kind>);
        let centered = if is_centered { &wide - mean(&wide) } else { wide };
        let scale = (mean(&centered.square()) + self.eps).sqrt();
        let scale = hooks::at(hooks, hook(Norm::Scale), scale); // [batch, pos, 1]
        let normalized = (centered / scale).to_kind(kind); // [batch, pos, width]
        self.scale_and_shift(hooks::at(hooks, hook(Norm::Normalized), normalized))
    }

    /// The same in one kernel, when nobody asks for what lies between.
    fn fused_layer_norm(&self, x: &Tensor) -> Tensor {
        let width = x.size()[x.dim() - 1];
        let is_population = self.w.as_ref().is_some_and(|w| w.dim() > 1);
        if is_population {
            let plain = x.layer_norm([width], None::<&Tensor>, None::<&Tensor>, self.eps, false);
            return self.scale_and_shift(plain);
        }
        x.layer_norm([width], self.w.as_ref(), self.b.as_ref(), self.eps, false)
    }

    fn scale_and_shift(&self, x: Tensor) -> Tensor {
        match (&self.w, &self.b) {
            (Some(w), Some(b)) => &x * broadcast(w, &x) + broadcast(b, &x),
            (Some(w), None) => &x * broadcast(w, &x),
            (None, _) => x,
        }
    }
}
