//! Progress measures of modular addition (D2, D3, D5-D7) at one checkpoint, given its logits and
//! neuron activations on all pairs. `grokking-progress` and `grokking-phases` emit them.
//!
//! Main types: [`Measurer`] (basis and data, built once) and [`Measures`]. Everything is float64. The
//! published code's bugs (D7, D7b) are not copied: the highest frequency counts, the excluded loss
//! uses the split that the model was trained on, and nothing hard-codes a modulus.

use sweep_lens::{
    Device, Hook, Hooks, Kind, Run, Site, Tensor, Transformer, Weights, checkpoint::Checkpoint,
};

use crate::{
    curve::transition::quantile,
    data::modular::{Operation, Pairs},
    error::{Error, Result},
    fourier::{Basis, gini},
    modular::{self, nll},
    value::to_vec,
};

/// Data and Fourier basis of a model's task.
pub(crate) struct Measurer {
    pub(crate) pairs: Pairs,
    pub(crate) basis: Basis,
    pub(crate) device: Device,
}

/// Logits and neuron activations of one checkpoint on all pairs.
pub(crate) struct Outputs {
    /// f64 `[p², p]`, at the final position.
    pub(crate) logits: Tensor,
    /// `[p², d_mlp]`, of the last layer after the non-linearity.
    pub(crate) neurons: Tensor,
}

/// Everything measured at one checkpoint.
pub(crate) struct Measures {
    pub(crate) train_loss: f64,
    pub(crate) test_loss: f64,
    pub(crate) train_acc: f64,
    pub(crate) test_acc: f64,
    pub(crate) restricted_loss: f64,
    pub(crate) restricted_test_loss: f64,
    pub(crate) excluded_loss: f64,
    pub(crate) cos_coefficients: Vec<f64>,
    pub(crate) gini_embed: f64,
    pub(crate) gini_neuron_logit: f64,
    pub(crate) embed_norms: Vec<f64>,
    pub(crate) neuron_logit_norms: Vec<f64>,
    pub(crate) neurons: Neurons,
    /// Frequencies that restricted and excluded loss used, ascending.
    pub(crate) key_frequencies: Vec<i64>,
    /// f64 `[p/2, 2, p]`, for further losses.
    pub(crate) coefficients: Tensor,
}

/// Which frequency each neuron follows, and how closely.
pub(crate) struct Neurons {
    /// Fraction of the variance of each varying neuron that its own frequency explains, ascending.
    pub(crate) explained: Vec<f64>,
    /// Per frequency: neurons that follow it and are explained up to the threshold.
    pub(crate) n_owned: Vec<f64>,
    /// Neurons explained up to the threshold, of any frequency.
    pub(crate) n_explained: f64,
}

impl Neurons {
    /// Mean over varying neurons of the fraction explained; 0 if none varies.
    pub(crate) fn mean_explained(&self) -> f64 {
        self.explained.iter().sum::<f64>() / self.explained.len().max(1) as f64
    }

    /// Quantile of the fraction explained; NaN if no neuron varies.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        if self.explained.is_empty() { f64::NAN } else { quantile(&self.explained, q) }
    }

    /// Frequencies that at least `min_neurons` neurons follow, ascending.
    pub(crate) fn key_frequencies(&self, min_neurons: u64) -> Vec<i64> {
        let owned = self.n_owned.iter().zip(1..);
        owned.filter(|(n, _)| **n >= min_neurons.max(1) as f64).map(|(_, k)| k).collect()
    }
}

impl Measurer {
    /// Rebuilds the task of a checkpoint from what its recipe recorded.
    ///
    /// # Errors
    /// Multiplication and the quadratic form: their answers are no waves over sums or differences, so
    /// that the Fourier circuit that is measured here does not exist.
    pub(crate) fn new(checkpoint: &Checkpoint, device: Device) -> Result<Self> {
        let pairs = modular::pairs(&checkpoint.extra, device)?;
        let sign = match pairs.operation {
            Operation::Add => 1,
            Operation::Subtract => -1,
            operation @ (Operation::Multiply | Operation::Quadratic) => {
                return Err(Error::Unsupported(format!(
                    "the Fourier circuit of addition and subtraction is looked for, the model was \
                     trained on {operation:?}"
                )));
            }
        };
        let basis = Basis::of_task(pairs.p, sign, device)?;
        Ok(Self { pairs, basis, device })
    }

