//! Which frequency matched neurons follow in either model (5.37).

use sweep_lens::Tensor;

use crate::{fourier::Basis, value::to_vec};

/// Counts pairs of neurons by the frequency that each follows: entry `[j][k]` is the number of places whose neuron
/// follows frequency j + 1 in model a and k + 1 in model b. Neurons that never vary follow none and are
/// left out. `a`, `b`: activations on all pairs, `[p², n_neurons]`, place by place.
pub fn frequency_confusion(basis: &Basis, a: &Tensor, b: &Tensor) -> Vec<Vec<f64>> {
    let n = basis.n_frequencies() as usize;
    let owners = |activations: &Tensor| {
        let fractions = basis.variance_explained(activations).nan_to_num(-1.0, None, None);
        let (best, owner) = fractions.max_dim(0, false);
        let pairs = to_vec(&best).into_iter().zip(to_vec(&owner));
        pairs.map(|(best, owner)| (best >= 0.0).then_some(owner as usize)).collect::<Vec<_>>()
    };
    let mut counts = vec![vec![0.0; n]; n];
    for pair in owners(a).into_iter().zip(owners(b)) {
        if let (Some(j), Some(k)) = pair {
            counts[j][k] += 1.0;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use sweep_lens::Device;

    use super::*;

    #[test]
    fn frequencies_are_counted_pair_by_pair() {
        let p = 7;
        let neurons = |frequencies: [i64; 3]| {
            let mut data = Vec::new();
            for x in 0..p {
                for y in 0..p {
                    let wave = |k: i64| (TAU * (k * (x + y)) as f64 / p as f64).cos();
                    data.extend(frequencies.map(|k| if k == 0 { 1.0 } else { wave(k) }));
                }
            }
            Tensor::from_slice(&data).view([p * p, 3])
        };
        let basis = Basis::new(p, Device::Cpu).unwrap();
        let found = frequency_confusion(&basis, &neurons([1, 3, 2]), &neurons([1, 2, 0]));
        assert_eq!(found, [vec![1.0, 0.0, 0.0], vec![0.0, 0.0, 0.0], vec![0.0, 1.0, 0.0]]);
    }
}
