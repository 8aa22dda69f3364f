//! Does a smooth loss curve hide many small steps?
//!
//! # What it measures
//! For every cell of a metric that falls (the loss of each task or token) over `x = ln(step + 1)`: the first step
//! below a fraction of its first value (`t_half`), the largest change within a tenth of the x range over its whole range
//! (`step_frac`, D29b) and that share for the power law that fits the cell best (`step_frac_smooth`, the null), and
//! whether the sigmoid test calls it a transition. For the mean over cells, weighted by rank as
//! `i^-(alpha + 1)`: the same share, the exponent `c` of its power law `a + b t^-c` with a free offset (and of any sign, so
//! that it equals the exponent predicted only once the offset is small), and how well the weighted sum of the
//! cells' fitted sigmoids reproduces it (`sum_r2`).
//!
//! # Interpretation
//! Many small steps: `median_step_frac` far above `median_step_frac_smooth` and above `mean_step_frac`, with `sum_r2`
//! near 1 and `exponent_of_sum` near `exponent`. In the quantization model frequent cells come first
//! (`rank_correlation` near 1 if cells are in order of frequency) and the exponent in steps is
//! `alpha / (alpha + 1)` while cells are left to learn. Cells that never fall below the fraction are not
//! learned: they count in `n_learned` only by their absence, and have no steps. Where no cells are known beforehand,
//! `quanta-clusters` finds them.
//!
//! # Source
//! Michaud, Liu, Girit, Tegmark 2023, arXiv 2303.13506; sigmoid test as in `phase-transition`.

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_cell, scalar},
    curve::{
        abruptness::abruptness,
        fit::{Fits, Model, Points},
        order::spearman,
        transition::{MIN_POINTS, Options, Transition, quantile},
    },
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::{Cell, TrajectoryInput},
    value::Value,
};

/// See the module documentation.
pub struct Quanta;

params! {
    /// Which curves, and how they are weighted.
    pub struct Params {
        /// Metric with a cell per task or token, `experiment.metric`.
        metric: MetricName = MetricName::default();
        /// The cell of rank i has weight i to the power of -(alpha + 1) in the mean; -1 weighs all alike.
        alpha: f64 = -1.0, min = -1.0, max = 10.0;
        /// A cell is learned when it is below this fraction of its first value.
        fraction: f64 = 0.5, min = 0.01, max = 0.99;
    }
}

impl Experiment for Quanta {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "quanta",
        version: 2,
        summary: "Tests whether a smooth mean curve is a sum of sudden steps of its parts",
        source: "Michaud et al. 2023, arXiv 2303.13506",
        stage: Stage::Trajectory,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(vec![params.metric.0.clone()])
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let series = input.series(&params.metric.0)?;
        let steps: Vec<u64> = series.points.iter().map(|point| point.0).collect();
        if steps.len() < MIN_POINTS {
            return Err(Error::Input(format!(
                "expected at least {MIN_POINTS} points of metric `{}`, found {}",
                params.metric.0,
                steps.len()
            )));
        }
        let cells = series.cells();
        let mut quanta = Vec::with_capacity(cells.len());
        for (index, cell) in cells.iter().enumerate() {
            quanta.push(Quantum::new(&steps, cell, params.fraction));
            cx.progress(index as u64 + 1, cells.len() as u64)?;
        }
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        for (name, read) in CELLS {
            cx.metric(name, Value::labelled(&labels, quanta.iter().map(read).collect()))?;
        }
        let weights: Vec<f64> =
            (1..=cells.len()).map(|rank| (rank as f64).powf(-(params.alpha + 1.0))).collect();
        let whole = Whole::new(&steps, &cells, &quanta, &weights);
        for (name, value) in whole.metrics(&quanta, params.alpha) {
            cx.metric(name, Value::scalar(value))?;
        }
        Ok(())
    }
}

/// One cell's story.
pub(super) struct Quantum {
    pub(super) t_half: f64,
    pub(super) step_frac: f64,
    step_frac_smooth: f64,
    /// 1 if it is learned in a transition, 0 if not; NaN if there is too little to test.
    pub(super) verdict: f64,
    /// The sigmoid at every step: the constant mean if the cell cannot be fitted.
    sigmoid: Vec<f64>,
}

