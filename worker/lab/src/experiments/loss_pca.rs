//! Joint principal components of the per-token losses of several models.
//!
//! # What it measures
//! Every checkpoint of every model of the sweep is one row: its losses of the same fixed tokens (`per-token-loss.loss_of_sample`, or
//! any other metric of equal length). Tokens that are missing anywhere are left out (`n_tokens` are left). All rows together
//! are centred and decomposed by the Gram trick (D10, D15): `evr` is the share of variance per component, `pc` `[member, component]`
//! the coordinates of each model's checkpoint (NaN where a model has none at that step); the loading of largest magnitude is positive.
//!
//! Phases of each model: `turn_angle` `[member]` at every step, the angle between the moves into and out of a checkpoint in the space
//! of the kept components, each over `span` checkpoints; `mean_loss` and its `curvature` over ln(step + 1), negative where the loss
//! is not convex. Where an angle, or minus the curvature, is larger than noise on a path that bends over a quarter of log
//! time or slowly makes it (p ≤ .05 for all checkpoints together), there is an event: `turn_step` and `bump_step` `[member, change]`
//! with the checkpoints next to it (`…_bracket_low`, `…_bracket_high`), a 95 % interval from noisy copies of the path (`…_low`,
//! `…_high`) and `…_p`. `turn_null_rate` and `bump_null_rate` are the shares of fresh null paths with an event, .05 by design. With
//! `events.json` and `basis.safetensors` (components, mean).
//!
//! # Interpretation
//! Olsson et al. see the path turn sharply where induction heads form, and the mean loss bulge; a one-layer model does neither. The
//! plane is the same for all models, so paths may be laid over each other. Checkpoints that are many in some part of training weigh
//! more there. Losses are comparable only for the same tokens: models with other tokenizers belong into a sweep of their own.
//!
//! # Source
//! Olsson et al. 2022, arXiv 2209.11895, per-token loss analysis; null control ours.

use serde::Serialize;
use sweep_lens::Tensor;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit},
    cohort::{Cohort, MemberSeries, REPORT},
    curve::corner::{Corner, Corners, Draws, Shape, corners},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    experiments::pca::basis_file,
    gram::{Rows, components},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct LossPca;

params! {
    /// Which losses, how many components, and how sure events are.
    pub struct Params {
        /// Metric whose cells are the tokens; `per-token-loss.loss_of_sample` for Olsson's vectors.
        metric: MetricName = MetricName::default();
        /// Components to keep; never more than rows less one.
        components: u64 = 3, min = 2.0, max = 64.0;
        /// Checkpoints that a move spans; null: a twentieth of the model's, at least one.
        span: Option<u64> = None, min = 1.0, max = 1000.0;
        /// Most events that are reported per model and kind.
        max_events: u64 = 4, min = 1.0, max = 100.0;
        /// Paths under the null; 0 finds no events.
        n_null: u64 = 200, max = 10_000.0;
        /// Noisy copies of the path behind each interval; 0 leaves them NaN.
        n_bootstrap: u64 = 200, max = 10_000.0;
        /// Seed of both.
        seed: u64 = 0;
    }
}

