//! From what the lab emits to records and uploads. Main types: [`MetricBuffer`], [`TaskSink`].
//!
//! Metrics are gathered into chunks, so that a training that reports every step does not become a
//! message per step; a chunk waits at most half a second, so that results appear while the work
//! goes on. Chunks are bounded, so that no message is ever too large.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sweep_lab::{Cancelled, Card, Sink, Value};
use sweep_proto::{
    id::{Attempt, ProtocolError, TaskKey, artifact_key},
    pb::{self, record::Body},
};
use sweep_source::Access;
use tokio::runtime::Handle;

use crate::{
    artifacts::{ArtifactStore, StoreError},
    leases::HeldLease,
    readings::Readings,
    session::Session,
    spool::SpoolError,
};

/// How long a metric may wait for company.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Values per chunk: 64 KiB of data.
const CHUNK_VALUES: usize = 8192;

/// Why a result could not be handed on.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The spool did not take it.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The object store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The coordinator sent a task key that makes no sense.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl DeliverError {
    /// What the scheduler is told.
    pub fn failure(&self) -> pb::Failure {
        match self {
            Self::Spool(error) => crate::failure::of_spool(error),
            Self::Store(error) => crate::failure::of_store(error),
            Self::Protocol(error) => sweep_proto::id::failure(
                sweep_proto::id::FailureClass::Permanent,
                error.to_string(),
            ),
        }
    }
}

/// One task of a lease: where its results go.
#[derive(Debug, Clone)]
pub struct Task {
    /// Wire form of the key.
    pub key: pb::TaskKey,
    sweep: String,
    parsed: TaskKey,
    lease: Arc<HeldLease>,
    session: Arc<Session>,
    store: ArtifactStore,
    runtime: Handle,
}

/// What the tasks of a lane have in common.
#[derive(Debug, Clone)]
pub struct Outlet {
    /// Shared state of the process.
    pub session: Arc<Session>,
    /// Artifacts.
    pub store: ArtifactStore,
    /// Checkpoints that this system did not train.
    pub access: Arc<Access>,
    /// Memory that weights may take, if that is not for the machine to say.
    pub memory_bytes: Option<u64>,
    /// For uploads from the lane's thread.
    pub runtime: Handle,
}

impl Outlet {
    /// The task `key` of `lease`.
    ///
    /// # Errors
    /// When the key is malformed.
    pub fn task(&self, lease: &Arc<HeldLease>, key: &pb::TaskKey) -> Result<Task, ProtocolError> {
        let (sweep, parsed) = TaskKey::from_pb(key)?;
        Ok(Task {
            key: key.clone(),
            sweep,
            parsed,
            lease: Arc::clone(lease),
            session: Arc::clone(&self.session),
            store: self.store.clone(),
            runtime: self.runtime.clone(),
        })
    }
}

impl Task {
    /// The lease that the task belongs to.
    pub fn lease(&self) -> &HeldLease {
        &self.lease
    }

    /// Spools a record; waits while the spool is full. Returns its place in the spool.
    ///
    /// # Errors
    /// When the spool stays full.
    pub fn record(&self, body: Body) -> Result<u64, DeliverError> {
        Ok(self.session.spool.append(&self.lease.record(&self.key, body))?)
    }

    /// Spools a line for `sweep logs`.
    ///
    /// # Errors
    /// When the spool stays full.
    pub fn log(&self, level: &str, text: impl Into<String>) -> Result<(), DeliverError> {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let time = since_epoch.map_or(0, |elapsed| elapsed.as_millis() as u64);
        self.record(Body::Log(pb::LogEntry { time, level: level.to_owned(), text: text.into() }))?;
        Ok(())
    }

    /// Spools the end of the task. Never refused.
    pub fn end(&self, body: Body) {
        if let Body::Failed(failure) = &body
            && failure.class() == pb::FailureClass::Poisoned
        {
            self.session.device_broke();
        }
        self.session.spool.append_last(&self.lease.record(&self.key, body));
    }

    /// Uploads a file of this task; blocks the lane, not the process.
    ///
    /// # Errors
    /// When the object store keeps failing.
    pub fn upload(&self, name: &str, bytes: Bytes) -> Result<pb::Blob, DeliverError> {
        let key = artifact_key(&self.sweep, self.parsed, Attempt(self.lease.attempt), name);
        let file = name.rsplit('/').next().unwrap_or(name);
        Ok(self.runtime.block_on(self.store.put(&key, file, bytes))?)
    }
}

/// Metrics of one task on their way into chunks.
#[derive(Debug)]
pub struct MetricBuffer {
    /// `experiment.` or `recipe.`
    prefix: String,
    card: &'static Card,
    /// How the checkpoints were read that the values are about.
    readings: Readings,
    chunks: BTreeMap<String, pb::MetricChunk>,
    flushed: Instant,
}

impl MetricBuffer {
    /// A buffer for the metrics of `card`, about checkpoints with these readings.
    pub fn new(card: &'static Card, readings: Readings) -> Self {
        let prefix = format!("{}.", card.name);
        Self { prefix, card, readings, chunks: BTreeMap::new(), flushed: Instant::now() }
    }

