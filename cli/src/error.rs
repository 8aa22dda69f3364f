//! What can go wrong in a command, and which exit code that is: [`CommandError`], [`ErrorKind`],
//! [`Outcome`].
//!
//! Exit codes and the `code` of JSON errors are public API: scripts branch on them. A code is never
//! reused for another meaning. Errors are printed in one place (`Output::error`), with their causes
//! and the way out as hints.

use std::{error::Error as StdError, fmt, io};

use serde_json::{Value, json};
use sweep_proto::client::{ConnectError, is_transport};
use tonic::Code;

/// How a command that ran to its end ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is fine.
    Success,
    /// The sweep ended with failed tasks.
    FailedTasks,
    /// The sweep was cancelled.
    Cancelled,
    /// The user stopped waiting before the end (`watch --until-done`, `local`).
    Interrupted,
}

impl Outcome {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Interrupted => 1,
            Self::FailedTasks => 10,
            Self::Cancelled => 11,
        }
    }
}

/// What a script can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something that should not happen.
    Unexpected,
    /// The command line makes no sense, or the request is not possible as it stands.
    Usage,
    /// The sweep file has problems.
    SweepFile,
    /// No such sweep, task, metric, file.
    NotFound,
    /// The coordinator refuses.
    NotAllowed,
    /// No coordinator answers.
    Unreachable,
    /// The reader of our standard output went away (`sweep tasks | head`): no error at all.
    OutputClosed,
}

impl ErrorKind {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Unexpected => 1,
            Self::Usage | Self::SweepFile => 2,
            Self::NotFound => 3,
            Self::NotAllowed => 5,
            Self::Unreachable => 6,
        }
    }

    /// The stable word in JSON errors.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unexpected => "unexpected",
            Self::Usage => "usage",
            Self::SweepFile => "sweep-file",
            Self::NotFound => "not-found",
            Self::NotAllowed => "not-allowed",
            Self::Unreachable => "unreachable",
            Self::OutputClosed => "output-closed",
        }
    }
}

/// The table of exit codes in `sweep --help`.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  success
   1  unexpected error, or interrupted before the sweep's end
   2  wrong usage, or a problem in the sweep file
   3  not found
   5  not allowed
   6  coordinator, hub or bucket unreachable
  10  the sweep ended with failed tasks
  11  the sweep was cancelled";

/// One problem of a sweep file, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// The file as it was named on the command line.
    pub file: String,
    /// 1-based line.
    pub line: usize,
    /// 1-based column, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The way out, if there is an obvious one.
    pub hint: Option<String>,
    /// The source line and a marker below the place.
    pub excerpt: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        write!(f, "\n{}", self.excerpt)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n      = hint: {hint}")?;
        }
        Ok(())
    }
}

