//! Prompts as tensors, a batch at a time, and the logit difference at their ends (D20).
//!
//! Main types: [`Batch`], [`Meter`]. Prompts of unequal length are filled up behind their ends, which changes
//! nothing within them because attention is causal. Invariant: a batch that does not fit into memory is halved,
//! and what is measured does not depend on the batches.

use sweep_lens::{Config, Device, Hooks, Kind, Run, Tensor, Transformer};

use super::prompts::{IoiSet, Prompt};
use crate::{
    error::{Class, Result, catch},
    subject::Subject,
};

/// Some prompts of a set.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Index of the first prompt.
    pub first: usize,
    /// i64 `[row, pos]`
    pub tokens: Tensor,
    /// Tokens of the indirect objects, i64 `[row]`, as all below.
    pub io: Tensor,
    /// Tokens of the subjects.
    pub s: Tensor,
    /// Positions of the indirect objects.
    pub io_at: Tensor,
    /// Positions of the first subjects.
    pub s1_at: Tensor,
    /// Positions of the second subjects.
    pub s2_at: Tensor,
    /// Positions where answers are predicted.
    pub end_at: Tensor,
    /// The prompts with three other names: nothing tells the answer (ABC). i64 `[row, pos]`; the prompts themselves
    /// where there are too few names (see [`IoiSet::need_others`]).
    pub abc: Tensor,
}

impl Batch {
    /// Prompts `first..first + length` on a device.
    pub(crate) fn new(set: &IoiSet, first: usize, length: usize, device: Device) -> Self {
        let prompts = &set.prompts[first..first + length];
        let vector = |of: &dyn Fn(&Prompt) -> i64| {
            Tensor::from_slice(&prompts.iter().map(of).collect::<Vec<_>>()).to_device(device)
        };
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let padded = |of: &dyn Fn(&Prompt) -> &[i64]| {
            let mut flat = Vec::with_capacity(prompts.len() * longest);
            for tokens in prompts.iter().map(of) {
                let filler = tokens.last().copied().unwrap_or(0);
                flat.extend(tokens.iter().copied().chain(std::iter::repeat(filler)).take(longest));
            }
            Tensor::from_slice(&flat).view([-1, longest as i64]).to_device(device)
        };
        Self {
            first,
            tokens: padded(&|p| &p.tokens),
            abc: padded(&|p| p.abc.as_ref().unwrap_or(&p.tokens)),
            io: vector(&|p| p.io),
            s: vector(&|p| p.s),
            io_at: vector(&|p| p.places.io as i64),
            s1_at: vector(&|p| p.places.s1 as i64),
            s2_at: vector(&|p| p.places.s2 as i64),
            end_at: vector(&|p| p.places.end as i64),
        }
    }

    /// Number of prompts.
    pub(crate) fn n_rows(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Length of the longest prompt.
    pub(crate) fn n_pos(&self) -> i64 {
        self.tokens.size()[1]
    }

    /// The prompts with the indirect object in place of the second subject: the answer changes (D25).
    pub(crate) fn flipped(&self) -> Tensor {
        self.tokens.scatter(1, &self.s2_at.unsqueeze(-1), &self.io.unsqueeze(-1))
    }
}

/// Takes one position out of each row: `[row, pos, …]` and i64 `[row]` to `[row, …]`.
pub(crate) fn at(x: &Tensor, index: &Tensor) -> Tensor {
    let rows = Tensor::arange(x.size()[0], (Kind::Int64, x.device()));
    x.index(&[Some(&rows), Some(index)])
}

/// Runs `run` on all prompts, as many at once as fit into memory, and collects what it returns.
///
/// `cached` is how many numbers the caller keeps per prompt, besides what a pass needs.
pub(crate) fn in_batches<T>(
    set: &IoiSet,
    subject: &Subject<'_>,
    cached: i64,
    mut run: impl FnMut(&Batch) -> Result<T>,
) -> Result<Vec<T>> {
    let config = subject.model.config();
    let longest = set.prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(1) as i64;
    let per_row = numbers_of_a_pass(config, longest).saturating_add(cached);
    halving(set.prompts.len(), per_row, subject.device, |first, length| {
        run(&Batch::new(set, first, length, subject.device))
    })
}

/// Runs `run` on rows `first..first + length` until all are done, as many at once as fit into memory at `per_row`
/// numbers each; rows that do not fit after all are tried again, half as many at a time.
pub(crate) fn halving<T>(
    n_rows: usize,
    per_row: i64,
    device: Device,
    mut run: impl FnMut(usize, usize) -> Result<T>,
) -> Result<Vec<T>> {
    let numbers_max: i64 = if device == Device::Cpu { 1 << 27 } else { 1 << 30 };
    let mut at_once = (numbers_max / per_row.max(1)).max(1) as usize;
    let mut results = Vec::new();
    let mut first = 0;
    while first < n_rows {
        let length = at_once.min(n_rows - first);
        match catch(|| run(first, length)) {
            Ok(result) => {
                results.push(result);
                first += length;
            }
            Err(error) if error.class() == Class::OutOfMemory && length > 1 => at_once = length / 2,
            Err(error) => return Err(error),
        }
    }
    Ok(results)
}

/// Numbers alive at once in a pass over one prompt, roughly.
pub(crate) fn numbers_of_a_pass(config: &Config, pos: i64) -> i64 {
    let Config { d_model, d_mlp, n_heads, d_head, .. } = *config;
    pos * (6 * d_model + 5 * n_heads * d_head + 4 * d_mlp + 4 * n_heads * pos)
}

/// Measures logits at the ends of prompts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter<'a> {
    /// The model.
    pub model: &'a Transformer,
    w_u: &'a Tensor,         // [d_model, d_vocab_out]
    b_u: Option<&'a Tensor>, // [d_vocab_out]
}

