//! One verified download into the cache. Main function: [`fetch`].
//!
//! Bytes are hashed while they arrive. A cut, slow or refusing source is asked again for the rest
//! until the patience is over without progress. Bytes that turn out wrong are thrown away and fetched
//! once more from the start: a broken transfer differs from broken storage.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;

use crate::{
    cache::{Begun, Cache, CacheError, Expected, Held, Part},
    error::{Error, Result},
    patience::Patience,
};

/// No byte for this long, or for a third of the patience, is a cut connection.
const STALL_MAX: Duration = Duration::from_mins(1);
/// How often it is looked whether another process has finished a file, or has made room.
const POLL: Duration = Duration::from_millis(200);
/// Chunks between network and disk.
const QUEUE: usize = 16;
/// Complete downloads with wrong bytes, after which the source is at fault.
const WRONG_MAX: u32 = 2;

/// Hears how many bytes have newly arrived.
pub type Report = Arc<dyn Fn(u64) + Send + Sync>;

/// Why one try failed.
#[derive(Debug)]
pub enum Fault {
    /// Trying again cannot help.
    Final(Error),
    /// It may work the next time.
    Again {
        /// What happened.
        problem: String,
        /// The pause that the other side asks for.
        asked: Option<Duration>,
    },
    /// What is here already is no beginning of the file.
    Restart(String),
}

impl Fault {
    /// It may work the next time.
    pub fn again(problem: impl ToString) -> Self {
        Self::Again { problem: problem.to_string(), asked: None }
    }
}

/// The bytes of a file from an offset on.
pub struct Body {
    /// The offset at which the bytes begin.
    pub start: u64,
    /// The bytes.
    pub bytes: Bytestream,
}

