//! Affine maps over the last axis, for one model or a population.

use tch::{Device, Kind, Tensor};

/// Computes `x W + b`.
///
/// # Shapes
/// - `x`: `[…, d_in]`, or `[n_models, …, d_in]` with a population's weights
/// - `w`: `[(n_models,) d_in, d_out]`
/// - `b`: `[(n_models,) d_out]`
/// - returns: `[…, d_out]`
pub(crate) fn affine(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Tensor {
    let mut shape = x.size();
    let d_in = shape[shape.len() - 1];
    let d_out = w.size()[w.dim() - 1];
    let last = shape.len() - 1;
    shape[last] = d_out;
    let y = if w.dim() == 2 {
        let rows = x.reshape([-1, d_in]); // [row, d_in]
        match (by_one_dnn(&rows, w, b), b) {
            (Some(y), _) => y,
            (None, Some(b)) => b.addmm(&rows, w),
            (None, None) => rows.mm(w),
        }
    } else {
        let rows = x.reshape([shape[0], -1, d_in]); // [model, row, d_in]
        match b {
            Some(b) => b.unsqueeze(1).baddbmm(&rows, w, 1, 1),
            None => rows.bmm(w),
        }
    };
    y.view(shape.as_slice())
}

/// [`affine`] of a last map, whose few outputs per row are classes: may be a transposed view, which takes up to a third of
/// the time to compute and to take logarithms of.
pub(crate) fn readout(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Tensor {
    let mut shape = x.size();
    let last = shape.len() - 1;
    let rows = x.reshape([-1, shape[last]]);
    if w.dim() == 2
        && let Some(y) = turned(&rows, w, b)
    {
        shape[last] = w.size()[1];
        return y.view(shape.as_slice());
    }
    affine(x, w, b)
}

/// Outputs below which MKL's speed depends on whether they are the rows or the columns of a product.
const NARROW: i64 = 128;

/// Outputs that fill a vector register of any processor, so that a narrow product is fast either way.
const FULL_LANES: i64 = 16;

/// A product with few outputs that do not fill vector registers, on a CPU: they become the rows of the product instead of
/// its columns, in the gradient too. That takes up to a third of the time (31 outputs of 256 inputs: 0.6) and is the same up to
/// rounding. The result is a transposed view. `None` for any other product.
///
/// # Shapes
/// As [`affine`] for a single model, with `rows` `[row, d_in]`.
fn turned(rows: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Option<Tensor> {
    let d_out = w.size()[1];
    let is_narrow = d_out < NARROW && d_out % FULL_LANES != 0 && rows.size()[0] >= d_out;
    if rows.device() != Device::Cpu || !is_narrow {
        return None;
    }
    // A copy, or libtorch would compute the gradient of the weights in the slow form.
    let (rows, w) = (rows.transpose(0, 1), w.transpose(0, 1).contiguous());
    let by_output = match b {
        Some(b) => b.unsqueeze(1).addmm(&w, &rows),
        None => w.mm(&rows),
    };
    Some(by_output.transpose(0, 1))
}

/// Multiplications from which on a product is worth a convolution's preparations.
const LARGE_PRODUCT: i64 = 1 << 28;

/// Rows from which on this also holds for weights whose inputs do not lie together.
const MANY_ROWS: i64 = 512;

/// A large product of inference on a CPU as a convolution with kernels of one pixel, which oneDNN computes: the same up to
/// rounding, on AMD processors a tenth to a fifth faster than MKL, whose best kernels are for Intel's. Kernels of a transposed
/// convolution lie the other way round, so that no weights are turned for it. `None` for what is no such product.
///
/// # Shapes
/// As [`affine`] for a single model, with `rows` `[row, d_in]`.
fn by_one_dnn(rows: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Option<Tensor> {
    let [n_rows, d_in, d_out] = [rows.size()[0], rows.size()[1], w.size()[1]];
    let is_large = n_rows.saturating_mul(d_in).saturating_mul(d_out) >= LARGE_PRODUCT;
    let is_plain =
        |x: &Tensor| x.device() == Device::Cpu && x.kind() == Kind::Float && !x.requires_grad();
    let by_output = w.transpose(0, 1); // [d_out, d_in]
    if !is_large
        || !(by_output.is_contiguous() || n_rows >= MANY_ROWS)
        || ![Some(rows), Some(w), b].into_iter().flatten().all(is_plain)
        || !tch::utils::has_mkldnn()
    {
        return None;
    }
    let pixels = rows.view([1, n_rows, 1, d_in]).permute([0, 3, 1, 2]); // [1, d_in, row, 1]
    let (one, zero) = ([1i64, 1], [0i64, 0]);
    // [1, d_out, row, 1]
    let y = if by_output.is_contiguous() || tch::get_num_threads() == 1 {
        // A single thread's transposed convolutions of one pixel are not oneDNN's.
        let kernels = by_output.contiguous().view([d_out, d_in, 1, 1]);
        pixels.mkldnn_convolution(&kernels, b, zero, one, one, 1)
    } else {
        let kernels = w.reshape([d_in, d_out, 1, 1]);
        pixels.conv_transpose2d(&kernels, b, one, zero, zero, 1, one)
    };
    Some(y.permute([0, 2, 3, 1]).reshape([n_rows, d_out]))
}

/// Views a per-model vector `[(n_models,) width]` so that it broadcasts against `x` `[(n_models,) …, width]`.
pub(crate) fn broadcast(vector: &Tensor, x: &Tensor) -> Tensor {
    let size = vector.size();
    if size.len() == 1 {
        return vector.shallow_clone();
    }
    let mut shape = vec![1; x.dim()];
    shape[0] = size[0];
    let last = shape.len() - 1;
    shape[last] = size[1];
    vector.view(shape.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init;

    #[test]
    fn large_products_are_the_same_by_either_library() {
        let drawn = |name: &str, shape: &[i64]| init::normal(1, name, shape, 1.0, Device::Cpu);
        // Just large enough, with odd sizes.
        let (x, w, b) = (drawn("x", &[2, 517, 513]), drawn("w", &[515, 513]), drawn("b", &[515]));
        let w = w.transpose(0, 1);
        let rows = x.reshape([-1, 513]);
        let expected =
            (rows.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double)) + &b).view([2, 517, 515]);
        for w in [w.shallow_clone(), w.contiguous()] {
            let found = affine(&x, &w, Some(&b));
            let by_one_dnn = by_one_dnn(&rows, &w, Some(&b)).expect("the product is large");
            assert!(found.is_contiguous() && found.equal(&by_one_dnn.view([2, 517, 515])));
            let worst = (found.to_kind(Kind::Double) - &expected).abs().max().double_value(&[]);
            assert!(worst < 3e-4, "{worst}");
        }
    }

    #[test]
    fn narrow_products_are_the_same_either_way() {
        let drawn = |name: &str, shape: &[i64]| init::normal(2, name, shape, 1.0, Device::Cpu);
        for (n_models, d_out) in [(None, 31), (None, 32), (Some(3), 31)] {
            let of = |shape: &[i64]| [n_models.as_slice(), shape].concat();
            let x = drawn("x", &of(&[5, 10, 12])).set_requires_grad(true);
            let w = drawn("w", &of(&[12, d_out])).set_requires_grad(true);
            let b = drawn("b", &of(&[d_out])).set_requires_grad(true);
            let upstream = drawn("upstream", &of(&[5, 10, d_out]));
            let expand = |w: &Tensor| if n_models.is_some() { w.unsqueeze(1) } else { w.copy() };
            let expected = x.matmul(&expand(&w)) + broadcast(&b, &x);
            let found = readout(&x, &w, Some(&b));
            let gradients = |y: &Tensor| {
                let sum = (y * &upstream).sum(Kind::Float);
                Tensor::run_backward(&[sum], &[&x, &w, &b], true, false)
            };
            let pairs = gradients(&found).into_iter().zip(gradients(&expected));
            let unbiased = (readout(&x, &w, None), &expected - broadcast(&b, &x));
            for (found, expected) in pairs.chain([(found, expected.copy()), unbiased]) {
                assert_eq!(found.size(), expected.size());
                let worst = (found - expected).abs().max().double_value(&[]);
                assert!(worst < 2e-5, "{n_models:?} {d_out}: {worst}");
            }
        }
    }

    #[test]
    fn what_is_learned_small_or_turned_for_few_rows_stays_with_the_usual_library() {
        let x = Tensor::ones([MANY_ROWS, 1024], (Kind::Float, Device::Cpu));
        let w = Tensor::ones([512, 1024], (Kind::Float, Device::Cpu)).transpose(0, 1);
        assert!(by_one_dnn(&x, &w, None).is_some());
        assert!(by_one_dnn(&x.narrow(0, 0, MANY_ROWS - 1), &w, None).is_none());
        assert!(by_one_dnn(&x, &w.contiguous(), None).is_some());
        let wide = Tensor::ones([1024, 1024], (Kind::Float, Device::Cpu));
        assert!(by_one_dnn(&x.narrow(0, 0, MANY_ROWS - 1), &wide, None).is_none());
        assert!(by_one_dnn(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double), None).is_none());
        assert!(by_one_dnn(&x.set_requires_grad(true), &w, None).is_none());
    }
}
