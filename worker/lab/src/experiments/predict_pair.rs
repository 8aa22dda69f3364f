//! Can the pair of heads that becomes the induction circuit be told before it forms?
//!
//! # What it measures
//! Models of one entry (its seeds and grid points) with the metrics of `composition` and `induction-heads`. The *eventual pair* of a
//! model is the head with the largest `prefix_matching` at the last checkpoint, if that is at least `threshold`, and the head of an
//! earlier layer with the largest `previous_token`, if that is at least `previous_threshold`; models without such a pair are not counted in `n_formed`.
//! Its `onset` is the first checkpoint with half of the last prefix matching (`onset_bracket_low`: the one before).
//!
//! At every checkpoint each predictor ranks all candidate pairs (an earlier and a later head, `n_pairs` of them): `k_composition`,
//! `q_composition`, `v_composition` of the pair; `qk_trace` and `prefix_matching` of the later head; `previous_token` of the earlier one;
//! `product`, K-composition above 1/√d_model (or 0) times previous_token; `random`, a control; with `gradient: true` and `composition-gradient`
//! among the experiments `k_gradient`, what a step down the gradient of the induction loss adds to the pair's K-composition. At the first checkpoint these are predictors at
//! initialisation. Per predictor, mean over models: `mrr`, reciprocal of the rank of the eventual pair (ties: expected value in random
//! order); `auroc`; `top1`, how often it is first; each with a 95 % bootstrap interval over models. Chance: `chance_top1` is 1 over the
//! number of pairs (1/H² for two layers), `chance_mrr` the mean of 1/rank, `auroc` .5; `mrr_p` is the share of `n_null` draws of random
//! ranks with at least the MRR found. `mrr_other_seed` is the control for what the architecture alone tells: the ranks are those of the pairs of
//! *other* models. `mrr_by_fraction` `[predictor, fraction]` takes each model at the last checkpoint up to that fraction of its own onset.
//!
//! # Interpretation
//! `prefix_matching` and `previous_token` tend to 1 after the onset by construction. A predictor is one if its MRR before the
//! onset (fractions below 1) lies above chance and above `mrr_other_seed`, with an interval that says so. Heads are redundant in small
//! models: a second pair of equal rank counts as a miss.
//!
//! # Source
//! Nanda 2022, 200 Concrete Open Problems, 5.13; Elhage et al. 2021 (composition); Olsson et al. 2022 (QK trace).

use serde::Serialize;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit, scalar},
    cohort::{Cohort, REPORT},
    curve::order::interval,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    random,
    sink::Context,
    value::Value,
};

mod model;

use model::{Model, Ranking};

/// See the module documentation.
pub struct PredictPair;

params! {
    /// From when a pair counts, and how sure.
    pub struct Params {
        /// Prefix matching that the last checkpoint's best head must have.
        threshold: f64 = 0.3;
        /// Previous-token score that the head in front of it must have.
        previous_threshold: f64 = 0.15;
        /// Whether the gradient of the loss is a predictor too; it needs `composition-gradient`.
        gradient: bool = false;
        /// Times of `mrr_by_fraction`, as fractions of each model's onset.
        fractions: Vec<f64> = vec![0.0, 0.25, 0.5, 0.75, 1.0, 1.5], min = 0.0, max = 1000.0;
        /// Bootstrap resamples of models; 0 leaves intervals NaN.
        n_bootstrap: u64 = 1000, max = 100_000.0;
        /// Draws of random ranks behind each p.
        n_null: u64 = 2000, min = 1.0, max = 1_000_000.0;
        /// Seed of resamples, draws and the random predictor.
        seed: u64 = 0;
    }
}

/// Names of the predictors, in order.
const PREDICTORS: [&str; 9] = [
    "k_composition",
    "q_composition",
    "v_composition",
    "qk_trace",
    "previous_token",
    "prefix_matching",
    "product",
    "random",
    "k_gradient",
];

impl Params {
    fn predictors(&self) -> &'static [&'static str] {
        if self.gradient { &PREDICTORS } else { &PREDICTORS[..PREDICTORS.len() - 1] }
    }
}

