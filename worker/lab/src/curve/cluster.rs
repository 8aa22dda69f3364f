//! Groups of curves of one shape: standardisation over time, k-means and the silhouette.
//!
//! Main items: [`standardised`], [`k_means`], [`Distances`]. Everything is deterministic for a stream: starts are those of
//! k-means++, ties go to the lower index. Invariant: every cluster has a member.

use rand::Rng;

use crate::random;

/// The curve with mean 0 and standard deviation 1 over its points; `None` if it is constant or has a gap.
pub fn standardised(values: &[f64]) -> Option<Vec<f64>> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    // Below rounding of the values there is no shape to speak of.
    let is_curve = deviation.is_finite() && deviation > 1e-12 * mean.abs().max(f64::MIN_POSITIVE);
    is_curve.then(|| values.iter().map(|v| (v - mean) / deviation).collect())
}

/// Squared Euclidean distance, in four lanes that the compiler can keep in one register.
fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 4];
    let (a_chunks, b_chunks) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 =
        a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| (a - b).powi(2)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += (a - b) * (a - b);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// A division of rows into clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustering {
    /// Cluster of each row.
    pub labels: Vec<usize>,
    /// Mean row of each cluster.
    pub centres: Vec<Vec<f64>>,
    /// Sum of squared distances of rows from their centres.
    pub inertia: f64,
}

/// The best of `n_starts` runs of Lloyd's algorithm from k-means++ centres. There are at least `k` rows.
///
/// # Panics
/// If there are fewer rows than clusters, or no clusters.
pub fn k_means(rows: &[&[f64]], k: usize, n_starts: usize, rng: &mut impl Rng) -> Clustering {
    assert!((1..=rows.len()).contains(&k), "{k} clusters of {} rows", rows.len());
    (0..n_starts.max(1))
        .map(|_| descend(rows, seeds(rows, k, rng)))
        .min_by(|a, b| a.inertia.total_cmp(&b.inertia))
        .expect("there is at least one start")
}

/// k-means++: each next centre is a row drawn in proportion to its squared distance from those there are.
fn seeds(rows: &[&[f64]], k: usize, rng: &mut impl Rng) -> Vec<Vec<f64>> {
    let first = rows[random::below(rng, rows.len() as u64) as usize];
    let mut centres = vec![first.to_vec()];
    let mut nearest: Vec<f64> = rows.iter().map(|row| squared_distance(row, first)).collect();
    while centres.len() < k {
        let total: f64 = nearest.iter().sum();
        let mut left = total * (rng.next_u64() >> 11) as f64 * 2f64.powi(-53);
        let drawn = nearest.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // All rows are centres already: any one will do.
        let drawn = rows[drawn.unwrap_or(rows.len() - 1)];
        for (nearest, row) in nearest.iter_mut().zip(rows) {
            *nearest = nearest.min(squared_distance(row, drawn));
        }
        centres.push(drawn.to_vec());
    }
    centres
}

/// Lloyd's iterations to the end.
fn descend(rows: &[&[f64]], mut centres: Vec<Vec<f64>>) -> Clustering {
    const MOST: usize = 300;
    let (k, width) = (centres.len(), rows[0].len());
    let mut labels = vec![usize::MAX; rows.len()];
    for _ in 0..MOST {
        let mut distances = vec![0.0; rows.len()];
        let mut has_changed = false;
        for ((row, label), distance) in rows.iter().zip(&mut labels).zip(&mut distances) {
            let (mut best, mut least) = (0, f64::INFINITY);
            for (cluster, centre) in centres.iter().enumerate() {
                let found = squared_distance(row, centre);
                if found < least {
                    (best, least) = (cluster, found);
                }
            }
            has_changed |= *label != best;
            (*label, *distance) = (best, least);
        }
        let mut sizes = vec![0usize; k];
        for label in &labels {
            sizes[*label] += 1;
        }
        // A cluster that lost all its rows takes the one that is worst off, unless it is alone.
        for cluster in 0..k {
            if sizes[cluster] == 0 {
                let movable = (0..rows.len()).filter(|row| sizes[labels[*row]] > 1);
                let worst = movable.max_by(|a, b| distances[*a].total_cmp(&distances[*b]));
                if let Some(worst) = worst {
                    sizes[labels[worst]] -= 1;
                    (labels[worst], distances[worst], sizes[cluster]) = (cluster, 0.0, 1);
                    has_changed = true;
                }
            }
        }
        if !has_changed {
            break;
        }
        centres = vec![vec![0.0; width]; k];
        for (row, label) in rows.iter().zip(&labels) {
            centres[*label].iter_mut().zip(*row).for_each(|(sum, value)| *sum += value);
        }
        for (centre, size) in centres.iter_mut().zip(&sizes) {
            for sum in centre.iter_mut() {
                *sum /= *size as f64;
            }
        }
    }
    let inertia =
        rows.iter().zip(&labels).map(|(row, label)| squared_distance(row, &centres[*label]));
    Clustering { inertia: inertia.sum(), labels, centres }
}

