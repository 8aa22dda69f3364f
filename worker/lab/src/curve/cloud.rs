//! What curves without groups would look like: a cloud of one elliptic shape, standardised like the curves.
//!
//! Main type: [`Cloud`]. Standardised curves are directions, so the cloud is angular central Gaussian: Tyler's shape matrix in the space
//! of the first singular vectors, radii and what lies outside that space taken from the curves at random. Standardising makes two
//! opposite groups of any cloud around one shape; as many drawn curves as real ones therefore point along the main direction, so
//! that groups which only rise or fall are no evidence.

use rand::Rng;

use super::cluster::standardised;
use crate::random;

/// Most singular vectors; never more than a quarter of the curves.
const RANK: usize = 8;

/// Iterations of the singular vectors and of Tyler's fixed point.
const ITERATIONS: usize = 60;

/// A distribution of curves.
pub struct Cloud {
    /// Orthonormal directions, the main one first.
    directions: Vec<Vec<f64>>,
    /// Coordinates of every curve.
    coordinates: Vec<Vec<f64>>,
    /// What is left of every curve.
    rests: Vec<Vec<f64>>,
    /// Lower Cholesky factor of the shape.
    factor: Vec<Vec<f64>>,
}

impl Cloud {
    /// Fits curves of equal length, at least four of them.
    pub fn of(curves: &[&[f64]], rng: &mut impl Rng) -> Self {
        let rank = RANK.min(curves.len() / 4).min(curves[0].len()).max(1);
        let directions = directions(curves, rank, rng);
        let coordinates: Vec<Vec<f64>> =
            curves.iter().map(|c| directions.iter().map(|d| dot(c, d)).collect()).collect();
        let rest = |(curve, own): (&&[f64], &Vec<f64>)| {
            let mut rest = curve.to_vec();
            for (share, direction) in own.iter().zip(&directions) {
                rest.iter_mut().zip(direction).for_each(|(r, d)| *r -= share * d);
            }
            rest
        };
        let rests = curves.iter().zip(&coordinates).map(rest).collect();
        let factor = tyler(&coordinates);
        Self { directions, coordinates, rests, factor }
    }

