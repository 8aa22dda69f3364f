//! Where does a metric change, and how sure is that?
//!
//! # What it measures
//! Per cell of the metric (a head, a token, a digit …), over its checkpoints in order: the cheapest segmentation under a
//! penalty per segment (PELT, every checkpoint admissible), of the standardised curve. `cost` says what a segment is:
//! `level` (constant), `normal` (constant mean and variance), `slope` (continuous line), `kernel` (constant distribution).
//! Per change: the first checkpoint behind it (`step`) and the last one before (`bracket_low`), a 95 % interval
//! from block-resampled residuals (`low`, `high`), the share of the squared cost that it saves (`gain`), and how often shuffled time
//! saves as much between the neighbouring changes (`p_shuffled`). At most `max_changes` are reported, those that save most.
//!
//! # Interpretation
//! A grid of checkpoints hides everything between two of them: the truth lies in the bracket at best. A smooth trend is cut into levels by
//! `level`; look with `slope` before calling it a jump, and with `phase-transition` for a test against smooth curves.
//!
//! # Source
//! Killick, Fearnhead and Eckley 2012 (PELT); Arlot, Celisse and Harchaoui 2019 (kernels); ruptures 1.1.10.

use rand::Rng;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    curve::{
        change_point::{self, Cost, KERNEL_MAX, Segmenter},
        transition::quantile,
    },
    each_cell::each_cell,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::TrajectoryInput,
    value::Value,
};

/// See the module documentation.
pub struct ChangePoints;

params! {
    /// Which curves, and what counts as a change.
    pub struct Params {
        /// Metric whose cells are looked at.
        metric: MetricName = MetricName::default();
        /// What a segment looks like: a level, a Gaussian, a continuous line, or a distribution.
        cost: String = "level".to_owned(), choices = ["level", "normal", "slope", "kernel"];
        /// Factor of the penalty per segment; larger means fewer changes.
        penalty: f64 = 1.0, min = 0.0;
        /// Most changes that are reported per cell.
        max_changes: u64 = 5, min = 1.0, max = 100.0;
        /// Resamples behind each interval and shuffles behind each p; 0 leaves them NaN.
        n_bootstrap: u64 = 100, min = 0.0, max = 10_000.0;
        /// Seed of both.
        seed: u64 = 0, min = 0.0;
    }
}

/// One change of one curve.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Index of the first point behind it.
    at: usize,
    gain: f64,
    interval: [f64; 2],
    p_shuffled: f64,
}

impl Experiment for ChangePoints {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "change-points",
        version: 1,
        summary: "Cuts a metric's curve into segments and tests each change against shuffled time",
        source: "Killick, Fearnhead and Eckley 2012 (PELT); ruptures 1.1.10",
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
        let cost = match params.cost.as_str() {
            "normal" => Cost::Normal,
            "slope" => Cost::Slope,
            "kernel" => Cost::Kernel,
            _ => Cost::Level,
        };
        let n_points = series.points.len();
        if cost == Cost::Kernel && n_points > KERNEL_MAX {
            return Err(Error::Input(format!(
                "{n_points} points of {}, the kernel takes at most {KERNEL_MAX}",
                params.metric.0
            )));
        }
        let cells = series.cells();
        let max_changes = params.max_changes as usize;
        let found: Vec<(Vec<f64>, Vec<Change>)> = each_cell(&cells, cx, |(): &mut (), cell| {
            let finite = series.points.iter().zip(&cell.values).filter(|(_, y)| y.is_finite());
            let (steps, y): (Vec<f64>, Vec<f64>) =
                finite.map(|((step, _), &y)| (*step as f64, y)).unzip();
            // A stream per cell: results do not depend on which other cells there are.
            let mut rng = random::stream(params.seed, &format!("change-points/{}", cell.label));
            let mut changes = changes(cost, &y, &params, &mut rng);
            changes.sort_by(|a, b| b.gain.total_cmp(&a.gain));
            changes.truncate(max_changes);
            changes.sort_by_key(|change| change.at);
            (steps, changes)
        })?;
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        let counts = found.iter().map(|(_, changes)| changes.len() as f64).collect();
        cx.metric("n_changes", Value::labelled(&labels, counts))?;
        for (name, read) in READ {
            let row = |(steps, changes): &(Vec<f64>, Vec<Change>)| {
                let value = |place: usize| changes.get(place).map_or(f64::NAN, |c| read(c, steps));
                (0..max_changes).map(value).collect::<Vec<f64>>()
            };
            let data = found.iter().flat_map(row).collect();
            let cell_labels = labels.iter().map(|&label| label.to_owned()).collect();
            let shape = vec![cells.len(), max_changes];
            cx.metric(name, Value::array(shape, data, vec![Some(cell_labels), None]))?;
        }
        Ok(())
    }
}

