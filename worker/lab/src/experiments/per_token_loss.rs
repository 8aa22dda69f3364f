//! Loss of every token of given prompts.
//!
//! # What it measures
//! Next-token cross-entropy in nats, from a log-softmax in f64 (in f32 from 16 384 entries of the vocabulary on): `loss_per_token` `[row, position]`, where
//! position i is the prediction of token i+1 (TransformerLens' `loss_per_token`; NaN behind the end of a row
//! that is shorter than the longest); `loss_by_position`, its mean over rows; `loss`, its mean over all
//! predicted tokens; `n_predicted`, their number. Of each row one token index is drawn (by `seed`, the same for every
//! model): `loss_of_sample` `[row]` is its loss and `sample_index` the index, the vector of 10 000 losses of which Olsson
//! et al. take principal components; for so many rows switch `per_token` off. `prepend_bos` is 1 where a BOS token stands in front: it
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

use sweep_lens::{Architecture, Device, Hook, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    prompts::Prompts,
    random::counter::Counter,
    sequence::first_rows,
    sink::Context,
    token_rows::{Drawing, TokenRows},
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
        /// This many rows of random tokens that repeat, as in `induction-heads`.
        random_rows: Option<u64> = None, min = 1.0, max = 65536.0, group = "prompts";
        /// Random tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 2.0, max = 65536.0;
        /// How often the random tokens stand there.
        n_copies: u64 = 2, min = 1.0, max = 64.0;
        /// Seed of random tokens, and of the index that is drawn for each row.
        seed: u64 = 0;
        /// Whether the loss of every token is kept; without, any number of rows may be given.
        per_token: bool = true;
        /// Whether the BOS token goes in front; null: the model's default, for tokens no.
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
        if config.architecture == Architecture::Mlp {
            return Err(Error::Unsupported(
                "`per-token-loss` needs a transformer, the model is a perceptron".to_owned(),
            ));
        }
        let (rows, param) = params.rows(subject)?;
        let (n_rows, length) = (rows.prompts.rows.len(), rows.prompts.max_length());
        if length < 2 {
            return Err(Error::params(param, "expected a row of two or more tokens, found none"));
        }
        if params.per_token && n_rows.saturating_mul(length - 1) > MAX_CELLS {
            return Err(Error::params(
                param,
                format!(
                    "{n_rows} rows of up to {length} tokens are more than {MAX_CELLS} predictions: \
                     list the experiment several times, or do without them (per_token: false)"
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
        let targets = || rows.prompts.rows.iter().flat_map(|row| row.iter().skip(1));
        if let Some(target) = targets().find(|&&target| target >= d_vocab) {
            let problem = format!("token {target} is to be predicted among {d_vocab} only");
            return Err(Error::params(param, problem));
        }
        let lengths: Vec<usize> = rows.prompts.rows.iter().map(Vec::len).collect();
        let losses = Losses {
            d_vocab,
            samples: sample(&lengths, params.seed),
            lengths,
            prepend_bos: rows.prompts.prepend_bos,
            per_token: params.per_token,
            found: Vec::with_capacity(n_rows),
        };
        Ok(Analysis::Observe(rows.token_set(subject, 0), Box::new(losses)))
    }
}

impl Params {
    /// The rows, and the parameter that they came from.
    fn rows(&self, subject: &Subject<'_>) -> Result<(TokenRows, &'static str)> {
        let param = if self.text.is_empty() { "tokens" } else { "text" };
        let Some(batch) = self.random_rows else {
            let prompts = Prompts::new(subject, &self.tokens, &self.text, self.prepend_bos)?;
            return Ok((TokenRows { prompts, layout: None }, param));
        };
        let drawing = Drawing {
            batch,
            seq_len: self.seq_len,
            n_copies: self.n_copies,
            overwrite_bos: false,
            distinct: false,
            seed: self.seed,
        };
        Ok((TokenRows::draw(subject, self.prepend_bos, drawing)?, "random_rows"))
    }
}

/// Collects the loss of every position.
struct Losses {
    d_vocab: i64,
    lengths: Vec<usize>,
    prepend_bos: bool,
    per_token: bool,
    /// By row: the token index whose loss stands for the row, if it has any.
    samples: Vec<Option<usize>>,
    /// Losses of each row seen so far, as long as the longest row.
    found: Vec<Vec<f64>>,
}

impl Observer for Losses {
    fn wants(&self, _hook: Hook) -> bool {
        false
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn wants_losses(&self) -> Option<i64> {
        Some(self.d_vocab)
    }

    fn losses(&mut self, _first_row: i64, losses: &Tensor) -> Result<()> {
        let length = losses.size()[1] as usize;
        self.found.extend(to_vec(losses).chunks(length).map(<[f64]>::to_vec));
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { lengths, prepend_bos, per_token, samples, mut found, .. } = *self;
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
        let sampled = found.iter().zip(&samples);
        let sampled = sampled.map(|(row, index)| index.map_or(f64::NAN, |index| row[index - 1]));
        cx.metric("loss_of_sample", Value::vector(sampled.collect()))?;
        let index = |index: &Option<usize>| index.map_or(f64::NAN, |index| index as f64);
        cx.metric("sample_index", Value::vector(samples.iter().map(index).collect()))?;
        if per_token {
            let shape = vec![found.len(), n_positions];
            let flat: Vec<f64> = found.into_iter().flatten().collect();
            cx.metric("loss_per_token", Value::array(shape, flat, vec![None, None]))?;
        }
        let n_predicted: usize = lengths.iter().map(|length| length - 1).sum();
        cx.metric("n_predicted", n_predicted as f64)?;
        cx.metric("prepend_bos", f64::from(u8::from(prepend_bos)))
    }
}

/// One index of each row, uniform over its predicted tokens: of row `r` the same for every model.
fn sample(lengths: &[usize], seed: u64) -> Vec<Option<usize>> {
    let rows = first_rows(lengths.len() as u64, Device::Cpu);
    let uniform =
        to_vec(&Counter::new(&[seed], "per-token-loss/index", Device::Cpu).uniform(&rows, 1));
    let index = |(&length, uniform): (&usize, f64)| {
        (length >= 2).then(|| 1 + (uniform * (length - 1) as f64) as usize)
    };
    lengths.iter().zip(uniform).map(index).collect()
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
        name: "loss_of_sample",
        unit: Unit::Nats,
        axes: &[Axis::Row],
        doc: "Loss of one token of each row, drawn once for all models; NaN for a row of one token",
    },
    MetricDef {
        name: "sample_index",
        unit: Unit::Count,
        axes: &[Axis::Row],
        doc: "Index of that token in its row",
    },
    MetricDef {
        name: "n_predicted",
        unit: Unit::Count,
        axes: &[],
        doc: "Number of predicted tokens",
    },
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
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
