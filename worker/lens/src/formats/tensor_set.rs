//! Tensors in memory as a [`TensorSource`]: what converters are tested with, and what already-loaded
//! tensors look like to them.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{TensorInfo, TensorSource};
use crate::error::{Error, Result};

/// Named tensors in memory.
#[derive(Debug, Default)]
pub struct TensorSet(BTreeMap<String, (TensorInfo, Tensor)>);

impl TensorSet {
    /// Returns an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a tensor under a name, replacing what was there.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        let info =
            TensorInfo { kind: tensor.kind(), shape: tensor.size(), file: "memory".to_owned() };
        self.0.insert(name.into(), (info, tensor));
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.0.remove(name).map(|(_, tensor)| tensor)
    }
}

impl TensorSource for TensorSet {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.get(name).map(|(info, _)| info)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let found = self.0.get(name).map(|(_, tensor)| tensor.shallow_clone());
        found.ok_or_else(|| Error::MissingTensor { name: name.to_owned() })
    }
}

impl FromIterator<(String, Tensor)> for TensorSet {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        let mut set = TensorSet::new();
        for (name, tensor) in tensors {
            set.insert(name, tensor);
        }
        set
    }
}

impl From<BTreeMap<String, Tensor>> for TensorSet {
    fn from(tensors: BTreeMap<String, Tensor>) -> Self {
        tensors.into_iter().collect()
    }
}