impl Experiment for LossPca {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "loss-pca",
        version: 2,
        summary: "Follows the per-token losses of several models in their joint principal components",
        source: "Olsson et al. 2022, arXiv 2209.11895, per-token loss analysis",
        stage: Stage::Joint(Scope::Sweep),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(vec![params.metric.0.clone()])
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let found = cohort.series(&params.metric.0)?;
        cohort.report(cx)?;
        let usable = |member: &&MemberSeries| {
            cohort.members[member.member].failure.is_none() && !member.series.points.is_empty()
        };
        let models: Vec<(&str, &MemberSeries)> = found
            .iter()
            .filter(usable)
            .map(|member| (cohort.members[member.member].label.as_str(), member))
            .collect();
        let mut losses = Losses::of(&models, &params.metric.0)?;
        let found = components(&mut losses, params.components as usize, u64::MAX)?;
        cx.metric("n_tokens", losses.n_tokens as f64)?;
        cx.metric("evr", Value::vector(found.explained_variance_ratio.clone()))?;
        let shapes = [("losses".to_owned(), vec![losses.n_tokens as i64])];
        cx.artifact("basis.safetensors", basis_file(&found, &shapes)?)?;
        let n_components = found.explained_variance_ratio.len();
        let mut paths = Vec::new();
        let mut first = 0;
        for (index, (label, member)) in models.iter().enumerate() {
            let steps: Vec<u64> = member.series.points.iter().map(|point| point.0).collect();
            let rows = first..first + steps.len();
            first = rows.end;
            let coordinate =
                |k: usize| found.coordinates[rows.clone()].iter().map(|row| row[k]).collect();
            let path = Path {
                label,
                coordinates: (0..n_components).map(coordinate).collect(),
                mean_loss: losses.means[rows.clone()].to_vec(),
                steps,
            };
            // A stream per model: events do not depend on which other models there are.
            let mut rng = random::stream(params.seed, &format!("loss-pca/{label}"));
            let events = path.events(&params, &mut rng);
            paths.push((path, events));
            cx.progress(index as u64 + 1, models.len() as u64)?;
        }
        courses(&paths, n_components, cx)?;
        for (place, kind) in ["turn", "bump"].into_iter().enumerate() {
            emit_events(kind, place, &paths, params.max_events as usize, cx)?;
        }
        let reports = paths.iter().flat_map(|(path, events)| path.reports(events));
        cx.json("events.json", &reports.collect::<Vec<_>>())
    }
}

/// Rows of losses, model by model, and their means.
struct Losses {
    rows: Vec<Tensor>,
    means: Vec<f64>,
    n_tokens: usize,
}

impl Losses {
    fn of(models: &[(&str, &MemberSeries)], metric: &str) -> Result<Self> {
        let all = || {
            models.iter().flat_map(|(label, member)| {
                member.series.points.iter().map(move |(step, value)| (*label, *step, &value.data))
            })
        };
        let Some((first, _, data)) = all().next() else {
            return Err(Error::Input(format!("no complete model has points of `{metric}`")));
        };
        let length = data.len();
        if let Some((label, step, data)) = all().find(|(_, _, data)| data.len() != length) {
            return Err(Error::Input(format!(
                "`{metric}` of `{label}` at step {step} has {} values, that of `{first}` {length}: \
                 joint components need the losses of the same tokens, give such models sweeps of their own",
                data.len()
            )));
        }
        let kept: Vec<usize> = (0..length)
            .filter(|&token| all().all(|(_, _, data)| data[token].is_finite()))
            .collect();
        let is_empty = |data: &[f64]| data.iter().all(|value| !value.is_finite());
        if let Some((label, step, _)) = all().find(|(_, _, data)| is_empty(data)) {
            return Err(Error::Input(format!(
                "`{metric}` of `{label}` has no value at step {step}: joint components need every checkpoint, \
                 give that model a sweep of its own or leave its later checkpoints out"
            )));
        }
        if kept.is_empty() {
            return Err(Error::Input(format!(
                "every value of `{metric}` is missing at some checkpoint of some model"
            )));
        }
        let rows: Vec<Vec<f64>> =
            all().map(|(_, _, data)| kept.iter().map(|&token| data[token]).collect()).collect();
        let n_tokens = kept.len();
        let means = rows.iter().map(|row| row.iter().sum::<f64>() / n_tokens as f64).collect();
        Ok(Self { rows: rows.iter().map(|row| Tensor::from_slice(row)).collect(), means, n_tokens })
    }
}

impl Rows for Losses {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn row(&mut self, index: usize) -> Result<Tensor> {
        Ok(self.rows[index].shallow_clone())
    }
}

/// One model.
struct Path<'a> {
    label: &'a str,
    steps: Vec<u64>,
    /// By component.
    coordinates: Vec<Vec<f64>>,
    mean_loss: Vec<f64>,
}

