//! Which early signs tell over many runs whether and when a model will learn?
//!
//! # What it measures
//! Every model has an outcome: the first step at which `outcome` is at `threshold` or beyond it, or never. At each step t (the steps
//! that the signs have in common, at most `n_steps` of them) signs are read off every metric of `metrics`, cell by cell, from values up to t
//! alone: its `value`, its `slope` (least squares over the last `window` points, per step) and its `oscillation`, the root mean square
//! of its second differences up to t, which is what is left of a curve when its trend is taken away. Positive quantities are taken as
//! logarithms. Models that are already there at t are left out (`n_open` counts the others).
//!
//! Per sign: `auroc`, the probability that a model that gets there later has the larger sign than one that never does, with a 95 % bootstrap
//! interval over models; `rho`, Spearman's correlation of the sign with the step of those that get there after t, its interval, and `rho_p`, the share of
//! permutations with at least that absolute correlation (the real one included); `r2`, of ln(step) predicted for each model by a line
//! through the others, 0 for a prediction as good as their mean. `r2_all` does the same with all signs together (ridge regression on standardised
//! signs, `ridge` per model). NaN where fewer than four models are left, or only one kind of them.
//!
//! # Interpretation
//! A sign is worth something if its interval lies off 0.5 (or 0) long before the outcome; of many signs some do by chance, which is what `rho_p` has to
//! be held against. `r2` below 0 means that the line does not carry over to the model left out. A parameter that is varied
//! (weight decay) may be all that a sign tells: repeat within one setting.
//!
//! # Source
//! Notsawo et al. 2023, arXiv 2306.13253 (oscillations of the training loss foretell grokking); Nanda 2022, 200 Concrete Open Problems, 5.4.

use sweep_lens::{Device, Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit, scalar},
    cohort::{Cohort, MemberSeries, REPORT},
    curve::{
        least_squares::affine,
        order::{interval, spearman},
    },
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct EarlySigns;

params! {
    /// What is foretold, from what.
    pub struct Params {
        /// Metric of one number per step that says when a model is there.
        outcome: MetricName = MetricName::default();
        /// Value that it has to reach.
        threshold: f64 = 0.95;
        /// Whether it rises to it (an accuracy) or falls (a loss).
        direction: String = "rising".to_owned(), choices = ["rising", "falling"];
        /// Metrics that signs are read off.
        metrics: Vec<MetricName> = Vec::new();
        /// Points that a slope goes through.
        window: u64 = 5, min = 2.0, max = 1000.0;
        /// Steps at which signs are read, spread over all.
        n_steps: u64 = 20, min = 1.0, max = 1000.0;
        /// Penalty of the regression on all signs, per model.
        ridge: f64 = 0.1, min = 1e-9, max = 1e9;
        /// Bootstrap resamples of models; 0 leaves intervals NaN.
        n_bootstrap: u64 = 500, max = 100_000.0;
        /// Permutations behind each p.
        n_permutations: u64 = 500, min = 1.0, max = 100_000.0;
        /// Seed of both.
        seed: u64 = 0;
    }
}

/// Fewest models that anything is said about.
const MODELS_MIN: usize = 4;

/// Most signs.
const SIGNS_MAX: usize = 200;

impl Experiment for EarlySigns {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "early-signs",
        version: 1,
        summary: "Tests which early signs foretell over many runs whether and when a model learns",
        source: "Notsawo et al. 2023, arXiv 2306.13253; Nanda 2022, 200 Concrete Open Problems, 5.4",
        stage: Stage::Joint(Scope::Sweep),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        let names = std::iter::once(&params.outcome).chain(&params.metrics);
        Inputs::Series(names.map(|name| name.0.clone()).collect())
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let runs = Run::all(cohort, &params)?;
        cohort.report(cx)?;
        cx.metric("n_reached", runs.iter().filter(|run| run.reached.is_some()).count() as f64)?;
        let signs = &runs[0].signs;
        if runs.iter().any(|run| run.signs != *signs) {
            return Err(Error::Input("models differ in the cells of `metrics`".to_owned()));
        }
        if signs.len() > SIGNS_MAX {
            let problem = format!("{} signs are too many, at most {SIGNS_MAX}", signs.len());
            return Err(Error::params("metrics", problem));
        }
        let common = runs[0].steps.iter().copied();
        let common: Vec<u64> = common
            .filter(|step| runs.iter().all(|run| run.steps.binary_search(step).is_ok()))
            .collect();
        let shown = spread(&common, params.n_steps as usize);
        for (done, &step) in shown.iter().enumerate() {
            at_step(step, &runs, signs, &params, cx)?;
            cx.progress(done as u64 + 1, shown.len() as u64)?;
        }
        Ok(())
    }
}

