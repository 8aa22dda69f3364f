//! Runs whose step of learning is announced by one metric and not by another.

use serde_json::{Value as Json, json};

use super::*;
use crate::{
    Class,
    cohort::{CohortSeries, Member, joint},
    sink::MemorySink,
    trajectory::Series,
};

/// `n` runs of 20 steps; run i learns at step 10 + i/2, every fourth one never. `told` foretells the time, `wild`
/// oscillates in those that learn, `blind` knows nothing.
fn run(n: usize, params: &Json) -> Result<MemorySink> {
    let mut table = CohortSeries::new();
    let mut rng = random::stream(5, "early-signs/test");
    let mut noise = || random::below(&mut rng, 1000) as f64 / 1000.0;
    for member in 0..n {
        let never = member % 4 == 3;
        let time = 10 + member as u64 / 2;
        let mut curves: [Vec<(u64, Value)>; 4] = Default::default();
        for step in 0..=20u64 {
            let learned = !never && step >= time;
            let wave = if step % 2 == 0 { 0.4 } else { -0.4 };
            let values = [
                if learned { 1.0 } else { 0.1 },
                if never { 30.0 } else { time as f64 + 0.1 * noise() },
                5.0 + if never { 0.0 } else { wave },
                1.0 + noise(),
            ];
            for (curve, value) in curves.iter_mut().zip(values) {
                curve.push((step, Value::scalar(value)));
            }
        }
        for (name, points) in ["r.acc", "e.told", "e.wild", "e.blind"].into_iter().zip(curves) {
            let series = Series { points, ..Series::default() };
            let entry = table.entry(name.to_owned()).or_default();
            entry.push(MemberSeries { member, partner: None, series });
        }
    }
    let members: Vec<Member> =
        (0..n).map(|i| Member { label: format!("m{i}"), ..Member::default() }).collect();
    let cohort =
        Cohort { members: &members, checkpoints: None, series: &table, device: Device::Cpu };
    let mut sink = MemorySink::default();
    joint(&EarlySigns, params, cohort, &mut sink)?;
    Ok(sink)
}

fn params() -> Json {
    json!({ "outcome": "r.acc", "metrics": ["e.told", "e.wild", "e.blind"], "n_steps": 21 })
}

#[test]
fn signs_that_know_are_told_from_those_that_do_not() {
    let sink = run(16, &params()).unwrap();
    let labels = sink.metrics["rho"][&8].labels[0].clone().unwrap();
    let at = |name: &str, step: u64, sign: &str| {
        sink.metrics[name][&step].data[labels.iter().position(|label| label == sign).unwrap()]
    };
    assert_eq!(sink.scalar("n_reached", 20), Some(12.0));
    assert_eq!((sink.scalar("n_open", 8), sink.scalar("n_open", 12)), (Some(16.0), Some(11.0)));
    assert!(at("rho", 8, "e.told value") > 0.9 && at("rho_low", 8, "e.told value") > 0.8);
    assert!(at("rho_p", 8, "e.told value") < 0.01 && at("r2", 8, "e.told value") > 0.9);
    assert!(at("rho_p", 8, "e.blind value") > 0.02);
    assert!(at("r2", 8, "e.blind value") < 0.5);
    // Later learners have the smaller value, and oscillate.
    assert_eq!(at("auroc", 8, "e.told value"), 0.0);
    assert_eq!(at("auroc", 8, "e.wild oscillation"), 1.0);
    assert_eq!(at("auroc_low", 8, "e.wild oscillation"), 1.0);
    // Nothing is known of an oscillation from two points.
    assert!(at("auroc", 1, "e.wild oscillation").is_nan());
    assert!(sink.scalar("r2_all", 8).unwrap() > 0.8);
    // Nobody is left that learns later.
    assert!(at("rho", 20, "e.told value").is_nan() && at("auroc", 20, "e.told value").is_nan());
}

#[test]
fn statistics_by_hand() {
    assert_eq!(auroc(&[(1.0, true), (2.0, false), (3.0, true), (3.0, false)]), 0.375);
    assert!(auroc(&[(1.0, true)]).is_nan());
    assert_eq!(oscillation(&[0.0, 1.0, 0.0, 1.0]), 2.0);
    assert_eq!(oscillation(&[0.0, 1.0, 2.0, 3.0]), 0.0);
    assert!(oscillation(&[0.0, 1.0]).is_nan());
    let actual = [1.0, 2.0, 4.0];
    assert_eq!(r2(&actual, &actual), 1.0);
    let means: Vec<f64> = actual.iter().map(|a| (7.0 - a) / 2.0).collect();
    assert_eq!(r2(&means, &actual), 0.0);
    assert_eq!(spread(&[1, 2, 3, 4, 5], 3), [1, 3, 5]);
    assert_eq!(spread(&[1, 2], 3), [1, 2]);
}

#[test]
fn ridge_equals_a_line_where_there_is_one_sign_and_no_penalty() {
    let signs: Vec<Vec<f64>> = [1.0, 2.0, 3.0, 5.0, 8.0].iter().map(|x| vec![*x]).collect();
    let times = [0.3, 0.1, 0.9, 1.4, 1.2];
    let later: Vec<(&Vec<f64>, f64)> = signs.iter().zip(times).collect();
    let left_out = |out: usize| {
        let keep = |of: &dyn Fn(usize) -> f64| {
            (0..5).filter(|at| *at != out).map(of).collect::<Vec<f64>>()
        };
        let line = affine(&keep(&|at| signs[at][0]), &keep(&|at| times[at]));
        line.a + line.b * signs[out][0]
    };
    let expected = r2(&(0..5).map(left_out).collect::<Vec<f64>>(), &times);
    assert!((r2_of_all(&later, 1e-9) - expected).abs() < 1e-6);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let mut wrong = params();
    wrong["metrics"] = json!(["e.none"]);
    assert_eq!(run(4, &wrong).unwrap_err().class(), Class::Input);
    wrong["metrics"] = json!([]);
    assert!(run(4, &wrong).is_err());
}
