//! Norms, distances and sketches of weights, summed in f64 a block at a time: no tensor is copied whole
//! into f64, and a difference of nearly equal weights loses no digits.
//!
//! [`Sketcher`] is a count sketch: every element is multiplied by a random sign and added to one of
//! [`SKETCH_LEN`] buckets. It is linear, so that the distance between the sketches of two checkpoints
//! estimates the distance between their weights, with a relative standard error of
//! √(1 / (2 · [`SKETCH_LEN`])) ≈ 3 %; a checkpoint of any size takes 4 KiB. Signs and buckets depend
//! on tensor names and element indices only (Charikar, Chen and Farach-Colton 2002).

use sweep_lens::{Device, Kind, Tensor};

use crate::{random, value::to_vec};

/// Numbers in a sketch. A prime, so that a column of a matrix does not fall into one bucket.
pub(crate) const SKETCH_LEN: usize = 509;

/// Elements that are in f64 at once: 2 MiB, which stays in a cache.
const BLOCK: i64 = 512 * SKETCH_LEN as i64;

/// Sums over one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sums {
    /// Euclidean norm.
    pub norm: f64,
    /// How many elements are NaN or infinite.
    pub n_nonfinite: u64,
    /// Against each of the other tensors that were given.
    pub against: [Option<Pair>; 2],
}

/// Sums over two tensors of one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    /// Norm of the difference.
    pub distance: f64,
    /// Inner product.
    pub dot: f64,
    /// Norm of the other one.
    pub other_norm: f64,
}

impl Pair {
    /// The cosine, NaN if there is no direction to compare.
    pub(crate) fn cosine(&self, norm: f64) -> f64 {
        self.dot / (norm * self.other_norm)
    }
}

/// `distance / norm`; nothing moved is 0 even where there is no size to compare with.
pub(crate) fn relative(distance: f64, norm: f64) -> f64 {
    if distance == 0.0 { 0.0 } else { distance / norm }
}

/// Sums over `tensor` (any shape, kind and device), alone and against others of its shape, in one pass;
/// adds it to the sketch under `name`. Others of another shape are left out.
pub(crate) fn sums(
    name: &str,
    tensor: &Tensor,
    others: [Option<&Tensor>; 2],
    sketcher: Option<&mut Sketcher>,
) -> Sums {
    let flat = tensor.detach().reshape([-1]);
    let others = others.map(|other| {
        let other = other.filter(|other| other.size() == tensor.size());
        other.map(|other| other.detach().reshape([-1]))
    });
    let zero = || Tensor::zeros([], (Kind::Double, tensor.device()));
    let mut squares = zero();
    let mut pairs = others.each_ref().map(|_| [zero(), zero(), zero()]);
    let mut place = sketcher.map(|sketcher| sketcher.place(name));
    let mut first = 0;
    while first < flat.size()[0] {
        let length = BLOCK.min(flat.size()[0] - first);
        let block = flat.narrow(0, first, length).to_kind(Kind::Double);
        squares += block.dot(&block);
        for (other, [distance, dot, square]) in others.iter().zip(&mut pairs) {
            let Some(other) = other else { continue };
            let other = other.narrow(0, first, length);
            let other = other.to_device(block.device()).to_kind(Kind::Double);
            let difference = &block - &other;
            *distance += difference.dot(&difference);
            *dot += block.dot(&other);
            *square += other.dot(&other);
        }
        if let Some(place) = &mut place {
            place.add(&block);
        }
        first += length;
    }
    let read = |sum: &Tensor| sum.double_value(&[]);
    let mut against = [None; 2];
    for ((against, other), [distance, dot, square]) in against.iter_mut().zip(&others).zip(&pairs) {
        *against = other.as_ref().map(|_| Pair {
            distance: read(distance).sqrt(),
            dot: read(dot),
            other_norm: read(square).sqrt(),
        });
    }
    let norm = read(&squares).sqrt();
    let n_nonfinite = if norm.is_finite() { 0 } else { count_nonfinite(&flat) };
    Sums { norm, n_nonfinite, against }
}

fn count_nonfinite(tensor: &Tensor) -> u64 {
    let count = tensor.isfinite().logical_not().sum(Kind::Int64).int64_value(&[]);
    count.unsigned_abs()
}

/// Sketches one set of weights.
pub(crate) struct Sketcher {
    /// ±1, f64 `[2 · BLOCK]`; blocks take windows of it.
    signs: Tensor,
    /// f64 `[SKETCH_LEN]`.
    sums: Tensor,
}

impl Sketcher {
    pub(crate) fn new(device: Device) -> Self {
        use rand::Rng as _;
        let mut rng = random::stream(0, "integrity/signs");
        let mut signs = Vec::with_capacity(2 * BLOCK as usize);
        while signs.len() < 2 * BLOCK as usize {
            let bits = rng.next_u64();
            signs.extend((0..64).map(|bit| if bits >> bit & 1 == 0 { 1.0 } else { -1.0 }));
        }
        signs.truncate(2 * BLOCK as usize);
        let signs = Tensor::from_slice(&signs).to_device(device);
        Self { signs, sums: Tensor::zeros([SKETCH_LEN as i64], (Kind::Double, device)) }
    }

