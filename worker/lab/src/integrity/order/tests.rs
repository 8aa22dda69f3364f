//! Synthetic trainings of several shapes and schedules, clean and with planted defects.

use rand_distr::{Distribution, StandardNormal};

use super::*;
use crate::random;

/// How a synthetic training moves.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// A straight line.
    Line,
    /// An arc.
    Arc,
    /// A random walk.
    Walk,
    /// Line and walk together.
    Drift,
    /// Exponential approach to a minimum, with gradient noise around it.
    Settling,
    /// Gradient noise alone: samples of a stationary process.
    Rest,
    /// Noise that shrinks, as under a decaying learning rate.
    Annealed,
    /// Jumps between two valley walls while moving on slowly.
    Oscillating,
    /// A plateau, a fast transition, a plateau.
    Transition,
    /// A walk with a momentum.
    Momentum,
}

const SHAPES: [Shape; 10] = [
    Shape::Line,
    Shape::Arc,
    Shape::Walk,
    Shape::Drift,
    Shape::Settling,
    Shape::Rest,
    Shape::Annealed,
    Shape::Oscillating,
    Shape::Transition,
    Shape::Momentum,
];

fn schedules() -> Vec<Vec<u64>> {
    let powers: Vec<u64> = std::iter::once(0).chain((0..10).map(|k| 1 << k)).collect();
    let pythia = powers.iter().copied().chain((1000..=60_000).step_by(1000)).collect();
    vec![
        (0..=2000).step_by(100).collect(),
        (0..=700).step_by(100).collect(),
        powers,
        pythia,
        vec![0, 1, 10, 100, 1000, 10_000, 20_000, 30_000],
    ]
}

