//! How much of a metric is the seed's doing?
//!
//! # What it measures
//! The last value of a metric in every model of one entry. Its *items* are the metric's cells (tasks, digits, heads, …) at every
//! grid point, its *raters* the seeds. One-way random effects: with k seeds, MSB the mean square between items and MSW the
//! one within (between seeds of one item), `icc` = (MSB - MSW) / (MSB + (k - 1) MSW): the share of variance that items explain;
//! `icc_low` and `icc_high` are a 95 % interval over seeds for these items: the jackknife of atanh(icc), each seed left out once,
//! with Student's quantile; it takes three seeds. `mean` `[cell]` and `seed_sd` `[cell]`: mean and standard
//! deviation over seeds of each item; `variance_seed` = MSW and `variance_item` = (MSB - MSW) / k, which can come out
//! negative for noise. Items that are not finite in some model are left out; models whose training failed are left
//! out and named in `members.json`.
//!
//! # Interpretation
//! An ICC near 1: which item it is decides, seeds agree. Near 0 or below: the seed decides. One item, or one seed, gives no
//! ICC (NaN).
//!
//! # Source
//! Shrout and Fleiss 1979, ICC(1,1); Tukey 1958 (pseudo-values); Tigges et al. 2024, arXiv 2407.10827 (components differ over seeds, algorithms agree).

use std::collections::BTreeMap;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit, scalar},
    cohort::{Cohort, REPORT},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{MetricName, ParamSet, params},
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct SeedVariance;

params! {
    /// Of what.
    pub struct Params {
        /// Full name of the metric, `experiment.metric`.
        metric: MetricName = MetricName::default();
    }
}

impl Experiment for SeedVariance {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "seed-variance",
        version: 2,
        summary: "Splits the variance of a metric into that between items and that between seeds",
        source: "Shrout and Fleiss 1979, ICC(1,1)",
        stage: Stage::Joint(Scope::Entry),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, params: &Params) -> Inputs {
        Inputs::Series(vec![params.metric.0.clone()])
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let name = &params.metric.0;
        let found = cohort.series(name)?;
        if found.iter().any(|member| member.partner.is_some()) {
            let problem = format!("`{name}` is of pairs of models, which have no seed");
            return Err(Error::params("metric", problem));
        }
        cohort.report(cx)?;
        // Grid point and cell → seed → last value.
        let mut items: BTreeMap<(usize, String), BTreeMap<u64, f64>> = BTreeMap::new();
        let mut points: Vec<String> = Vec::new();
        for (done, member) in found.iter().enumerate() {
            cx.progress(done as u64, found.len() as u64)?;
            let of = &cohort.members[member.member];
            let (Some(seed), None) = (of.seed, &of.failure) else { continue };
            let point = of.point();
            let place = points.iter().position(|known| *known == point).unwrap_or_else(|| {
                points.push(point);
                points.len() - 1
            });
            for cell in member.series.cells() {
                let last = cell.values.last().copied().unwrap_or(f64::NAN);
                items.entry((place, cell.label)).or_default().insert(seed, last);
            }
        }
        let table = Table::of(items, &points);
        table.emit(cx)
    }
}

/// Items × seeds, without holes.
struct Table {
    labels: Vec<String>,
    /// One row per item, one column per seed.
    rows: Vec<Vec<f64>>,
    n_seeds: usize,
}

impl Table {
    /// Keeps the seeds that every item has, and of these the items that are finite in all.
    fn of(items: BTreeMap<(usize, String), BTreeMap<u64, f64>>, points: &[String]) -> Self {
        let mut seeds: Vec<u64> = items.values().flat_map(|item| item.keys().copied()).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let full: Vec<u64> = seeds
            .into_iter()
            .filter(|seed| items.values().all(|item| item.contains_key(seed)))
            .collect();
        let mut table = Self { labels: Vec::new(), rows: Vec::new(), n_seeds: full.len() };
        for ((point, cell), values) in items {
            let row: Vec<f64> = full.iter().map(|seed| values[seed]).collect();
            if row.iter().all(|value| value.is_finite()) {
                let parts = [points[point].as_str(), cell.as_str()];
                let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                table.labels.push(parts.join(","));
                table.rows.push(row);
            }
        }
        table
    }

