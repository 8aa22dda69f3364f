//! Sources of checkpoints as the command line sees them: credentials from the environment, errors
//! with their way out, notes and known defects on standard error.

use std::time::Duration;

use sweep_proto::id::FailureClass;
use sweep_source::{Access, Error, Listing, Source};

use crate::{
    context::Context,
    error::{CommandError, ErrorKind, Result},
};

/// How long a hub or bucket that fails is asked again; somebody is waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// Access to every source, for listing: nothing is downloaded by the command line.
///
/// # Errors
/// When `HF_ENDPOINT` is no URL.
pub fn access() -> Result<Access> {
    let settings = sweep_source::settings(std::env::vars());
    Ok(Access::new(settings, None, PATIENCE)?)
}

/// The checkpoints of a source; says on standard error what was left aside.
///
/// # Errors
/// When the source does not exist, cannot be read, or holds nothing that is recognised.
pub async fn resolve(cx: &Context, access: &Access, source: &Source) -> Result<Listing, Error> {
    let listing = sweep_source::resolve(source, access).await?;
    for note in &listing.notes {
        cx.output.note(note);
    }
    Ok(listing)
}

/// Says on standard error what is known to be wrong with the checkpoints at `steps`.
pub fn warn(cx: &Context, listing: &Listing, steps: &[u64]) {
    for warning in sweep_source::warnings(listing, steps) {
        cx.output.warn(&warning);
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Location { .. } | Error::Layout { .. } => ErrorKind::Usage,
            Error::Denied { .. } => ErrorKind::NotAllowed,
            Error::Unavailable { .. } => ErrorKind::Unreachable,
            other if other.class() == FailureClass::InputMissing => ErrorKind::NotFound,
            _ => ErrorKind::Unexpected,
        };
        let wrapped = Self::new(kind, error.to_string());
        let wrapped = match error.hint() {
            Some(hint) => wrapped.hint(hint),
            None => wrapped,
        };
        wrapped.caused_by(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: Error, code: &str, exit: u8) {
        let error = CommandError::from(error);
        assert_eq!((error.kind().code(), error.kind().exit_code()), (code, exit));
    }

    #[test]
    fn sources_that_fail_have_exit_codes() {
        let (what, problem, hint) = ("x".to_owned(), "y".to_owned(), "z".to_owned());
        check(Error::Missing { what: what.clone(), hint: hint.clone() }, "not-found", 3);
        check(Error::UnknownModel { name: what.clone(), hint: None }, "not-found", 3);
        check(Error::Layout { at: what.clone(), problem: problem.clone() }, "usage", 2);
        check(
            Error::Denied { what: what.clone(), problem: problem.clone(), hint },
            "not-allowed",
            5,
        );
        check(Error::Unavailable { what, problem }, "unreachable", 6);
        let error = CommandError::from(sweep_source::published::get("pythia-71m").unwrap_err());
        assert_eq!(error.hints(), ["did you mean `pythia-31m`?"]);
    }
}
