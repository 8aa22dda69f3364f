//! Loss of every token of given prompts.
//!
//! # What it measures
//! Next-token cross-entropy in nats, from a log-softmax in f64: `loss_per_token` `[row, position]`, where
//! position i is the prediction of token i+1 (TransformerLens' `loss_per_token`; NaN behind the end of a row
//! that is shorter than the longest); `loss_by_position`, its mean over rows; `loss`, its mean over all
//! predicted tokens; `n_predicted`, their number. `prepend_bos` is 1 where a BOS token stands in front: it
//! changes every position and adds a prediction of the first token. With `d_vocab_trained`, rows of the
//! unembedding from there on are left out of the softmax: a padded vocabulary (Pythia's 50304 rows for 50277
//! tokens) has logits that were never trained to mean anything.
//!
//! # Interpretation
//! A loss that falls with position is in-context learning. Losses of single tokens over steps show abrupt
//! acquisitions that the mean hides.
//!
//! # Source
//! TransformerLens `lm_cross_entropy_loss(per_token=True)`; Olsson et al. 2022 (loss by position).

use sweep_lens::{Device, Hook, Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject, TokenSet},
    params::{ParamSet, params},
    prompts::Prompts,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct PerTokenLoss;

params! {
    /// Whose loss, and over which vocabulary.
    pub struct Params {
        /// Prompts as lists of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0, group = "prompts";
        /// Prompts as texts for the model's tokenizer.
        text: Vec<String> = Vec::new(), group = "prompts";
        /// Whether the BOS token goes in front; null: the model's default for texts, no for tokens.
        prepend_bos: Option<bool> = None;
        /// Only this many first entries of the vocabulary compete; null: all.
        d_vocab_trained: Option<u64> = None, min = 1.0;
    }
}

/// Most numbers that one value of `loss_per_token` may have.
const MAX_CELLS: usize = 1 << 20;

impl Experiment for PerTokenLoss {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "per-token-loss",
        version: 1,
        summary: "Measures the next-token loss of every position of given prompts",
        source: "TransformerLens lm_cross_entropy_loss; Olsson et al. 2022",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let config = subject.model.config();
        let prompts = Prompts::new(subject, &params.tokens, &params.text, params.prepend_bos)?;
        let param = if params.text.is_empty() { "tokens" } else { "text" };
        let (n_rows, length) = (prompts.rows.len(), prompts.max_length());
        if length < 2 {
            return Err(Error::params(param, "expected a row of two or more tokens, found none"));
        }
        if n_rows.saturating_mul(length - 1) > MAX_CELLS {
            return Err(Error::params(
                param,
                format!(
                    "{n_rows} rows of up to {length} tokens are more than {MAX_CELLS} predictions: \
                     list the experiment several times"
                ),
            ));
        }
        let d_vocab = match params.d_vocab_trained {
            Some(trained) if trained > config.d_vocab_out.unsigned_abs() => {
                let problem =
                    format!("is {trained}, the unembedding has {} rows", config.d_vocab_out);
                return Err(Error::params("d_vocab_trained", problem));
            }
            Some(trained) => trained as i64,
            None => config.d_vocab_out,
        };
        let targets = || prompts.rows.iter().flat_map(|row| row.iter().skip(1));
        if let Some(target) = targets().find(|&&target| target >= d_vocab) {
            let problem = format!("token {target} is to be predicted among {d_vocab} only");
            return Err(Error::params(param, problem));
        }
        let tokens = prompts.padded().to_device(subject.device);
        let losses = Losses {
            d_vocab,
            targets: tokens.narrow(1, 1, length as i64 - 1),
            lengths: prompts.rows.iter().map(Vec::len).collect(),
            prepend_bos: prompts.prepend_bos,
            found: Vec::with_capacity(n_rows),
        };
        let per_row = config.d_vocab_out.max(1).saturating_mul(length as i64);
        let rows_per_batch = (LOGITS_PER_PASS / per_row).clamp(1, n_rows as i64);
        let tokens = TokenSet { tokens, rows_per_batch, last_position_only: false };
        Ok(Analysis::Observe(tokens, Box::new(losses)))
    }
}

/// Logits that one pass may hold: 256 MiB in f32.
const LOGITS_PER_PASS: i64 = 64 << 20;

