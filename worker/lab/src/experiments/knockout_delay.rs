//! How much later does a model learn when something is taken from it at the start?
//!
//! # What it measures
//! All models of a sweep, ordered into *arms*: trainings that differ only by their interventions (edits of the initial weights,
//! auxiliary terms, other seeds). The arm without interventions is the base; each model is compared with the base model of the
//! same seed, recipe and other parameters. The time is the first step at which `metric` is at `threshold` or beyond it
//! (`direction`). Per arm, over all settings of the other parameters: `delay_ratio`, median over seeds of time over the base's time; `delay_ratio_low` and `delay_ratio_high`, its 95 %
//! bootstrap interval over seeds, which takes two; `n_pairs`, the models that it rests on: those with a base that got there;
//! `never`, the share of all models that did not get there by their last step; `final_value`, mean of the last value of all;
//! `n_broken`, models whose training failed (diverged, for instance) and which are in none of these. A model that never gets there has an infinite ratio, so that
//! the median stays right while fewer than half of them do. `delays.json` lists every model.
//!
//! # Interpretation
//! A knockout is special only against its controls: compare with arms of equal size that are chosen at random
//! (`edit_select: random`, or `random-matched` layer by layer), which are arms like any other. Held weights cost more than weights
//! that are zero only at the start; beyond a fifth of all single weights every arm fails.
//!
//! # Source
//! Frankle and Carbin 2018, arXiv 1803.03635 (masks of a finished run applied to its initial weights); Nanda et al. 2023, arXiv
//! 2301.05217 (progress of the circuit that is masked).

use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Scope, Stage, Unit},
    cohort::{Cohort, Member, REPORT},
    curve::{order::interval, transition::quantile},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    interventions::{self, Interventions},
    params::{MetricName, ParamSet, params},
    random,
    sink::Context,
    trajectory::Series,
    value::Value,
};

/// See the module documentation.
pub struct KnockoutDelay;

params! {
    /// What counts as learned.
    pub struct Params {
        /// Full name of a metric of one number per step, `recipe.metric` or `experiment.metric`.
        metric: MetricName = MetricName::default();
        /// Value that has to be reached.
        threshold: f64 = 0.9;
        /// Whether the metric rises to it (an accuracy) or falls (a loss).
        direction: String = "rising".to_owned(), choices = ["rising", "falling"];
        /// Bootstrap resamples of seeds; 0 gives no intervals.
        n_bootstrap: u64 = 1000, max = 100_000.0;
        /// Seed of the resampling.
        seed: u64 = 0;
    }
}

impl Experiment for KnockoutDelay {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "knockout-delay",
        version: 3,
        summary: "Measures how much interventions at the start delay learning, over seeds",
        source: "Frankle and Carbin 2018, arXiv 1803.03635; Nanda et al. 2023, arXiv 2301.05217",
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
        let mut runs = Vec::new();
        for member in found {
            let of = &cohort.members[member.member];
            if of.failure.is_none() && of.recipe.is_some() && member.partner.is_none() {
                runs.push(Run::of(of, &member.series, &params)?);
            }
        }
        let base: Vec<Run> = runs.iter().filter(|run| run.arm == BASE).cloned().collect();
        if base.is_empty() {
            return Err(Error::Input(
                "no model without interventions to compare with: list one, or add the default to the axis"
                    .to_owned(),
            ));
        }
        for run in &mut runs {
            let own = base.iter().find(|base| base.seed == run.seed && base.setting == run.setting);
            run.ratio = own.map(|own| ratio(run.time, own.time));
        }
        let mut arms: Vec<String> = vec![BASE.to_owned()];
        for run in &runs {
            if !arms.contains(&run.arm) {
                arms.push(run.arm.clone());
            }
        }
        let mut broken = Vec::new();
        for member in cohort.members {
            if member.failure.is_some() && member.recipe.is_some() {
                broken.push(arm(&member.params)?);
            }
        }
        // An arm of which every model failed is an outcome too.
        for arm in &broken {
            if !arms.contains(arm) {
                arms.push(arm.clone());
            }
        }
        let mut columns: [Vec<f64>; 7] = Default::default();
        for (index, arm) in arms.iter().enumerate() {
            let of_arm: Vec<&Run> = runs.iter().filter(|run| run.arm == *arm).collect();
            // A stream per arm: intervals do not depend on which other arms there are.
            let mut rng = random::stream(params.seed, &format!("knockout-delay/{arm}"));
            let summary = summary(&of_arm, params.n_bootstrap, &mut rng);
            let n_broken = broken.iter().filter(|broken| *broken == arm).count() as f64;
            let summary = summary.into_iter().chain([n_broken]);
            columns.iter_mut().zip(summary).for_each(|(column, value)| column.push(value));
            cx.progress(index as u64 + 1, arms.len() as u64)?;
        }
        for (name, column) in COLUMNS.iter().zip(columns) {
            cx.metric(name, Value::labelled(&arms, column))?;
        }
        cx.json("delays.json", &runs)
    }
}

