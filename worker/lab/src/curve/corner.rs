//! Where a path through a plane (or a space) turns, and where a curve stops being convex, beyond what noise
//! on a smooth path does.
//!
//! Main items: [`Shape`] (what is looked for), [`corners`]. Null: the path smoothed over a quarter of its
//! x range (local lines, tricube weights), which is as wide as D29 lets a transition be, plus Gaussian noise of the size that
//! differences of neighbours show. The statistic of every point is compared with its own distribution under the null; `p` is
//! that of the largest such excess of a whole path, so that all points together are called in one null path of twenty.

use rand::Rng;

use super::{order::interval, transition::quantile};
use crate::random::normal;

/// Share of the x range that the null path is smoothed over.
const BANDWIDTH: f64 = 0.25;

/// Largest p of a corner.
const LEVEL: f64 = 0.05;

/// Least noise of a coordinate, as a part of its largest magnitude: what rounding and its sums may amount to.
const ROUNDING: f64 = 1e-9;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The angle in `[0, π]` between the moves into and out of a point, each over this many points.
    Turn(usize),
    /// How far a curve (one coordinate) is from convex: minus its second derivative, over neighbours this many points away.
    Bump(usize),
}

/// How often is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    /// Paths under the null; 0 calls nothing.
    pub n_null: usize,
    /// Noisy copies of the path for each interval; 0 leaves intervals NaN.
    pub n_bootstrap: usize,
}

/// One corner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corner {
    /// Index of the point.
    pub at: usize,
    /// Angle, or size of the bump.
    pub size: f64,
    /// Share of null paths with as large an excess anywhere.
    pub p: f64,
    /// 95 % interval of the place, as indices: where noisy copies of the path have their largest excess nearby.
    pub interval: [f64; 2],
}

/// What was found on a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Corners {
    /// The statistic at every point; NaN at the ends.
    pub statistic: Vec<f64>,
    /// Corners in order of x.
    pub corners: Vec<Corner>,
    /// Share of fresh null paths on which a corner is called: the control, 0.05 by design.
    pub null_rate: f64,
}

/// Looks for corners of the path whose coordinates over ascending `x` are the rows of `path`, all finite.
///
/// # Panics
/// If a coordinate has not one value per `x`.
pub fn corners(
    shape: Shape,
    x: &[f64],
    path: &[Vec<f64>],
    draws: Draws,
    rng: &mut impl Rng,
) -> Corners {
    assert!(path.iter().all(|values| values.len() == x.len()), "one value per point");
    let statistic = shape.of(x, path);
    let nothing =
        Corners { statistic: statistic.clone(), corners: Vec::new(), null_rate: f64::NAN };
    if draws.n_null == 0 || statistic.iter().filter(|value| value.is_finite()).count() < 3 {
        return nothing;
    }
    let smooth: Vec<Vec<f64>> = path.iter().map(|values| smoothed(x, values)).collect();
    // Without noise, rounding would be beyond every null path.
    let floor = |values: &Vec<f64>| {
        values.iter().fold(0.0f64, |largest, value| largest.max(value.abs())) * ROUNDING
    };
    let noise: Vec<f64> = path.iter().map(|values| noise(x, values).max(floor(values))).collect();
    let mut draw = |centre: &[Vec<f64>]| {
        let noisy: Vec<Vec<f64>> = centre
            .iter()
            .zip(&noise)
            .map(|(values, sd)| values.iter().map(|v| v + sd * normal(rng)).collect())
            .collect();
        shape.of(x, &noisy)
    };
    // Paths that were measured with, those that are measured, and those that check it are never the same ones.
    let scale = Scale::of(&(0..draws.n_null).map(|_| draw(&smooth)).collect::<Vec<_>>());
    let most = |values: &[f64]| scale.excess(values).into_iter().fold(f64::NEG_INFINITY, f64::max);
    let mut largest: Vec<f64> = (0..draws.n_null).map(|_| most(&draw(&smooth))).collect();
    largest.sort_by(f64::total_cmp);
    let p = |excess: f64| {
        let as_large = largest.len() - largest.partition_point(|&value| value < excess);
        (1 + as_large) as f64 / (1 + largest.len()) as f64
    };
    let fresh = (0..draws.n_null).filter(|_| p(most(&draw(&smooth))) <= LEVEL).count();
    let excess = scale.excess(&statistic);
    let span = shape.span();
    // A corner is the largest of its neighbourhood.
    let called: Vec<usize> = (0..x.len())
        .filter(|&at| p(excess[at]) <= LEVEL && statistic[at] > 0.0)
        .filter(|&at| {
            let around = at.saturating_sub(span)..(at + span + 1).min(x.len());
            around.clone().all(|other| {
                excess[other].is_nan() || (excess[other], at) <= (excess[at], other) || other == at
            })
        })
        .collect();
    let copies: Vec<Vec<f64>> = (0..draws.n_bootstrap).map(|_| scale.excess(&draw(path))).collect();
    let corners = called
        .into_iter()
        .map(|at| {
            let around = at.saturating_sub(span)..(at + span + 1).min(x.len());
            let place = |copy: &Vec<f64>| {
                let best = around.clone().filter(|&i| copy[i].is_finite());
                best.max_by(|&a, &b| copy[a].total_cmp(&copy[b])).map_or(f64::NAN, |i| i as f64)
            };
            Corner {
                at,
                size: statistic[at],
                p: p(excess[at]),
                interval: interval(copies.iter().map(place).collect()),
            }
        })
        .collect();
    Corners { statistic, corners, null_rate: fresh as f64 / draws.n_null as f64 }
}