    fn place<'a>(&'a mut self, name: &str) -> Place<'a, impl rand::Rng + use<>> {
        let mut rng = random::stream(0, &format!("integrity/sketch/{name}"));
        let shift = random::below(&mut rng, SKETCH_LEN as u64) as i64;
        Place { sketcher: self, rng, shift }
    }

    /// The sketch.
    pub(crate) fn finish(self) -> Vec<f64> {
        to_vec(&self.sums)
    }
}

/// Where the elements of one tensor go.
struct Place<'a, R> {
    sketcher: &'a mut Sketcher,
    /// Says which window of signs each block takes.
    rng: R,
    /// Bucket of the first element: small tensors are spread over all buckets.
    shift: i64,
}

impl<R: rand::Rng> Place<'_, R> {
    /// Adds the next elements, `BLOCK` of them unless they are the last.
    fn add(&mut self, block: &Tensor) {
        let columns = SKETCH_LEN as i64;
        let length = block.size()[0];
        let padding = (columns - length % columns) % columns;
        let padded = if padding == 0 {
            block.shallow_clone()
        } else {
            block.pad([0, padding], "constant", 0.0)
        };
        let start = random::below(&mut self.rng, BLOCK as u64) as i64;
        let signs = self.sketcher.signs.narrow(0, start, length + padding);
        let sums =
            (padded * signs).view([-1, columns]).sum_dim_intlist(&[0i64][..], false, Kind::Double);
        self.sketcher.sums += sums.roll([self.shift], [0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: i64, speed: f64) -> Tensor {
        (Tensor::arange(n, (Kind::Double, Device::Cpu)) * speed).sin()
    }

    fn sketch(parts: &[(&str, &Tensor)]) -> Vec<f64> {
        let mut sketcher = Sketcher::new(Device::Cpu);
        for (name, tensor) in parts {
            sums(name, tensor, [None, None], Some(&mut sketcher));
        }
        sketcher.finish()
    }

    fn length(x: &[f64]) -> f64 {
        x.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    #[test]
    fn sums_over_blocks_equal_sums_over_everything() {
        let n = 2 * BLOCK + 77;
        let (a, b) = (wave(n, 0.7), wave(n, 0.7001));
        let found = sums("w", &a, [Some(&b), None], None);
        let expected = |x: &Tensor| x.square().sum(Kind::Double).sqrt().double_value(&[]);
        let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        close(found.norm, expected(&a));
        let pair = found.against[0].unwrap();
        close(pair.distance, expected(&(&a - &b)));
        close(pair.other_norm, expected(&b));
        close(pair.cosine(found.norm), a.dot(&b).double_value(&[]) / expected(&a) / expected(&b));
        assert_eq!(found.against[1], None);
        // Transposed, in half precision, against a tensor of another shape.
        let half = wave(12, 1.0).view([3, 4]).to_kind(Kind::Half);
        let found = sums("w", &half.transpose(0, 1), [Some(&half), None], None);
        close(found.norm, expected(&half.to_kind(Kind::Double)));
        assert_eq!((found.against[0], found.n_nonfinite), (None, 0));
        let broken = Tensor::from_slice(&[1.0f32, f32::NAN, f32::INFINITY, 2.0]);
        assert_eq!(sums("w", &broken, [None, None], None).n_nonfinite, 2);
        assert_eq!(sums("w", &Tensor::from_slice::<f32>(&[]), [None, None], None).norm, 0.0);
        assert!((relative(0.0, 0.0), relative(1.0, 2.0)) == (0.0, 0.5));
    }

    #[test]
    fn sketches_are_linear_and_keep_distances() {
        let (a, b) = (wave(BLOCK + 5000, 0.7), wave(300, 0.31));
        let both = sketch(&[("a", &a), ("b", &b)]);
        let alone = [sketch(&[("a", &a)]), sketch(&[("b", &b)])];
        let expected = alone[0].iter().zip(&alone[1]).map(|(a, b)| a + b);
        assert!(both.iter().zip(expected).all(|(found, sum)| (found - sum).abs() < 1e-9));
        // Standard error 3 %; the names draw signs anew.
        for name in ["w", "blocks.0.attn.W_Q", "embed.W_E", "x"] {
            for tensor in
                [&a, &b, &(wave(2048, 0.9) * Tensor::ones([64, 1], (Kind::Double, Device::Cpu)))]
            {
                let norm = sums(name, tensor, [None, None], None).norm;
                let ratio = length(&sketch(&[(name, tensor)])) / norm;
                assert!((ratio - 1.0).abs() < 0.13, "{name}: {ratio}");
            }
        }
        // A view with other strides is the same tensor.
        let square = wave(9000, 0.2).view([90, 100]);
        let strided = square.transpose(0, 1).contiguous().transpose(0, 1);
        assert_eq!(sketch(&[("w", &square)]), sketch(&[("w", &strided)]));
    }
}
