//! Multi-head causal self-attention with optional rotary positions and grouped key/value heads.
//!
//! Attention itself has no parameters, so a population's models are folded into the batch there; only
//! the four projections are per model. Scores and softmax are computed in f32 at least.

use tch::{Kind, Tensor};

use crate::{
    axes::{Axes, last_position},
    config::{Config, Positional},
    error::Result,
    hook::{Hook, Site},
    hooks::{self, Hooks},
    linear::{affine, broadcast},
    rotary::Rotary,
    weights::Weights,
};

/// Parameters of one attention layer.
#[derive(Debug)]
pub(crate) struct Attention {
    q: Projection,
    k: Projection,
    v: Projection,
    w_o: Tensor,         // [head, d_head, d_model]
    b_o: Option<Tensor>, // [d_model]
    rotary: Option<Rotary>,
    /// What scores are divided by.
    scale: f64,
    /// Query heads per key/value head.
    group: i64,
}

/// The map from the residual stream to the heads' queries, keys or values.
#[derive(Debug)]
struct Projection {
    w: Tensor,         // [head, d_model, d_head]
    b: Option<Tensor>, // [head, d_head]
}

/// What the layer reads.
pub(crate) struct Inputs<'a> {
    /// Input of queries and keys, `[(n_models,) batch, pos, d_model]`.
    pub(crate) query_key: &'a Tensor,
    /// Input of values, same shape (and in most models the same tensor).
    pub(crate) value: &'a Tensor,
    /// Whether only the last position asks.
    pub(crate) last_only: bool,
}

impl Attention {
    pub(crate) fn new(layer: i64, config: &Config, weights: &Weights) -> Result<Self> {
        let name = |part: &str| format!("blocks.{layer}.attn.{part}");
        let projection = |letter: &str| -> Result<Projection> {
            Ok(Projection {
                w: weights.require(&name(&format!("W_{letter}")))?.shallow_clone(),
                b: weights.get(&name(&format!("b_{letter}"))).map(Tensor::shallow_clone),
            })
        };
        let q = projection("Q")?;
        let rotary = match config.positional {
            Positional::Rotary { dim, base, scaling } => {
                let options = (q.w.kind(), q.w.device());
                Some(Rotary::new(dim, base, scaling, config.n_ctx, options))
            }
            Positional::Learned | Positional::Shortformer | Positional::None => None,
        };
        let layer_scale =
            if config.scale_attn_by_inverse_layer_idx { (layer + 1) as f64 } else { 1.0 };
        Ok(Attention {
            q,
            k: projection("K")?,
            v: projection("V")?,
            w_o: weights.require(&name("W_O"))?.shallow_clone(),
            b_o: weights.get(&name("b_O")).map(Tensor::shallow_clone),
            rotary,
            scale: config.attn_scale * layer_scale,
            group: config.n_heads / config.n_key_value_heads,
        })
    }

    /// Returns what attention adds to the residual stream, `[(n_models,) batch, query, d_model]`.
    pub(crate) fn forward(
        &self,
        inputs: &Inputs<'_>,
        layer: u32,
        axes: Axes,
        hooks: &mut dyn Hooks,
    ) -> Tensor {
        let site = |site| Hook::block(layer, site);
        let query_axes = if inputs.last_only { axes.last_position() } else { axes };
        let query_input = if inputs.last_only {
            last_position(inputs.query_key)
        } else {
            inputs.query_key.shallow_clone()
        };
        let q = hooks::at(hooks, site(Site::Q), self.q.forward(&query_input, query_axes));
        let k = hooks::at(hooks, site(Site::K), self.k.forward(inputs.query_key, axes));
        let v = hooks::at(hooks, site(Site::V), self.v.forward(inputs.value, axes));
        let (q, k) = match &self.rotary {
            Some(rotary) => {
                let start = axes.pos - query_axes.pos;
                let q = hooks::at(hooks, site(Site::RotQ), rotary.apply(&q, start));
                let k = hooks::at(hooks, site(Site::RotK), rotary.apply(&k, 0));
                (q, k)
            }
            None => (q, k),
        };
        let z = self.mix([q, k, v], layer, [query_axes, axes], hooks);
        let z = hooks::at(hooks, site(Site::Z), z); // [batch, query, head, d_head]
        self.output(&z, layer, query_axes, hooks)
    }