impl Quantum {
    pub(super) fn new(steps: &[u64], cell: &Cell, fraction: f64) -> Self {
        let values = &cell.values;
        let first = values.iter().copied().find(|value| value.is_finite()).unwrap_or(f64::NAN);
        let learned = values.iter().position(|&value| value < fraction * first);
        // On the scale of the loss itself: sums of sigmoids are compared with sums of losses. No resample
        // is drawn, so the stream is never used.
        let options = Options { log_x: true, log_y: Some(false), n_bootstrap: 0 };
        let test = Transition::test(steps, values, options, &mut random::stream(0, "quanta"));
        let x: Vec<f64> = steps.iter().map(|&step| axis(step)).collect();
        let present = x.iter().zip(values).filter(|(_, value)| value.is_finite());
        let kept: Vec<f64> = present.map(|(x, _)| *x).collect();
        let smooth = test.fits.as_ref().map(|fits| at(fits, Model::PowerLaw, &kept));
        let sigmoid = if let Some(fits) = &test.fits {
            let fitted = at(fits, Model::Logistic, &x);
            // Where the cell is missing, so is its part of the sum.
            let present = |(fitted, value): (f64, &f64)| {
                if value.is_finite() { fitted } else { f64::NAN }
            };
            fitted.into_iter().zip(values).map(present).collect()
        } else {
            let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
            vec![finite.iter().sum::<f64>() / finite.len() as f64; x.len()]
        };
        let known = |value: f64| if learned.is_some() { value } else { f64::NAN };
        Self {
            t_half: learned.map_or(f64::NAN, |index| steps[index] as f64),
            step_frac: known(test.abruptness),
            step_frac_smooth: known(
                smooth.map_or(f64::NAN, |smooth| abruptness(Points { x: &kept, y: &smooth })),
            ),
            // NaN stays NaN.
            verdict: test.verdict() * f64::from(u8::from(learned.is_some())),
            sigmoid,
        }
    }

    pub(super) fn is_learned(&self) -> bool {
        !self.t_half.is_nan()
    }
}

/// The weighted mean of all cells.
struct Whole {
    step_frac: f64,
    exponent: f64,
    exponent_r2: f64,
    exponent_of_sum: f64,
    sum_r2: f64,
}

impl Whole {
    fn new(steps: &[u64], cells: &[Cell], quanta: &[Quantum], weights: &[f64]) -> Self {
        let mean = |curve: &dyn Fn(usize) -> f64| {
            // A cell that is missing at a step is left out of the mean there.
            let present = (0..cells.len()).filter(|&cell| curve(cell).is_finite());
            let (sum, weight) = present.fold((0.0, 0.0), |(sum, weight), cell| {
                (sum + weights[cell] * curve(cell), weight + weights[cell])
            });
            sum / weight
        };
        let curve: Vec<f64> =
            (0..steps.len()).map(|step| mean(&|cell| cells[cell].values[step])).collect();
        let kept: Vec<usize> = (0..steps.len()).filter(|&step| curve[step].is_finite()).collect();
        let x: Vec<f64> = kept.iter().map(|&step| axis(steps[step])).collect();
        let y: Vec<f64> = kept.iter().map(|&step| curve[step]).collect();
        let sum: Vec<f64> =
            kept.iter().map(|&step| mean(&|cell| quanta[cell].sigmoid[step])).collect();
        let points = Points { x: &x, y: &y };
        if x.len() < MIN_POINTS || points.y_range() == 0.0 {
            let nan = f64::NAN;
            return Self {
                step_frac: nan,
                exponent: nan,
                exponent_r2: nan,
                exponent_of_sum: nan,
                sum_r2: nan,
            };
        }
        let of_mean = Fits::new(points);
        let of_sum = Fits::new(Points { x: &x, y: &sum });
        Self {
            step_frac: abruptness(points),
            exponent: of_mean.get(Model::PowerLaw).parameters[2],
            exponent_r2: r2(&y, &at(&of_mean, Model::PowerLaw, &x)),
            exponent_of_sum: of_sum.get(Model::PowerLaw).parameters[2],
            sum_r2: r2(&y, &sum),
        }
    }