    /// The activation that [`Outputs::neurons`] is.
    pub(crate) fn neuron_hook(model: &Transformer) -> Hook {
        Hook::block((model.config().n_layers - 1) as u32, Site::MlpPost)
    }

    /// Runs the model on all pairs.
    pub(crate) fn outputs(&self, model: &Transformer) -> Outputs {
        let at = Self::neuron_hook(model);
        let mut neurons = KeepOne { at, kept: None };
        let logits = model.forward(&self.pairs.tokens, &Run::LAST_POSITION, &mut neurons);
        let neurons = neurons.kept.expect("a model with MLPs visits the hook of its last layer");
        Outputs {
            logits: logits.squeeze_dim(1).to_kind(Kind::Double),
            neurons: neurons.squeeze_dim(1),
        }
    }

    /// Neuron frequencies (D7): a neuron follows the frequency that explains most of its variance.
    pub(crate) fn neurons(&self, activations: &Tensor, threshold: f64) -> Neurons {
        let fractions = self.basis.variance_explained(activations);
        let (best, owner) = fractions.nan_to_num(-1.0, None, None).max_dim(0, false);
        let (best, owner) = (to_vec(&best), to_vec(&owner));
        let mut n_owned = vec![0.0; self.basis.n_frequencies() as usize];
        for (fraction, owner) in best.iter().zip(owner) {
            if *fraction >= threshold {
                n_owned[owner as usize] += 1.0;
            }
        }
        let n_explained = n_owned.iter().sum();
        let mut explained: Vec<f64> =
            best.into_iter().filter(|&fraction| fraction >= 0.0).collect();
        explained.sort_by(f64::total_cmp);
        Neurons { explained, n_owned, n_explained }
    }

    /// Measures one checkpoint; restricted and excluded loss keep and remove `key_frequencies`.
    pub(crate) fn measure(
        &self,
        outputs: &Outputs,
        weights: &Weights,
        neurons: Neurons,
        key_frequencies: Vec<i64>,
    ) -> Result<Measures> {
        let Self { pairs, basis, .. } = self;
        let logits = &outputs.logits;
        let coefficients = basis.coefficients(logits);
        let losses = nll(logits, &pairs.labels);
        let correct = logits.argmax(-1, false).eq_tensor(&pairs.labels).to_kind(Kind::Double);
        let key = basis.component(&coefficients, &key_frequencies);
        // The bias correction adds back the mean over pairs of what was cut off, per output class.
        let rest = logits - &key;
        let restricted =
            nll(&(&key + rest.mean_dim(&[0i64][..], true, Kind::Double)), &pairs.labels);
        let embed = modular::embedding(weights)?.narrow(0, 0, pairs.p).to_device(self.device);
        let embed_norms = to_vec(&basis.norms(&embed));
        let neuron_logit_norms = to_vec(&basis.norms(&self.neuron_logit_map(weights)?));
        Ok(Measures {
            train_loss: mean(&losses, Some(&pairs.train)),
            test_loss: mean(&losses, Some(&pairs.test)),
            train_acc: mean(&correct, Some(&pairs.train)),
            test_acc: mean(&correct, Some(&pairs.test)),
            restricted_loss: mean(&restricted, None),
            restricted_test_loss: mean(&restricted, Some(&pairs.test)),
            excluded_loss: self.train_loss_of(&rest),
            cos_coefficients: to_vec(&basis.cos_coefficients(&coefficients)),
            gini_embed: gini(&embed_norms),
            gini_neuron_logit: gini(&neuron_logit_norms),
            embed_norms,
            neuron_logit_norms,
            neurons,
            key_frequencies,
            coefficients,
        })
    }