/// At most `n` of the steps, both ends included.
fn spread(steps: &[u64], n: usize) -> Vec<u64> {
    if steps.len() <= n {
        return steps.to_vec();
    }
    let last = steps.len() - 1;
    (0..n).map(|index| steps[index * last / (n - 1).max(1)]).collect()
}

/// One model.
struct Run {
    /// Outcome.
    reached: Option<u64>,
    /// Steps that all of its metrics have.
    steps: Vec<u64>,
    /// What its signs are called.
    signs: Vec<String>,
    /// Curve of each cell over `steps`, positive ones in logarithms.
    curves: Vec<Vec<f64>>,
    window: usize,
}

impl Run {
    fn all(cohort: &Cohort<'_>, params: &Params) -> Result<Vec<Self>> {
        let outcomes = cohort.series(&params.outcome.0)?;
        let mut metrics = Vec::new();
        for name in &params.metrics {
            metrics.push((name, cohort.series(&name.0)?));
        }
        if metrics.is_empty() {
            return Err(Error::params("metrics", "expected at least one metric"));
        }
        let mut runs = Vec::new();
        for (member, of) in cohort.members.iter().enumerate() {
            let own = |series: &'_ [MemberSeries]| {
                series.iter().position(|s| s.member == member && s.partner.is_none())
            };
            let Some(outcome) = own(outcomes).filter(|_| of.failure.is_none()) else { continue };
            let mut found = Vec::new();
            for (name, series) in &metrics {
                found.extend(own(series).map(|at| (name.0.as_str(), &series[at])));
            }
            if found.len() == metrics.len() {
                runs.push(Self::of(&outcomes[outcome], &found, params)?);
            }
        }
        if runs.is_empty() {
            return Err(Error::Input("no complete model has all of the metrics".to_owned()));
        }
        Ok(runs)
    }

    fn of(
        outcome: &MemberSeries,
        metrics: &[(&str, &MemberSeries)],
        params: &Params,
    ) -> Result<Self> {
        let mut reached = None;
        for (step, value) in &outcome.series.points {
            let value = value.as_scalar().ok_or_else(|| {
                let problem = format!("`{}` has axes, expected one number", params.outcome.0);
                Error::params("outcome", problem)
            })?;
            let is_there = match params.direction.as_str() {
                "falling" => value <= params.threshold,
                _ => value >= params.threshold,
            };
            if is_there && reached.is_none() {
                reached = Some(*step);
            }
        }
        let has = |series: &MemberSeries, step: u64| {
            series.series.points.binary_search_by_key(&step, |point| point.0).ok()
        };
        let first = metrics[0].1.series.points.iter().map(|point| point.0);
        let steps: Vec<u64> =
            first.filter(|step| metrics.iter().all(|m| has(m.1, *step).is_some())).collect();
        let (mut signs, mut curves) = (Vec::new(), Vec::new());
        for (name, series) in metrics {
            for cell in series.series.cells() {
                let at = |step: &u64| has(series, *step).map_or(f64::NAN, |at| cell.values[at]);
                let mut curve: Vec<f64> = steps.iter().map(at).collect();
                if curve.iter().all(|value| value.is_nan() || *value > 0.0) {
                    for value in &mut curve {
                        *value = value.ln();
                    }
                }
                let cell = if cell.label.is_empty() {
                    (*name).to_owned()
                } else {
                    format!("{name} {}", cell.label)
                };
                signs
                    .extend(["value", "slope", "oscillation"].map(|sign| format!("{cell} {sign}")));
                curves.push(curve);
            }
        }
        Ok(Self { reached, steps, signs, curves, window: params.window as usize })
    }

    /// Value, slope and oscillation of every curve, from points up to `step`.
    fn signs_at(&self, step: u64) -> Vec<f64> {
        let n = self.steps.partition_point(|known| *known <= step);
        let signs = |curve: &Vec<f64>| {
            let known = &curve[..n];
            let from = n.saturating_sub(self.window);
            let x: Vec<f64> = self.steps[from..n].iter().map(|step| *step as f64).collect();
            let slope = if x.len() < 2 { f64::NAN } else { affine(&x, &known[from..]).b };
            [known.last().copied().unwrap_or(f64::NAN), slope, oscillation(known)]
        };
        self.curves.iter().flat_map(signs).collect()
    }
}

