//! A planted order is found with its probabilities; curves of one time and seeds without an order are not ordered.

use serde_json::{Value as Json, json};
use sweep_lens::Device;

use super::*;
use crate::{
    Class,
    cohort::{CohortSeries, Member, MemberSeries, joint},
    curve::fit::logistic,
    sink::MemorySink,
    trajectory::Series,
};

/// One model per list of onsets (in ln step) of its curves.
fn run(models: &[Vec<f64>], failure: Option<usize>, params: Json) -> Result<MemorySink> {
    let members: Vec<Member> = (0..models.len())
        .map(|seed| Member {
            label: format!("seed{seed}"),
            seed: Some(seed as u64),
            failure: (failure == Some(seed)).then(|| "diverged".to_owned()),
            ..Member::default()
        })
        .collect();
    let series = models.iter().enumerate().map(|(member, onsets)| {
        let mut rng = random::stream(member as u64, "order/test");
        let points = (0..80u64).map(|i| {
            let step = (0.1 * i as f64).exp() as u64 + i;
            let x = (step as f64).ln_1p();
            let value = |x0: &f64| {
                let noise = random::normal(&mut rng);
                logistic(x, *x0, 0.15) + 0.02 * noise
            };
            (step, Value::vector(onsets.iter().map(value).collect()))
        });
        let series = Series {
            unit: "ratio".to_owned(),
            axes: vec!["head".to_owned()],
            points: points.collect(),
        };
        MemberSeries { member, partner: None, series }
    });
    let table = CohortSeries::from([("h.score".to_owned(), series.collect())]);
    let cohort =
        Cohort { members: &members, checkpoints: None, series: &table, device: Device::Cpu };
    let mut sink = MemorySink::default();
    let mut all = json!({ "metrics": ["h.score"], "n_bootstrap": 100 });
    for (name, value) in params.as_object().unwrap() {
        all[name] = value.clone();
    }
    joint(&Order, &all, cohort, &mut sink)?;
    Ok(sink)
}

fn last(sink: &MemorySink, name: &str) -> Vec<f64> {
    sink.metrics[name].values().next_back().unwrap().data.clone()
}

#[test]
fn probabilities_by_hand() {
    assert_eq!(probability_before(&[1.0, 2.0], &[3.0]), 1.0);
    assert_eq!(probability_before(&[1.0, 5.0], &[3.0]), 0.5);
    assert_eq!(probability_before(&[3.0], &[3.0, 3.0]), 0.5);
    assert_eq!(probability_before(&[1.0, 3.0], &[2.0, 3.0]), (1.0 + 1.0 + 0.0 + 0.5) / 4.0);
    assert!(probability_before(&[], &[1.0]).is_nan());
    assert!(probability_before(&[1.0], &[f64::NAN]).is_nan());
    assert_eq!(bracket(&[0, 10, 20], &[1.0; 3], 10.0), [0.0, 10.0]);
    assert_eq!(bracket(&[0, 10, 20], &[1.0; 3], 11.0), [10.0, 20.0]);
    assert_eq!(bracket(&[0, 10, 20], &[1.0, f64::NAN, 1.0], 11.0), [0.0, 20.0], "as measured");
    assert!(bracket(&[0, 10], &[1.0; 2], 30.0)[1].is_nan());
    assert!(bracket(&[0, 10], &[1.0; 2], f64::NAN)[0].is_nan());
}

#[test]
fn a_planted_order_is_found_in_every_seed() {
    // The third curve begins with the first one: their order is open.
    let models = vec![vec![4.0, 5.5, 4.0]; 5];
    let sink = run(&models, None, json!({})).unwrap();
    assert_eq!(last(&sink, "verdict"), [1.0; 15]);
    let pairs = sink.metrics["before"].values().next().unwrap().labels[1].clone().unwrap();
    assert_eq!(pairs[0], "h.score head=0 < h.score head=1");
    let before = last(&sink, "before");
    assert!(before.chunks(3).all(|run| run[0] > 0.99 && run[2] < 0.01), "{before:?}");
    let p = last(&sink, "order_p");
    assert!(p.chunks(3).all(|run| run[0] < 0.02 && run[2] < 0.02), "{p:?}");
    let mean = last(&sink, "precedence");
    assert!((mean[2] - 0.5).abs() < 0.45 && (mean[2] + mean[6] - 1.0).abs() < 1e-9, "{mean:?}");
    assert!(mean[1] > 0.99 && mean[0] == 0.5);
    let (low, high) = (last(&sink, "precedence_low"), last(&sink, "precedence_high"));
    assert!(low[2] <= mean[2] && mean[2] <= high[2]);
    // Onset: 2.2 widths before the midpoint.
    let truth = (4.0f64 - 2.197 * 0.15).exp() - 1.0;
    for (onset, (low, high)) in last(&sink, "onset")
        .iter()
        .zip(last(&sink, "onset_low").iter().zip(last(&sink, "onset_high")))
        .step_by(3)
    {
        assert!((onset / truth).ln().abs() < 0.15, "{onset} {truth}");
        assert!(*low <= *onset && *onset <= high);
    }
    assert!(last(&sink, "agreement")[0] > 0.3);
    assert_eq!(last(&sink, "mean_rank")[1], 3.0);
}

#[test]
fn seeds_without_a_common_order_do_not_agree() {
    let same: Vec<Vec<f64>> = vec![vec![3.0, 4.0, 5.0, 6.0]; 4];
    let sink = run(&same, None, json!({ "at": "midpoint" })).unwrap();
    assert_eq!(last(&sink, "agreement"), [1.0]);
    assert!(last(&sink, "agreement_p")[0] < 0.01 && last(&sink, "agreement_null_high")[0] < 1.0);
    let mixed = [
        vec![3.0, 4.0, 5.0, 6.0],
        vec![6.0, 5.0, 4.0, 3.0],
        vec![4.0, 6.0, 3.0, 5.0],
        vec![5.0, 3.0, 6.0, 4.0],
    ];
    let sink = run(&mixed, None, json!({})).unwrap();
    assert!(last(&sink, "agreement_p")[0] > 0.3, "{:?}", last(&sink, "agreement_p"));
    // A model alone has an order and nobody to agree with.
    let sink = run(&same[..1], None, json!({})).unwrap();
    assert!(last(&sink, "agreement")[0].is_nan() && last(&sink, "agreement_p")[0].is_nan());
    assert!(last(&sink, "precedence")[1] > 0.99 && last(&sink, "precedence_low")[1].is_nan());
}

#[test]
fn models_that_failed_or_differ() {
    let sink = run(&vec![vec![3.0, 5.0]; 3], Some(1), json!({})).unwrap();
    assert_eq!(last(&sink, "n_failed"), [1.0]);
    assert_eq!(last(&sink, "onset").len(), 4);
    let error = run(&[vec![3.0, 5.0], vec![3.0, 5.0, 6.0]], None, json!({})).unwrap_err();
    assert_eq!(error.class(), Class::Input);
    assert!(error.to_string().contains("entries of their own"), "{error}");
    let error = run(&[vec![3.0]], None, json!({})).unwrap_err();
    assert!(error.to_string().contains("1 cells, expected 2 to 64"), "{error}");
}
