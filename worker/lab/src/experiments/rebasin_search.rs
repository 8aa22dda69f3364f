//! Which tasks and architectures give models that are the same up to a permutation?
//!
//! # What it measures
//! Every pair that `rebasin` compared, ranked by its barrier ratio on the test data, or where a recipe has none on its training data:
//! `barrier_ratio`, `barrier_naive`, `barrier_matched` and `fve` `[pair]`, the smallest ratio first. A pair is an *instance* if
//! its ratio is below `max_ratio` and its circuit is understood: one frequency explains at least `min_fve` of the neurons'
//! variance in both models; `n_instances` and `n_pairs` count. `mean_ratio` `[cell]` averages over the pairs of one entry and
//! grid point (of two, for pairs across), `mean_ratio_low` and `mean_ratio_high` are 95 % bootstrap intervals over its models, of which they need three. `ranking.csv` and
//! `ranking.json` are the table.
//!
//! # Interpretation
//! A small ratio without an understood circuit is a merger of black boxes; a pair without a naive barrier (NaN) needs no
//! permutation and ranks last. A neuron that rectifies one wave, `relu(cos u + cos v)`, has overtones: its own frequency explains
//! .96 of its variance, less if its threshold keeps it silent (.89 at half an amplitude); trained perceptrons end between .7 and .85.
//!
//! # Source
//! Problem of Ainsworth et al. 2022, arXiv 2209.04836, asked of models whose algorithm is known (Nanda et al. 2023).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit},
    cohort::{Cohort, Member, MemberSeries, REPORT},
    curve::order::interval,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    params::{ParamSet, params},
    random,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct RebasinSearch;

params! {
    /// What counts as found.
    pub struct Params {
        /// Largest ratio of the matched to the naive barrier.
        max_ratio: f64 = 0.05, min = 0.0;
        /// Least fraction of neuron variance that one frequency explains.
        min_fve: f64 = 0.7, min = 0.0, max = 1.0;
        /// Bootstrap resamples of models; 0 gives no intervals.
        n_bootstrap: u64 = 1000, max = 100_000.0;
        /// Seed of the resampling.
        seed: u64 = 0;
    }
}

const READ: [&str; 4] =
    ["rebasin.barrier_ratio", "rebasin.barrier_naive", "rebasin.barrier_matched", "rebasin.fve"];

impl Experiment for RebasinSearch {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "rebasin-search",
        version: 2,
        summary: "Ranks the pairs of a sweep by how much of their barrier a permutation removes",
        source: "Ainsworth et al. 2022, arXiv 2209.04836; Nanda et al. 2023, arXiv 2301.05217",
        stage: Stage::Joint(Scope::Sweep),
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Series(READ.map(str::to_owned).to_vec())
    }

    fn joint(&self, cohort: &mut Cohort<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        let ratios = cohort.series(READ[0])?;
        cohort.report(cx)?;
        let mut pairs = Vec::new();
        for (done, found) in ratios.iter().enumerate() {
            cx.progress(done as u64, ratios.len() as u64)?;
            let of = |name: &str| -> Option<f64> {
                let series = cohort.series.get(name)?;
                let same = |other: &&MemberSeries| {
                    other.member == found.member && other.partner == found.partner
                };
                last(series.iter().find(same)?)
            };
            let member = &cohort.members[found.member];
            let partner = found.partner.clone().unwrap_or_default();
            let number = |name: &str| of(name).unwrap_or(f64::NAN);
            let [barrier_ratio, barrier_naive, barrier_matched, fve] = READ.map(number);
            let first = member.setting();
            let other = cohort.members.iter().find(|other| partner_is(&partner, &other.label));
            let setting = match other.map(Member::setting) {
                Some(other) if other != first => format!("{first} to {other}"),
                Some(_) | None => first.to_owned(),
            };
            pairs.push(Pair {
                setting,
                model: member.label.clone(),
                is_instance: barrier_ratio < params.max_ratio && fve >= params.min_fve,
                partner,
                barrier_ratio,
                barrier_naive,
                barrier_matched,
                fve,
            });
        }
        if pairs.is_empty() {
            return Err(Error::Input("`rebasin` compared no pair".to_owned()));
        }
        // NaN ranks last; ties in the order of the labels.
        pairs.sort_by(|a, b| {
            let key = |pair: &Pair| {
                if pair.barrier_ratio.is_nan() { f64::INFINITY } else { pair.barrier_ratio }
            };
            key(a)
                .total_cmp(&key(b))
                .then_with(|| (&a.model, &a.partner).cmp(&(&b.model, &b.partner)))
        });
        emit_pairs(&pairs, cx)?;
        emit_settings(&pairs, &params, cx)?;
        cx.artifact("ranking.csv", table(&pairs).into_bytes())?;
        cx.json("ranking.json", &pairs)
    }
}

/// One row of the ranking.
#[derive(Debug, Clone, Serialize)]
struct Pair {
    setting: String,
    model: String,
    partner: String,
    barrier_ratio: f64,
    barrier_naive: f64,
    barrier_matched: f64,
    fve: f64,
    is_instance: bool,
}

