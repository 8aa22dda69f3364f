//! A model as one file: configuration, weights, step, and whatever the trainer wants to say about it.
//!
//! The format is that of [`crate::tensor_file`] with canonical tensor names and the metadata entries
//! `format` (always [`FORMAT`]), `config` and `extra` (JSON) and `step`. A file that opens holds exactly
//! what was written; whether weights fit the configuration is for
//! [`Transformer::new`](crate::Transformer::new) to say.

use std::{collections::BTreeMap, fs::File, io::BufReader, path::Path};

use crate::{
    config::Config,
    error::{Error, Problem, Result},
    tensor_file::{self, TensorFile},
    weights::Weights,
};

pub use crate::tensor_file::{decode_tensors, encode_tensors};

/// Value of the metadata entry `format`; the number rises when old readers would misread the file.
pub const FORMAT: &str = "sweep-checkpoint/1";

/// A model at one step of its training.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: Config,
    /// The parameters, on the CPU.
    pub weights: Weights,
    /// How many optimizer steps were taken.
    pub step: u64,
    /// What the trainer recorded beside it (recipe, parameters, seed).
    pub extra: serde_json::Value,
    /// [`weights_hash`] of the parameters.
    pub weights_hash: String,
}

/// Returns the bytes of a checkpoint; equal contents give equal bytes.
///
/// # Errors
/// An element type that cannot be written.
pub fn encode(
    config: &Config,
    weights: &Weights,
    step: u64,
    extra: &serde_json::Value,
) -> Result<Vec<u8>> {
    let config = serde_json::to_string(config)
        .map_err(|error| Error::Config(format!("cannot be written: {error}")))?;
    let metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("config".to_owned(), config),
        ("step".to_owned(), step.to_string()),
        ("extra".to_owned(), extra.to_string()),
    ]);
    tensor_file::encode_tensors(weights.iter(), &metadata)
}

/// Reads what [`encode`] wrote and verifies it; `file` is what errors call it.
///
/// # Errors
/// [`Error::Checkpoint`] naming the file, the tensor where one is damaged, and the damage.
pub fn decode(file: &str, bytes: &[u8]) -> Result<Checkpoint> {
    interpret(file, tensor_file::read_tensors(file, bytes)?)
}

/// Reads a checkpoint from a file, one tensor at a time.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened, otherwise as [`decode`].
pub fn open(path: &Path) -> Result<Checkpoint> {
    let source = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let file = path.display().to_string();
    let contents = tensor_file::read_tensors(&file, BufReader::new(source))?;
    interpret(&file, contents)
}

/// Tells whether a safetensors file is a checkpoint that [`encode`] wrote, from its header alone.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened, [`Error::Checkpoint`] when it has no header.
pub fn is_own(path: &Path) -> Result<bool> {
    let source = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let metadata = tensor_file::read_metadata(&path.display().to_string(), source)?;
    Ok(metadata.is_some_and(|entries| entries.get("format").is_some_and(|it| it == FORMAT)))
}

/// Returns the identity of a set of weights: the SHA-256, in hexadecimal, over names, element types,
/// shapes and bytes in name order.
///
/// # Errors
/// An element type that cannot be written.
pub fn weights_hash(weights: &Weights) -> Result<String> {
    let mut hashes = BTreeMap::new();
    for (name, tensor) in weights.iter() {
        hashes.insert(name, tensor_file::tensor_hash(name, tensor)?);
    }
    Ok(tensor_file::combined_hash(hashes.iter().map(|(name, hash)| (*name, hash.as_str()))))
}

fn interpret(file: &str, contents: TensorFile) -> Result<Checkpoint> {
    let entry = |key: &str| {
        contents.metadata.get(key).map(String::as_str).ok_or_else(|| {
            let problem = Problem::Metadata(format!("no entry `{key}`"));
            Error::checkpoint(file, None, problem)
        })
    };
    let unreadable = |key: &str, error: &dyn std::fmt::Display| {
        Error::checkpoint(file, None, Problem::Metadata(format!("entry `{key}`: {error}")))
    };
    let format = entry("format")?;
    if format != FORMAT {
        return Err(unreadable("format", &format!("is `{format}`, expected `{FORMAT}`")));
    }
    let config: Config =
        serde_json::from_str(entry("config")?).map_err(|error| unreadable("config", &error))?;
    let step = entry("step")?.parse().map_err(|error| unreadable("step", &error))?;
    let extra =
        serde_json::from_str(entry("extra")?).map_err(|error| unreadable("extra", &error))?;
    let hashes = contents.hashes.iter().map(|(name, hash)| (name.as_str(), hash.as_str()));
    let weights_hash = tensor_file::combined_hash(hashes);
    let weights = contents.tensors.into_iter().collect();
    Ok(Checkpoint { config, weights, step, extra, weights_hash })
}
