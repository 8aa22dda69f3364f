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
        let by_columns = d_vocab_out >= LARGE_VOCABULARY && flat.device() == Device::Cpu;
        let rows_per_block = if by_columns {
            ROWS_PER_BLOCK
        } else {
            (logits_per_block(flat.device()) / d_vocab_out.max(1)).max(1)
        };
        let mut losses: BTreeMap<i64, Vec<Tensor>> = BTreeMap::new();
        let mut logits = Vec::new();
        let mut first = 0;
        while first < batch * pos {
            let length = rows_per_block.min(batch * pos - first);
            let part = flat.narrow(0, first, length);
            let next = next.as_ref().map(|next| next.narrow(0, first, length));
            let (found, part) = if by_columns {
                self.columns(&part, next.as_ref())
            } else {
                self.rows(part, next.as_ref())
            };
            for (width, found) in found {
                losses.entry(width).or_default().push(found);
            }
            logits.extend(part);
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

    /// Losses by width, and the logits if they are wanted, of some rows with all their logits at once.
    fn rows(&self, rows: Tensor, next: Option<&Tensor>) -> (Vec<(i64, Tensor)>, Option<Tensor>) {
        let logits = self.model.unembed(&rows).unwrap_or(rows); // [row, d_vocab_out]
        let loss = |&width: &i64| {
            let next = next.expect("made where losses are wanted").clamp_max(width - 1);
            (width, negative_log_probs(&logits.narrow(1, 0, width), &next))
        };
        let losses = self.widths.iter().map(loss).collect();
        (losses, self.wants_logits.then_some(logits))
    }

    /// The same with a few columns of the logits at a time, which stay in the cache from the product to the sum: on
    /// two cores, half as long again is needed with all 50 000 columns of GPT-2.
    fn columns(
        &self,
        rows: &Tensor,
        next: Option<&Tensor>,
    ) -> (Vec<(i64, Tensor)>, Option<Tensor>) {
        let d_vocab_out = self.model.config().d_vocab_out;
        let mut losses: Vec<(i64, Tensor, Streamed)> = Vec::new();
        for &width in &self.widths {
            let targets = next.expect("made where losses are wanted").clamp_max(width - 1);
            losses.push((width, targets, Streamed::default()));
        }
        let mut logits = Vec::new();
        let mut first = 0;
        while first < d_vocab_out {
            let length = COLUMNS_PER_BLOCK.min(d_vocab_out - first);
            let part = self.model.unembed_columns(rows, first, length);
            // A perceptron's logits are there already.
            let part = part.unwrap_or_else(|| rows.narrow(1, first, length)); // [row, length]
            for (width, targets, loss) in &mut losses {
                if *width > first {
                    let within = part.narrow(1, 0, length.min(*width - first));
                    loss.add(&within, &(&*targets - first));
                }
            }
            if self.wants_logits {
                logits.push(part);
            }
            first += length;
        }
        let losses = losses.into_iter().map(|(width, _, loss)| (width, loss.finish())).collect();
        (losses, self.wants_logits.then(|| Tensor::cat(&logits, 1)))
    }
}

/// From this many entries on, a vocabulary's losses are computed in f32 where logits are: one pass over the
/// largest tensor of all instead of several, and wrong by 1e-6 nats, which is what such logits are wrong by. Toy models,
/// whose losses fall far below that, are computed in f64.
const LARGE_VOCABULARY: i64 = 1 << 14;

/// Rows and columns of the logits of a large vocabulary that are computed at once on a CPU.
const ROWS_PER_BLOCK: i64 = 2048;
const COLUMNS_PER_BLOCK: i64 = 1024;

/// `logsumexp(logits) - logits[target]` of logits that come a few columns at a time.
#[derive(Default)]
struct Streamed {
    /// `logsumexp` of each block of columns, f64 `[row]`.
    sums: Vec<Tensor>,
    /// `logits[target]`, 0 until it comes, f64 `[row]`.
    chosen: Option<Tensor>,
}

