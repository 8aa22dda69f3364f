//! Is a metric's curve a phase transition or a smooth trend?
//!
//! # What it measures
//! For every cell of any metric series, over `x = ln(step + 1)`: least-squares fits of a constant, a line,
//! a power law, a logistic and two logistics (D29), compared by BIC. From the logistic: midpoint, onset
//! and end (10 % and 90 % of the change), width in decades, amplitude over the curve's range, a 95 % residual
//! block-bootstrap interval of the midpoint, and the bracket of checkpoints around it. `verdict` is 1
//! (transition) if ΔBIC against the better of line and power law exceeds 10, the same under AR(1) errors, the
//! width is below a quarter of the x range and the amplitude above half of the y range; else 0.
//! Model-free: abruptness (largest change within a tenth of the x range over the whole change; interval by
//! resampling residuals around the isotonic regression) and slope ratio (D29b).
//! With `since`, checkpoints before that step are left out and time counts from there: of a fine-tuning that
//! begins at step 800, `x = ln(step - 800 + 1)`. Reported steps are always those of the training.
//! A curve with fewer than 8 finite points, or a constant one, has verdict 0 and NaN elsewhere.
//!
//! # Interpretation
//! A verdict of 1 with a bracket as wide as the transition says only that the checkpoints are too coarse to
//! see its shape. `log_y: auto` fits ln y if all values are positive and span a factor of 100 or more, as
//! losses that fall by decades do: on a linear axis their last decades are invisible.
//!
//! # Source
//! Schaeffer et al. 2023 (choice of metric and scale); standard BIC model comparison. All fits are in the
//! artifact `fits.json`.

use serde::Serialize;

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_cell},
    curve::{
        fit::Model,
        transition::{Known, Options, Transition},
    },
    each_cell::each_cell,
    error::Result,
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::TrajectoryInput,
    value::Value,
};

/// See the module documentation.
pub struct PhaseTransition;

params! {
    /// Which curve to test, and on which axes.
    pub struct Params {
        /// Metric to test, `experiment.metric`; one test per cell if it has axes.
        metric: MetricName = MetricName::default();
        /// Fit over ln(step + 1); false fits over the step itself.
        log_x: bool = true;
        /// First step that counts, and the one from which time counts: where a fine-tuning begins.
        since: u64 = 0, min = 0.0;
        /// Fit ln y: `auto` if all values are positive and span a factor of 100 or more.
        log_y: String = "auto".to_owned(), choices = ["auto", "true", "false"];
        /// Bootstrap resamples behind each interval; 0 leaves intervals NaN.
        n_bootstrap: u64 = 200, min = 0.0, max = 100_000.0;
        /// Seed of the bootstrap.
        seed: u64 = 0, min = 0.0;
    }
}

impl Experiment for PhaseTransition {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "phase-transition",
        version: 2,
        summary: "Tests a metric's curve for a sharp transition against smooth alternatives",
        source: "BIC comparison of logistic, line and power law over log steps",
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
        let all: Vec<u64> = series.points.iter().map(|point| point.0).collect();
        let before = all.partition_point(|step| *step < params.since);
        let steps: Vec<u64> = all[before..].iter().map(|step| step - params.since).collect();
        let options = Options {
            log_x: params.log_x,
            log_y: match params.log_y.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            },
            n_bootstrap: params.n_bootstrap as usize,
        };
        let cells = series.cells();
        let found = each_cell(&cells, cx, |known: &mut Known, cell| {
            // A stream per cell: results do not depend on which other cells there are.
            let mut rng = random::stream(params.seed, &format!("phase-transition/{}", cell.label));
            let values = &cell.values[before..];
            let tested = Transition::test_with(known, &steps, values, options, &mut rng);
            tested.counted_from(params.since)
        })?;
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        for (name, read) in READ {
            cx.metric(name, Value::labelled(&labels, found.iter().map(read).collect()))?;
        }
        let called = found.iter().filter(|transition| transition.is_transition).count();
        cx.metric("fraction", called as f64 / found.len().max(1) as f64)?;
        let reports: Vec<Report<'_>> = labels
            .iter()
            .zip(&found)
            .map(|(cell, transition)| Report { cell, transition })
            .collect();
        cx.json("fits.json", &reports)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    cell: &'a str,
    #[serde(flatten)]
    transition: &'a Transition,
}

