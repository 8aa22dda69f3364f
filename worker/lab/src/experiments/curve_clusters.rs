//! Which curves of a metric have one shape, and does that shape jump?
//!
//! # What it measures
//! Every cell of a metric (a token, a head, a question …) is a curve over checkpoints. Curves are standardised over time (mean 0,
//! deviation 1), so that size does not matter and direction does; constant ones and those with gaps are left out (`n_left_out`). k-means
//! (`n_starts` runs from k-means++) divides them into `k` clusters, or into the number of 2 to `k_max` with the largest mean
//! silhouette (`silhouette_by_k`); with more than 1000 curves the silhouette is that of 1000 of them. Clusters are numbered in the
//! order in which their mean curves have half of their change behind them.
//!
//! `cluster` `[cell]` says where each curve belongs (NaN: left out). Per cluster: `size`, `cohesion` (mean correlation of a curve
//! with the mean curve), `mean_curve` at every step, and the sigmoid test of `phase-transition` on it: `verdict`, `midpoint`, `onset`, `end`,
//! `width_decades`, `midpoint_low` and `midpoint_high` (95 %, curves of the cluster resampled, of which it takes two; how finely checkpoints
//! lie is told by the bracket), `bracket_low` and `bracket_high`.
//!
//! Nulls: `silhouette_null` and `silhouette_null_high` are mean and 95 % quantile over `n_null` sets of curves drawn from one elliptic
//! cloud with the same main directions (Tyler's shape of the standardised curves; as many rise and fall as do), `silhouette_p` the share of
//! them with as large a silhouette (all on at most 300 curves, `silhouette_tested`). `silhouette_spread_null`, `_high` and `silhouette_spread_p` are
//! the same for curves of one shape, the mean of all around the place of a step of the same area, at places spread evenly over their range.
//! `verdict_null` of a cluster is the share of smooth curves (the better of line and power law through its mean, with the residuals
//! around a monotone curve resampled in blocks) that the test calls a transition.
//!
//! # Interpretation
//! k-means cuts a continuum into pieces as well. A small `silhouette_p` says that there is more than one elliptic cloud, which
//! groups are not, but neither are onsets spread evenly over training; a small `silhouette_spread_p` says that one shape at such onsets does
//! not explain it either. Only both together speak for groups. Curves of one
//! cluster may still have transitions at different steps, which makes their mean smoother than any of them; look at
//! `phase-transition` of the metric itself before calling a cluster gradual. Every checkpoint counts the same: many checkpoints in one part
//! of training make that part heavy.
//!
//! # Source
//! Arthur and Vassilvitskii 2007 (k-means++); Rousseeuw 1987 (silhouette); Tyler 1987 (shape); scikit-learn `KMeans`, `silhouette_score`.

use rand::Rng;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    curve::{
        cloud::Cloud,
        cluster::{Clustering, Distances, k_means, standardised},
        order::interval,
        spread::Spread,
        transition::{Options, Transition, half_change, quantile, smooth_copy},
    },
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::TrajectoryInput,
    value::Value,
};

/// See the module documentation.
pub struct CurveClusters;

params! {
    /// Which curves, and how many groups of them.
    pub struct Params {
        /// Metric whose cells are the curves.
        metric: MetricName = MetricName::default();
        /// Number of clusters; null: the one of 2 to `k_max` with the largest silhouette.
        k: Option<u64> = None, min = 1.0, max = 64.0;
        /// Most clusters that are tried.
        k_max: u64 = 8, min = 2.0, max = 64.0;
        /// Runs of k-means, of which the best counts.
        n_starts: u64 = 10, min = 1.0, max = 1000.0;
        /// Whether transitions are fitted over ln(step + 1) rather than the step.
        log_x: bool = true;
        /// Resamples of a cluster's curves behind each interval; 0 leaves them NaN.
        n_bootstrap: u64 = 100, max = 10_000.0;
        /// Draws behind each null; 0 leaves them NaN.
        n_null: u64 = 20, max = 10_000.0;
        /// Seed of starts, resamples and nulls.
        seed: u64 = 0;
    }
}

/// Curves that the silhouette is taken of, and those that it is tested with.
const SILHOUETTE_MAX: usize = 1000;
const TESTED_MAX: usize = 300;