    /// Excluded loss of every single frequency (D3): training loss without it, no bias correction.
    /// `progress` is told how many frequencies are done.
    pub(crate) fn excluded_frequencies(
        &self,
        logits: &Tensor,
        coefficients: &Tensor,
        mut progress: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let rows = &self.pairs.train;
        let (logits, labels) =
            (logits.index_select(0, rows), self.pairs.labels.index_select(0, rows));
        let n_frequencies = self.basis.n_frequencies();
        let waves = self.basis.sums.index_select(1, rows).view([n_frequencies, 2, -1]);
        (0..n_frequencies)
            .map(|index| {
                let component = waves.get(index).transpose(0, 1).matmul(&coefficients.get(index));
                let loss = mean(&nll(&(&logits - component), &labels), None);
                progress(index as u64 + 1, n_frequencies as u64)?;
                Ok(loss)
            })
            .collect()
    }

    fn train_loss_of(&self, logits: &Tensor) -> f64 {
        let rows = &self.pairs.train;
        mean(&nll(&logits.index_select(0, rows), &self.pairs.labels.index_select(0, rows)), None)
    }

    /// W_L = W_out W_U of the last layer, transposed: f64 `[p, d_mlp]`. The last map of a perceptron.
    fn neuron_logit_map(&self, weights: &Weights) -> Result<Tensor> {
        let last = |suffix: &str| {
            weights
                .names()
                .filter(|name| name.ends_with(suffix))
                .max_by_key(|name| name.split('.').nth(1).and_then(|at| at.parse::<u32>().ok()))
        };
        let map = match weights.get("unembed.W_U") {
            Some(w_u) => {
                let w_out = weights.require(last(".mlp.W_out").unwrap_or("blocks.0.mlp.W_out"))?;
                w_out.to_kind(Kind::Double).matmul(&w_u.to_kind(Kind::Double))
            }
            None => weights.require(last(".W").unwrap_or("layers.1.W"))?.to_kind(Kind::Double),
        };
        Ok(map.transpose(0, 1).to_device(self.device))
    }
}

fn mean(values: &Tensor, rows: Option<&Tensor>) -> f64 {
    let chosen = rows.map(|rows| values.index_select(0, rows));
    chosen.as_ref().unwrap_or(values).mean(Kind::Double).double_value(&[])
}

/// Keeps one activation.
struct KeepOne {
    at: Hook,
    kept: Option<Tensor>,
}

