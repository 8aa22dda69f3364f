//! In which order things happen, and how far several runs agree (D32).
//!
//! Main items: [`ranks`] of one run, [`kendall_tau`] and [`spearman`] of two, [`Agreement`] of many with bootstrap intervals over
//! runs. Invariant: a time that was never reached is NaN; it ranks behind all others.

use rand::Rng;

use super::transition::quantile;
use crate::random;

/// Ranks from 1, earliest first; equal times share the mean of their ranks, NaN comes last.
pub fn ranks(times: &[f64]) -> Vec<f64> {
    let key = |time: f64| if time.is_nan() { f64::INFINITY } else { time };
    let rank = |time: f64| {
        let before = times.iter().filter(|&&other| key(other) < key(time)).count() as f64;
        let equal = times.iter().filter(|&&other| key(other) == key(time)).count() as f64;
        before + f64::midpoint(equal, 1.0)
    };
    times.iter().map(|&time| rank(time)).collect()
}

/// Spearman's correlation of two rankings, ties by mean ranks; NaN if one of them is all ties.
///
/// # Panics
/// If the lists differ in length.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "one value of each list per pair");
    let (a, b) = (ranks(a), ranks(b));
    let mean = f64::midpoint(a.len() as f64, 1.0);
    let product =
        |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// Kendall's tau-b of two rankings, ties taken into account; NaN if one of them is all ties.
pub fn kendall_tau(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let (mut concordant, mut ties_a, mut ties_b, mut pairs) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..a.len() {
        for j in 0..i {
            let (x, y) = (a[i] - a[j], b[i] - b[j]);
            pairs += 1.0;
            ties_a += f64::from(u8::from(x == 0.0));
            ties_b += f64::from(u8::from(y == 0.0));
            // `signum` of zero is one.
            if x != 0.0 && y != 0.0 {
                concordant += x.signum() * y.signum();
            }
        }
    }
    concordant / ((pairs - ties_a) * (pairs - ties_b)).sqrt()
}

/// How far runs agree on an order.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// Mean rank of each thing.
    pub mean_rank: Vec<f64>,
    /// 95 % bootstrap interval of it over runs; NaN for a single one.
    pub interval: Vec<[f64; 2]>,
    /// Mean of Kendall's tau over pairs of runs; NaN for a single one.
    pub tau: f64,
    /// 95 % bootstrap interval of it over runs; NaN for fewer than three, of which every resample has the same pairs.
    pub tau_interval: [f64; 2],
    /// Row i, column j: fraction of runs in which i comes before j, ties counting half.
    pub precedence: Vec<Vec<f64>>,
}