/// All Euclidean distances between some rows.
pub struct Distances {
    n: usize,
    between: Vec<f64>,
}

impl Distances {
    /// Takes memory for the square of the number of rows.
    pub fn new(rows: &[&[f64]]) -> Self {
        let n = rows.len();
        let mut between = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..i {
                let distance = squared_distance(rows[i], rows[j]).sqrt();
                (between[i * n + j], between[j * n + i]) = (distance, distance);
            }
        }
        Self { n, between }
    }

    /// Mean silhouette (Rousseeuw 1987): how much nearer a row is to its own cluster than to the next one; 0 for a
    /// row that is alone. NaN unless there are two clusters.
    pub fn silhouette(&self, labels: &[usize], k: usize) -> f64 {
        let mut sizes = vec![0usize; k];
        for label in labels {
            sizes[*label] += 1;
        }
        if sizes.iter().filter(|size| **size > 0).count() < 2 {
            return f64::NAN;
        }
        let of_row = |row: usize| {
            let own = labels[row];
            if sizes[own] == 1 {
                return 0.0;
            }
            let mut sums = vec![0.0; k];
            for (distance, label) in self.between[row * self.n..][..self.n].iter().zip(labels) {
                sums[*label] += distance;
            }
            let inside = sums[own] / (sizes[own] - 1) as f64;
            let outside = (0..k)
                .filter(|other| *other != own && sizes[*other] > 0)
                .map(|other| sums[other] / sizes[other] as f64)
                .fold(f64::INFINITY, f64::min);
            (outside - inside) / inside.max(outside).max(f64::MIN_POSITIVE)
        };
        (0..self.n).map(of_row).sum::<f64>() / self.n as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn partitions_equal_scikit_learn() {
        let golden: Json =
            serde_json::from_str(include_str!("../../tests/fixtures/trajectories.json")).unwrap();
        let golden = &golden["clusters"];
        let curves: Vec<Vec<f64>> = serde_json::from_value(golden["curves"].clone()).unwrap();
        let curves: Vec<Vec<f64>> = curves.iter().map(|c| standardised(c).unwrap()).collect();
        let rows: Vec<&[f64]> = curves.iter().map(Vec::as_slice).collect();
        let distances = Distances::new(&rows);
        let mut rng = random::stream(0, "test");
        for case in golden["found"].as_array().unwrap() {
            let k = case["k"].as_u64().unwrap() as usize;
            let labels: Vec<usize> = serde_json::from_value(case["labels"].clone()).unwrap();
            let silhouette = case["silhouette"].as_f64().unwrap();
            assert!((distances.silhouette(&labels, k) - silhouette).abs() < 1e-10, "k = {k}");
            let found = k_means(&rows, k, 50, &mut rng);
            let inertia = case["inertia"].as_f64().unwrap();
            assert!(found.inertia <= inertia * (1.0 + 1e-9), "{} {inertia}", found.inertia);
            if k == 3 {
                // The planted ones: one name of ours for each of theirs.
                let pairs: BTreeSet<(usize, usize)> =
                    found.labels.iter().copied().zip(labels.iter().copied()).collect();
                assert_eq!(pairs.len(), 3, "{:?} {labels:?}", found.labels);
            }
        }
    }

    #[test]
    fn every_cluster_has_a_member() {
        let rows: Vec<Vec<f64>> = (0..6).map(|i| vec![f64::from(i / 3), 0.0]).collect();
        let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
        let found = k_means(&rows, 4, 5, &mut random::stream(1, "test"));
        let used: BTreeSet<usize> = found.labels.iter().copied().collect();
        assert_eq!(used.len(), 4);
        assert!(found.inertia.abs() < 1e-24);
    }

    #[test]
    fn shapes_without_scale() {
        let z = standardised(&[1.0, 3.0]).unwrap();
        assert_eq!(z, [-1.0, 1.0]);
        assert_eq!(standardised(&[2.0, 2.0]), None);
        assert_eq!(standardised(&[2.0, f64::NAN]), None);
    }

    #[test]
    fn silhouette_by_hand() {
        let rows: [&[f64]; 3] = [&[0.0], &[1.0], &[5.0]];
        // Rows 0 and 1 together: (5 - 1) / 5, (4 - 1) / 4, 0 for the lonely one.
        let found = Distances::new(&rows).silhouette(&[0, 0, 1], 2);
        assert!((found - (0.8 + 0.75) / 3.0).abs() < 1e-12);
        assert!(Distances::new(&rows).silhouette(&[0, 0, 0], 1).is_nan());
    }
}
