//! The Fourier basis over Z_p and what modular-addition analyses read off it (D1, D1b, D4, D6, D7).
//!
//! Main type: [`Basis`]. Everything is float64: losses of a grokked model live ten orders of
//! magnitude below its logits. Frequencies run from 1 to p/2 *inclusive* (the published code stops
//! one short, D7); index `k - 1` of every per-frequency tensor is frequency `k`.

use std::f64::consts::TAU;

use sweep_lens::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Orthonormal real Fourier basis over Z_p, p odd.
#[derive(Debug)]
pub struct Basis {
    /// Modulus.
    pub p: i64,
    /// f64 `[p, p]`: row 0 constant, rows 2k-1 and 2k are cos and sin of frequency k (D1).
    pub rows: Tensor,
    /// f64 `[p-1, p²]`: rows 2(k-1) and 2(k-1)+1 are `cos w_k(x+y)` and `sin w_k(x+y)` over all pairs,
    /// each of norm 1 and mutually orthogonal (u and v of D1b). For subtraction, of `x-y`.
    pub sums: Tensor,
}

impl Basis {
    /// # Errors
    /// If `p` is even or below 3: an even modulus has a frequency without a sine.
    pub fn new(p: i64, device: Device) -> Result<Self> {
        Self::of_task(p, 1, device)
    }

    /// The basis of a task that asks for `x + sign * y`: its waves are `cos w_k(x + sign * y)`.
    ///
    /// # Errors
    /// As [`Basis::new`].
    pub(crate) fn of_task(p: i64, sign: i64, device: Device) -> Result<Self> {
        if p < 3 || p % 2 == 0 {
            return Err(Error::Input(format!(
                "a Fourier basis needs an odd modulus >= 3, found {p}"
            )));
        }
        let n = p as usize;
        let mut rows = vec![1.0 / (p as f64).sqrt(); n];
        let scale = (2.0 / p as f64).sqrt();
        let wave = |k: usize, x: usize| TAU * ((k * x) % n) as f64 / p as f64;
        for k in 1..=n / 2 {
            rows.extend((0..n).map(|x| scale * wave(k, x).cos()));
            rows.extend((0..n).map(|x| scale * wave(k, x).sin()));
        }
        let rows = Tensor::from_slice(&rows).view([p, p]);
        // cos(w(x+y)) has norm p/sqrt(2) over all pairs, and a basis row has norm 1 over Z_p:
        // picking entry (x+y) mod p of a row and dividing by sqrt(p) gives norm 1 over pairs.
        let x = Tensor::arange(p, (Kind::Int64, Device::Cpu));
        let sum = (x.unsqueeze(1) + x.unsqueeze(0) * sign).remainder(p).flatten(0, -1);
        let sums = rows.narrow(0, 1, p - 1).index_select(1, &sum) / (p as f64).sqrt();
        Ok(Self { p, rows: rows.to_device(device), sums: sums.to_device(device) })
    }

    /// Number of frequencies, p/2.
    pub fn n_frequencies(&self) -> i64 {
        self.p / 2
    }

    /// Labels of the frequency axis: 1..=p/2.
    pub fn labels(&self) -> Vec<String> {
        (1..=self.n_frequencies()).map(|k| k.to_string()).collect()
    }

    /// Norm of each frequency's component of `x` along its first axis, cos and sin grouped.
    /// `x`: `[p, n]` → f64 `[p/2]`.
    pub fn norms(&self, x: &Tensor) -> Tensor {
        let components = self.rows.narrow(0, 1, self.p - 1).matmul(&x.to_kind(Kind::Double));
        components
            .square()
            .sum_dim_intlist(&[1i64][..], false, Kind::Double)
            .view([-1, 2])
            .sum_dim_intlist(&[1i64][..], false, Kind::Double)
            .sqrt()
    }

    /// Coefficients of logits on the sum waves. `logits`: f64 `[p², p]` → f64 `[p/2, 2, p]`.
    pub fn coefficients(&self, logits: &Tensor) -> Tensor {
        self.sums.matmul(logits).view([self.n_frequencies(), 2, -1])
    }

