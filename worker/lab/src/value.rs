//! The value of a metric at one step: a dense f64 array whose axes are those of the metric's
//! declaration, with labels where positions alone do not say what they are.
//!
//! Invariant: `data.len()` is the product of `shape`, and a labelled axis has one label per entry.

use serde::{Deserialize, Serialize};
use sweep_lens::{Device, Kind, Tensor};

/// One metric value. A scalar has an empty shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Row-major entries; non-finite ones are kept.
    pub data: Vec<f64>,
    /// Per axis: labels of its entries, or `None` for `0..n`.
    pub labels: Vec<Option<Vec<String>>>,
}

impl Value {
    /// A single number.
    pub fn scalar(value: f64) -> Self {
        Self { shape: Vec::new(), data: vec![value], labels: Vec::new() }
    }

    /// One axis, entries `0..n`.
    pub fn vector(data: Vec<f64>) -> Self {
        Self { shape: vec![data.len()], data, labels: vec![None] }
    }

    /// One axis with a label per entry.
    ///
    /// # Panics
    /// If the numbers of labels and entries differ.
    pub fn labelled<L: ToString>(labels: impl IntoIterator<Item = L>, data: Vec<f64>) -> Self {
        let labels: Vec<String> = labels.into_iter().map(|label| label.to_string()).collect();
        assert_eq!(labels.len(), data.len(), "one label per entry");
        Self { shape: vec![data.len()], data, labels: vec![Some(labels)] }
    }

    /// Any number of axes, row-major, labels as given.
    ///
    /// # Panics
    /// If shape, data and labels do not fit together.
    pub fn array(shape: Vec<usize>, data: Vec<f64>, labels: Vec<Option<Vec<String>>>) -> Self {
        let value = Self { shape, data, labels };
        assert!(value.is_consistent(), "shape, data and labels fit together");
        value
    }

    /// Copies a tensor of any kind and device; no labels.
    pub fn from_tensor(tensor: &Tensor) -> Self {
        let shape: Vec<usize> = tensor.size().into_iter().map(|n| n as usize).collect();
        let labels = vec![None; shape.len()];
        Self { shape, data: to_vec(tensor), labels }
    }

    /// The number, if this is a scalar.
    pub fn as_scalar(&self) -> Option<f64> {
        if self.shape.is_empty() { self.data.first().copied() } else { None }
    }

    /// Whether shape, data and labels fit together.
    pub fn is_consistent(&self) -> bool {
        self.data.len() == self.shape.iter().product::<usize>()
            && self.labels.len() == self.shape.len()
            && self.labels.iter().zip(&self.shape).all(|(labels, &length)| {
                labels.as_ref().is_none_or(|labels| labels.len() == length)
            })
    }

    /// The label of entry `index` of `axis`.
    pub fn label(&self, axis: usize, index: usize) -> String {
        match &self.labels[axis] {
            Some(labels) => labels[index].clone(),
            None => index.to_string(),
        }
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::scalar(value)
    }
}

/// Copies a tensor of any kind, shape and device into f64, row-major.
pub(crate) fn to_vec(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double).contiguous();
    let mut data = vec![0.0; flat.numel()];
    let length = data.len();
    flat.copy_data(&mut data, length);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_keep_the_invariant() {
        assert_eq!(Value::from(2.5).as_scalar(), Some(2.5));
        assert_eq!(Value::vector(vec![1.0]).as_scalar(), None);
        let value = Value::labelled([1, 2], vec![0.5, f64::NAN]);
        assert!(value.is_consistent());
        assert_eq!((value.label(0, 1), value.shape.clone()), ("2".to_owned(), vec![2]));
        let tensor = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6]).view([2, 3]).transpose(0, 1);
        let value = Value::from_tensor(&tensor);
        assert_eq!((value.shape, value.data), (vec![3, 2], vec![1., 4., 2., 5., 3., 6.]));
        assert!(!Value { shape: vec![2], data: vec![1.0], labels: vec![None] }.is_consistent());
    }
}