    /// 95 % interval of the ICC over seeds; NaN for fewer than three.
    fn interval(&self) -> [f64; 2] {
        let k = self.n_seeds;
        if k < 3 {
            return [f64::NAN; 2];
        }
        // Fisher's scale has no ends that an interval could cross.
        let without = |left_out: Option<usize>| {
            let sample: Vec<usize> = (0..k).filter(|seed| Some(*seed) != left_out).collect();
            let icc = Variances::of(&self.rows, &sample).icc();
            icc.clamp(-1.0 + 1e-12, 1.0 - 1e-12).atanh()
        };
        let (all, n) = (without(None), k as f64);
        let pseudo: Vec<f64> =
            (0..k).map(|seed| n * all - (n - 1.0) * without(Some(seed))).collect();
        let centre = pseudo.iter().sum::<f64>() / n;
        let squares: f64 = pseudo.iter().map(|value| (value - centre).powi(2)).sum();
        let half = student_975(n - 1.0) * (squares / (n * (n - 1.0))).sqrt();
        [(all - half).tanh(), (all + half).tanh()]
    }

    fn emit(&self, cx: &mut Context<'_>) -> Result<()> {
        let all: Vec<usize> = (0..self.n_seeds).collect();
        let variances = Variances::of(&self.rows, &all);
        let [low, high] = self.interval();
        cx.metric("icc", variances.icc())?;
        cx.metric("icc_low", low)?;
        cx.metric("icc_high", high)?;
        cx.metric("variance_seed", variances.within)?;
        cx.metric("variance_item", variances.item())?;
        cx.metric("n_seeds", self.n_seeds as f64)?;
        let mean = |row: &Vec<f64>| row.iter().sum::<f64>() / row.len() as f64;
        let deviation = |row: &Vec<f64>| {
            let mean = mean(row);
            let squares: f64 = row.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (row.len() as f64 - 1.0)).sqrt()
        };
        let rows = self.rows.iter();
        cx.metric("mean", Value::labelled(&self.labels, rows.clone().map(mean).collect()))?;
        cx.metric("seed_sd", Value::labelled(&self.labels, rows.map(deviation).collect()))
    }
}

/// The .975 quantile of Student's t, by the expansion about the normal one (Abramowitz and Stegun 26.7.5): .8 % too small for
/// two degrees of freedom, .1 % for three.
fn student_975(degrees: f64) -> f64 {
    const Z: f64 = 1.959_963_984_540_054;
    let power = |exponent: i32| Z.powi(exponent);
    let terms = [
        Z,
        (power(3) + Z) / 4.0,
        (5.0 * power(5) + 16.0 * power(3) + 3.0 * Z) / 96.0,
        (3.0 * power(7) + 19.0 * power(5) + 17.0 * power(3) - 15.0 * Z) / 384.0,
        (79.0 * power(9) + 776.0 * power(7) + 1482.0 * power(5) - 1920.0 * power(3) - 945.0 * Z)
            / 92160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| sum / degrees + term)
}

/// Mean squares of a one-way layout.
struct Variances {
    between: f64,
    within: f64,
    n_seeds: f64,
}

impl Variances {
    /// Of the columns `sample` of `rows`.
    fn of(rows: &[Vec<f64>], sample: &[usize]) -> Self {
        let (n, k) = (rows.len() as f64, sample.len() as f64);
        let mean = |row: &Vec<f64>| sample.iter().map(|&seed| row[seed]).sum::<f64>() / k;
        let means: Vec<f64> = rows.iter().map(mean).collect();
        let grand = means.iter().sum::<f64>() / n;
        let between: f64 = means.iter().map(|mean| (mean - grand).powi(2)).sum();
        let within = rows
            .iter()
            .zip(&means)
            .map(|(row, mean)| sample.iter().map(|&seed| (row[seed] - mean).powi(2)).sum::<f64>());
        // With one item, or one seed, there is nothing to compare: 0 / 0.
        Self {
            between: k * between / (n - 1.0),
            within: within.sum::<f64>() / (n * (k - 1.0)),
            n_seeds: k,
        }
    }

    fn icc(&self) -> f64 {
        (self.between - self.within) / (self.between + (self.n_seeds - 1.0) * self.within)
    }

