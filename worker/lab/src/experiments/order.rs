//! In which order do curves of a model begin to change, and do seeds agree?
//!
//! # What it measures
//! Every cell of every metric in `metrics` is a curve of each model of one entry (its seeds and grid points). The sigmoid test gives its
//! `onset` (10 % of the change; `at: midpoint` takes half of it), its 95 % interval (`onset_low`, `onset_high`), the checkpoints
//! around it (`bracket_low`, `bracket_high`) and the `verdict`, all `[member, cell]`. Residuals resampled in blocks give `n_bootstrap`
//! onsets of every curve; `before` `[member, pair]` is the share of pairs of them in which the first curve of the pair begins before the
//! second one, ties half (D32), and `order_p` the two-sided `2 min(P, 1 - P)`: above .05 the model does not tell.
//!
//! Over models: `precedence` `[cell, other_cell]`, the mean of these probabilities, with a 95 % bootstrap interval over models
//! (`precedence_low`, `precedence_high`); `mean_rank` of every cell with its interval; `agreement`, the mean of Kendall's tau between the orders of
//! two models, with its interval. Null: the onsets of every model are shuffled among its cells; `agreement_null_high` is the 95 % quantile of
//! the agreement then, `agreement_p` the share of shuffles with at least the one found. Models whose training failed are left
//! out and named in `members.json`; of the others `n_ordered` have a curve that could be tested. Intervals over models take two of
//! them, that of the agreement three, and are too narrow for fewer than about eight.
//!
//! # Interpretation
//! An order means something for curves that have a transition (`verdict`); the onset of a smooth curve depends on where its logistic
//! ends. Onsets closer than the bracket are not resolved by the checkpoints, whatever the probability says. One model gives
//! one order; whether it is more than the seed's is told by `agreement` against its null.
//!
//! # Source
//! Kendall 1938; residual block bootstrap as in `phase-transition`; permutation p-values as in Phipson and Smyth 2010.

use rand::Rng;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit, scalar},
    cohort::{Cohort, REPORT},
    curve::{
        order::{Agreement, interval},
        transition::{Options, Transition},
    },
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct Order;

params! {
    /// Whose onsets, and how sure.
    pub struct Params {
        /// Metrics whose cells are ordered, up to 64 cells together.
        metrics: Vec<MetricName> = Vec::new();
        /// Which time counts: 10 % of the change, or half of it.
        at: String = "onset".to_owned(), choices = ["onset", "midpoint"];
        /// Fit over ln(step + 1); false fits over the step itself.
        log_x: bool = true;
        /// Fit ln y, for losses that fall by orders of magnitude; all curves alike, since 10 % of the change then means something else.
        log_y: bool = false;
        /// Resamples of each curve, and of models.
        n_bootstrap: u64 = 200, min = 10.0, max = 10_000.0;
        /// Shuffles of the cells of every model.
        n_permutations: u64 = 1000, min = 1.0, max = 100_000.0;
        /// Seed of resamples and shuffles.
        seed: u64 = 0;
    }
}

/// Most curves of one model: probabilities are those of pairs.
const MOST_CELLS: usize = 64;

impl Experiment for Order {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "order",
        version: 2,
        summary: "Orders curves by their onset, with probabilities for each pair, and compares the order over seeds",
        source: "Kendall 1938; block bootstrap of onsets",
        stage: Stage::Joint(Scope::Entry),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(params.metrics.iter().map(|metric| metric.0.clone()).collect())
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let models = read(cohort, &params)?;
        cohort.report(cx)?;
        let cells: Vec<String> = models[0].1.iter().map(|curve| curve.label.clone()).collect();
        let (mut labels, mut runs) = (Vec::new(), Vec::new());
        for (done, (label, curves)) in models.iter().enumerate() {
            runs.push(curves.iter().map(|curve| curve.time(label, &params)).collect::<Vec<_>>());
            labels.push(label.clone());
            cx.progress(done as u64 + 1, models.len() as u64)?;
        }
        per_model(&labels, &cells, &runs, cx)?;
        over_models(&cells, &runs, &params, cx)
    }
}

/// One curve of one model.
struct Curve {
    label: String,
    steps: Vec<u64>,
    values: Vec<f64>,
}