    /// The component Z_k of the logits summed over `frequencies` (D1b), from
    /// [`Basis::coefficients`]. → f64 [p², p].
    pub fn component(&self, coefficients: &Tensor, frequencies: &[i64]) -> Tensor {
        let index: Vec<i64> = frequencies.iter().map(|k| k - 1).collect();
        let index = Tensor::from_slice(&index).to_device(self.sums.device());
        let waves = self.sums.view([self.n_frequencies(), 2, -1]).index_select(0, &index);
        let coefficients = coefficients.index_select(0, &index);
        waves
            .reshape([-1, self.p * self.p])
            .transpose(0, 1)
            .matmul(&coefficients.reshape([-1, coefficients.size()[2]]))
    }

    /// Cos coefficients c_k = ⟨cos(w_k(x+y-z))/norm, logits⟩ (D6). Logits `Σ a_k cos(w_k(x+y-z))`
    /// give `c_k = a_k sqrt(p³/2)`. → f64 `[p/2]`.
    pub fn cos_coefficients(&self, coefficients: &Tensor) -> Tensor {
        // cos(w(x+y-z)) = cos w(x+y) cos wz + sin w(x+y) sin wz; two orthonormal products, so
        // the unit vector is their sum over sqrt(2).
        let answers = self.rows.narrow(0, 1, self.p - 1).view([self.n_frequencies(), 2, self.p]);
        (coefficients * answers).sum_dim_intlist(&[1i64, 2][..], false, Kind::Double) / 2f64.sqrt()
    }

    /// Fraction of each neuron's variance over all pairs that each frequency explains (D7): the
    /// energy of the centred activation in the block `{0, 2k-1, 2k}²` of its 2-D transform.
    /// `activations`: `[p², d_mlp]` → f64 `[p/2, d_mlp]`, NaN for a neuron that never varies.
    pub fn variance_explained(&self, activations: &Tensor) -> Tensor {
        let (p, n) = (self.p, activations.size()[1]);
        let centred = activations.to_kind(Kind::Double);
        let centred = &centred - centred.mean_dim(&[0i64][..], true, Kind::Double);
        let along_a = self.rows.matmul(&centred.reshape([p, p * n])).view([p, p, n]);
        let along_b =
            self.rows.matmul(&along_a.transpose(0, 1).reshape([p, p * n])).view([p, p, n]);
        let energy = along_b.square();
        let total = energy.sum_dim_intlist(&[0i64, 1][..], false, Kind::Double);
        let blocks: Vec<Tensor> = (1..=self.n_frequencies())
            .map(|k| {
                let index = Tensor::from_slice(&[0, 2 * k - 1, 2 * k]).to_device(energy.device());
                energy.index_select(0, &index).index_select(1, &index).sum_dim_intlist(
                    &[0i64, 1][..],
                    false,
                    Kind::Double,
                )
            })
            .collect();
        // Rounding leaves a constant neuron with an energy near machine epsilon of its square.
        let scale = activations.to_kind(Kind::Double).square().sum_dim_intlist(
            &[0i64][..],
            false,
            Kind::Double,
        );
        let varies = total.gt_tensor(&(scale * 1e-20));
        let fraction = Tensor::stack(&blocks, 0) / &total;
        fraction.where_self(&varies, &Tensor::from(f64::NAN).to_device(fraction.device()))
    }
}