/// Whether a partner, `MODEL` or `MODEL@STEP`, is that model.
fn partner_is(partner: &str, label: &str) -> bool {
    partner == label || partner.rsplit_once('@').is_some_and(|(model, _)| model == label)
}

/// The last value on the test split, else on the training split, or the number itself.
fn last(series: &MemberSeries) -> Option<f64> {
    let value = &series.series.points.last()?.1;
    let splits = value.labels.first().and_then(Option::as_deref).unwrap_or_default();
    let place = |name: &str| splits.iter().position(|split| split == name);
    let at = place("test").or_else(|| place("train"));
    value.data.get(at.unwrap_or(value.data.len().checked_sub(1)?)).copied()
}

type Read = fn(&Pair) -> f64;

fn emit_pairs(pairs: &[Pair], cx: &mut Context<'_>) -> Result<()> {
    let labels: Vec<String> =
        pairs.iter().map(|pair| format!("{} to {}", pair.model, pair.partner)).collect();
    let columns: [(&str, Read); 4] = [
        ("barrier_ratio", |pair| pair.barrier_ratio),
        ("barrier_naive", |pair| pair.barrier_naive),
        ("barrier_matched", |pair| pair.barrier_matched),
        ("fve", |pair| pair.fve),
    ];
    for (name, read) in columns {
        cx.metric(name, Value::labelled(&labels, pairs.iter().map(read).collect()))?;
    }
    cx.metric("n_pairs", pairs.len() as f64)?;
    let instances = pairs.iter().filter(|pair| pair.is_instance).count();
    cx.metric("n_instances", instances as f64)
}

/// Means over the pairs of one setting; pairs share models, so that models are what is resampled.
fn emit_settings(pairs: &[Pair], params: &Params, cx: &mut Context<'_>) -> Result<()> {
    let mut settings: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.barrier_ratio.is_finite()) {
        settings.entry(&pair.setting).or_default().push(pair);
    }
    let (mut means, mut lows, mut highs) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (setting, pairs)) in settings.iter().enumerate() {
        let mean = |chosen: &[f64]| chosen.iter().sum::<f64>() / chosen.len() as f64;
        means.push(mean(&pairs.iter().map(|pair| pair.barrier_ratio).collect::<Vec<_>>()));
        let mut models: Vec<&str> =
            pairs.iter().flat_map(|pair| [pair.model.as_str(), pair.partner.as_str()]).collect();
        models.sort_unstable();
        models.dedup();
        let mut rng = random::stream(params.seed, &format!("rebasin-search/{setting}"));
        let samples = (0..params.n_bootstrap).map(|_| {
            let mut times: BTreeMap<&str, usize> = BTreeMap::new();
            for _ in &models {
                let drawn = models[random::below(&mut rng, models.len() as u64) as usize];
                *times.entry(drawn).or_default() += 1;
            }
            let count = |model: &String| times.get(model.as_str()).copied().unwrap_or(0);
            let chosen = pairs.iter().flat_map(|pair| {
                let often = count(&pair.model) * count(&pair.partner);
                std::iter::repeat_n(pair.barrier_ratio, often)
            });
            mean(&chosen.collect::<Vec<_>>())
        });
        // One pair of models says nothing about others.
        let [low, high] =
            if models.len() > 2 { interval(samples.collect()) } else { [f64::NAN; 2] };
        lows.push(low);
        highs.push(high);
        cx.progress(index as u64 + 1, settings.len() as u64)?;
    }
    let labels: Vec<&str> = settings.keys().copied().collect();
    for (name, values) in
        [("mean_ratio", means), ("mean_ratio_low", lows), ("mean_ratio_high", highs)]
    {
        cx.metric(name, Value::labelled(&labels, values))?;
    }
    Ok(())
}

fn table(pairs: &[Pair]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let row = |(rank, pair): (usize, &Pair)| {
        format!(
            "{rank},{},{},{},{},{},{},{},{}\n",
            quoted(&pair.setting),
            quoted(&pair.model),
            quoted(&pair.partner),
            pair.barrier_ratio,
            pair.barrier_naive,
            pair.barrier_matched,
            pair.fve,
            pair.is_instance
        )
    };
    let head =
        "rank,setting,model,partner,barrier_ratio,barrier_naive,barrier_matched,fve,is_instance\n";
    let rows: String = (1..).zip(pairs).map(row).collect();
    format!("{head}{rows}")
}

const fn of_pair(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Pair], doc }
}

const fn of_setting(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Ratio, axes: &[Axis::Cell], doc }
}

