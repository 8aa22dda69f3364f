//! One phase change per digit, or per cell of any other metric that falls.
//!
//! # What it measures
//! For every cell (a digit's loss) of a metric over the evaluated steps:
//! - `half_step`: first step at which half of the change from the first to the last value is done;
//! - `learned_step`: first step from which on the value stays at or below `threshold`, NaN if never;
//! - the sigmoid test (D29) over linear steps: `onset`, `midpoint`, `width` in steps, `daic` (AIC of the better of line
//!   and exponential minus that of the logistic), and `verdict`, 1 if the width is below a quarter of the run, `daic` above
//!   10 and the amplitude above half of the curve's range;
//! - `rank` of the cell by half step, 1 first, ties shared.
//!
//! `n_phase_changes` counts learned cells with verdict 1, `n_learned` those that stay below the threshold at the end,
//! `n_separate` the groups of learned cells whose half steps lie at most `separation` of the run apart. Curves too short or too
//! flat to test have no verdict (NaN). The onset of a fall that is over at the first checkpoints may lie in front of them.
//!
//! # Interpretation
//! A smooth total loss made of separate sharp drops is the claim of problem 5.1. A digit that is never learned (a high
//! weight decay does that) has no learned step and must not count as a phase change.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217, on 5-digit addition; the sigmoid test is that of `phase-transition`.

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_cell},
    curve::{
        fit::{Fits, Model},
        order::ranks,
        transition::{Options, Transition},
    },
    error::Result,
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::TrajectoryInput,
    value::Value,
};

/// See the module documentation.
pub struct DigitPhases;

params! {
    /// Which curves, and what counts.
    pub struct Params {
        /// Metric whose cells are looked at, for instance addition.loss_digit.
        metric: MetricName = MetricName::default();
        /// Value at which a cell counts as learned.
        threshold: f64 = 0.2;
        /// Cells whose half steps are at most this fraction of the run apart fall together.
        separation: f64 = 0.03, min = 0.0, max = 1.0;
    }
}

impl Experiment for DigitPhases {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "digit-phases",
        version: 2,
        summary: "Tests each digit's loss for a phase change of its own",
        source: "Nanda et al. 2023, arXiv 2301.05217; AIC comparison of logistic, line and power law",
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
        let cells = series.cells();
        let mut found = Vec::with_capacity(cells.len());
        for (index, cell) in cells.iter().enumerate() {
            found.push(Phase::of(&steps, &cell.values, params.threshold));
            cx.progress(index as u64 + 1, cells.len() as u64)?;
        }
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        let mut emit =
            |name: &str, values: Vec<f64>| cx.metric(name, Value::labelled(&labels, values));
        for (name, read) in READ {
            emit(name, found.iter().map(read).collect())?;
        }
        let halves: Vec<f64> = found.iter().map(|phase| phase.half).collect();
        emit("rank", ranks(&halves))?;
        let count = |wanted: fn(&Phase) -> bool| found.iter().filter(|p| wanted(p)).count() as f64;
        cx.metric("n_phase_changes", count(|phase| phase.is_change && phase.learned.is_finite()))?;
        cx.metric("n_learned", count(|phase| phase.learned.is_finite()))?;
        let length =
            steps.last().zip(steps.first()).map_or(0.0, |(last, first)| (last - first) as f64);
        let learned = found.iter().filter(|p| p.learned.is_finite()).map(|p| p.half).collect();
        cx.metric("n_separate", n_separate(learned, params.separation * length) as f64)
    }
}

/// One cell's fall.
struct Phase {
    half: f64,
    learned: f64,
    test: Transition,
    daic: f64,
    is_change: bool,
}

impl Phase {
    fn of(steps: &[u64], values: &[f64], threshold: f64) -> Self {
        let options = Options { log_x: false, log_y: Some(false), n_bootstrap: 0 };
        let mut rng = random::stream(0, "digit-phases");
        let test = Transition::test(steps, values, options, &mut rng);
        let daic = test.fits.as_ref().map_or(f64::NAN, |fits| daic(fits, test.n_points));
        let width = test.end - test.onset;
        let length =
            steps.last().zip(steps.first()).map_or(0.0, |(last, first)| (last - first) as f64);
        let is_change = daic > 10.0 && width < 0.25 * length && test.amplitude_fraction > 0.5;
        Self {
            half: half(steps, values),
            learned: learned(steps, values, threshold),
            test,
            daic,
            is_change,
        }
    }
}

/// First step at which half of the change is done; NaN without change.
fn half(steps: &[u64], values: &[f64]) -> f64 {
    let mut finite = steps.iter().zip(values).filter(|(_, value)| value.is_finite());
    let (Some(first), Some(last)) = (finite.clone().next(), finite.clone().next_back()) else {
        return f64::NAN;
    };
    let middle = f64::midpoint(*first.1, *last.1);
    let falls = last.1 < first.1;
    let reached = |value: f64| if falls { value <= middle } else { value >= middle };
    if first.1 == last.1 {
        return f64::NAN;
    }
    finite.find(|(_, value)| reached(**value)).map_or(f64::NAN, |(step, _)| *step as f64)
}

/// First step from which on all finite values are at or below the threshold.
fn learned(steps: &[u64], values: &[f64], threshold: f64) -> f64 {
    if !values.last().is_some_and(|value| value.is_finite()) {
        return f64::NAN;
    }
    let last_above = values.iter().rposition(|&value| value > threshold);
    let from = last_above.map_or(0, |place| place + 1);
    let later = steps[from..].iter().zip(&values[from..]);
    later
        .into_iter()
        .find(|(_, value)| value.is_finite())
        .map_or(f64::NAN, |(step, _)| *step as f64)
}

