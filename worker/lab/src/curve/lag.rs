//! Which of two curves moves first: correlation of their increments at every lag, and autoregressions with and without
//! the other one's past.
//!
//! Main items: [`Lags`], [`granger`], [`f_tail`]. A positive lag means that the first curve leads.

use rand::Rng;

use super::{order::interval, transition::quantile};
use crate::random;

/// Fewest increments for a verdict.
pub const MIN_INCREMENTS: usize = 10;

/// Changes from point to point.
pub fn increments(values: &[f64]) -> Vec<f64> {
    values.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Pearson's correlation of two lists with weights; NaN if one side is constant.
fn correlation(weights: &[f64], x: &[f64], y: &[f64]) -> f64 {
    let total: f64 = weights.iter().sum();
    let mean = |values: &[f64]| weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for ((w, x), y) in weights.iter().zip(x).zip(y) {
        xx += w * (x - mean_x).powi(2);
        xy += w * (x - mean_x) * (y - mean_y);
        yy += w * (y - mean_y).powi(2);
    }
    xy / (xx * yy).sqrt()
}

/// Correlations at all lags from minus to plus the largest one, over the places that every lag has.
#[derive(Debug, Clone, PartialEq)]
pub struct Lags {
    /// Correlation of x at a place with y that many places later, lags ascending.
    pub correlation: Vec<f64>,
    /// The lag of largest magnitude; NaN if there is none.
    pub lag: f64,
    /// Its correlation.
    pub peak: f64,
    /// Squared correlations at positive lags minus those at negative ones, over the sum of both.
    pub lead_score: f64,
}

impl Lags {
    /// Of increments; longer than twice the largest lag.
    pub fn of(x: &[f64], y: &[f64], max_lag: usize) -> Self {
        Self::weighted(x, y, max_lag, &vec![1.0; x.len() - 2 * max_lag])
    }

    fn weighted(x: &[f64], y: &[f64], max_lag: usize, weights: &[f64]) -> Self {
        let n = weights.len();
        let of = |lag: usize| correlation(weights, &x[max_lag..][..n], &y[lag..][..n]);
        let found: Vec<f64> = (0..=2 * max_lag).map(of).collect();
        let best = (0..found.len())
            .filter(|&lag| found[lag].is_finite())
            .max_by(|&a, &b| found[a].abs().total_cmp(&found[b].abs()));
        let squares = |lags: std::ops::Range<usize>| {
            found[lags].iter().filter(|r| r.is_finite()).map(|r| r * r).sum::<f64>()
        };
        let (before, after) = (squares(0..max_lag), squares(max_lag + 1..2 * max_lag + 1));
        Self {
            lag: best.map_or(f64::NAN, |lag| lag as f64 - max_lag as f64),
            peak: best.map_or(f64::NAN, |lag| found[lag]),
            lead_score: (after - before) / (after + before),
            correlation: found,
        }
    }

    /// 95 % intervals of lag, its correlation and the lead score: blocks of about n^(1/3) places get random weights
    /// (Rubin's Bayesian bootstrap), each place with y at all its lags. Unlike drawing blocks anew this never loses
    /// the one stretch in which something happens.
    pub fn intervals(
        x: &[f64],
        y: &[f64],
        max_lag: usize,
        n_bootstrap: usize,
        rng: &mut impl Rng,
    ) -> [[f64; 2]; 3] {
        let n = x.len() - 2 * max_lag;
        let block = (n as f64).cbrt().ceil() as usize;
        let mut samples: [Vec<f64>; 3] = Default::default();
        for _ in 0..n_bootstrap {
            let first = random::below(rng, block as u64) as usize;
            let of_blocks: Vec<f64> = (0..=n / block + 1).map(|_| exponential(rng)).collect();
            let weights: Vec<f64> = (0..n).map(|at| of_blocks[(at + first) / block]).collect();
            let found = Self::weighted(x, y, max_lag, &weights);
            let row = [found.lag, found.peak, found.lead_score];
            samples.iter_mut().zip(row).for_each(|(all, value)| all.push(value));
        }
        samples.map(interval)
    }
}

/// How often a circle of shifts brings the curves as close: the share of all shifts of y, none among them, whose largest
/// correlation up to `max_lag` away is at least the one without a shift, everything taken in the round; and the 95 % quantile. Shifts that leave the
/// peak within the lags belong to them, as coincidences by chance would. NaN for constant curves.
pub fn shift_test(x: &[f64], y: &[f64], max_lag: usize) -> [f64; 2] {
    let n = y.len();
    let ones = vec![1.0; n];
    let doubled = [y, y].concat();
    let round: Vec<f64> =
        (0..n).map(|lag| correlation(&ones, x, &doubled[lag..][..n]).abs()).collect();
    let largest = |shift: usize| {
        (0..=2 * max_lag).map(|lag| round[(shift + n + lag - max_lag) % n]).fold(f64::NAN, f64::max)
    };
    let mut all: Vec<f64> = (0..n).map(largest).collect();
    let found = all[0];
    if !found.is_finite() {
        return [f64::NAN; 2];
    }
    let as_large = all.iter().filter(|value| **value >= found - 1e-12).count() as f64;
    all.sort_by(f64::total_cmp);
    [as_large / n as f64, quantile(&all, 0.95)]
}

/// An exponential number of mean 1.
fn exponential(rng: &mut impl Rng) -> f64 {
    let uniform = ((rng.next_u64() >> 11) + 1) as f64 * 2f64.powi(-53);
    -uniform.ln()
}

/// A curve that is moved against the other one in a circle.
pub struct Shifts {
    shifted: Vec<Vec<f64>>,
}

impl Shifts {
    /// All shifts of `y` but none, or `most` of them drawn without repetition.
    pub fn of(y: &[f64], most: usize, rng: &mut impl Rng) -> Self {
        let n = y.len();
        let order = random::permutation(rng, n.saturating_sub(1));
        let shift = |at: i64| (0..n).map(|i| y[(i + at as usize + 1) % n]).collect();
        Self { shifted: order.into_iter().take(most).map(shift).collect() }
    }

    /// Share of shifts with at least this statistic, the curve as it is among them. NaN without shifts or statistic.
    pub fn p(&self, found: f64, statistic: impl Fn(&[f64]) -> f64) -> f64 {
        let null = self.shifted.iter().map(|y| statistic(y)).filter(|value| value.is_finite());
        let (n, as_large) =
            null.fold((0.0, 0.0), |(n, m), v| (n + 1.0, m + f64::from(u8::from(v >= found))));
        if n > 0.0 && found.is_finite() { (1.0 + as_large) / (1.0 + n) } else { f64::NAN }
    }
}

/// Does the past of x help to foretell y?
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Granger {
    /// F statistic of the coefficients of x; NaN where it is not defined.
    pub f: f64,
    /// Its p under normal, independent errors.
    pub p: f64,
}

/// F test of the coefficients of x in `y_t = c + Σ a_k y_{t-k} + Σ b_k x_{t-k}`, k from 1 to `order`.
pub fn granger(x: &[f64], y: &[f64], order: usize) -> Granger {
    let undefined = Granger { f: f64::NAN, p: f64::NAN };
    let n = y.len().saturating_sub(order);
    let Some(freedom) = n.checked_sub(2 * order + 1).filter(|free| *free > 0 && order > 0) else {
        return undefined;
    };
    let target = &y[order..];
    let past = |series: &[f64]| -> Vec<Vec<f64>> {
        (1..=order).map(|k| series[order - k..series.len() - k].to_vec()).collect()
    };
    let mut fit = Regression::new(target);
    for column in &past(y) {
        fit.add(column);
    }
    let small = fit.rss();
    for column in &past(x) {
        fit.add(column);
    }
    let full = fit.rss();
    let f = (small - full).max(0.0) / order as f64 / (full / freedom as f64);
    // Where nothing is left to explain (0 / 0) there is no test.
    if f.is_finite() {
        Granger { f, p: f_tail(f, order as f64, freedom as f64) }
    } else {
        undefined
    }
}

/// The order from 1 to `most` of lowest BIC of both curves' own autoregressions, over the same points.
pub fn best_order(x: &[f64], y: &[f64], most: usize) -> usize {
    let bic = |order: usize| {
        let of = |series: &[f64]| {
            let mut fit = Regression::new(&series[most..]);
            for k in 1..=order {
                fit.add(&series[most - k..series.len() - k]);
            }
            let n = (series.len() - most) as f64;
            n * (fit.rss().max(f64::MIN_POSITIVE) / n).ln() + order as f64 * n.ln()
        };
        of(x) + of(y)
    };
    (1..=most.max(1)).min_by(|&a, &b| bic(a).total_cmp(&bic(b))).unwrap_or(1)
}

/// Least squares by Gram-Schmidt: a constant and columns that are added one after the other.
struct Regression {
    basis: Vec<Vec<f64>>,
    rest: Vec<f64>,
}

impl Regression {
    fn new(y: &[f64]) -> Self {
        let mut fit = Self { basis: Vec::new(), rest: y.to_vec() };
        fit.add(&vec![1.0; y.len()]);
        fit
    }

    fn add(&mut self, column: &[f64]) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let before = dot(column, column).sqrt();
        let mut column = column.to_vec();
        // Twice is enough for full precision.
        for _ in 0..2 {
            for known in &self.basis {
                let share = dot(&column, known);
                column.iter_mut().zip(known).for_each(|(c, k)| *c -= share * k);
            }
        }
        let norm = dot(&column, &column).sqrt();
        // A column that the others make up adds nothing.
        if norm <= 1e-10 * before {
            return;
        }
        for c in &mut column {
            *c /= norm;
        }
        let share = dot(&self.rest, &column);
        self.rest.iter_mut().zip(&column).for_each(|(rest, c)| *rest -= share * c);
        self.basis.push(column);
    }

    fn rss(&self) -> f64 {
        self.rest.iter().map(|rest| rest * rest).sum()
    }
}

