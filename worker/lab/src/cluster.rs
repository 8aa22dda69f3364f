//! Groups of items of which only pairwise similarities are known: spectral clustering, and how far two
//! partitions agree.
//!
//! Main functions: [`spectral`], [`adjusted_rand`]. The embedding is scikit-learn's: eigenvectors of the normalised
//! similarities (an item is not its own neighbour), divided by the root of the degrees; k-means on it starts
//! `N_STARTS` times from k-means++ seeds. Groups are numbered by size, the largest first, so that equal
//! partitions have equal numbers. Everything is float64 on the CPU.

use std::collections::BTreeMap;

use rand::Rng;
use sweep_lens::{Kind, Tensor};

use crate::{
    error::{Error, Result},
    random,
    value::to_vec,
};

/// Starts of k-means; the tightest result counts.
const N_STARTS: usize = 10;
/// Rounds of one start, at most; most end after a dozen.
const MAX_ROUNDS: usize = 300;

/// Group of each item, `0..n_groups`, group 0 the largest.
///
/// `affinity`: f64 `[n, n]`, symmetric and not negative; its diagonal is not read.
///
/// # Errors
/// Affinities that are not such a matrix; more groups than items; an item without any similarity.
pub(crate) fn spectral(
    affinity: &Tensor,
    n_groups: usize,
    rng: &mut impl Rng,
) -> Result<Vec<usize>> {
    let n = affinity.size()[0];
    if affinity.size() != [n, n] || n_groups == 0 || n < n_groups as i64 {
        return Err(Error::Input(format!(
            "expected n x n similarities of at least {n_groups} items, found {:?}",
            affinity.size()
        )));
    }
    let (embedding, _) = embed(affinity, n_groups as i64)?;
    Ok(by_size(&k_means(&embedding, n_groups, rng)))
}

/// First eigenvectors over the root of the degrees, `[n, k]`, with their eigenvalues, largest first.
fn embed(affinity: &Tensor, k: i64) -> Result<(Tensor, Vec<f64>)> {
    let off = affinity - affinity.diagonal(0, 0, 1).diag(0);
    let degree = off.sum_dim_intlist(&[1i64][..], false, Kind::Double);
    let (least, smallest) = (to_vec(&degree.min())[0], to_vec(&off.min())[0]);
    // NaN is neither.
    if !(least > 0.0 && smallest >= 0.0) {
        let problem = "expected similarities that are not negative, and one for every item";
        return Err(Error::Input(problem.to_owned()));
    }
    let root = degree.sqrt();
    let scaled = &off / (root.unsqueeze(0) * root.unsqueeze(1));
    let (values, vectors) = scaled.linalg_eigh("L");
    let first = vectors.flip([1]).narrow(1, 0, k);
    let values = to_vec(&values.flip([0]).narrow(0, 0, k));
    Ok((first / root.unsqueeze(1), values))
}

/// Lloyd's algorithm on rows `[n, d]`, best of several starts.
fn k_means(rows: &Tensor, k: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut best = (f64::INFINITY, Vec::new());
    for _ in 0..N_STARTS {
        let mut centres = seeds(rows, k, rng);
        let (mut spread, mut labels) = nearest(rows, &centres);
        for _ in 0..MAX_ROUNDS {
            centres = means(rows, &labels, &centres);
            let (now, moved) = nearest(rows, &centres);
            let is_done = moved == labels;
            (spread, labels) = (now, moved);
            if is_done {
                break;
            }
        }
        if spread < best.0 || best.1.is_empty() {
            best = (spread, labels);
        }
    }
    best.1
}

/// Squared distance of every row to every centre, `[n, k]`.
fn distances(rows: &Tensor, centres: &Tensor) -> Tensor {
    let energy = |x: &Tensor| x.square().sum_dim_intlist(&[1i64][..], false, Kind::Double);
    let products = rows.matmul(&centres.transpose(0, 1));
    // Rounding must not make a distance negative: it is a chance to be drawn.
    (energy(rows).unsqueeze(1) + energy(centres).unsqueeze(0) - products * 2.0).clamp_min(0.0)
}

/// k-means++: each next centre is a row drawn by its squared distance to the centres so far.
fn seeds(rows: &Tensor, k: usize, rng: &mut impl Rng) -> Tensor {
    let n = rows.size()[0];
    let mut centres = vec![rows.get(random::below(rng, n as u64) as i64)];
    while centres.len() < k {
        let so_far = Tensor::stack(&centres, 0);
        let (distance, _) = distances(rows, &so_far).min_dim(1, false);
        let distance = to_vec(&distance);
        let mut left = distance.iter().sum::<f64>() * unit(rng);
        let drawn = distance.iter().position(|part| {
            left -= part;
            left < 0.0
        });
        centres.push(rows.get(drawn.map_or(n - 1, |place| place as i64)));
    }
    Tensor::stack(&centres, 0)
}

/// Uniform in `[0, 1)`.
fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * 2f64.powi(-53)
}

/// Sum of squared distances to the nearest centre, and which it is.
fn nearest(rows: &Tensor, centres: &Tensor) -> (f64, Vec<usize>) {
    let (distance, label) = distances(rows, centres).min_dim(1, false);
    let labels = to_vec(&label).into_iter().map(|label| label as usize).collect();
    (distance.sum(Kind::Double).double_value(&[]), labels)
}

/// Mean of each group; a group that lost all its rows stays where it is.
fn means(rows: &Tensor, labels: &[usize], centres: &Tensor) -> Tensor {
    let k = centres.size()[0];
    let labels: Vec<i64> = labels.iter().map(|&label| label as i64).collect();
    let member = Tensor::from_slice(&labels).one_hot(k).to_kind(Kind::Double); // [n, k]
    let count = member.sum_dim_intlist(&[0i64][..], false, Kind::Double).unsqueeze(1);
    let sums = member.transpose(0, 1).matmul(rows);
    (sums / count.clamp_min(1.0)).where_self(&count.gt(0.0), centres)
}

