//! Where the elements of a tensor lie: extents of a file, and strided views of them.
//!
//! Every reader ends here, so this is the one place that decides whether a tensor fits into its
//! storage. A [`Layout`] that exists reaches only elements that its storage has.

use std::collections::BTreeMap;

use tch::Kind;

use crate::error::Problem;

/// More axes than any parameter has.
pub(super) const AXES_MAX: usize = 16;
/// A view with repeated elements (stride 0) may be larger than its storage, up to so many bytes.
const REPEATED_BYTES_MAX: u64 = 1 << 28;

/// A run of bytes in a file: one storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte in the file.
    pub(super) offset: u64,
    /// Bytes in the file.
    pub(super) n_bytes: u64,
    /// Bytes of the storage when the run is compressed by DEFLATE.
    pub(super) inflated: Option<u64>,
    /// CRC-32 of the storage's bytes, where the file records it.
    pub(super) crc32: Option<u32>,
}

impl Extent {
    /// Bytes of the storage.
    pub(super) fn storage_bytes(&self) -> u64 {
        self.inflated.unwrap_or(self.n_bytes)
    }
}

/// What a reader finds in one file: storages, and tensors that are views of them.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) extents: Vec<Extent>,
    pub(super) tensors: BTreeMap<String, Layout>,
}

/// A strided view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    pub(super) shape: Vec<i64>,
    /// Distance of neighbours along each axis, in elements.
    pub(super) strides: Vec<i64>,
    /// First element in the storage.
    pub(super) start: u64,
    /// Elements from the first to the last, both counted; 0 for a tensor without elements.
    pub(super) span: u64,
    /// Index of the extent.
    pub(super) extent: usize,
}

impl Layout {
    /// Describes a view, or says why the storage of `storage_bytes` bytes has no room for it.
    pub(super) fn strided(
        kind: Kind,
        shape: Vec<i64>,
        strides: Vec<i64>,
        start: i64,
        (extent, storage_bytes): (usize, u64),
    ) -> Result<Self, Problem> {
        if shape.len() > AXES_MAX {
            return Err(Problem::View(format!("{} axes, at most {AXES_MAX}", shape.len())));
        }
        if shape.len() != strides.len() {
            let text = format!("{} axes and {} strides", shape.len(), strides.len());
            return Err(Problem::View(text));
        }
        if shape.iter().chain(&strides).chain([&start]).any(|&number| number < 0) {
            let text = format!("shape {shape:?}, strides {strides:?}, offset {start}");
            return Err(Problem::View(text));
        }
        let overflow = || Problem::View(format!("shape {shape:?}, strides {strides:?}: too large"));
        let span = span(&shape, &strides).ok_or_else(overflow)?;
        let width = kind.elt_size_in_bytes() as u64;
        let n_elements = n_elements(&shape).ok_or_else(overflow)?;
        if n_elements > span && n_elements.saturating_mul(width) > REPEATED_BYTES_MAX {
            return Err(overflow());
        }
        let start = start.unsigned_abs();
        let needed = if span == 0 { Some(0) } else { start.checked_add(span) };
        let needed = needed.and_then(|end| end.checked_mul(width)).ok_or_else(overflow)?;
        if needed > storage_bytes {
            return Err(Problem::OutOfStorage { needed, available: storage_bytes });
        }
        // An offset beyond the storage does no harm to a tensor without elements.
        let start = if span == 0 { 0 } else { start };
        Ok(Layout { kind, shape, strides, start, span, extent })
    }

    /// Describes a tensor whose elements lie one after the other.
    pub(super) fn contiguous(
        kind: Kind,
        shape: Vec<i64>,
        storage: (usize, u64),
    ) -> Result<Self, Problem> {
        let strides = row_major(&shape)
            .ok_or_else(|| Problem::View(format!("shape {shape:?}: too large")))?;
        Self::strided(kind, shape, strides, 0, storage)
    }

    /// Whether the elements lie one after the other, in order.
    pub(super) fn is_contiguous(&self) -> bool {
        let expected = row_major(&self.shape).unwrap_or_default();
        let mut axes = self.shape.iter().zip(&self.strides).zip(&expected);
        self.span == 0 || axes.all(|((&size, stride), expected)| size == 1 || stride == expected)
    }

    /// Bytes of all elements.
    pub(super) fn n_bytes(&self) -> u64 {
        n_elements(&self.shape).unwrap_or(0) * self.kind.elt_size_in_bytes() as u64
    }
}

/// Number of elements; `None` when it does not fit.
fn n_elements(shape: &[i64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size.unsigned_abs()))
}

/// Elements from the first to the last.
fn span(shape: &[i64], strides: &[i64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().zip(strides).try_fold(1u64, |span, (&size, &stride)| {
        let reach = (size - 1).checked_mul(stride)?;
        span.checked_add(reach.unsigned_abs()).filter(|&span| i64::try_from(span).is_ok())
    })
}

fn row_major(shape: &[i64]) -> Option<Vec<i64>> {
    let mut strides = vec![1; shape.len()];
    let mut stride: i64 = 1;
    for (axis, &size) in shape.iter().enumerate().rev() {
        strides[axis] = stride;
        stride = stride.checked_mul(size.max(1))?;
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[i64], strides: &[i64], start: i64, bytes: u64) -> Result<Layout, Problem> {
        Layout::strided(Kind::Float, shape.to_vec(), strides.to_vec(), start, (0, bytes))
    }

    #[test]
    fn a_view_ends_inside_its_storage() {
        let layout = view(&[2, 3], &[3, 1], 4, 40).unwrap();
        assert_eq!((layout.start, layout.span, layout.n_bytes()), (4, 6, 24));
        assert!(layout.is_contiguous());
        let out = view(&[2, 3], &[3, 1], 5, 40).unwrap_err();
        assert_eq!(out, Problem::OutOfStorage { needed: 44, available: 40 });
        // Transposed: the same elements, another order.
        let layout = view(&[3, 2], &[1, 3], 0, 24).unwrap();
        assert_eq!(layout.span, 6);
        assert!(!layout.is_contiguous());
        assert!(view(&[3, 2], &[1, 4], 0, 24).is_err());
        // An axis of one element has no use for its stride.
        assert!(view(&[1, 3], &[100, 1], 0, 12).unwrap().is_contiguous());
        assert_eq!(view(&[], &[], 0, 4).unwrap().span, 1);
        assert!(view(&[], &[], 1, 4).is_err());
        assert_eq!(view(&[2, 0], &[0, 1], 9, 0).unwrap().span, 0);
    }

    #[test]
    fn absurd_views_are_refused() {
        let max = i64::MAX;
        for (shape, strides, start) in [
            (vec![max, max], vec![1, 1], 0),
            (vec![max], vec![max], 0),
            (vec![2], vec![max], max),
            (vec![-1], vec![1], 0),
            (vec![1], vec![-1], 0),
            (vec![1], vec![1], -1),
            (vec![1], vec![], 0),
            (vec![1; 17], vec![1; 17], 0),
            (vec![max], vec![0], 0),
        ] {
            assert!(view(&shape, &strides, start, 1 << 40).is_err(), "{shape:?} {strides:?}");
        }
        assert!(Layout::contiguous(Kind::Float, vec![max, 2], (0, 8)).is_err());
        // Repeated elements are fine while they are few.
        let repeated = view(&[1000, 2], &[0, 1], 0, 8).unwrap();
        assert_eq!((repeated.span, repeated.n_bytes()), (2, 8000));
    }
}
