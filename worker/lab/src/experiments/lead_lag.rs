//! Which of two metrics of a model moves first?
//!
//! # What it measures
//! Increments of two metrics from checkpoint to checkpoint, over the checkpoints that both have. `correlation` `[cell, lag]` is that of the
//! increments of `leader` with those of `follower` so many checkpoints later, lags from `-max_lag` to `max_lag`; `lag` is the one of
//! largest magnitude (positive: the leader leads), `peak` its correlation, `lead_score` the squared correlations at positive lags
//! minus those at negative ones over their sum, in `[-1, 1]`. `…_low` and `…_high` are 95 % intervals from random weights of blocks (Bayesian bootstrap). `lag_steps` is the
//! lag in training steps, NaN where checkpoints are not evenly spaced. If both metrics have cells, those of one label are compared; a
//! metric of one number is compared with every cell of the other.
//!
//! Granger's test: `f_forward` compares the autoregression of the follower's increments with the one that knows the leader's past too,
//! `f_backward` the reverse; `order` is the one of lowest BIC up to `max_order`; `p_forward` and `p_backward` are those of the F
//! distribution. Null of everything: the follower's increments are moved in a circle. `p_shift` is the share of shifts with as large a
//! `peak` among the lags, never below (2 `max_lag` + 1) over the number of increments: as often do two bursts come that close by
//! chance. `peak_null_high` is its 95 % quantile, `p_forward_shift` and `p_backward_shift` are the same shares for F.
//!
//! # Interpretation
//! A training happens once: two metrics that change in the same stretch correlate, and what leads is not yet what causes. A
//! lag below one checkpoint shows as 0; take closer checkpoints. Increments of one burst are few points, so look at the interval
//! before the lag; where it covers 0 nobody leads. Repeat over seeds.
//!
//! # Source
//! Granger 1969; Rubin 1981 (Bayesian bootstrap); Olsson et al. 2022 (co-occurrence of induction heads and in-context learning); Nanda 2022, open problem 5.12.

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, of_cell},
    curve::lag::{
        Granger, Lags, MIN_INCREMENTS, Shifts, best_order, granger, increments, shift_test,
    },
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::{Series, TrajectoryInput},
    value::Value,
};

/// See the module documentation.
pub struct LeadLag;

params! {
    /// Which two metrics, and how far apart.
    pub struct Params {
        /// Metric that may come first.
        leader: MetricName = MetricName::default();
        /// Metric that may come second.
        follower: MetricName = MetricName::default();
        /// Largest lag, in checkpoints; never more than leaves eight increments.
        max_lag: u64 = 5, min = 1.0, max = 1000.0;
        /// Highest order of the autoregressions; never more than a sixth of the increments.
        max_order: u64 = 4, min = 1.0, max = 50.0;
        /// Resamples behind each interval; 0 leaves them NaN.
        n_bootstrap: u64 = 500, max = 10_000.0;
        /// Most circular shifts behind the nulls of F.
        n_shifts: u64 = 500, min = 1.0, max = 10_000.0;
        /// Seed of resamples and shifts.
        seed: u64 = 0;
    }
}

impl Experiment for LeadLag {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "lead-lag",
        version: 1,
        summary: "Tells which of two metrics moves first: lagged correlation of increments and Granger's test",
        source: "Granger 1969; Nanda 2022, open problem 5.12",
        stage: Stage::Trajectory,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(vec![params.leader.0.clone(), params.follower.0.clone()])
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let leader = input.series(&params.leader.0)?;
        let follower = input.series(&params.follower.0)?;
        let (steps, pairs) = pairs(leader, follower, &params)?;
        let n_increments = steps.len().saturating_sub(1);
        if n_increments < MIN_INCREMENTS {
            return Err(Error::Input(format!(
                "`{}` and `{}` have {} checkpoints in common, expected {} or more",
                params.leader.0,
                params.follower.0,
                steps.len(),
                MIN_INCREMENTS + 1
            )));
        }
        let max_lag = (params.max_lag as usize).min((n_increments - 8) / 2).max(1);
        let max_order = (params.max_order as usize).min(n_increments / 6).max(1);
        let mut rows = Vec::new();
        for (done, pair) in pairs.iter().enumerate() {
            // A stream per cell: results do not depend on which other cells there are.
            let mut rng = random::stream(params.seed, &format!("lead-lag/{}", pair.label));
            rows.push(Row::of(pair, max_lag, max_order, &params, &mut rng));
            cx.progress(done as u64 + 1, pairs.len() as u64)?;
        }
        let labels: Vec<&str> = pairs.iter().map(|pair| pair.label.as_str()).collect();
        let spacing = spacing(&steps);
        let steps_of = |row: &Row| row.found.lag * spacing;
        cx.metric("lag_steps", Value::labelled(&labels, rows.iter().map(steps_of).collect()))?;
        for (name, read) in READ {
            cx.metric(name, Value::labelled(&labels, rows.iter().map(read).collect()))?;
        }
        let data = rows.iter().flat_map(|row| row.found.correlation.iter().copied()).collect();
        let lags: Vec<String> =
            (0..=2 * max_lag).map(|at| (at as i64 - max_lag as i64).to_string()).collect();
        let cells = labels.iter().map(|&label| label.to_owned()).collect();
        let shape = vec![rows.len(), lags.len()];
        cx.metric("correlation", Value::array(shape, data, vec![Some(cells), Some(lags)]))
    }
}