/// Collects the loss of every position.
struct Losses {
    d_vocab: i64,
    /// i64 `[row, pos - 1]`.
    targets: Tensor,
    lengths: Vec<usize>,
    prepend_bos: bool,
    /// Losses of each row seen so far, as long as the longest row.
    found: Vec<Vec<f64>>,
}

impl Observer for Losses {
    fn wants(&self, _hook: Hook) -> bool {
        false
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, first_row: i64, logits: &Tensor) -> Result<()> {
        let (batch, pos) = (logits.size()[0], logits.size()[1]);
        let logits = logits.narrow(1, 0, pos - 1).narrow(2, 0, self.d_vocab);
        let targets = self.targets.narrow(0, first_row, batch);
        for row in 0..batch {
            self.found.push(losses(&logits.get(row), &targets.get(row)));
        }
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { lengths, prepend_bos, mut found, .. } = *self;
        if found.len() != lengths.len() {
            let problem =
                format!("the forward pass gave {} rows of {}", found.len(), lengths.len());
            return Err(Error::Input(problem));
        }
        let n_positions = found.first().map_or(0, Vec::len);
        for (row, length) in found.iter_mut().zip(&lengths) {
            row[length - 1..].fill(f64::NAN);
        }
        let by_position: Vec<f64> = (0..n_positions)
            .map(|position| {
                let inside =
                    found.iter().zip(&lengths).filter(|(_, length)| position + 1 < **length);
                mean(inside.map(|(row, _)| row[position]))
            })
            .collect();
        let all = found.iter().zip(&lengths).flat_map(|(row, length)| &row[..length - 1]);
        cx.metric("loss", mean(all.copied()))?;
        cx.metric("loss_by_position", Value::vector(by_position))?;
        let shape = vec![found.len(), n_positions];
        let flat: Vec<f64> = found.into_iter().flatten().collect();
        cx.metric("loss_per_token", Value::array(shape, flat, vec![None, None]))?;
        let n_predicted: usize = lengths.iter().map(|length| length - 1).sum();
        cx.metric("n_predicted", n_predicted as f64)?;
        cx.metric("prepend_bos", f64::from(u8::from(prepend_bos)))
    }
}

/// `logsumexp(logits) - logits[target]` in f64: logits `[pos, d_vocab]`, targets `[pos]`.
fn losses(logits: &Tensor, targets: &Tensor) -> Vec<f64> {
    // On a CPU, blocks that stay in the cache are several times faster than one conversion of all; a GPU
    // wants few large launches.
    let block: i64 = if logits.device() == Device::Cpu { 1 << 18 } else { 1 << 25 };
    let (pos, d_vocab) = (logits.size()[0], logits.size()[1]);
    let positions_per_block = (block / d_vocab.max(1)).max(1);
    let mut found = Vec::with_capacity(pos as usize);
    let mut first = 0;
    while first < pos {
        let length = positions_per_block.min(pos - first);
        let block = logits.narrow(0, first, length).to_kind(Kind::Double);
        let targets = targets.narrow(0, first, length).unsqueeze(-1);
        let chosen = block.gather(-1, &targets, false).squeeze_dim(-1);
        found.extend(to_vec(&(block.logsumexp(&[-1i64][..], false) - chosen)));
        first += length;
    }
    found
}

/// NaN of nothing.
fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = numbers.fold((0u64, 0.0), |(count, sum), number| (count + 1, sum + number));
    sum / count as f64
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss over all predicted tokens",
    },
    MetricDef {
        name: "loss_by_position",
        unit: Unit::Nats,
        axes: &[Axis::Position],
        doc: "Mean loss over rows at each position; position i predicts token i+1",
    },
    MetricDef {
        name: "loss_per_token",
        unit: Unit::Nats,
        axes: &[Axis::Row, Axis::Position],
        doc: "Loss of each prediction; NaN behind the end of a short row",
    },
    MetricDef {
        name: "n_predicted",
        unit: Unit::Count,
        axes: &[],
        doc: "Number of predicted tokens",
    },
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Dimensionless,
        axes: &[],
        doc: "1 if a BOS token stands in front of every row, else 0",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "loss",
        title: "Mean loss of the prompts",
        kind: FigureKind::Lines,
        metrics: &["loss"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "loss-by-position",
        title: "Loss by position",
        kind: FigureKind::HeatMap,
        metrics: &["loss_by_position"],
        log_x: true,
        log_y: false,
    },
];
