//! Are two models in one basin? The loss on the straight line between them.
//!
//! # What it measures
//! `curve` `[split, point]`: every loss of the recipe (train, test, …) at 25 equally spaced points of
//! `(1 - α) A + α B`, A the first checkpoint; `barrier` `[split]`: the largest excess over the line between the ends, 0 where
//! the ends are the worst points; `barrier_at`: where that is, 0 at A; `curve_acc` and `acc_drop`: the same for accuracies,
//! the largest shortfall below the line. Models that were trained on different data are scored on the mean over both
//! sets, so that the barrier from A to B is that from B to A. Given `tokens` or `text`, the loss is that of predicting
//! them, under the name `tokens`, which models without a recipe need.
//!
//! # Interpretation
//! A barrier near zero between a model and a branch of it with another data order says that the branch came after the
//! run had become stable to its noise (instability analysis). Between independent seeds there is a barrier even where both
//! compute the same; permutations of neurons remove part of it (see `rebasin`).
//!
//! # Source
//! D33: Frankle et al. 2020, arXiv 1912.05671, section 2; Ainsworth et al. 2022, arXiv 2209.04836.

use sweep_lens::{Run, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    compare::{Couple, Shown},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    modular::nll,
    params::{ParamSet, params},
    rebasin::{Barrier, line},
    shared_task::{SharedTask, ending},
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct ModeConnectivity;

params! {
    /// Points, and what the loss is taken on.
    pub struct Params {
        /// Points on the line, ends included.
        points: u64 = 25, min = 3.0, max = 1001.0;
        /// Prompts as lists of token ids instead of the recipe's data.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Prompts as texts for the model's tokenizer instead of the recipe's data.
        text: Vec<String> = Vec::new();
        /// Whether the BOS token goes in front; null: the model's default for texts, no for tokens.
        prepend_bos: Option<bool> = None;
    }
}

impl Experiment for ModeConnectivity {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "mode-connectivity",
        version: 2,
        summary: "Measures the loss barrier on the straight line between two models",
        source: "Frankle et al. 2020, arXiv 1912.05671; Ainsworth et al. 2022, arXiv 2209.04836",
        stage: Stage::Compare,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_shapes()?;
        let judge = Judge::new(couple, &params)?;
        let n_points = params.points as usize;
        let (a, b) = (&couple.first.checkpoint.weights, &couple.second.checkpoint.weights);
        let (mut splits, mut acc_splits) = (Vec::new(), Vec::new());
        let mut done = 0;
        let curves = line(a, b, n_points, |weights| {
            let (losses, accuracies) = judge.scores(weights)?;
            done += 1;
            cx.progress(done, n_points as u64)?;
            splits = losses.0;
            acc_splits = accuracies.0;
            Ok([losses.1, accuracies.1].concat())
        })?;
        let (losses, accuracies) = curves.split_at(splits.len());
        // A shortfall of accuracy is an excess of errors.
        let errors: Vec<Barrier> = accuracies
            .iter()
            .map(|curve| Barrier::of(curve.losses.iter().map(|acc| 1.0 - acc).collect()))
            .collect();
        emit(cx, ["curve", "barrier"], &splits, losses, losses)?;
        cx.metric(
            "barrier_at",
            Value::labelled(&splits, losses.iter().map(|curve| curve.at).collect()),
        )?;
        emit(cx, ["curve_acc", "acc_drop"], &acc_splits, accuracies, &errors)
    }
}

/// Emits curves `[split, point]` and heights `[split]`.
fn emit(
    cx: &mut Context<'_>,
    [curve, height]: [&str; 2],
    splits: &[&str],
    curves: &[Barrier],
    heights: &[Barrier],
) -> Result<()> {
    cx.metric(curve, curve_value(splits, curves))?;
    cx.metric(height, Value::labelled(splits, heights.iter().map(|b| b.height).collect()))
}

