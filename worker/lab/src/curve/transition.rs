//! The sigmoid test of one curve (D29): is there a transition, where, how wide, how sure?
//!
//! Main type: [`Transition`]. A transition is called when all of these hold: ΔBIC of the logistic
//! against the better of line and power law above 10; the same under AR(1) errors; 10-90 % width below a
//! quarter of the x range; amplitude above half of the y range. The AR(1) criterion is ours: of 600 curves
//! of pure AR(1) noise (coefficient 0.5, 0.9, 0.98) the other three call 54, all four together call 4.

use rand::Rng;
use serde::Serialize;

use super::{
    abruptness::{abruptness, isotonic, slope_ratio},
    fit::{Fits, Logistics, Model, Points},
    least_squares::levenberg_marquardt,
};
use crate::random;

/// Fewest points for a verdict: the two-logistic model alone has seven parameters.
pub const MIN_POINTS: usize = 8;

/// How a curve is transformed and resampled.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Fit over `ln(step + 1)` rather than the step itself.
    pub log_x: bool,
    /// Fit `ln y`; `None` decides by [`spans_decades`].
    pub log_y: Option<bool>,
    /// Bootstrap resamples for the intervals.
    pub n_bootstrap: usize,
}

/// True if all values are positive and the largest is at least 100 times the smallest: a loss
/// that falls by orders of magnitude shows its transition on a log scale only.
pub fn spans_decades(y: &[f64]) -> bool {
    let max = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = y.iter().copied().fold(f64::INFINITY, f64::min);
    min > 0.0 && max / min >= 100.0
}

/// What the test says about one curve. Steps are NaN where they mean nothing.
#[derive(Debug, Clone, Serialize)]
pub struct Transition {
    /// Finite points used.
    pub n_points: usize,
    /// Whether `ln y` was fitted.
    pub log_y: bool,
    /// All criteria of the module documentation hold.
    pub is_transition: bool,
    /// Step of the logistic's midpoint x0.
    pub midpoint: f64,
    /// Step of 10 % of the change, `x0 - 2.2 w`.
    pub onset: f64,
    /// Step of 90 % of the change, `x0 + 2.2 w`.
    pub end: f64,
    /// 10-90 % width in factors of ten: `4.394 w / ln 10`; over linear x, `log10(end / onset)`.
    pub width_decades: f64,
    /// |A| over the range of the fitted values.
    pub amplitude_fraction: f64,
    /// 95 % bootstrap interval of the midpoint, as steps.
    pub interval: [f64; 2],
    /// Last checkpoint before and first at or after the midpoint: what the grid can resolve.
    pub bracket: [f64; 2],
    /// D29b; 0.1 for a straight line.
    pub abruptness: f64,
    /// 95 % interval of the abruptness: residuals resampled around the isotonic regression.
    pub abruptness_interval: [f64; 2],
    /// D29b; 1 for a straight line.
    pub slope_ratio: f64,
    /// All five fits and both ΔBIC; absent for a curve too short or constant.
    pub fits: Option<Fits>,
}

impl Transition {
    /// Tests the curve `values` over ascending `steps`; non-finite values are left out.
    pub fn test(steps: &[u64], values: &[f64], options: Options, rng: &mut impl Rng) -> Self {
        let kept: Vec<(u64, f64)> = steps
            .iter()
            .zip(values)
            .filter(|(_, value)| value.is_finite())
            .map(|(&step, &value)| (step, value))
            .collect();
        let raw: Vec<f64> = kept.iter().map(|point| point.1).collect();
        let log_y = options.log_y.unwrap_or_else(|| spans_decades(&raw));
        // ln of a value that is not positive is dropped like any other missing value.
        let (x, y): (Vec<f64>, Vec<f64>) = kept
            .iter()
            .map(|&(step, value)| {
                (axis(step, options.log_x), if log_y { value.ln() } else { value })
            })
            .filter(|(_, y)| y.is_finite())
            .unzip();
        let points = Points { x: &x, y: &y };
        if y.len() < MIN_POINTS || points.y_range() == 0.0 {
            return Self::undefined(y.len(), log_y);
        }
        Self::of_points(points, log_y, options, rng)
    }