/// A command that did not work.
#[derive(Debug)]
pub struct CommandError {
    kind: ErrorKind,
    message: String,
    hints: Vec<String>,
    problems: Vec<FileProblem>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of a command or a part of one.
pub type Result<T, E = CommandError> = std::result::Result<T, E>;

impl CommandError {
    /// An error of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: vec![], problems: vec![], source: None }
    }

    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Something named does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Something that should not happen.
    pub fn unexpected(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unexpected, message)
    }

    /// A sweep file with problems; `problems` is not empty.
    pub fn sweep_file(problems: Vec<FileProblem>) -> Self {
        let n = problems.len();
        let file = problems.first().map_or_else(String::new, |problem| problem.file.clone());
        let plural = if n == 1 { "" } else { "s" };
        let mut error = Self::new(ErrorKind::SweepFile, format!("{n} problem{plural} in {file}"));
        error.problems = problems;
        error
    }

    /// Adds a way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What a script can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What happened, without causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Ways out.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// Problems of the sweep file.
    pub fn problems(&self) -> &[FileProblem] {
        &self.problems
    }

    /// The messages of the causes, outermost first, without repetitions.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> =
            self.source.as_deref().map(|source| source as &(dyn StdError + 'static));
        while let Some(cause) = next {
            let text = cause.to_string();
            let said = self.message.contains(&text) || causes.iter().any(|c| c.contains(&text));
            if !said && !text.is_empty() {
                causes.push(text);
            }
            next = cause.source();
        }
        causes
    }

    /// The versioned JSON form.
    pub fn to_json(&self) -> Value {
        let problem = |problem: &FileProblem| {
            json!({
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "message": problem.message,
                "hint": problem.hint,
            })
        };
        json!({
            "schema": "sweep.error/v1",
            "code": self.kind.code(),
            "exit_code": self.kind.exit_code(),
            "message": self.message,
            "causes": self.causes(),
            "hints": self.hints,
            "problems": self.problems.iter().map(problem).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for CommandError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<tonic::Status> for CommandError {
    fn from(status: tonic::Status) -> Self {
        let message = status.message().to_owned();
        let kind = match status.code() {
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::AlreadyExists => ErrorKind::Usage,
            Code::NotFound => ErrorKind::NotFound,
            Code::PermissionDenied | Code::Unauthenticated => ErrorKind::NotAllowed,
            Code::Unavailable | Code::DeadlineExceeded => ErrorKind::Unreachable,
            _ if is_transport(&status) => ErrorKind::Unreachable,
            _ => ErrorKind::Unexpected,
        };
        match kind {
            ErrorKind::Unreachable => Self::new(kind, "the coordinator does not answer")
                .caused_by(transport_cause(&status))
                .hint("is it running? `sweep workers --coordinator URL` tests the connection"),
            _ if message.is_empty() => {
                Self::new(kind, format!("the coordinator answered {}", status.code()))
            }
            _ => Self::new(kind, message),
        }
    }
}

/// `tcp connect error: connection refused`: the outermost and the innermost word about it.
fn transport_cause(status: &tonic::Status) -> String {
    let mut innermost: &dyn StdError = status;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match (status.message(), innermost.to_string()) {
        (message, _) if status.source().is_none() => message.to_owned(),
        ("", cause) => cause,
        (message, cause) if cause.contains(message) => cause,
        (message, cause) => format!("{message}: {cause}"),
    }
}

impl From<ConnectError> for CommandError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Url { .. } => Self::usage(error.to_string()),
            ConnectError::Tls { .. } => Self::usage(error.to_string())
                .hint("--tls-ca takes the PEM certificate that signs the coordinator's")
                .caused_by(error),
            ConnectError::Unreachable { .. } => {
                Self::new(ErrorKind::Unreachable, error.to_string()).caused_by(error)
            }
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(ErrorKind::OutputClosed, "output closed"),
            _ => Self::unexpected(error.to_string()).caused_by(error),
        }
    }
}

/// `cannot <do> <path>: <reason>`, with the kind that fits the reason.
pub fn file_error(action: &str, path: &std::path::Path, error: io::Error) -> CommandError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::NotAllowed,
        _ => ErrorKind::Unexpected,
    };
    CommandError::new(kind, format!("cannot {action} {}: {error}", path.display())).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: tonic::Status, code: &str, exit: u8) {
        let error = CommandError::from(status);
        assert_eq!((error.kind().code(), error.kind().exit_code()), (code, exit));
    }

    #[test]
    fn answers_of_the_coordinator_have_exit_codes() {
        use tonic::Status;
        check(Status::not_found("no sweep `x`"), "not-found", 3);
        check(Status::invalid_argument("bad"), "usage", 2);
        check(Status::failed_precondition("already ended"), "usage", 2);
        check(Status::permission_denied("no"), "not-allowed", 5);
        check(Status::unauthenticated("no"), "not-allowed", 5);
        check(Status::unavailable("tcp connect error"), "unreachable", 6);
        check(Status::internal("a bug"), "unexpected", 1);
        check(Status::from_error(Box::new(io::Error::other("cut"))), "unreachable", 6);
    }

    #[test]
    fn causes_are_not_repeated() {
        let inner = io::Error::other("connection refused");
        let error = CommandError::unexpected("cannot read x: connection refused").caused_by(inner);
        assert!(error.causes().is_empty());
    }
}
