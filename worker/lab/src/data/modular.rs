//! All pairs of a modular operation with their train/test split (D0): as a sequence `a b =` with `=` as
//! token `p`, answered at the last position, or as the set of active inputs `a`, `p + b` of a perceptron.
//!
//! Main type: [`Pairs`]. Row `a * p + b` of everything is the pair (a, b). The split is a pure
//! function of (p, frac_train, data seed), so an analysis rebuilds exactly what training saw.

use sweep_lens::{Device, Kind, Tensor};

use crate::{
    error::{Error, Result},
    random,
};

/// Names of [`Operation`]s, as parameters give them.
pub(crate) const OPERATIONS: [&str; 4] = ["add", "subtract", "multiply", "quadratic"];

/// What is asked of a pair, modulo p.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// a + b
    Add,
    /// a - b
    Subtract,
    /// a b
    Multiply,
    /// a² + a b + b²
    Quadratic,
}

impl Operation {
    /// The operation of this name, one of [`OPERATIONS`] (which the parameter check guarantees).
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "subtract" => Self::Subtract,
            "multiply" => Self::Multiply,
            "quadratic" => Self::Quadratic,
            _ => Self::Add,
        }
    }

    fn apply(self, a: &Tensor, b: &Tensor) -> Tensor {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Quadratic => a * a + a * b + b * b,
        }
    }
}

/// How a pair is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `a b =`, vocabulary p + 1.
    Sequence,
    /// `a` and `p + b`, 2p inputs: two one-hot vectors side by side.
    OneHot,
}

/// The full data set of a modular operation.
#[derive(Debug)]
pub struct Pairs {
    /// Modulus.
    pub p: i64,
    /// What is asked.
    pub operation: Operation,
    /// i64 `[p², 3]` (`a b =`) or `[p², 2]` (`a`, `p + b`).
    pub tokens: Tensor,
    /// i64 `[p²]`: the answer.
    pub labels: Tensor,
    /// i64 `[n_train]`: rows trained on, ascending.
    pub train: Tensor,
    /// i64 `[n_test]`: the other rows, ascending.
    pub test: Tensor,
}

/// Checks that a split leaves pairs on both sides.
pub(crate) fn check_split(p: i64, frac_train: f64) -> Result<()> {
    let n_train = (frac_train * (p * p) as f64).floor() as i64;
    if (1..p * p).contains(&n_train) {
        return Ok(());
    }
    let problem = format!(
        "{frac_train} leaves {n_train} of {} pairs to train on, expected some and not all",
        p * p
    );
    Err(Error::params("frac_train", problem))
}

impl Pairs {
    /// Builds the pairs on `device`; `floor(frac_train * p²)` of them are for training.
    pub fn new(
        operation: Operation,
        form: Form,
        p: i64,
        frac_train: f64,
        data_seed: u64,
        device: Device,
    ) -> Self {
        let n = (p * p) as usize;
        let n_train = ((frac_train * n as f64).floor() as usize).clamp(1, n - 1);
        let mut order = random::permutation(&mut random::stream(data_seed, "modular/split"), n);
        // Ascending rows read memory in order and make the sets easy to compare.
        order[..n_train].sort_unstable();
        order[n_train..].sort_unstable();
        let a =
            Tensor::arange(p, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(p, 0, None);
        let b = Tensor::arange(p, (Kind::Int64, Device::Cpu)).repeat([p]);
        let tokens = match form {
            Form::Sequence => Tensor::stack(&[&a, &b, &a.full_like(p)], 1),
            Form::OneHot => Tensor::stack(&[&a, &(&b + p)], 1),
        };
        // The remainder of a negative difference is positive, as residues are.
        let labels = operation.apply(&a, &b).remainder(p);
        Self {
            p,
            operation,
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

    fn add(p: i64, frac_train: f64, seed: u64, device: Device) -> Pairs {
        Pairs::new(Operation::Add, Form::Sequence, p, frac_train, seed, device)
    }

    #[test]
    fn operations_and_forms() {
        for (name, expected) in OPERATIONS.iter().zip([1, 5, 1, 0]) {
            let operation = Operation::parse(name);
            let pairs = Pairs::new(operation, Form::OneHot, 7, 0.3, 11, Device::Cpu);
            // (3, 5): 8, -2, 15 and 9 + 15 + 25 = 49, modulo 7.
            assert_eq!(pairs.labels.int64_value(&[3 * 7 + 5]), expected, "{name}");
            assert_eq!(Vec::<i64>::try_from(pairs.tokens.get(3 * 7 + 5)).unwrap(), [3, 12]);
            let split = add(7, 0.3, 11, Device::Cpu);
            assert!(pairs.train.equal(&split.train), "the split knows neither form nor operation");
        }
    }

    #[test]
    fn pairs_are_labelled_and_split() {
        let pairs = add(7, 0.3, 11, Device::Cpu);
        assert_eq!(pairs.tokens.size(), [49, 3]);
        assert_eq!(Vec::<i64>::try_from(pairs.tokens.get(3 * 7 + 5)).unwrap(), [3, 5, 7]);
        assert_eq!(pairs.labels.int64_value(&[3 * 7 + 5]), 1);
        assert_eq!((pairs.train.size(), pairs.test.size()), (vec![14], vec![35]));
        let mut all: Vec<i64> = Vec::try_from(&pairs.train).unwrap();
        all.extend(Vec::<i64>::try_from(&pairs.test).unwrap());
        all.sort_unstable();
        assert_eq!(all, (0..49).collect::<Vec<_>>());
        let again = add(7, 0.3, 11, Device::Cpu);
        assert!(again.train.equal(&pairs.train));
        assert!(!add(7, 0.3, 12, Device::Cpu).train.equal(&pairs.train));
    }
}