impl Shape {
    fn span(self) -> usize {
        match self {
            Self::Turn(span) | Self::Bump(span) => span.max(1),
        }
    }

    /// The statistic at every point, NaN within a span of the ends.
    fn of(self, x: &[f64], path: &[Vec<f64>]) -> Vec<f64> {
        let span = self.span();
        (0..x.len())
            .map(|at| {
                if at < span || at + span >= x.len() {
                    return f64::NAN;
                }
                let (before, after) = (at - span, at + span);
                match self {
                    Self::Turn(_) => turn_angle(path, before, at, after),
                    Self::Bump(_) => {
                        let y = &path[0];
                        let slope = |a: usize, b: usize| (y[b] - y[a]) / (x[b] - x[a]);
                        -2.0 * (slope(at, after) - slope(before, at)) / (x[after] - x[before])
                    }
                }
            })
            .collect()
    }
}

/// Angle in `[0, π]` between the moves into and out of the middle point; NaN if there is no move.
pub fn turn_angle(path: &[Vec<f64>], before: usize, at: usize, after: usize) -> f64 {
    let (mut dot, mut into, mut out) = (0.0, 0.0, 0.0);
    for values in path {
        let (a, b) = (values[at] - values[before], values[after] - values[at]);
        dot += a * b;
        into += a * a;
        out += b * b;
    }
    (dot / (into * out).sqrt()).clamp(-1.0, 1.0).acos()
}

/// Mean and standard deviation of the statistic at every point, over null paths.
struct Scale {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Scale {
    fn of(null: &[Vec<f64>]) -> Self {
        let n_points = null.first().map_or(0, Vec::len);
        let n = null.len() as f64;
        let mean: Vec<f64> =
            (0..n_points).map(|at| null.iter().map(|values| values[at]).sum::<f64>() / n).collect();
        let deviation: Vec<f64> = (0..n_points)
            .map(|at| (null.iter().map(|v| (v[at] - mean[at]).powi(2)).sum::<f64>() / n).sqrt())
            .collect();
        // A path without noise has none of its own: a thousandth of the widest stands in for it.
        let floor = deviation.iter().copied().filter(|d| d.is_finite()).fold(1e-9, f64::max) * 1e-3;
        let deviation = deviation.into_iter().map(|d| d.max(floor)).collect();
        Self { mean, deviation }
    }

