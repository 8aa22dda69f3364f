//! When heads are born, when they die, and how long they live by a score.
//!
//! # What it measures
//! Per cell of a metric (a head): it lives from the first of `min_points` checkpoints in a row at which the score is at `threshold` or
//! above, until the first of `min_points` in a row below; shorter excursions count for nothing. `alive` `[cell]` at every step is 1
//! inside a life, `n_alive` their number. `birth` is the first checkpoint of the first life, `death` the first one behind the last
//! life (NaN for a cell that lives at the end, see `lives_at_end`); `…_bracket_low` is the checkpoint in front, between which and the one
//! reported the score crossed. `birth_low`, `birth_high`, `death_low`, `death_high` are 95 % intervals and `born_share` the share of copies with a life,
//! over copies of the curve with as much noise added as differences of neighbours show. `peak` is the largest score, `peak_step`
//! and `peak_bracket_low`, `peak_bracket_high` where. Checkpoints without a value are passed over. All lives are in `lives.json`.
//!
//! Null: `p_shuffled` is the share of all orders of the checkpoints in which the score crosses the threshold as rarely as it did, exactly
//! (Wald and Wolfowitz's runs test). A score that crosses it by noise has many such orders; so has one that is above it all the time:
//! neither was born in this training. Noise that remembers, a slow walk about the threshold, crosses it as rarely as a head that is
//! born: `phase-transition` on the same metric tells whether its rise is one of correlated noise.
//!
//! # Interpretation
//! A birth with a small `p_shuffled` and an interval not much wider than its bracket is an event; with heads by the hundreds,
//! divide the level by their number. A death near a rise of another head may be a role that moved. The threshold decides everything: choose
//! it from heads that are known.
//!
//! # Source
//! Nanda 2022, 200 Concrete Open Problems, 5.25; Wald and Wolfowitz 1940, doi 10.1214/aoms/1177731909 (runs).

use rand::Rng;
use serde::Serialize;

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_cell},
    curve::{corner::noise, order::interval},
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
pub struct HeadLifelines;

params! {
    /// Which score, and from when a head lives.
    pub struct Params {
        /// Metric whose cells are followed, such as `induction-heads.prefix_matching`.
        metric: MetricName = MetricName::default();
        /// Score from which a head lives.
        threshold: f64 = 0.3;
        /// Checkpoints in a row that make a life, or end it.
        min_points: u64 = 2, min = 1.0, max = 1000.0;
        /// Noisy copies behind each interval; 0 leaves them NaN.
        n_bootstrap: u64 = 200, max = 10_000.0;
        /// Seed of these.
        seed: u64 = 0;
    }
}

impl Experiment for HeadLifelines {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "head-lifelines",
        version: 2,
        summary: "Tells birth, death and peak of every head by a score that crosses a threshold",
        source: "Nanda 2022, 200 Concrete Open Problems, 5.25",
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
        let found = each_cell(&cells, cx, |(): &mut (), cell| {
            // A stream per cell: results do not depend on which other cells there are.
            let mut rng = random::stream(params.seed, &format!("head-lifelines/{}", cell.label));
            Lifeline::of(&steps, &cell.values, &params, &mut rng)
        })?;
        let labels: Vec<&str> = cells.iter().map(|cell| cell.label.as_str()).collect();
        for &step in &steps {
            let alive: Vec<f64> =
                found.iter().map(|line| f64::from(u8::from(line.is_alive(step)))).collect();
            cx.metric_at("n_alive", step, alive.iter().sum::<f64>())?;
            cx.metric_at("alive", step, Value::labelled(&labels, alive))?;
        }
        for (name, read) in READ {
            cx.metric(name, Value::labelled(&labels, found.iter().map(read).collect()))?;
        }
        let reports =
            labels.iter().zip(&found).map(|(cell, line)| Report { cell, lives: &line.lives });
        cx.json(
            "lives.json",
            &reports.filter(|report| !report.lives.is_empty()).collect::<Vec<_>>(),
        )
    }
}

/// One life, as indices of points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    birth: usize,
    /// First point behind it.
    death: Option<usize>,
}

/// All lives of a score.
fn spans(values: &[f64], threshold: f64, min_points: usize) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    let (mut run, mut is_above) = (0, false);
    for (at, value) in values.iter().enumerate() {
        let above = *value >= threshold;
        run = if above == is_above { run + 1 } else { 1 };
        is_above = above;
        if run < min_points {
            continue;
        }
        let start = at + 1 - run;
        let living = found.last_mut().filter(|last| last.death.is_none());
        match (living, above) {
            (Some(last), false) => last.death = Some(start),
            (None, true) => found.push(Span { birth: start, death: None }),
            (Some(_), true) | (None, false) => (),
        }
    }
    found
}