/// Where bytes come from.
pub enum Bytestream {
    /// An HTTP response.
    Http(reqwest::Response),
    /// An object of an object store.
    Object(BoxStream<'static, object_store::Result<Bytes>>),
}

impl Bytestream {
    async fn next(&mut self, stall: Duration) -> Result<Option<Bytes>, String> {
        let next = async {
            match self {
                Self::Http(response) => response.chunk().await.map_err(|error| chain(&error)),
                Self::Object(stream) => {
                    stream.next().await.transpose().map_err(|error| chain(&error))
                }
            }
        };
        let answer = tokio::time::timeout(stall, next).await;
        answer.unwrap_or_else(|_| Err(format!("no data for {} s", stall.as_secs_f32())))
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Something that can be opened at an offset, again and again.
pub trait Remote {
    /// The bytes from `offset` on, or from an earlier one.
    fn open(&mut self, offset: u64) -> impl Future<Output = Result<Body, Fault>> + Send;
}

/// What is to be fetched.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// File and place, for messages.
    pub what: String,
    /// Name of this version of the file; its sha256 where that is known.
    pub key: String,
    /// Its size.
    pub size: u64,
    /// What is known about its content.
    pub expected: Expected,
}

/// Brings `wanted` into the cache, or finds it there. The answer says also whether its content is
/// what was expected, and not only what the source sent twice.
///
/// # Errors
/// What the source says; [`Error::Unavailable`] when the patience is over, [`Error::Corrupt`] when
/// its bytes stay wrong, [`Error::Cache`].
pub async fn fetch(
    cache: &Arc<Cache>,
    mut wanted: Wanted,
    remote: &mut impl Remote,
    total_patience: Duration,
    report: &Report,
) -> Result<(Held, bool)> {
    let mut patience = Patience::new(total_patience);
    let stall = STALL_MAX.min(total_patience / 3).max(Duration::from_millis(500));
    let mut wrong = Wrong::default();
    loop {
        let begun = {
            let (cache, wanted) = (Arc::clone(cache), wanted.clone());
            blocking(move || cache.begin(&wanted.key, wanted.size, &wanted.expected)).await
        };
        let part = match begun {
            Ok(Begun::Here(held)) => return Ok((held, wrong.believed.is_none())),
            Ok(Begun::Part(part)) => part,
            // Whoever writes it has a patience of its own, and its lock ends with it.
            Ok(Begun::Busy) => {
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error @ CacheError::Full { .. }) => {
                if !patience.wait(Some(POLL)).await {
                    return Err(error.into());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match fill(part, &wanted.what, remote, &mut patience, stall, report).await {
            Ok(held) => return Ok((held, wrong.believed.is_none())),
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Wrong { expected, actual, received }) => {
                tracing::warn!(file = wanted.what, expected, actual, "wrong bytes");
                if wrong.again(received, &mut wanted.expected) {
                    continue;
                }
                return Err(Error::Corrupt { what: wanted.what, expected, actual });
            }
        }
    }
}

/// Counts downloads whose bytes were wrong.
#[derive(Debug, Default)]
struct Wrong {
    count: u32,
    received: Option<String>,
    /// The hash that was believed because the source sent it twice.
    believed: Option<String>,
}

impl Wrong {
    /// Whether the file is worth another download.
    ///
    /// Some mirrors number small files otherwise than git does. Where the number is all that is
    /// known, two downloads that agree are believed.
    fn again(&mut self, received: Option<String>, expected: &mut Expected) -> bool {
        self.count += 1;
        let agreed = received.is_some() && received == self.received;
        if agreed && expected.sha256.is_none() && expected.git.is_some() {
            self.believed.clone_from(&received);
            *expected = Expected { sha256: received, git: None };
            self.count = 0;
            return true;
        }
        self.received = received;
        self.count < WRONG_MAX
    }
}

enum Failure {
    Error(Error),
    Wrong { expected: String, actual: String, received: Option<String> },
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Mismatch { expected, actual, received } => {
                Self::Wrong { expected, actual, received }
            }
            error => Self::Error(error.into()),
        }
    }
}

/// Fetches what is missing of `part` and verifies it.
async fn fill(
    mut part: Box<Part>,
    what: &str,
    remote: &mut impl Remote,
    patience: &mut Patience,
    stall: Duration,
    report: &Report,
) -> Result<Held, Failure> {
    let mut furthest = part.written();
    while part.written() < part.size() {
        let (problem, asked) = match remote.open(part.written()).await {
            Ok(body) => {
                if body.start == 0 {
                    part.restart()?;
                }
                if body.start == part.written() {
                    let (back, outcome) = pump(part, body.bytes, stall, report).await;
                    part = back;
                    let problem =
                        outcome?.unwrap_or_else(|| "the connection was closed".to_owned());
                    (problem, None)
                } else {
                    let problem =
                        format!("bytes from {} instead of {}", body.start, part.written());
                    part.restart()?;
                    (problem, None)
                }
            }
            Err(Fault::Final(error)) => return Err(Failure::Error(error)),
            Err(Fault::Again { problem, asked }) => (problem, asked),
            Err(Fault::Restart(problem)) => {
                part.restart()?;
                (problem, None)
            }
        };
        if part.written() > furthest {
            furthest = part.written();
            patience.renew();
        }
        if part.written() == part.size() {
            break;
        }
        tracing::warn!(file = what, problem, at = part.written(), "download interrupted");
        if !patience.wait(asked).await {
            let what = what.to_owned();
            return Err(Failure::Error(Error::Unavailable { what, problem }));
        }
    }
    Ok(blocking(move || part.finish()).await?)
}

/// Writes everything that comes. Returns why it ended early, if it did.
async fn pump(
    mut part: Box<Part>,
    mut bytes: Bytestream,
    stall: Duration,
    report: &Report,
) -> (Box<Part>, Result<Option<String>, Failure>) {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(QUEUE);
    // Hashing and writing keep a thread of their own busy; meanwhile the network goes on.
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            if let Err(error) = part.write(&chunk) {
                return (part, Err(error.into()));
            }
        }
        (part, Ok(()))
    });
    let problem = loop {
        match bytes.next(stall).await {
            Ok(Some(chunk)) => {
                let count = chunk.len() as u64;
                if sender.send(chunk).await.is_err() {
                    break None;
                }
                report(count);
            }
            Ok(None) => break None,
            Err(problem) => break Some(problem),
        }
    };
    drop(sender);
    let (part, written) = writer.await.expect("writing to a file does not panic");
    (part, written.map(|()| problem))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file operations do not panic")
}
