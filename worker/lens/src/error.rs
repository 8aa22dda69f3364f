//! The error type of the crate and what a caller should do about each error.
//!
//! [`Error::class`] is what callers branch on; the variants carry what a person needs: the file and
//! the tensor concerned, what was expected and what was found. The `Display` text of an error does
//! not repeat its source.

use std::path::PathBuf;

use tch::{Kind, TchError};

/// Result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of tensors is damaged or is not such a file.
    #[error("file `{file}`{}: {problem}", in_tensor(tensor.as_deref()))]
    Checkpoint {
        /// Label or path of the file.
        file: String,
        /// The tensor concerned, when it is one tensor that is damaged.
        tensor: Option<String>,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A file could not be read.
    #[error("read file `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A model configuration contradicts itself.
    #[error("model configuration: {0}")]
    Config(String),
    /// A tensor has another shape than the configuration asks for.
    #[error("tensor `{name}` has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// The shape that follows from the configuration.
        expected: Vec<i64>,
        /// The shape found.
        actual: Vec<i64>,
    },
    /// The parameters of one model differ in element type or device.
    #[error("tensor `{name}` is {actual}, expected {expected} like the others")]
    Mixed {
        /// Name of the tensor.
        name: String,
        /// Element type and device of the model's first tensor.
        expected: String,
        /// Element type and device found.
        actual: String,
    },
    /// A tensor that the configuration needs is absent.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor is present that the configuration has no place for.
    #[error("tensor `{name}` is not a parameter of this model")]
    UnexpectedTensor {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor holds NaN or an infinity.
    #[error("tensor `{name}` holds {count} non-finite values")]
    NonFinite {
        /// Name of the tensor.
        name: String,
        /// How many of its elements are NaN or infinite.
        count: i64,
    },
    /// The files of a tokenizer are damaged or incomplete, or a text cannot be tokenized.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model or the library cannot do what was asked.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A text is not the name of an activation.
    #[error("`{0}` is not the name of a hook")]
    UnknownHook(String),
    /// A device does not exist on this machine, or its name cannot be read.
    #[error("device {0}")]
    Device(String),
    /// The device has no memory left for the computation.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device is in a state that only a new process leaves.
    #[error("device failure: {0}")]
    DeviceFailure(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
}

/// What is wrong with a file of tensors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file ends too early.
    #[error("truncated, {actual} of {expected} bytes are there")]
    Truncated {
        /// Bytes that should be there.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// The file goes on after its last tensor.
    #[error("has bytes after its last tensor")]
    TrailingBytes,
    /// The bytes are not those that were written.
    #[error("sha256 is {actual}, expected {expected}")]
    HashMismatch {
        /// Hash recorded when the file was written.
        expected: String,
        /// Hash of what was read.
        actual: String,
    },
    /// The file records no hash for the tensor, or one for a tensor that is absent.
    #[error("recorded hashes and tensors do not match")]
    HashMissing,
    /// The header cannot be read.
    #[error("not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The header lacks an entry, or an entry cannot be read.
    #[error("metadata: {0}")]
    Metadata(String),
    /// The element type has no counterpart.
    #[error("element type {0} is not supported")]
    ElementType(String),
    /// Two tensors have one name.
    #[error("appears twice")]
    DuplicateName,
    /// The bytes of a tensor overlap others, leave a gap or are too many or too few for its shape.
    #[error("data offsets {0}")]
    Offsets(String),
    /// Shape, strides and offset make no tensor.
    #[error("impossible view: {0}")]
    View(String),
    /// A tensor needs elements that its storage does not have.
    #[error("reaches outside its storage, needs {needed} of {available} bytes")]
    OutOfStorage {
        /// Bytes up to the tensor's last element.
        needed: u64,
        /// Bytes of the storage.
        available: u64,
    },
    /// The file is neither of the formats of PyTorch, or is damaged.
    #[error("not a PyTorch file: {0}")]
    NotTorch(String),
    /// A pickle refers to something that tensors do not need; nothing was executed.
    #[error("refers to `{0}`, which no file of tensors needs; refused, nothing was executed")]
    RefusedGlobal(String),
    /// The numbers in the file have another byte order than this machine.
    #[error("byte order `{0}`, expected `little`")]
    ByteOrder(String),
    /// The bytes do not have the checksum that the file records.
    #[error("crc32 is {actual:08x}, expected {expected:08x}")]
    ChecksumMismatch {
        /// Checksum recorded in the file.
        expected: u32,
        /// Checksum of what was read.
        actual: u32,
    },
    /// Something is larger than is sensible for its kind.
    #[error("{actual} is too large, at most {limit} is read")]
    TooLarge {
        /// Size found or claimed.
        actual: u64,
        /// Largest size accepted.
        limit: u64,
    },
    /// An index of shards cannot be read or does not fit the files.
    #[error("index of shards: {0}")]
    Index(String),
    /// An index says that the tensor is in this file.
    #[error("is not in this file, although the index says so")]
    NotInShard,
    /// The file holds no parameters of a model.
    #[error("no tensors: {0}")]
    NoTensors(String),
    /// The file is of no format that is read here.
    #[error("neither safetensors nor a PyTorch file but {0}")]
    Unrecognised(String),
    /// Somebody wrote to the file after it was opened.
    #[error("changed while it was read")]
    Changed,
}

/// What a caller does about an error; retry decisions look at nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The input is wrong and stays wrong: do not retry.
    Input,
    /// A non-finite number appeared: the run has diverged, do not retry.
    NonFinite,
    /// Retry with a smaller batch or on a larger device.
    OutOfMemory,
    /// The device is unusable until the process is started anew.
    Device,
    /// The operating system or libtorch failed; another attempt may succeed.
    Runtime,
}