    /// Adds a value, and passes on what is full or has waited long enough.
    ///
    /// # Errors
    /// When the spool stays full.
    pub fn add(
        &mut self,
        task: &Task,
        name: &str,
        step: u64,
        value: Value,
    ) -> Result<(), DeliverError> {
        let axes = self.axes(name, &value);
        let held = self.chunks.get(name);
        let differs = held.is_some_and(|chunk| chunk.axes != axes);
        let full = held.is_some_and(|chunk| chunk.values.len() + value.data.len() > CHUNK_VALUES);
        if (differs || full)
            && let Some(chunk) = self.chunks.remove(name)
        {
            task.record(Body::Metrics(chunk))?;
        }
        let chunk = self.chunks.entry(name.to_owned()).or_insert_with(|| pb::MetricChunk {
            metric: format!("{}{name}", self.prefix),
            unit: self.card.metric(name).map_or("", |metric| metric.unit.name()).to_owned(),
            axes,
            steps: Vec::new(),
            values: Vec::new(),
            reading: self.readings.to_pb(),
        });
        chunk.steps.push(step);
        chunk.values.extend(value.data);
        self.flush_if_due(task)
    }

    /// Passes on everything that has waited long enough.
    ///
    /// # Errors
    /// When the spool stays full.
    pub fn flush_if_due(&mut self, task: &Task) -> Result<(), DeliverError> {
        if self.flushed.elapsed() >= FLUSH_INTERVAL { self.flush(task) } else { Ok(()) }
    }

    /// Passes on everything.
    ///
    /// # Errors
    /// When the spool stays full.
    pub fn flush(&mut self, task: &Task) -> Result<(), DeliverError> {
        self.flushed = Instant::now();
        for chunk in std::mem::take(&mut self.chunks).into_values() {
            task.record(Body::Metrics(chunk))?;
        }
        Ok(())
    }

    fn axes(&self, name: &str, value: &Value) -> Vec<pb::Axis> {
        let declared = self.card.metric(name).map_or(&[][..], |metric| metric.axes);
        let axis = |(index, axis): (usize, &sweep_lab::Axis)| pb::Axis {
            name: axis.name().to_owned(),
            size: value.shape.get(index).map_or(0, |size| *size as u32),
            labels: value.labels.get(index).cloned().flatten().unwrap_or_default(),
        };
        declared.iter().enumerate().map(axis).collect()
    }
}

/// The lab's sink for one analysis or trajectory task.
#[derive(Debug)]
pub struct TaskSink {
    task: Task,
    metrics: MetricBuffer,
    artifacts: Vec<pb::Blob>,
    begun: Instant,
    /// The first thing that could not be delivered; it decides the failure class.
    problem: Option<pb::Failure>,
}

impl TaskSink {
    /// Announces the task (whatever an earlier attempt left is void) and takes its results.
    ///
    /// # Errors
    /// When the spool stays full.
    pub fn start(
        task: Task,
        card: &'static Card,
        readings: Readings,
    ) -> Result<Self, DeliverError> {
        task.record(Body::Started(pb::Started { resumed_from: None }))?;
        let (metrics, begun) = (MetricBuffer::new(card, readings), Instant::now());
        Ok(Self { task, metrics, artifacts: Vec::new(), begun, problem: None })
    }

    /// Ends the task: done with a manifest, or failed.
    pub fn finish(mut self, outcome: Result<(), sweep_lab::Error>, provenance: &Provenance) {
        let flushed = self.metrics.flush(&self.task).map_err(|error| error.failure());
        let failure = match (self.problem.take(), outcome, flushed) {
            (Some(failure), _, _) | (None, Ok(()), Err(failure)) => Some(failure),
            (None, Err(error), _) => Some(crate::failure::of_lab(&error)),
            (None, Ok(()), Ok(())) => None,
        };
        self.task.end(match failure {
            Some(failure) => Body::Failed(failure),
            None => Body::Done(pb::Manifest {
                artifacts: self.artifacts,
                provenance: provenance.clone().into_iter().collect(),
                elapsed_ms: self.begun.elapsed().as_millis() as u64,
            }),
        });
    }

    fn note(&mut self, what: &str, error: DeliverError) -> sweep_lab::Error {
        self.problem.get_or_insert_with(|| error.failure());
        sweep_lab::Error::Sink { what: what.to_owned(), source: Box::new(error) }
    }
}

/// What travels with a result: device, versions, hashes.
pub type Provenance = BTreeMap<String, String>;

impl Sink for TaskSink {
    fn metric(&mut self, name: &str, step: u64, value: Value) -> sweep_lab::Result<()> {
        let added = self.metrics.add(&self.task, name, step, value);
        added.map_err(|error| self.note(name, error))
    }

    fn artifact(&mut self, name: &str, bytes: Vec<u8>) -> sweep_lab::Result<()> {
        match self.task.upload(name, bytes.into()) {
            Ok(blob) => {
                self.artifacts.push(blob);
                Ok(())
            }
            Err(error) => Err(self.note(name, error)),
        }
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        self.task.lease().set_progress(done, total);
        if self.task.lease().is_revoked() { Err(Cancelled) } else { Ok(()) }
    }
}
