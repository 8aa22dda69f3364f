//! Does the smaller model win more than seeds win over each other?
//!
//! # What it measures
//! From `scale-inversion` on pairs of models: for each pair of sizes and each threshold, `between` is the mean win fraction of small
//! models over large ones, `noise` the mean over pairs of two seeds of the same size (the small size's and the large size's mean, averaged),
//! and `excess` the difference, with a 95 % bootstrap interval over models (`excess_low`, `excess_high`): models of each size are drawn again, and with
//! them all of their pairs, because pairs that share a model do not vary on their own. With two models of a size half of the draws are the same model
//! twice and have no noise of that size; the interval is then that of the others. `excess_least` and `excess_most` are the least and the greatest
//! value that single pairs give: the smallest win between sizes minus the largest between seeds, and the reverse. `mass_excess` is the same for `win_mass`. `n_between` and `n_noise` count pairs.
//!
//! # Interpretation
//! `excess` below 0 is what is to be expected: a better model wins more often than a second seed does. A positive excess,
//! with `excess_low` above 0 too, is inverse scaling on these tokens. Without pairs of equal size the excess is NaN.
//!
//! # Source
//! Problem 5.36 of the experiment list (win statistics against the same between seeds); McKenzie et al. 2023, arXiv 2306.09479.

use std::collections::BTreeMap;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit},
    cohort::{Cohort, MemberSeries, REPORT},
    curve::order::interval,
    error::Result,
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    random,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct ScaleInversionExcess;

params! {
    /// How sure.
    pub struct Params {
        /// Bootstrap resamples of models; 0 leaves intervals NaN.
        n_bootstrap: u64 = 1000, max = 100_000.0;
        /// Seed of the resampling.
        seed: u64 = 0;
    }
}

const FRACTION: &str = "scale-inversion.win_fraction";
const MASS: &str = "scale-inversion.win_mass";
const SMALL: &str = "scale-inversion.n_parameters_small";
const LARGE: &str = "scale-inversion.n_parameters_large";

impl Experiment for ScaleInversionExcess {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "scale-inversion-excess",
        version: 1,
        summary: "Compares wins of small over large models with those between seeds",
        source: "McKenzie et al. 2023, arXiv 2306.09479 (inverse scaling)",
        stage: Stage::Joint(Scope::Sweep),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Series([FRACTION, MASS, SMALL, LARGE].map(str::to_owned).to_vec())
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let [fraction, mass] = [FRACTION, MASS].map(|name| cohort.series(name));
        let (fraction, mass) = (fraction?, mass?);
        let thresholds = labels(fraction);
        let sizes = [last(cohort.series(SMALL)?), last(cohort.series(LARGE)?)];
        cx.progress(1, 2)?;
        let labels_of: Vec<&str> = cohort.members.iter().map(|m| m.label.as_str()).collect();
        let fraction = Wins::of(&last(fraction), &sizes, &labels_of);
        let mass = Wins::of(&last(mass), &sizes, &labels_of);
        let pairs = fraction.pairs();
        let names: Vec<String> = pairs.iter().map(|(a, b)| format!("{a} vs {b}")).collect();
        let table = |read: &dyn Fn(&Sizes<'_>, usize) -> f64, wins: &Wins| {
            let rows = pairs.iter().flat_map(|&pair| {
                let sizes = wins.sizes(pair);
                (0..thresholds.len()).map(move |t| read(&sizes, t)).collect::<Vec<_>>()
            });
            let labels = vec![Some(names.clone()), Some(thresholds.clone())];
            Value::array(vec![pairs.len(), thresholds.len()], rows.collect(), labels)
        };
        cx.metric("between", table(&|s, t| mean(s.between, t), &fraction))?;
        cx.metric("noise", table(&|s, t| s.noise(t), &fraction))?;
        cx.metric("excess", table(&|s, t| mean(s.between, t) - s.noise(t), &fraction))?;
        let intervals: Vec<Vec<[f64; 2]>> = pairs
            .iter()
            .zip(&names)
            .map(|(pair, name)| fraction.intervals(*pair, thresholds.len(), name, &params))
            .collect();
        for (name, end) in [("excess_low", 0), ("excess_high", 1)] {
            let ends = intervals.iter().flatten().map(|interval| interval[end]).collect();
            let labels = vec![Some(names.clone()), Some(thresholds.clone())];
            cx.metric(name, Value::array(vec![pairs.len(), thresholds.len()], ends, labels))?;
        }
        cx.metric("excess_least", table(&|s, t| s.range(t)[0], &fraction))?;
        cx.metric("excess_most", table(&|s, t| s.range(t)[1], &fraction))?;
        cx.metric("mass_excess", table(&|s, t| mean(s.between, t) - s.noise(t), &mass))?;
        let count = |read: &dyn Fn(&Sizes<'_>) -> usize| {
            let counts = pairs.iter().map(|&pair| read(&fraction.sizes(pair)) as f64).collect();
            Value::labelled(&names, counts)
        };
        cx.metric("n_between", count(&|s| s.between.len()))?;
        cx.metric("n_noise", count(&|s| s.seeds.iter().map(|list| list.len()).sum()))?;
        cx.progress(2, 2)?;
        cohort.report(cx)
    }
}