impl<'a> Meter<'a> {
    /// A meter for a model.
    pub(crate) fn new(model: &'a Transformer) -> Result<Self> {
        let weights = model.weights();
        Ok(Self { model, w_u: weights.require("unembed.W_U")?, b_u: weights.get("unembed.b_U") })
    }

    /// `W_U[IO] - W_U[S]`, f64 `[row, d_model]`, and the same of the bias, f64 `[row]`.
    pub(crate) fn direction(&self, batch: &Batch) -> (Tensor, Tensor) {
        let of = |table: &Tensor| {
            let pick = |token: &Tensor| table.index_select(-1, token).to_kind(Kind::Double);
            pick(&batch.io) - pick(&batch.s)
        };
        let bias = match self.b_u {
            Some(b_u) => of(b_u),
            None => Tensor::zeros([batch.n_rows()], (Kind::Double, batch.tokens.device())),
        };
        (of(self.w_u).transpose(0, 1), bias)
    }

    /// What the unembedding reads, after the final norm, `[row, pos, d_model]`.
    pub(crate) fn forward(&self, tokens: &Tensor, hooks: &mut dyn Hooks) -> Tensor {
        self.model.forward(tokens, &Run { skip_unembed: true, ..Run::FULL }, hooks)
    }

    /// The same at the ends, `[row, d_model]`.
    pub(crate) fn ends(&self, batch: &Batch, tokens: &Tensor, hooks: &mut dyn Hooks) -> Tensor {
        at(&self.forward(tokens, hooks), &batch.end_at)
    }

    /// Runs a pass for its hooks alone.
    pub(crate) fn watch(&self, tokens: &Tensor, hooks: &mut dyn Hooks) {
        let _ = self.forward(tokens, hooks);
    }

    /// `logit[IO] - logit[S]` at the end of each prompt, f64 `[row]`. `tokens` are the batch's or a
    /// corruption of them.
    pub(crate) fn logit_diff(
        &self,
        batch: &Batch,
        tokens: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Tensor {
        let ends = self.ends(batch, tokens, hooks).to_kind(Kind::Double);
        let (direction, bias) = self.direction(batch);
        (ends * direction).sum_dim_intlist(&[-1i64][..], false, Kind::Double) + bias
    }

    /// Logits of some residual streams behind the final norm, `[…, d_model]` to `[…, d_vocab_out]`.
    pub(crate) fn unembed(&self, ends: &Tensor) -> Tensor {
        let logits = ends.matmul(self.w_u);
        match self.b_u {
            Some(b_u) => logits + b_u,
            None => logits,
        }
    }
}

/// Mean over all prompts of what batches returned, f64 `[row, …]` each, to `[…]`.
pub(crate) fn mean_over_rows(batches: &[Tensor]) -> Tensor {
    Tensor::cat(batches, 0).mean_dim(&[0i64][..], false, Kind::Double)
}