    fn item(&self) -> f64 {
        (self.between - self.within) / self.n_seeds
    }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    scalar("icc", Unit::Ratio, "Share of the variance that items explain, ICC(1,1)"),
    scalar("icc_low", Unit::Ratio, "Lower end of its 95 % interval over seeds"),
    scalar("icc_high", Unit::Ratio, "Upper end of that interval"),
    scalar("variance_seed", Unit::Dimensionless, "Mean square between seeds of one item"),
    scalar("variance_item", Unit::Dimensionless, "Variance component of items"),
    scalar("n_seeds", Unit::Count, "Seeds that have a value of every item"),
    MetricDef {
        name: "mean",
        unit: Unit::Dimensionless,
        axes: &[Axis::Cell],
        doc: "Mean over seeds of each item, in the metric's unit",
    },
    MetricDef {
        name: "seed_sd",
        unit: Unit::Dimensionless,
        axes: &[Axis::Cell],
        doc: "Standard deviation over seeds of each item, in the metric's unit",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "items",
    title: "Mean and spread over seeds",
    kind: FigureKind::Lines,
    metrics: &["mean", "seed_sd"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{self, normal};

    /// The six subjects and four judges of Shrout and Fleiss 1979, table 2: ICC(1,1) = .17, MSB = 11.24, MSW = 6.26.
    const SHROUT_FLEISS: [[f64; 4]; 6] = [
        [9.0, 2.0, 5.0, 8.0],
        [6.0, 1.0, 3.0, 2.0],
        [8.0, 4.0, 6.0, 8.0],
        [7.0, 1.0, 2.0, 6.0],
        [10.0, 5.0, 6.0, 9.0],
        [6.0, 2.0, 4.0, 7.0],
    ];

    #[test]
    fn the_published_example() {
        let rows: Vec<Vec<f64>> = SHROUT_FLEISS.iter().map(|row| row.to_vec()).collect();
        let found = Variances::of(&rows, &[0, 1, 2, 3]);
        assert!((found.between - 11.241_666_666_666_667).abs() < 1e-12);
        assert!((found.within - 6.263_888_888_888_889).abs() < 1e-12);
        assert!((found.icc() - 0.165_741_8).abs() < 1e-6);
    }

    #[test]
    fn students_quantiles() {
        for (degrees, expected) in [(3.0, 3.182_446), (5.0, 2.570_582), (30.0, 2.042_272)] {
            assert!((student_975(degrees) / expected - 1.0).abs() < 2e-3, "{degrees}");
        }
        assert!((student_975(2.0) / 4.302_653 - 1.0).abs() < 8e-3);
    }

    /// Four seeds of items whose true ICC is known: the interval covers it about as often as it says.
    #[test]
    fn intervals_cover() {
        let mut rng = random::stream(7, "seed-variance/test");
        // Variance 1 between items, 3/7 between seeds.
        let items: Vec<f64> = (0..20).map(|i| (f64::from(i) - 9.5) / 35f64.sqrt()).collect();
        let mut covered = 0;
        for _ in 0..400 {
            let rows = items
                .iter()
                .map(|item| {
                    (0..4).map(|_| item + (3.0f64 / 7.0).sqrt() * normal(&mut rng)).collect()
                })
                .collect();
            let table = Table { labels: Vec::new(), rows, n_seeds: 4 };
            let [low, high] = table.interval();
            covered += usize::from(low <= 0.7 && 0.7 <= high);
        }
        assert!((360..=398).contains(&covered), "{covered} of 400");
        let pair = Table { labels: Vec::new(), rows: vec![vec![1.0, 2.0]; 3], n_seeds: 2 };
        assert!(pair.interval().iter().all(|end| end.is_nan()), "two seeds");
    }

    #[test]
    fn agreement_and_noise_are_told_apart() {
        let agree: Vec<Vec<f64>> = (0..5).map(|i| vec![f64::from(i); 3]).collect();
        assert_eq!(Variances::of(&agree, &[0, 1, 2]).icc(), 1.0);
        let noise: Vec<Vec<f64>> = (0..5).map(|_| vec![1.0, 2.0, 3.0]).collect();
        assert!(Variances::of(&noise, &[0, 1, 2]).icc() < 0.0);
        assert!(Variances::of(&noise[..1], &[0, 1, 2]).icc().is_nan(), "one item");
        assert!(Variances::of(&agree, &[0]).icc().is_nan(), "one seed");
    }

    #[test]
    fn holes_are_left_out() {
        let item = |values: &[(u64, f64)]| values.iter().copied().collect::<BTreeMap<u64, f64>>();
        let points = vec!["lr=1".to_owned()];
        let items = BTreeMap::from([
            ((0, "head=0".to_owned()), item(&[(0, 1.0), (1, 2.0), (2, 3.0)])),
            ((0, "head=1".to_owned()), item(&[(0, 1.0), (1, f64::NAN)])),
            ((0, "head=2".to_owned()), item(&[(0, 5.0), (1, 6.0)])),
        ]);
        let table = Table::of(items, &points);
        assert_eq!(table.labels, ["lr=1,head=0", "lr=1,head=2"]);
        assert_eq!(table.rows, [vec![1.0, 2.0], vec![5.0, 6.0]]);
    }
}