    fn of_points(points: Points<'_>, log_y: bool, options: Options, rng: &mut impl Rng) -> Self {
        let fits = Fits::new(points);
        let logistic = fits.get(Model::Logistic);
        let (amplitude, x0) = (logistic.parameters[1], logistic.parameters[2]);
        let w = logistic.parameters[3].exp();
        let half_width = 9f64.ln() * w;
        let step = |x: f64| if options.log_x { x.exp() - 1.0 } else { x };
        let (onset, end) = (step(x0 - half_width), step(x0 + half_width));
        let amplitude_fraction = amplitude.abs() / points.y_range();
        let is_transition = fits.dbic > 10.0
            && fits.dbic_ar1 > 10.0
            && 2.0 * half_width < 0.25 * points.x_range()
            && amplitude_fraction > 0.5;
        let after = points.x.partition_point(|&x| x < x0).clamp(1, points.x.len() - 1);
        let fitted: Vec<f64> = points.x.iter().map(|&x| logistic.value(x)).collect();
        let start = &logistic.parameters;
        let midpoints = bootstrap(points.y, &fitted, options.n_bootstrap, rng, |y| {
            let curve = Logistics::new(points);
            levenberg_marquardt(&curve, points.x, y, start, 30).0[2]
        });
        let monotone = isotonic(points.y);
        let indices = bootstrap(points.y, &monotone, options.n_bootstrap, rng, |y| {
            abruptness(Points { x: points.x, y })
        });
        Self {
            n_points: points.x.len(),
            log_y,
            is_transition,
            midpoint: step(x0),
            onset,
            end,
            width_decades: if options.log_x {
                2.0 * half_width / 10f64.ln()
            } else {
                (end / onset.max(f64::MIN_POSITIVE)).log10()
            },
            amplitude_fraction,
            interval: midpoints.map(step),
            bracket: [step(points.x[after - 1]), step(points.x[after])].map(f64::round),
            abruptness: abruptness(points),
            abruptness_interval: indices,
            slope_ratio: slope_ratio(points),
            fits: Some(fits),
        }
    }

    fn undefined(n_points: usize, log_y: bool) -> Self {
        Self {
            n_points,
            log_y,
            is_transition: false,
            midpoint: f64::NAN,
            onset: f64::NAN,
            end: f64::NAN,
            width_decades: f64::NAN,
            amplitude_fraction: f64::NAN,
            interval: [f64::NAN; 2],
            bracket: [f64::NAN; 2],
            abruptness: f64::NAN,
            abruptness_interval: [f64::NAN; 2],
            slope_ratio: f64::NAN,
            fits: None,
        }
    }
}

fn axis(step: u64, log_x: bool) -> f64 {
    if log_x { (step as f64 + 1.0).ln() } else { step as f64 }
}

/// 2.5 and 97.5 % quantiles of `statistic` over curves made of `fitted` plus residuals resampled in
/// blocks of about n^(1/3) neighbours, which keeps their correlation.
fn bootstrap(
    y: &[f64],
    fitted: &[f64],
    n_bootstrap: usize,
    rng: &mut impl Rng,
    statistic: impl Fn(&[f64]) -> f64,
) -> [f64; 2] {
    if n_bootstrap == 0 {
        return [f64::NAN; 2];
    }
    let n = y.len();
    let residuals: Vec<f64> = y.iter().zip(fitted).map(|(y, f)| y - f).collect();
    let block = (n as f64).cbrt().ceil() as usize;
    let mut statistics: Vec<f64> = (0..n_bootstrap)
        .map(|_| {
            let mut resampled = Vec::with_capacity(n + block);
            while resampled.len() < n {
                let start = random::below(rng, (n - block + 1) as u64) as usize;
                resampled.extend_from_slice(&residuals[start..start + block]);
            }
            let curve: Vec<f64> = fitted.iter().zip(&resampled).map(|(f, r)| f + r).collect();
            statistic(&curve)
        })
        .collect();
    statistics.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|q| quantile(&statistics, q))
}

/// Linear interpolation between order statistics (numpy's default).
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

#[cfg(test)]
mod tests;
