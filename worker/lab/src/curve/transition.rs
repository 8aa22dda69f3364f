//! The sigmoid test of one curve (D29): is there a transition, where, how wide, how sure?
//!
//! Main type: [`Transition`]. A transition is called when all of these hold: ΔBIC of the logistic
//! against the better of line and power law above 10; the same under AR(1) errors; 10-90 % width below a
//! quarter of the x range; amplitude above half of the y range. The AR(1) criterion is ours: of 600 curves
//! of pure AR(1) noise (coefficient 0.5, 0.9, 0.98) the other three call 54, all four together call 4.

use rand::Rng;
use serde::Serialize;

use super::{
    abruptness::{Windows, isotonic, slope_ratio},
    fit::{Design, Fits, Model, Points, refined},
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

/// The design of the last curve's abscissae, which is mostly that of the next one.
#[derive(Default)]
pub struct Known(Option<(Vec<f64>, Design)>);

impl Known {
    fn fits(&mut self, points: Points<'_>) -> Fits {
        if self.0.as_ref().is_none_or(|(x, _)| x != points.x) {
            self.0 = Some((points.x.to_vec(), Design::new(points.x)));
        }
        self.0.as_ref().map_or_else(|| Fits::new(points), |(_, d)| Fits::over(d, points))
    }
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
    /// 1 for a transition, 0 for none, NaN where there was too little to test.
    pub fn verdict(&self) -> f64 {
        if self.fits.is_some() { f64::from(u8::from(self.is_transition)) } else { f64::NAN }
    }

    /// Tests the curve `values` over ascending `steps`; non-finite values are left out.
    pub fn test(steps: &[u64], values: &[f64], options: Options, rng: &mut impl Rng) -> Self {
        Self::test_with(&mut Known::default(), steps, values, options, rng)
    }

    /// The same for one of many curves: what depends on the steps alone is computed once.
    pub fn test_with(
        known: &mut Known,
        steps: &[u64],
        values: &[f64],
        options: Options,
        rng: &mut impl Rng,
    ) -> Self {
        let raw: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        let log_y = options.log_y.unwrap_or_else(|| spans_decades(&raw));
        let (x, y) = coordinates(steps, values, options.log_x, log_y);
        let points = Points { x: &x, y: &y };
        if y.len() < MIN_POINTS || points.y_range() == 0.0 {
            return Self::undefined(y.len(), log_y);
        }
        Self::of_points(known.fits(points), points, log_y, options, rng)
    }

    fn of_points(
        fits: Fits,
        points: Points<'_>,
        log_y: bool,
        options: Options,
        rng: &mut impl Rng,
    ) -> Self {
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
        let midpoints = bootstrap(points.y, &fitted, options.n_bootstrap, rng, |y| {
            refined(logistic, Points { x: points.x, y })[2]
        });
        let monotone = isotonic(points.y);
        let windows = Windows::new(points.x);
        let indices =
            bootstrap(points.y, &monotone, options.n_bootstrap, rng, |y| windows.abruptness(y));
        Self {
            n_points: points.x.len(),
            log_y,
            is_transition,
            midpoint: step(x0),
            onset,
            end,
            width_decades: if options.log_x {
                2.0 * half_width / 10f64.ln()
            } else if onset > 0.0 {
                (end / onset).log10()
            } else {
                f64::NAN
            },
            amplitude_fraction,
            interval: midpoints.map(step),
            bracket: [step(points.x[after - 1]), step(points.x[after])].map(f64::round),
            abruptness: windows.abruptness(points.y),
            abruptness_interval: indices,
            slope_ratio: slope_ratio(points),
            fits: Some(fits),
        }
    }

    /// Onset and midpoint (as steps) of `n` curves that differ from the tested one by resampled residuals of its
    /// logistic; none if nothing was fitted. `values` are what was tested, with the same options.
    pub fn resampled_times(
        &self,
        steps: &[u64],
        values: &[f64],
        options: Options,
        rng: &mut impl Rng,
    ) -> Vec<[f64; 2]> {
        let Some(fits) = &self.fits else { return Vec::new() };
        let (x, y) = coordinates(steps, values, options.log_x, self.log_y);
        let logistic = fits.get(Model::Logistic);
        let fitted: Vec<f64> = x.iter().map(|&x| logistic.value(x)).collect();
        let step = |x: f64| if options.log_x { x.exp() - 1.0 } else { x };
        (0..options.n_bootstrap)
            .map(|_| {
                let copy = resampled(&y, &fitted, &fitted, rng);
                let p = refined(logistic, Points { x: &x, y: &copy });
                [step(p[2] - 9f64.ln() * p[3].exp()), step(p[2])]
            })
            .collect()
    }

    /// Midpoint of a curve like the tested one: its logistic, refined on `values` (finite, not in logarithms). NaN if nothing was fitted.
    pub fn midpoint_of(&self, steps: &[u64], values: &[f64], log_x: bool) -> f64 {
        let Some(fits) = &self.fits else { return f64::NAN };
        let (x, y) = coordinates(steps, values, log_x, false);
        let x0 = refined(fits.get(Model::Logistic), Points { x: &x, y: &y })[2];
        if log_x { x0.exp() - 1.0 } else { x0 }
    }

    /// The same with `since` added to all steps: of a curve whose steps were counted from there.
    #[must_use]
    pub fn counted_from(mut self, since: u64) -> Self {
        let [low, high] = &mut self.interval;
        let [before, after] = &mut self.bracket;
        let steps = [&mut self.midpoint, &mut self.onset, &mut self.end, low, high, before, after];
        for step in steps {
            *step += since as f64;
        }
        self
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

/// Finite points on the axes of the fit; the logarithm of a value that is not positive is missing like any other.
fn coordinates(steps: &[u64], values: &[f64], log_x: bool, log_y: bool) -> (Vec<f64>, Vec<f64>) {
    let finite = steps.iter().zip(values).filter(|(_, value)| value.is_finite());
    let point = |(&step, &value)| (axis(step, log_x), if log_y { f64::ln(value) } else { value });
    finite.map(point).filter(|(_, y)| y.is_finite()).unzip()
}

fn axis(step: u64, log_x: bool) -> f64 {
    if log_x { (step as f64 + 1.0).ln() } else { step as f64 }
}

/// 2.5 and 97.5 % quantiles of `statistic` over [`resampled`] curves.
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
    let mut statistics: Vec<f64> =
        (0..n_bootstrap).map(|_| statistic(&resampled(y, fitted, fitted, rng))).collect();
    statistics.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|q| quantile(&statistics, q))
}

/// `centre` plus residuals of `y` around `fitted`, resampled in blocks of about n^(1/3) neighbours, which keeps
/// their correlation.
fn resampled(y: &[f64], fitted: &[f64], centre: &[f64], rng: &mut impl Rng) -> Vec<f64> {
    let n = y.len();
    let block = (n as f64).cbrt().ceil() as usize;
    let mut places = Vec::with_capacity(n + block);
    while places.len() < n {
        let start = random::below(rng, (n - block + 1) as u64) as usize;
        places.extend(start..start + block);
    }
    centre.iter().zip(places).map(|(centre, at)| centre + y[at] - fitted[at]).collect()
}

/// The place between points, counted from 0, at which half of the change from the first to the last value is done
/// for the first time.
pub fn half_change(values: &[f64]) -> f64 {
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return f64::NAN };
    let done = |value: f64| (value - first) / (last - first);
    let Some(at) = values.iter().position(|&value| done(value) >= 0.5) else { return f64::NAN };
    let before = done(values[at.saturating_sub(1)]);
    // The first value has done nothing, so `at` is not 0 unless there is no change.
    at as f64 - (done(values[at]) - 0.5) / (done(values[at]) - before)
}

/// A curve without a transition that is otherwise like the tested one, `values` over `steps`, all finite and not in logarithms: the
/// better of line and power law, with the residuals around the isotonic regression resampled in blocks. `None` if nothing was fitted.
pub fn smooth_copy(
    found: &Transition,
    steps: &[u64],
    values: &[f64],
    log_x: bool,
    rng: &mut impl Rng,
) -> Option<Vec<f64>> {
    let fits = found.fits.as_ref()?;
    let [line, power] = [Model::Linear, Model::PowerLaw].map(|model| fits.get(model));
    let better = if power.bic < line.bic { power } else { line };
    let centre: Vec<f64> = steps.iter().map(|&step| better.value(axis(step, log_x))).collect();
    Some(resampled(values, &isotonic(values), &centre, rng))
}

/// Linear interpolation between order statistics (numpy's default).
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

#[cfg(test)]
mod tests;
