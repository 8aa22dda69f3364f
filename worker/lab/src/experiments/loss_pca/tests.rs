//! scikit-learn's components; a path with a planted corner; what cannot be stacked.

use serde_json::{Value as Json, json};
use sweep_lens::Device;

use super::*;
use crate::{
    cohort::{CohortSeries, Member, joint},
    sink::MemorySink,
    trajectory::Series,
};

type Rows = Vec<Vec<f64>>;

fn run(models: &[(&str, Rows)], failure: Option<&str>, params: Json) -> Result<MemorySink> {
    let members: Vec<Member> = models
        .iter()
        .map(|(label, _)| Member {
            label: (*label).to_owned(),
            failure: failure.filter(|name| name == label).map(|_| "diverged".to_owned()),
            ..Member::default()
        })
        .collect();
    let series = models.iter().enumerate().map(|(member, (_, rows))| {
        let points = (0..).zip(rows).map(|(i, row)| (10 * i, Value::vector(row.clone()))).collect();
        MemberSeries { member, partner: None, series: Series { points, ..Series::default() } }
    });
    let table = CohortSeries::from([("l.loss".to_owned(), series.collect())]);
    let cohort =
        Cohort { members: &members, checkpoints: None, series: &table, device: Device::Cpu };
    let mut sink = MemorySink::default();
    let mut all = json!({ "metric": "l.loss" });
    for (name, value) in params.as_object().unwrap() {
        all[name] = value.clone();
    }
    joint(&LossPca, &all, cohort, &mut sink)?;
    Ok(sink)
}

fn rows_of(json: &Json) -> Rows {
    serde_json::from_value(json.clone()).unwrap()
}

#[test]
fn joint_components_equal_scikit_learn() {
    let golden: Json =
        serde_json::from_str(include_str!("../../../tests/fixtures/trajectories.json")).unwrap();
    let golden = &golden["loss_pca"];
    let models: Vec<Rows> = golden["models"].as_array().unwrap().iter().map(rows_of).collect();
    let [a, b] = [models[0].clone(), models[1].clone()];
    let expected = rows_of(&golden["pc"]);
    let sink = run(&[("a", a), ("b", b)], None, json!({})).unwrap();
    let evr = &sink.metrics["evr"][&80].data;
    let expected_evr: Vec<f64> = serde_json::from_value(golden["evr"].clone()).unwrap();
    assert!(evr.iter().zip(&expected_evr).all(|(a, b)| (a - b).abs() < 1e-9), "{evr:?}");
    assert_eq!(sink.metrics["pc"].len(), 9, "steps of both models");
    for (row, expected) in expected.iter().enumerate() {
        // Seven rows of the first model, then nine of the second.
        let (member, step) = if row < 7 { (0, 10 * row) } else { (1, 10 * (row - 7)) };
        let found = &sink.metrics["pc"][&(step as u64)];
        assert_eq!(found.shape, [2, 3]);
        for (k, expected) in expected.iter().take(3).enumerate() {
            assert!((found.data[3 * member + k] - expected).abs() < 1e-8, "row {row}, {k}");
        }
    }
    let late = &sink.metrics["pc"][&80];
    assert!(late.data[..3].iter().all(|value| value.is_nan()), "the first has no such checkpoint");
    assert_eq!(late.labels[0].as_ref().unwrap(), &["a", "b"]);
}

/// Tokens that are learned smoothly, half of them only from checkpoint `turn` on.
fn losses(turn: Option<usize>, seed: u64) -> Rows {
    let mut rng = random::stream(seed, "loss-pca/test");
    (0..60usize)
        .map(|i| {
            let early = i.min(turn.unwrap_or(60)) as f64 / 30.0;
            let late = turn.map_or(0.0, |turn| i.saturating_sub(turn) as f64 / 30.0);
            (0..40)
                .map(|token| {
                    let noise = random::normal(&mut rng);
                    4.0 - if token % 2 == 0 { early } else { late } + 0.02 * noise
                })
                .collect()
        })
        .collect()
}

#[test]
fn turns_are_told_from_straight_paths() {
    let models = [("turns", losses(Some(35), 1)), ("straight", losses(None, 2))];
    let sink = run(&models, None, json!({ "span": 3 })).unwrap();
    let at = |name: &str| sink.metrics[name][&590].data.clone();
    assert_eq!(at("n_turns"), [1.0, 0.0]);
    let [step, low, high] = ["turn_step", "turn_low", "turn_high"].map(|name| at(name)[0]);
    // Over ln(step + 1) the path goes at another pace, its corner is where it is.
    assert!((step - 350.0).abs() <= 10.0 && low <= 350.0 && 350.0 <= high, "{step} {low} {high}");
    assert_eq!(at("turn_bracket_low")[0], step - 10.0);
    assert_eq!(at("turn_bracket_high")[0], step + 10.0);
    assert!(at("turn_null_rate").iter().all(|rate| *rate <= 0.12), "{:?}", at("turn_null_rate"));
    assert!(at("turn_p")[0] <= 0.05 && at("turn_step")[4].is_nan());
    let angle = sink.metrics["turn_angle"][&350].data[0];
    assert!((angle - std::f64::consts::FRAC_PI_2).abs() < 0.2, "{angle}");
    let reports: Json = serde_json::from_slice(&sink.artifacts["events.json"]).unwrap();
    assert_eq!((&reports[0]["model"], &reports[0]["kind"]), (&json!("turns"), &json!("turn")));
}

#[test]
fn models_with_other_tokens_are_refused() {
    let models = [("a", vec![vec![1.0, 2.0]; 5]), ("b", vec![vec![1.0, 2.0, 3.0]; 5])];
    let error = run(&models, None, json!({})).unwrap_err();
    assert_eq!(error.class(), crate::Class::Input);
    assert!(error.to_string().contains("`b` at step 0 has 3 values, that of `a` 2"), "{error}");
    // One that failed is named, not stacked.
    let sink = run(&models, Some("b"), json!({})).unwrap();
    assert_eq!(sink.metrics["pc"][&0].shape[0], 1);
    assert_eq!(sink.scalar("n_failed", 40), Some(1.0));
    let missing = [("a", vec![vec![f64::NAN]; 5])];
    let error = run(&missing, None, json!({})).unwrap_err();
    assert!(error.to_string().contains("`a` has no value at step 0"), "{error}");
}

#[test]
fn tokens_that_are_missing_somewhere_are_left_out() {
    let mut rows = losses(Some(35), 1);
    rows[7][3] = f64::NAN;
    let sink = run(&[("a", rows)], None, json!({ "n_null": 0 })).unwrap();
    assert_eq!(sink.scalar("n_tokens", 590), Some(39.0));
    assert!(sink.metrics["turn_null_rate"][&590].data[0].is_nan(), "no null, no events");
}
