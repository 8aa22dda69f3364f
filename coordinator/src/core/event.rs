//! Everything that can happen to the core and everything it may ask for.
//!
//! [`Event`]s come in already validated: text is parsed, keys are decoded, metric values are
//! encoded. [`Effect`]s are carried out by the actor: it makes the writes of a group durable
//! before it sends the replies.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sweep_proto::{
    id::{Attempt, FailureClass, TaskKey},
    pb,
};

use super::plan::Plan;

/// Names the caller that waits for an answer.
pub type RequestId = u64;

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A checked sweep was handed in.
    Submit {
        /// Who waits.
        request: RequestId,
        /// The sweep.
        plan: Arc<Plan>,
    },
    /// A sweep shall stop.
    Cancel {
        /// Who waits.
        request: RequestId,
        /// Id, unique prefix or `last`.
        sweep: String,
    },
    /// What failed, was skipped or was cancelled shall run again.
    Retry {
        /// Who waits.
        request: RequestId,
        /// Id, unique prefix or `last`.
        sweep: String,
    },
    /// A worker process introduces itself.
    Register {
        /// Who waits.
        request: RequestId,
        /// What it says.
        hello: Hello,
    },
    /// A worker wants work.
    Acquire {
        /// Who waits.
        request: RequestId,
        /// What it wants.
        wish: Wish,
        /// How long it waits.
        wait: Duration,
    },
    /// A worker is alive.
    Heartbeat {
        /// Who waits.
        request: RequestId,
        /// The worker.
        worker: String,
        /// Leases that it believes to hold.
        held: Vec<Held>,
        /// Bytes of results that it could not deliver yet.
        spool_bytes: u64,
        /// Whether it takes no more work.
        draining: bool,
    },
    /// Results, in the order in which they were produced; malformed ones carry the reason.
    Report {
        /// Who waits.
        request: RequestId,
        /// The worker.
        worker: String,
        /// The records.
        records: Vec<Result<Record, String>>,
    },
    /// A worker goes and gives back what it holds.
    Leave {
        /// Who waits.
        request: RequestId,
        /// The worker.
        worker: String,
    },
    /// The worker hung up before it got this lease.
    Undelivered {
        /// The lease.
        attempt: Attempt,
    },
    /// Time has passed.
    Tick,
}

/// What a worker says about itself.
#[derive(Debug, Clone, Default)]
pub struct Hello {
    /// New at each start of the process.
    pub instance: String,
    /// The same over restarts.
    pub name: String,
    /// What it can run.
    pub catalog: pb::Catalog,
    /// Device, for people.
    pub device: String,
    /// Leases that it works on at once.
    pub slots: u32,
    /// Its build, for people.
    pub code_version: String,
}

/// What a worker wants.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The worker.
    pub worker: String,
    /// Whether it takes trainings.
    pub training: bool,
    /// Hashes of the checkpoint files that it holds.
    pub resident: Arc<HashSet<String>>,
}

/// A lease that a worker believes to hold.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its token.
    pub attempt: Attempt,
    /// Its tasks, with their sweep; empty when they could not be decoded.
    pub tasks: Vec<(String, TaskKey)>,
    /// Work done, in the task's own unit.
    pub progress: u64,
    /// Work in all.
    pub progress_total: u64,
}

/// One result.
#[derive(Debug, Clone)]
pub struct Record {
    /// Token of the lease under which it was produced.
    pub attempt: Attempt,
    /// Never repeats with other content within an attempt.
    pub sequence: u64,
    /// Sweep of the task.
    pub sweep: String,
    /// The task.
    pub task: TaskKey,
    /// The result.
    pub body: Body,
}

/// What a record says.
#[derive(Debug, Clone)]
pub enum Body {
    /// Work began; points of earlier attempts beyond the step are void.
    Started {
        /// The step of the trainer state that it goes on from.
        resumed_from: Option<u64>,
    },
    /// Metric values.
    Metrics(Chunk),
    /// A checkpoint was uploaded.
    Checkpoint(pb::Checkpoint),
    /// A trainer state was uploaded.
    TrainerState(pb::TrainerState),
    /// A line of the task's log.
    Log(pb::LogEntry),
    /// The task is done.
    Done(pb::Manifest),
    /// The task failed.
    Failed(pb::Failure),
}