impl Experiment for CurveClusters {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "curve-clusters",
        version: 3,
        summary: "Groups the curves of a metric by shape and tests each group for a transition",
        source: "Arthur and Vassilvitskii 2007; Rousseeuw 1987; scikit-learn KMeans",
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
        let shapes: Vec<Option<Vec<f64>>> =
            cells.iter().map(|cell| standardised(&cell.values)).collect();
        let curves: Vec<&[f64]> = shapes.iter().flatten().map(Vec::as_slice).collect();
        let wanted = params.k.map_or(2, |k| k as usize);
        if curves.len() < wanted {
            return Err(Error::Input(format!(
                "`{}` has {} curves that change, expected at least {wanted} to make clusters of",
                params.metric.0,
                curves.len()
            )));
        }
        let mut rng = random::stream(params.seed, "curve-clusters");
        let choice = Choice::make(&curves, &params, cx, &mut rng)?;
        let (names, tried): (Vec<String>, Vec<f64>) =
            choice.tried.iter().map(|(k, silhouette)| (k.to_string(), *silhouette)).unzip();
        cx.metric("silhouette_by_k", Value::labelled(names, tried))?;
        let clusters = choice.clustering.in_time_order();
        Test::make(&curves, &params, cx)?.emit(cx)?;
        cx.metric("n_clusters", clusters.centres.len() as f64)?;
        cx.metric("n_left_out", (cells.len() - curves.len()) as f64)?;
        let mut labels = clusters.labels.iter();
        let of_cell = |shape: &Option<Vec<f64>>| {
            shape.as_ref().and_then(|_| labels.next()).map_or(f64::NAN, |label| *label as f64)
        };
        let column: Vec<f64> = shapes.iter().map(of_cell).collect();
        cx.metric("cluster", Value::labelled(cells.iter().map(|cell| &cell.label), column))?;
        for (at, step) in steps.iter().enumerate() {
            let values = clusters.centres.iter().map(|centre| centre[at]).collect();
            cx.metric_at("mean_curve", *step, Value::vector(values))?;
        }
        let mut columns: Vec<Vec<f64>> = vec![Vec::new(); COLUMNS.len()];
        for cluster in 0..clusters.centres.len() {
            let of_cluster = clusters.labels.iter().zip(&curves);
            let own: Vec<&[f64]> = of_cluster
                .filter(|(label, _)| **label == cluster)
                .map(|(_, curve)| *curve)
                .collect();
            // A stream per cluster: its numbers do not depend on how many there are.
            let mut rng = random::stream(params.seed, &format!("curve-clusters/{cluster}"));
            let row = describe(&own, &clusters.centres[cluster], &steps, &params, &mut rng);
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
            cx.progress(cluster as u64 + 1, clusters.centres.len() as u64)?;
        }
        for (name, column) in COLUMNS.into_iter().zip(columns) {
            cx.metric(name, Value::vector(column))?;
        }
        Ok(())
    }
}

/// The clustering, and the silhouettes by which its number of clusters was chosen.
struct Choice {
    clustering: Clustering,
    tried: Vec<(usize, f64)>,
}

impl Choice {
    fn make(
        curves: &[&[f64]],
        params: &Params,
        cx: &mut Context<'_>,
        rng: &mut impl Rng,
    ) -> Result<Self> {
        let sample = sample(curves.len(), SILHOUETTE_MAX, rng);
        let distances = Distances::new(&sample.iter().map(|&i| curves[i]).collect::<Vec<_>>());
        let range = match params.k {
            Some(k) => k as usize..=k as usize,
            None => 2..=(params.k_max as usize).min(curves.len()),
        };
        let n_tried = range.clone().count() as u64;
        let mut best: Option<(Clustering, f64)> = None;
        let mut tried = Vec::new();
        for (done, k) in range.enumerate() {
            let found = k_means(curves, k, params.n_starts as usize, rng);
            let labels: Vec<usize> = sample.iter().map(|&i| found.labels[i]).collect();
            let silhouette = distances.silhouette(&labels, k);
            tried.push((k, silhouette));
            // Where the sample has only one cluster there is no silhouette, which any other beats.
            if best.as_ref().is_none_or(|(_, known)| silhouette > *known || known.is_nan()) {
                best = Some((found, silhouette));
            }
            cx.progress(done as u64 + 1, n_tried)?;
        }
        let (clustering, _) = best.expect("at least one number of clusters is tried");
        Ok(Self { clustering, tried })
    }
}

/// At most this many indices, in order.
fn sample(n: usize, most: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut chosen: Vec<usize> =
        random::permutation(rng, n).into_iter().take(most).map(|i| i as usize).collect();
    chosen.sort_unstable();
    chosen
}

