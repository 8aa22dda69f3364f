//! Files of tensors that other programs wrote: safetensors and PyTorch pickles, single or sharded.
//!
//! [`TensorFiles`] opens the files of one checkpoint by their names in its repository; converters see
//! it as a [`TensorSource`], as they see tensors in memory ([`TensorSet`]).
//!
//! # Invariants
//! - Nothing in a file is executed, and no claim of a file is believed before it is checked against
//!   the file's length: arbitrary bytes give an error, never a panic or an allocation out of proportion.
//! - Opening reads headers only; the bytes of a tensor are touched when it is asked for.
//! - An error names the file and, where it is one tensor that is hurt, the tensor.

mod archive;
mod entries;
mod index;
mod layout;
mod pickle;
mod pickle_value;
mod safetensors;
mod selection;
mod state_dict;
mod stored_file;
mod tensor_files;
mod tensor_set;
mod torch_legacy;
mod torch_zip;

use tch::{Kind, Tensor};

use crate::error::Result;

pub use self::{
    index::shards_of, selection::weight_file, tensor_files::TensorFiles, tensor_set::TensorSet,
};

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
