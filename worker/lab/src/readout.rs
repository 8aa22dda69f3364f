//! From the final residual stream to logits and next-token losses, a block of positions at a time: a
//! vocabulary of 50 000 makes logits the largest tensor of a pass, and hardly anybody needs them all at once.
//!
//! Main type: [`Readout`]. Invariant: who else reads the pass changes no bit of a result, because blocks are
//! the same whatever is wanted.

use std::collections::{BTreeMap, BTreeSet};

use sweep_lens::{Device, Kind, Tensor, Transformer};

/// What is wanted of a pass's end.
pub(crate) struct Readout<'a> {
    pub model: &'a Transformer,
    pub wants_logits: bool,
    /// Over how many first entries of the vocabulary losses are wanted.
    pub widths: BTreeSet<i64>,
}

/// What was wanted.
#[derive(Default)]
pub(crate) struct Read {
    /// `[batch, pos, d_vocab_out]`
    pub logits: Option<Tensor>,
    /// By width: f64 `[batch, pos - 1]`.
    pub losses: BTreeMap<i64, Tensor>,
}

/// Logits in one matrix product: enough rows for full speed, few enough to stay far from the memory's end.
const fn logits_per_block(device: Device) -> i64 {
    match device {
        Device::Cpu => 1 << 24,
        _ => 1 << 28,
    }
}

impl Readout<'_> {
    /// # Shapes
    /// - `normalized`: `[batch, pos, d_model]` (of a perceptron: its logits)
    /// - `tokens`: i64 `[batch, pos]`, or any if nobody wants losses
    pub(crate) fn read(&self, normalized: &Tensor, tokens: &Tensor) -> Read {
        let size = normalized.size();
        let [batch, pos] = [size[0], size[1]];
        let flat = normalized.reshape([batch * pos, -1]);
        // The last position of a row predicts nothing; whatever stands there is cut off.
        let next = if self.widths.is_empty() {
            None
        } else {
            Some(tokens.roll([-1i64], [1i64]).reshape([-1]))
        };
        let d_vocab_out = self.model.config().d_vocab_out;
        let rows_per_block = (logits_per_block(normalized.device()) / d_vocab_out.max(1)).max(1);
        let mut losses: BTreeMap<i64, Vec<Tensor>> = BTreeMap::new();
        let mut logits = Vec::new();
        let mut first = 0;
        while first < batch * pos {
            let length = rows_per_block.min(batch * pos - first);
            let part = flat.narrow(0, first, length);
            let part = self.model.unembed(&part).unwrap_or(part); // [row, d_vocab_out]
            for &width in &self.widths {
                let next = next.as_ref().expect("made where losses are wanted");
                let found = negative_log_probs(
                    &part.narrow(1, 0, width),
                    &next.narrow(0, first, length).clamp_max(width - 1),
                );
                losses.entry(width).or_default().push(found);
            }
            if self.wants_logits {
                logits.push(part);
            }
            first += length;
        }
        let logits = self.wants_logits.then(|| {
            let all = if logits.len() == 1 { logits.remove(0) } else { Tensor::cat(&logits, 0) };
            all.view([batch, pos, d_vocab_out])
        });
        let by_row = |parts: Vec<Tensor>| Tensor::cat(&parts, 0).view([batch, pos]);
        let losses = losses
            .into_iter()
            .map(|(width, parts)| (width, by_row(parts).narrow(1, 0, (pos - 1).max(0))))
            .collect();
        Read { logits, losses }
    }
}

/// From this many entries on, a vocabulary's losses are computed in f32 where logits are: one pass over the
/// largest tensor of all instead of several, and wrong by 1e-6 nats, which is what such logits are wrong by. Toy models,
/// whose losses fall far below that, are computed in f64.
const LARGE_VOCABULARY: i64 = 1 << 14;

/// `logsumexp(logits) - logits[target]`: logits `[row, width]`, targets i64 `[row]`; returns f64 `[row]`.
pub(crate) fn negative_log_probs(logits: &Tensor, targets: &Tensor) -> Tensor {
    // On a CPU, blocks that stay in the cache are several times faster than one conversion of all; a GPU
    // wants few large launches.
    let block: i64 = if logits.device() == Device::Cpu { 1 << 18 } else { 1 << 25 };
    let (n_rows, width) = (logits.size()[0], logits.size()[1]);
    let kind = if width < LARGE_VOCABULARY || logits.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let rows_per_block = (block / width.max(1)).max(1);
    let mut found = Vec::new();
    let mut first = 0;
    while first < n_rows {
        let length = rows_per_block.min(n_rows - first);
        let block = logits.narrow(0, first, length).log_softmax(-1, kind);
        let targets = targets.narrow(0, first, length).unsqueeze(-1);
        let chosen = block.gather(-1, &targets, false).squeeze_dim(-1);
        found.push(-chosen.to_kind(Kind::Double));
        first += length;
    }
    Tensor::cat(&found, 0)
}

#[cfg(test)]
mod tests {
    use sweep_lens::{Config, Run, Weights, init};

    use super::*;
    use crate::value::to_vec;

    fn model(d_vocab: i64) -> Transformer {
        let config = Config { attn_only: true, d_mlp: 0, ..Config::toy(1, 8, 2, d_vocab, 6) };
        let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
        let weights: Weights = parameters
            .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.5, Device::Cpu)))
            .collect();
        Transformer::new(config, weights).unwrap()
    }

    #[test]
    fn blocks_give_what_the_whole_gives() {
        // So large a vocabulary that three positions fill a block.
        let model = model((1 << 22) + 5);
        let tokens = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6, 0, 9]).view([2, 4]);
        let run = Run { skip_unembed: true, ..Run::FULL };
        let normalized = model.forward(&tokens, &run, &mut ());
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        let width = model.config().d_vocab_out;
        let read = |wants_logits, widths: &[i64]| {
            let widths = widths.iter().copied().collect();
            Readout { model: &model, wants_logits, widths }.read(&normalized, &tokens)
        };
        let all = read(true, &[10, width]);
        assert!(all.logits.unwrap().allclose(&logits, 1e-5, 1e-5, false));
        let expected = -logits
            .to_kind(Kind::Double)
            .log_softmax(-1, Kind::Double)
            .narrow(1, 0, 3)
            .gather(-1, &tokens.narrow(1, 1, 3).unsqueeze(-1), false)
            .squeeze_dim(-1);
        assert!(all.losses[&width].allclose(&expected, 1e-6, 1e-6, false));
        let alone = read(false, &[width]);
        assert!(alone.logits.is_none() && alone.losses[&width].equal(&all.losses[&width]));
        let narrow =
            -logits.narrow(2, 0, 10).log_softmax(-1, Kind::Double).get(1).get(2).double_value(&[9]);
        assert!((to_vec(&all.losses[&10])[5] - narrow).abs() < 1e-5);
    }
}