impl Clustering {
    /// Clusters numbered by when half of their change is done.
    fn in_time_order(self) -> Self {
        let key = |cluster: &usize| half_change(&self.centres[*cluster]);
        let mut order: Vec<usize> = (0..self.centres.len()).collect();
        let size = |cluster: &usize| self.labels.iter().filter(|label| *label == cluster).count();
        order.sort_by(|a, b| key(a).total_cmp(&key(b)).then(size(b).cmp(&size(a))));
        let place = |label: &usize| order.iter().position(|known| known == label).unwrap_or(0);
        Self {
            labels: self.labels.iter().map(place).collect(),
            centres: order.iter().map(|&cluster| self.centres[cluster].clone()).collect(),
            inertia: self.inertia,
        }
    }
}

/// Are there groups at all?
struct Test {
    found: f64,
    /// Silhouettes of curves of one cloud.
    cloud: Vec<f64>,
    /// Silhouettes of curves of one shape.
    spread: Vec<f64>,
}

impl Test {
    fn make(curves: &[&[f64]], params: &Params, cx: &mut Context<'_>) -> Result<Self> {
        let mut rng = random::stream(params.seed, "curve-clusters/null");
        let chosen = sample(curves.len(), TESTED_MAX, &mut rng);
        let rows: Vec<&[f64]> = chosen.iter().map(|&i| curves[i]).collect();
        let range = match params.k {
            Some(k) => k as usize..=k as usize,
            None => 2..=(params.k_max as usize).min(rows.len()),
        };
        let found = largest_silhouette(&rows, &range, &mut rng);
        let (cloud, spread) = (Cloud::of(&rows, &mut rng), Spread::of(&rows));
        let mut null = [Vec::new(), Vec::new()];
        for done in 0..params.n_null {
            for (null, drawn) in null.iter_mut().zip([cloud.draw(&mut rng), spread.draw(&mut rng)])
            {
                let drawn: Vec<&[f64]> = drawn.iter().map(Vec::as_slice).collect();
                null.push(largest_silhouette(&drawn, &range, &mut rng));
            }
            cx.progress(done + 1, params.n_null)?;
        }
        for null in &mut null {
            null.sort_by(f64::total_cmp);
        }
        let [cloud, spread] = null;
        Ok(Self { found, cloud, spread })
    }

    fn emit(&self, cx: &mut Context<'_>) -> Result<()> {
        cx.metric("silhouette_tested", self.found)?;
        let names = [
            ["silhouette_null", "silhouette_null_high", "silhouette_p"],
            ["silhouette_spread_null", "silhouette_spread_null_high", "silhouette_spread_p"],
        ];
        for ([mean, high, p], null) in names.into_iter().zip([&self.cloud, &self.spread]) {
            let n = null.len() as f64;
            let as_large = null.iter().filter(|value| **value >= self.found).count() as f64;
            let is_tested = n > 0.0 && self.found.is_finite();
            cx.metric(mean, null.iter().sum::<f64>() / n)?;
            cx.metric(high, if is_tested { quantile(null, 0.95) } else { f64::NAN })?;
            cx.metric(p, if is_tested { (1.0 + as_large) / (1.0 + n) } else { f64::NAN })?;
        }
        Ok(())
    }
}

/// Over these numbers of clusters. Fewer starts than for the result: both sides of the test have the same.
fn largest_silhouette(
    rows: &[&[f64]],
    range: &std::ops::RangeInclusive<usize>,
    rng: &mut impl Rng,
) -> f64 {
    let distances = Distances::new(rows);
    let of = |k: usize| {
        let found = k_means(rows, k.min(rows.len()), 3, rng);
        distances.silhouette(&found.labels, k)
    };
    range.clone().map(of).fold(f64::NAN, f64::max)
}

/// The columns of [`describe`].
const COLUMNS: [&str; 12] = [
    "size",
    "cohesion",
    "verdict",
    "midpoint",
    "onset",
    "end",
    "width_decades",
    "midpoint_low",
    "midpoint_high",
    "bracket_low",
    "bracket_high",
    "verdict_null",
];

