//! Files of published checkpoints, as named tensors.
//!
//! [`TensorSource`] is what the converters of [`crate::families`] read from, whatever the file is.
//! [`InMemory`] is the source that has no file: tensors that were made or edited here.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// What is known of a tensor before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored element type.
    pub kind: Kind,
    /// Shape.
    pub shape: Vec<i64>,
    /// The file that holds it, as messages call it.
    pub file: String,
}

/// Tensors of a checkpoint by the names in its files.
pub trait TensorSource {
    /// Every name, in name order.
    fn names(&self) -> Vec<&str>;

    /// Describes a tensor without reading it; `None` when there is none of this name.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// Reads a tensor: on the CPU, in the stored element type. It may be a view of a read-only memory
    /// map: copy before writing in place.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or what is wrong with the file.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

/// Tensors in memory.
#[derive(Debug, Default)]
pub struct InMemory(BTreeMap<String, (TensorInfo, Tensor)>);

impl InMemory {
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

impl FromIterator<(String, Tensor)> for InMemory {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        let mut source = InMemory::default();
        for (name, tensor) in tensors {
            source.insert(name, tensor);
        }
        source
    }
}

impl TensorSource for InMemory {
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