impl Error {
    /// Returns what a caller should do about the error.
    pub fn class(&self) -> Class {
        match self {
            Error::Checkpoint { .. }
            | Error::Config(_)
            | Error::Shape { .. }
            | Error::Mixed { .. }
            | Error::MissingTensor { .. }
            | Error::UnexpectedTensor { .. }
            | Error::Tokenizer(_)
            | Error::Unsupported(_)
            | Error::UnknownHook(_)
            | Error::Device(_) => Class::Input,
            Error::NonFinite { .. } => Class::NonFinite,
            Error::OutOfMemory(_) => Class::OutOfMemory,
            Error::DeviceFailure(_) => Class::Device,
            Error::Io { .. } | Error::Torch(_) => Class::Runtime,
        }
    }

    /// Reads the message of a libtorch exception, which is all that libtorch gives.
    ///
    /// tch's operators panic with this message, so a caller that catches such a panic can classify
    /// it here too.
    pub fn from_torch_message(message: &str) -> Self {
        /// Fragments of messages after which the CUDA context of the process is lost.
        const STICKY: [&str; 6] = [
            "device-side assert",
            "illegal memory access",
            "unspecified launch failure",
            "misaligned address",
            "uncorrectable ECC error",
            "CUDA-capable device(s) is/are busy or unavailable",
        ];
        // The first line says what happened; the rest is a C++ backtrace.
        let text = message.lines().next().unwrap_or_default().to_owned();
        // "can't allocate memory" is the CPU allocator's wording.
        if ["out of memory", "can't allocate memory", "not enough memory"]
            .iter()
            .any(|fragment| message.contains(fragment))
        {
            Error::OutOfMemory(text)
        } else if STICKY.iter().any(|fragment| message.contains(fragment)) {
            Error::DeviceFailure(text)
        } else {
            Error::Torch(text)
        }
    }

    pub(crate) fn checkpoint(file: &str, tensor: Option<&str>, problem: Problem) -> Self {
        Error::Checkpoint { file: file.to_owned(), tensor: tensor.map(str::to_owned), problem }
    }

    pub(crate) fn element_type(name: &str, kind: Kind) -> Self {
        Error::Unsupported(format!("tensor `{name}` has element type {kind:?}"))
    }
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        match error {
            TchError::Torch(message) => Error::from_torch_message(&message),
            other => Error::Torch(other.to_string()),
        }
    }
}

fn in_tensor(tensor: Option<&str>) -> String {
    tensor.map(|name| format!(", tensor `{name}`")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_messages_are_classified_and_cut_to_their_first_line() {
        let class = |message: &str| Error::from_torch_message(message).class();
        assert_eq!(class("CUDA out of memory. Tried to allocate 2 GiB"), Class::OutOfMemory);
        assert_eq!(
            class(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
            ),
            Class::OutOfMemory
        );
        assert_eq!(class("CUDA error: an illegal memory access was encountered"), Class::Device);
        assert_eq!(class("mat1 and mat2 shapes cannot be multiplied"), Class::Runtime);
        let error = Error::from_torch_message("bad shape\nException raised from …");
        assert_eq!(error.to_string(), "libtorch: bad shape");
    }

    #[test]
    fn damage_names_file_and_tensor() {
        let problem = Problem::Truncated { expected: 8, actual: 3 };
        let error = Error::checkpoint("step10.safetensors", Some("embed.W_E"), problem.clone());
        assert_eq!(
            error.to_string(),
            "file `step10.safetensors`, tensor `embed.W_E`: truncated, 3 of 8 bytes are there"
        );
        let error = Error::checkpoint("step10.safetensors", None, problem);
        assert!(error.to_string().starts_with("file `step10.safetensors`: truncated"));
        assert_eq!(error.class(), Class::Input);
    }
}