/// Share of the orders of these points with at most as many runs of equal ones (Wald and Wolfowitz 1940).
fn p_of_runs(above: &[bool]) -> f64 {
    let n_above = above.iter().filter(|above| **above).count();
    let n_below = above.len() - n_above;
    if n_above == 0 || n_below == 0 {
        return 1.0;
    }
    let n_runs = 1 + above.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let mut ln_factorials = vec![0.0];
    for k in 1..=above.len() {
        ln_factorials.push(ln_factorials[k - 1] + (k as f64).ln());
    }
    // k runs of n points: n - 1 gaps, k - 1 of them cut.
    let ln_choose = |n: usize, k: usize| ln_factorials[n] - ln_factorials[k] - ln_factorials[n - k];
    let ln_cuts = |n: usize, runs: usize| {
        if runs == 0 || runs > n { f64::NEG_INFINITY } else { ln_choose(n - 1, runs - 1) }
    };
    let all = ln_choose(above.len(), n_above);
    let share = |runs: usize| {
        let (more, less) = (runs.div_ceil(2), runs / 2);
        let ways = |a: usize, b: usize| (ln_cuts(n_above, a) + ln_cuts(n_below, b) - all).exp();
        ways(more, less) + ways(less, more)
    };
    // An even number of runs begins on either side with as many ways: the same sum twice.
    (2..=n_runs).map(share).sum::<f64>().min(1.0)
}

/// A life in steps.
#[derive(Debug, Clone, Copy, Serialize)]
struct Life {
    birth: u64,
    last_before_birth: Option<u64>,
    death: Option<u64>,
    last_alive: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    cell: &'a str,
    lives: &'a [Life],
}

struct Lifeline {
    lives: Vec<Life>,
    birth_interval: [f64; 2],
    death_interval: [f64; 2],
    born_share: f64,
    peak: f64,
    /// Step, and the steps next to it.
    peak_at: [f64; 3],
    p_shuffled: f64,
}

impl Lifeline {
    fn of(steps: &[u64], values: &[f64], params: &Params, rng: &mut impl Rng) -> Self {
        let finite = steps.iter().zip(values).filter(|(_, value)| value.is_finite());
        let (steps, values): (Vec<u64>, Vec<f64>) =
            finite.map(|(step, value)| (*step, *value)).unzip();
        let n = values.len();
        let lives_of = |values: &[f64]| spans(values, params.threshold, params.min_points as usize);
        let found = lives_of(&values);
        let step = |at: usize| steps.get(at).map_or(f64::NAN, |step| *step as f64);
        let x: Vec<f64> = steps.iter().map(|step| (*step as f64).ln_1p()).collect();
        let deviation = noise(&x, &values);
        let (mut births, mut deaths) = (Vec::new(), Vec::new());
        for _ in 0..params.n_bootstrap {
            let mut draw = |value: &f64| value + deviation * random::normal(rng);
            let copy = lives_of(&values.iter().map(&mut draw).collect::<Vec<f64>>());
            births.extend(copy.first().map(|span| step(span.birth)));
            deaths.extend(copy.last().and_then(|span| span.death).map(step));
        }
        let born_share = births.len() as f64 / params.n_bootstrap as f64;
        let peak = (0..n).max_by(|&a, &b| values[a].total_cmp(&values[b]));
        let beside = |at: Option<usize>| at.map_or(f64::NAN, step);
        Self {
            lives: found.iter().map(|span| Life::of(*span, &steps)).collect(),
            birth_interval: if found.is_empty() { [f64::NAN; 2] } else { interval(births) },
            death_interval: match found.last() {
                Some(Span { death: Some(_), .. }) => interval(deaths),
                _ => [f64::NAN; 2],
            },
            born_share,
            peak: peak.map_or(f64::NAN, |at| values[at]),
            peak_at: [
                beside(peak),
                beside(peak.and_then(|at| at.checked_sub(1))),
                beside(peak.map(|at| at + 1)),
            ],
            p_shuffled: if found.is_empty() {
                f64::NAN
            } else {
                p_of_runs(&values.iter().map(|v| *v >= params.threshold).collect::<Vec<bool>>())
            },
        }
    }

    fn is_alive(&self, step: u64) -> bool {
        let covers =
            |life: &Life| life.birth <= step && life.death.is_none_or(|death| step < death);
        self.lives.iter().any(covers)
    }

    fn last(&self) -> Option<&Life> {
        self.lives.last()
    }
}

impl Life {
    fn of(span: Span, steps: &[u64]) -> Self {
        Self {
            birth: steps[span.birth],
            last_before_birth: span.birth.checked_sub(1).map(|at| steps[at]),
            death: span.death.map(|at| steps[at]),
            last_alive: steps[span.death.unwrap_or(steps.len()) - 1],
        }
    }
}

fn step_or_nan(step: Option<u64>) -> f64 {
    step.map_or(f64::NAN, |step| step as f64)
}