type Read = fn(&Transition) -> f64;

const READ: &[(&str, Read)] = &[
    ("verdict", |t| f64::from(u8::from(t.is_transition))),
    ("midpoint", |t| t.midpoint),
    ("onset", |t| t.onset),
    ("end", |t| t.end),
    ("width_decades", |t| t.width_decades),
    ("amplitude_fraction", |t| t.amplitude_fraction),
    ("dbic", |t| t.fits.as_ref().map_or(f64::NAN, |fits| fits.dbic)),
    ("dbic_ar1", |t| t.fits.as_ref().map_or(f64::NAN, |fits| fits.dbic_ar1)),
    ("two_step_dbic", |t| {
        let gain = |fits: &crate::curve::fit::Fits| {
            fits.get(Model::Logistic).bic - fits.get(Model::TwoLogistics).bic
        };
        t.fits.as_ref().map_or(f64::NAN, gain)
    }),
    ("midpoint_low", |t| t.interval[0]),
    ("midpoint_high", |t| t.interval[1]),
    ("bracket_low", |t| t.bracket[0]),
    ("bracket_high", |t| t.bracket[1]),
    ("abruptness", |t| t.abruptness),
    ("abruptness_low", |t| t.abruptness_interval[0]),
    ("abruptness_high", |t| t.abruptness_interval[1]),
    ("slope_ratio", |t| t.slope_ratio),
    ("n_points", |t| t.n_points as f64),
    ("log_y", |t| f64::from(u8::from(t.log_y))),
];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "fraction",
        unit: Unit::Probability,
        axes: &[],
        doc: "Share of the curves whose verdict is 1",
    },
    of_cell("verdict", Unit::Truth, "1: transition, 0: smooth, none, or too few points"),
    of_cell("midpoint", Unit::Steps, "Step at half of the change"),
    of_cell("onset", Unit::Steps, "Step at 10 % of the change"),
    of_cell("end", Unit::Steps, "Step at 90 % of the change"),
    of_cell("width_decades", Unit::Decades, "From onset to end"),
    of_cell("amplitude_fraction", Unit::Ratio, "Height of the logistic over the curve's range"),
    of_cell("dbic", Unit::Dimensionless, "BIC of the better of line and power law minus logistic"),
    of_cell("dbic_ar1", Unit::Dimensionless, "The same with AR(1) errors, constant included"),
    of_cell("two_step_dbic", Unit::Dimensionless, "BIC of one logistic minus two; > 10: two steps"),
    of_cell(
        "midpoint_low",
        Unit::Steps,
        "95 % block-bootstrap interval of the midpoint, lower end",
    ),
    of_cell("midpoint_high", Unit::Steps, "The same, upper end"),
    of_cell("bracket_low", Unit::Steps, "Last checkpoint before the midpoint"),
    of_cell("bracket_high", Unit::Steps, "First checkpoint at or after the midpoint"),
    of_cell("abruptness", Unit::Ratio, "Share of the change in a tenth of the x range; line: 0.1"),
    of_cell("abruptness_low", Unit::Ratio, "95 % interval around isotonic regression, lower end"),
    of_cell("abruptness_high", Unit::Ratio, "The same, upper end"),
    of_cell(
        "slope_ratio",
        Unit::Ratio,
        "Steepest slope between checkpoints over mean slope; line: 1",
    ),
    of_cell("n_points", Unit::Count, "Finite points used"),
    of_cell("log_y", Unit::Truth, "1 if ln y was fitted"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "verdicts",
    title: "Transition midpoints",
    kind: FigureKind::Intervals,
    metrics: &["midpoint", "onset", "end"],
    log_x: true,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_read_and_every_reading_declared() {
        let read: Vec<&str> = READ.iter().map(|(name, _)| *name).collect();
        let of_cells = METRICS.iter().filter(|metric| !metric.axes.is_empty());
        let declared: Vec<&str> = of_cells.map(|metric| metric.name).collect();
        assert_eq!(read, declared);
    }
}