impl Hooks for KeepOne {
    fn wants(&self, hook: Hook) -> bool {
        hook == self.at
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        self.kept = Some(activation.shallow_clone());
        activation
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::data::modular::Form;

    /// A task and the logits of a model that has learned the given amplitudes perfectly.
    fn planted(p: i64, amplitudes: &[(i64, f64)], neurons: &[(i64, f64)]) -> (Measurer, Outputs) {
        let device = Device::Cpu;
        let pairs = Pairs::new(Operation::Add, Form::Sequence, p, 0.4, 5, device);
        let basis = Basis::new(p, device).unwrap();
        let (mut logits, mut acts) = (Vec::new(), Vec::new());
        for x in 0..p {
            for y in 0..p {
                for z in 0..p {
                    let wave = |&(k, a): &(i64, f64)| {
                        a * (TAU * (k * (x + y - z)) as f64 / p as f64).cos()
                    };
                    logits.push(amplitudes.iter().map(wave).sum::<f64>());
                }
                for (k, phase) in neurons {
                    let w = TAU * *k as f64 / p as f64;
                    acts.push((w * x as f64 + phase).cos() * (w * y as f64 + phase).cos());
                }
            }
        }
        let logits = Tensor::from_slice(&logits).view([p * p, p]);
        let neurons = Tensor::from_slice(&acts).view([p * p, -1]);
        (Measurer { pairs, basis, device }, Outputs { logits, neurons })
    }

    fn some_weights(p: i64) -> Weights {
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Double, Device::Cpu));
        [
            ("embed.W_E".to_owned(), Tensor::eye(p + 1, (Kind::Double, Device::Cpu))),
            ("blocks.0.mlp.W_out".to_owned(), ones([3, 2])),
            ("unembed.W_U".to_owned(), ones([2, p])),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn planted_circuit_has_the_textbook_measures() {
        let p = 13;
        let amplitudes = [(2, 8.0), (6, 11.0)];
        let (measurer, outputs) = planted(p, &amplitudes, &[(2, 0.3), (6, 1.0), (6, -0.4)]);
        let neurons = measurer.neurons(&outputs.neurons, 0.85);
        assert_eq!(neurons.key_frequencies(1), [2, 6]);
        assert_eq!(neurons.key_frequencies(2), [6]);
        assert_eq!((neurons.n_owned[5], neurons.n_explained), (2.0, 3.0));
        assert!((neurons.mean_explained() - 1.0).abs() < 1e-12);
        assert!((neurons.quantile(0.1) - 1.0).abs() < 1e-12);
        let found = measurer.measure(&outputs, &some_weights(p), neurons, vec![2, 6]).unwrap();
        // All the logits are in the key frequencies: keeping them changes nothing, removing them
        // leaves a uniform guess.
        let full = mean(&nll(&outputs.logits, &measurer.pairs.labels), None);
        assert!((found.restricted_loss - full).abs() < 1e-12);
        assert!((found.restricted_test_loss - found.test_loss).abs() < 1e-12);
        assert!((found.excluded_loss - (p as f64).ln()).abs() < 1e-12);
        assert_eq!((found.train_acc, found.test_acc), (1.0, 1.0));
        let unit = ((p * p * p) as f64 / 2.0).sqrt();
        assert!((found.cos_coefficients[1] / unit - 8.0).abs() < 1e-12);
        assert!(found.cos_coefficients[0].abs() < 1e-9);
        // One frequency removed: what is left is the other one alone.
        let (_, other) = planted(p, &[(2, 8.0)], &[(2, 0.0)]);
        let excluded = measurer
            .excluded_frequencies(&outputs.logits, &found.coefficients, |_, _| Ok(()))
            .unwrap();
        assert!((excluded[5] - measurer.train_loss_of(&other.logits)).abs() < 1e-12);
        assert!((excluded[2] - found.train_loss).abs() < 1e-12);
        assert_eq!(excluded.len(), 6);
        // An identity embedding has every frequency alike; a constant W_L has none.
        assert!(
            found.gini_embed.abs() < 1e-12 && (found.embed_norms[0] - 2f64.sqrt()).abs() < 1e-12
        );
        assert!(found.neuron_logit_norms.iter().all(|norm| norm.abs() < 1e-12));
    }

    #[test]
    fn without_key_frequencies_only_class_means_remain() {
        let (measurer, outputs) = planted(11, &[(3, 5.0)], &[(3, 0.0)]);
        let logits = &outputs.logits + Tensor::arange(11, (Kind::Double, Device::Cpu));
        let outputs = Outputs { logits, neurons: outputs.neurons.ones_like() };
        let neurons = measurer.neurons(&outputs.neurons, 0.85);
        assert!(neurons.key_frequencies(1).is_empty() && neurons.quantile(0.5).is_nan());
        assert_eq!((neurons.mean_explained(), neurons.n_explained), (0.0, 0.0));
        let found = measurer.measure(&outputs, &some_weights(11), neurons, vec![]).unwrap();
        // Logits 0..10 for every pair, labels uniform over classes.
        let expected = (0..11).map(|z| f64::exp(f64::from(z))).sum::<f64>().ln() - 5.0;
        assert!((found.restricted_loss - expected).abs() < 1e-9);
        assert!((found.excluded_loss - found.train_loss).abs() < 1e-12);
    }
}