/// When it begins.
struct Time {
    at: f64,
    interval: [f64; 2],
    bracket: [f64; 2],
    verdict: f64,
    /// One per resample.
    samples: Vec<f64>,
}

impl Curve {
    fn time(&self, model: &str, params: &Params) -> Time {
        let options = Options { log_x: params.log_x, log_y: Some(params.log_y), n_bootstrap: 0 };
        // A stream per curve: its numbers do not depend on which others there are.
        let name = format!("order/{model}/{}", self.label);
        let mut rng = random::stream(params.seed, &name);
        let found = Transition::test(&self.steps, &self.values, options, &mut rng);
        let options = Options { n_bootstrap: params.n_bootstrap as usize, ..options };
        let drawn = found.resampled_times(&self.steps, &self.values, options, &mut rng);
        let place = usize::from(params.at == "midpoint");
        let samples: Vec<f64> = drawn.into_iter().map(|times| times[place]).collect();
        let at = [found.onset, found.midpoint][place];
        Time {
            at,
            interval: interval(samples.clone()),
            bracket: bracket(&self.steps, &self.values, at),
            verdict: found.verdict(),
            samples,
        }
    }
}

/// Last checkpoint before and first at or after a time, of those with a value; NaN outside them.
fn bracket(steps: &[u64], values: &[f64], time: f64) -> [f64; 2] {
    let known = steps.iter().zip(values).filter(|(_, value)| value.is_finite());
    let steps: Vec<u64> = known.map(|(step, _)| *step).collect();
    let after = steps.partition_point(|step| (*step as f64) < time);
    let step = |at: Option<usize>| at.and_then(|at| steps.get(at)).map_or(f64::NAN, |s| *s as f64);
    if time.is_nan() { [f64::NAN; 2] } else { [step(after.checked_sub(1)), step(Some(after))] }
}

/// Curves of each complete model, the same ones in the same order.
fn read(cohort: &Cohort<'_>, params: &Params) -> Result<Vec<(String, Vec<Curve>)>> {
    if params.metrics.is_empty() {
        return Err(Error::params("metrics", "expected one or more metrics, found none"));
    }
    let mut models: Vec<(String, Vec<Curve>)> = Vec::new();
    for (member, of) in cohort.members.iter().enumerate() {
        if of.failure.is_some() {
            continue;
        }
        let mut curves = Vec::new();
        for MetricName(name) in &params.metrics {
            let own = cohort.series(name)?.iter().filter(|found| found.member == member);
            let Some(own) = own.clone().find(|found| found.partner.is_none()) else { continue };
            let steps: Vec<u64> = own.series.points.iter().map(|point| point.0).collect();
            for cell in own.series.cells() {
                let parts = [name.as_str(), cell.label.as_str()];
                let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                curves.push(Curve {
                    label: parts.join(" "),
                    steps: steps.clone(),
                    values: cell.values,
                });
            }
        }
        if !curves.is_empty() {
            models.push((of.label.clone(), curves));
        }
    }
    let Some((first, curves)) = models.first() else {
        return Err(Error::Input("no complete model has points of these metrics".to_owned()));
    };
    if !(2..=MOST_CELLS).contains(&curves.len()) {
        return Err(Error::params(
            "metrics",
            format!("they have {} cells, expected 2 to {MOST_CELLS}", curves.len()),
        ));
    }
    let is_same =
        |other: &[Curve]| other.iter().map(|c| &c.label).eq(curves.iter().map(|c| &c.label));
    if let Some((label, other)) = models.iter().find(|(_, other)| !is_same(other)) {
        return Err(Error::Input(format!(
            "`{first}` has {} curves, `{label}` {} or others: give them entries of their own",
            curves.len(),
            other.len()
        )));
    }
    Ok(models)
}