/// Name of the arm without interventions.
const BASE: &str = "base";

/// One model.
#[derive(Debug, Clone, Serialize)]
struct Run {
    model: String,
    arm: String,
    seed: u64,
    /// Recipe and parameters but the interventions.
    #[serde(skip)]
    setting: String,
    /// First step at the threshold.
    time: Option<u64>,
    last: f64,
    /// Time over that of the base; infinite where the threshold was not reached.
    ratio: Option<f64>,
}

impl Run {
    fn of(member: &Member, series: &Series, params: &Params) -> Result<Self> {
        let own = interventions::without(&Json::Object(member.params.clone()));
        let mut points = Vec::with_capacity(series.points.len());
        for (step, value) in &series.points {
            let number = value.as_scalar().ok_or_else(|| {
                let problem = format!("`{}` has axes, expected one number", params.metric.0);
                Error::params("metric", problem)
            })?;
            points.push((*step, number));
        }
        let reached = |value: f64| match params.direction.as_str() {
            "falling" => value <= params.threshold,
            _ => value >= params.threshold,
        };
        Ok(Self {
            model: member.label.clone(),
            arm: arm(&member.params)?,
            seed: member.seed.unwrap_or_default(),
            setting: format!("{} {own}", member.recipe.as_deref().unwrap_or_default()),
            time: points.iter().find(|point| reached(point.1)).map(|point| point.0),
            last: points.last().map_or(f64::NAN, |point| point.1),
            ratio: None,
        })
    }
}

/// Name of the arm of a model with these parameters.
fn arm(params: &Map<String, Json>) -> Result<String> {
    let changed = Interventions::decode(&Json::Object(params.clone()))?.changed()?;
    let shown = |(name, value): (&String, &Json)| match value {
        Json::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    let parts: Vec<String> = changed.iter().map(shown).collect();
    Ok(if parts.is_empty() { BASE.to_owned() } else { parts.join(",") })
}

/// Time over the base's time; NaN where the base never got there.
fn ratio(time: Option<u64>, base: Option<u64>) -> f64 {
    match (time, base) {
        (_, None) => f64::NAN,
        (None, Some(_)) => f64::INFINITY,
        (Some(time), Some(base)) if time == base => 1.0,
        (Some(time), Some(base)) => time as f64 / base as f64,
    }
}

/// Median, interval, share that never got there, last value, number of pairs, number of models.
fn summary(runs: &[&Run], n_bootstrap: u64, rng: &mut impl rand::Rng) -> [f64; 6] {
    let ratios: Vec<f64> =
        runs.iter().filter_map(|run| run.ratio).filter(|ratio| !ratio.is_nan()).collect();
    // One pair says nothing about others.
    let samples = (0..n_bootstrap).filter(|_| ratios.len() > 1).map(|_| {
        let draw = |_: &f64| ratios[random::below(rng, ratios.len() as u64) as usize];
        median(ratios.iter().map(draw).collect())
    });
    let samples: Vec<f64> = samples.collect();
    // An infinite end is an answer; intervals of finite samples alone would be too narrow.
    let [low, high] = if samples.iter().all(|sample| sample.is_finite()) {
        interval(samples)
    } else {
        let mut sorted = samples;
        sorted.sort_by(f64::total_cmp);
        [nearest(&sorted, 0.025), nearest(&sorted, 0.975)]
    };
    let n = runs.len() as f64;
    let never = runs.iter().filter(|run| run.time.is_none()).count() as f64 / n;
    let last = runs.iter().map(|run| run.last).sum::<f64>() / n;
    [median(ratios.clone()), low, high, never, last, ratios.len() as f64]
}

/// Quantile without interpolation, which knows no infinite neighbours.
fn nearest(sorted: &[f64], q: f64) -> f64 {
    let at = (q * (sorted.len() as f64 - 1.0)).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// NaN of nothing; infinite if more than half of the values are.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    if values.is_empty() {
        return f64::NAN;
    }
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    if high.is_finite() { quantile(&values, 0.5).clamp(low, high) } else { high }
}

const COLUMNS: [&str; 7] = [
    "delay_ratio",
    "delay_ratio_low",
    "delay_ratio_high",
    "never",
    "final_value",
    "n_pairs",
    "n_broken",
];

const fn of_arm(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Arm], doc }
}