/// Curves as `[split, point]`, points labelled with their place on the line.
pub(crate) fn curve_value(splits: &[&str], curves: &[Barrier]) -> Value {
    let n_points = curves.first().map_or(0, |curve| curve.losses.len());
    let place = |point: usize| format!("{:.4}", point as f64 / (n_points - 1) as f64);
    Value::array(
        vec![splits.len(), n_points],
        curves.iter().flat_map(|curve| curve.losses.iter().copied()).collect(),
        vec![
            Some(splits.iter().map(|&split| split.to_owned()).collect()),
            Some((0..n_points).map(place).collect()),
        ],
    )
}

type Named = (Vec<&'static str>, Vec<f64>);

/// What the loss is taken on.
enum Judge<'a> {
    Task(SharedTask),
    Prompts(Shown, &'a Transformer),
}

impl<'a> Judge<'a> {
    fn new(couple: &Couple<'a>, params: &Params) -> Result<Self> {
        if params.tokens.is_empty() && params.text.is_empty() {
            let (a, b) = (couple.first.checkpoint, couple.second.checkpoint);
            return Ok(Self::Task(SharedTask::of(a, b, couple.first.device)?));
        }
        let config = couple.first.model.config();
        if config.d_vocab != config.d_vocab_out {
            return Err(Error::Unsupported(format!(
                "the model reads {} tokens and answers with {}: it predicts no next token",
                config.d_vocab, config.d_vocab_out
            )));
        }
        let shown = couple.token_set(&params.tokens, &params.text, params.prepend_bos)?;
        if shown.tokens.size()[1] < 2 {
            let problem = "expected a row of two or more tokens, found none";
            return Err(Error::params("tokens", problem));
        }
        Ok(Self::Prompts(shown, couple.first.model))
    }

    /// Losses and accuracies by split.
    fn scores(&self, weights: Weights) -> Result<(Named, Named)> {
        match self {
            Self::Task(task) => {
                let scores = task.scores(weights)?;
                Ok((ending(&scores, "_loss"), ending(&scores, "_acc")))
            }
            Self::Prompts(shown, model) => {
                let model = Transformer::new(model.config().clone(), weights)?;
                let loss = mean_loss(&model, shown);
                Ok(((vec!["tokens"], vec![loss]), (Vec::new(), Vec::new())))
            }
        }
    }
}

/// Mean loss of predicting the rows, in nats.
fn mean_loss(model: &Transformer, shown: &Shown) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (tokens, lengths) in shown.batches() {
        let pos = tokens.size()[1];
        let logits = model.forward(&tokens, &Run::FULL, &mut ()).narrow(1, 0, pos - 1);
        let losses = nll(&logits, &tokens.narrow(1, 1, pos - 1));
        for (row, length) in lengths.iter().enumerate() {
            let row = to_vec(&losses.get(row as i64));
            sum += row[..length.saturating_sub(1)].iter().sum::<f64>();
            count += length.saturating_sub(1);
        }
    }
    sum / count as f64
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "barrier",
        unit: Unit::Nats,
        axes: &[Axis::Split],
        doc: "Largest excess of the loss over the line between its ends",
    },
    MetricDef {
        name: "barrier_at",
        unit: Unit::Ratio,
        axes: &[Axis::Split],
        doc: "Where that is: 0 at the first model, 1 at the second",
    },
    MetricDef {
        name: "curve",
        unit: Unit::Nats,
        axes: &[Axis::Split, Axis::Point],
        doc: "Loss along the line",
    },
    MetricDef {
        name: "acc_drop",
        unit: Unit::Probability,
        axes: &[Axis::Split],
        doc: "Largest shortfall of the accuracy below the line between its ends",
    },
    MetricDef {
        name: "curve_acc",
        unit: Unit::Probability,
        axes: &[Axis::Split, Axis::Point],
        doc: "Accuracy along the line",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "barrier",
        title: "Loss barrier between models",
        kind: FigureKind::Pairs,
        metrics: &["barrier"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "curve",
        title: "Loss between models",
        kind: FigureKind::HeatMap,
        metrics: &["curve"],
        log_x: false,
        log_y: false,
    },
];