/// What is said about one cluster.
fn describe(
    own: &[&[f64]],
    centre: &[f64],
    steps: &[u64],
    params: &Params,
    rng: &mut impl Rng,
) -> [f64; 12] {
    let options = Options { log_x: params.log_x, log_y: Some(false), n_bootstrap: 0 };
    let test = |curve: &[f64], rng: &mut _| Transition::test(steps, curve, options, rng);
    let found = test(centre, rng);
    let midpoints = (0..params.n_bootstrap).map(|_| {
        let mut mean = vec![0.0; centre.len()];
        for _ in own {
            let curve = own[random::below(rng, own.len() as u64) as usize];
            mean.iter_mut().zip(curve).for_each(|(sum, value)| *sum += value / own.len() as f64);
        }
        found.midpoint_of(steps, &mean, params.log_x)
    });
    // One curve says nothing about others.
    let [low, high] = if own.len() > 1 { interval(midpoints.collect()) } else { [f64::NAN; 2] };
    let n_called = (0..params.n_null)
        .filter(|_| {
            let copy = smooth_copy(&found, steps, centre, params.log_x, rng);
            copy.is_some_and(|curve| test(&curve, rng).is_transition)
        })
        .count();
    let correlation = |curve: &&[f64]| {
        let norm = centre.iter().map(|value| value * value).sum::<f64>().sqrt();
        let product: f64 = curve.iter().zip(centre).map(|(a, b)| a * b).sum();
        product / (norm * (curve.len() as f64).sqrt())
    };
    [
        own.len() as f64,
        own.iter().map(correlation).sum::<f64>() / own.len() as f64,
        found.verdict(),
        found.midpoint,
        found.onset,
        found.end,
        found.width_decades,
        low,
        high,
        found.bracket[0],
        found.bracket[1],
        // 0 / 0 without draws, or without a curve to copy.
        if found.fits.is_some() { n_called as f64 / params.n_null as f64 } else { f64::NAN },
    ]
}

const fn of_cluster(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Cluster], doc }
}

const METRICS: &[MetricDef] = &[
    scalar("n_clusters", Unit::Count, "Clusters"),
    scalar("n_left_out", Unit::Count, "Curves that are constant or have gaps"),
    MetricDef {
        name: "silhouette_by_k",
        unit: Unit::Ratio,
        axes: &[Axis::ClusterCount],
        doc: "Mean silhouette for each number of clusters that was tried",
    },
    scalar("silhouette_tested", Unit::Ratio, "Largest silhouette of the curves in the test"),
    scalar("silhouette_null", Unit::Ratio, "Its mean for curves of one elliptic cloud"),
    scalar("silhouette_null_high", Unit::Ratio, "95 % quantile of the same"),
    scalar("silhouette_p", Unit::Probability, "Share of such clouds with as large a one"),
    scalar("silhouette_spread_null", Unit::Ratio, "Its mean for one shape at onsets spread evenly"),
    scalar("silhouette_spread_null_high", Unit::Ratio, "95 % quantile of the same"),
    scalar("silhouette_spread_p", Unit::Probability, "Share of such sets with as large a one"),
    MetricDef {
        name: "cluster",
        unit: Unit::Dimensionless,
        axes: &[Axis::Cell],
        doc: "Cluster of the curve, from 0; NaN if it was left out",
    },
    of_cluster("mean_curve", Unit::Dimensionless, "Mean of the standardised curves"),
    of_cluster("size", Unit::Count, "Curves in the cluster"),
    of_cluster("cohesion", Unit::Ratio, "Mean correlation of a curve with the mean curve"),
    of_cluster(
        "verdict",
        Unit::Truth,
        "1: the mean curve has a transition, 0: it has none, NaN: too few checkpoints",
    ),
    of_cluster("midpoint", Unit::Steps, "Midpoint of the logistic that fits the mean curve"),
    of_cluster("onset", Unit::Steps, "Step at 10 % of its change"),
    of_cluster("end", Unit::Steps, "Step at 90 % of its change"),
    of_cluster("width_decades", Unit::Decades, "From onset to end"),
    of_cluster("midpoint_low", Unit::Steps, "95 % interval over resampled curves, lower end"),
    of_cluster("midpoint_high", Unit::Steps, "The same, upper end"),
    of_cluster("bracket_low", Unit::Steps, "Last checkpoint before the midpoint"),
    of_cluster("bracket_high", Unit::Steps, "First checkpoint at or after the midpoint"),
    of_cluster("verdict_null", Unit::Probability, "Smooth copies of the mean curve with verdict 1"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "curves",
        title: "Mean curve of each cluster",
        kind: FigureKind::Lines,
        metrics: &["mean_curve"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "silhouette",
        title: "Silhouette by number of clusters",
        kind: FigureKind::Lines,
        metrics: &["silhouette_by_k"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests;
