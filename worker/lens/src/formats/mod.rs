//! Named tensors of published checkpoints: [`TensorSource`] is what the converters of
//! [`crate::families`] read from, [`TensorSet`] is the source that has no file.

mod tensor_set;

use tch::{Kind, Tensor};

use crate::error::Result;

pub use self::tensor_set::TensorSet;

/// Tensors of a checkpoint by the names in its files.
pub trait TensorSource {
    /// The names of all tensors, in order.
    fn names(&self) -> Vec<&str>;

    /// What is known of a tensor before its bytes are read; `None` when there is no such tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// Returns the tensor on the CPU, in its stored element type and shape.
    ///
    /// It may be a view of memory that other tensors share: copy before writing in place.
    ///
    /// # Errors
    /// [`MissingTensor`](crate::Error::MissingTensor), or whatever is wrong with the file.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

/// Element type, shape and whereabouts of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The stored element type.
    pub kind: Kind,
    /// The stored shape.
    pub shape: Vec<i64>,
    /// The file that holds it, by its name in the repository.
    pub file: String,
}