/// P(F > f) of an F distribution with these degrees of freedom.
pub fn f_tail(f: f64, d1: f64, d2: f64) -> f64 {
    if f <= 0.0 {
        return 1.0;
    }
    regularised_beta(d2 / (d2 + d1 * f), d2 / 2.0, d1 / 2.0)
}

/// Stands in for a denominator of zero.
const TINY: f64 = 1e-300;

/// The regularised incomplete beta function by its continued fraction (Lentz).
fn regularised_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return f64::from(u8::from(x >= 1.0));
    }
    // The fraction converges fast on the left of the mean.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - regularised_beta(1.0 - x, b, a);
    }
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let front =
        (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp() / a;
    let mut upper = 1.0;
    let mut lower = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = lower;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            lower = 1.0 / guard(1.0 + term * lower);
            upper = guard(1.0 + term / upper);
            change = upper * lower;
            fraction *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// ln Γ(x) for x > 0 by Lanczos' series (g = 7, nine terms).
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let pi = std::f64::consts::PI;
        return (pi / (pi * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let t = x + 7.5;
    let sum: f64 = TERMS[0]
        + TERMS[1..].iter().zip(1..).map(|(term, i)| term / (x + f64::from(i))).sum::<f64>();
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    fn golden() -> Json {
        serde_json::from_str(include_str!("../../tests/fixtures/trajectories.json")).unwrap()
    }

    fn numbers(json: &Json) -> Vec<f64> {
        serde_json::from_value(json.clone()).unwrap()
    }

    #[test]
    fn tails_of_f_equal_scipy() {
        for case in golden()["f_tail"].as_array().unwrap() {
            let [f, d1, d2, p] = ["f", "d1", "d2", "p"].map(|name| case[name].as_f64().unwrap());
            let found = f_tail(f, d1, d2);
            assert!((found / p - 1.0).abs() < 1e-9, "F({d1}, {d2}) > {f}: {found}, expected {p}");
        }
        assert_eq!(f_tail(0.0, 2.0, 3.0), 1.0);
    }

    #[test]
    fn lags_and_autoregressions_equal_numpy() {
        for case in golden()["lead_lag"].as_array().unwrap() {
            let (x, y) = (numbers(&case["x"]), numbers(&case["y"]));
            let max_lag = case["max_lag"].as_u64().unwrap() as usize;
            let found = Lags::of(&x, &y, max_lag);
            for (found, expected) in found.correlation.iter().zip(numbers(&case["ccf"])) {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
            for case in case["granger"].as_array().unwrap() {
                let found = granger(&x, &y, case["order"].as_u64().unwrap() as usize);
                for (found, name) in [(found.f, "f"), (found.p, "p")] {
                    let expected = case[name].as_f64().unwrap();
                    assert!((found / expected - 1.0).abs() < 1e-8, "{name}: {found} {expected}");
                }
            }
        }
    }

    fn noise(n: usize, rng: &mut impl Rng) -> Vec<f64> {
        (0..n).map(|_| random::normal(rng)).collect()
    }

    #[test]
    fn a_planted_lead_is_found_and_its_interval_covers_it() {
        let mut rng = random::stream(0, "lag");
        let x = noise(120, &mut rng);
        let other = noise(120, &mut rng);
        let y: Vec<f64> =
            (0..120).map(|t: usize| -0.9 * x[t.saturating_sub(4)] + 0.5 * other[t]).collect();
        let found = Lags::of(&x, &y, 10);
        assert!(found.lag == 4.0 && found.peak < -0.7 && found.lead_score > 0.5, "{found:?}");
        let back = Lags::of(&y, &x, 10);
        assert!(back.lag == -4.0 && back.lead_score < -0.5);
        let [lag, peak, _] = Lags::intervals(&x, &y, 10, 200, &mut rng);
        assert!(lag == [4.0, 4.0], "{lag:?}");
        assert!(peak[0] < found.peak && found.peak < peak[1]);
        assert!(granger(&x, &y, 4).p < 1e-6 && granger(&y, &x, 4).p > 0.01);
        // Of 120 shifts 11 leave lag 4 among -5 to 5.
        let [p, high] = shift_test(&x, &y, 5);
        assert!((p - 11.0 / 120.0).abs() < 0.02 && high > 0.6, "{p} {high}");
    }

    #[test]
    fn unrelated_curves_are_left_alone() {
        let mut rng = random::stream(1, "null");
        let (mut by_shift, mut by_f, mut by_f_shift) = (0, 0, 0);
        for _ in 0..200 {
            // Increments with memory, as those of smooth metrics have.
            let [x, y] = [0, 1].map(|_| {
                let mut level = 0.0;
                let mut remember = |e: f64| {
                    level = 0.6 * level + e;
                    level
                };
                noise(80, &mut rng).into_iter().map(&mut remember).collect::<Vec<f64>>()
            });
            by_shift += u32::from(shift_test(&x, &y, 1)[0] <= 0.05);
            let order = best_order(&x, &y, 4);
            let found = granger(&x, &y, order);
            by_f += u32::from(found.p <= 0.05);
            let shifts = Shifts::of(&y, 60, &mut rng);
            by_f_shift += u32::from(shifts.p(found.f, |y| granger(&x, y, order).f) <= 0.05);
        }
        // 10 expected, standard deviation 3.
        let called = [by_shift, by_f, by_f_shift];
        assert!(called.iter().all(|n| *n <= 19), "{called:?} of 200");
    }

    #[test]
    fn orders_and_degenerate_curves() {
        let mut rng = random::stream(2, "order");
        let (mut one, mut two) = (0.0, 0.0);
        let y: Vec<f64> = noise(400, &mut rng)
            .into_iter()
            .map(|e| {
                (one, two) = (0.1 * one - 0.7 * two + e, one);
                one
            })
            .collect();
        assert_eq!(best_order(&y, &y, 6), 2);
        assert!(granger(&[0.0; 30], &[0.0; 30], 2).f.is_nan());
        assert!(granger(&[1.0, 2.0, 0.0], &[1.0, 0.0, 2.0], 2).f.is_nan(), "too few points");
        assert!(Lags::of(&[0.0; 30], &y[..30], 3).lag.is_nan());
        assert!((ln_gamma(5.0) - 24f64.ln()).abs() < 1e-13);
    }
}
