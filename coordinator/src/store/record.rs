//! Contents of stored documents. Messages are append-only: tags are never reused, so that a newer
//! version reads what an older one wrote. Wire messages are embedded as they are; they follow the
//! same rule.

use prost::Message;
use sweep_proto::{
    id::{Attempt, TaskKey},
    pb,
};

use crate::core::event::{Outcome, Stop, SweepRecord, TaskRecord};

use super::{
    Result,
    frame::damaged,
    key::{Key, Reader},
};

/// Facts about the store as a whole.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Meta {
    /// Starts so far.
    #[prost(uint32, tag = "1")]
    pub incarnation: u32,
    /// Whether the last stop left no live lease.
    #[prost(bool, tag = "2")]
    pub quiet: bool,
}

/// A worker process that may hold leases.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoredWorker {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its process.
    #[prost(string, tag = "2")]
    pub instance: String,
}

#[derive(Clone, PartialEq, Message)]
struct StoredSweep {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(string, tag = "2")]
    document: String,
    #[prost(message, optional, tag = "3")]
    pinned: Option<pb::Catalog>,
    #[prost(uint64, tag = "4")]
    submitted_at: u64,
    #[prost(uint64, tag = "5")]
    ended_at: u64,
    /// 0 = runs on, 1 = cancelled, 2 = too many failures.
    #[prost(uint32, tag = "6")]
    stop: u32,
    #[prost(uint64, tag = "7")]
    fence: u64,
    #[prost(uint32, tag = "8")]
    retries: u32,
}

#[derive(Clone, PartialEq, Message)]
struct StoredTask {
    /// 0 = open, 1 = done, 2 = failed.
    #[prost(uint32, tag = "1")]
    outcome: u32,
    #[prost(uint64, tag = "2")]
    attempt: u64,
    #[prost(bool, tag = "3")]
    reported: bool,
    #[prost(uint32, tag = "4")]
    attempts: u32,
    #[prost(uint32, tag = "5")]
    crashes: u32,
    #[prost(message, repeated, tag = "6")]
    failures: Vec<StoredFailure>,
    #[prost(string, tag = "7")]
    worker: String,
    #[prost(uint64, tag = "8")]
    finished_at: u64,
    #[prost(uint64, tag = "9")]
    elapsed_ms: u64,
    #[prost(uint32, tag = "10")]
    epoch: u32,
}