impl Experiment for PredictPair {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "predict-pair",
        version: 1,
        summary: "Ranks pairs of heads by predictors of the induction circuit before it forms, over seeds",
        source: "Nanda 2022, 200 Concrete Open Problems, 5.13; Elhage et al. 2021; Olsson et al. 2022",
        stage: Stage::Joint(Scope::Entry),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(params.series().iter().map(|&name| name.to_owned()).collect())
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let models = Model::all(cohort, &params)?;
        cohort.report(cx)?;
        let formed: Vec<&Model> = models.iter().filter(|model| model.pair.is_some()).collect();
        if formed.is_empty() {
            return Err(Error::Input(format!(
                "none of {} models has a head with prefix matching of {} behind one with a previous-token \
                 score of {}: train longer, or lower `threshold` or `previous_threshold`",
                models.len(),
                params.threshold,
                params.previous_threshold
            )));
        }
        let n_pairs = formed[0].n_pairs();
        let harmonic: f64 = (1..=n_pairs).map(|rank| 1.0 / rank as f64).sum();
        cx.metric("n_formed", formed.len() as f64)?;
        cx.metric("n_pairs", n_pairs as f64)?;
        cx.metric("chance_top1", 1.0 / n_pairs as f64)?;
        cx.metric("chance_mrr", harmonic / n_pairs as f64)?;
        let labels: Vec<&str> = formed.iter().map(|model| model.label.as_str()).collect();
        let column = |read: fn(&Model) -> f64| formed.iter().map(|model| read(model)).collect();
        cx.metric("onset", Value::labelled(&labels, column(|model| model.onset[1])))?;
        cx.metric("onset_bracket_low", Value::labelled(&labels, column(|model| model.onset[0])))?;
        let null = random_mrr(formed.len(), n_pairs, &params);
        let steps: Vec<u64> = formed[0]
            .steps
            .iter()
            .copied()
            .filter(|step| formed.iter().all(|model| model.steps.binary_search(step).is_ok()))
            .collect();
        for (done, &step) in steps.iter().enumerate() {
            at_step(step, &formed, &null, &params, cx)?;
            cx.progress(done as u64 + 1, steps.len() as u64)?;
        }
        by_fraction(&formed, &params, cx)?;
        let reports = formed.iter().map(|model| Report {
            model: &model.label,
            previous: model.head(model.pair.map_or(0, |pair| pair.0)),
            induction: model.head(model.pair.map_or(0, |pair| pair.1)),
            onset: model.onset,
        });
        cx.json("pairs.json", &reports.collect::<Vec<_>>())
    }
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    previous: String,
    induction: String,
    onset: [f64; 2],
}

/// What a statistic is called, and how it is read off a ranking.
type Read = fn(&Ranking) -> f64;
const READ: [(&str, Read); 3] = [
    ("mrr", |ranking| ranking.reciprocal_rank),
    ("auroc", |ranking| ranking.auroc),
    ("top1", |ranking| ranking.top1),
];