/// `n ln(RSS / n) + 2k` of the better of line and exponential, minus the same of the logistic.
fn daic(fits: &Fits, n_points: usize) -> f64 {
    let n = n_points as f64;
    // BIC charges ln n for each parameter where AIC charges 2.
    let aic = |model: Model| fits.get(model).bic - model.n_parameters() as f64 * (n.ln() - 2.0);
    aic(Model::Linear).min(aic(Model::PowerLaw)) - aic(Model::Logistic)
}

/// Groups of times that lie at most `gap` apart from the next.
fn n_separate(mut times: Vec<f64>, gap: f64) -> usize {
    times.sort_by(f64::total_cmp);
    times.windows(2).filter(|pair| pair[1] - pair[0] > gap).count() + usize::from(!times.is_empty())
}

type Read = fn(&Phase) -> f64;

const READ: &[(&str, Read)] =
    &[
        ("half_step", |p| p.half),
        ("learned_step", |p| p.learned),
        ("onset", |p| p.test.onset),
        ("midpoint", |p| p.test.midpoint),
        ("width", |p| p.test.end - p.test.onset),
        ("daic", |p| p.daic),
        ("verdict", |p| {
            if p.test.fits.is_some() { f64::from(u8::from(p.is_change)) } else { f64::NAN }
        }),
    ];

const fn count(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Count, axes: &[], doc }
}

const METRICS: &[MetricDef] = &[
    of_cell("half_step", Unit::Steps, "First step with half of the change done"),
    of_cell("learned_step", Unit::Steps, "Step from which on it stays at or below the threshold"),
    of_cell("onset", Unit::Steps, "Step at 10 % of the fitted change"),
    of_cell("midpoint", Unit::Steps, "Step at half of the fitted change"),
    of_cell("width", Unit::Steps, "Steps from 10 to 90 % of the fitted change"),
    of_cell(
        "daic",
        Unit::Dimensionless,
        "AIC of the better of line and exponential minus logistic",
    ),
    of_cell("verdict", Unit::Truth, "1: a phase change of its own, else 0; NaN: untested"),
    of_cell("rank", Unit::Count, "Place in the order of half steps, 1 first, ties shared"),
    count("n_phase_changes", "Learned cells with a phase change"),
    count("n_learned", "Cells that stay at or below the threshold at the end"),
    count("n_separate", "Learned cells or groups of them that fall at separate times"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "falls",
    title: "When each digit falls",
    kind: FigureKind::Lines,
    metrics: &["half_step", "onset", "midpoint"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    fn sigmoid(middle: f64, width: f64) -> Vec<f64> {
        (0..60).map(|i| 2.3 / (1.0 + ((f64::from(i) * 50.0 - middle) / width).exp())).collect()
    }

    #[test]
    fn drops_are_told_from_smooth_and_unlearned_curves() {
        let steps: Vec<u64> = (0..60).map(|i| i * 50).collect();
        let sharp = Phase::of(&steps, &sigmoid(1000.0, 60.0), 0.2);
        assert!(sharp.is_change && sharp.daic > 10.0);
        assert!((1000.0..=1050.0).contains(&sharp.half), "{}", sharp.half);
        // 2.3 / (1 + e^x) = 0.2 at x = 2.35.
        assert_eq!(sharp.learned, 1150.0);
        assert!((sharp.test.midpoint - 1000.0).abs() < 5.0);
        let smooth: Vec<f64> = steps.iter().map(|&s| 2.3 * (-(s as f64) / 1500.0).exp()).collect();
        assert!(!Phase::of(&steps, &smooth, 0.2).is_change);
        let stuck = Phase::of(&steps, &vec![2.3; 60], 0.2);
        assert!(!stuck.is_change && stuck.learned.is_nan() && stuck.half.is_nan());
        // A drop at once, to a loss that stays: no phase change, however fast.
        for tau in [1.0, 10.0, 40.0, 100.0] {
            let noise = |s: u64| 0.01 * ((s as f64 * 0.37).sin() + (s as f64 * 1.3).cos());
            let drop: Vec<f64> =
                steps.iter().map(|&s| 2.3 + 0.4 * (-(s as f64) / tau).exp() + noise(s)).collect();
            let found = Phase::of(&steps, &drop, 0.2);
            assert!(!found.is_change && found.daic < 10.0, "{tau}: {}", found.daic);
        }
        let slow = Phase::of(&steps, &sigmoid(1500.0, 600.0), 0.2);
        assert!(!slow.is_change, "a sigmoid as wide as the run is no phase change");
    }

    #[test]
    fn learned_means_from_there_on() {
        let steps = [0, 1, 2, 3, 4];
        assert_eq!(learned(&steps, &[3.0, 0.1, 2.0, 0.1, 0.1], 0.2), 3.0);
        assert!(learned(&steps, &[3.0, 0.1, 0.1, 0.1, 0.3], 0.2).is_nan());
        assert!(learned(&steps, &[3.0, 0.1, 0.1, 0.1, f64::NAN], 0.2).is_nan(), "an end unknown");
        assert_eq!(n_separate(vec![10.0, 12.0, 40.0, 100.0], 5.0), 3);
        assert_eq!(n_separate(Vec::new(), 5.0), 0);
    }
}
