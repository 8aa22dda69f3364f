//! Check 17: planted sigmoids are recovered, and smooth or correlated curves are left alone.

use rand_distr::{Distribution, StandardNormal};

use super::*;
use crate::curve::fit::logistic;

const OPTIONS: Options = Options { log_x: true, log_y: Some(false), n_bootstrap: 0 };

/// About `n` steps, log-spaced from 0 to 20000.
fn log_steps(n: usize) -> Vec<u64> {
    let mut steps: Vec<u64> =
        (0..n).map(|i| (20_001f64.powf(i as f64 / (n - 1) as f64) - 1.0).round() as u64).collect();
    steps.dedup();
    steps
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

#[test]
fn planted_sigmoid_is_recovered_at_snr_10() {
    let steps = log_steps(100);
    let x: Vec<f64> = steps.iter().map(|&step| axis(step, true)).collect();
    let grid_step = (x[x.len() - 1] - x[0]) / 99.0;
    let mut rng = random::stream(0, "planted");
    let (mut n_hit, mut n_called, mut covered) = (0, 0, 0);
    let n_curves = 60;
    for curve in 0..n_curves {
        let x0 = 5.0 + 3.0 * f64::from(curve) / f64::from(n_curves);
        let (w, amplitude) = (0.2, if curve % 2 == 0 { 1.0 } else { -2.0 });
        let y: Vec<f64> = x
            .iter()
            .map(|&x| 4.0 + amplitude * (logistic(x, x0, w) + 0.1 * normal(&mut rng)))
            .collect();
        let options = Options { n_bootstrap: 100, ..OPTIONS };
        let found = Transition::test(&steps, &y, options, &mut rng);
        n_called += u32::from(found.is_transition);
        let fitted = found.fits.as_ref().unwrap().get(Model::Logistic);
        // Nine points lie inside the transition; the standard error of x0 is about .4 grid steps,
        // so that one curve in a hundred may miss by more than one.
        n_hit += u32::from((fitted.parameters[2] - x0).abs() <= grid_step);
        let midpoint = x0.exp() - 1.0;
        covered += u32::from((found.interval[0]..=found.interval[1]).contains(&midpoint));
        assert!(found.bracket[0] <= found.midpoint && found.midpoint <= found.bracket[1] + 0.5);
        assert!(found.onset < found.midpoint && found.midpoint < found.end);
    }
    assert!(n_called >= 58, "{n_called} of {n_curves} called");
    assert!(n_hit >= 57, "{n_hit} of {n_curves} within one grid step");
    assert!(covered >= 48, "{covered} of {n_curves} intervals cover the truth");
}

#[test]
fn planted_width_is_recovered_within_15_percent() {
    // 100 checkpoints over the transition's surroundings, as an adaptive grid would place them.
    let steps: Vec<u64> = (0..100).map(|i| (4.0 + 0.05 * f64::from(i)).exp() as u64).collect();
    let mut rng = random::stream(1, "planted width");
    let mut worst: f64 = 0.0;
    for curve in 0..40 {
        let (x0, w) = (6.0 + 0.02 * f64::from(curve), 0.35);
        let y: Vec<f64> = steps
            .iter()
            .map(|&step| logistic(axis(step, true), x0, w) + 0.1 * 0.3 * normal(&mut rng))
            .collect();
        let found = Transition::test(&steps, &y, OPTIONS, &mut rng);
        let width = found.width_decades * 10f64.ln() / (2.0 * 9f64.ln());
        worst = worst.max((width / w - 1.0).abs());
        assert!((found.onset + 1.0).ln() < (found.midpoint + 1.0).ln());
    }
    assert!(worst < 0.15, "width off by {worst}");
}

fn false_positives(
    n_curves: usize,
    curve: impl Fn(&mut rand_chacha::ChaCha8Rng, &[u64]) -> Vec<f64>,
) -> usize {
    let mut rng = random::stream(7, "null curves");
    (0..n_curves)
        .filter(|index| {
            let steps = log_steps(if index % 2 == 0 { 40 } else { 120 });
            let y = curve(&mut rng, &steps);
            Transition::test(&steps, &y, OPTIONS, &mut rng).is_transition
        })
        .count()
}

#[test]
fn smooth_power_laws_are_not_called() {
    let called = false_positives(200, |rng, steps| {
        let exponent = 0.05 + 0.95 * (random::below(rng, 1000) as f64 / 1000.0);
        let noise = 0.01 + 0.19 * (random::below(rng, 1000) as f64 / 1000.0);
        let value = |step: u64| (step as f64 + 1.0).powf(-exponent);
        steps.iter().map(|&step| 2.0 + value(step) + noise * normal(rng)).collect()
    });
    assert!(called <= 10, "{called} of 200 smooth curves called");
}

/// Curves of pure AR(1) noise, of 200, that are called.
fn called_of_ar1(phi: f64) -> usize {
    false_positives(200, |rng, steps| {
        let mut level = normal(rng) / f64::sqrt(1.0 - phi * phi);
        let mut next = || {
            level = phi * level + normal(rng);
            level
        };
        steps.iter().map(|_| next()).collect()
    })
}

#[test]
fn weakly_correlated_noise_is_not_called() {
    assert!(called_of_ar1(0.5) <= 10);
}

#[test]
fn strongly_correlated_noise_is_not_called() {
    assert!(called_of_ar1(0.9) <= 10);
}

#[test]
fn wandering_noise_is_not_called() {
    assert!(called_of_ar1(0.98) <= 10);
}

#[test]
fn power_law_with_correlated_noise_is_not_called() {
    let called = false_positives(200, |rng, steps| {
        let mut level = 0.0;
        steps
            .iter()
            .map(|&step| {
                level = 0.8 * level + 0.03 * normal(rng);
                1.0 + 2.0 * (step as f64 + 1.0).powf(-0.3) + level
            })
            .collect()
    });
    assert!(called <= 10, "{called} of 200 called");
}

#[test]
fn shuffled_time_is_not_called() {
    // The same values as a clear transition, in another order.
    let step = |rng: &mut rand_chacha::ChaCha8Rng, steps: &[u64]| -> Vec<f64> {
        let x = steps.iter().map(|&step| axis(step, true));
        x.map(|x| logistic(x, 6.0, 0.2) + 0.05 * normal(rng)).collect()
    };
    let shuffled = |rng: &mut rand_chacha::ChaCha8Rng, steps: &[u64]| -> Vec<f64> {
        let values = step(rng, steps);
        let order = random::permutation(rng, values.len());
        order.into_iter().map(|place| values[place as usize]).collect()
    };
    assert_eq!(false_positives(10, step), 10, "as they are, all are called");
    let called = false_positives(60, shuffled);
    assert!(called <= 1, "{called} of 60 shuffled curves called");
}

#[test]
fn losses_over_decades_are_fitted_in_log() {
    let steps: Vec<u64> = (0..60).map(|i| i * 50).collect();
    // A loss that stays near 10 and falls to 1e-6 between steps 1200 and 1800.
    let y: Vec<f64> = steps
        .iter()
        .map(|&step| (2.0 - 16.0 * logistic(axis(step, true), 1500f64.ln(), 0.05)).exp())
        .collect();
    let mut rng = random::stream(0, "decades");
    let options = Options { log_y: None, ..OPTIONS };
    let found = Transition::test(&steps, &y, options, &mut rng);
    assert!(found.log_y && found.is_transition);
    assert!((found.midpoint - 1499.0).abs() < 2.0, "{}", found.midpoint);
    assert_eq!(found.bracket, [1450.0, 1500.0]);
    // 4.394 w / ln 10
    assert!((found.width_decades - 4.394 * 0.05 / 10f64.ln()).abs() < 1e-3);
    assert!(
        !spans_decades(&[1.0, 99.0]) && spans_decades(&[0.1, 10.0]) && !spans_decades(&[0., 5.])
    );
}

#[test]
fn short_constant_and_broken_curves_have_no_verdict() {
    let steps: Vec<u64> = (0..20).collect();
    let mut rng = random::stream(0, "edge");
    for y in [vec![1.5; 20], vec![f64::NAN; 20], (0..7).map(f64::from).collect()] {
        let found = Transition::test(&steps[..y.len()], &y, OPTIONS, &mut rng);
        assert!(!found.is_transition && found.midpoint.is_nan() && found.fits.is_none());
    }
    // Missing points are left out, the rest is judged.
    let mut y: Vec<f64> = steps.iter().map(|&step| f64::from(u8::from(step > 9))).collect();
    y[3] = f64::NAN;
    let found = Transition::test(&steps, &y, OPTIONS, &mut rng);
    assert_eq!((found.n_points, found.bracket), (19, [9.0, 10.0]));
}

#[test]
fn quantiles_interpolate() {
    assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
    assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
    assert_eq!(quantile(&[1.0], 0.975), 1.0);
}

#[test]
fn plain_steps_tell_a_step_from_an_exponential() {
    let steps: Vec<u64> = (0..60).map(|i| i * 50).collect();
    let options = Options { log_x: false, ..OPTIONS };
    let test = |curve: &dyn Fn(f64) -> f64| {
        let mut noise = random::stream(3, "noise");
        let noisy = |&step: &u64| curve(step as f64) + 1e-3 * normal(&mut noise);
        let values: Vec<f64> = steps.iter().map(noisy).collect();
        Transition::test(&steps, &values, options, &mut random::stream(1, "plain"))
    };
    let sharp = test(&|t| 2.3 / (1.0 + ((t - 1000.0) / 60.0).exp()));
    assert!(sharp.is_transition && (sharp.midpoint - 1000.0).abs() < 5.0, "{sharp:?}");
    let smooth = test(&|t| 0.2 + 2.3 * (-t / 700.0).exp());
    assert!(!smooth.is_transition);
    let fit = smooth.fits.unwrap().get(Model::PowerLaw).clone();
    assert!((fit.parameters[2] * 700.0 - 1.0).abs() < 1e-2, "the rate, in steps: {fit:?}");
}
