use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const COSTS: [Cost; 4] = [Cost::Level, Cost::Normal, Cost::Slope, Cost::Kernel];

#[derive(Deserialize)]
struct Golden {
    y: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    cost: String,
    penalty: f64,
    change_points: Vec<usize>,
    /// `[start, end, cost]`
    costs: Vec<(usize, usize, f64)>,
}

fn named(name: &str) -> Cost {
    match name {
        "l2" => Cost::Level,
        "normal" => Cost::Normal,
        "clinear" => Cost::Slope,
        _ => Cost::Kernel,
    }
}

fn total(segmenter: &Segmenter, points: &[usize], n: usize, penalty: f64) -> f64 {
    let ends = points.iter().copied().chain([n]);
    let starts = [0].into_iter().chain(points.iter().copied());
    starts.zip(ends).map(|(start, end)| segmenter.cost(start, end) + penalty).sum()
}

#[test]
fn costs_and_segmentations_are_those_of_ruptures() {
    let text = include_str!("../../../tests/fixtures/change_points.json");
    let goldens: Vec<Golden> = serde_json::from_str(text).unwrap();
    let mut equal = 0;
    for golden in &goldens {
        for case in &golden.cases {
            let segmenter = Segmenter::new(named(&case.cost), &golden.y);
            for &(start, end, expected) in &case.costs {
                let actual = segmenter.cost(start, end);
                let scale = 1.0 + expected.abs();
                assert!((actual - expected).abs() < 1e-8 * scale, "{} {start}..{end}", case.cost);
            }
            let found = segmenter.change_points(case.penalty);
            let n = golden.y.len();
            let ours = total(&segmenter, &found, n, case.penalty);
            let theirs = total(&segmenter, &case.change_points, n, case.penalty);
            // Theirs prunes more than the costs allow, so that it is sometimes dearer.
            assert!(ours <= theirs + 1e-8, "{}: {found:?} {:?}", case.cost, case.change_points);
            equal += usize::from(found == case.change_points);
        }
    }
    let cases: usize = goldens.iter().map(|golden| golden.cases.len()).sum();
    assert!(equal * 5 >= cases * 4, "{equal} of {cases}");
}

/// Every segmentation, tried out.
fn cheapest(segmenter: &Segmenter, n: usize, penalty: f64) -> f64 {
    let min_size = segmenter.cost.min_size();
    let mut best = vec![f64::INFINITY; n + 1];
    best[0] = 0.0;
    for end in min_size..=n {
        for start in 0..=end - min_size {
            best[end] = best[end].min(best[start] + segmenter.cost(start, end) + penalty);
        }
    }
    best[n]
}

proptest! {
    #[test]
    fn the_segmentation_is_the_cheapest(
        y in prop::collection::vec(-3.0..3.0f64, 6..40),
        penalty in 0.01..20.0f64,
    ) {
        for cost in COSTS {
            let segmenter = Segmenter::new(cost, &y);
            let points = segmenter.change_points(penalty);
            let ours = total(&segmenter, &points, y.len(), penalty);
            prop_assert!((ours - cheapest(&segmenter, y.len(), penalty)).abs() < 1e-9, "{cost:?}");
            let ends = points.iter().copied().chain([y.len()]);
            let starts = [0].into_iter().chain(points.iter().copied());
            prop_assert!(starts.zip(ends).all(|(start, end)| end - start >= cost.min_size()));
        }
    }
}

#[test]
fn a_step_and_a_bend_are_found_where_they_are() {
    let noise = |i: usize| 0.01 * ((i * 7919 % 101) as f64 / 50.0 - 1.0);
    let step: Vec<f64> = (0..60).map(|i| f64::from(u8::from(i >= 23)) + noise(i)).collect();
    let bend: Vec<f64> = (0..60).map(|i| (i as f64 - 29.0).max(0.0) + noise(i)).collect();
    for (cost, y, at) in [
        (Cost::Level, &step, 23),
        (Cost::Normal, &step, 23),
        (Cost::Kernel, &step, 23),
        (Cost::Slope, &bend, 30),
    ] {
        let y = standardised(y);
        let segmenter = Segmenter::new(cost, &y);
        assert_eq!(segmenter.change_points(penalty(cost, &y)), [at], "{cost:?}");
        assert_eq!(segmenter.best_split(0, 60).unwrap().0, at, "{cost:?}");
    }
}

#[test]
fn noise_alone_rarely_changes() {
    let mut found = 0;
    for seed in 0..200 {
        let mut rng = crate::random::stream(seed, "noise");
        let uniform = |rng: &mut _| crate::random::below(rng, 1 << 20) as f64 / f64::from(1 << 20);
        let y: Vec<f64> =
            (0..80).map(|_| (0..12).map(|_| uniform(&mut rng)).sum::<f64>() - 6.0).collect();
        let y = standardised(&y);
        let segmenter = Segmenter::new(Cost::Level, &y);
        let points = segmenter.change_points(penalty(Cost::Level, &y) * 1.5);
        found += usize::from(!points.is_empty());
    }
    assert!(found <= 20, "{found} of 200");
}

#[test]
fn short_and_constant_curves_have_no_change() {
    for cost in COSTS {
        for y in [vec![], vec![1.0], vec![1.0; 3], vec![2.0; 50]] {
            let y = if y.is_empty() { y } else { standardised(&y) };
            let segmenter = Segmenter::new(cost, &y);
            assert_eq!(segmenter.change_points(penalty(cost, &y)), Vec::<usize>::new());
        }
    }
}