/// Changes of one curve of finite values, in time order.
fn changes(cost: Cost, y: &[f64], params: &Params, rng: &mut impl Rng) -> Vec<Change> {
    if y.len() < 2 * cost.min_size() {
        return Vec::new();
    }
    let y = change_point::standardised(y);
    let segmenter = Segmenter::new(cost, &y);
    let points = segmenter.change_points(params.penalty * change_point::penalty(cost, &y));
    let ends: Vec<usize> = [0].into_iter().chain(points.iter().copied()).chain([y.len()]).collect();
    let whole = segmenter.cost(0, y.len()).abs().max(f64::MIN_POSITIVE);
    let mut found: Vec<Change> = ends
        .windows(3)
        .map(|w| {
            let saved = segmenter.cost(w[0], w[2])
                - segmenter.cost(w[0], w[1])
                - segmenter.cost(w[1], w[2]);
            let p_shuffled = p_shuffled(cost, &y[w[0]..w[2]], params.n_bootstrap, rng);
            Change { at: w[1], gain: saved / whole, interval: [f64::NAN; 2], p_shuffled }
        })
        .collect();
    if !found.is_empty() {
        let intervals = intervals(cost, &y, &ends, params.n_bootstrap, rng);
        for (change, interval) in found.iter_mut().zip(intervals) {
            change.interval = interval;
        }
    }
    found
}

/// How often the best single change of the same values in random order saves as much.
fn p_shuffled(cost: Cost, y: &[f64], n: u64, rng: &mut impl Rng) -> f64 {
    let saved = |y: &[f64]| Segmenter::new(cost, y).best_split(0, y.len()).map(|split| split.1);
    let Some(observed) = saved(y).filter(|_| n > 0) else { return f64::NAN };
    let as_much = (0..n).filter(|_| {
        let order = random::permutation(rng, y.len());
        let shuffled: Vec<f64> = order.iter().map(|&index| y[index as usize]).collect();
        saved(&shuffled).is_some_and(|saved| saved >= observed)
    });
    (1 + as_much.count()) as f64 / (1 + n) as f64
}

/// 95 % intervals of the indices of all changes, from residuals resampled in blocks.
fn intervals(
    cost: Cost,
    y: &[f64],
    ends: &[usize],
    n_bootstrap: u64,
    rng: &mut impl Rng,
) -> Vec<[f64; 2]> {
    let fitted = fitted(cost, y, ends);
    let residuals: Vec<f64> = y.iter().zip(&fitted).map(|(y, f)| y - f).collect();
    let block = (y.len() as f64).cbrt().ceil() as usize;
    let mut places = vec![Vec::new(); ends.len() - 2];
    for _ in 0..n_bootstrap {
        let mut curve = Vec::with_capacity(y.len() + block);
        while curve.len() < y.len() {
            let start = random::below(rng, (y.len() - block + 1) as u64) as usize;
            curve.extend_from_slice(&residuals[start..start + block]);
        }
        curve.truncate(y.len());
        for (value, fitted) in curve.iter_mut().zip(&fitted) {
            *value += fitted;
        }
        let segmenter = Segmenter::new(cost, &curve);
        for (places, w) in places.iter_mut().zip(ends.windows(3)) {
            places.extend(segmenter.best_split(w[0], w[2]).map(|(at, _)| at as f64));
        }
    }
    let interval = |mut places: Vec<f64>| {
        if places.is_empty() {
            return [f64::NAN; 2];
        }
        places.sort_by(f64::total_cmp);
        [0.025, 0.975].map(|q| quantile(&places, q))
    };
    places.into_iter().map(interval).collect()
}