    /// In standard deviations; NaN where the statistic is.
    fn excess(&self, values: &[f64]) -> Vec<f64> {
        let scaled = values.iter().zip(&self.mean).zip(&self.deviation);
        scaled.map(|((value, mean), deviation)| (value - mean) / deviation).collect()
    }
}

/// Local lines with tricube weights over [`BANDWIDTH`] of the range to either side.
fn smoothed(x: &[f64], y: &[f64]) -> Vec<f64> {
    let width = BANDWIDTH * (x[x.len() - 1] - x[0]);
    x.iter()
        .map(|&centre| {
            let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (&x, &y) in x.iter().zip(y) {
                let far = ((x - centre) / width).abs();
                if far < 1.0 {
                    let weight = (1.0 - far.powi(3)).powi(3);
                    let x = x - centre;
                    w += weight;
                    wx += weight * x;
                    wy += weight * y;
                    wxx += weight * x * x;
                    wxy += weight * x * y;
                }
            }
            let determinant = w * wxx - wx * wx;
            if determinant > 1e-12 * w * wxx { (wxx * wy - wx * wxy) / determinant } else { wy / w }
        })
        .collect()
}

/// Standard deviation of independent noise: the median distance of a point from the line between its neighbours,
/// scaled to what a normal one would have.
pub fn noise(x: &[f64], y: &[f64]) -> f64 {
    let mut distances: Vec<f64> = (1..x.len().saturating_sub(1))
        .map(|at| {
            let after = (x[at] - x[at - 1]) / (x[at + 1] - x[at - 1]);
            let line = (1.0 - after) * y[at - 1] + after * y[at + 1];
            let variance = 1.0 + after.powi(2) + (1.0 - after).powi(2);
            (y[at] - line).abs() / variance.sqrt()
        })
        .collect();
    distances.sort_by(f64::total_cmp);
    // The upper quartile of |N(0, 1)| / 2 is its median.
    if distances.is_empty() { 0.0 } else { quantile(&distances, 0.5) / 0.674_489_750_196_081_7 }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;
    use crate::random;

    const DRAWS: Draws = Draws { n_null: 200, n_bootstrap: 100 };

    #[test]
    fn angles_by_hand() {
        let angle = |points: [[f64; 2]; 3]| {
            turn_angle(&[0, 1].map(|k| points.map(|p| p[k]).to_vec()), 0, 1, 2)
        };
        assert!(angle([[0., 0.], [1., 0.], [3., 0.]]).abs() < 1e-7);
        assert!((angle([[0., 0.], [1., 0.], [1., 5.]]) - PI / 2.0).abs() < 1e-12);
        assert!((angle([[0., 0.], [1., 0.], [0., 0.]]) - PI).abs() < 1e-7);
        assert!(angle([[0., 0.], [0., 0.], [1., 0.]]).is_nan());
    }

    fn axis(n: usize) -> Vec<f64> {
        (0..n).map(|i| 8.0 * i as f64 / (n - 1) as f64).collect()
    }

    #[test]
    fn a_planted_corner_is_found_where_it_is() {
        let x = axis(60);
        let mut rng = random::stream(0, "corner");
        let (mut found, mut covered) = (0, 0);
        for _ in 0..20 {
            // Along one axis up to point 33, then along the other.
            let mut path = vec![
                x.iter().map(|&x| x.min(x_at(33))).collect::<Vec<f64>>(),
                x.iter().map(|&x| (x - x_at(33)).max(0.0)).collect(),
            ];
            for value in path.iter_mut().flatten() {
                *value += 0.02 * normal(&mut rng);
            }
            let result = corners(Shape::Turn(3), &x, &path, DRAWS, &mut rng);
            found += usize::from(result.corners.iter().any(|c| c.at.abs_diff(33) <= 1));
            let near = result.corners.iter().find(|c| c.at.abs_diff(33) <= 3);
            covered +=
                usize::from(near.is_some_and(|c| c.interval[0] <= 33.0 && 33.0 <= c.interval[1]));
            assert!(result.null_rate < 0.12, "{}", result.null_rate);
            assert!((result.statistic[33] - PI / 2.0).abs() < 0.3);
        }
        assert!(found >= 19 && covered >= 18, "{found} {covered}");
    }

    fn x_at(point: usize) -> f64 {
        8.0 * point as f64 / 59.0
    }

    #[test]
    fn smooth_paths_have_no_corners() {
        let mut rng = random::stream(1, "smooth");
        let mut called = [0; 2];
        for round in 0..100 {
            let x = axis(if round % 2 == 0 { 40 } else { 120 });
            let sd = 0.003 * f64::from(1 + round % 5);
            let exponents = [0.1 + 0.01 * f64::from(round % 30), 0.5];
            let path: Vec<Vec<f64>> = exponents
                .iter()
                .map(|c| x.iter().map(|x| (-c * x).exp() + sd * normal(&mut rng)).collect())
                .collect();
            let span = x.len() / 20;
            for (slot, shape) in [Shape::Turn(span), Shape::Bump(span)].into_iter().enumerate() {
                let draws = Draws { n_null: 100, n_bootstrap: 0 };
                let found = corners(shape, &x, &path, draws, &mut rng);
                called[slot] += u32::from(!found.corners.is_empty());
            }
        }
        // 5 % of 100 with two standard deviations.
        assert!(called.iter().all(|&n| n <= 9), "{called:?} of 100 smooth paths called");
    }

    #[test]
    fn a_bump_of_a_loss_is_where_it_stops_being_convex() {
        let x = axis(80);
        let mut rng = random::stream(2, "bump");
        let loss: Vec<f64> = x
            .iter()
            .map(|&x| {
                let drop = 1.0 / (1.0 + ((x - 5.0) / 0.1).exp());
                3.0 * (-0.5 * x).exp() + drop + 0.002 * normal(&mut rng)
            })
            .collect();
        let found = corners(Shape::Bump(2), &x, &[loss], DRAWS, &mut rng);
        // The knee in front of the drop.
        let knee = found.corners.iter().max_by(|a, b| a.size.total_cmp(&b.size)).unwrap();
        assert!(x[knee.at] > 4.5 && x[knee.at] < 5.0, "{}", x[knee.at]);
        assert!(knee.p <= 0.05 && knee.size > 0.0);
    }

    #[test]
    fn too_short_paths_have_none() {
        let mut rng = random::stream(3, "short");
        let found = corners(Shape::Turn(1), &[0.0, 1.0], &[vec![0.0, 1.0]], DRAWS, &mut rng);
        assert!(found.corners.is_empty() && found.null_rate.is_nan());
        assert!(found.statistic.iter().all(|value| value.is_nan()));
    }
}