/// Share of pairs of samples in which a comes before b, ties half; NaN without samples.
fn probability_before(a: &[f64], b: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = b.iter().copied().filter(|time| time.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let finite: Vec<f64> = a.iter().copied().filter(|time| time.is_finite()).collect();
    let score = |time: &f64| {
        let not_after = sorted.partition_point(|other| other <= time) as f64;
        let before = sorted.partition_point(|other| other < time) as f64;
        1.0 - f64::midpoint(before, not_after) / sorted.len() as f64
    };
    finite.iter().map(score).sum::<f64>() / finite.len() as f64
}

type Read = fn(&Time) -> f64;

const READ: [(&str, Read); 6] = [
    ("onset", |time| time.at),
    ("onset_low", |time| time.interval[0]),
    ("onset_high", |time| time.interval[1]),
    ("bracket_low", |time| time.bracket[0]),
    ("bracket_high", |time| time.bracket[1]),
    ("verdict", |time| time.verdict),
];

fn per_model(
    labels: &[String],
    cells: &[String],
    runs: &[Vec<Time>],
    cx: &mut Context<'_>,
) -> Result<()> {
    let table = |columns: &[String], data: Vec<f64>| {
        let axes = vec![Some(labels.to_vec()), Some(columns.to_vec())];
        Value::array(vec![labels.len(), columns.len()], data, axes)
    };
    for (name, read) in READ {
        let data = runs.iter().flat_map(|run| run.iter().map(read)).collect();
        cx.metric(name, table(cells, data))?;
    }
    let pairs: Vec<(usize, usize)> =
        (0..cells.len()).flat_map(|i| (i + 1..cells.len()).map(move |j| (i, j))).collect();
    let names: Vec<String> =
        pairs.iter().map(|&(i, j)| format!("{} < {}", cells[i], cells[j])).collect();
    let before: Vec<f64> = runs
        .iter()
        .flat_map(|run| {
            pairs.iter().map(|&(i, j)| probability_before(&run[i].samples, &run[j].samples))
        })
        .collect();
    let p = before.iter().map(|before| 2.0 * before.min(1.0 - before)).collect();
    cx.metric("before", table(&names, before))?;
    cx.metric("order_p", table(&names, p))
}

fn over_models(
    cells: &[String],
    runs: &[Vec<Time>],
    params: &Params,
    cx: &mut Context<'_>,
) -> Result<()> {
    let mut rng = random::stream(params.seed, "order/models");
    let n = cells.len();
    let mut columns: [Vec<f64>; 3] = Default::default();
    for i in 0..n {
        for j in 0..n {
            let of_run = |run: &Vec<Time>| {
                if i == j {
                    return 0.5;
                }
                probability_before(&run[i].samples, &run[j].samples)
            };
            let each: Vec<f64> = runs.iter().map(of_run).filter(|p| p.is_finite()).collect();
            let mean = |sample: &[f64]| sample.iter().sum::<f64>() / sample.len() as f64;
            let drawn = (0..params.n_bootstrap).filter(|_| each.len() > 1).map(|_| {
                let draw = |_: &f64| each[random::below(&mut rng, each.len() as u64) as usize];
                mean(&each.iter().map(draw).collect::<Vec<f64>>())
            });
            let [low, high] = interval(drawn.collect());
            columns.iter_mut().zip([mean(&each), low, high]).for_each(|(c, value)| c.push(value));
        }
    }
    let axes = || vec![Some(cells.to_vec()), Some(cells.to_vec())];
    for (name, column) in ["precedence", "precedence_low", "precedence_high"].iter().zip(columns) {
        cx.metric(name, Value::array(vec![n, n], column, axes()))?;
    }
    // A model of which no curve could be tested has no order.
    let tested = runs.iter().filter(|run| run.iter().any(|time| time.at.is_finite()));
    let times: Vec<Vec<f64>> = tested.map(|run| run.iter().map(|time| time.at).collect()).collect();
    cx.metric("n_ordered", times.len() as f64)?;
    if times.is_empty() {
        for name in ["mean_rank", "mean_rank_low", "mean_rank_high"] {
            cx.metric(name, Value::labelled(cells, vec![f64::NAN; n]))?;
        }
        for name in
            ["agreement", "agreement_low", "agreement_high", "agreement_null_high", "agreement_p"]
        {
            cx.metric(name, f64::NAN)?;
        }
        return Ok(());
    }
    let found = Agreement::of(&times, params.n_bootstrap as usize, &mut rng);
    let ends = |end: usize| found.interval.iter().map(|ends| ends[end]).collect();
    cx.metric("mean_rank", Value::labelled(cells, found.mean_rank.clone()))?;
    for (name, values) in [("mean_rank_low", ends(0)), ("mean_rank_high", ends(1))] {
        cx.metric(name, Value::labelled(cells, values))?;
    }
    cx.metric("agreement", found.tau)?;
    cx.metric("agreement_low", found.tau_interval[0])?;
    cx.metric("agreement_high", found.tau_interval[1])?;
    let [high, p] = shuffled(&times, found.tau, params.n_permutations, &mut rng);
    cx.metric("agreement_null_high", high)?;
    cx.metric("agreement_p", p)
}

/// 95 % quantile of the agreement when times are shuffled within models, and the share with as much as was found.
fn shuffled(times: &[Vec<f64>], found: f64, n: u64, rng: &mut impl Rng) -> [f64; 2] {
    if found.is_nan() {
        return [f64::NAN; 2];
    }
    let mut null: Vec<f64> = (0..n)
        .map(|_| {
            let shuffle = |run: &Vec<f64>| {
                let order = random::permutation(rng, run.len());
                order.into_iter().map(|at| run[at as usize]).collect::<Vec<f64>>()
            };
            let runs: Vec<Vec<f64>> = times.iter().map(shuffle).collect();
            Agreement::tau_of(&runs)
        })
        .filter(|tau| tau.is_finite())
        .collect();
    null.sort_by(f64::total_cmp);
    let as_high = null.iter().filter(|tau| **tau >= found - 1e-12).count() as f64;
    let high = null.get((null.len() * 95).div_ceil(100).saturating_sub(1)).copied();
    // The order as it is belongs to the null.
    [high.unwrap_or(f64::NAN), (1.0 + as_high) / (1.0 + null.len() as f64)]
}

const fn of_cell(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Member, Axis::Cell], doc }
}

