//! Why a source of checkpoints could not be used. Main type: [`Error`].
//!
//! A variant exists where a caller acts differently; [`Error::class`] says what the scheduler does
//! about it and [`Error::hint`] what a person can do. Messages name the repository, revision, bucket
//! or folder and the file.

use std::{io, path::PathBuf};

use sweep_proto::id::FailureClass;

use crate::cache::CacheError;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a source of checkpoints could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text that names no place.
    #[error("`{text}` names no place of checkpoints: {problem}")]
    Location {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that the catalogue of published models does not have.
    #[error("no published model is called `{name}`")]
    UnknownModel {
        /// The name.
        name: String,
        /// A name that is close, as a sentence.
        hint: Option<String>,
    },
    /// The place exists, but no checkpoints are recognised there, or more than one kind.
    #[error("{at}: {problem}")]
    Layout {
        /// The place.
        at: String,
        /// What was found and what is recognised.
        problem: String,
    },
    /// A repository, revision, file, bucket or folder that is not there.
    #[error("{what} does not exist")]
    Missing {
        /// What is missing.
        what: String,
        /// The way out.
        hint: String,
    },
    /// Something that these credentials may not read.
    #[error("{what} may not be read: {problem}")]
    Denied {
        /// What was asked for.
        what: String,
        /// Why not.
        problem: String,
        /// The way out.
        hint: String,
    },
    /// The source failed until the patience was over.
    #[error("{what} could not be read: {problem}")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// The last failure.
        problem: String,
    },
    /// An answer that makes no sense.
    #[error("the answer about {what} is not understood: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What was wrong with the answer.
        problem: String,
    },
    /// The bytes are not those that the source itself announces.
    #[error("{what} is corrupt: expected {expected}, received {actual}")]
    Corrupt {
        /// Which file.
        what: String,
        /// Size or hash as announced.
        expected: String,
        /// Size or hash of what came.
        actual: String,
    },
    /// The file was replaced between listing and reading.
    #[error("{what} has changed since it was listed: expected {expected}, found {actual}")]
    Changed {
        /// Which file.
        what: String,
        /// Version as listed.
        expected: String,
        /// Version now.
        actual: String,
    },
    /// The cache cannot take a file.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A local file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What the scheduler does about it.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Missing { .. } | Self::Denied { .. } | Self::UnknownModel { .. } => {
                FailureClass::InputMissing
            }
            // Listing again finds the new version.
            Self::Unavailable { .. } | Self::Changed { .. } => FailureClass::Transient,
            Self::Location { .. }
            | Self::Layout { .. }
            | Self::Answer { .. }
            | Self::Corrupt { .. } => FailureClass::Permanent,
            Self::Cache(error) => error.class(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    FailureClass::InputMissing
                }
                _ => FailureClass::Transient,
            },
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownModel { hint, .. } => Some(hint.clone().unwrap_or_else(|| {
                "`sweep catalog models` lists all; `hub:` takes any repository".to_owned()
            })),
            Self::Missing { hint, .. } | Self::Denied { hint, .. } => {
                (!hint.is_empty()).then(|| hint.clone())
            }
            Self::Corrupt { .. } => {
                Some("the source serves damaged bytes; another mirror may be intact".to_owned())
            }
            Self::Cache(error) => error.hint(),
            Self::Location { .. }
            | Self::Layout { .. }
            | Self::Unavailable { .. }
            | Self::Answer { .. }
            | Self::Changed { .. }
            | Self::Io { .. } => None,
        }
    }
}