/// Two curves over the same steps.
struct Pair {
    label: String,
    x: Vec<f64>,
    y: Vec<f64>,
}

/// Cells that belong together, over the steps where both metrics have all their values; without cells that never have one.
fn pairs(leader: &Series, follower: &Series, params: &Params) -> Result<(Vec<u64>, Vec<Pair>)> {
    let of = |series: &Series| -> Vec<u64> { series.points.iter().map(|point| point.0).collect() };
    let (first, second) = (of(leader), of(follower));
    let (x_cells, y_cells) = (leader.cells(), follower.cells());
    let mut labelled: Vec<(String, &[f64], &[f64])> = Vec::new();
    let is_scalar = |series: &Series| series.points.iter().all(|(_, v)| v.shape.is_empty());
    for x in &x_cells {
        for y in &y_cells {
            let label = if is_scalar(leader) { &y.label } else { &x.label };
            if x.label == y.label || is_scalar(leader) || is_scalar(follower) {
                labelled.push((label.clone(), &x.values, &y.values));
            }
        }
    }
    if labelled.is_empty() {
        return Err(Error::params(
            "follower",
            format!(
                "no cell of `{}` has the label of one of `{}`: compare metrics of the same axes, or of one number",
                params.follower.0, params.leader.0
            ),
        ));
    }
    let shared: Vec<(usize, usize)> = first
        .iter()
        .enumerate()
        .filter_map(|(at, step)| Some((at, second.binary_search(step).ok()?)))
        .collect();
    // A cell that never has a value, as the loss of a first token, says nothing about the others.
    labelled.retain(|(_, x, y)| shared.iter().any(|&(a, b)| x[a].is_finite() && y[b].is_finite()));
    if labelled.is_empty() {
        return Err(Error::Input(
            "no cell has a value of both metrics at one checkpoint".to_owned(),
        ));
    }
    let common: Vec<(usize, usize)> = shared
        .into_iter()
        .filter(|&(a, b)| labelled.iter().all(|(_, x, y)| x[a].is_finite() && y[b].is_finite()))
        .collect();
    let pairs = labelled.into_iter().map(|(label, x, y)| Pair {
        label,
        x: common.iter().map(|&(at, _)| x[at]).collect(),
        y: common.iter().map(|&(_, at)| y[at]).collect(),
    });
    Ok((common.iter().map(|&(at, _)| first[at]).collect(), pairs.collect()))
}

/// Steps from one checkpoint to the next; NaN if they differ.
fn spacing(steps: &[u64]) -> f64 {
    let mut gaps = steps.windows(2).map(|pair| pair[1] - pair[0]);
    let Some(first) = gaps.next() else { return f64::NAN };
    if gaps.all(|gap| gap == first) { first as f64 } else { f64::NAN }
}

struct Row {
    found: Lags,
    /// Of lag, peak, lead score.
    intervals: [[f64; 2]; 3],
    /// p and 95 % quantile of the peak.
    shift: [f64; 2],
    order: usize,
    forward: Granger,
    backward: Granger,
    forward_shift: f64,
    backward_shift: f64,
}

impl Row {
    fn of(
        pair: &Pair,
        max_lag: usize,
        max_order: usize,
        params: &Params,
        rng: &mut impl rand::Rng,
    ) -> Self {
        let (x, y) = (increments(&pair.x), increments(&pair.y));
        let found = Lags::of(&x, &y, max_lag);
        let order = best_order(&x, &y, max_order);
        let (forward, backward) = (granger(&x, &y, order), granger(&y, &x, order));
        let shifts = Shifts::of(&y, params.n_shifts as usize, rng);
        Self {
            intervals: Lags::intervals(&x, &y, max_lag, params.n_bootstrap as usize, rng),
            shift: shift_test(&x, &y, max_lag),
            forward_shift: shifts.p(forward.f, |y| granger(&x, y, order).f),
            backward_shift: shifts.p(backward.f, |y| granger(y, &x, order).f),
            found,
            order,
            forward,
            backward,
        }
    }
}

