//! In-context learning: how much better late tokens are predicted than early ones.
//!
//! # What it measures
//! Next-token losses by token index, the mean over rows: `loss_by_index` at index i is the loss of token i given
//! the i tokens in front of it (index 0 is never predicted and is NaN). `icl_score` is the loss at `late` minus that at
//! `early`, in nats (negative is good; Olsson et al.: 500 and 50 of 512). `derivative_by_index` is dL/d ln(i): the
//! slope of the loss over ln(i) by least squares within a factor of √2 to both sides, at least over the two
//! neighbours; `derivative` is its value at `late`, and `slope` that of one line through all indices. Rows are `tokens` or
//! `text`; without either, repeated random tokens as in `induction-heads`, where the repeat is what the context teaches.
//!
//! # Interpretation
//! On natural text the score falls abruptly, to about -0.4 nats, in the window in which induction heads form,
//! and the derivative with respect to the token index moves to late indices. Take at least hundreds of rows: a
//! single index has as many samples as there are rows.
//!
//! # Source
//! Olsson et al. 2022, arXiv 2209.11895, "In-context learning score" and "derivative of loss with respect to log
//! token index".

use sweep_lens::{Hook, Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    params::{ParamSet, params},
    sink::Context,
    token_rows::{Drawing, TokenRows, Wanted},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct InContextLearning;

params! {
    /// What is read, and which tokens are compared.
    pub struct Params {
        /// Rows of token ids.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Texts for the model's tokenizer, or words of the vocabulary that a recipe recorded.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default, for tokens no.
        prepend_bos: Option<bool> = None;
        /// Index of the early token; null: 50, or a tenth of the longest row if that has no 512 tokens.
        early: Option<u64> = None, min = 1.0;
        /// Index of the late token; null: 500, or the last of the longest row if that has no 512 tokens.
        late: Option<u64> = None, min = 1.0;
        /// Rows of random tokens, if there are neither tokens nor text.
        batch: u64 = 16, min = 1.0, max = 65536.0;
        /// Random tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 2.0, max = 65536.0;
        /// How often they stand there.
        n_copies: u64 = 2, min = 1.0, max = 64.0;
        /// Seed of the random tokens.
        seed: u64 = 0;
    }
}

impl Experiment for InContextLearning {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "in-context-learning",
        version: 1,
        summary: "Compares the loss of late and early tokens, and how it falls with the token index",
        source: "Olsson et al. 2022, arXiv 2209.11895, in-context learning score",
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
        let drawing = Drawing {
            batch: params.batch,
            seq_len: params.seq_len,
            n_copies: params.n_copies,
            overwrite_bos: false,
            distinct: false,
            seed: params.seed,
        };
        let wanted = Wanted {
            tokens: &params.tokens,
            text: &params.text,
            prepend_bos: params.prepend_bos,
            drawing,
        };
        let rows = TokenRows::new(subject, &wanted)?;
        rows.check_targets(subject.model.config())?;
        let n = rows.prompts.max_length();
        let (early, late) = if n >= 512 { (50, 500) } else { ((n / 10).max(1), n - 1) };
        let index = |name: &str, given: Option<u64>, default: usize| match given {
            Some(index) if index >= n as u64 => {
                Err(Error::params(name, format!("is {index}, the longest row has {n} tokens")))
            }
            Some(index) => Ok(index as usize),
            None => Ok(default),
        };
        let observer = Curve {
            early: index("early", params.early, early)?,
            late: index("late", params.late, late)?,
            lengths: rows.prompts.rows.iter().map(Vec::len).collect(),
            prepend_bos: rows.prompts.prepend_bos,
            d_vocab: subject.model.config().d_vocab_out,
            sums: vec![0.0; n],
            counts: vec![0; n],
        };
        Ok(Analysis::Observe(rows.token_set(subject, 0), Box::new(observer)))
    }
}

