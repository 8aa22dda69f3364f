//! Multi-head causal self-attention with optional rotary positions, grouped key/value heads, normalized or
//! clipped queries and keys, and windows.
//!
//! Attention itself has no parameters, so a population's models are folded into the batch there; only
//! the four projections are per model. Scores and softmax are computed in f32 at least.

use tch::{Kind, Tensor};

use crate::{
    axes::{Axes, last_position},
    config::{Config, Normalization},
    error::Result,
    hook::{Hook, Norm, Site},
    hooks::{self, Hooks},
    linear::{affine, broadcast},
    norm::NormLayer,
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
    /// Norms of queries and keys over all heads together.
    qk_norm: Option<(NormLayer, NormLayer)>,
    /// Bound of queries, keys and values.
    clip: Option<f64>,
    rotary: Option<Rotary>,
    /// How many positions a query sees, its own included, if not all.
    window: Option<i64>,
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

/// Queries, keys and values of one layer, rotated where the model rotates.
pub(crate) struct Qkv {
    pub(crate) q: Tensor, // [(n_models,) batch, query, head, d_head]
    pub(crate) k: Tensor, // [(n_models,) batch, key, key_value_head, d_head]
    pub(crate) v: Tensor, // [(n_models,) batch, key, key_value_head, d_head]
}

impl Attention {
    pub(crate) fn new(
        layer: i64,
        config: &Config,
        weights: &Weights,
        rotary: Option<&Rotary>,
    ) -> Result<Self> {
        let name = |part: &str| format!("blocks.{layer}.attn.{part}");
        let projection = |letter: &str| -> Result<Projection> {
            Ok(Projection {
                w: weights.require(&name(&format!("W_{letter}")))?.shallow_clone(),
                b: weights.get(&name(&format!("b_{letter}"))).map(Tensor::shallow_clone),
            })
        };
        let qk_norm = if config.qk_norm {
            let norm = |part| NormLayer::new(&name(part), Normalization::Rms, config.eps, weights);
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        let layer_scale =
            if config.scale_attn_by_inverse_layer_idx { (layer + 1) as f64 } else { 1.0 };
        Ok(Attention {
            q: projection("Q")?,
            k: projection("K")?,
            v: projection("V")?,
            w_o: weights.require(&name("W_O"))?.shallow_clone(),
            b_o: weights.get(&name("b_O")).map(Tensor::shallow_clone),
            qk_norm,
            clip: config.clip_qkv,
            rotary: rotary.cloned(),
            window: config.window(layer),
            scale: config.attn_scale * layer_scale,
            group: config.n_heads / config.n_key_value_heads,
        })
    }

    /// Computes queries, keys and values. They depend on nothing but the inputs and the positions.
    pub(crate) fn project(
        &self,
        inputs: &Inputs<'_>,
        layer: u32,
        axes: Axes,
        hooks: &mut dyn Hooks,
    ) -> Qkv {
        let site = |site| Hook::block(layer, site);
        let (query_input, query_axes) = if inputs.last_only {
            (last_position(inputs.query_key), axes.last_position())
        } else {
            (inputs.query_key.shallow_clone(), axes)
        };
        let q = hooks::at(hooks, site(Site::Q), self.q.forward(&query_input, query_axes));
        let k = hooks::at(hooks, site(Site::K), self.k.forward(inputs.query_key, axes));
        let v = hooks::at(hooks, site(Site::V), self.v.forward(inputs.value, axes));
        let (q, k) = match &self.qk_norm {
            None => (q, k),
            Some((q_norm, k_norm)) => (
                over_all_heads(q_norm, &q, |norm| site(Site::QNorm(norm)), hooks),
                over_all_heads(k_norm, &k, |norm| site(Site::KNorm(norm)), hooks),
            ),
        };
        let (q, k, v) = match self.clip {
            None => (q, k, v),
            Some(clip) => (q.clamp(-clip, clip), k.clamp(-clip, clip), v.clamp(-clip, clip)),
        };
        let Some(rotary) = &self.rotary else { return Qkv { q, k, v } };
        let first_query = axes.pos - query_axes.pos;
        let q = hooks::at(hooks, site(Site::RotQ), rotary.apply(&q, first_query));
        let k = hooks::at(hooks, site(Site::RotK), rotary.apply(&k, 0));
        Qkv { q, k, v }
    }

    /// Returns what attention adds to the residual stream, `[(n_models,) batch, query, d_model]`.
    pub(crate) fn attend(
        &self,
        qkv: &Qkv,
        layer: u32,
        query_axes: Axes,
        hooks: &mut dyn Hooks,
    ) -> Tensor {
        let z = self.mix(qkv, layer, query_axes, hooks); // [batch, query, head, d_head]
        let z = hooks::at(hooks, Hook::block(layer, Site::Z), z);
        self.output(&z, layer, query_axes, hooks)
    }

    /// Mixes the values of all positions by attention; returns the shape of the queries.
    fn mix(&self, qkv: &Qkv, layer: u32, axes: Axes, hooks: &mut dyn Hooks) -> Tensor {
        let folded = Folded {
            q: fold_models(&qkv.q, 1),
            k: fold_models(&qkv.k, self.group),
            v: fold_models(&qkv.v, self.group),
            scale: self.scale,
            // A window that reaches beyond the first key hides nothing.
            window: self.window.filter(|&window| window < qkv.k.size()[qkv.k.dim() - 3]),
            axes,
            scores: Hook::block(layer, Site::AttnScores),
            pattern: Hook::block(layer, Site::Pattern),
        };
        let z = if axes.pos == 1 {
            folded.one_query(hooks)
        } else if hooks.wants(folded.scores) || hooks.wants(folded.pattern) {
            folded.in_steps(hooks)
        } else {
            folded.fused()
        };
        z.reshape(qkv.q.size().as_slice())
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

/// Attention without parameters: models are folded into the batch, keys and values repeated for each
/// query head.
struct Folded {
    q: Tensor, // [sequence, query, head, d_head]
    k: Tensor, // [sequence, key, head, d_head]
    v: Tensor, // [sequence, key, head, d_head]
    scale: f64,
    /// How many keys each query sees, if not all up to its own position.
    window: Option<i64>,
    /// Axes of the queries, for the shapes that hooks see.
    axes: Axes,
    scores: Hook,
    pattern: Hook,
}

impl Folded {
    /// One query per sequence, the last position, which sees every key.
    ///
    /// Products and sums in the layout that the projections left: as batched matrix products, one row
    /// each, this would take twice as long and need every head's keys and values copied.
    fn one_query(&self, hooks: &mut dyn Hooks) -> Tensor {
        let kind = self.v.kind();
        let q = widened(&self.q) / self.scale; // [sequence, 1, head, d_head]
        let scores = (q * widened(&self.k)).sum_dim_intlist(&[-1i64][..], false, None::<Kind>);
        let scores = scores.transpose(1, 2).unsqueeze(2); // [sequence, head, 1, key]
        let scores = if self.window.is_some() { self.masked(scores) } else { scores };
        let pattern = self.pattern(scores, kind, hooks); // [sequence, head, 1, key]
        let weights = pattern.squeeze_dim(2).transpose(1, 2).unsqueeze(-1); // [sequence, key, head, 1]
        (weights * &self.v).sum_dim_intlist(&[1i64][..], true, None::<Kind>) // [sequence, 1, head, d_head]
    }

    /// Scores, pattern and mixing one after the other, for hooks to see and edit. Only this way has
    /// second derivatives when there is more than one query.
    fn in_steps(&self, hooks: &mut dyn Hooks) -> Tensor {
        let kind = self.v.kind();
        let q = widened(&self.q).transpose(1, 2) / self.scale; // [sequence, head, query, d_head]
        let k = widened(&self.k).permute([0, 2, 3, 1]); // [sequence, head, d_head, key]
        let scores = self.masked(q.matmul(&k)); // [sequence, head, query, key]
        let pattern = self.pattern(scores, kind, hooks);
        pattern.matmul(&self.v.transpose(1, 2)).transpose(1, 2) // [sequence, query, head, d_head]
    }

    /// The same in one kernel: up to twice as fast, in memory linear in the context.
    fn fused(&self) -> Tensor {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|x| x.transpose(1, 2));
        let scale = Some(1.0 / self.scale);
        let mask = self.window.map(|_| {
            self.hidden(q.size()[2], k.size()[2]).logical_not() // [query, key]
        });
        let is_causal = mask.is_none();
        Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, is_causal, scale, false)
            .transpose(1, 2) // [sequence, query, head, d_head]
    }

    /// Sets the scores of keys that the query does not see to `-inf`.
    fn masked(&self, mut scores: Tensor) -> Tensor {
        let size = scores.size();
        let hidden = self.hidden(size[size.len() - 2], size[size.len() - 1]);
        scores.masked_fill_(&hidden, f64::NEG_INFINITY)
    }

    /// Which keys stand behind their query or in front of its window, `[query, key]`; the last query
    /// stands at the last key.
    fn hidden(&self, n_queries: i64, n_keys: i64) -> Tensor {
        let first_query = n_keys - n_queries;
        let ones = Tensor::ones([n_queries, n_keys], (Kind::Bool, self.q.device()));
        let behind = ones.triu(first_query + 1);
        match self.window {
            None => behind,
            Some(window) => behind.logical_or(&ones.tril(first_query - window)),
        }
    }

    /// Passes scores to the hooks, normalizes them, and passes the pattern to the hooks; both are
    /// `[(n_models,) batch, head, query, key]` there and `[sequence, head, query, key]` here.
    fn pattern(&self, scores: Tensor, kind: Kind, hooks: &mut dyn Hooks) -> Tensor {
        let folded = scores.size();
        let unfolded = self.axes.batch_shape(&folded[1..]);
        let scores = hooks::at(hooks, self.scores, scores.reshape(unfolded.as_slice()));
        let pattern = scores.softmax(-1, None::<Kind>).to_kind(kind);
        hooks::at(hooks, self.pattern, pattern).reshape(folded.as_slice())
    }
}

/// Raises half precision to f32: half-precision scores lose what the softmax needs.
fn widened(x: &Tensor) -> Tensor {
    match x.kind() {
        Kind::Float | Kind::Double => x.shallow_clone(),
        _ => x.to_kind(Kind::Float),
    }
}

/// Folds models into the batch and repeats each head `group` times.
///
/// `[(n_models,) batch, pos, head, d_head]` to `[sequence, pos, head * group, d_head]`.
fn fold_models(x: &Tensor, group: i64) -> Tensor {
    let x = if x.dim() == 5 { x.flatten(0, 1) } else { x.shallow_clone() };
    if group == 1 { x } else { x.repeat_interleave_self_int(group, 2, None) }
}

/// Normalizes `[(n_models,) batch, pos, head, d_head]` over both last axes.
fn over_all_heads(
    norm: &NormLayer,
    x: &Tensor,
    hook: impl Fn(Norm) -> Hook,
    hooks: &mut dyn Hooks,
) -> Tensor {
    norm.forward(&x.flatten(-2, -1), hook, hooks).view(x.size().as_slice())
}
