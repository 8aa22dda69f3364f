//! Model-free shape of a curve (D29b): how much of its change falls into a tenth of log time, and
//! how steep it gets against a straight line.
//!
//! Main items: [`abruptness`], [`slope_ratio`], [`isotonic`]. A straight line scores 0.1 and 1; a
//! step scores 1 and as much as the checkpoint spacing resolves.

use super::fit::Points;

/// Largest change within any window of a tenth of the x range, over the total range of `y`; the
/// curve between checkpoints is taken as straight. NaN for a constant curve.
pub fn abruptness(points: Points<'_>) -> f64 {
    let window = 0.1 * points.x_range();
    let last = points.x[points.x.len() - 1];
    // A piecewise linear curve changes most over a window that starts or ends at a knot.
    let starts = points.x.iter().flat_map(|&x| [x, x - window]);
    let largest = starts
        .filter(|&start| start >= points.x[0] && start + window <= last)
        .map(|start| (interpolate(points, start + window) - interpolate(points, start)).abs())
        .fold(0.0, f64::max);
    largest / points.y_range()
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

fn interpolate(points: Points<'_>, x: f64) -> f64 {
    let next = points.x.partition_point(|&knot| knot < x).clamp(1, points.x.len() - 1);
    let (x0, x1) = (points.x[next - 1], points.x[next]);
    let (y0, y1) = (points.y[next - 1], points.y[next]);
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
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
