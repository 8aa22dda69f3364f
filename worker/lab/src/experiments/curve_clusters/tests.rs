//! Planted groups are found with their transitions; what has no shape is left out.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use sweep_lens::Device;

use super::*;
use crate::{
    Class,
    curve::fit::logistic,
    sink::MemorySink,
    trajectory::{Series, trajectory},
};

const N_POINTS: usize = 60;

fn steps() -> Vec<u64> {
    (0..N_POINTS).map(|i| (0.15 * i as f64).exp() as u64 + i as u64).collect()
}

fn run(curves: &[Vec<f64>], params: Json) -> Result<MemorySink> {
    let points = steps()
        .into_iter()
        .enumerate()
        .map(|(at, step)| (step, Value::vector(curves.iter().map(|curve| curve[at]).collect())));
    let series =
        Series { unit: "nats".to_owned(), axes: vec!["row".to_owned()], points: points.collect() };
    let table = BTreeMap::from([("l.loss".to_owned(), series)]);
    let input = TrajectoryInput { checkpoints: None, series: &table, device: Device::Cpu };
    let mut sink = MemorySink::default();
    let mut all = json!({ "metric": "l.loss" });
    for (name, value) in params.as_object().unwrap() {
        all[name] = value.clone();
    }
    trajectory(&CurveClusters, &all, input, &mut sink)?;
    Ok(sink)
}

fn last(sink: &MemorySink, name: &str) -> Vec<f64> {
    sink.metrics[name].values().next_back().unwrap().data.clone()
}

/// 15 curves that fall at about x = 6.5, 10 that rise at about 3, all of other sizes; 6 smooth ones.
fn planted() -> Vec<Vec<f64>> {
    let mut rng = random::stream(0, "curve-clusters/test");
    let x: Vec<f64> = steps().iter().map(|step| (*step as f64).ln_1p()).collect();
    (0..31)
        .map(|i| {
            let scale = 0.5 + f64::from(i % 7);
            let at = random::normal(&mut rng) * 0.05;
            let shape = |x: f64| match i {
                0..15 => -logistic(x, 6.5 + at, 0.12),
                15..25 => logistic(x, 3.0 + at, 0.12),
                _ => (-0.5 * x).exp(),
            };
            x.iter().map(|&x| scale * (shape(x) + 0.03 * random::normal(&mut rng)) + 4.0).collect()
        })
        .collect()
}

#[test]
fn planted_groups_and_their_transitions() {
    let sink = run(&planted(), json!({})).unwrap();
    assert_eq!(last(&sink, "n_clusters"), [3.0]);
    let sizes = last(&sink, "size");
    let labels = last(&sink, "cluster");
    for group in [0..15, 15..25, 25..31] {
        let first = labels[group.start];
        assert!(labels[group.clone()].iter().all(|label| *label == first), "{labels:?}");
        assert_eq!(sizes[first as usize], group.len() as f64);
    }
    let (fall, rise, smooth) = (labels[0] as usize, labels[15] as usize, labels[25] as usize);
    let verdicts = last(&sink, "verdict");
    assert_eq!([verdicts[fall], verdicts[rise], verdicts[smooth]], [1.0, 1.0, 0.0]);
    for (cluster, x0) in [(fall, 6.5f64), (rise, 3.0)] {
        let truth = x0.exp() - 1.0;
        let [midpoint, low, high] =
            ["midpoint", "midpoint_low", "midpoint_high"].map(|name| last(&sink, name)[cluster]);
        assert!((midpoint / truth).ln().abs() < 0.05, "{midpoint} {truth}");
        assert!(low <= midpoint && midpoint <= high && high - low < 0.2 * truth);
        let bracket = ["bracket_low", "bracket_high"].map(|name| last(&sink, name)[cluster]);
        assert!(bracket[0] <= midpoint && midpoint <= bracket[1] + 0.5);
        assert!(last(&sink, "cohesion")[cluster] > 0.97);
    }
    assert!(last(&sink, "verdict_null").iter().all(|rate| *rate <= 0.1));
    assert!(last(&sink, "silhouette_p")[0] < 0.06);
    assert!(last(&sink, "silhouette_spread_p")[0] < 0.06);
    assert!(last(&sink, "silhouette_tested")[0] > last(&sink, "silhouette_null_high")[0]);
    let silhouettes = last(&sink, "silhouette_by_k");
    assert!((1..7).all(|place| silhouettes[1] >= silhouettes[place]), "{silhouettes:?}");
    assert_eq!(sink.metrics["mean_curve"].len(), N_POINTS);
}

#[test]
fn onsets_spread_evenly_are_no_groups() {
    let mut rng = random::stream(1, "curve-clusters/test");
    let x: Vec<f64> = steps().iter().map(|step| (*step as f64).ln_1p()).collect();
    let mut p = Vec::new();
    for noise in [0.03, 0.2] {
        let curves: Vec<Vec<f64>> = (0..60)
            .map(|i| {
                let at = 2.0 + 5.5 * f64::from(i) / 59.0;
                x.iter()
                    .map(|&x| logistic(x, at, 0.15) + noise * random::normal(&mut rng))
                    .collect()
            })
            .collect();
        let sink = run(&curves, json!({ "n_bootstrap": 0, "n_null": 40 })).unwrap();
        p.push([last(&sink, "silhouette_p")[0], last(&sink, "silhouette_spread_p")[0]]);
    }
    assert!(p.iter().all(|[_, spread]| *spread > 0.1), "{p:?}");
}

#[test]
fn curves_without_shape_are_left_out() {
    let mut curves = planted();
    curves[3] = vec![2.0; N_POINTS];
    curves[7][5] = f64::NAN;
    let params = json!({ "k": 3, "n_bootstrap": 0, "n_null": 0 });
    let sink = run(&curves, params.clone()).unwrap();
    assert_eq!(last(&sink, "n_left_out"), [2.0]);
    let labels = last(&sink, "cluster");
    assert!(labels[3].is_nan() && labels[7].is_nan() && labels[4].is_finite());
    assert!(last(&sink, "verdict_null").iter().all(|rate| rate.is_nan()));
    let error = run(&vec![vec![1.0; N_POINTS]; 9], params).unwrap_err();
    assert_eq!(error.class(), Class::Input);
    assert!(error.to_string().contains("0 curves that change"), "{error}");
}