impl Streamed {
    /// The next columns: logits `[row, column]`, targets counted from the first of them, i64 `[row]`.
    fn add(&mut self, logits: &Tensor, targets: &Tensor) {
        let kind = if logits.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let logits = logits.to_kind(kind);
        let width = logits.size()[1];
        // What the logarithms of a softmax are less than the logits, in one kernel instead of four.
        let log_probs = logits.log_softmax(-1, kind);
        let sum = logits.amax([1i64], false) - log_probs.amax([1i64], false);
        self.sums.push(sum.to_kind(Kind::Double));
        let is_here = targets.ge(0).logical_and(&targets.lt(width));
        let at = targets.clamp(0, width - 1).unsqueeze(-1);
        let found = logits.gather(1, &at, false).squeeze_dim(1).to_kind(Kind::Double);
        let before = self.chosen.take().unwrap_or_else(|| found.zeros_like());
        self.chosen = Some(found.where_self(&is_here, &before));
    }

    /// f64 `[row]`
    fn finish(self) -> Tensor {
        let chosen = self.chosen.expect("there is a column");
        Tensor::stack(&self.sums, 0).logsumexp(&[0i64][..], false) - chosen
    }
}

/// `logsumexp(logits) - logits[target]`: logits `[row, width]`, targets i64 `[row]`; returns f64 `[row]`.
fn negative_log_probs(logits: &Tensor, targets: &Tensor) -> Tensor {
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

    fn model(d_vocab: i64, n_ctx: i64) -> Transformer {
        let config = Config { attn_only: true, d_mlp: 0, ..Config::toy(1, 8, 2, d_vocab, n_ctx) };
        let parameters = config.parameters();
        let weights: Weights = parameters
            .into_iter()
            .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.5, Device::Cpu)))
            .collect();
        Transformer::new(config, weights).unwrap()
    }

    /// Losses over `narrow` entries and over all, by blocks and from the whole logits.
    fn check(d_vocab: i64, pos: i64, narrow: i64) {
        let model = model(d_vocab, pos);
        let tokens = (Tensor::arange(2 * pos, (Kind::Int64, Device::Cpu)) * 7919)
            .remainder(narrow)
            .view([2, pos]);
        let run = Run { skip_unembed: true, ..Run::FULL };
        let normalized = model.forward(&tokens, &run, &mut ());
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        let read = |wants_logits, widths: &[i64]| {
            let widths = widths.iter().copied().collect();
            Readout { model: &model, wants_logits, widths }.read(&normalized, &tokens)
        };
        let all = read(true, &[narrow, d_vocab]);
        assert!(all.logits.unwrap().allclose(&logits, 1e-5, 1e-5, false));
        for width in [narrow, d_vocab] {
            let expected = -logits
                .narrow(2, 0, width)
                .to_kind(Kind::Double)
                .log_softmax(-1, Kind::Double)
                .narrow(1, 0, pos - 1)
                .gather(-1, &tokens.narrow(1, 1, pos - 1).unsqueeze(-1), false)
                .squeeze_dim(-1);
            let worst = (&all.losses[&width] - expected).abs().max().double_value(&[]);
            assert!(worst < 5e-6, "{width} of {d_vocab}: {worst}");
            let alone = read(false, &[width]);
            assert!(alone.logits.is_none());
            assert!(alone.losses[&width].equal(&all.losses[&width]), "who else reads is no matter");
        }
    }

    #[test]
    fn blocks_of_rows_give_what_the_whole_gives() {
        // Two blocks: 1 << 24 logits are 1025 rows.
        check((1 << 14) - 17, 600, 10);
    }

    #[test]
    fn blocks_of_columns_give_what_the_whole_gives() {
        // Two blocks of rows and seventeen of columns, the last ones short; the narrow width ends within the second.
        check((1 << 14) + 17, 1100, 1500);
    }
}
