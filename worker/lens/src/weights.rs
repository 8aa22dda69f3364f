//! Named parameter tensors of one model, or of a population of models.
//!
//! [`Weights`] is a plain map in name order; it knows nothing of an architecture. Tensors are shared,
//! not copied, when a map is cloned shallowly: an optimizer that changes a tensor in place changes it
//! for the model built from it too. [`Weights::copy`] makes independent tensors.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

/// Parameter tensors by TransformerLens' names, in name order.
#[derive(Debug, Default)]
pub struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    /// Returns an empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a tensor under a name, replacing what was there.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.0.insert(name.into(), tensor)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name)
    }

    /// Returns the tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Returns the tensor of this name, or [`Error::MissingTensor`].
    pub fn require(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })
    }

    /// Iterates over names and tensors in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Iterates over the names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of scalar parameters.
    pub fn n_params(&self) -> usize {
        self.0.values().map(Tensor::numel).sum()
    }

    /// Returns a map of the same tensors: changing one in place changes both.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    /// Returns independent tensors with the same values, outside any gradient graph.
    #[must_use]
    pub fn copy(&self) -> Self {
        self.map(|tensor| tensor.detach().copy())
    }

    /// Returns the weights on another device (the same tensors when they are there already).
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        self.map(|tensor| tensor.to_device(device))
    }

    /// Returns the weights in another element type (the same tensors when they have it already).
    #[must_use]
    pub fn to_kind(&self, kind: Kind) -> Self {
        self.map(|tensor| tensor.to_kind(kind))
    }

    /// Makes every tensor a leaf that gradients are computed for, or stops that.
    pub fn set_requires_grad(&self, requires_grad: bool) {
        for tensor in self.0.values() {
            let _same = tensor.set_requires_grad(requires_grad);
        }
    }

    /// Joins equally shaped models into one population: every tensor gets a leading model axis.
    ///
    /// # Errors
    /// When `members` is empty or they differ in names or shapes; the tensor is named.
    pub fn stack(members: &[&Weights]) -> Result<Self> {
        let Some(first) = members.first() else {
            return Err(Error::Unsupported("a population of no models".to_owned()));
        };
        for other in members {
            if let Some(name) = other.names().find(|name| first.get(name).is_none()) {
                return Err(Error::UnexpectedTensor { name: name.to_owned() });
            }
        }
        let mut stacked = Weights::new();
        for (name, tensor) in first.iter() {
            let mut parts = Vec::with_capacity(members.len());
            for other in members {
                let part = other.require(name)?;
                if part.size() != tensor.size() {
                    return Err(Error::Shape {
                        name: name.to_owned(),
                        expected: tensor.size(),
                        actual: part.size(),
                    });
                }
                parts.push(part.detach());
            }
            stacked.insert(name, Tensor::stack(&parts, 0));
        }
        Ok(stacked)
    }

    /// Returns one model of a population as views of its tensors.
    #[must_use]
    pub fn member(&self, index: i64) -> Self {
        self.map(|tensor| tensor.get(index))
    }

    /// Checks that every value is finite.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming the first tensor with a NaN or an infinity.
    pub fn check_finite(&self) -> Result<()> {
        for (name, tensor) in self.iter() {
            let count = tensor.detach().isfinite().logical_not().sum(Kind::Int64).int64_value(&[]);
            if count > 0 {
                return Err(Error::NonFinite { name: name.to_owned(), count });
            }
        }
        Ok(())
    }

    fn map(&self, function: impl Fn(&Tensor) -> Tensor) -> Self {
        self.0.iter().map(|(name, tensor)| (name.clone(), function(tensor))).collect()
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Weights(tensors.into_iter().collect())
    }
}

impl IntoIterator for Weights {
    type Item = (String, Tensor);
    type IntoIter = std::collections::btree_map::IntoIter<String, Tensor>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