fn noise(seed: u64, purpose: &str, n: usize) -> Vec<f64> {
    let mut rng = random::stream(seed, purpose);
    (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
}

/// Points of a training in `n_dims` dimensions.
fn training(shape: Shape, steps: &[u64], n_dims: usize, seed: u64) -> Vec<Vec<f64>> {
    let total = *steps.last().unwrap() as f64;
    let direction = noise(seed, "direction", n_dims);
    let other = noise(seed, "other", n_dims);
    let start = noise(seed, "start", n_dims);
    let combine = |a: f64, b: f64, extra: &[f64], size: f64| -> Vec<f64> {
        (0..n_dims).map(|k| start[k] + a * direction[k] + b * other[k] + size * extra[k]).collect()
    };
    let zero = vec![0.0; n_dims];
    let mut walk = zero.clone();
    let mut speed = noise(seed, "speed", n_dims);
    let mut before = 0;
    let mut points = Vec::new();
    for (index, &step) in steps.iter().enumerate() {
        let time = step as f64 / total;
        let elapsed = (step - before) as f64 / total;
        before = step;
        for (place, fresh) in walk.iter_mut().zip(noise(seed, &format!("walk/{index}"), n_dims)) {
            *place += elapsed.sqrt() * fresh;
        }
        let fresh = noise(seed, &format!("fresh/{index}"), n_dims);
        points.push(match shape {
            Shape::Line => combine(time, 0.0, &zero, 0.0),
            Shape::Arc => combine((2.0 * time).cos(), (2.0 * time).sin(), &zero, 0.0),
            Shape::Walk => combine(0.0, 0.0, &walk, 1.0),
            Shape::Drift => combine(time, 0.0, &walk, 0.7),
            Shape::Settling => combine((-6.0 * time).exp(), 0.0, &fresh, 0.02),
            Shape::Rest => combine(0.0, 0.0, &fresh, 1.0),
            Shape::Annealed => combine(0.2 * time, 0.0, &fresh, 0.5 * (1.02 - time)),
            Shape::Oscillating => {
                let side = if index % 2 == 0 { 1.0 } else { -1.0 };
                combine(0.3 * time, side, &fresh, 0.01)
            }
            Shape::Transition => {
                combine(1.0 / (1.0 + (-(time - 0.5) * 40.0).exp()), 0.0, &walk, 0.02)
            }
            Shape::Momentum => {
                let keep = (-20.0 * elapsed).exp();
                let renew = (1.0 - keep * keep).sqrt();
                for (v, fresh) in speed.iter_mut().zip(&fresh) {
                    *v = keep * *v + renew * fresh;
                }
                let sum: Vec<f64> =
                    walk.iter().zip(&speed).map(|(w, v)| w * 0.2 + v * time).collect();
                combine(0.0, 0.0, &sum, 1.0)
            }
        });
    }
    points
}

fn find(points: &[Vec<f64>]) -> Vec<Misplaced> {
    let points: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
    misplaced(&Distances::new(&points))
}

#[test]
fn clean_trainings_are_clean() {
    // (dimensions, seeds, most false findings per thousand): order is lost where there are few dimensions.
    for (n_dims, seeds, per_mille) in [(5, 40, 10), (12, 40, 8), (30, 40, 0), (509, 8, 0)] {
        let mut n_tried = 0;
        let mut wrong = Vec::new();
        for (shape, steps) in
            SHAPES.into_iter().flat_map(|s| schedules().into_iter().map(move |t| (s, t)))
        {
            for seed in 0..seeds {
                n_tried += 1;
                let found = find(&training(shape, &steps, n_dims, seed));
                if !found.is_empty() {
                    wrong.push(format!(
                        "{shape:?} of {} steps, seed {seed}: {found:?}",
                        steps.len()
                    ));
                }
            }
        }
        assert!(1000 * wrong.len() <= per_mille * n_tried, "{n_dims} dimensions: {wrong:#?}");
    }
}

/// Shares of planted exchanges that are found, and that are found as something else.
fn detected(shape: Shape, steps: &[u64], n_dims: usize, lag: usize) -> (f64, f64) {
    let (mut hits, mut others, mut tried) = (0.0, 0.0, 0.0);
    for seed in 0..2 {
        for a in (0..steps.len() - lag).step_by(1 + steps.len() / 15) {
            let mut points = training(shape, steps, n_dims, seed);
            points.swap(a, a + lag);
            let found = find(&points);
            tried += 1.0;
            if found == [Misplaced::Exchanged(a, a + lag)] {
                hits += 1.0;
            } else if !found.is_empty() {
                others += 1.0;
            }
        }
    }
    (hits / tried, others / tried)
}

#[test]
fn exchanges_are_found_where_the_training_moves() {
    let [every_100, short, powers, pythia, _] = <[Vec<u64>; 5]>::try_from(schedules()).unwrap();
    for (shape, steps, n_dims, least) in [
        (Shape::Line, &every_100, 30, 1.0),
        (Shape::Line, &powers, 30, 1.0),
        (Shape::Line, &pythia, 30, 1.0),
        (Shape::Line, &short, 30, 1.0),
        (Shape::Arc, &every_100, 30, 1.0),
        (Shape::Arc, &pythia, 30, 1.0),
        (Shape::Walk, &every_100, 509, 0.95),
        (Shape::Walk, &pythia, 509, 0.95),
        (Shape::Walk, &short, 509, 0.6),
        (Shape::Drift, &every_100, 509, 0.95),
        (Shape::Drift, &pythia, 509, 0.95),
        (Shape::Drift, &short, 509, 0.9),
    ] {
        for lag in [1, 2, 3, 5] {
            let (hits, others) = detected(shape, steps, n_dims, lag);
            let name = format!("{shape:?}, {} steps, lag {lag}", steps.len());
            assert!(
                hits >= least && others <= 0.05,
                "{name}: {hits:.2} found, {others:.2} as others"
            );
        }
    }
}

#[test]
fn at_rest_nothing_is_claimed() {
    let steps = &schedules()[0];
    for shape in [Shape::Rest, Shape::Annealed, Shape::Oscillating] {
        for lag in [1, 4] {
            assert_eq!(detected(shape, steps, 509, lag), (0.0, 0.0), "{shape:?}");
        }
    }
}

#[test]
fn contents_from_elsewhere_are_strangers() {
    for shape in [Shape::Line, Shape::Walk, Shape::Drift, Shape::Arc] {
        for (at, from) in [(4, 15), (12, 2), (10, 20), (20, 3)] {
            let mut points = training(shape, &schedules()[0], 509, 1);
            // Near the other checkpoint, not equal to it.
            let blur = noise(9, "blur", 509);
            points[at] = points[from].iter().zip(blur).map(|(x, blur)| x + 0.02 * blur).collect();
            let found = find(&points);
            let expected = Misplaced::Stranger { index: at, near: from };
            assert_eq!(found, [expected], "{shape:?}");
        }
    }
}

#[test]
fn two_exchanges_are_two_findings_and_many_are_none() {
    let steps = &schedules()[0];
    let mut points = training(Shape::Drift, steps, 509, 3);
    points.swap(3, 4);
    points.swap(11, 16);
    let mut found = find(&points);
    found.sort_by_key(|found| match found {
        Misplaced::Exchanged(a, _) => *a,
        Misplaced::Stranger { index, .. } => *index,
    });
    assert_eq!(found, [Misplaced::Exchanged(3, 4), Misplaced::Exchanged(11, 16)]);
    let order = random::permutation(&mut random::stream(0, "shuffle"), points.len());
    let shuffled: Vec<Vec<f64>> = order.iter().map(|&i| points[i as usize].clone()).collect();
    assert_eq!(find(&shuffled), []);
}

#[test]
fn broken_and_few_points_are_no_trouble() {
    assert_eq!(find(&[]), []);
    assert_eq!(find(&vec![vec![1.0, 2.0]; 12]), []);
    let mut points = training(Shape::Line, &schedules()[0], 30, 0);
    points[7][3] = f64::NAN;
    assert_eq!(find(&points), []);
    assert_eq!(find(&points[..5]), []);
}