    /// Name and value of every metric without axes.
    fn metrics(&self, quanta: &[Quantum], alpha: f64) -> Vec<(&'static str, f64)> {
        let learned: Vec<(usize, &Quantum)> =
            quanta.iter().enumerate().filter(|(_, quantum)| quantum.is_learned()).collect();
        let median = |read: fn(&Quantum) -> f64| {
            let mut values: Vec<f64> = learned.iter().map(|(_, quantum)| read(quantum)).collect();
            values.retain(|value| value.is_finite());
            values.sort_by(f64::total_cmp);
            if values.is_empty() { f64::NAN } else { quantile(&values, 0.5) }
        };
        let rank: Vec<f64> = learned.iter().map(|(index, _)| *index as f64).collect();
        let t_half: Vec<f64> = learned.iter().map(|(_, quantum)| quantum.t_half).collect();
        let verdicts = learned.iter().map(|(_, quantum)| quantum.verdict);
        let tested: Vec<f64> = verdicts.filter(|verdict| !verdict.is_nan()).collect();
        vec![
            ("n_learned", learned.len() as f64),
            ("rank_correlation", spearman(&rank, &t_half)),
            ("fraction_abrupt", tested.iter().sum::<f64>() / tested.len() as f64),
            ("median_step_frac", median(|quantum| quantum.step_frac)),
            ("median_step_frac_smooth", median(|quantum| quantum.step_frac_smooth)),
            ("mean_step_frac", self.step_frac),
            ("exponent", self.exponent),
            ("exponent_r2", self.exponent_r2),
            ("exponent_of_sum", self.exponent_of_sum),
            ("exponent_predicted", if alpha > 0.0 { alpha / (alpha + 1.0) } else { f64::NAN }),
            ("sum_r2", self.sum_r2),
        ]
    }
}

fn axis(step: u64) -> f64 {
    (step as f64).ln_1p()
}

fn at(fits: &Fits, model: Model, x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| fits.get(model).value(x)).collect()
}

/// Share of the variance of `y` that `fitted` explains.
fn r2(y: &[f64], fitted: &[f64]) -> f64 {
    let mean = y.iter().sum::<f64>() / y.len() as f64;
    let residual: f64 = y.iter().zip(fitted).map(|(y, f)| (y - f).powi(2)).sum();
    1.0 - residual / y.iter().map(|y| (y - mean).powi(2)).sum::<f64>()
}

type Read = fn(&Quantum) -> f64;

const CELLS: &[(&str, Read)] = &[
    ("t_half", |quantum| quantum.t_half),
    ("step_frac", |quantum| quantum.step_frac),
    ("step_frac_smooth", |quantum| quantum.step_frac_smooth),
    ("verdict", |quantum| quantum.verdict),
];