type Read = fn(&Row) -> f64;

const READ: [(&str, Read); 18] = [
    ("lag", |row| row.found.lag),
    ("lag_low", |row| row.intervals[0][0]),
    ("lag_high", |row| row.intervals[0][1]),
    ("peak", |row| row.found.peak),
    ("peak_low", |row| row.intervals[1][0]),
    ("peak_high", |row| row.intervals[1][1]),
    ("p_shift", |row| row.shift[0]),
    ("peak_null_high", |row| row.shift[1]),
    ("lead_score", |row| row.found.lead_score),
    ("lead_score_low", |row| row.intervals[2][0]),
    ("lead_score_high", |row| row.intervals[2][1]),
    ("order", |row| row.order as f64),
    ("f_forward", |row| row.forward.f),
    ("p_forward", |row| row.forward.p),
    ("p_forward_shift", |row| row.forward_shift),
    ("f_backward", |row| row.backward.f),
    ("p_backward", |row| row.backward.p),
    ("p_backward_shift", |row| row.backward_shift),
];

const METRICS: &[MetricDef] = &[
    of_cell("lag", Unit::Count, "Checkpoints by which the leader leads; negative: it lags"),
    of_cell("lag_low", Unit::Count, "95 % bootstrap interval of it, lower end"),
    of_cell("lag_high", Unit::Count, "The same, upper end"),
    of_cell("lag_steps", Unit::Steps, "The lag in steps; NaN for uneven checkpoints"),
    of_cell("peak", Unit::Ratio, "Correlation of increments at that lag"),
    of_cell("peak_low", Unit::Ratio, "95 % bootstrap interval of the largest, lower end"),
    of_cell("peak_high", Unit::Ratio, "The same, upper end"),
    of_cell("p_shift", Unit::Probability, "Share of circular shifts with as large a peak"),
    of_cell("peak_null_high", Unit::Ratio, "95 % quantile of the peak's magnitude over the shifts"),
    of_cell("lead_score", Unit::Ratio, "Squared correlations with the leader first minus last"),
    of_cell("lead_score_low", Unit::Ratio, "95 % bootstrap interval of it, lower end"),
    of_cell("lead_score_high", Unit::Ratio, "The same, upper end"),
    of_cell("order", Unit::Count, "Order of the autoregressions, by BIC"),
    of_cell("f_forward", Unit::Dimensionless, "F of the leader's past for the follower"),
    of_cell("p_forward", Unit::Probability, "Its p by the F distribution"),
    of_cell("p_forward_shift", Unit::Probability, "Share of circular shifts with as large an F"),
    of_cell("f_backward", Unit::Dimensionless, "F of the follower's past for the leader"),
    of_cell("p_backward", Unit::Probability, "Its p by the F distribution"),
    of_cell("p_backward_shift", Unit::Probability, "Share of circular shifts with as large an F"),
    MetricDef {
        name: "correlation",
        unit: Unit::Ratio,
        axes: &[Axis::Cell, Axis::Lag],
        doc: "Correlation of the leader's increments with the follower's so many checkpoints later",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "lag",
        title: "Lead of one metric over the other",
        kind: FigureKind::Intervals,
        metrics: &["lag", "lag_low", "lag_high"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "correlation",
        title: "Correlation of increments by lag",
        kind: FigureKind::HeatMap,
        metrics: &["correlation"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use sweep_lens::Device;

    use super::*;
    use crate::{Class, curve::fit::logistic, sink::MemorySink, trajectory::trajectory};

    fn series(axes: &[&str], points: Vec<(u64, Value)>) -> Series {
        let axes = axes.iter().map(|&axis| axis.to_owned()).collect();
        Series { unit: "ratio".to_owned(), axes, points }
    }

    fn run(leader: Series, follower: Series) -> Result<MemorySink> {
        let table = BTreeMap::from([("a.x".to_owned(), leader), ("a.y".to_owned(), follower)]);
        let input = TrajectoryInput { checkpoints: None, series: &table, device: Device::Cpu };
        let mut sink = MemorySink::default();
        let params = json!({ "leader": "a.x", "follower": "a.y", "n_bootstrap": 100 });
        trajectory(&LeadLag, &params, input, &mut sink)?;
        Ok(sink)
    }

    fn last(sink: &MemorySink, name: &str) -> Vec<f64> {
        sink.metrics[name].values().next_back().unwrap().data.clone()
    }

    fn noise(seed: u64) -> impl FnMut() -> f64 {
        let mut rng = random::stream(seed, "lead-lag/test");
        move || random::normal(&mut rng)
    }

    /// A curve that rises at the 40th of 80 checkpoints, or falls some checkpoints later.
    fn burst(later: f64, sign: f64, seed: u64) -> Vec<f64> {
        let mut noise = noise(seed);
        (0..80)
            .map(|t| sign * logistic(f64::from(t), 40.0 + later, 1.5) + 0.002 * noise())
            .collect()
    }

    fn scalars(values: &[f64]) -> Series {
        let points = values.iter().enumerate();
        series(&[], points.map(|(at, value)| (25 * at as u64, Value::scalar(*value))).collect())
    }

    #[test]
    fn the_earlier_burst_leads() {
        let sink = run(scalars(&burst(0.0, 1.0, 1)), scalars(&burst(4.0, -1.0, 2))).unwrap();
        let value = |name: &str| last(&sink, name)[0];
        assert_eq!((value("lag"), value("lag_steps")), (4.0, 100.0));
        let interval = [value("lag_low"), value("lag_high")];
        assert!(interval[0] >= 3.0 && interval[1] <= 5.0, "{interval:?}");
        assert!(value("peak") < -0.9 && value("lead_score") > 0.8);
        // 79 increments, eleven lags.
        assert!((value("p_shift") - 11.0 / 79.0).abs() < 0.02, "{}", value("p_shift"));
        assert!(value("p_forward") < 1e-4 && value("p_forward_shift") < 0.06);
        let correlation = &sink.metrics["correlation"][&1975];
        assert_eq!(correlation.shape, [1, 11]);
        assert_eq!(correlation.labels[1].as_ref().unwrap()[0], "-5");
        let same = run(scalars(&burst(0.0, 1.0, 1)), scalars(&burst(0.0, 1.0, 3))).unwrap();
        assert_eq!(last(&same, "lag"), [0.0]);
    }

    #[test]
    fn cells_of_one_label_are_compared() {
        let heads = |later: f64| {
            let columns = [burst(later, 1.0, 5), burst(2.0 * later, 1.0, 6)];
            let value = |t: usize| Value::vector(columns.iter().map(|c| c[t]).collect());
            series(&["head"], (0..80).map(|t| (25 * t as u64, value(t))).collect())
        };
        let sink = run(heads(0.0), heads(2.0)).unwrap();
        assert_eq!(last(&sink, "lag"), [2.0, 4.0]);
        assert_eq!(sink.metrics["lag"][&1975].labels[0].as_ref().unwrap(), &["head=0", "head=1"]);
        let sink = run(scalars(&burst(0.0, 1.0, 1)), heads(2.0)).unwrap();
        assert_eq!(last(&sink, "lag"), [2.0, 4.0]);
        let mut other = heads(0.0);
        other.axes = vec!["layer".to_owned()];
        let error = run(heads(0.0), other).unwrap_err();
        assert_eq!(error.class(), Class::Params);
        assert!(error.to_string().contains("no cell"), "{error}");
    }

    #[test]
    fn a_cell_without_values_leaves_the_others_their_steps() {
        let curves = [vec![f64::NAN; 80], burst(0.0, 1.0, 1), burst(3.0, 1.0, 2)];
        let points = (0..80usize).map(|t| {
            let data = curves.iter().map(|curve| curve[t]).collect();
            (t as u64 * 25, Value::array(vec![3], data, vec![None]))
        });
        let follower = series(&["position"], points.collect());
        let sink = run(scalars(&burst(0.0, 1.0, 3)), follower).unwrap();
        assert_eq!(last(&sink, "lag"), [0.0, 3.0]);
    }

    #[test]
    fn what_is_missing() {
        let error = run(scalars(&[1.0; 8]), scalars(&burst(0.0, 1.0, 1))).unwrap_err();
        assert!(error.to_string().contains("8 checkpoints in common, expected 11"), "{error}");
        // Uneven checkpoints have no lag in steps.
        let uneven = |later| {
            let mut all = scalars(&burst(later, 1.0, 1));
            all.points.iter_mut().for_each(|point| point.0 += point.0 * point.0);
            all
        };
        let sink = run(uneven(0.0), uneven(4.0)).unwrap();
        assert!(last(&sink, "lag_steps")[0].is_nan() && last(&sink, "lag") == [4.0]);
    }
}
