//! Optimizers on one flat buffer: AdamW, as `torch.optim.AdamW` up to rounding, and plain gradient descent with
//! momentum, as `torch.optim.SGD`.
//!
//! Main types: [`Rule`] and [`AdamW`]. All parameters of all models of a population lie in one 1-D tensor, so that
//! a step is nine kernels whatever the number of tensors. Weight decay is decoupled and
//! multiplies the parameters before the update; nothing is read back to the host.

use sweep_lens::Tensor;

/// Hyper-parameters; names and meaning are `torch.optim.AdamW`'s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// How parameters are updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// AdamW.
    AdamW(AdamWConfig),
    /// Gradient descent.
    Sgd(SgdConfig),
}

impl From<AdamWConfig> for Rule {
    fn from(config: AdamWConfig) -> Self {
        Self::AdamW(config)
    }
}

/// Hyper-parameters; names and meaning are `torch.optim.SGD`'s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Decay of the velocity; 0 is plain gradient descent.
    pub momentum: f64,
    /// Added to the gradient times the parameters.
    pub weight_decay: f64,
}

impl SgdConfig {
    /// One update in place with learning rate `lr`. `parameters`, `velocity`, `gradient`: `[N]`.
    pub fn step(self, parameters: &mut Tensor, velocity: &mut Tensor, gradient: &Tensor, lr: f64) {
        let Self { momentum, weight_decay } = self;
        tch::no_grad(|| {
            let gradient = if weight_decay == 0.0 {
                gradient.shallow_clone()
            } else {
                gradient + &*parameters * weight_decay
            };
            let _ = velocity.g_mul_scalar_(momentum);
            let _ = velocity.g_add_(&gradient);
            let _ = parameters.g_add_(&(&*velocity * -lr));
        });
    }
}

/// Moments of a flat parameter buffer.
#[derive(Debug)]
pub struct AdamW {
    /// Hyper-parameters.
    pub config: AdamWConfig,
    /// First moment, like the parameters.
    pub exp_avg: Tensor,
    /// Second moment, like the parameters.
    pub exp_avg_sq: Tensor,
}

impl AdamW {
    /// Zero moments for `parameters`.
    pub fn new(config: AdamWConfig, parameters: &Tensor) -> Self {
        let zeros = || parameters.detach().zeros_like();
        Self { config, exp_avg: zeros(), exp_avg_sq: zeros() }
    }

    /// One update in place with learning rate `lr`; `n_updates` counts this one, from 1.
    /// `parameters` and `gradient`: `[N]`.
    pub fn step(&mut self, parameters: &mut Tensor, gradient: &Tensor, lr: f64, n_updates: u64) {
        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let n = n_updates as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(n), 1.0 - beta2.powf(n));
        tch::no_grad(|| {
            let _ = self.exp_avg.lerp_(gradient, 1.0 - beta1);
            let _ = self.exp_avg_sq.lerp_(&gradient.square(), 1.0 - beta2);
            if lr == 0.0 {
                return;
            }
            let _ = parameters.g_mul_scalar_(1.0 - lr * weight_decay);
            // The factor of the update goes into the denominator, so that a single kernel divides and adds.
            let root = correction2.sqrt();
            let mut denominator = self.exp_avg_sq.sqrt();
            let _ = denominator.g_add_scalar_(eps * root);
            let _ = denominator.g_mul_scalar_(-correction1 / (lr * root));
            let _ = parameters.addcdiv_(&self.exp_avg, &denominator);
        });
    }
}

/// Learning rate over steps: linear warm-up, then constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Rate after the warm-up.
    pub peak: f64,
    /// Updates until the peak; 0 means none.
    pub warmup: u64,
}

impl Schedule {
    /// The rate of the update that leads from `step` to `step + 1`: `peak * min(step / warmup, 1)` (D0),
    /// so with a warm-up the very first update only fills the moments.
    pub fn lr(&self, step: u64) -> f64 {
        if self.warmup == 0 {
            return self.peak;
        }
        self.peak * (step as f64 / self.warmup as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rises_to_the_peak() {
        let schedule = Schedule { peak: 2.0, warmup: 4 };
        let rates: Vec<f64> = (0..6).map(|step| schedule.lr(step)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]);
        assert_eq!(Schedule { peak: 0.1, warmup: 0 }.lr(0), 0.1);
    }

    #[test]
    fn descent_with_momentum_by_hand() {
        let config = SgdConfig { momentum: 0.5, weight_decay: 0.1 };
        let (mut w, mut velocity) = (Tensor::from_slice(&[1.0]), Tensor::from_slice(&[0.0]));
        let gradient = Tensor::from_slice(&[2.0]);
        config.step(&mut w, &mut velocity, &gradient, 0.1);
        assert!((w.double_value(&[0]) - (1.0 - 0.1 * 2.1)).abs() < 1e-12);
        config.step(&mut w, &mut velocity, &gradient, 0.1);
        // Velocity 0.5 * 2.1 + 2 + 0.1 * 0.79.
        assert!((w.double_value(&[0]) - (0.79 - 0.1 * 3.129)).abs() < 1e-12);
    }

    #[test]
    fn first_update_is_the_sign_of_the_gradient() {
        let config = AdamWConfig { lr: 0.1, beta1: 0.9, beta2: 0.98, eps: 0.0, weight_decay: 0.5 };
        let mut parameters = Tensor::from_slice(&[1.0, 1.0, 1.0]);
        let mut optimizer = AdamW::new(config, &parameters);
        optimizer.step(&mut parameters, &Tensor::from_slice(&[3.0, -0.01, 20.0]), 0.1, 1);
        let found = Vec::<f64>::try_from(&parameters).unwrap();
        let expected = [0.95 - 0.1, 0.95 + 0.1, 0.95 - 0.1];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
    }
}