/// What the segments say the curve is.
fn fitted(cost: Cost, y: &[f64], ends: &[usize]) -> Vec<f64> {
    let mut fitted = Vec::with_capacity(y.len());
    for w in ends.windows(2) {
        let segment = &y[w[0]..w[1]];
        let n = segment.len() as f64;
        if cost == Cost::Slope {
            let start = w[0].saturating_sub(1);
            let slope = (y[w[1] - 1] - y[start]) / (w[1] - 1 - start).max(1) as f64;
            fitted.extend((w[0]..w[1]).map(|i| y[start] + slope * (i - start) as f64));
        } else {
            let mean = segment.iter().sum::<f64>() / n;
            fitted.extend(segment.iter().map(|_| mean));
        }
    }
    fitted
}

/// Value of the step axis at a place between checkpoints.
fn step_at(steps: &[f64], place: f64) -> f64 {
    if place.is_nan() { f64::NAN } else { quantile(steps, place / (steps.len() - 1) as f64) }
}

type Read = fn(&Change, &[f64]) -> f64;

const READ: &[(&str, Read)] = &[
    ("step", |change, steps| steps[change.at]),
    ("bracket_low", |change, steps| steps[change.at - 1]),
    ("low", |change, steps| step_at(steps, change.interval[0])),
    ("high", |change, steps| step_at(steps, change.interval[1])),
    ("gain", |change, _| change.gain),
    ("p_shuffled", |change, _| change.p_shuffled),
];

const fn of_change(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Cell, Axis::Change], doc }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "n_changes",
        unit: Unit::Count,
        axes: &[Axis::Cell],
        doc: "Changes found, at most max_changes",
    },
    of_change("step", Unit::Steps, "First checkpoint behind the change"),
    of_change("bracket_low", Unit::Steps, "Last checkpoint before the change"),
    of_change("low", Unit::Steps, "95 % interval of the first checkpoint behind, lower end"),
    of_change("high", Unit::Steps, "The same, upper end"),
    of_change("gain", Unit::Ratio, "Cost that the change saves over the cost without any"),
    of_change("p_shuffled", Unit::Probability, "How often shuffled time saves as much"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "changes",
    title: "Change points",
    kind: FigureKind::Lines,
    metrics: &["step"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(y: &[f64], cost: Cost) -> Vec<Change> {
        let params = Params { n_bootstrap: 99, ..Params::default() };
        changes(cost, y, &params, &mut random::stream(0, "test"))
    }

    #[test]
    fn a_step_has_a_narrow_interval_and_shuffled_time_never_does_as_well() {
        let noise = |i: usize| 0.05 * ((i * 7919 % 101) as f64 / 50.0 - 1.0);
        let y: Vec<f64> = (0..50).map(|i| f64::from(u8::from(i >= 20)) + noise(i)).collect();
        let found = of(&y, Cost::Level);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].at, 20);
        assert!(found[0].interval[0] >= 19.0 && found[0].interval[1] <= 21.0, "{found:?}");
        assert!((found[0].p_shuffled - 0.01).abs() < 1e-12, "{found:?}");
        assert!(found[0].gain > 0.9, "{found:?}");
    }

    #[test]
    fn residuals_of_a_bent_line_are_small() {
        let y: Vec<f64> = (0..40).map(|i| (f64::from(i) - 19.0).max(0.0)).collect();
        let fitted = fitted(Cost::Slope, &y, &[0, 20, 40]);
        assert!(y.iter().zip(&fitted).all(|(y, f)| (y - f).abs() < 1e-12), "{fitted:?}");
    }

    #[test]
    fn places_between_checkpoints_are_interpolated() {
        assert_eq!(step_at(&[0.0, 10.0, 100.0], 1.5), 55.0);
    }
}