const METRICS: &[MetricDef] = &[
    of_cell(
        "t_half",
        Unit::Steps,
        "First step below the fraction of the first value; NaN: not learned",
    ),
    of_cell("step_frac", Unit::Ratio, "Share of the change in a tenth of log time; line: 0.1"),
    of_cell("step_frac_smooth", Unit::Ratio, "The same for the best power law through the cell"),
    of_cell("verdict", Unit::Truth, "1: learned, in a transition by the sigmoid test; 0: not"),
    scalar("n_learned", Unit::Count, "Cells that fall below the fraction"),
    scalar(
        "rank_correlation",
        Unit::Ratio,
        "Spearman correlation of order and t_half of learned cells",
    ),
    scalar("fraction_abrupt", Unit::Probability, "Share of the learned cells with verdict 1"),
    scalar("median_step_frac", Unit::Ratio, "Median step_frac of the learned cells"),
    scalar("median_step_frac_smooth", Unit::Ratio, "Median step_frac_smooth of the learned cells"),
    scalar("mean_step_frac", Unit::Ratio, "step_frac of the weighted mean of all cells"),
    scalar("exponent", Unit::Dimensionless, "Exponent of the power law through the weighted mean"),
    scalar("exponent_r2", Unit::Ratio, "Share of the mean's variance that this power law explains"),
    scalar(
        "exponent_of_sum",
        Unit::Dimensionless,
        "The exponent for the weighted sum of fitted sigmoids",
    ),
    scalar(
        "exponent_predicted",
        Unit::Dimensionless,
        "alpha / (alpha + 1); NaN if alpha is not positive",
    ),
    scalar("sum_r2", Unit::Ratio, "Share of the mean's variance that the sum of sigmoids explains"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "order",
    title: "When each part is learned",
    kind: FigureKind::Lines,
    metrics: &["t_half"],
    log_x: true,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sweep_lens::Device;

    use super::*;
    use crate::{
        sink::MemorySink,
        trajectory::{Series, trajectory},
    };

    /// Runs the experiment on cells given as functions of ln(step + 1).
    fn run(cells: &[&dyn Fn(f64) -> f64], alpha: f64) -> MemorySink {
        let points = (0..=120u64).map(|i| {
            let step = (1.08f64.powi(i as i32) - 1.0).round() as u64 + i;
            (step, Value::vector(cells.iter().map(|cell| cell(axis(step))).collect()))
        });
        let series = Series {
            unit: "bits".to_owned(),
            axes: vec!["task".to_owned()],
            points: points.collect(),
        };
        let table = BTreeMap::from([("r.task_loss".to_owned(), series)]);
        let input = TrajectoryInput { checkpoints: None, series: &table, device: Device::Cpu };
        let mut sink = MemorySink::default();
        let params = serde_json::json!({ "metric": "r.task_loss", "alpha": alpha });
        trajectory(&Quanta, &params, input, &mut sink).unwrap();
        sink
    }

    fn scalar_of(sink: &MemorySink, name: &str) -> f64 {
        let (_, value) = sink.metrics[name].last_key_value().unwrap();
        value.as_scalar().unwrap()
    }

    #[test]
    fn steps_are_told_from_smooth_curves() {
        const ALPHA: f64 = 0.6;
        // Task of rank i is learned at a step proportional to i^(alpha + 1); the last one never.
        let half = |rank: f64| 2.0 + (1.0 + ALPHA) * rank.ln();
        let tasks: Vec<Box<dyn Fn(f64) -> f64>> = (1..=12)
            .map(|rank| {
                let x0 = half(f64::from(rank));
                let step = move |x: f64| 1.0 / (1.0 + ((x - x0) / 0.08).exp());
                Box::new(step) as Box<dyn Fn(f64) -> f64>
            })
            .chain([Box::new(|_| 1.0) as Box<dyn Fn(f64) -> f64>])
            .collect();
        let tasks: Vec<&dyn Fn(f64) -> f64> = tasks.iter().map(Box::as_ref).collect();
        let sink = run(&tasks, ALPHA);
        let value = |name| scalar_of(&sink, name);
        assert_eq!(value("n_learned"), 12.0);
        assert!((value("rank_correlation") - 1.0).abs() < 1e-9);
        assert_eq!(value("fraction_abrupt"), 1.0);
        assert!(value("median_step_frac") > 0.9, "{}", value("median_step_frac"));
        assert!(value("median_step_frac_smooth") < 0.45, "{}", value("median_step_frac_smooth"));
        assert!(value("mean_step_frac") < value("median_step_frac") - 0.2);
        assert!(value("sum_r2") > 0.999, "{}", value("sum_r2"));
        assert!((value("exponent") - value("exponent_of_sum")).abs() < 0.05);
        assert!((value("exponent_predicted") - 0.375).abs() < 1e-12);
        let (_, t_half) = sink.metrics["t_half"].last_key_value().unwrap();
        for (rank, t_half) in (1..=12).zip(&t_half.data) {
            let expected = half(f64::from(rank)).exp() - 1.0;
            assert!((t_half / expected).ln().abs() < 0.25, "rank {rank}: {t_half} {expected}");
        }
        assert!(t_half.data[12].is_nan());
        // The control: every part falls like a power law.
        let smooth: Vec<Box<dyn Fn(f64) -> f64>> = (1..=5)
            .map(|i| {
                Box::new(move |x: f64| (-0.1 * f64::from(i) * x).exp()) as Box<dyn Fn(f64) -> f64>
            })
            .collect();
        let smooth: Vec<&dyn Fn(f64) -> f64> = smooth.iter().map(Box::as_ref).collect();
        let sink = run(&smooth, -1.0);
        let value = |name| scalar_of(&sink, name);
        assert_eq!(value("fraction_abrupt"), 0.0);
        let gap = (value("median_step_frac") - value("median_step_frac_smooth")).abs();
        assert!(gap < 0.01, "{gap}");
        assert!(value("exponent_r2") > 0.99 && value("exponent_predicted").is_nan());
    }

    #[test]
    fn nothing_learned_is_no_step() {
        let sink = run(&[&|_| 1.0, &|x| 1.0 - 0.01 * x], -1.0);
        assert_eq!(scalar_of(&sink, "n_learned"), 0.0);
        assert!(scalar_of(&sink, "fraction_abrupt").is_nan());
        assert!(scalar_of(&sink, "rank_correlation").is_nan());
    }
}