/// Metric values, checked and encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// `experiment.metric`.
    pub metric: String,
    /// Unit.
    pub unit: String,
    /// Axes of each value.
    pub axes: Vec<pb::Axis>,
    /// Lowest step.
    pub first_step: u64,
    /// Encoded steps and values; only the store knows the form.
    pub payload: Vec<u8>,
}

/// Something that the core asks for.
#[derive(Debug)]
pub enum Effect {
    /// Keep this.
    Write(Write),
    /// Tell the caller.
    Reply(RequestId, Answer),
    /// Worth a line in the log.
    Fact(Fact),
}

/// An answer to a caller.
#[derive(Debug)]
pub enum Answer {
    /// To [`Event::Submit`].
    Submitted {
        /// The sweep's number.
        sweep: u32,
        /// False when it was there already.
        created: bool,
    },
    /// To [`Event::Cancel`] and [`Event::Retry`].
    Status(Box<pb::SweepStatus>),
    /// To [`Event::Register`]: the worker's id.
    Registered(String),
    /// To [`Event::Acquire`].
    Lease(Option<Box<pb::Lease>>),
    /// To [`Event::Heartbeat`]: leases to drop.
    Revoked(Vec<u64>),
    /// To [`Event::Report`]: one verdict per record.
    Verdicts(Vec<pb::Verdict>),
    /// To [`Event::Leave`].
    Left,
    /// No.
    Refused(Refusal),
}

/// Why the core refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing has that id.
    #[error("no sweep `{0}`")]
    NoSuchSweep(String),
    /// A prefix fits several sweeps.
    #[error("`{prefix}` fits {count} sweeps; give more of the id")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many it fits.
        count: usize,
    },
    /// Register first.
    #[error("UNKNOWN_WORKER: no worker `{0}` is registered with this coordinator")]
    UnknownWorker(String),
    /// A limit is reached.
    #[error("limit of {limit} {what} reached")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

/// What is kept of a sweep as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepRecord {
    /// Numbers rise with submission.
    pub number: u32,
    /// The sweep file as canonical JSON.
    pub document: String,
    /// What it names of the catalogue, as it was at submission.
    pub pinned: pb::Catalog,
    /// Milliseconds since the Unix epoch.
    pub submitted_at: u64,
    /// The same; 0 while it runs.
    pub ended_at: u64,
    /// Why it was stopped before its end.
    pub stop: Option<Stop>,
    /// Attempts below this one belong to the time before a cancellation.
    pub fence: Attempt,
    /// How often its failed tasks were made runnable again.
    pub retries: u32,
}

/// Why a sweep was stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Somebody asked for it.
    Cancelled,
    /// More failures than `max_failures` allows.
    MaxFailures,
}

/// What is kept of a task once an attempt at it has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRecord {
    /// Where it stands.
    pub outcome: Outcome,
    /// How often the sweep had been retried then: a later retry forgives a failure.
    pub epoch: u32,
    /// The last attempt that ended.
    pub attempt: Attempt,
    /// Whether the worker reported the end itself.
    pub reported: bool,
    /// Failures that count against `max_attempts`.
    pub attempts: u32,
    /// Losses of the worker.
    pub crashes: u32,
    /// The newest failures, newest last.
    pub failures: Vec<(Attempt, pb::Failure)>,
    /// Name of the worker of the last attempt.
    pub worker: String,
    /// Milliseconds since the Unix epoch.
    pub finished_at: u64,
    /// How long the last attempt took, as the worker says.
    pub elapsed_ms: u64,
}

/// Where a task stands after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is tried again.
    Open,
    /// It is done.
    Done,
    /// It is given up.
    Failed,
}

