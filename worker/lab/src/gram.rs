//! Principal components of a few very long rows by the Gram trick (D10): C rows of length P need a
//! C × C eigenproblem, never a P × P one, and need not be in memory together.
//!
//! Main types: [`Rows`] (where rows come from), [`Components`]. Inner products are accumulated in float64 over
//! column chunks, so that float32 rows of any length lose nothing but their own rounding.

use std::ops::Range;

use sweep_lens::{Kind, Tensor};

use crate::{
    error::{Error, Result},
    value::to_vec,
};

/// Rows of equal length, made one at a time and possibly more than once.
pub(crate) trait Rows {
    /// Number of rows.
    fn count(&self) -> usize;
    /// Row `index`, `[P]`.
    fn row(&mut self, index: usize) -> Result<Tensor>;
}

/// Principal components of centred rows, largest variance first.
pub(crate) struct Components {
    /// Share of the total variance of each component; NaN if there is no variance.
    pub(crate) explained_variance_ratio: Vec<f64>,
    /// Coordinates: row by row, one per component.
    pub(crate) coordinates: Vec<Vec<f64>>,
    /// Unit vectors f64 `[n_components, P]`; the entry of largest magnitude is positive.
    pub(crate) basis: Tensor,
    /// Mean row f64 `[P]`.
    pub(crate) mean: Tensor,
}

/// Columns of one float64 chunk.
const CHUNK: i64 = 1 << 20;

/// Finds the first `n_components` components (at most one fewer than rows), holding rows of at most
/// `memory_bytes` at once (always at least two). Rows are made once if all fit, otherwise about
/// `blocks / 2 + 1` times.
pub(crate) fn components(
    rows: &mut dyn Rows,
    n_components: usize,
    memory_bytes: u64,
) -> Result<Components> {
    let count = rows.count();
    if count < 2 {
        return Err(Error::Input(format!(
            "expected at least 2 rows for components, found {count}"
        )));
    }
    let n_components = n_components.min(count - 1);
    let mut store = Store::new(rows, memory_bytes)?;
    let gram = gram(&mut store)?;
    // J G J with J = I - 11'/C centres the rows without touching them.
    let mean = |axis: i64| gram.mean_dim(&[axis][..], true, Kind::Double);
    let centred = &gram - mean(0) - mean(1) + gram.mean(Kind::Double);
    let (values, vectors) = centred.linalg_eigh("L");
    let values: Vec<f64> = to_vec(&values).into_iter().rev().map(|value| value.max(0.0)).collect();
    let vectors = vectors.flip([1]).narrow(1, 0, n_components as i64).contiguous(); // [C, k]
    let total: f64 = values.iter().sum();
    // Below rounding of the Gram matrix there is no direction to speak of.
    let floor = f64::EPSILON * to_vec(&gram.abs().max())[0] * count as f64;
    let scales: Vec<f64> = values[..n_components]
        .iter()
        .map(|&value| if value > floor { value.sqrt() } else { 0.0 })
        .collect();
    let (mut basis, mean) = directions(&mut store, &vectors, &scales)?;
    let largest = basis.abs().argmax(1, true);
    let signs = to_vec(&basis.gather(1, &largest, false).squeeze_dim(1).sign());
    let signs: Vec<f64> = signs.iter().map(|&sign| if sign < 0.0 { -1.0 } else { 1.0 }).collect();
    let _ = basis.g_mul_(&Tensor::from_slice(&signs).to_device(basis.device()).unsqueeze(1));
    let vectors = to_vec(&vectors);
    let coordinates = (0..count)
        .map(|row| {
            (0..n_components)
                .map(|k| vectors[row * n_components + k] * scales[k] * signs[k])
                .collect()
        })
        .collect();
    let explained_variance_ratio =
        values[..n_components].iter().map(|value| value / total).collect();
    Ok(Components { explained_variance_ratio, coordinates, basis, mean })
}

/// Rows in blocks that fit into memory.
struct Store<'a> {
    rows: &'a mut dyn Rows,
    count: usize,
    rows_per_block: usize,
    /// Row 0, which was made to learn the length, until its block is.
    first: Option<Tensor>,
    /// The block held, and its rows `[B, P]`.
    held: Option<(Range<usize>, Tensor)>,
}