impl Path<'_> {
    /// Turns and bumps.
    fn events(&self, params: &Params, rng: &mut impl rand::Rng) -> [Corners; 2] {
        let x: Vec<f64> = self.steps.iter().map(|step| (*step as f64).ln_1p()).collect();
        let span = params.span.map_or(x.len() / 20, |span| span as usize).max(1);
        let draws =
            Draws { n_null: params.n_null as usize, n_bootstrap: params.n_bootstrap as usize };
        let turns = corners(Shape::Turn(span), &x, &self.coordinates, draws, rng);
        let loss = std::slice::from_ref(&self.mean_loss);
        [turns, corners(Shape::Bump(span), &x, loss, draws, rng)]
    }

    /// Step at a place between checkpoints.
    fn step(&self, at: f64) -> f64 {
        let place = at.round() as usize;
        if at.is_nan() { f64::NAN } else { self.steps[place.min(self.steps.len() - 1)] as f64 }
    }

    /// What is said about a corner: step, bracket, interval, p, size.
    fn read(&self, corner: &Corner) -> [f64; 7] {
        let at = corner.at as f64;
        [
            self.step(at),
            self.step(at - 1.0),
            self.step(at + 1.0),
            self.step(corner.interval[0]),
            self.step(corner.interval[1]),
            corner.p,
            corner.size,
        ]
    }

    fn reports<'a>(&'a self, events: &'a [Corners; 2]) -> impl Iterator<Item = Report<'a>> {
        ["turn", "bump"].into_iter().zip(events).flat_map(move |(kind, found)| {
            found.corners.iter().map(move |corner| {
                let [step, before, after, low, high, p, size] = self.read(corner);
                let (bracket, interval) = ([before, after], [low, high]);
                Report { model: self.label, kind, step, bracket, interval, p, size }
            })
        })
    }
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    kind: &'static str,
    step: f64,
    bracket: [f64; 2],
    interval: [f64; 2],
    p: f64,
    size: f64,
}

type Found<'a> = (Path<'a>, [Corners; 2]);

