//! Rotary position embedding: queries and keys are rotated by an angle that grows with the position.
//!
//! Half-split as in GPT-NeoX and Llama: component `i` pairs with `i + dim/2`, and only the first `dim`
//! components of a head are rotated. Angles are computed in f32 (f64 for f64 models) by the operations of
//! the reference implementation: at position 2000 one unit in the last place of a frequency is an angle of
//! 1e-4, which would show in the patterns. Rotation happens after the bias. The tables are made once per
//! model, all layers share them.

use tch::{Device, Kind, Tensor};

use crate::config::RotaryScaling;

/// Cosines and sines for every position, and how many components they rotate.
#[derive(Debug)]
pub(crate) struct Rotary {
    dim: i64,
    cos: Tensor, // [pos, 1, dim]
    sin: Tensor, // [pos, 1, dim]
}

impl Rotary {
    pub(crate) fn new(
        dim: i64,
        base: f64,
        scaling: RotaryScaling,
        n_ctx: i64,
        (kind, device): (Kind, Device),
    ) -> Self {
        let precision = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let exponents = Tensor::arange_start_step(0, dim, 2, (precision, Device::Cpu)) / dim as f64;
        let trained = Tensor::pow_scalar(base, &exponents).reciprocal(); // [dim/2]
        let frequencies: Vec<f64> =
            (0..dim / 2).map(|i| scaling.frequency(trained.double_value(&[i]))).collect();
        let frequencies = Tensor::from_slice(&frequencies).to_kind(precision);
        let positions = Tensor::arange(n_ctx, (precision, Device::Cpu));
        let angles = positions.outer(&frequencies); // [pos, dim/2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1); // [pos, 1, dim]
        let on_device = |table: Tensor| table.to_kind(kind).to_device(device);
        Rotary { dim, cos: on_device(angles.cos()), sin: on_device(angles.sin()) }
    }

    /// Returns the same tables.
    pub(crate) fn shallow_clone(&self) -> Self {
        Rotary { dim: self.dim, cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Rotates the vector of each position by that position's angles.
    ///
    /// # Shapes
    /// `[…, pos, head, d_head]` to the same; the first row stands at position `start`.
    pub(crate) fn apply(&self, x: &Tensor, start: i64) -> Tensor {
        let size = x.size();
        let (pos, d_head) = (size[size.len() - 3], size[size.len() - 1]);
        let cos = self.cos.narrow(0, start, pos);
        let sin = self.sin.narrow(0, start, pos);
        let rotated = x.narrow(-1, 0, self.dim);
        let half = self.dim / 2;
        let first = rotated.narrow(-1, 0, half);
        let second = rotated.narrow(-1, half, half);
        let quarter_turn = Tensor::cat(&[-second, first], -1);
        let rotated = rotated * cos + quarter_turn * sin;
        if self.dim == d_head {
            return rotated;
        }
        Tensor::cat(&[rotated, x.narrow(-1, self.dim, d_head - self.dim)], -1)
    }
}

impl RotaryScaling {
    /// Returns the frequency (radians per position) that a trained one becomes.
    pub(crate) fn frequency(self, trained: f64) -> f64 {
        match self {
            RotaryScaling::None => trained,
            RotaryScaling::Linear { factor } => trained / factor,
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_n_ctx } => {
                // How often the wave fits into the original context decides what happens to it.
                let turns = original_n_ctx as f64 * trained / std::f64::consts::TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                    .clamp(0.0, 1.0);
                trained * (kept + (1.0 - kept) / factor)
            }
        }
    }
}
