//! Models whose pair is announced from the start, from the onset only, or not at all.

use serde_json::{Value as Json, json};
use sweep_lens::Device;

use super::*;
use crate::{
    Class,
    cohort::{CohortSeries, Member, MemberSeries, joint},
    sink::MemorySink,
    trajectory::Series,
};

const H: usize = 4;
const ONSET: u64 = 500;

/// Two layers of four heads; the pair forms at step 500 of 1000. K-composition tells the pair from the start if
/// `announced`, else from the onset on.
fn add_model(table: &mut CohortSeries, member: usize, pair: (usize, usize), announced: bool) {
    let mut rng = random::stream(member as u64, "predict-pair/test");
    let mut uniform = || (rng.next_u64() >> 11) as f64 * 2f64.powi(-53);
    let n = 2 * H;
    let mut of: Vec<Vec<(u64, Value)>> = vec![Vec::new(); model::SERIES.len()];
    for step in (0..=1000).step_by(50) {
        let formed = step >= ONSET;
        for (place, points) in of.iter_mut().enumerate() {
            let value = match place {
                0..3 | 7 => {
                    let mut data: Vec<f64> = (0..n * n).map(|_| 0.1 + 0.02 * uniform()).collect();
                    if place == 7 || place == 0 && (announced || formed) {
                        data[pair.0 * n + pair.1] = 0.2;
                    }
                    Value::array(vec![2, H, 2, H], data, vec![None; 4])
                }
                6 => Value::scalar(0.1),
                _ => {
                    let mut data: Vec<f64> = (0..n).map(|_| 0.1 * uniform()).collect();
                    match place {
                        4 if formed => data[pair.0] = 0.6,
                        5 if formed => data[pair.1] = 0.9,
                        _ => (),
                    }
                    Value::array(vec![2, H], data, vec![None; 2])
                }
            };
            points.push((step, value));
        }
    }
    for (name, points) in model::SERIES.into_iter().zip(of) {
        let series = Series { points, ..Series::default() };
        let entry = table.entry(name.to_owned()).or_default();
        entry.push(MemberSeries { member, partner: None, series });
    }
}

use rand::Rng;

fn run(models: &[((usize, usize), bool)], params: Json) -> Result<MemorySink> {
    let mut table = CohortSeries::new();
    for (member, (pair, announced)) in models.iter().enumerate() {
        add_model(&mut table, member, *pair, *announced);
    }
    let members: Vec<Member> = (0..models.len())
        .map(|seed| Member {
            label: format!("seed{seed}"),
            seed: Some(seed as u64),
            ..Member::default()
        })
        .collect();
    let cohort =
        Cohort { members: &members, checkpoints: None, series: &table, device: Device::Cpu };
    let mut sink = MemorySink::default();
    joint(&PredictPair, &params, cohort, &mut sink)?;
    Ok(sink)
}

fn of(predictor: &str) -> usize {
    PREDICTORS.iter().position(|name| *name == predictor).unwrap()
}

fn pairs(n: usize, announced: bool) -> Vec<((usize, usize), bool)> {
    (0..n).map(|seed| (((seed * 3) % H, H + (seed * 5 + 1) % H), announced)).collect()
}

#[test]
fn ranks_by_hand() {
    let found = Ranking::of(&[3.0, 1.0, 2.0], 2);
    assert_eq!((found.reciprocal_rank, found.auroc, found.top1), (0.5, 0.5, 0.0));
    let tied = Ranking::of(&[2.0, 2.0, 1.0, f64::NAN], 0);
    assert_eq!(tied.reciprocal_rank, 0.75);
    assert!((tied.auroc - 2.5 / 3.0).abs() < 1e-15 && tied.top1 == 0.5);
    assert_eq!(Ranking::of(&[f64::NAN, 1.0], 0).auroc, 0.0);
}

#[test]
fn auroc_equals_scikit_learn() {
    let golden: Json =
        serde_json::from_str(include_str!("../../../tests/fixtures/trajectories.json")).unwrap();
    for case in golden["auroc"].as_array().unwrap() {
        let scores: Vec<f64> = serde_json::from_value(case["scores"].clone()).unwrap();
        let found = Ranking::of(&scores, case["positive"].as_u64().unwrap() as usize);
        assert!((found.auroc - case["auroc"].as_f64().unwrap()).abs() < 1e-12);
    }
}