fn labels(paths: &[Found<'_>]) -> Vec<String> {
    paths.iter().map(|(path, _)| path.label.to_owned()).collect()
}

/// Values at every step that some model has.
fn courses(paths: &[Found<'_>], n_components: usize, cx: &mut Context<'_>) -> Result<()> {
    let mut steps: Vec<u64> = paths.iter().flat_map(|(path, _)| path.steps.clone()).collect();
    steps.sort_unstable();
    steps.dedup();
    for step in steps {
        let places: Vec<Option<usize>> =
            paths.iter().map(|(path, _)| path.steps.binary_search(&step).ok()).collect();
        let each = |read: &dyn Fn(&Found<'_>, usize) -> f64| {
            let value = |(found, at): (&Found<'_>, &Option<usize>)| {
                at.map_or(f64::NAN, |at| read(found, at))
            };
            paths.iter().zip(&places).map(value).collect::<Vec<f64>>()
        };
        let mut coordinates = vec![f64::NAN; paths.len() * n_components];
        for k in 0..n_components {
            let column = each(&|(path, _), at| path.coordinates[k][at]);
            for (row, value) in column.into_iter().enumerate() {
                coordinates[row * n_components + k] = value;
            }
        }
        let shape = vec![paths.len(), n_components];
        cx.metric_at(
            "pc",
            step,
            Value::array(shape, coordinates, vec![Some(labels(paths)), None]),
        )?;
        let mut emit = |name: &str, values: Vec<f64>| {
            let value = Value::array(vec![paths.len()], values, vec![Some(labels(paths))]);
            cx.metric_at(name, step, value)
        };
        emit("turn_angle", each(&|(_, events), at| events[0].statistic[at]))?;
        emit("mean_loss", each(&|(path, _), at| path.mean_loss[at]))?;
        emit("curvature", each(&|(_, events), at| -events[1].statistic[at]))?;
    }
    Ok(())
}

/// The columns of [`Path::read`].
const COLUMNS: [&str; 7] = ["step", "bracket_low", "bracket_high", "low", "high", "p", "size"];

/// Largest events first chosen, then in time order.
fn emit_events(
    kind: &str,
    place: usize,
    paths: &[Found<'_>],
    max_events: usize,
    cx: &mut Context<'_>,
) -> Result<()> {
    let chosen: Vec<Vec<[f64; 7]>> = paths
        .iter()
        .map(|(path, events)| {
            let mut of_kind: Vec<&Corner> = events[place].corners.iter().collect();
            of_kind.sort_by(|a, b| a.p.total_cmp(&b.p).then(b.size.total_cmp(&a.size)));
            of_kind.truncate(max_events);
            of_kind.sort_by_key(|corner| corner.at);
            of_kind.into_iter().map(|corner| path.read(corner)).collect()
        })
        .collect();
    for (column, name) in COLUMNS.into_iter().enumerate() {
        let value = |of_model: &Vec<[f64; 7]>| {
            let at = |event: usize| of_model.get(event).map_or(f64::NAN, |read| read[column]);
            (0..max_events).map(at).collect::<Vec<f64>>()
        };
        let data = chosen.iter().flat_map(value).collect();
        let shape = vec![paths.len(), max_events];
        cx.metric(
            &format!("{kind}_{name}"),
            Value::array(shape, data, vec![Some(labels(paths)), None]),
        )?;
    }
    let scalar = |read: &dyn Fn(&Corners) -> f64| {
        let data = paths.iter().map(|(_, events)| read(&events[place])).collect();
        Value::array(vec![paths.len()], data, vec![Some(labels(paths))])
    };
    cx.metric(&format!("n_{kind}s"), scalar(&|found| found.corners.len() as f64))?;
    cx.metric(&format!("{kind}_null_rate"), scalar(&|found| found.null_rate))
}

const fn member(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Member], doc }
}

const fn event(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Member, Axis::Change], doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    MetricDef {
        name: "n_tokens",
        unit: Unit::Count,
        axes: &[],
        doc: "Tokens with a loss at every checkpoint of every model",
    },
    MetricDef {
        name: "evr",
        unit: Unit::Ratio,
        axes: &[Axis::Component],
        doc: "Share of the variance over all checkpoints of all models that each component explains",
    },
    MetricDef {
        name: "pc",
        unit: Unit::Nats,
        axes: &[Axis::Member, Axis::Component],
        doc: "Coordinates of the model's checkpoint, in the unit of the metric",
    },
    member("turn_angle", Unit::Radians, "Angle between the moves into and out of the checkpoint"),
    member("mean_loss", Unit::Nats, "Mean over the tokens"),
    member("curvature", Unit::Nats, "Second derivative of the mean loss over ln(step + 1)"),
    event("turn_step", Unit::Steps, "Checkpoint at which the path turns"),
    event("turn_bracket_low", Unit::Steps, "The checkpoint before it"),
    event("turn_bracket_high", Unit::Steps, "The checkpoint after it"),
    event("turn_low", Unit::Steps, "95 % interval from noisy copies of the path, lower end"),
    event("turn_high", Unit::Steps, "The same, upper end"),
    event("turn_p", Unit::Probability, "Share of null paths with as large an excess anywhere"),
    event("turn_size", Unit::Radians, "Angle there"),
    member("n_turns", Unit::Count, "Turns that noise on a slowly bending path does not make"),
    member("turn_null_rate", Unit::Probability, "Null paths on which a turn is called"),
    event("bump_step", Unit::Steps, "Checkpoint at which the mean loss stops being convex"),
    event("bump_bracket_low", Unit::Steps, "The checkpoint before it"),
    event("bump_bracket_high", Unit::Steps, "The checkpoint after it"),
    event("bump_low", Unit::Steps, "95 % interval from noisy copies of the curve, lower end"),
    event("bump_high", Unit::Steps, "The same, upper end"),
    event("bump_p", Unit::Probability, "Share of null curves with as large an excess anywhere"),
    event("bump_size", Unit::Nats, "Minus the second derivative there"),
    member("n_bumps", Unit::Count, "Bumps that noise on a slowly bending curve does not make"),
    member("bump_null_rate", Unit::Probability, "Null curves on which a bump is called"),
];

const fn figure(
    name: &'static str,
    title: &'static str,
    kind: FigureKind,
    metrics: &'static [&'static str],
    log_x: bool,
) -> Figure {
    Figure { name, title, kind, metrics, log_x, log_y: false }
}

const FIGURES: &[Figure] = &[
    figure(
        "path",
        "Per-token losses in their joint principal components",
        FigureKind::Scatter,
        &["pc"],
        true,
    ),
    figure("turns", "Turn angle", FigureKind::Lines, &["turn_angle"], true),
    figure("loss", "Mean loss of the tokens", FigureKind::Lines, &["mean_loss"], true),
];

#[cfg(test)]
mod tests;