const METRICS: &[MetricDef] = &[
    REPORT[0],
    REPORT[1],
    of_arm("delay_ratio", Unit::Ratio, "Median over seeds of the time over that of the base"),
    of_arm("delay_ratio_low", Unit::Ratio, "Lower end of its 95 % bootstrap interval over seeds"),
    of_arm("delay_ratio_high", Unit::Ratio, "Upper end of that interval"),
    of_arm("never", Unit::Probability, "Models that did not reach the threshold"),
    of_arm("final_value", Unit::Dimensionless, "Mean of the last value, in the metric's unit"),
    of_arm("n_pairs", Unit::Count, "Models with a base that reached the threshold"),
    of_arm("n_broken", Unit::Count, "Models whose training failed"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "delay",
    title: "Delay of each arm against the base",
    kind: FigureKind::Intervals,
    metrics: &["delay_ratio", "delay_ratio_low", "delay_ratio_high"],
    log_x: false,
    log_y: true,
}];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cohort::{CohortSeries, MemberSeries, joint},
        sink::MemorySink,
    };

    fn member(edit: &str, seed: u64, failure: Option<&str>) -> Member {
        let Json::Object(params) = json!({ "p": 31, "edit": edit, "edit_fraction": 0.1 }) else {
            panic!()
        };
        Member {
            label: format!("{edit}-{seed}"),
            seed: Some(seed),
            recipe: Some("modular-addition-mlp".to_owned()),
            params,
            axes: vec!["edit".to_owned()],
            failure: failure.map(str::to_owned),
        }
    }

    /// An accuracy that becomes 1 at a step (or never) up to step 1000.
    fn series(at: Option<u64>) -> Series {
        let value = |step: u64| f64::from(u8::from(at.is_some_and(|at| step >= at)));
        let points = (0..=10).map(|i| (100 * i, Value::scalar(value(100 * i)))).collect();
        Series { points, ..Series::default() }
    }

    fn run(members: &[Member], times: &[Option<u64>]) -> Result<MemorySink> {
        let series = times.iter().enumerate().map(|(member, at)| MemberSeries {
            member,
            partner: None,
            series: series(*at),
        });
        let table = CohortSeries::from([("r.acc".to_owned(), series.collect())]);
        let cohort =
            Cohort { members, checkpoints: None, series: &table, device: sweep_lens::Device::Cpu };
        let mut sink = MemorySink::default();
        joint(&KnockoutDelay, &json!({ "metric": "r.acc" }), cohort, &mut sink)?;
        Ok(sink)
    }

    #[test]
    fn delays_are_paired_by_seed() {
        let members: Vec<Member> = (0..3)
            .map(|seed| member("none", seed, None))
            .chain((0..3).map(|seed| member("zero", seed, None)))
            .chain([member("freeze", 0, Some("diverged"))])
            .collect();
        let times = [Some(200), Some(400), Some(100), Some(400), Some(600), None, Some(100)];
        let sink = run(&members, &times).unwrap();
        let of = |name: &str| sink.metrics[name][&1000].clone();
        assert_eq!(
            of("delay_ratio").labels[0].as_ref().unwrap(),
            &["base", "edit=zero", "edit=freeze"]
        );
        // 400/200, 600/400, never.
        assert_eq!(of("delay_ratio").data[..2], [1.0, 2.0]);
        assert!(of("delay_ratio").data[2].is_nan() && of("never").data[2].is_nan());
        assert_eq!(of("n_broken").data, [0.0, 0.0, 1.0]);
        assert_eq!((of("delay_ratio_low").data[0], of("delay_ratio_high").data[0]), (1.0, 1.0));
        assert_eq!(
            (of("delay_ratio_low").data[1], of("delay_ratio_high").data[1]),
            (1.5, f64::INFINITY)
        );
        assert!((of("never").data[1] - 1.0 / 3.0).abs() < 1e-15);
        assert!((of("final_value").data[1] - 2.0 / 3.0).abs() < 1e-15);
        assert_eq!(of("n_pairs").data, [3.0, 3.0, 0.0]);
        assert_eq!((of("n_models").data[0], of("n_failed").data[0]), (7.0, 1.0));
        let named: Json = serde_json::from_slice(&sink.artifacts["members.json"]).unwrap();
        assert_eq!(named[6]["failure"], "diverged", "reported, not dropped");
    }

    #[test]
    fn one_pair_has_no_interval() {
        let members = [member("none", 0, None), member("zero", 0, None)];
        let sink = run(&members, &[Some(200), None]).unwrap();
        let of = |name: &str| sink.metrics[name][&1000].data.clone();
        assert_eq!(of("delay_ratio"), [1.0, f64::INFINITY]);
        assert!(of("delay_ratio_low").iter().chain(&of("delay_ratio_high")).all(|v| v.is_nan()));
    }

    #[test]
    fn a_base_is_needed() {
        let error = run(&[member("zero", 0, None)], &[Some(100)]).unwrap_err();
        assert!(error.to_string().contains("no model without interventions"), "{error}");
    }
}
