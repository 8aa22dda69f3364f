//! Affine maps over the last axis, for one model or a population.

use tch::Tensor;

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
        match b {
            Some(b) => b.addmm(&rows, w),
            None => rows.mm(w),
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