#[derive(Clone, PartialEq, Message)]
struct StoredFailure {
    #[prost(uint64, tag = "1")]
    attempt: u64,
    #[prost(message, optional, tag = "2")]
    failure: Option<pb::Failure>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredStart {
    #[prost(uint64, optional, tag = "1")]
    resumed_from: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredManifest {
    #[prost(uint64, tag = "1")]
    attempt: u64,
    #[prost(message, optional, tag = "2")]
    manifest: Option<pb::Manifest>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredCheckpoint {
    #[prost(uint64, tag = "1")]
    attempt: u64,
    #[prost(message, optional, tag = "2")]
    checkpoint: Option<pb::Checkpoint>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredResume {
    #[prost(uint64, tag = "1")]
    attempt: u64,
    #[prost(message, optional, tag = "2")]
    state: Option<pb::TrainerState>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredLog {
    #[prost(string, tag = "1")]
    worker: String,
    #[prost(message, optional, tag = "2")]
    entry: Option<pb::LogEntry>,
}

/// A message from its bytes.
///
/// # Errors
/// When the bytes are none.
pub fn decode<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M> {
    M::decode(value).map_err(|error| damaged(key, &error.to_string()))
}

/// A message from its bytes, if there are any.
///
/// # Errors
/// When the bytes are none.
pub fn decode_or_default<M: Message + Default>(key: &Key, value: Option<Vec<u8>>) -> Result<M> {
    value.map_or_else(|| Ok(M::default()), |value| decode(key.bytes(), &value))
}

pub(super) fn encode_sweep(sweep: &SweepRecord) -> Vec<u8> {
    let stop = match sweep.stop {
        None => 0,
        Some(Stop::Cancelled) => 1,
        Some(Stop::MaxFailures) => 2,
    };
    StoredSweep {
        number: sweep.number,
        document: sweep.document.clone(),
        pinned: Some(sweep.pinned.clone()),
        submitted_at: sweep.submitted_at,
        ended_at: sweep.ended_at,
        stop,
        fence: sweep.fence.0,
        retries: sweep.retries,
    }
    .encode_to_vec()
}

/// A sweep as a whole.
///
/// # Errors
/// When the bytes are none.
pub fn sweep(key: &[u8], value: &[u8]) -> Result<SweepRecord> {
    let stored: StoredSweep = decode(key, value)?;
    let stop = match stored.stop {
        0 => None,
        1 => Some(Stop::Cancelled),
        2 => Some(Stop::MaxFailures),
        _ => return Err(damaged(key, "it was stopped for an unknown reason")),
    };
    Ok(SweepRecord {
        number: stored.number,
        document: stored.document,
        pinned: stored.pinned.unwrap_or_default(),
        submitted_at: stored.submitted_at,
        ended_at: stored.ended_at,
        stop,
        fence: Attempt(stored.fence),
        retries: stored.retries,
    })
}

pub(super) fn encode_task(task: &TaskRecord) -> Vec<u8> {
    let outcome = match task.outcome {
        Outcome::Open => 0,
        Outcome::Done => 1,
        Outcome::Failed => 2,
    };
    let failure = |(attempt, failure): &(Attempt, pb::Failure)| StoredFailure {
        attempt: attempt.0,
        failure: Some(failure.clone()),
    };
    StoredTask {
        outcome,
        attempt: task.attempt.0,
        reported: task.reported,
        attempts: task.attempts,
        crashes: task.crashes,
        failures: task.failures.iter().map(failure).collect(),
        worker: task.worker.clone(),
        finished_at: task.finished_at,
        elapsed_ms: task.elapsed_ms,
        epoch: task.epoch,
    }
    .encode_to_vec()
}

/// Where a task stands.
///
/// # Errors
/// When key or bytes are none.
pub fn task(key: &[u8], value: &[u8]) -> Result<(TaskKey, TaskRecord)> {
    let task = Reader::of_sweep(key)?.task()?;
    let stored: StoredTask = decode(key, value)?;
    let outcome = match stored.outcome {
        0 => Outcome::Open,
        1 => Outcome::Done,
        2 => Outcome::Failed,
        _ => return Err(damaged(key, "its outcome is unknown")),
    };
    let failure =
        |stored: StoredFailure| (Attempt(stored.attempt), stored.failure.unwrap_or_default());
    let record = TaskRecord {
        outcome,
        attempt: Attempt(stored.attempt),
        reported: stored.reported,
        attempts: stored.attempts,
        crashes: stored.crashes,
        failures: stored.failures.into_iter().map(failure).collect(),
        worker: stored.worker,
        finished_at: stored.finished_at,
        elapsed_ms: stored.elapsed_ms,
        epoch: stored.epoch,
    };
    Ok((task, record))
}

pub(super) fn encode_started(resumed_from: Option<u64>) -> Vec<u8> {
    StoredStart { resumed_from }.encode_to_vec()
}

/// A begun attempt and where it went on from.
///
/// # Errors
/// When key or bytes are none.
pub fn started(key: &[u8], value: &[u8]) -> Result<(TaskKey, Attempt, Option<u64>)> {
    let mut reader = Reader::of_sweep(key)?;
    let (task, attempt) = (reader.task()?, Attempt(reader.u64()?));
    Ok((task, attempt, decode::<StoredStart>(key, value)?.resumed_from))
}

pub(super) fn encode_manifest(attempt: Attempt, manifest: &pb::Manifest) -> Vec<u8> {
    StoredManifest { attempt: attempt.0, manifest: Some(manifest.clone()) }.encode_to_vec()
}

/// The files of a done task.
///
/// # Errors
/// When key or bytes are none.
pub fn manifest(key: &[u8], value: &[u8]) -> Result<(TaskKey, Attempt, pb::Manifest)> {
    let task = Reader::of_sweep(key)?.task()?;
    let stored: StoredManifest = decode(key, value)?;
    Ok((task, Attempt(stored.attempt), stored.manifest.unwrap_or_default()))
}

pub(super) fn encode_checkpoint(attempt: Attempt, checkpoint: &pb::Checkpoint) -> Vec<u8> {
    StoredCheckpoint { attempt: attempt.0, checkpoint: Some(checkpoint.clone()) }.encode_to_vec()
}

/// A published checkpoint with its model.
///
/// # Errors
/// When key or bytes are none.
pub fn checkpoint(key: &[u8], value: &[u8]) -> Result<(u32, (Attempt, pb::Checkpoint))> {
    let model = Reader::of_sweep(key)?.u32()?;
    let stored: StoredCheckpoint = decode(key, value)?;
    Ok((model, (Attempt(stored.attempt), stored.checkpoint.unwrap_or_default())))
}

pub(super) fn encode_resume(attempt: Attempt, state: &pb::TrainerState) -> Vec<u8> {
    StoredResume { attempt: attempt.0, state: Some(state.clone()) }.encode_to_vec()
}

/// A trainer state with its model.
///
/// # Errors
/// When key or bytes are none.
pub fn resume(key: &[u8], value: &[u8]) -> Result<(u32, (Attempt, pb::TrainerState))> {
    let model = Reader::of_sweep(key)?.u32()?;
    let stored: StoredResume = decode(key, value)?;
    Ok((model, (Attempt(stored.attempt), stored.state.unwrap_or_default())))
}

pub(super) fn encode_log(worker: &str, entry: &pb::LogEntry) -> Vec<u8> {
    StoredLog { worker: worker.to_owned(), entry: Some(entry.clone()) }.encode_to_vec()
}

/// A log line with task, attempt and worker.
///
/// # Errors
/// When key or bytes are none.
pub fn log(key: &[u8], value: &[u8]) -> Result<(TaskKey, Attempt, String, pb::LogEntry)> {
    let mut reader = Reader::of_sweep(key)?;
    let (task, attempt) = (reader.task()?, Attempt(reader.u64()?));
    let stored: StoredLog = decode(key, value)?;
    Ok((task, attempt, stored.worker, stored.entry.unwrap_or_default()))
}

pub(super) fn encode_worker(name: &str, instance: &str) -> Vec<u8> {
    StoredWorker { name: name.to_owned(), instance: instance.to_owned() }.encode_to_vec()
}
