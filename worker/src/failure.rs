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

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_what_would_fail_again_is_not() {
        let key = || "k".to_owned();
        let cases = [
            (StoreError::Missing { key: key() }, FailureClass::InputMissing),
            (StoreError::Failed { key: key(), problem: key() }, FailureClass::Transient),
            (StoreError::Corrupt { key: key(), problem: key() }, FailureClass::Permanent),
            (StoreError::Open { url: key(), problem: key() }, FailureClass::Permanent),
        ];
        for (error, class) in cases {
            assert_eq!(of_store(&error).class(), class.to_pb(), "{error}");
        }
    }
    #[test]
    fn what_libtorch_says_about_its_device_decides() {
        let cases = [
            ("CUDA out of memory. Tried to allocate 2 GiB", FailureClass::OutOfMemory),
            ("CUDA error: an illegal memory access was encountered", FailureClass::Poisoned),
            ("sizes of tensors must match", FailureClass::Permanent),
        ];
        for (message, class) in cases {
            let panic: Box<dyn Any + Send> = Box::new(message);
            let failure = of_lab(&Error::from_panic(panic.as_ref()));
            assert_eq!(failure.class(), class.to_pb(), "{message}");
            assert!(failure.message.contains(message), "{}", failure.message);
        }
        assert_eq!(of_lab(&Error::Cancelled).class(), FailureClass::Cancelled.to_pb());
    }
}
