//! Equal contents under several labels: whole checkpoints ([`duplicates`]), or single tensors that come
//! back after they had changed ([`copied_tensors`]: a shard of another checkpoint).

use std::collections::BTreeMap;

/// Indices of checkpoints with equal fingerprints, groups of two or more, in order.
pub(crate) fn duplicates(fingerprints: &[f64]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, fingerprint) in fingerprints.iter().enumerate() {
        groups.entry(fingerprint.to_bits()).or_default().push(index);
    }
    let mut groups: Vec<Vec<usize>> =
        groups.into_values().filter(|group| group.len() > 1).collect();
    groups.sort();
    groups
}

/// One tensor over the checkpoints.
#[derive(Debug, Clone)]
pub(crate) struct TensorHistory {
    /// Its name.
    pub name: String,
    /// Number of elements.
    pub size: f64,
    /// Fingerprint of each checkpoint's, NaN where it is absent.
    pub fingerprints: Vec<f64>,
    /// Norm of each checkpoint's.
    pub norms: Vec<f64>,
}

/// Tensors that one checkpoint shares with another though they differed in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copied {
    /// The two checkpoints' indices.
    pub pair: (usize, usize),
    /// Names.
    pub tensors: Vec<String>,
}

/// Finds tensors that come back bit for bit after they had changed. `bits` is each checkpoint's width of
/// a number: where numbers have 16 bits, a small tensor that hardly moves may come back by chance.
pub(crate) fn copied_tensors(tensors: &[TensorHistory], bits: &[f64]) -> Vec<Copied> {
    let mut pairs: BTreeMap<(usize, usize), Vec<String>> = BTreeMap::new();
    for tensor in tensors {
        let mut last_seen: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, fingerprint) in tensor.fingerprints.iter().enumerate() {
            if fingerprint.is_nan() {
                continue;
            }
            let Some(before) = last_seen.insert(fingerprint.to_bits(), index) else { continue };
            let enough = if bits[index] <= 16.0 { 16_384.0 } else { 16.0 };
            // Zero is where weights decay to.
            let is_zero = tensor.norms[index] == 0.0;
            if index - before > 1 && tensor.size >= enough && !is_zero {
                pairs.entry((before, index)).or_default().push(tensor.name.clone());
            }
        }
    }
    pairs.into_iter().map(|(pair, tensors)| Copied { pair, tensors }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(fingerprints: &[f64], size: f64) -> TensorHistory {
        let norms = fingerprints.iter().map(|f| if *f == 0.0 { 0.0 } else { 1.0 }).collect();
        TensorHistory { name: "w".to_owned(), size, fingerprints: fingerprints.to_vec(), norms }
    }

    #[test]
    fn duplicates_are_grouped() {
        assert_eq!(duplicates(&[5.0, 5.0, 7.0, 8.0, 7.0, 5.0]), [vec![0, 1, 5], vec![2, 4]]);
        assert!(duplicates(&[1.0, 2.0]).is_empty() && duplicates(&[]).is_empty());
    }

    #[test]
    fn tensors_that_come_back_are_copies_and_frozen_ones_are_not() {
        let find = |fingerprints: &[f64], size, bits| {
            copied_tensors(&[history(fingerprints, size)], &vec![bits; fingerprints.len()])
        };
        let copied = |a, b| vec![Copied { pair: (a, b), tensors: vec!["w".to_owned()] }];
        assert_eq!(find(&[1.0, 2.0, 9.0, 3.0, 9.0], 64.0, 32.0), copied(2, 4));
        assert_eq!(find(&[1.0, 1.0, 1.0, 2.0, 2.0], 64.0, 32.0), []);
        assert_eq!(find(&[0.0, 2.0, 0.0, 3.0, 4.0], 64.0, 32.0), []);
        assert_eq!(find(&[1.0, 2.0, 1.0], 3.0, 32.0), []);
        assert_eq!(find(&[1.0, 2.0, 1.0], 768.0, 16.0), []);
        assert_eq!(find(&[1.0, 2.0, 1.0], 1e6, 16.0), copied(0, 2));
        assert_eq!(find(&[f64::NAN, 2.0, f64::NAN], 64.0, 32.0), []);
    }
}