impl<'a> Store<'a> {
    fn new(rows: &'a mut dyn Rows, memory_bytes: u64) -> Result<Self> {
        let count = rows.count();
        let first = rows.row(0)?;
        let row_bytes = (first.numel() * first.kind().elt_size_in_bytes()).max(1) as u64;
        // One row is always made beside the block.
        let rows_per_block = (memory_bytes / row_bytes).saturating_sub(1).clamp(1, count as u64);
        Ok(Self {
            rows,
            count,
            rows_per_block: rows_per_block as usize,
            first: Some(first),
            held: None,
        })
    }

    fn block_ranges(&self) -> Vec<Range<usize>> {
        let starts = (0..self.count).step_by(self.rows_per_block);
        starts.map(|start| start..(start + self.rows_per_block).min(self.count)).collect()
    }

    fn block(&mut self, range: &Range<usize>) -> Result<Tensor> {
        if let Some((held, block)) = &self.held
            && held == range
        {
            return Ok(block.shallow_clone());
        }
        self.held = None;
        let rows = range.clone().map(|index| self.row(index)).collect::<Result<Vec<_>>>()?;
        let block = Tensor::stack(&rows, 0);
        self.held = Some((range.clone(), block.shallow_clone()));
        Ok(block)
    }

    fn row(&mut self, index: usize) -> Result<Tensor> {
        match self.first.take().filter(|_| index == 0) {
            Some(first) => Ok(first),
            None => self.rows.row(index),
        }
    }
}

/// Inner products of all rows, f64 `[C, C]` on the CPU, holding rows of at most `memory_bytes` at once (always at
/// least two).
pub(crate) fn inner_products(rows: &mut dyn Rows, memory_bytes: u64) -> Result<Tensor> {
    gram(&mut Store::new(rows, memory_bytes)?)
}

/// Inner products of all rows, f64 `[C, C]` on the CPU.
fn gram(store: &mut Store<'_>) -> Result<Tensor> {
    let count = store.count;
    let mut gram = vec![0.0; count * count];
    for range in store.block_ranges() {
        let block = store.block(&range)?;
        let inside = to_vec(&products(&block, &block));
        for i in range.clone() {
            for j in range.clone() {
                gram[i * count + j] = inside[(i - range.start) * range.len() + j - range.start];
            }
        }
        for other in range.end..count {
            let row = store.row(other)?.unsqueeze(0);
            check_length(&row, &block, other)?;
            for (offset, product) in to_vec(&products(&block, &row)).into_iter().enumerate() {
                let index = range.start + offset;
                gram[index * count + other] = product;
                gram[other * count + index] = product;
            }
        }
    }
    Ok(Tensor::from_slice(&gram).view([count as i64, count as i64]))
}

fn check_length(row: &Tensor, block: &Tensor, index: usize) -> Result<()> {
    if row.size()[1] == block.size()[1] {
        return Ok(());
    }
    Err(Error::Input(format!(
        "row {index} has {} values, expected {} like the others",
        row.size()[1],
        block.size()[1]
    )))
}

/// `a b'` in float64. `a`: `[n, P]`, `b`: `[m, P]` → `[n, m]`.
fn products(a: &Tensor, b: &Tensor) -> Tensor {
    let length = a.size()[1];
    let mut total = Tensor::zeros([a.size()[0], b.size()[0]], (Kind::Double, a.device()));
    for start in (0..length).step_by(CHUNK as usize) {
        let part = |t: &Tensor| t.narrow(1, start, CHUNK.min(length - start)).to_kind(Kind::Double);
        total += part(a).matmul(&part(b).transpose(0, 1));
    }
    total
}