type Read = fn(&Lifeline) -> f64;

const READ: [(&str, Read); 16] = [
    ("n_lives", |line| line.lives.len() as f64),
    ("lives_at_end", |line| f64::from(u8::from(line.last().is_some_and(|l| l.death.is_none())))),
    ("birth", |line| step_or_nan(line.lives.first().map(|life| life.birth))),
    ("birth_bracket_low", |line| {
        step_or_nan(line.lives.first().and_then(|life| life.last_before_birth))
    }),
    ("birth_low", |line| line.birth_interval[0]),
    ("birth_high", |line| line.birth_interval[1]),
    ("born_share", |line| line.born_share),
    ("death", |line| step_or_nan(line.last().and_then(|life| life.death))),
    ("death_bracket_low", |line| {
        step_or_nan(line.last().filter(|life| life.death.is_some()).map(|life| life.last_alive))
    }),
    ("death_low", |line| line.death_interval[0]),
    ("death_high", |line| line.death_interval[1]),
    ("peak", |line| line.peak),
    ("peak_step", |line| line.peak_at[0]),
    ("peak_bracket_low", |line| line.peak_at[1]),
    ("peak_bracket_high", |line| line.peak_at[2]),
    ("p_shuffled", |line| line.p_shuffled),
];

const METRICS: &[MetricDef] = &[
    of_cell("n_lives", Unit::Count, "Lives"),
    of_cell("lives_at_end", Unit::Truth, "1 if it lives at the last checkpoint, else 0"),
    of_cell("birth", Unit::Steps, "First checkpoint of the first life"),
    of_cell("birth_bracket_low", Unit::Steps, "The checkpoint in front of it"),
    of_cell("birth_low", Unit::Steps, "95 % interval from noisy copies of the curve, lower end"),
    of_cell("birth_high", Unit::Steps, "The same, upper end"),
    of_cell("born_share", Unit::Probability, "Noisy copies of the curve with a life"),
    of_cell(
        "death",
        Unit::Steps,
        "First checkpoint behind the last life; NaN if it lives at the end",
    ),
    of_cell("death_bracket_low", Unit::Steps, "Last checkpoint of that life"),
    of_cell("death_low", Unit::Steps, "95 % interval from noisy copies of the curve, lower end"),
    of_cell("death_high", Unit::Steps, "The same, upper end"),
    of_cell("peak", Unit::Dimensionless, "Largest score, in the metric's unit"),
    of_cell("peak_step", Unit::Steps, "Its checkpoint"),
    of_cell("peak_bracket_low", Unit::Steps, "The checkpoint before that one"),
    of_cell("peak_bracket_high", Unit::Steps, "The checkpoint after it"),
    of_cell(
        "p_shuffled",
        Unit::Probability,
        "Orders of the checkpoints in which the threshold is crossed as rarely",
    ),
    of_cell("alive", Unit::Truth, "1 inside a life, else 0"),
    MetricDef { name: "n_alive", unit: Unit::Count, axes: &[], doc: "Cells that live" },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "lifelines",
        title: "Lives of heads",
        kind: FigureKind::HeatMap,
        metrics: &["alive"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "alive",
        title: "Heads that live",
        kind: FigureKind::Lines,
        metrics: &["n_alive"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value as Json, json};
    use sweep_lens::Device;

    use super::*;
    use crate::{
        sink::MemorySink,
        trajectory::{Series, trajectory},
    };

    fn span(birth: usize, death: Option<usize>) -> Span {
        Span { birth, death }
    }

    #[test]
    fn lives_by_hand() {
        let lives = |values: &[f64], min_points| spans(values, 0.5, min_points);
        assert_eq!(lives(&[0., 1., 1., 0., 0., 1.], 1), [span(1, Some(3)), span(5, None)]);
        assert_eq!(lives(&[0., 1., 1., 0., 0., 1.], 2), [span(1, Some(3))]);
        // One point below does not end a life of two, nor does one above make one.
        assert_eq!(lives(&[1., 0., 1., 1., 0., 1., 1.], 2), [span(2, None)]);
        assert_eq!(lives(&[0.5, 0.5], 2), [span(0, None)], "at the threshold");
        assert_eq!(lives(&[0.0, 0.4], 1), []);
    }

    #[test]
    fn runs_are_counted_as_by_enumeration() {
        for n in 2..=12usize {
            let all: Vec<Vec<bool>> =
                (0..1u32 << n).map(|bits| (0..n).map(|i| bits >> i & 1 == 1).collect()).collect();
            let n_above = |points: &[bool]| points.iter().filter(|above| **above).count();
            let n_runs = |points: &[bool]| points.windows(2).filter(|p| p[0] != p[1]).count();
            for points in &all[..all.len() / 2] {
                let alike: Vec<&Vec<bool>> =
                    all.iter().filter(|other| n_above(other) == n_above(points)).collect();
                let as_few = alike.iter().filter(|other| n_runs(other) <= n_runs(points)).count();
                let expected = as_few as f64 / alike.len() as f64;
                assert!((p_of_runs(points) - expected).abs() < 1e-12, "{points:?}");
            }
        }
        // An early birth is as much an event as a late one.
        let born = |at: usize| (0..41).map(|t| t >= at).collect::<Vec<bool>>();
        assert!(p_of_runs(&born(4)) < 1e-4 && p_of_runs(&born(20)) < 1e-4);
    }

    fn run(columns: &[Vec<f64>]) -> MemorySink {
        let points = (0..columns[0].len()).map(|t| {
            (10 * t as u64, Value::vector(columns.iter().map(|column| column[t]).collect()))
        });
        let series = Series {
            unit: "ratio".to_owned(),
            axes: vec!["head".to_owned()],
            points: points.collect(),
        };
        let table = BTreeMap::from([("h.score".to_owned(), series)]);
        let input = TrajectoryInput { checkpoints: None, series: &table, device: Device::Cpu };
        let mut sink = MemorySink::default();
        trajectory(&HeadLifelines, &json!({ "metric": "h.score" }), input, &mut sink).unwrap();
        sink
    }

    #[test]
    fn born_passing_noisy_and_always_there() {
        let mut rng = random::stream(0, "head-lifelines/test");
        let mut error = || random::normal(&mut rng);
        let curve = |at: &dyn Fn(usize) -> f64, sd: f64, error: &mut dyn FnMut() -> f64| {
            (0..60).map(|t| at(t) + sd * error()).collect::<Vec<f64>>()
        };
        let step = |t: usize| if t >= 30 { 0.8 } else { 0.05 };
        let passing = |t: usize| if (20..35).contains(&t) { 0.7 } else { 0.05 };
        let columns = [
            curve(&step, 0.02, &mut error),
            curve(&passing, 0.02, &mut error),
            curve(&|_| 0.2, 0.15, &mut error),
            curve(&|_| 0.9, 0.02, &mut error),
            curve(&|_| 0.1, 0.02, &mut error),
        ];
        let sink = run(&columns);
        let last = |name: &str| sink.metrics[name].values().next_back().unwrap().data.clone();
        assert_eq!(last("birth")[..2], [300.0, 200.0]);
        assert_eq!(last("birth_bracket_low")[..2], [290.0, 190.0]);
        assert_eq!((last("birth_low")[0], last("birth_high")[0]), (300.0, 300.0));
        assert_eq!((last("death")[1], last("death_bracket_low")[1]), (350.0, 340.0));
        assert!(last("death")[0].is_nan() && last("lives_at_end")[0] == 1.0);
        let p = last("p_shuffled");
        assert!(p[0] < 0.01 && p[1] < 0.01, "{p:?}");
        assert!(p[2].is_nan() || p[2] > 0.05, "noise that crosses is no life: {p:?}");
        assert!(p[3] > 0.9 && last("birth")[3] == 0.0, "one that was always there was not born");
        assert!(p[4].is_nan() && last("birth")[4].is_nan() && last("born_share")[4] == 0.0);
        assert!(last("peak")[0] > 0.78 && last("peak_step")[1] >= 200.0);
        assert_eq!(
            sink.scalar("n_alive", 250),
            sink.metrics["alive"][&250].data.iter().sum::<f64>().into()
        );
        assert_eq!(sink.metrics["alive"][&250].data[..2], [0.0, 1.0]);
        let lives: Json = serde_json::from_slice(&sink.artifacts["lives.json"]).unwrap();
        assert_eq!(lives[1]["lives"][0]["last_alive"], 340);
    }

    #[test]
    fn noise_is_rarely_taken_for_a_life() {
        let mut rng = random::stream(1, "head-lifelines/null");
        let columns: Vec<Vec<f64>> = (0..200)
            .map(|_| (0..60).map(|_| 0.25 + 0.1 * random::normal(&mut rng)).collect())
            .collect();
        let sink = run(&columns);
        let p = &sink.metrics["p_shuffled"].values().next_back().unwrap().data;
        let called = p.iter().filter(|p| **p <= 0.05).count();
        assert!(called <= 19, "{called} of 200");
        assert!(p.iter().filter(|p| p.is_finite()).count() > 150);
    }

    #[test]
    fn missing_values_are_passed_over() {
        let mut column = vec![0.0; 30];
        column[15..].fill(1.0);
        column[14] = f64::NAN;
        column[20] = f64::NAN;
        let sink = run(&[column]);
        let last = |name: &str| sink.metrics[name].values().next_back().unwrap().data[0];
        assert_eq!(
            (last("birth"), last("birth_bracket_low"), last("n_lives")),
            (150.0, 130.0, 1.0)
        );
    }
}