const fn count(name: &'static str, doc: &'static str) -> MetricDef {
    const NONE: &[Axis] = &[];
    MetricDef { name, unit: Unit::Count, axes: NONE, doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    of_pair("barrier_ratio", Unit::Ratio, "Matched over naive barrier, smallest first"),
    of_pair("barrier_naive", Unit::Nats, "Barrier between the models as they are"),
    of_pair("barrier_matched", Unit::Nats, "Barrier after weight matching"),
    of_pair("fve", Unit::Ratio, "Neuron variance explained by one frequency, of the worse model"),
    count("n_pairs", "Pairs compared"),
    count("n_instances", "Pairs that are the same up to permutation, with an understood circuit"),
    of_setting("mean_ratio", "Mean ratio over the pairs of one entry and grid point"),
    of_setting("mean_ratio_low", "Lower end of its 95 % bootstrap interval over models"),
    of_setting("mean_ratio_high", "Upper end of that interval"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "ratios",
    title: "Matched over naive barrier",
    kind: FigureKind::Lines,
    metrics: &["barrier_ratio"],
    log_x: false,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{cohort::CohortSeries, cohort::joint, sink::MemorySink, trajectory::Series};

    #[test]
    fn pairs_are_ranked_and_instances_counted() {
        let members: Vec<Member> = (0..4)
            .map(|seed| Member {
                label: format!("r-seed{seed}"),
                seed: Some(seed),
                recipe: Some("r".to_owned()),
                failure: (seed == 3).then(|| "diverged".to_owned()),
                ..Member::default()
            })
            .collect();
        let of = |member: usize, partner: &str, data: Vec<f64>| MemberSeries {
            member,
            partner: Some(partner.to_owned()),
            series: Series { points: vec![(9, Value::vector(data))], ..Series::default() },
        };
        let split = |rows: [(usize, &str, f64); 3]| -> Vec<MemberSeries> {
            rows.into_iter().map(|(m, p, test)| of(m, p, vec![7.0, test])).collect()
        };
        let table = CohortSeries::from([
            (
                READ[0].to_owned(),
                split([(0, "r-seed1", 0.2), (0, "r-seed2", 0.01), (1, "r-seed2", f64::NAN)]),
            ),
            (
                READ[1].to_owned(),
                split([(0, "r-seed1", 2.0), (0, "r-seed2", 3.0), (1, "r-seed2", 0.0)]),
            ),
            (
                READ[2].to_owned(),
                split([(0, "r-seed1", 0.4), (0, "r-seed2", 0.03), (1, "r-seed2", 0.0)]),
            ),
            (
                READ[3].to_owned(),
                split([(0, "r-seed1", 0.95), (0, "r-seed2", 0.97), (1, "r-seed2", 0.99)]),
            ),
        ]);
        let device = sweep_lens::Device::Cpu;
        let cohort = Cohort { members: &members, checkpoints: None, series: &table, device };
        let mut sink = MemorySink::default();
        joint(&RebasinSearch, &json!({}), cohort, &mut sink).unwrap();
        let ratios = &sink.metrics["barrier_ratio"][&9];
        assert_eq!(
            ratios.labels[0].as_ref().unwrap(),
            &["r-seed0 to r-seed2", "r-seed0 to r-seed1", "r-seed1 to r-seed2"]
        );
        assert_eq!(ratios.data[..2], [0.01, 0.2]);
        assert_eq!(
            (sink.scalar("n_pairs", 9), sink.scalar("n_instances", 9)),
            (Some(3.0), Some(1.0))
        );
        assert!((sink.metrics["mean_ratio"][&9].data[0] - 0.105).abs() < 1e-15);
        assert_eq!(sink.scalar("n_failed", 9), Some(1.0));
        let csv = String::from_utf8(sink.artifacts["ranking.csv"].clone()).unwrap();
        assert_eq!(
            csv.lines().nth(1),
            Some("1,\"r\",\"r-seed0\",\"r-seed2\",0.01,3,0.03,0.97,true")
        );
        let labels = &sink.metrics["mean_ratio"][&9].labels[0];
        assert_eq!(labels.as_ref().unwrap(), &["r"], "one entry, one mean");
        let named: Json = serde_json::from_slice(&sink.artifacts["members.json"]).unwrap();
        assert_eq!(named[3]["failure"], "diverged");
    }

    #[test]
    fn the_test_split_is_read_and_entries_are_kept_apart() {
        let read = |labels: &[&str], data: Vec<f64>| {
            let points = vec![(9, Value::labelled(labels, data))];
            last(&MemberSeries {
                member: 0,
                partner: None,
                series: Series { points, ..Series::default() },
            })
        };
        assert_eq!(read(&["train", "test", "answer"], vec![1.0, 2.0, 3.0]), Some(2.0));
        assert_eq!(read(&["train", "mean"], vec![1.0, 2.0]), Some(1.0));
        assert_eq!(read(&["a", "b"], vec![1.0, 2.0]), Some(2.0));
        let member = |label: &str, seed| Member {
            label: label.to_owned(),
            seed: Some(seed),
            recipe: Some("modular-addition-mlp".to_owned()),
            ..Member::default()
        };
        assert_eq!(member("narrow-p=31-seed2", 2).setting(), "narrow-p=31");
        assert_eq!(Member { seed: None, ..member("gpt2", 0) }.setting(), "gpt2");
        assert!(partner_is("wide-seed1@40", "wide-seed1") && !partner_is("wide-seed1", "wide"));
    }
}
