//! Model-free shape of a curve (D29b): how much of its change falls into a tenth of log time, and
//! how steep it gets against a straight line.
//!
//! Main items: [`abruptness`], [`slope_ratio`], [`isotonic`]. A straight line scores 0.1 and 1; a
//! step scores 1 and as much as the checkpoint spacing resolves.

use super::fit::Points;

/// Largest change within any window of a tenth of the x range, over the total range of `y`; the
/// curve between checkpoints is taken as straight. NaN for a constant curve.
pub fn abruptness(points: Points<'_>) -> f64 {
    Windows::new(points.x).abruptness(points.y)
}

/// Where the windows of [`abruptness`] begin and end, for many curves over the same abscissae.
pub(super) struct Windows(Vec<[Place; 2]>);

/// Between the points `next - 1` and `next`.
#[derive(Clone, Copy)]
struct Place {
    next: usize,
    fraction: f64,
}

impl Windows {
    pub(super) fn new(x: &[f64]) -> Self {
        let last = x[x.len() - 1];
        let window = 0.1 * (last - x[0]);
        let place = |at: f64| {
            let next = x.partition_point(|&knot| knot < at).clamp(1, x.len() - 1);
            Place { next, fraction: (at - x[next - 1]) / (x[next] - x[next - 1]) }
        };
        // A piecewise linear curve changes most over a window that starts or ends at a knot.
        let starts = x.iter().flat_map(|&x| [x, x - window]);
        // A window that ends with the curve may end a rounding behind it.
        let slack = 1e-9 * window;
        let within =
            starts.filter(|&start| start >= x[0] - slack && start + window <= last + slack);
        Self(within.map(|start| [place(start), place(start + window)]).collect())
    }

    pub(super) fn abruptness(&self, y: &[f64]) -> f64 {
        let value =
            |Place { next, fraction }: Place| y[next - 1] + (y[next] - y[next - 1]) * fraction;
        let changes = self.0.iter().map(|[start, end]| (value(*end) - value(*start)).abs());
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for &y in y {
            (low, high) = (low.min(y), high.max(y));
        }
        changes.fold(0.0, f64::max) / (high - low)
    }
}

/// Steepest slope between neighbouring checkpoints against that of a straight line over the range:
/// `max|dy/dx| * range(x) / range(y)`. NaN for a constant curve.
pub fn slope_ratio(points: Points<'_>) -> f64 {
    let slopes = points.x.windows(2).zip(points.y.windows(2));
    let steepest = slopes.map(|(x, y)| ((y[1] - y[0]) / (x[1] - x[0])).abs()).fold(0.0, f64::max);
    steepest * points.x_range() / points.y_range()
}

/// Least-squares monotone curve (pool adjacent violators), rising or falling, whichever fits better.
pub fn isotonic(y: &[f64]) -> Vec<f64> {
    let rising = pool(y);
    let negated: Vec<f64> = y.iter().map(|y| -y).collect();
    let falling: Vec<f64> = pool(&negated).into_iter().map(|y| -y).collect();
    let rss = |fit: &[f64]| y.iter().zip(fit).map(|(y, f)| (y - f).powi(2)).sum::<f64>();
    if rss(&falling) < rss(&rising) { falling } else { rising }
}

fn pool(y: &[f64]) -> Vec<f64> {
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &y in y {
        blocks.push((y, 1));
        while let [.., (low, n_low), (high, n_high)] = blocks[..] {
            if low <= high {
                break;
            }
            let n = n_low + n_high;
            let mean = (low * n_low as f64 + high * n_high as f64) / n as f64;
            blocks.truncate(blocks.len() - 2);
            blocks.push((mean, n));
        }
    }
    blocks.into_iter().flat_map(|(mean, n)| std::iter::repeat_n(mean, n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_and_step_are_the_extremes() {
        let x: Vec<f64> = (0..=20).map(f64::from).collect();
        let line: Vec<f64> = x.iter().map(|x| 3.0 - 2.0 * x).collect();
        let points = Points { x: &x, y: &line };
        assert!((abruptness(points) - 0.1).abs() < 1e-12);
        assert!((slope_ratio(points) - 1.0).abs() < 1e-12);
        let step: Vec<f64> = x.iter().map(|&x| f64::from(u8::from(x > 9.5))).collect();
        let points = Points { x: &x, y: &step };
        assert!((abruptness(points) - 1.0).abs() < 1e-12);
        assert!((slope_ratio(points) - 20.0).abs() < 1e-12);
        // Between knots: a window of 2 catches 2/5 of a ramp of length 5.
        let ramp: Vec<f64> = x.iter().map(|x| (x - 7.0).clamp(0.0, 5.0)).collect();
        assert!((abruptness(Points { x: &x, y: &ramp }) - 0.4).abs() < 1e-12);
        assert!(abruptness(Points { x: &x, y: &[1.0; 21] }).is_nan());
    }

    #[test]
    fn isotonic_pools_violators_in_the_better_direction() {
        assert_eq!(isotonic(&[1.0, 3.0, 2.0, 4.0]), [1.0, 2.5, 2.5, 4.0]);
        assert_eq!(isotonic(&[4.0, 2.0, 3.0, 1.0]), [4.0, 2.5, 2.5, 1.0]);
        assert_eq!(isotonic(&[3.0, 2.0, 1.0, 0.0]), [3.0, 2.0, 1.0, 0.0]);
    }
}