#[test]
fn a_predictor_that_knows_is_told_from_chance() {
    let sink = run(&pairs(8, true), json!({})).unwrap();
    let at = |name: &str, step: u64, predictor: &str| sink.metrics[name][&step].data[of(predictor)];
    assert_eq!(sink.scalar("n_formed", 1000), Some(8.0));
    assert_eq!(sink.scalar("chance_top1", 1000), Some(1.0 / 16.0));
    let chance = sink.scalar("chance_mrr", 1000).unwrap();
    assert!((chance - 3.380_728_993_228_993 / 16.0).abs() < 1e-12, "{chance}");
    for name in ["mrr", "auroc", "top1", "mrr_low"] {
        assert_eq!(at(name, 0, "k_composition"), 1.0, "{name}");
    }
    assert!(at("mrr_p", 0, "k_composition") < 1e-3);
    // What forms later tells nothing before.
    for predictor in ["random", "q_composition", "prefix_matching", "previous_token"] {
        assert!(at("mrr_p", 0, predictor) > 0.01, "{predictor}");
        let (low, high) = (at("auroc_low", 0, predictor), at("auroc_high", 0, predictor));
        assert!(low < 0.62 && high > 0.38, "{predictor} {low} {high}");
    }
    // After the onset a head that is alone at the top leaves its four partners tied.
    let tied = (1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 4.0;
    assert!((at("mrr", 500, "prefix_matching") - tied).abs() < 1e-12);
    assert!((at("mrr", 500, "previous_token") - tied).abs() < 1e-12);
    assert_eq!(at("mrr", 1000, "product"), 1.0);
    // Pairs of other seeds are not announced.
    assert!(at("mrr_other_seed", 0, "k_composition") < 0.4);
    let onset = &sink.metrics["onset"][&1000];
    assert!(onset.data.iter().all(|onset| *onset == 500.0));
    assert!(sink.metrics["onset_bracket_low"][&1000].data.iter().all(|before| *before == 450.0));
    let report: Json = serde_json::from_slice(&sink.artifacts["pairs.json"]).unwrap();
    assert_eq!((&report[1]["previous"], &report[1]["induction"]), (&json!("L0H3"), &json!("L1H2")));
}

#[test]
fn the_onset_is_where_a_late_predictor_begins_to_know() {
    let sink = run(&pairs(8, false), json!({})).unwrap();
    let by_fraction = &sink.metrics["mrr_by_fraction"][&1000];
    let row = &by_fraction.data[6 * of("k_composition")..][..6];
    assert!(row[..4].iter().all(|mrr| *mrr < 0.6) && row[4] == 1.0 && row[5] == 1.0, "{row:?}");
    let labels = by_fraction.labels[1].as_ref().unwrap();
    assert_eq!(labels.join(" "), "0 0.25 0.5 0.75 1 1.5");
}

#[test]
fn the_gradient_is_a_predictor_where_it_is_asked_for() {
    let with = run(&pairs(8, false), json!({ "gradient": true })).unwrap();
    assert_eq!(with.metrics["mrr"][&0].data[of("k_gradient")], 1.0);
    let without = run(&pairs(8, false), json!({})).unwrap();
    assert_eq!(without.metrics["mrr"][&0].data.len(), PREDICTORS.len() - 1);
    assert_eq!(with.metrics["mrr"][&0].data[..8], without.metrics["mrr"][&0].data);
}

#[test]
fn models_without_a_pair_are_not_counted() {
    let params = json!({ "threshold": 0.95 });
    let error = run(&pairs(2, true), params).unwrap_err();
    assert_eq!(error.class(), Class::Input);
    assert!(error.to_string().contains("none of 2 models has a head"), "{error}");
    let error = run(&pairs(2, true), json!({ "previous_threshold": 0.7 })).unwrap_err();
    assert!(error.to_string().contains("previous-token score of 0.7"), "{error}");
    let alone = run(&pairs(1, true), json!({})).unwrap();
    assert!(alone.metrics["mrr_low"][&0].data[0].is_nan(), "one model has no interval");
    assert!(alone.metrics["mrr_other_seed"][&0].data[0].is_nan());
}