struct Curve {
    early: usize,
    late: usize,
    lengths: Vec<usize>,
    prepend_bos: bool,
    d_vocab: i64,
    /// By token index: summed loss, and of how many rows.
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl Observer for Curve {
    fn wants(&self, _hook: Hook) -> bool {
        false
    }

    fn wants_logits(&self) -> bool {
        false
    }

    fn wants_losses(&self) -> Option<i64> {
        Some(self.d_vocab)
    }

    fn losses(&mut self, first_row: i64, losses: &Tensor) -> Result<()> {
        let n = losses.size()[1] as usize;
        for (row, found) in to_vec(&losses.to_kind(Kind::Double)).chunks(n).enumerate() {
            for index in 1..self.lengths[first_row as usize + row] {
                self.sums[index] += found[index - 1];
                self.counts[index] += 1;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let by_index: Vec<f64> =
            self.sums.iter().zip(&self.counts).map(|(sum, &count)| sum / count as f64).collect();
        let derivative: Vec<f64> =
            (0..by_index.len()).map(|index| local_slope(&by_index, index)).collect();
        cx.metric("icl_score", by_index[self.late] - by_index[self.early])?;
        cx.metric("early_loss", by_index[self.early])?;
        cx.metric("late_loss", by_index[self.late])?;
        cx.metric("derivative", derivative[self.late])?;
        cx.metric("slope", slope(&by_index, 1, by_index.len()))?;
        cx.metric("loss_by_index", Value::vector(by_index))?;
        cx.metric("derivative_by_index", Value::vector(derivative))?;
        cx.metric("early_index", self.early as f64)?;
        cx.metric("late_index", self.late as f64)?;
        cx.metric("prepend_bos", f64::from(u8::from(self.prepend_bos)))
    }
}

/// dL/d ln(i) around an index, NaN at index 0.
fn local_slope(by_index: &[f64], index: usize) -> f64 {
    if index == 0 {
        return f64::NAN;
    }
    let centre = index as f64;
    let first = ((centre / std::f64::consts::SQRT_2).ceil() as usize).min(index - 1).max(1);
    let last = ((centre * std::f64::consts::SQRT_2).floor() as usize).max(index + 1);
    slope(by_index, first, (last + 1).min(by_index.len()))
}

/// Least-squares slope of the loss over ln(i) for `i` in `first..end`, NaN of fewer than two indices.
fn slope(by_index: &[f64], first: usize, end: usize) -> f64 {
    let points: Vec<(f64, f64)> = (first..end).map(|i| ((i as f64).ln(), by_index[i])).collect();
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let (xy, xx) = points.iter().fold((0.0, 0.0), |(xy, xx), point| {
        (xy + (point.0 - x) * (point.1 - y), xx + (point.0 - x).powi(2))
    });
    xy / xx
}

const METRICS: &[MetricDef] = &[
    scalar("icl_score", Unit::Nats, "Loss of the late token minus loss of the early one"),
    scalar("early_loss", Unit::Nats, "Mean loss of the early token"),
    scalar("late_loss", Unit::Nats, "Mean loss of the late token"),
    scalar("derivative", Unit::Nats, "dL/d ln(i) at the late token"),
    scalar("slope", Unit::Nats, "dL/d ln(i) by one line through all indices"),
    MetricDef {
        name: "loss_by_index",
        unit: Unit::Nats,
        axes: &[Axis::Position],
        doc: "Mean loss of the token at each index; NaN at 0, which nothing predicts",
    },
    MetricDef {
        name: "derivative_by_index",
        unit: Unit::Nats,
        axes: &[Axis::Position],
        doc: "dL/d ln(i) around each index",
    },
    scalar("early_index", Unit::Count, "Index of the early token"),
    scalar("late_index", Unit::Count, "Index of the late token"),
    scalar("prepend_bos", Unit::Truth, "1 if the rows begin with a BOS token, else 0"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "icl-score",
        title: "In-context learning score",
        kind: FigureKind::Lines,
        metrics: &["icl_score"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "derivative",
        title: "Derivative of the loss with respect to log token index",
        kind: FigureKind::HeatMap,
        metrics: &["derivative_by_index"],
        log_x: true,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::MemorySink;

    #[test]
    fn a_known_curve_has_a_known_score_and_slope() {
        // L(i) = 3 - 0.5 ln(i), and a row that ends early.
        let n = 40;
        let loss = |i: usize| 3.0 - 0.5 * (i as f64).ln();
        let rows: Vec<f64> =
            (1..n).map(loss).chain((1..n).map(|i| loss(i) + 1e3 * f64::from(i >= 10))).collect();
        let mut curve = Box::new(Curve {
            early: 4,
            late: 39,
            lengths: vec![n, 10],
            prepend_bos: false,
            d_vocab: 5,
            sums: vec![0.0; n],
            counts: vec![0; n],
        });
        let losses = Tensor::from_slice(&rows).view([2, n as i64 - 1]);
        curve.losses(0, &losses.narrow(0, 0, 1)).unwrap();
        curve.losses(1, &losses.narrow(0, 1, 1)).unwrap();
        let mut sink = MemorySink::default();
        curve.finish(&mut Context::new(InContextLearning::CARD, 0, &mut sink)).unwrap();
        let near = |name, expected: f64| {
            let found = sink.scalar(name, 0).unwrap();
            assert!((found - expected).abs() < 1e-9, "{name} {found} {expected}");
        };
        near("icl_score", -0.5 * (39f64.ln() - 4f64.ln()));
        near("slope", -0.5);
        near("derivative", -0.5);
        near("early_loss", loss(4));
        let by_index = &sink.metrics["derivative_by_index"][&0].data;
        assert!(by_index[0].is_nan() && by_index.len() == n);
        assert!(by_index[1..].iter().all(|slope| (slope + 0.5).abs() < 1e-9), "{by_index:?}");
        assert!(slope(&[1.0, 2.0], 1, 2).is_nan());
    }
}
