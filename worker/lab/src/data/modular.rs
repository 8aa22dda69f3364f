//! All pairs of modular addition with their train/test split (D0): input `a b =` with `=` as
//! token `p`, answer `(a + b) mod p`, read off at the last position.
//!
//! Main type: [`Pairs`]. Row `a * p + b` of everything is the pair (a, b). The split is a pure
//! function of (p, frac_train, data seed), so an analysis rebuilds exactly what training saw.

use sweep_lens::{Device, Kind, Tensor};

use crate::random;

/// The full data set of modular addition.
#[derive(Debug)]
pub struct Pairs {
    /// Modulus.
    pub p: i64,
    /// i64 `[p², 3]`: `a b =`.
    pub tokens: Tensor,
    /// i64 `[p²]`: `(a + b) mod p`.
    pub labels: Tensor,
    /// i64 `[n_train]`: rows trained on, ascending.
    pub train: Tensor,
    /// i64 `[n_test]`: the other rows, ascending.
    pub test: Tensor,
}

impl Pairs {
    /// Builds the pairs on `device`; `floor(frac_train * p²)` of them are for training.
    pub fn new(p: i64, frac_train: f64, data_seed: u64, device: Device) -> Self {
        let n = (p * p) as usize;
        let n_train = ((frac_train * n as f64).floor() as usize).clamp(1, n - 1);
        let mut order = random::permutation(&mut random::stream(data_seed, "modular/split"), n);
        // Ascending rows read memory in order and make the sets easy to compare.
        order[..n_train].sort_unstable();
        order[n_train..].sort_unstable();
        let a =
            Tensor::arange(p, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(p, 0, None);
        let b = Tensor::arange(p, (Kind::Int64, Device::Cpu)).repeat([p]);
        let tokens = Tensor::stack(&[&a, &b, &a.full_like(p)], 1);
        let labels = (a + b).remainder(p);
        Self {
            p,
            tokens: tokens.to_device(device),
            labels: labels.to_device(device),
            train: Tensor::from_slice(&order[..n_train]).to_device(device),
            test: Tensor::from_slice(&order[n_train..]).to_device(device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_labelled_and_split() {
        let pairs = Pairs::new(7, 0.3, 11, Device::Cpu);
        assert_eq!(pairs.tokens.size(), [49, 3]);
        assert_eq!(Vec::<i64>::try_from(pairs.tokens.get(3 * 7 + 5)).unwrap(), [3, 5, 7]);
        assert_eq!(pairs.labels.int64_value(&[3 * 7 + 5]), 1);
        assert_eq!((pairs.train.size(), pairs.test.size()), (vec![14], vec![35]));
        let mut all: Vec<i64> = Vec::try_from(&pairs.train).unwrap();
        all.extend(Vec::<i64>::try_from(&pairs.test).unwrap());
        all.sort_unstable();
        assert_eq!(all, (0..49).collect::<Vec<_>>());
        let again = Pairs::new(7, 0.3, 11, Device::Cpu);
        assert!(again.train.equal(&pairs.train));
        assert!(!Pairs::new(7, 0.3, 12, Device::Cpu).train.equal(&pairs.train));
    }
}
