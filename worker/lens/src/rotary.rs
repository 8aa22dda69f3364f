//! Rotary position embedding: queries and keys are rotated by an angle that grows with the position.
//!
//! Half-split as in GPT-NeoX and Llama: component `i` pairs with `i + dim/2`, and only the first `dim`
//! components of a head are rotated. Angles are computed in f32 (f64 for f64 models) by the operations of
//! the reference implementation: at position 2000 one unit in the last place of a frequency is an angle of
//! 1e-4, which would show in the patterns. Rotation happens after the bias. All layers of a model share one
//! pair of tables, which grows with the positions that are asked for: a context of 131072 positions costs
//! nothing until it is used.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::config::{Config, Positional, RotaryScaling};

/// Which components of a head are rotated, and by how much.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    dim: i64,
    tables: Arc<Mutex<Tables>>,
}

/// Cosines and sines of the first positions.
#[derive(Debug)]
struct Tables {
    frequencies: Tensor, // [dim/2], radians per position
    cos: Tensor,         // [pos, 1, dim]
    sin: Tensor,         // [pos, 1, dim]
}

/// Positions of the first tables; most passes need no more.
const FIRST_LENGTH: i64 = 1024;

impl Rotary {
    pub(crate) fn new(
        dim: i64,
        base: f64,
        scaling: RotaryScaling,
        (kind, device): (Kind, Device),
    ) -> Self {
        let precision = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let exponents = Tensor::arange_start_step(0, dim, 2, (precision, Device::Cpu)) / dim as f64;
        let trained = Tensor::pow_scalar(base, &exponents).reciprocal(); // [dim/2]
        let frequencies: Vec<f64> =
            (0..dim / 2).map(|i| scaling.frequency(trained.double_value(&[i]))).collect();
        let frequencies = Tensor::from_slice(&frequencies).to_kind(precision);
        let empty = || Tensor::empty([0, 1, dim], (kind, device));
        let tables = Tables { frequencies, cos: empty(), sin: empty() };
        Rotary { dim, tables: Arc::new(Mutex::new(tables)) }
    }

    /// Returns cosines and sines of `pos` positions from `start` on, `[pos, 1, dim]` each.
    fn tables(&self, start: i64, pos: i64) -> (Tensor, Tensor) {
        // A panic between the assignments leaves tables that are right as far as they go.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if start + pos > tables.cos.size()[0].min(tables.sin.size()[0]) {
            tables.grow((start + pos).max(FIRST_LENGTH));
        }
        (tables.cos.narrow(0, start, pos), tables.sin.narrow(0, start, pos))
    }

    /// Rotates the vector of each position by that position's angles.
    ///
    /// # Shapes
    /// `[…, pos, head, d_head]` to the same; the first row stands at position `start`.
    pub(crate) fn apply(&self, x: &Tensor, start: i64) -> Tensor {
        let size = x.size();
        let (pos, d_head) = (size[size.len() - 3], size[size.len() - 1]);
        let (cos, sin) = self.tables(start, pos);
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

impl Config {
    /// The linear map that rotates a query which stands `offset` positions behind its key, for a key that
    /// is left as it is: `q R · k` is the score of rotated vectors at that distance. `None` where
    /// positions do not rotate.
    ///
    /// # Shapes
    /// f64 `[d_head, d_head]`; a row vector is multiplied from the left.
    pub fn rotation(&self, offset: u32) -> Option<Tensor> {
        let Positional::Rotary { dim, base, scaling } = self.positional else { return None };
        let options = (Kind::Double, Device::Cpu);
        let rotary = Rotary::new(dim, base, scaling, options);
        let identity = Tensor::eye(self.d_head, options).unsqueeze(0); // one position, d_head "heads"
        Some(rotary.apply(&identity, i64::from(offset)).squeeze_dim(0))
    }
}

impl Config {
    /// Cosines and sines by which the first `n_positions` positions rotate, f32; `None` where positions do not
    /// rotate.
    ///
    /// # Shapes
    /// `[1, pos, dim]` each, the second half of `dim` repeating the first, as Hugging Face's models have them.
    pub fn rotary_tables(&self, n_positions: i64) -> Option<(Tensor, Tensor)> {
        let Positional::Rotary { dim, base, scaling } = self.positional else { return None };
        let rotary = Rotary::new(dim, base, scaling, (Kind::Float, Device::Cpu));
        let (cos, sin) = rotary.tables(0, n_positions);
        Some((cos.transpose(0, 1).contiguous(), sin.transpose(0, 1).contiguous()))
    }
}

impl Tables {
    fn grow(&mut self, n_positions: i64) {
        let (kind, device) = (self.cos.kind(), self.cos.device());
        let positions = Tensor::arange(n_positions, (self.frequencies.kind(), Device::Cpu));
        let angles = positions.outer(&self.frequencies); // [pos, dim/2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1); // [pos, 1, dim]
        self.cos = angles.cos().to_kind(kind).to_device(device);
        self.sin = angles.sin().to_kind(kind).to_device(device);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_depend_on_the_distance_alone() {
        let positional = Positional::Rotary { dim: 4, base: 1e4, scaling: RotaryScaling::None };
        let config = Config { positional, d_head: 6, ..Config::toy(1, 12, 2, 5, 64) };
        let rotary = Rotary::new(4, 1e4, RotaryScaling::None, (Kind::Double, Device::Cpu));
        let q = Tensor::randn([1, 1, 6], (Kind::Double, Device::Cpu));
        let k = Tensor::randn([1, 1, 6], (Kind::Double, Device::Cpu));
        let score = (rotary.apply(&q, 9) * rotary.apply(&k, 6)).sum(Kind::Double);
        let rotation = config.rotation(3).unwrap();
        let expected = (q.view([1, 6]).matmul(&rotation) * k.view([1, 6])).sum(Kind::Double);
        assert!((score.double_value(&[]) - expected.double_value(&[])).abs() < 1e-12);
        assert!(Config::toy(1, 12, 2, 5, 64).rotation(1).is_none());
    }

    #[test]
    fn tables_grow_and_keep_their_values() {
        let rotary = Rotary::new(6, 1e4, RotaryScaling::None, (Kind::Float, Device::Cpu));
        let other = rotary.clone();
        let (few, _) = rotary.tables(3, 4);
        let (many, _) = other.tables(0, 3 * FIRST_LENGTH);
        assert_eq!(many.size(), [3 * FIRST_LENGTH, 1, 6]);
        assert!(few.equal(&many.narrow(0, 3, 4)));
        let (again, sin) = rotary.tables(0, 3 * FIRST_LENGTH);
        assert_eq!(again.data_ptr(), many.data_ptr(), "layers share tables");
        let angle = 2000.0 * 1e4_f64.powf(-2.0 / 6.0);
        assert!((sin.double_value(&[2000, 0, 1]) - angle.sin()).abs() < 1e-4);
    }
}