/// Something to keep.
#[derive(Debug, Clone)]
pub enum Write {
    /// A sweep as a whole.
    Sweep(SweepRecord),
    /// Where a task stands.
    Task {
        /// Number of the sweep.
        sweep: u32,
        /// The task.
        task: TaskKey,
        /// Where it stands.
        record: TaskRecord,
    },
    /// An attempt began to produce.
    Started {
        /// Number of the sweep.
        sweep: u32,
        /// The task.
        task: TaskKey,
        /// The attempt.
        attempt: Attempt,
        /// Where it went on from.
        resumed_from: Option<u64>,
    },
    /// What a task left behind.
    Manifest {
        /// Number of the sweep.
        sweep: u32,
        /// The task.
        task: TaskKey,
        /// The attempt that did it.
        attempt: Attempt,
        /// Its files.
        manifest: pb::Manifest,
    },
    /// A published checkpoint.
    Checkpoint {
        /// Number of the sweep.
        sweep: u32,
        /// The model.
        model: u32,
        /// The attempt that published it.
        attempt: Attempt,
        /// The checkpoint.
        checkpoint: pb::Checkpoint,
    },
    /// Where the training of a model can go on, if anywhere.
    Resume {
        /// Number of the sweep.
        sweep: u32,
        /// The model.
        model: u32,
        /// The attempt that saved it, and the state.
        state: Option<(Attempt, pb::TrainerState)>,
    },
    /// Metric values.
    Metrics {
        /// Number of the sweep.
        sweep: u32,
        /// The task.
        task: TaskKey,
        /// The attempt that produced them.
        attempt: Attempt,
        /// Their place in the attempt.
        sequence: u64,
        /// The values.
        chunk: Chunk,
    },
    /// A metric that the sweep has values of.
    MetricName {
        /// Number of the sweep.
        sweep: u32,
        /// Name, unit, axes.
        summary: pb::MetricSummary,
    },
    /// A line of a task's log.
    Log {
        /// Number of the sweep.
        sweep: u32,
        /// The task.
        task: TaskKey,
        /// The attempt.
        attempt: Attempt,
        /// Its place in the attempt.
        sequence: u64,
        /// Name of the worker.
        worker: String,
        /// The line.
        entry: pb::LogEntry,
    },
    /// The union of what workers can run.
    Catalog(pb::Catalog),
    /// A worker process that may hold leases; without an instance it is gone for sure.
    Worker {
        /// Name of the worker.
        name: String,
        /// Its process.
        instance: Option<String>,
    },
}

/// Something that an operator expects to see in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A sweep came in.
    SweepSubmitted {
        /// Its id.
        sweep: String,
        /// How many tasks it has.
        tasks: u64,
    },
    /// A sweep ended, was stopped, or goes on after a retry.
    SweepState {
        /// Its id.
        sweep: String,
        /// `running`, `done`, `failed`, `cancelled`.
        state: &'static str,
    },
    /// A worker joined.
    WorkerJoined {
        /// Its id.
        worker: String,
        /// Its name.
        name: String,
    },
    /// A worker left, or was replaced by a new process.
    WorkerGone {
        /// Its id.
        worker: String,
        /// Why.
        reason: &'static str,
    },
    /// A lease was granted.
    LeaseGranted {
        /// The token.
        attempt: Attempt,
        /// Id of the worker.
        worker: String,
        /// Id of the sweep.
        sweep: String,
        /// First task.
        task: TaskKey,
        /// How many tasks.
        tasks: usize,
    },
    /// A lease of an earlier incarnation was taken over.
    LeaseAdopted {
        /// The token.
        attempt: Attempt,
        /// Id of the worker.
        worker: String,
    },
    /// A lease ended with tasks unfinished.
    LeaseLost {
        /// The token.
        attempt: Attempt,
        /// Id of the worker.
        worker: String,
        /// Why.
        reason: &'static str,
    },
    /// A task is done.
    TaskDone {
        /// Id of the sweep.
        sweep: String,
        /// The task.
        task: TaskKey,
        /// The attempt that did it.
        attempt: Attempt,
    },
    /// A task failed.
    TaskFailed {
        /// Id of the sweep.
        sweep: String,
        /// The task.
        task: TaskKey,
        /// The attempt that failed.
        attempt: Attempt,
        /// What the scheduler does about it follows from this.
        class: FailureClass,
        /// What went wrong.
        message: String,
        /// Whether it is given up.
        is_final: bool,
    },
    /// A record was refused as malformed.
    RecordInvalid {
        /// Id of the worker.
        worker: String,
        /// What is wrong.
        problem: String,
    },
}