fn at_step(
    step: u64,
    formed: &[&Model],
    null: &[f64],
    params: &Params,
    cx: &mut Context<'_>,
) -> Result<()> {
    let predictors = params.predictors();
    // Predictor → model → ranking of its own pair.
    let own: Vec<Vec<Ranking>> = (0..predictors.len())
        .map(|predictor| formed.iter().map(|model| model.ranking(predictor, step, model)).collect())
        .collect();
    for (name, read) in READ {
        let mut columns: [Vec<f64>; 3] = Default::default();
        for (predictor, rankings) in own.iter().enumerate() {
            let values: Vec<f64> = rankings.iter().map(read).collect();
            let stream = format!("predict-pair/{name}/{}/{step}", predictors[predictor]);
            let row = summary(&values, &stream, params);
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        for (suffix, column) in ["", "_low", "_high"].into_iter().zip(columns) {
            cx.metric_at(&format!("{name}{suffix}"), step, Value::labelled(predictors, column))?;
        }
    }
    let p = own.iter().map(|rankings| {
        let found = mean(&rankings.iter().map(|r| r.reciprocal_rank).collect::<Vec<f64>>());
        let as_high = null.len() - null.partition_point(|value| *value < found - 1e-12);
        (1 + as_high) as f64 / (1 + null.len()) as f64
    });
    cx.metric_at("mrr_p", step, Value::labelled(predictors, p.collect()))?;
    let other = (0..predictors.len()).map(|predictor| {
        let pairs = formed.iter().enumerate().flat_map(|(at, model)| {
            let others = formed.iter().enumerate().filter(move |(other, _)| *other != at);
            others.map(move |(_, other)| model.ranking(predictor, step, other).reciprocal_rank)
        });
        mean(&pairs.collect::<Vec<f64>>())
    });
    cx.metric_at("mrr_other_seed", step, Value::labelled(predictors, other.collect()))
}

fn by_fraction(formed: &[&Model], params: &Params, cx: &mut Context<'_>) -> Result<()> {
    let mut columns: [Vec<f64>; 3] = Default::default();
    for (predictor, name) in params.predictors().iter().enumerate() {
        for fraction in &params.fractions {
            let value = |model: &&Model| {
                let step = model.step_up_to(fraction * model.onset[1]);
                step.map(|step| model.ranking(predictor, step, model).reciprocal_rank)
            };
            let values: Vec<f64> = formed.iter().filter_map(value).collect();
            let row = summary(&values, &format!("predict-pair/fraction/{name}/{fraction}"), params);
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
    }
    let shape = vec![params.predictors().len(), params.fractions.len()];
    let fractions: Vec<String> = params.fractions.iter().map(f64::to_string).collect();
    for (suffix, column) in ["", "_low", "_high"].into_iter().zip(columns) {
        let names = params.predictors().iter().map(|&name| name.to_owned()).collect();
        let value = Value::array(shape.clone(), column, vec![Some(names), Some(fractions.clone())]);
        cx.metric(&format!("mrr_by_fraction{suffix}"), value)?;
    }
    Ok(())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean and its 95 % bootstrap interval; a single value has none.
fn summary(values: &[f64], stream: &str, params: &Params) -> [f64; 3] {
    // A stream of its own: intervals do not depend on what else there is.
    let mut rng = random::stream(params.seed, stream);
    let samples = (0..params.n_bootstrap).filter(|_| values.len() > 1).map(|_| {
        let draw = |_: &f64| values[random::below(&mut rng, values.len() as u64) as usize];
        mean(&values.iter().map(draw).collect::<Vec<f64>>())
    });
    let [low, high] = interval(samples.collect());
    [mean(values), low, high]
}

/// Mean reciprocal ranks of random orders, ascending.
fn random_mrr(n_models: usize, n_pairs: usize, params: &Params) -> Vec<f64> {
    let mut rng = random::stream(params.seed, "predict-pair/null");
    let mut draw = || 1.0 / (1 + random::below(&mut rng, n_pairs as u64)) as f64;
    let mut null: Vec<f64> = (0..params.n_null)
        .map(|_| (0..n_models).map(|_| draw()).sum::<f64>() / n_models as f64)
        .collect();
    null.sort_by(f64::total_cmp);
    null
}

const fn predictor(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Predictor], doc }
}

const fn fraction(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Ratio, axes: &[Axis::Predictor, Axis::Fraction], doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    scalar("n_formed", Unit::Count, "Models with an eventual pair"),
    scalar("n_pairs", Unit::Count, "Candidate pairs: an earlier and a later head"),
    scalar("chance_top1", Unit::Probability, "1 over the number of candidate pairs"),
    scalar("chance_mrr", Unit::Ratio, "Mean reciprocal rank in random order"),
    MetricDef {
        name: "onset",
        unit: Unit::Steps,
        axes: &[Axis::Member],
        doc: "First checkpoint with half of the last prefix matching of the pair's later head",
    },
    MetricDef {
        name: "onset_bracket_low",
        unit: Unit::Steps,
        axes: &[Axis::Member],
        doc: "The checkpoint before it",
    },
    predictor("mrr", Unit::Ratio, "Mean reciprocal rank of the eventual pair"),
    predictor("mrr_low", Unit::Ratio, "Lower end of its 95 % bootstrap interval over models"),
    predictor("mrr_high", Unit::Ratio, "Upper end of that interval"),
    predictor("mrr_p", Unit::Probability, "Share of random orders with at least this MRR"),
    predictor("mrr_other_seed", Unit::Ratio, "The same for the pairs of other models: the control"),
    predictor("auroc", Unit::Ratio, "Share of other pairs that the eventual pair ranks before"),
    predictor("auroc_low", Unit::Ratio, "Lower end of its 95 % bootstrap interval over models"),
    predictor("auroc_high", Unit::Ratio, "Upper end of that interval"),
    predictor("top1", Unit::Probability, "How often the eventual pair is first"),
    predictor("top1_low", Unit::Probability, "Lower end of its 95 % bootstrap interval"),
    predictor("top1_high", Unit::Probability, "Upper end of that interval"),
    fraction("mrr_by_fraction", "MRR at this fraction of each model's onset"),
    fraction("mrr_by_fraction_low", "Lower end of its 95 % bootstrap interval over models"),
    fraction("mrr_by_fraction_high", "Upper end of that interval"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "mrr",
        title: "Mean reciprocal rank of the pair that will be",
        kind: FigureKind::Lines,
        metrics: &["mrr"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "auroc",
        title: "How far the pair that will be ranks before others (chance: 0.5)",
        kind: FigureKind::Lines,
        metrics: &["auroc"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "by-fraction",
        title: "Mean reciprocal rank before and after the onset",
        kind: FigureKind::HeatMap,
        metrics: &["mrr_by_fraction"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests;
