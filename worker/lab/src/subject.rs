//! What an analysis is given: one loaded checkpoint with what is known about it.
//!
//! [`Subject`] borrows everything. [`Subject::of`] makes the smallest one, a model and its
//! checkpoint; callers add what they have: weights to compare with, the tokenizer, the files and the
//! tensors as they were stored. An experiment that needs a part which is not there says so.

use serde::Serialize;
use sweep_lens::{
    Device, Kind, Tensor, Transformer, Weights,
    checkpoint::Checkpoint,
    formats::{TensorFiles, TensorInfo, TensorSource},
    tokenizer::Tokenizer,
};

use crate::error::Result;

/// One loaded checkpoint, immutable, on a device.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Config, weights, step and what the recipe recorded.
    pub checkpoint: &'a Checkpoint,
    /// The transformer over those weights.
    pub model: &'a Transformer,
    /// Weights before training, if known.
    pub init: Option<&'a Weights>,
    /// Step and weights of the checkpoint before this one, if there is one.
    pub previous: Option<(u64, &'a Weights)>,
    /// Tensors of the checkpoint before this one as they were stored, if known.
    pub previous_stored: Option<&'a dyn StoredTensors>,
    /// Where weights and activations live.
    pub device: Device,
    /// The model's tokenizer, if it has one.
    pub text: Option<&'a dyn TextCodec>,
    /// The files of the checkpoint, if it came from files.
    pub files: &'a [FileIdentity],
    /// Its tensors as they were stored, before conversion to canonical names and one element type.
    pub stored: Option<&'a dyn StoredTensors>,
    /// What was done to the weights after loading, for instance `raw` or `fold_ln`.
    pub processing: &'a str,
    /// Whether texts get the beginning-of-sequence token in front unless told otherwise.
    pub prepend_bos: bool,
}

impl<'a> Subject<'a> {
    /// A model and its checkpoint, and nothing else: the device is where the weights are, the weights
    /// are as trained, and the configuration says whether texts begin with the BOS token.
    pub fn of(checkpoint: &'a Checkpoint, model: &'a Transformer) -> Self {
        let device = model.weights().iter().next().map_or(Device::Cpu, |(_, first)| first.device());
        Self {
            checkpoint,
            model,
            init: None,
            previous: None,
            previous_stored: None,
            device,
            text: None,
            files: &[],
            stored: None,
            processing: "raw",
            prepend_bos: model.config().default_prepend_bos,
        }
    }
}

/// A tokenizer, as far as analyses need one.
pub trait TextCodec {
    /// Token ids of a text, with the BOS token in front if `prepend_bos`.
    ///
    /// # Errors
    /// When the text cannot be encoded, or `prepend_bos` and there is no BOS token.
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>>;
    /// The text of one token, for labels.
    fn decode_token(&self, id: i64) -> String;
    /// The BOS token, if there is one.
    fn bos(&self) -> Option<i64>;
    /// Identity of vocabulary and rules, recorded with results.
    fn hash(&self) -> &str;
}

impl<C: TextCodec + ?Sized> TextCodec for &C {
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        (**self).encode(text, prepend_bos)
    }

    fn decode_token(&self, id: i64) -> String {
        (**self).decode_token(id)
    }

    fn bos(&self) -> Option<i64> {
        (**self).bos()
    }

    fn hash(&self) -> &str {
        (**self).hash()
    }
}

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        Ok(Tokenizer::encode(self, text, prepend_bos)?)
    }

    fn decode_token(&self, id: i64) -> String {
        self.decode(&[id]).unwrap_or_else(|_| format!("<{id}>"))
    }

    fn bos(&self) -> Option<i64> {
        self.bos_id()
    }

    fn hash(&self) -> &str {
        Tokenizer::hash(self)
    }
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileIdentity {
    /// Name within the checkpoint.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Tensors as a checkpoint's files hold them.
pub trait StoredTensors {
    /// Every tensor's name, in any order.
    fn names(&self) -> Vec<String>;
    /// Element type of a tensor.
    ///
    /// # Errors
    /// When there is no tensor of this name, here and below.
    fn kind(&self, name: &str) -> Result<Kind>;
    /// Shape of a tensor.
    fn shape(&self, name: &str) -> Result<Vec<i64>>;
    /// SHA-256, in hexadecimal, of a tensor's element type, shape and bytes.
    fn sha256(&self, name: &str) -> Result<String>;
    /// The tensor itself, on the CPU.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

/// Files of other programs.
impl StoredTensors for TensorFiles {
    fn names(&self) -> Vec<String> {
        TensorSource::names(self).into_iter().map(str::to_owned).collect()
    }

    fn kind(&self, name: &str) -> Result<Kind> {
        Ok(known(self, name)?.kind)
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(known(self, name)?.shape.clone())
    }

    fn sha256(&self, name: &str) -> Result<String> {
        Ok(TensorFiles::sha256(self, name)?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(TensorSource::tensor(self, name)?)
    }
}

fn known<'a>(files: &'a TensorFiles, name: &str) -> Result<&'a TensorInfo> {
    let missing = || sweep_lens::Error::MissingTensor { name: name.to_owned() };
    Ok(files.info(name).ok_or_else(missing)?)
}

/// Weights in memory are stored as they are: what holds for a checkpoint of this system.
impl StoredTensors for Weights {
    fn names(&self) -> Vec<String> {
        Weights::names(self).map(str::to_owned).collect()
    }

    fn kind(&self, name: &str) -> Result<Kind> {
        Ok(self.require(name)?.kind())
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.require(name)?.size())
    }

    fn sha256(&self, name: &str) -> Result<String> {
        Ok(sweep_lens::tensor_file::tensor_hash(name, self.require(name)?)?)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.require(name)?.shallow_clone())
    }
}