/// Newest value of each pair of models.
type Newest = BTreeMap<(usize, String), Vec<f64>>;

fn last(series: &[MemberSeries]) -> Newest {
    let newest = |member: &MemberSeries| {
        let value = member.series.points.last()?.1.data.clone();
        Some(((member.member, member.partner.clone()?), value))
    };
    series.iter().filter_map(newest).collect()
}

/// Labels of the thresholds.
fn labels(series: &[MemberSeries]) -> Vec<String> {
    let points = series.iter().filter_map(|member| member.series.points.last());
    let value = points.map(|(_, value)| value).next();
    value.map_or_else(Vec::new, |value| (0..value.data.len()).map(|i| value.label(0, i)).collect())
}

/// Values of pairs of models by the sizes of both.
struct Wins {
    by_size: BTreeMap<(u64, u64), Vec<Vec<f64>>>,
    /// The models of each of these pairs, the one of the smaller size first.
    models: BTreeMap<(u64, u64), Vec<[String; 2]>>,
}

/// Those of one pair of sizes.
struct Sizes<'a> {
    between: &'a [Vec<f64>],
    /// Of pairs within the small and within the large size.
    seeds: [&'a [Vec<f64>]; 2],
}

impl Wins {
    fn of(values: &Newest, sizes: &[Newest; 2], labels: &[&str]) -> Self {
        let mut found: BTreeMap<(u64, u64), Vec<Vec<f64>>> = BTreeMap::new();
        let mut models: BTreeMap<(u64, u64), Vec<[String; 2]>> = BTreeMap::new();
        for (pair, value) in values {
            let size = |sizes: &Newest| Some(*sizes.get(pair)?.first()? as u64);
            if let (Some(small), Some(large)) = (size(&sizes[0]), size(&sizes[1])) {
                found.entry((small, large)).or_default().push(value.clone());
                let of_pair = [labels[pair.0].to_owned(), pair.1.clone()];
                models.entry((small, large)).or_default().push(of_pair);
            }
        }
        Self { by_size: found, models }
    }

    /// 95 % bootstrap intervals over models of the excess at each of `n` thresholds.
    fn intervals(
        &self,
        (small, large): (u64, u64),
        n: usize,
        name: &str,
        params: &Params,
    ) -> Vec<[f64; 2]> {
        // A stream of its own: intervals do not depend on what other sizes there are.
        let mut rng = random::stream(params.seed, &format!("scale-inversion-excess/{name}"));
        let of = |key: (u64, u64)| -> Vec<&String> {
            let mut models: Vec<&String> =
                self.models.get(&key).into_iter().flatten().flatten().collect();
            models.sort();
            models.dedup();
            models
        };
        let (mut few, mut many) = (of((small, small)), of((large, large)));
        // A size without a second model has no pairs of its own: it is that of everybody else.
        let others = of((small, large)).into_iter();
        let others: Vec<&String> =
            others.filter(|model| !few.contains(model) && !many.contains(model)).collect();
        if few.is_empty() { &mut few } else { &mut many }.extend(others);
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); n];
        for _ in 0..params.n_bootstrap {
            let mut drawn: BTreeMap<&String, f64> = BTreeMap::new();
            for group in [&few, &many] {
                for _ in 0..group.len() {
                    let at = random::below(&mut rng, group.len() as u64) as usize;
                    *drawn.entry(group[at]).or_default() += 1.0;
                }
            }
            let times = |model: &String| drawn.get(model).copied().unwrap_or(0.0);
            let mean = |key: (u64, u64), t: usize| {
                let pairs = self.models.get(&key).into_iter().flatten();
                let values = self.by_size.get(&key).into_iter().flatten();
                let (mut sum, mut weight) = (0.0, 0.0);
                for ([a, b], value) in pairs.zip(values) {
                    let times = times(a) * times(b);
                    sum += times * value[t];
                    weight += times;
                }
                sum / weight
            };
            for (t, samples) in samples.iter_mut().enumerate() {
                let within: Vec<f64> = [(small, small), (large, large)]
                    .iter()
                    .map(|key| mean(*key, t))
                    .filter(|mean| !mean.is_nan())
                    .collect();
                let noise = within.iter().sum::<f64>() / within.len() as f64;
                let excess = mean((small, large), t) - noise;
                samples.extend(Some(excess).filter(|excess| excess.is_finite()));
            }
        }
        samples.into_iter().map(interval).collect()
    }

    /// Pairs of different sizes.
    fn pairs(&self) -> Vec<(u64, u64)> {
        self.by_size.keys().copied().filter(|(small, large)| small < large).collect()
    }

    fn sizes(&self, (small, large): (u64, u64)) -> Sizes<'_> {
        let of = |key| self.by_size.get(&key).map_or(&[][..], Vec::as_slice);
        Sizes { between: of((small, large)), seeds: [of((small, small)), of((large, large))] }
    }
}

