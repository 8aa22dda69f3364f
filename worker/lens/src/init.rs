//! Seeded initial parameters that do not depend on libtorch, the device or the order of drawing.
//!
//! Every tensor has a random stream of its own, a ChaCha8 generator keyed by the SHA-256 of (seed,
//! tensor name): adding a parameter changes no other one, and a model drawn on a GPU equals the same
//! model drawn on a CPU bit for bit.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::{config::Config, parameter::Parameter, weights::Weights};

/// Returns the random stream of one tensor.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let key = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    ChaCha8Rng::from_seed(key.into())
}

/// Draws an f32 tensor from a normal distribution of mean 0.
pub fn normal(seed: u64, name: &str, shape: &[i64], std: f64, device: Device) -> Tensor {
    let mut rng = stream(seed, name);
    draw(shape, device, || {
        let value: f64 = StandardNormal.sample(&mut rng);
        value * std
    })
}

/// Draws an f32 tensor from a uniform distribution over `[-bound, bound)`.
pub fn uniform(seed: u64, name: &str, shape: &[i64], bound: f64, device: Device) -> Tensor {
    let mut rng = stream(seed, name);
    let unit = Uniform::new(-1.0, 1.0).expect("the bounds are in order");
    draw(shape, device, || unit.sample(&mut rng) * bound)
}

/// Draws the required parameters of a model, each with the standard deviation that `std` gives for its
/// name; weights of norms are 1 and there are no biases.
pub fn weights(config: &Config, seed: u64, std: impl Fn(&str) -> f64, device: Device) -> Weights {
    config
        .parameters()
        .into_iter()
        .filter(|parameter| !parameter.optional)
        .map(|parameter| {
            let Parameter { name, shape, is_norm_weight, .. } = parameter;
            let tensor = if is_norm_weight {
                Tensor::ones(shape.as_slice(), (Kind::Float, device))
            } else {
                normal(seed, &name, &shape, std(&name), device)
            };
            (name, tensor)
        })
        .collect()
}

fn draw(shape: &[i64], device: Device, mut next: impl FnMut() -> f64) -> Tensor {
    let n_values = shape.iter().product::<i64>().max(0);
    let values: Vec<f32> = (0..n_values).map(|_| next() as f32).collect();
    Tensor::from_slice(&values).view(shape).to_device(device)
}
