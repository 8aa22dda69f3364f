//! Does a curve fall as a product of growing components would make it fall?
//!
//! # What it measures
//! For every cell of a falling metric, over plain steps: the fit of an exponential (one component), a power law, and the
//! S-curve of two components in balance, `c + A (1 - logistic((t - x0) / w))²` (D36). `daic` is the AIC of the better
//! rival minus that of the S-curve; `verdict` is 1 if it is above 10. `rate` is the growth rate of the product while it is small
//! (slope of ln s, with `rate_r2` for how exponential that growth is); two components predict `rate * width`, emitted
//! as `rate_width`, near 1 whatever the scale (.92 for the ideal curve, whose growth up to 30 % has begun to saturate). `t90 … t1`: first steps with 90, 50, 10 and 1 % of the fall left.
//! Curves of fewer than 8 points, or that do not fall, give NaN and verdict 0. For metrics that rise, set `rises`.
//!
//! # Interpretation
//! A plateau with a sudden end needs no special event: components multiply, so each waits for the others. A verdict of 0 with
//! a good exponential says that one component was learned on its own.
//!
//! # Source
//! Jermyn and Shlegeris 2022, "Multi-component learning and S-curves".

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_cell},
    curve::growth::Evidence,
    error::Result,
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    sink::Context,
    trajectory::TrajectoryInput,
    value::Value,
};

/// See the module documentation.
pub struct SCurveEvidence;

params! {
    /// Which curves.
    pub struct Params {
        /// Metric whose cells are looked at.
        metric: MetricName = MetricName::default();
        /// Whether the metric rises while something is learned, as a score does.
        rises: bool = false;
    }
}

impl Experiment for SCurveEvidence {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "s-curve-evidence",
        version: 1,
        summary: "Compares a metric's fall with that of a product of growing components",
        source: "Jermyn and Shlegeris 2022, Multi-component learning and S-curves",
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
        let steps: Vec<f64> = series.points.iter().map(|point| point.0 as f64).collect();
        let sign = if params.rises { -1.0 } else { 1.0 };
        let cells = series.cells();
        let mut found = Vec::with_capacity(cells.len());
        for (index, cell) in cells.iter().enumerate() {
            let finite = steps.iter().zip(&cell.values).filter(|(_, value)| value.is_finite());
            let (t, y): (Vec<f64>, Vec<f64>) = finite.map(|(&t, &y)| (t, sign * y)).unzip();
            found.push(Evidence::of(&t, &y));
            cx.progress(index as u64 + 1, cells.len() as u64)?;
        }
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        for (name, read) in READ {
            let values = found.iter().map(|evidence| evidence.as_ref().map_or(f64::NAN, read));
            cx.metric(name, Value::labelled(&labels, values.collect()))?;
        }
        let is_called = |evidence: &Option<Evidence>| {
            f64::from(u8::from(evidence.as_ref().is_some_and(|evidence| evidence.daic() > 10.0)))
        };
        cx.metric("verdict", Value::labelled(&labels, found.iter().map(is_called).collect()))
    }
}

type Read = fn(&Evidence) -> f64;

const READ: &[(&str, Read)] = &[
    ("aic_exponential", |e| e.exponential.aic),
    ("aic_power_law", |e| e.power_law.aic),
    ("aic_s_curve", |e| e.s_curve.aic),
    ("daic", Evidence::daic),
    ("midpoint", |e| e.s_curve.parameters[0]),
    ("width", |e| e.s_curve.parameters[1]),
    ("rate", |e| e.rate),
    ("rate_r2", |e| e.rate_r2),
    ("rate_width", |e| e.rate * e.s_curve.parameters[1]),
    ("t90", |e| e.t_left[0]),
    ("t50", |e| e.t_left[1]),
    ("t10", |e| e.t_left[2]),
    ("t1", |e| e.t_left[3]),
];

const METRICS: &[MetricDef] = &[
    of_cell("aic_exponential", Unit::Dimensionless, "AIC of the exponential, one component"),
    of_cell("aic_power_law", Unit::Dimensionless, "AIC of the power law"),
    of_cell("aic_s_curve", Unit::Dimensionless, "AIC of the S-curve, two components"),
    of_cell("daic", Unit::Dimensionless, "AIC of the better rival minus the S-curve's"),
    of_cell("midpoint", Unit::Steps, "Step at which the product has half its final size"),
    of_cell("width", Unit::Steps, "Steps in which the product grows by a factor e while small"),
    of_cell("rate", Unit::Dimensionless, "Growth of the small product per step"),
    of_cell("rate_r2", Unit::Ratio, "R squared of ln product against steps while it is small"),
    of_cell("rate_width", Unit::Ratio, "Rate times width; two components predict 1"),
    of_cell("t90", Unit::Steps, "First step with less than 90 % of the fall left"),
    of_cell("t50", Unit::Steps, "The same for 50 %"),
    of_cell("t10", Unit::Steps, "The same for 10 %"),
    of_cell("t1", Unit::Steps, "The same for 1 %"),
    of_cell("verdict", Unit::Truth, "1: falls as two components would, else 0"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "fall",
    title: "Times of the fall",
    kind: FigureKind::Lines,
    metrics: &["t90", "t50", "t10", "t1"],
    log_x: false,
    log_y: true,
}];
