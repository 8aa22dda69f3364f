//! One block: attention and MLP around the residual stream, one after the other or in parallel.

use tch::Tensor;

use crate::{
    attention::{Attention, Inputs},
    axes::{Axes, last_position},
    config::Config,
    error::Result,
    hook::{Hook, Site},
    hooks::{self, Hooks},
    mlp::Mlp,
    norm::NormLayer,
    weights::Weights,
};

/// Parameters of one block.
#[derive(Debug)]
pub(crate) struct Block {
    layer: u32,
    ln1: NormLayer,
    attention: Attention,
    /// The MLP and the norm in front of it; absent in attention-only models.
    mlp: Option<(NormLayer, Mlp)>,
    is_parallel: bool,
}

impl Block {
    pub(crate) fn new(layer: i64, config: &Config, weights: &Weights) -> Result<Self> {
        let norm = |name: &str| {
            NormLayer::new(
                &format!("blocks.{layer}.{name}"),
                config.normalization,
                config.eps,
                weights,
            )
        };
        let mlp = if config.attn_only {
            None
        } else {
            Some((norm("ln2")?, Mlp::new(layer, config, weights)?))
        };
        Ok(Block {
            layer: u32::try_from(layer).expect("the configuration bounds the number of layers"),
            ln1: norm("ln1")?,
            attention: Attention::new(layer, config, weights)?,
            mlp,
            is_parallel: config.parallel_attn_mlp,
        })
    }

    /// Runs the block.
    ///
    /// With `last_only`, keys and values still see every position, and all that follows them is
    /// computed for the last one.
    ///
    /// # Shapes
    /// - `resid`: `[(n_models,) batch, pos, d_model]`
    /// - `shortformer`: the same, or broadcast over the batch
    /// - returns: `[(n_models,) batch, pos, d_model]`, `pos` being 1 with `last_only`
    pub(crate) fn forward(
        &self,
        resid: Tensor,
        shortformer: Option<&Tensor>,
        axes: Axes,
        last_only: bool,
        hooks: &mut dyn Hooks,
    ) -> Tensor {
        let site = |site| Hook::block(self.layer, site);
        let resid_pre = hooks::at(hooks, site(Site::ResidPre), resid);
        let normalized = self.ln1.forward(&resid_pre, |norm| site(Site::Ln1(norm)), hooks);
        let positioned = shortformer.map(|positions| &normalized + positions);
        let inputs = Inputs {
            query_key: positioned.as_ref().unwrap_or(&normalized),
            value: &normalized,
            last_only,
        };
        let attn_out = self.attention.forward(&inputs, self.layer, axes, hooks);
        let attn_out = hooks::at(hooks, site(Site::AttnOut), attn_out);
        let resid_pre = if last_only { last_position(&resid_pre) } else { resid_pre };
        let resid = match &self.mlp {
            None => resid_pre + attn_out,
            Some((ln2, mlp)) if self.is_parallel => {
                let normalized = ln2.forward(&resid_pre, |norm| site(Site::Ln2(norm)), hooks);
                let mlp_out = mlp.forward(&normalized, self.layer, hooks);
                let mlp_out = hooks::at(hooks, site(Site::MlpOut), mlp_out);
                resid_pre + attn_out + mlp_out
            }
            Some((ln2, mlp)) => {
                let resid_mid = hooks::at(hooks, site(Site::ResidMid), resid_pre + attn_out);
                let normalized = ln2.forward(&resid_mid, |norm| site(Site::Ln2(norm)), hooks);
                let mlp_out = mlp.forward(&normalized, self.layer, hooks);
                let mlp_out = hooks::at(hooks, site(Site::MlpOut), mlp_out);
                resid_mid + mlp_out
            }
        };
        hooks::at(hooks, site(Site::ResidPost), resid)
    }
}
