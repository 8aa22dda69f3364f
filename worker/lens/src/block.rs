//! One block: attention and MLP around the residual stream, one after the other or in parallel.

use tch::Tensor;

use crate::{
    attention::{Attention, Inputs, Qkv},
    axes::{Axes, last_position},
    config::{Config, NormPosition},
    error::Result,
    hook::{Hook, Site},
    hooks::{self, Hooks},
    mlp::Mlp,
    norm::NormLayer,
    rotary::Rotary,
    weights::Weights,
};

/// Parameters of one block.
#[derive(Debug)]
pub(crate) struct Block {
    layer: u32,
    ln1: NormLayer,
    attention: Attention,
    /// The MLP and its norm; absent in attention-only models.
    mlp: Option<(NormLayer, Mlp)>,
    is_parallel: bool,
    norm_position: NormPosition,
}

impl Block {
    pub(crate) fn new(
        layer: i64,
        config: &Config,
        weights: &Weights,
        rotary: Option<&Rotary>,
    ) -> Result<Self> {
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
            attention: Attention::new(layer, config, weights, rotary)?,
            mlp,
            is_parallel: config.parallel_attn_mlp,
            norm_position: config.norm_position,
        })
    }

    /// Runs the part of the block that looks at each position by itself: up to queries, keys, values.
    ///
    /// With `last_only`, keys and values still exist for every position, and all else for the last one.
    ///
    /// # Shapes
    /// - `resid`: `[(n_models,) batch, pos, d_model]`
    /// - `shortformer`: the same, or broadcast over the batch
    pub(crate) fn read(
        &self,
        resid: Tensor,
        shortformer: Option<&Tensor>,
        axes: Axes,
        last_only: bool,
        hooks: &mut dyn Hooks,
    ) -> Reading {
        let site = |site| Hook::block(self.layer, site);
        let resid = hooks::at(hooks, site(Site::ResidPre), resid);
        let normalized = match self.norm_position {
            NormPosition::Pre => self.ln1.forward(&resid, |norm| site(Site::Ln1(norm)), hooks),
            NormPosition::Post => resid.shallow_clone(),
        };
        let positioned = shortformer.map(|positions| &normalized + positions);
        let inputs = Inputs {
            query_key: positioned.as_ref().unwrap_or(&normalized),
            value: &normalized,
            last_only,
        };
        let qkv = self.attention.project(&inputs, self.layer, axes, hooks);
        Reading { resid: if last_only { last_position(&resid) } else { resid }, qkv }
    }

    /// Runs the rest: attention between positions, its output, and the MLP.
    ///
    /// Returns the residual stream `[(n_models,) batch, query, d_model]`; `axes` are those of the queries.
    pub(crate) fn write(&self, reading: Reading, axes: Axes, hooks: &mut dyn Hooks) -> Tensor {
        let site = |site| Hook::block(self.layer, site);
        let Reading { resid, qkv } = reading;
        let attn_out = self.attention.attend(&qkv, self.layer, axes, hooks);
        let attn_out = match self.norm_position {
            NormPosition::Pre => attn_out,
            NormPosition::Post => self.ln1.forward(&attn_out, |norm| site(Site::Ln1(norm)), hooks),
        };
        let attn_out = hooks::at(hooks, site(Site::AttnOut), attn_out);
        let resid = match &self.mlp {
            None => resid + attn_out,
            Some((ln2, mlp)) if self.is_parallel => {
                let mlp_out = self.mlp_out(ln2, mlp, &resid, hooks);
                resid + attn_out + mlp_out
            }
            Some((ln2, mlp)) => {
                let resid_mid = hooks::at(hooks, site(Site::ResidMid), resid + attn_out);
                let mlp_out = self.mlp_out(ln2, mlp, &resid_mid, hooks);
                resid_mid + mlp_out
            }
        };
        hooks::at(hooks, site(Site::ResidPost), resid)
    }

    /// Computes what the MLP adds to the residual stream, `[(n_models,) batch, query, d_model]`.
    fn mlp_out(&self, ln2: &NormLayer, mlp: &Mlp, resid: &Tensor, hooks: &mut dyn Hooks) -> Tensor {
        let site = |site| Hook::block(self.layer, site);
        let mlp_out = match self.norm_position {
            NormPosition::Pre => {
                let normalized = ln2.forward(resid, |norm| site(Site::Ln2(norm)), hooks);
                mlp.forward(&normalized, self.layer, hooks)
            }
            NormPosition::Post => {
                let mlp_out = mlp.forward(resid, self.layer, hooks);
                ln2.forward(&mlp_out, |norm| site(Site::Ln2(norm)), hooks)
            }
        };
        hooks::at(hooks, site(Site::MlpOut), mlp_out)
    }
}

/// What a block has read before any position looks at another.
pub(crate) struct Reading {
    /// The residual stream at the positions that ask, `[(n_models,) batch, query, d_model]`.
    pub(crate) resid: Tensor,
    pub(crate) qkv: Qkv,
}