/// Gini coefficient of non-negative values (D4): 0 if all are equal, (n-1)/n if one holds all.
pub fn gini(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let weighted: f64 =
        sorted.iter().enumerate().map(|(i, x)| (2.0 * (i as f64 + 1.0) - n - 1.0) * x).sum();
    weighted / (n * sorted.iter().sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::to_vec;

    fn largest(x: &Tensor) -> f64 {
        x.abs().max().double_value(&[])
    }

    #[test]
    fn basis_is_orthonormal() {
        for p in [3, 13, 31] {
            let basis = Basis::new(p, Device::Cpu).unwrap();
            let eye = Tensor::eye(p, (Kind::Double, Device::Cpu));
            assert!(largest(&(basis.rows.matmul(&basis.rows.transpose(0, 1)) - eye)) < 1e-12);
            let eye = Tensor::eye(p - 1, (Kind::Double, Device::Cpu));
            assert!(largest(&(basis.sums.matmul(&basis.sums.transpose(0, 1)) - eye)) < 1e-12);
            // u = (cc - ss)/sqrt 2 and v = (sc + cs)/sqrt 2, as D1b writes them.
            let (cos, sin) = (basis.rows.get(1), basis.rows.get(2));
            let outer = |a: &Tensor, b: &Tensor| a.outer(b).flatten(0, -1);
            let u = (outer(&cos, &cos) - outer(&sin, &sin)) / 2f64.sqrt();
            let v = (outer(&sin, &cos) + outer(&cos, &sin)) / 2f64.sqrt();
            assert!(largest(&(u - basis.sums.get(0))) < 1e-12);
            assert!(largest(&(v - basis.sums.get(1))) < 1e-12);
        }
        assert!(Basis::new(12, Device::Cpu).is_err());
    }

    #[test]
    fn projectors_are_idempotent_and_orthogonal() {
        let basis = Basis::new(11, Device::Cpu).unwrap();
        let logits =
            Tensor::arange(11 * 11 * 11, (Kind::Double, Device::Cpu)).sin().view([121, 11]);
        let part = |z: &Tensor, k: i64| basis.component(&basis.coefficients(z), &[k]);
        for k in 1..=5 {
            let once = part(&logits, k);
            assert!(largest(&once) > 1e-3);
            assert!(largest(&(part(&once, k) - &once)) < 1e-12);
            for other in (1..=5).filter(|&other| other != k) {
                assert!(largest(&part(&once, other)) < 1e-12);
            }
        }
        let all = basis.component(&basis.coefficients(&logits), &[1, 3]);
        assert!(largest(&(all - part(&logits, 1) - part(&logits, 3))) < 1e-12);
        assert_eq!(basis.component(&basis.coefficients(&logits), &[]).size(), [121, 11]);
    }

    #[test]
    fn cos_coefficients_recover_planted_amplitudes() {
        let p = 13;
        let basis = Basis::new(p, Device::Cpu).unwrap();
        let planted = [(2, 1.5), (6, -0.25)];
        let mut logits = Vec::new();
        for x in 0..p {
            for y in 0..p {
                for z in 0..p {
                    let angle = |k: i64| TAU * (k * (x + y - z)) as f64 / p as f64;
                    logits.push(planted.iter().map(|&(k, a)| a * angle(k).cos()).sum::<f64>());
                }
            }
        }
        let logits = Tensor::from_slice(&logits).view([p * p, p]);
        let found = to_vec(&basis.cos_coefficients(&basis.coefficients(&logits)));
        let unit = ((p * p * p) as f64 / 2.0).sqrt();
        for (index, c) in found.iter().enumerate() {
            let k = index as i64 + 1;
            let a = planted.iter().find(|planted| planted.0 == k).map_or(0.0, |planted| planted.1);
            assert!((c / unit - a).abs() < 1e-12, "frequency {k}: {c}");
        }
    }

    #[test]
    fn pure_frequency_neuron_is_fully_explained() {
        let p = 9;
        let basis = Basis::new(p, Device::Cpu).unwrap();
        let mut activations = Vec::new();
        for a in 0..p {
            for b in 0..p {
                let w = TAU * 4.0 / p as f64; // the highest frequency, p/2
                let (a, b) = (a as f64, b as f64);
                // pure; half frequency 4, half frequency 1 in energy; constant
                activations.push(3.0 + (w * a).cos() * (w * b).sin() + (w * b).cos());
                activations.push((w * a).cos() + (TAU * b / p as f64).sin());
                activations.push(0.7);
            }
        }
        let activations = Tensor::from_slice(&activations).view([p * p, 3]);
        let fraction = basis.variance_explained(&activations);
        assert!((fraction.double_value(&[3, 0]) - 1.0).abs() < 1e-12);
        assert!((fraction.double_value(&[3, 1]) - 0.5).abs() < 1e-12);
        assert!((fraction.double_value(&[0, 1]) - 0.5).abs() < 1e-12);
        assert!(fraction.double_value(&[0, 2]).is_nan());
    }

    #[test]
    fn gini_extremes_and_norms() {
        assert!(gini(&[2.0; 10]).abs() < 1e-15);
        assert!((gini(&[0.0, 0.0, 0.0, 5.0]) - 0.75).abs() < 1e-15);
        let basis = Basis::new(7, Device::Cpu).unwrap();
        let embed = basis.rows.transpose(0, 1) * Tensor::from_slice(&[9., 3., 4., 0., 0., 0., 2.]);
        let norms = to_vec(&basis.norms(&embed));
        assert!(norms.iter().zip([5.0, 0.0, 2.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{norms:?}");
    }
}