/// Numbers groups by size, largest first; among equals the one with the earlier first item.
fn by_size(labels: &[usize]) -> Vec<usize> {
    let mut groups: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (item, &label) in labels.iter().enumerate() {
        groups.entry(label).or_insert((0, item)).0 += 1;
    }
    let mut order: Vec<(usize, (usize, usize))> = groups.into_iter().collect();
    order.sort_by_key(|&(_, (size, first))| (usize::MAX - size, first));
    let place = |label: &usize| order.iter().position(|(other, _)| other == label);
    labels.iter().map(|label| place(label).expect("every label was counted")).collect()
}

/// Adjusted Rand index of two partitions of the same items: 1 if equal, 0 on average by chance
/// (Hubert and Arabie 1985). NaN for fewer than two items.
pub(crate) fn adjusted_rand<A: Ord + Copy, B: Ord + Copy>(a: &[A], b: &[B]) -> f64 {
    let pairs = |n: f64| n * (n - 1.0) / 2.0;
    let mut cells: BTreeMap<(A, B), f64> = BTreeMap::new();
    let (mut rows, mut columns): (BTreeMap<A, f64>, BTreeMap<B, f64>) = Default::default();
    for (&a, &b) in a.iter().zip(b) {
        *cells.entry((a, b)).or_default() += 1.0;
        *rows.entry(a).or_default() += 1.0;
        *columns.entry(b).or_default() += 1.0;
    }
    let together: f64 = cells.values().map(|&n| pairs(n)).sum();
    let (in_a, in_b): (f64, f64) =
        (rows.values().map(|&n| pairs(n)).sum(), columns.values().map(|&n| pairs(n)).sum());
    let all = pairs(a.len() as f64);
    let expected = in_a * in_b / all;
    let most = f64::midpoint(in_a, in_b);
    // Two partitions into one group, or into single items, are equal.
    if most == expected && all > 0.0 { 1.0 } else { (together - expected) / (most - expected) }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    /// The generator of `tests/fixtures/make_clusters.py`.
    fn uniform(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let draw = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        (0..n).map(draw).collect()
    }

    fn numbers(json: &Json) -> Vec<f64> {
        json.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    }

    #[test]
    fn partitions_equal_those_of_scikit_learn() {
        let golden: Json =
            serde_json::from_str(include_str!("../tests/fixtures/clusters.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let group: Vec<usize> = numbers(&case["group"]).iter().map(|&g| g as usize).collect();
            let n = group.len();
            let noise = case["noise"].as_f64().unwrap();
            let draw = uniform(n * n, case["seed"].as_u64().unwrap());
            let cell = |i: usize, j: usize| {
                let base = if group[i] == group[j] { 0.75 } else { 0.5 };
                base + f64::midpoint(draw[i * n + j], draw[j * n + i]) * noise
            };
            let data: Vec<f64> = (0..n * n).map(|at| cell(at / n, at % n)).collect();
            let affinity = Tensor::from_slice(&data).view([n as i64, n as i64]);
            let k = case["sizes"].as_array().unwrap().len();
            let (_, values) = embed(&affinity, k as i64).unwrap();
            for (found, expected) in values.iter().zip(numbers(&case["eigenvalues"])) {
                assert!((found - expected).abs() < 1e-10, "{found} {expected}");
            }
            let found = spectral(&affinity, k, &mut random::stream(0, "test")).unwrap();
            let theirs: Vec<usize> = numbers(&case["labels"]).iter().map(|&g| g as usize).collect();
            let agreement = adjusted_rand(&found, &theirs);
            assert!(agreement > 0.99, "seed {}: {agreement}", case["seed"]);
            let expected = case["rand"].as_f64().unwrap();
            assert!((adjusted_rand(&group, &theirs) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn groups_are_numbered_by_size_and_bad_similarities_refused() {
        assert_eq!(by_size(&[5, 2, 2, 7, 7, 7, 5]), [1, 2, 2, 0, 0, 0, 1]);
        let mut rng = random::stream(0, "test");
        let square = |data: &[f64]| Tensor::from_slice(data).view([2, 2]);
        assert!(spectral(&square(&[1.0, 0.5, 0.5, 1.0]), 3, &mut rng).is_err());
        assert!(spectral(&square(&[1.0, -0.5, -0.5, 1.0]), 2, &mut rng).is_err());
        assert!(spectral(&square(&[1.0, f64::NAN, 0.5, 1.0]), 2, &mut rng).is_err());
        assert!(spectral(&square(&[1.0, 0.0, 0.0, 1.0]), 2, &mut rng).is_err());
        assert_eq!(spectral(&square(&[1.0, 0.5, 0.5, 1.0]), 2, &mut rng).unwrap(), [0, 1]);
    }

    #[test]
    fn agreement_of_partitions_by_hand() {
        assert_eq!(adjusted_rand(&[0, 0, 1, 1], &[9, 9, 4, 4]), 1.0);
        assert_eq!(adjusted_rand(&[0, 0, 0], &[1, 1, 1]), 1.0);
        // Pairs together in a: {01}, {23}; in b: {02}, {13}; none in both, expected 2 * 2 / 6.
        assert!((adjusted_rand(&[0, 0, 1, 1], &[0, 1, 0, 1]) + 0.5).abs() < 1e-12);
        assert!(adjusted_rand::<u8, u8>(&[], &[]).is_nan());
    }
}
