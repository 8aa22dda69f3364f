//! The one error type of the crate. A variant exists because some caller acts differently on it;
//! the scheduler looks at [`Error::class`] alone and never at text.
//!
//! libtorch reports through panics in tch's plain operators; [`Error::from_panic`] makes typed errors
//! of them.

use std::{any::Any, result};

/// Result of everything in this crate.
pub type Result<T, E = Error> = result::Result<T, E>;

/// What went wrong in an experiment or a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter is unknown, of the wrong kind, or out of range.
    #[error("parameter `{name}`: {problem}")]
    Params {
        /// Parameter name as the user wrote it.
        name: String,
        /// Expected and actual.
        problem: String,
    },
    /// The model or device lacks something that the experiment needs.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// An input (checkpoint, trainer state, metric series) is missing or malformed.
    #[error("input: {0}")]
    Input(String),
    /// Training left the finite numbers.
    #[error("{what} is {value} at step {step}")]
    NonFinite {
        /// Quantity that is not finite.
        what: String,
        /// Its value: NaN or an infinity.
        value: f64,
        /// First evaluated step at which it was seen.
        step: u64,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// An experiment broke its own card: a bug in this crate.
    #[error("experiment `{card}` broke its card: {problem}")]
    Card {
        /// Name of the card.
        card: &'static str,
        /// The promise that was not kept.
        problem: String,
    },
    /// A panic inside an experiment, most often a libtorch message.
    #[error("panicked: {0}")]
    Panic(String),
    /// The transformer or a checkpoint file.
    #[error(transparent)]
    Lens(#[from] sweep_lens::Error),
    /// The receiver of metrics and artifacts failed.
    #[error("could not deliver {what}")]
    Sink {
        /// What was to be delivered.
        what: String,
        /// The receiver's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a caller may do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Wrong parameters: the submission must change.
    Params,
    /// Wrong model or device for this experiment.
    Unsupported,
    /// Missing or corrupt input.
    Input,
    /// Training diverged.
    NonFinite,
    /// Asked to stop; not a failure.
    Cancelled,
    /// Try a smaller batch or a larger device.
    OutOfMemory,
    /// The device is unusable until the process is started anew.
    Device,
    /// Delivery failed; the same work may succeed later.
    Sink,
    /// A bug, here or in libtorch.
    Internal,
}

impl Error {
    /// What the caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Params { .. } => Class::Params,
            Self::Unsupported(_) => Class::Unsupported,
            Self::Input(_) => Class::Input,
            Self::NonFinite { .. } => Class::NonFinite,
            Self::Cancelled => Class::Cancelled,
            Self::Sink { .. } => Class::Sink,
            Self::Card { .. } | Self::Panic(_) => Class::Internal,
            Self::Lens(error) => match error.class() {
                sweep_lens::Class::Input => Class::Input,
                sweep_lens::Class::NonFinite => Class::NonFinite,
                sweep_lens::Class::OutOfMemory => Class::OutOfMemory,
                sweep_lens::Class::Device => Class::Device,
                sweep_lens::Class::Runtime => Class::Internal,
            },
        }
    }

    /// Reads the payload of a caught panic: exhausted memory and a broken device are told apart by
    /// libtorch's message, everything else is a plain [`Error::Panic`].
    pub fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a message");
        let torch = sweep_lens::Error::from_torch_message(message);
        match torch.class() {
            sweep_lens::Class::OutOfMemory | sweep_lens::Class::Device => Self::Lens(torch),
            sweep_lens::Class::Input
            | sweep_lens::Class::NonFinite
            | sweep_lens::Class::Runtime => Self::Panic(first_line(message)),
        }
    }

    pub(crate) fn params(name: &str, problem: impl Into<String>) -> Self {
        Self::Params { name: name.to_owned(), problem: problem.into() }
    }
}

/// libtorch adds pages of dispatch tables and frames to its message; tch unwraps it, which escapes the newlines.
fn first_line(message: &str) -> String {
    let is_torch = message.contains("Torch(\"");
    let end = message.find('\n').into_iter().chain(message.find("\\n").filter(|_| is_torch)).min();
    message[..end.unwrap_or(message.len())].to_owned()
}

/// Runs `work`, turning a panic into an [`Error`], so that one experiment cannot take the others
/// of its bundle down.
pub(crate) fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Everything `work` touched is dropped or marked failed by the callers after an error.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(Error::from_panic(payload.as_ref())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_typed_errors() {
        let out_of_memory = catch::<()>(|| panic!("CUDA out of memory. Tried to allocate 2 GiB"));
        assert_eq!(out_of_memory.unwrap_err().class(), Class::OutOfMemory);
        let device = catch::<()>(|| panic!("CUDA error: an illegal memory access was encountered"));
        assert_eq!(device.unwrap_err().class(), Class::Device);
        let other = catch::<()>(|| panic!("sizes of tensors must match")).unwrap_err();
        assert_eq!(other.class(), Class::Internal);
        assert_eq!(other.to_string(), "panicked: sizes of tensors must match");
        assert_eq!(catch(|| Ok(3)).unwrap(), 3);
        let long =
            r#"called `Result::unwrap()` on an `Err` value: Torch("no such kernel\n\nCPU: there")"#;
        let cut = catch::<()>(|| panic!("{long}")).unwrap_err().to_string();
        assert!(cut.ends_with("no such kernel"), "{cut}");
    }
}
