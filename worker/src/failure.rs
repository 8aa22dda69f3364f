//! Errors of the lab, the store and the spool as what the scheduler acts on: a failure class.

use sweep_lab::{Class, Error};
use sweep_proto::{
    id::{FailureClass, failure},
    pb,
};

use crate::{artifacts::StoreError, spool::SpoolError};

/// A failure of the lab. What would fail again is permanent; what concerns the outside is not.
pub fn of_lab(error: &Error) -> pb::Failure {
    let class = match error.class() {
        Class::Params | Class::Unsupported | Class::NonFinite | Class::Internal | Class::Input => {
            FailureClass::Permanent
        }
        Class::Cancelled => FailureClass::Cancelled,
        Class::OutOfMemory => FailureClass::OutOfMemory,
        Class::Sink => FailureClass::Transient,
        // It keeps answering like this until the process ends.
        Class::Device => FailureClass::Poisoned,
    };
    failure(class, chain(error))
}

/// A failure of the object store.
pub fn of_store(error: &StoreError) -> pb::Failure {
    let class = match error {
        StoreError::Missing { .. } => FailureClass::InputMissing,
        StoreError::Corrupt { .. } | StoreError::Open { .. } => FailureClass::Permanent,
        StoreError::Failed { .. } => FailureClass::Transient,
    };
    failure(class, chain(error))
}

/// A failure of a source of checkpoints.
pub fn of_source(error: &sweep_source::Error) -> pb::Failure {
    let text = chain(error);
    let text = error.hint().map_or_else(|| text.clone(), |hint| format!("{text}; {hint}"));
    failure(error.class(), text)
}

/// A failure of the spool.
pub fn of_spool(error: &SpoolError) -> pb::Failure {
    failure(FailureClass::Transient, chain(error))
}

/// An error with everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