/// Unit vectors `[k, P]` of the components and the mean row `[P]`: with eigenvector u of the centred Gram
/// matrix, `X' u / σ`, which needs no centring because the entries of u sum to zero.
fn directions(store: &mut Store<'_>, vectors: &Tensor, scales: &[f64]) -> Result<(Tensor, Tensor)> {
    let inverse: Vec<f64> = scales.iter().map(|&s| if s > 0.0 { 1.0 / s } else { 0.0 }).collect();
    let weights = vectors * Tensor::from_slice(&inverse).unsqueeze(0); // [C, k]
    let share = Tensor::full(
        [vectors.size()[0], 1],
        1.0 / store.count as f64,
        (Kind::Double, sweep_lens::Device::Cpu),
    );
    let weights = Tensor::cat(&[weights, share], 1).transpose(0, 1); // [k + 1, C]
    let mut sums: Option<Tensor> = None;
    for range in store.block_ranges() {
        let block = store.block(&range)?;
        let length = block.size()[1];
        let weights =
            weights.narrow(1, range.start as i64, range.len() as i64).to_device(block.device());
        let total = sums.get_or_insert_with(|| {
            Tensor::zeros([weights.size()[0], length], (Kind::Double, block.device()))
        });
        for start in (0..length).step_by(CHUNK as usize) {
            let width = CHUNK.min(length - start);
            let part = block.narrow(1, start, width).to_kind(Kind::Double);
            let _ = total.narrow(1, start, width).g_add_(&weights.matmul(&part));
        }
    }
    let sums = sums.ok_or_else(|| Error::Input("expected rows, found none".to_owned()))?;
    let k = scales.len() as i64;
    Ok((sums.narrow(0, 0, k), sums.get(k)))
}

#[cfg(test)]
mod tests {
    use sweep_lens::Device;

    use super::*;

    struct Matrix {
        rows: Tensor,
        made: usize,
    }

    impl Rows for Matrix {
        fn count(&self) -> usize {
            self.rows.size()[0] as usize
        }
        fn row(&mut self, index: usize) -> Result<Tensor> {
            self.made += 1;
            Ok(self.rows.get(index as i64))
        }
    }

    fn matrix(count: i64, length: i64) -> Matrix {
        let rows =
            (Tensor::arange(count * length, (Kind::Double, Device::Cpu)).square() * 0.01).sin();
        Matrix { rows: rows.view([count, length]), made: 0 }
    }

    #[test]
    fn components_diagonalise_the_covariance_in_any_block_size() {
        let whole = components(&mut matrix(9, 40), 4, 1 << 20).unwrap();
        let centred = {
            let rows = matrix(9, 40).rows;
            &rows - rows.mean_dim(&[0i64][..], true, Kind::Double)
        };
        // Coordinates are projections, the basis is orthonormal and the sign convention holds.
        let projected = centred.matmul(&whole.basis.transpose(0, 1));
        let flat: Vec<f64> = whole.coordinates.iter().flatten().copied().collect();
        assert!(to_vec(&projected).iter().zip(&flat).all(|(a, b)| (a - b).abs() < 1e-10));
        let eye = whole.basis.matmul(&whole.basis.transpose(0, 1));
        assert!(
            to_vec(&(eye - Tensor::eye(4, (Kind::Double, Device::Cpu))))
                .iter()
                .all(|x| x.abs() < 1e-10)
        );
        let largest = whole.basis.gather(1, &whole.basis.abs().argmax(1, true), false);
        assert!(to_vec(&largest).iter().all(|&x| x > 0.0));
        for memory in [0, 3 * 40 * 8, 5 * 40 * 8] {
            let mut rows = matrix(9, 40);
            let found = components(&mut rows, 4, memory).unwrap();
            assert!(rows.made > 10, "{} rows made", rows.made);
            let other: Vec<f64> = found.coordinates.iter().flatten().copied().collect();
            assert!(flat.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }

    #[test]
    fn degenerate_inputs() {
        let found = components(&mut matrix(3, 20), 5, 1 << 20).unwrap();
        assert_eq!(found.explained_variance_ratio.len(), 2);
        assert!((found.explained_variance_ratio.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let mut same = Matrix { rows: Tensor::ones([4, 6], (Kind::Float, Device::Cpu)), made: 0 };
        let found = components(&mut same, 2, 1 << 20).unwrap();
        assert!(found.coordinates.iter().flatten().all(|&x| x == 0.0));
        assert!(components(&mut matrix(1, 5), 2, 1 << 20).is_err());
    }
}