    /// Mixes the values of all positions by attention.
    ///
    /// Hooks see scores and patterns as `[(n_models,) batch, head, query, key]`.
    ///
    /// # Shapes
    /// - `q`: `[(n_models,) batch, query, head, d_head]`
    /// - `k`, `v`: `[(n_models,) batch, key, key_value_head, d_head]`
    /// - returns: as `q`
    fn mix(&self, qkv: [Tensor; 3], layer: u32, axes: [Axes; 2], hooks: &mut dyn Hooks) -> Tensor {
        let [query_axes, key_axes] = axes;
        let [q, k, v] = qkv;
        let kind = v.kind();
        // Half-precision scores lose what the softmax needs.
        let wide = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let q = by_head(&q, query_axes, 1).to_kind(wide) / self.scale; // [sequence, head, query, d_head]
        let k = by_head(&k, key_axes, self.group).to_kind(wide); // [sequence, head, key, d_head]
        let v = by_head(&v, key_axes, self.group); // [sequence, head, key, d_head]
        let n_heads = q.size()[1];
        let scores = masked(q.matmul(&k.transpose(-2, -1))); // [sequence, head, query, key]
        let shape = query_axes.batch_shape(&[n_heads, query_axes.pos, key_axes.pos]);
        let scores = scores.view(shape.as_slice()); // [batch, head, query, key]
        let scores = hooks::at(hooks, Hook::block(layer, Site::AttnScores), scores);
        let pattern = scores.softmax(-1, None::<Kind>).to_kind(kind);
        let pattern = hooks::at(hooks, Hook::block(layer, Site::Pattern), pattern);
        let pattern = pattern.reshape([-1, n_heads, query_axes.pos, key_axes.pos]);
        let z = pattern.matmul(&v).transpose(1, 2); // [sequence, query, head, d_head]
        let d_head = v.size()[3];
        z.reshape(query_axes.shape(&[n_heads, d_head]).as_slice())
    }

    /// Maps the heads' mixed values back to the residual stream.
    fn output(&self, z: &Tensor, layer: u32, axes: Axes, hooks: &mut dyn Hooks) -> Tensor {
        let hook = Hook::block(layer, Site::Result);
        if hooks.wants(hook) {
            let result = hooks::at(hooks, hook, self.result(z, axes)); // [batch, query, head, d_model]
            let sum = result.sum_dim_intlist(&[-2i64][..], false, None::<Kind>);
            return match &self.b_o {
                Some(b_o) => &sum + broadcast(b_o, &sum),
                None => sum,
            };
        }
        affine(&z.flatten(-2, -1), &self.w_o.flatten(-3, -2), self.b_o.as_ref())
    }

    /// Computes what each head writes, `[(n_models,) batch, query, head, d_model]`.
    fn result(&self, z: &Tensor, axes: Axes) -> Tensor {
        let size = self.w_o.size();
        let [n_heads, d_head, d_model] =
            [size[size.len() - 3], size[size.len() - 2], size[size.len() - 1]];
        let rows = [axes.n_models.unwrap_or(1), axes.batch * axes.pos, n_heads, d_head];
        let z = z.reshape(rows).transpose(1, 2); // [model, head, row, d_head]
        let w_o = self.w_o.reshape([-1, n_heads, d_head, d_model]); // [model, head, d_head, d_model]
        let result = z.matmul(&w_o).transpose(1, 2); // [model, row, head, d_model]
        result.reshape(axes.shape(&[n_heads, d_model]).as_slice())
    }
}

impl Projection {
    /// Maps `[(n_models,) batch, pos, d_model]` to `[(n_models,) batch, pos, head, d_head]`.
    fn forward(&self, x: &Tensor, axes: Axes) -> Tensor {
        let size = self.w.size();
        let (n_heads, d_head) = (size[size.len() - 3], size[size.len() - 1]);
        let w = self.w.transpose(-3, -2).flatten(-2, -1); // [d_model, head * d_head]
        let b = self.b.as_ref().map(|b| b.flatten(-2, -1)); // [head * d_head]
        affine(x, &w, b.as_ref()).view(axes.shape(&[n_heads, d_head]).as_slice())
    }
}

/// Folds models into the batch, repeats each head `group` times and puts heads in front of positions.
///
/// `[(n_models,) batch, pos, head, d_head]` to `[sequence, head * group, pos, d_head]`.
fn by_head(x: &Tensor, axes: Axes, group: i64) -> Tensor {
    let size = x.size();
    let (n_heads, d_head) = (size[size.len() - 2], size[size.len() - 1]);
    let x = x.reshape([axes.n_sequences(), axes.pos, n_heads, d_head]).transpose(1, 2);
    if group == 1 { x } else { x.repeat_interleave_self_int(group, 1, None) }
}

/// Sets the scores of keys that stand behind their query to `-inf`.
///
/// The last query stands at the last key; fewer queries than keys are the last ones.
fn masked(scores: Tensor) -> Tensor {
    let size = scores.size();
    let (n_queries, n_keys) = (size[size.len() - 2], size[size.len() - 1]);
    if n_queries == 1 {
        return scores;
    }
    let behind = Tensor::ones([n_queries, n_keys], (Kind::Bool, scores.device()))
        .triu(1 + n_keys - n_queries);
    scores.masked_fill(&behind, f64::NEG_INFINITY)
}
