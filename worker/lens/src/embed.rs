//! Token and positional embedding, and the unembedding.

use tch::{Kind, Tensor};

use crate::{
    axes::Axes,
    config::{Config, Positional},
    error::Result,
    hook::Hook,
    hooks::{self, Hooks},
    linear::{affine, readout},
    weights::Weights,
};

/// Token embedding and, where the model has them, learned positions.
#[derive(Debug)]
pub(crate) struct Embed {
    w_e: Tensor,           // [d_vocab, d_model]
    w_pos: Option<Tensor>, // [n_ctx, d_model]
    /// Whether positions are added to queries and keys only, in every layer.
    is_shortformer: bool,
}

/// What the embedding hands to the blocks.
pub(crate) struct Embedded {
    /// The residual stream, `[(n_models,) batch, pos, d_model]`.
    pub(crate) resid: Tensor,
    /// What each layer adds to the inputs of queries and keys (shortformer), same shape.
    pub(crate) shortformer: Option<Tensor>,
}

impl Embed {
    pub(crate) fn new(config: &Config, weights: &Weights) -> Result<Self> {
        Ok(Embed {
            w_e: weights.require("embed.W_E")?.shallow_clone(),
            w_pos: weights.get("pos_embed.W_pos").map(Tensor::shallow_clone),
            is_shortformer: config.positional == Positional::Shortformer,
        })
    }

    /// Embeds tokens `[batch, pos]` or `[n_models, batch, pos]`.
    pub(crate) fn forward(&self, tokens: &Tensor, axes: Axes, hooks: &mut dyn Hooks) -> Embedded {
        let embedded = hooks::at(hooks, Hook::Embed, look_up(&self.w_e, tokens, axes));
        let Some(w_pos) = &self.w_pos else {
            return Embedded { resid: embedded, shortformer: None };
        };
        let positions = w_pos.narrow(-2, 0, axes.pos); // [(model,) pos, d_model]
        // Broadcast over the batch; only a hook needs it written out.
        let positions = if axes.n_models.is_some() { positions.unsqueeze(1) } else { positions };
        let positions = if hooks.wants(Hook::PosEmbed) {
            hooks::at(hooks, Hook::PosEmbed, positions.expand_as(&embedded))
        } else {
            positions
        };
        if self.is_shortformer {
            Embedded { resid: embedded, shortformer: Some(positions) }
        } else {
            Embedded { resid: embedded + positions, shortformer: None }
        }
    }
}

/// Takes row `indices` out of a table, or of each model's table.
///
/// # Shapes
/// - `table`: `[(n_models,) row, width]`
/// - `indices`: `[batch, pos]`, or `[n_models, batch, pos]`
/// - returns: `[(n_models,) batch, pos, width]`
///
/// # Panics
/// When an index is not a row of the table.
pub(crate) fn look_up(table: &Tensor, indices: &Tensor, axes: Axes) -> Tensor {
    let Some(n_models) = axes.n_models else {
        return Tensor::embedding(table, indices, -1, false, false);
    };
    let (n_rows, width) = (table.size()[1], table.size()[2]);
    let offsets = Tensor::arange(n_models, (Kind::Int64, indices.device())) * n_rows;
    let shifted = indices + offsets.view([n_models, 1, 1]); // [model, batch, pos]
    // An index beyond one model's table would silently read the next model's, so it is sent beyond all of them. (Shared
    // indices cannot: they run over the end of the last table or the start of the first.) Whoever looks up
    // refuses it then, on a GPU without anybody waiting for it.
    let indices = if indices.dim() == 3 {
        let is_valid = indices.ge(0).logical_and(&indices.lt(n_rows));
        shifted.where_scalarother(&is_valid, n_models * n_rows)
    } else {
        shifted
    };
    let tables = table.reshape([n_models * n_rows, width]);
    Tensor::embedding(&tables, &indices, -1, false, false)
}

/// The map from the residual stream to logits.
#[derive(Debug)]
pub(crate) struct Unembed {
    w_u: Tensor,         // [d_model, d_vocab_out]
    b_u: Option<Tensor>, // [d_vocab_out]
}

impl Unembed {
    pub(crate) fn new(weights: &Weights) -> Result<Self> {
        Ok(Unembed {
            w_u: weights.require("unembed.W_U")?.shallow_clone(),
            b_u: weights.get("unembed.b_U").map(Tensor::shallow_clone),
        })
    }

    /// Maps `[(n_models,) batch, pos, d_model]` to `[(n_models,) batch, pos, d_vocab_out]`.
    pub(crate) fn forward(&self, resid: &Tensor) -> Tensor {
        readout(resid, &self.w_u, self.b_u.as_ref())
    }

    /// The same for the entries `first` to `first + length` of the vocabulary.
    pub(crate) fn columns(&self, resid: &Tensor, first: i64, length: i64) -> Tensor {
        let b_u = self.b_u.as_ref().map(|b_u| b_u.narrow(-1, first, length));
        affine(resid, &self.w_u.narrow(-1, first, length), b_u.as_ref())
    }
}