    /// As many curves as were fitted.
    pub fn draw(&self, rng: &mut impl Rng) -> Vec<Vec<f64>> {
        let n = self.coordinates.len();
        let mut order = || random::permutation(rng, n);
        let (signs, radii, rests) = (order(), order(), order());
        (0..n)
            .map(|at| {
                let normal: Vec<f64> = self.factor.iter().map(|_| random::normal(rng)).collect();
                let drawn: Vec<f64> = self.factor.iter().map(|row| dot(row, &normal)).collect();
                let radius = norm(&self.coordinates[radii[at] as usize]) / norm(&drawn);
                let along = self.coordinates[signs[at] as usize][0] * drawn[0];
                let scale = if along < 0.0 { -radius } else { radius };
                let mut curve = self.rests[rests[at] as usize].clone();
                for (share, direction) in drawn.iter().zip(&self.directions) {
                    curve.iter_mut().zip(direction).for_each(|(c, d)| *c += scale * share * d);
                }
                standardised(&curve).unwrap_or(curve)
            })
            .collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(values: &[f64]) -> f64 {
    dot(values, values).sqrt().max(f64::MIN_POSITIVE)
}

/// The first right singular vectors, by subspace iteration.
fn directions(curves: &[&[f64]], rank: usize, rng: &mut impl Rng) -> Vec<Vec<f64>> {
    let width = curves[0].len();
    let mut found: Vec<Vec<f64>> =
        (0..rank).map(|_| (0..width).map(|_| random::normal(rng)).collect()).collect();
    orthonormalise(&mut found);
    for _ in 0..ITERATIONS {
        let mut next = vec![vec![0.0; width]; rank];
        for curve in curves {
            for (sum, direction) in next.iter_mut().zip(&found) {
                let share = dot(curve, direction);
                sum.iter_mut().zip(*curve).for_each(|(s, c)| *s += share * c);
            }
        }
        found = next;
        orthonormalise(&mut found);
    }
    found
}

/// Gram-Schmidt, twice; a direction that is made up of the others becomes zero.
fn orthonormalise(vectors: &mut [Vec<f64>]) {
    for at in 0..vectors.len() {
        let (known, rest) = vectors.split_at_mut(at);
        let vector = &mut rest[0];
        let before = norm(vector);
        for _ in 0..2 {
            for other in &*known {
                let share = dot(vector, other);
                vector.iter_mut().zip(other).for_each(|(v, o)| *v -= share * o);
            }
        }
        let after = norm(vector);
        let scale = if after > 1e-10 * before { 1.0 / after } else { 0.0 };
        for v in vector.iter_mut() {
            *v *= scale;
        }
    }
}

/// Cholesky factor of Tyler's shape matrix (trace = rank), with a millionth of its trace on the diagonal.
fn tyler(coordinates: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let rank = coordinates[0].len();
    let units: Vec<Vec<f64>> =
        coordinates.iter().map(|own| own.iter().map(|value| value / norm(own)).collect()).collect();
    let identity = |i: usize, j: usize| f64::from(u8::from(i == j));
    let mut factor: Vec<Vec<f64>> =
        (0..rank).map(|i| (0..rank).map(|j| identity(i, j)).collect()).collect();
    for _ in 0..ITERATIONS {
        let mut shape = vec![vec![0.0; rank]; rank];
        for unit in &units {
            let white = forward(&factor, unit);
            let weight = 1.0 / dot(&white, &white).max(1e-12);
            for (i, row) in shape.iter_mut().enumerate() {
                row.iter_mut().zip(unit).for_each(|(s, u)| *s += weight * unit[i] * u);
            }
        }
        let trace: f64 = (0..rank).map(|i| shape[i][i]).sum();
        for (i, row) in shape.iter_mut().enumerate() {
            for s in row.iter_mut() {
                *s *= rank as f64 / trace;
            }
            row[i] += 1e-6;
        }
        factor = cholesky(&shape);
    }
    factor
}

fn cholesky(matrix: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = matrix.len();
    let mut lower = vec![vec![0.0; n]; n];
    for (i, row) in matrix.iter().enumerate() {
        for j in 0..=i {
            let rest = row[j] - dot(&lower[i][..j], &lower[j][..j]);
            lower[i][j] = if i == j { rest.max(1e-12).sqrt() } else { rest / lower[j][j] };
        }
    }
    lower
}

/// Solves `L x = b`.
fn forward(lower: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut x: Vec<f64> = Vec::with_capacity(b.len());
    for (row, b) in lower.iter().zip(b) {
        x.push((b - dot(row, &x)) / row[x.len()]);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::cluster::{Distances, k_means};

    fn views(curves: &[Vec<f64>]) -> Vec<&[f64]> {
        curves.iter().map(Vec::as_slice).collect()
    }

    /// Share of drawn clouds with as large a silhouette for two to four clusters.
    fn p(curves: &[Vec<f64>], rng: &mut impl Rng) -> f64 {
        let largest = |curves: &[Vec<f64>], rng: &mut _| {
            let rows = views(curves);
            let distances = Distances::new(&rows);
            (2..=4)
                .map(|k| distances.silhouette(&k_means(&rows, k, 3, rng).labels, k))
                .fold(f64::NAN, f64::max)
        };
        let curves: Vec<Vec<f64>> = curves.iter().map(|c| standardised(c).unwrap()).collect();
        let found = largest(&curves, rng);
        let cloud = Cloud::of(&views(&curves), rng);
        let n = 19;
        let as_large = (0..n).filter(|_| largest(&cloud.draw(rng), rng) >= found).count();
        (1.0 + as_large as f64) / (1.0 + f64::from(n))
    }

    #[test]
    fn walks_and_power_laws_are_no_groups() {
        let mut rng = random::stream(0, "cloud");
        let mut called = [0; 2];
        for _ in 0..30 {
            let walks: Vec<Vec<f64>> = (0..40)
                .map(|_| {
                    let mut level = 0.0;
                    let mut walk = |i: usize| {
                        level += 0.3 * random::normal(&mut rng);
                        0.1 * i as f64 + level
                    };
                    (0..60).map(&mut walk).collect()
                })
                .collect();
            let powers: Vec<Vec<f64>> = (0..40)
                .map(|i| {
                    let c = 0.1 + 0.02 * f64::from(i);
                    (0..60)
                        .map(|t| (-c * 0.15 * f64::from(t)).exp() + 0.02 * random::normal(&mut rng))
                        .collect()
                })
                .collect();
            called[0] += u32::from(p(&walks, &mut rng) <= 0.05);
            called[1] += u32::from(p(&powers, &mut rng) <= 0.05);
        }
        // 1.5 of 30 expected for each; a fitted cloud is a little too tight.
        assert!(called.iter().all(|n| *n <= 6), "{called:?} of 30 called");
    }

    #[test]
    fn two_onsets_are_groups() {
        let mut rng = random::stream(1, "cloud");
        for _ in 0..3 {
            let curves: Vec<Vec<f64>> = (0..40)
                .map(|i| {
                    let x0 = if i < 20 { 3.0 } else { 6.0 };
                    let rise = |t: i32| 1.0 / (1.0 + ((x0 - 0.15 * f64::from(t)) / 0.3).exp());
                    (0..60).map(|t| rise(t) + 0.1 * random::normal(&mut rng)).collect()
                })
                .collect();
            assert!(p(&curves, &mut rng) <= 0.05);
        }
    }

    #[test]
    fn shapes_are_recovered() {
        let mut rng = random::stream(2, "tyler");
        // Normal with variances 4 and 1, then of unit length: Tyler's matrix does not mind the length.
        let rows: Vec<Vec<f64>> = (0..4000)
            .map(|_| vec![2.0 * random::normal(&mut rng), random::normal(&mut rng)])
            .collect();
        let factor = tyler(&rows);
        assert!((factor[0][0] / factor[1][1] - 2.0).abs() < 0.1, "{factor:?}");
        assert!(factor[1][0].abs() < 0.05);
        assert_eq!(forward(&[vec![2.0, 0.0], vec![1.0, 4.0]], &[4.0, 10.0]), [2.0, 2.0]);
    }
}