/// Root mean square of second differences; NaN of fewer than three points.
fn oscillation(curve: &[f64]) -> f64 {
    let squares: Vec<f64> = curve.windows(3).map(|w| (w[0] - 2.0 * w[1] + w[2]).powi(2)).collect();
    (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
}

fn at_step(
    step: u64,
    runs: &[Run],
    signs: &[String],
    params: &Params,
    cx: &mut Context<'_>,
) -> Result<()> {
    let open: Vec<&Run> =
        runs.iter().filter(|run| run.reached.is_none_or(|at| at > step)).collect();
    cx.metric_at("n_open", step, open.len() as f64)?;
    let rows: Vec<Vec<f64>> = open.iter().map(|run| run.signs_at(step)).collect();
    let mut columns: [Vec<f64>; 8] = Default::default();
    for (sign, name) in signs.iter().enumerate() {
        let values: Vec<(f64, Option<u64>)> =
            rows.iter().zip(&open).map(|(row, run)| (row[sign], run.reached)).collect();
        let values: Vec<_> = values.into_iter().filter(|(value, _)| value.is_finite()).collect();
        let found = of_sign(&values, &format!("early-signs/{name}/{step}"), params);
        columns.iter_mut().zip(found).for_each(|(column, value)| column.push(value));
    }
    for (name, column) in COLUMNS.iter().zip(columns) {
        cx.metric_at(name, step, Value::labelled(signs, column))?;
    }
    let later: Vec<(&Vec<f64>, f64)> = rows
        .iter()
        .zip(&open)
        .filter_map(|(row, run)| Some((row, (run.reached? as f64).ln())))
        .collect();
    cx.metric_at("r2_all", step, r2_of_all(&later, params.ridge))
}

const COLUMNS: [&str; 8] =
    ["auroc", "auroc_low", "auroc_high", "rho", "rho_low", "rho_high", "rho_p", "r2"];

/// Everything about one sign, in the order of [`COLUMNS`].
fn of_sign(values: &[(f64, Option<u64>)], stream: &str, params: &Params) -> [f64; 8] {
    // A stream of its own: results do not depend on what other signs there are.
    let mut rng = random::stream(params.seed, stream);
    let mut resampled = |n: usize| -> Vec<usize> {
        (0..n).map(|_| random::below(&mut rng, n as u64) as usize).collect()
    };
    let mut ends = |n: usize, of: &dyn Fn(&[usize]) -> f64| {
        interval((0..params.n_bootstrap).map(|_| of(&resampled(n))).collect())
    };
    let auroc_of = |chosen: &[usize]| {
        let chosen: Vec<(f64, bool)> =
            chosen.iter().map(|&at| (values[at].0, values[at].1.is_some())).collect();
        auroc(&chosen)
    };
    let all: Vec<usize> = (0..values.len()).collect();
    let enough = values.len() >= MODELS_MIN;
    let area = if enough { auroc_of(&all) } else { f64::NAN };
    let [area_low, area_high] =
        if area.is_nan() { [f64::NAN; 2] } else { ends(values.len(), &auroc_of) };
    let later: Vec<(f64, f64)> =
        values.iter().filter_map(|(sign, at)| Some((*sign, (*at)? as f64))).collect();
    if later.len() < MODELS_MIN {
        let nan = f64::NAN;
        return [area, area_low, area_high, nan, nan, nan, nan, nan];
    }
    let (x, times): (Vec<f64>, Vec<f64>) = later.iter().copied().unzip();
    let rho_of = |chosen: &[usize]| {
        let pick = |of: &[f64]| chosen.iter().map(|&at| of[at]).collect::<Vec<f64>>();
        spearman(&pick(&x), &pick(&times))
    };
    let rho = spearman(&x, &times);
    let [rho_low, rho_high] = ends(x.len(), &rho_of);
    let mut rng = random::stream(params.seed, &format!("{stream}/permuted"));
    let as_large = (0..params.n_permutations)
        .filter(|_| {
            let order = random::permutation(&mut rng, times.len());
            let times: Vec<f64> = order.into_iter().map(|at| times[at as usize]).collect();
            spearman(&x, &times).abs() >= rho.abs() - 1e-12
        })
        .count();
    let p = (1 + as_large) as f64 / (1 + params.n_permutations) as f64;
    let logs: Vec<f64> = times.iter().map(|time| time.ln()).collect();
    let left_out = |out: usize| {
        let keep = |of: &[f64]| {
            of.iter().enumerate().filter(|(at, _)| *at != out).map(|(_, x)| *x).collect::<Vec<_>>()
        };
        let line = affine(&keep(&x), &keep(&logs));
        line.a + line.b * x[out]
    };
    let predicted: Vec<f64> = (0..x.len()).map(left_out).collect();
    let p = if rho.is_nan() { f64::NAN } else { p };
    [area, area_low, area_high, rho, rho_low, rho_high, p, r2(&predicted, &logs)]
}

/// Probability that a model that gets there has the larger sign, ties half; NaN if all are of one kind.
fn auroc(values: &[(f64, bool)]) -> f64 {
    let of = |kind: bool| values.iter().filter(move |value| value.1 == kind).map(|value| value.0);
    let (mut sum, mut n) = (0.0, 0.0);
    for there in of(true) {
        for not in of(false) {
            n += 1.0;
            sum += if there > not {
                1.0
            } else if there < not {
                0.0
            } else {
                0.5
            };
        }
    }
    sum / n
}

/// Share of the variance of `actual` around the means of all others that predictions explain: each was made without its own
/// model, and so is the mean that it is held against.
fn r2(predicted: &[f64], actual: &[f64]) -> f64 {
    let (n, total) = (actual.len() as f64, actual.iter().sum::<f64>());
    let square = |x: f64| x * x;
    let missed: f64 = predicted.iter().zip(actual).map(|(p, a)| square(a - p)).sum();
    let spread: f64 = actual.iter().map(|a| square(a - (total - a) / (n - 1.0))).sum();
    1.0 - missed / spread
}

/// The same for a ridge regression on all signs, standardised over the models that it is made from.
fn r2_of_all(later: &[(&Vec<f64>, f64)], ridge: f64) -> f64 {
    let n = later.len();
    if n < MODELS_MIN {
        return f64::NAN;
    }
    let usable: Vec<usize> = (0..later[0].0.len())
        .filter(|&sign| later.iter().all(|(row, _)| row[sign].is_finite()))
        .collect();
    if usable.is_empty() {
        return f64::NAN;
    }
    let actual: Vec<f64> = later.iter().map(|(_, time)| *time).collect();
    let predicted: Vec<f64> = (0..n)
        .map(|out| {
            let kept: Vec<usize> = (0..n).filter(|at| *at != out).collect();
            let flat = |of: &[usize]| -> Tensor {
                let numbers: Vec<f64> =
                    of.iter().flat_map(|&at| usable.iter().map(move |&s| later[at].0[s])).collect();
                Tensor::from_slice(&numbers).view([of.len() as i64, usable.len() as i64])
            };
            let x = flat(&kept);
            let centre = x.mean_dim(0, true, Kind::Double);
            let scale = x.std_dim(0, false, true).clamp_min(1e-12);
            let x = (x - &centre) / &scale;
            let y: Vec<f64> = kept.iter().map(|&at| actual[at]).collect();
            let mean = y.iter().sum::<f64>() / y.len() as f64;
            let y = Tensor::from_slice(&y) - mean;
            let penalty = ridge * kept.len() as f64;
            let unit = Tensor::eye(usable.len() as i64, (Kind::Double, Device::Cpu));
            let normal = x.transpose(0, 1).matmul(&x) + unit * penalty;
            let right = x.transpose(0, 1).matmul(&y.unsqueeze(1));
            let weights = Tensor::linalg_solve(&normal, &right, true);
            let own = (flat(&[out]) - &centre) / &scale;
            mean + to_vec(&own.matmul(&weights).reshape([-1]))[0]
        })
        .collect();
    r2(&predicted, &actual)
}

const fn of_sign_metric(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Predictor], doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    scalar("n_reached", Unit::Count, "Models that reach the threshold"),
    scalar("n_open", Unit::Count, "Models that have not reached it at this step"),
    of_sign_metric("auroc", Unit::Ratio, "How well the sign tells later learners from others"),
    of_sign_metric("auroc_low", Unit::Ratio, "Lower end of its 95 % bootstrap interval"),
    of_sign_metric("auroc_high", Unit::Ratio, "Upper end of that interval"),
    of_sign_metric("rho", Unit::Ratio, "Rank correlation of the sign with the step of learning"),
    of_sign_metric("rho_low", Unit::Ratio, "Lower end of its 95 % bootstrap interval"),
    of_sign_metric("rho_high", Unit::Ratio, "Upper end of that interval"),
    of_sign_metric("rho_p", Unit::Probability, "Share of permutations with that correlation"),
    of_sign_metric("r2", Unit::Ratio, "Of ln(step), predicted by a line through other models"),
    scalar("r2_all", Unit::Ratio, "The same with all signs together"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "auroc",
        title: "How well signs tell who will learn (chance: 0.5)",
        kind: FigureKind::HeatMap,
        metrics: &["auroc"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "rho",
        title: "Rank correlation of signs with the step of learning",
        kind: FigureKind::HeatMap,
        metrics: &["rho"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "r2",
        title: "Variance of ln(step) foretold by all signs",
        kind: FigureKind::Lines,
        metrics: &["r2_all"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests;