/// Mean of entry `index`; NaN of nothing.
fn mean(values: &[Vec<f64>], index: usize) -> f64 {
    values.iter().map(|value| value[index]).sum::<f64>() / values.len() as f64
}

impl Sizes<'_> {
    /// Mean of the means within each size that has two models.
    fn noise(&self, index: usize) -> f64 {
        let means = self.seeds.iter().filter(|list| !list.is_empty());
        let means: Vec<f64> = means.map(|list| mean(list, index)).collect();
        means.iter().sum::<f64>() / means.len() as f64
    }

    fn range(&self, index: usize) -> [f64; 2] {
        let seeds: Vec<f64> = self.seeds.iter().flat_map(|l| l.iter()).map(|v| v[index]).collect();
        let between: Vec<f64> = self.between.iter().map(|value| value[index]).collect();
        if seeds.is_empty() {
            return [f64::NAN; 2];
        }
        let least = |list: &[f64]| list.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |list: &[f64]| list.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        [least(&between) - most(&seeds), most(&between) - least(&seeds)]
    }
}

const PAIRS: &[Axis] = &[Axis::Pair, Axis::Threshold];

const fn metric(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: PAIRS, doc }
}

const METRICS: &[MetricDef] = &[
    metric("between", Unit::Probability, "Mean win fraction of small over large models"),
    metric("noise", Unit::Probability, "Mean win fraction between seeds of one size"),
    metric("excess", Unit::Probability, "Win fraction between sizes minus that between seeds"),
    metric("excess_low", Unit::Probability, "Lower end of its 95 % bootstrap interval over models"),
    metric("excess_high", Unit::Probability, "Upper end of that interval"),
    metric("excess_least", Unit::Probability, "Least excess that single pairs give"),
    metric("excess_most", Unit::Probability, "Greatest excess that single pairs give"),
    metric("mass_excess", Unit::Nats, "Win mass between sizes minus that between seeds"),
    MetricDef {
        name: "n_between",
        unit: Unit::Count,
        axes: &[Axis::Pair],
        doc: "Pairs of a small and a large model",
    },
    MetricDef {
        name: "n_noise",
        unit: Unit::Count,
        axes: &[Axis::Pair],
        doc: "Pairs of two models of one of the sizes",
    },
    REPORT[0],
    REPORT[1],
];

const FIGURES: &[Figure] = &[Figure {
    name: "excess",
    title: "Wins of the smaller model beyond the noise of seeds",
    kind: FigureKind::HeatMap,
    metrics: &["excess"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, MemorySink, Series, joint};

    #[test]
    fn the_noise_of_both_sizes_is_subtracted() {
        // Models a0, a1 of 10 parameters and b0, b1 of 20.
        let pairs = [
            (0, "a1", 10.0, 10.0, 0.4),
            (2, "b1", 20.0, 20.0, 0.2),
            (0, "b0", 10.0, 20.0, 0.25),
            (0, "b1", 10.0, 20.0, 0.35),
        ];
        let mut series: BTreeMap<String, Vec<MemberSeries>> = BTreeMap::new();
        for (member, partner, small, large, win) in pairs {
            let labelled = |x: f64| Value::labelled(["0", "1"], vec![x, 0.0]);
            for (name, value) in [
                (FRACTION, labelled(win)),
                (MASS, labelled(2.0 * win)),
                (SMALL, Value::scalar(small)),
                (LARGE, Value::scalar(large)),
            ] {
                let points = vec![(5, value)];
                let series_of = Series { points, ..Series::default() };
                let partner = Some(partner.to_owned());
                let entry = MemberSeries { member, partner, series: series_of };
                series.entry(name.to_owned()).or_default().push(entry);
            }
        }
        let labelled = |label: &&str| Member { label: (*label).to_owned(), ..Member::default() };
        let members: Vec<Member> = ["a0", "a1", "b0", "b1"].iter().map(labelled).collect();
        let cohort = Cohort {
            members: &members,
            checkpoints: None,
            series: &series,
            device: sweep_lens::Device::Cpu,
        };
        let mut sink = MemorySink::default();
        joint(&ScaleInversionExcess, &serde_json::json!({}), cohort, &mut sink).unwrap();
        let at = |name: &str| sink.metrics[name][&5].data.clone();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(at("between")[0], 0.3);
        near(at("noise")[0], 0.3);
        near(at("excess")[0], 0.0);
        near(at("excess_least")[0], 0.25 - 0.4);
        near(at("excess_most")[0], 0.35 - 0.2);
        // Of four models drawn anew: one pair of b with a0 and noise of one size at least.
        let (low, high) = (at("excess_low")[0], at("excess_high")[0]);
        assert!((-0.1501..0.0).contains(&low) && (0.0..=0.1501).contains(&high), "{low} {high}");
        near(at("mass_excess")[0], 0.0);
        assert_eq!((at("n_between"), at("n_noise")), (vec![2.0], vec![2.0]));
        assert_eq!(sink.metrics["excess"][&5].labels[0].as_ref().unwrap()[0], "10 vs 20");
    }
}