impl Agreement {
    /// Mean of Kendall's tau over pairs of runs alone.
    pub fn tau_of(runs: &[Vec<f64>]) -> f64 {
        let pairs = (0..runs.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let taus = pairs.map(|(i, j)| kendall_tau(&runs[i], &runs[j]));
        let values: Vec<f64> = taus.filter(|tau| tau.is_finite()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// `runs` holds one list of times per run, all of the same things; there is at least one run.
    pub fn of(runs: &[Vec<f64>], n_bootstrap: usize, rng: &mut impl Rng) -> Self {
        let ranked: Vec<Vec<f64>> = runs.iter().map(|times| ranks(times)).collect();
        let n_things = ranked[0].len();
        let mean = |sample: &[usize], thing: usize| {
            sample.iter().map(|&run| ranked[run][thing]).sum::<f64>() / sample.len() as f64
        };
        let taus: Vec<Vec<f64>> =
            runs.iter().map(|a| runs.iter().map(|b| kendall_tau(a, b)).collect()).collect();
        let all: Vec<usize> = (0..runs.len()).collect();
        let (mut means, mut tau_samples) = (vec![Vec::new(); n_things], Vec::new());
        for _ in 0..n_bootstrap {
            let sample: Vec<usize> =
                all.iter().map(|_| random::below(rng, runs.len() as u64) as usize).collect();
            for (thing, means) in means.iter_mut().enumerate() {
                means.push(mean(&sample, thing));
            }
            tau_samples.push(mean_tau(&taus, &sample));
        }
        let before = |i: usize, j: usize| {
            let score = |run: &Vec<f64>| match run[i].total_cmp(&run[j]) {
                std::cmp::Ordering::Less => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Greater => 0.0,
            };
            ranked.iter().map(score).sum::<f64>() / ranked.len() as f64
        };
        let known =
            |least: usize, ends: [f64; 2]| if runs.len() < least { [f64::NAN; 2] } else { ends };
        Self {
            mean_rank: (0..n_things).map(|thing| mean(&all, thing)).collect(),
            interval: means.into_iter().map(|means| known(2, interval(means))).collect(),
            tau: mean_tau(&taus, &all),
            tau_interval: known(3, interval(tau_samples)),
            precedence: (0..n_things)
                .map(|i| (0..n_things).map(|j| before(i, j)).collect())
                .collect(),
        }
    }
}

/// Mean over pairs of different runs; a run drawn twice says nothing about agreement.
fn mean_tau(taus: &[Vec<f64>], sample: &[usize]) -> f64 {
    let pairs = sample.iter().enumerate().flat_map(|(place, &i)| {
        sample[..place].iter().filter(move |&&j| j != i).map(move |&j| taus[i][j])
    });
    let values: Vec<f64> = pairs.filter(|tau| tau.is_finite()).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// 95 % interval of samples; NaN without a finite one.
pub(crate) fn interval(mut samples: Vec<f64>) -> [f64; 2] {
    samples.retain(|sample| sample.is_finite());
    if samples.is_empty() {
        return [f64::NAN; 2];
    }
    samples.sort_by(f64::total_cmp);
    [quantile(&samples, 0.025), quantile(&samples, 0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_ties_and_put_the_missing_last() {
        assert_eq!(ranks(&[30.0, 10.0, f64::NAN, 10.0]), [3.0, 1.5, 4.0, 1.5]);
    }

    #[test]
    fn rank_correlations_by_scipy() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert!((spearman(&a, &[2.0, 4.0, 8.0, 16.0, f64::INFINITY]) - 1.0).abs() < 1e-12);
        assert!((spearman(&a, &[5.0, 4.0, 3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        // scipy.stats.spearmanr([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]).statistic
        assert!((spearman(&a, &[5.0, 6.0, 7.0, 8.0, 7.0]) - 0.820_782_681_668_123_3).abs() < 1e-12);
        assert!(spearman(&a, &[1.0; 5]).is_nan() && spearman(&[1.0], &[1.0]).is_nan());
    }

    #[test]
    fn tau_by_hand() {
        assert_eq!(kendall_tau(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), 1.0);
        assert_eq!(kendall_tau(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // scipy.stats.kendalltau([1, 2, 3, 4, 4], [2, 1, 3, 5, 4]) = 0.7378647873726218
        let tau = kendall_tau(&[1.0, 2.0, 3.0, 4.0, 4.0], &[2.0, 1.0, 3.0, 5.0, 4.0]);
        assert!((tau - 0.737_864_787_372_621_8).abs() < 1e-12, "{tau}");
        assert!(kendall_tau(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }

    #[test]
    fn agreement_of_runs() {
        let mut rng = random::stream(1, "test");
        let same = vec![vec![1.0, 5.0, 9.0]; 4];
        let found = Agreement::of(&same, 50, &mut rng);
        assert_eq!((found.mean_rank.as_slice(), found.tau), ([1.0, 2.0, 3.0].as_slice(), 1.0));
        assert_eq!(found.interval[2], [3.0, 3.0]);
        assert_eq!(found.precedence[0], [0.5, 1.0, 1.0]);
        let mixed = [vec![1.0, 2.0, 3.0], vec![1.0, 3.0, 2.0], vec![1.0, 2.0, 3.0]];
        let found = Agreement::of(&mixed, 200, &mut rng);
        assert!((found.tau - (1.0 / 3.0 + 1.0 / 3.0 + 1.0) / 3.0).abs() < 1e-12);
        assert!((found.precedence[1][2] - 2.0 / 3.0).abs() < 1e-12);
        assert!(
            found.interval[1][0] <= found.mean_rank[1]
                && found.mean_rank[1] <= found.interval[1][1]
        );
        assert!(Agreement::of(&mixed[..1], 10, &mut rng).tau.is_nan());
    }
}
