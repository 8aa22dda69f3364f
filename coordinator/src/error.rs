//! The coordinator's errors and the one table that maps them to gRPC codes. Main type: [`Error`].
//!
//! A variant exists where a caller acts differently on it; everything else is text. Internal
//! errors are logged here, once, with their causes, and leave the process without them.

use tonic::{Code, Status};

use crate::{core::event::Refusal, store};

/// Why a request cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The core says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A sweep file has problems, one per line.
    #[error("{}", .0.join("\n"))]
    InvalidSweep(Vec<String>),
    /// A request field makes no sense.
    #[error("{0}")]
    InvalidRequest(String),
    /// The coordinator is going down.
    #[error("the coordinator is stopping")]
    Stopping,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] store::Error),
    /// A thread of the coordinator ended unexpectedly.
    #[error("the coordinator failed: {0}")]
    Internal(String),
}

impl Error {
    /// The gRPC code of an error.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(Refusal::NoSuchSweep(_) | Refusal::UnknownWorker(_)) => Code::NotFound,
            Self::Refused(Refusal::Ambiguous { .. })
            | Self::InvalidSweep(_)
            | Self::InvalidRequest(_) => Code::InvalidArgument,
            Self::Refused(Refusal::Full { .. }) => Code::ResourceExhausted,
            Self::Stopping => Code::Unavailable,
            Self::Store(_) | Self::Internal(_) => Code::Internal,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = error.code();
        if code == Code::Internal {
            tracing::error!(error = %chain(&error), "request failed");
        }
        Self::new(code, error.to_string())
    }
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
