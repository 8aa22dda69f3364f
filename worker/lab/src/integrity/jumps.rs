//! Norms that jump where a training moves smoothly.
//!
//! [`jumps`] looks at ln(norm). A *spike* leaves and comes back within one checkpoint; a *step* is a
//! change far beyond those around it. Training itself makes fast changes: fast ones have neighbours
//! of comparable size, and the first and last interval have none to be compared with.

/// A place where a norm is not continuous.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Jump {
    /// Index of the checkpoint at which it is seen.
    pub index: usize,
    /// ln of the factor by which the norm changed.
    pub log_change: f64,
    /// Whether it came back at the next checkpoint.
    pub is_spike: bool,
}

/// Smallest spike worth reporting, in ln(norm).
const SPIKE: f64 = 0.02;
/// A spike has to be this many times the changes around it.
const SPIKE_TIMES: f64 = 8.0;
/// Smallest step worth reporting, in ln(norm).
const STEP: f64 = 0.25;
/// A step has to be this many times the changes around it.
const STEP_TIMES: f64 = 20.0;

/// Finds spikes and steps of a series of positive norms.
pub(crate) fn jumps(norms: &[f64]) -> Vec<Jump> {
    let log: Vec<f64> = norms.iter().map(|norm| norm.ln()).collect();
    let change: Vec<f64> = log.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let size =
        |place: Option<usize>| place.and_then(|place| change.get(place)).map(|change| change.abs());
    let largest =
        |places: [Option<usize>; 4]| places.into_iter().filter_map(size).fold(0.0, f64::max);
    let mut found: Vec<Jump> = Vec::new();
    for index in 1..log.len() {
        let here = change[index - 1];
        // `change[index - 1]` leads into the checkpoint; around it are `index - 3, index - 2` and `index, index + 1`.
        if let Some(&back) = change.get(index)
            && here * back < 0.0
        {
            // What remains is two steps of the trend.
            let trend = (here + back).abs() / 2.0;
            let around = largest([
                index.checked_sub(2),
                index.checked_sub(3),
                Some(index + 1),
                Some(index + 2),
            ]);
            let smaller = here.abs().min(back.abs());
            let has_context = index >= 2 || index + 1 < change.len();
            if has_context && smaller > SPIKE && smaller > SPIKE_TIMES * trend.max(around) {
                found.push(Jump { index, log_change: here, is_spike: true });
                continue;
            }
        }
        // What leads out of a spike is no step.
        if found.last().is_some_and(|last| last.is_spike && last.index + 1 == index) {
            continue;
        }
        let is_inside = index >= 3 && index + 2 < log.len();
        let around =
            largest([index.checked_sub(2), index.checked_sub(3), Some(index), Some(index + 1)]);
        if is_inside && here.abs() > STEP && here.abs() > STEP_TIMES * around {
            found.push(Jump { index, log_change: here, is_spike: false });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logistic(n: usize, width: f64) -> Vec<f64> {
        (0..n).map(|i| 10.0 + 30.0 / (1.0 + (-(i as f64 - n as f64 / 2.0) / width).exp())).collect()
    }

    #[test]
    fn smooth_curves_have_no_jumps() {
        let decay = |rate: f64| {
            (0..40).map(|i| 5.0 + 20.0 * (-rate * f64::from(i)).exp()).collect::<Vec<f64>>()
        };
        for norms in [
            decay(0.05),
            decay(0.5),
            decay(3.0),
            logistic(40, 5.0),
            logistic(40, 1.0),
            vec![3.0; 20],
            (1..60).map(|i| f64::from(i).sqrt()).collect(),
            // Powers of two as steps: nothing, then everything.
            (0..20).map(|i| 10.0 + 1e-4 * 2f64.powi(i)).collect(),
            (0..50).map(|i| 10.0 + 0.05 * f64::from((i * 7919) % 13)).collect(),
            vec![1.0, 30.0, 30.1, 30.2, 30.3],
            vec![1.0, 1.0, 9.0],
            vec![],
        ] {
            assert_eq!(jumps(&norms), [], "{norms:?}");
        }
    }

    #[test]
    fn spikes_and_steps_are_found_where_they_are() {
        let mut norms: Vec<f64> = (0..30).map(|i| 10.0 + 0.01 * f64::from(i)).collect();
        norms[12] *= 1.5;
        norms[20] *= 0.9;
        let found: Vec<(usize, bool)> =
            jumps(&norms).iter().map(|j| (j.index, j.is_spike)).collect();
        assert_eq!(found, [(12, true), (20, true)]);
        let mut norms: Vec<f64> = (0..30).map(|i| 10.0 + 0.01 * f64::from(i)).collect();
        norms[15..].iter_mut().for_each(|norm| *norm *= 2.0);
        let found = jumps(&norms);
        assert_eq!((found.len(), found[0].index, found[0].is_spike), (1, 15, false));
        assert!((found[0].log_change - 2f64.ln()).abs() < 0.01);
    }
}