const fn of_pair(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Probability, axes: &[Axis::Member, Axis::Pair], doc }
}

const fn of_cells(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Probability, axes: &[Axis::Cell, Axis::OtherCell], doc }
}

const fn rank(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Count, axes: &[Axis::Cell], doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    of_cell("onset", Unit::Steps, "Step at which the curve begins to change"),
    of_cell("onset_low", Unit::Steps, "95 % block-bootstrap interval of it, lower end"),
    of_cell("onset_high", Unit::Steps, "The same, upper end"),
    of_cell("bracket_low", Unit::Steps, "Last checkpoint before it"),
    of_cell("bracket_high", Unit::Steps, "First checkpoint at or after it"),
    of_cell("verdict", Unit::Truth, "1: the curve has a transition, 0: it has none"),
    of_pair("before", "Probability that the first curve begins before the second one"),
    of_pair("order_p", "Two-sided p of the same: 2 min(P, 1 - P)"),
    of_cells(
        "precedence",
        "Mean over models of the probability that a curve begins before another",
    ),
    of_cells("precedence_low", "Lower end of its 95 % bootstrap interval over models"),
    of_cells("precedence_high", "Upper end of that interval"),
    rank("mean_rank", "Mean over models of the place in the order, 1 first"),
    rank("mean_rank_low", "Lower end of its 95 % bootstrap interval over models"),
    rank("mean_rank_high", "Upper end of that interval"),
    scalar("n_ordered", Unit::Count, "Models with a curve that could be tested"),
    scalar("agreement", Unit::Ratio, "Mean Kendall's tau between the orders of two models"),
    scalar("agreement_low", Unit::Ratio, "Lower end of its 95 % bootstrap interval over models"),
    scalar("agreement_high", Unit::Ratio, "Upper end of that interval"),
    scalar("agreement_null_high", Unit::Ratio, "95 % quantile of it with shuffled cells"),
    scalar("agreement_p", Unit::Probability, "Share of shuffles with at least the agreement found"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "precedence",
        title: "Probability that a curve begins before another",
        kind: FigureKind::HeatMap,
        metrics: &["precedence"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "onsets",
        title: "Onset of each curve in each model",
        kind: FigureKind::HeatMap,
        metrics: &["onset"],
        log_x: false,
        log_y: true,
    },
];

#[cfg(test)]
mod tests;
