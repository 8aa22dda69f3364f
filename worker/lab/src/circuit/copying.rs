//! Whether a head's OV circuit copies names (D23): the residual stream behind block 0 at a name, through the
//! head's values and outputs and the final norm, is unembedded; a copying head puts the name among the first five.
//!
//! Main type: [`CopyScores`]. The head reads through its own norm, so that folding norms into weights changes
//! nothing; its value bias counts where the head still has one. For negative scores the head's output changes sign,
//! which finds heads that write against a name.

use sweep_lens::{Cache, Hook, Kind, NormPosition, Normalization, Run, Site, Tensor, Transformer};

use super::batch::{Batch, Meter, at};
use crate::{error::Result, value::to_vec};

/// A name is copied if fewer than this many tokens are at least as likely.
const TOP: i64 = 5;

/// How often each head copies names; sums over names.
#[derive(Debug)]
pub(crate) struct CopyScores {
    /// Names copied, row-major `[layer, head]`.
    copied: Vec<f64>,
    /// Names copied with the head's output negated.
    negative: Vec<f64>,
    n_names: usize,
    n_max: usize,
}

impl CopyScores {
    /// Nothing seen yet; at most `n_max` names will be looked at.
    pub(crate) fn new(model: &Transformer, n_max: usize) -> Self {
        let n_heads = (model.config().n_layers * model.config().n_heads) as usize;
        Self { copied: vec![0.0; n_heads], negative: vec![0.0; n_heads], n_names: 0, n_max }
    }

    /// Number of names seen.
    pub(crate) fn n_names(&self) -> usize {
        self.n_names
    }

    /// Fraction of names copied, row-major `[layer, head]`.
    pub(crate) fn scores(&self) -> Vec<f64> {
        self.copied.iter().map(|n| n / self.n_names as f64).collect()
    }

    /// The same with negated outputs.
    pub(crate) fn negative_scores(&self) -> Vec<f64> {
        self.negative.iter().map(|n| n / self.n_names as f64).collect()
    }

    /// Looks at the names of a batch: indirect object and both subjects.
    pub(crate) fn see(&mut self, meter: &Meter<'_>, batch: &Batch) -> Result<()> {
        let room = self.n_max.saturating_sub(self.n_names) as i64;
        if room == 0 {
            return Ok(());
        }
        let hook = Hook::block(0, Site::ResidPost);
        let mut cache = Cache::of(&[hook]);
        let run = Run { stop_after_layer: Some(0), ..Run::FULL };
        let _ = meter.model.forward(&batch.tokens, &run, &mut cache);
        let places = [&batch.io_at, &batch.s1_at, &batch.s2_at];
        let resid = Tensor::stack(&places.map(|place| at(&cache[hook], place)), 1).flatten(0, 1);
        let names = Tensor::stack(&[&batch.io, &batch.s, &batch.s], 1).flatten(0, 1);
        let n = room.min(names.size()[0]);
        let (resid, names) = (resid.narrow(0, 0, n), names.narrow(0, 0, n));
        let config = meter.model.config();
        // Added at the end only: a batch that fails is tried again and must not count twice.
        let mut found = Vec::new();
        for layer in 0..config.n_layers {
            let written = outputs(meter.model, layer, &resid)?; // [head, name, d_model]
            for head in 0..config.n_heads {
                found.push(count(meter, &written.get(head), &names)?);
            }
        }
        for (index, (copied, negative)) in found.into_iter().enumerate() {
            self.copied[index] += copied;
            self.negative[index] += negative;
        }
        self.n_names += n as usize;
        Ok(())
    }
}

/// What every head of a layer writes when it attends to these residual streams only.
///
/// `[name, d_model]` to `[head, name, d_model]`.
fn outputs(model: &Transformer, layer: i64, resid: &Tensor) -> Result<Tensor> {
    let (config, weights) = (model.config(), model.weights());
    let name = |part: &str| format!("blocks.{layer}.{part}");
    let norm = |x: &Tensor| normalized(model, &name("ln1"), config.normalization, x);
    let is_behind = config.norm_position == NormPosition::Post;
    let x = if is_behind { wide(resid) } else { norm(resid) };
    let w_v = wide(weights.require(&name("attn.W_V"))?); // [key_value_head, d_model, d_head]
    let v = x.unsqueeze(0).matmul(&w_v); // [key_value_head, name, d_head]
    let v = match weights.get(&name("attn.b_V")) {
        Some(b_v) => v + wide(b_v).unsqueeze(1),
        None => v,
    };
    let v = config.clip_qkv.map_or_else(|| v.shallow_clone(), |clip| v.clamp(-clip, clip));
    let group = config.n_heads / config.n_key_value_heads;
    let v = if group == 1 { v } else { v.repeat_interleave_self_int(group, 0, None) };
    let written = v.matmul(&wide(weights.require(&name("attn.W_O"))?));
    Ok(if is_behind { norm(&written) } else { written })
}

/// How many of `names` are copied by outputs `[name, d_model]`, and by the negated ones.
fn count(meter: &Meter<'_>, written: &Tensor, names: &Tensor) -> Result<(f64, f64)> {
    const LOGITS_AT_ONCE: i64 = 1 << 25;
    let config = meter.model.config();
    let at_once = (LOGITS_AT_ONCE / config.d_vocab_out).max(1);
    let (mut totals, mut first) = ([0.0; 2], 0);
    while first < names.size()[0] {
        let length = at_once.min(names.size()[0] - first);
        let names = names.narrow(0, first, length).unsqueeze(-1);
        let written = written.narrow(0, first, length);
        for (total, written) in totals.iter_mut().zip([written.shallow_clone(), -written]) {
            let ends = normalized(meter.model, "ln_final", config.final_normalization, &written);
            let logits = wide_unembed(meter, &ends)?; // [name, d_vocab_out]
            let own = logits.gather(-1, &names, false);
            // The name itself is at least as likely as itself.
            let n_others =
                logits.ge_tensor(&own).sum_dim_intlist(&[-1i64][..], false, Kind::Int64) - 1;
            *total += to_vec(&n_others.lt(TOP).sum(Kind::Int64))[0];
        }
        first += length;
    }
    Ok((totals[0], totals[1]))
}

fn wide_unembed(meter: &Meter<'_>, ends: &Tensor) -> Result<Tensor> {
    let kind = meter.model.weights().require("unembed.W_U")?.kind();
    Ok(wide(&meter.unembed(&ends.to_kind(kind))))
}

/// Half precision as f32.
fn wide(x: &Tensor) -> Tensor {
    match x.kind() {
        Kind::Float | Kind::Double => x.shallow_clone(),
        _ => x.to_kind(Kind::Float),
    }
}

/// Applies a norm of the model, with weight and bias where it has them, over the last axis.
fn normalized(model: &Transformer, name: &str, kind: Normalization, x: &Tensor) -> Tensor {
    let x = wide(x);
    if kind == Normalization::None {
        return x;
    }
    let mean = |x: &Tensor| x.mean_dim(&[-1i64][..], true, None::<Kind>);
    let centered = if kind.is_centered() { &x - mean(&x) } else { x };
    let scaled = &centered / (mean(&centered.square()) + model.config().eps).sqrt();
    let weights = model.weights();
    let weighted = match weights.get(&format!("{name}.w")) {
        Some(w) => scaled * wide(w),
        None => scaled,
    };
    match weights.get(&format!("{name}.b")) {
        Some(b) => weighted + wide(b),
        None => weighted,
    }
}
