//! A training lease: some seeds of one recipe train together; metrics stream, checkpoints and trainer
//! states are uploaded beside the training and published in order.
//!
//! Order is the point: a trainer state is recorded after every metric up to its step, so that an
//! attempt that goes on from it finds nothing missing before it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use bytes::Bytes;
use sweep_lab::{AnyRecipe, Base, CheckpointPlan, SeedOutcome, Signal, TrainSink, Value};
use sweep_lens::Device;
use sweep_proto::{
    id::{FailureClass, failure},
    pb::{self, record::Body},
};
use sweep_source::Location;

use crate::{
    catalog,
    deliver::{DeliverError, MetricBuffer, Outlet, Provenance, Task},
    failure::{of_lab, of_source},
    leases::HeldLease,
    loading::Loaded,
    readings::Readings,
};

/// Files that may wait for the object store before the training stands still.
const UPLOADS_WAITING: usize = 4;

/// Runs a training lease to its end; every seed ends with a record.
pub fn run(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    work: &pb::TrainWork,
    device: Device,
    provenance: &Provenance,
) {
    let keys = work.seeds.iter().filter_map(|seed| seed.task.as_ref());
    let tasks: Result<Vec<Task>, _> = keys.map(|key| outlet.task(lease, key)).collect();
    let tasks = match tasks {
        Ok(tasks) if tasks.len() == work.seeds.len() => tasks,
        Ok(_) | Err(_) => {
            tracing::error!(attempt = lease.attempt, "lease with a malformed task, dropped");
            lease.revoke();
            return;
        }
    };
    let begun = Instant::now();
    let ended = match train(outlet, &tasks, work, device, provenance, begun) {
        Ok(ended) => ended,
        Err(problem) => vec![Some(problem); tasks.len()],
    };
    for (task, failure) in tasks.iter().zip(ended) {
        // Seeds that ended inside the training have said so already.
        if let Some(failure) = failure {
            task.end(Body::Failed(failure));
        }
    }
}

/// Trains; returns for each seed the failure that is still to be reported.
fn train(
    outlet: &Outlet,
    tasks: &[Task],
    work: &pb::TrainWork,
    device: Device,
    provenance: &Provenance,
    begun: Instant,
) -> Result<Vec<Option<pb::Failure>>, pb::Failure> {
    let permanent = |message: String| failure(FailureClass::Permanent, message);
    let recipe = catalog::recipe(&work.recipe)
        .ok_or_else(|| permanent(format!("this worker has no recipe `{}`", work.recipe)))?;
    let params = serde_json::from_str(&work.params)
        .map_err(|error| permanent(format!("malformed parameters: {error}")))?;
    let mut states = Vec::new();
    for (task, seed) in tasks.iter().zip(&work.seeds) {
        let resume = seed.resume.as_ref();
        let started = pb::Started { resumed_from: resume.map(|state| state.step) };
        task.record(Body::Started(started)).map_err(|error| error.failure())?;
        let Some(state) = resume else {
            states.push(None);
            continue;
        };
        let blob =
            state.file.as_ref().ok_or_else(|| permanent("trainer state without file".into()))?;
        let bytes = outlet.runtime.block_on(outlet.store.get(blob));
        states.push(Some(bytes.map_err(|error| crate::failure::of_store(&error))?.to_vec()));
        let text = format!("{} goes on from step {}", seed.model, state.step);
        task.log("info", text).map_err(|error| error.failure())?;
    }
    let seeds: Vec<u64> = work.seeds.iter().map(|seed| seed.seed).collect();
    let base = base(outlet, recipe, &params, device)?;
    let base = base.as_ref().map(|loaded| Base {
        config: &loaded.checkpoint.config,
        weights: &loaded.checkpoint.weights,
        text: loaded.text(),
        record: &loaded.checkpoint.extra,
    });
    let problem = Mutex::new(None);
    let outcome = thread::scope(|scope| {
        let (uploads, waiting) = sync_channel::<Upload>(UPLOADS_WAITING);
        let problem = &problem;
        scope.spawn(move || {
            let mut states = vec![SavedStates::default(); tasks.len()];
            for upload in waiting {
                if lock(problem).is_none()
                    && let Err(error) = publish(outlet, tasks, upload, &mut states)
                {
                    *lock(problem) = Some(error.failure());
                }
            }
        });
        let mut sink = Seeds::new(outlet, tasks, recipe, uploads, problem);
        let plan = CheckpointPlan::at(work.publish_steps.iter().copied());
        let outcome =
            sweep_lab::train_from(base, recipe, &params, &seeds, &states, &plan, device, &mut sink);
        let flushed = sink.flush();
        // Closes the queue; the scope waits for the last upload.
        drop(sink);
        flushed.map_err(|error| error.failure()).and(Ok(outcome))
    })?;
    if let Some(problem) = lock(&problem).take() {
        return Err(problem);
    }
    let outcomes = outcome.map_err(|error| of_lab(&error))?;
    let mut left = Vec::new();
    for (task, outcome) in tasks.iter().zip(outcomes) {
        left.push(match outcome {
            SeedOutcome::Finished { .. } => {
                task.end(Body::Done(pb::Manifest {
                    artifacts: Vec::new(),
                    provenance: provenance.clone().into_iter().collect(),
                    elapsed_ms: begun.elapsed().as_millis() as u64,
                }));
                None
            }
            SeedOutcome::Failed { .. } => None,
            SeedOutcome::Drained { step } => Some(failure(
                FailureClass::Preempted,
                format!("the worker was told to leave at step {step}"),
            )),
        });
    }
    Ok(left)
}

/// The checkpoint that the training starts from, if its parameters name one.
fn base(
    outlet: &Outlet,
    recipe: &dyn AnyRecipe,
    params: &serde_json::Value,
    device: Device,
) -> Result<Option<Loaded>, pb::Failure> {
    let place = recipe.interventions(params).map_err(|error| of_lab(&error))?.init_from;
    if place.is_empty() {
        return Ok(None);
    }
    let location = Location::from_path(&place).map_err(|error| of_source(&error))?.to_string();
    let imported = pb::Imported { location, ..pb::Imported::default() };
    let wanted = pb::Checkpoint { imported: Some(imported), ..pb::Checkpoint::default() };
    Loaded::new(outlet, &wanted, device).map(Some)
}

/// Something on its way to the coordinator that must keep its place behind the files before it.
struct Upload {
    seed: usize,
    step: u64,
    kind: UploadKind,
}

enum UploadKind {
    Checkpoint(Bytes),
    TrainerState(Bytes),
    /// The seed has failed.
    Failed(pb::Failure),
}

fn publish(
    outlet: &Outlet,
    tasks: &[Task],
    upload: Upload,
    states: &mut [SavedStates],
) -> Result<(), DeliverError> {
    let Upload { seed, step, kind } = upload;
    let task = &tasks[seed];
    match kind {
        UploadKind::Checkpoint(bytes) => {
            let weights_hash = sweep_lens::checkpoint::decode("model.safetensors", &bytes)
                .and_then(|checkpoint| sweep_lens::checkpoint::weights_hash(&checkpoint.weights))
                .unwrap_or_default();
            let file = task.upload(&format!("step{step}/model.safetensors"), bytes.clone())?;
            outlet.session.cache.put(&file.sha256, &bytes);
            task.record(Body::Checkpoint(pb::Checkpoint {
                step,
                file: Some(file),
                weights_hash,
                imported: None,
            }))?;
        }
        UploadKind::TrainerState(bytes) => {
            states[seed].remove_superseded(outlet, task);
            let file = task.upload(&format!("step{step}/trainer.safetensors"), bytes)?;
            let key = file.key.clone();
            let state = pb::TrainerState { step, file: Some(file) };
            states[seed].recorded.push((task.record(Body::TrainerState(state))?, key));
        }
        UploadKind::Failed(failure) => task.end(Body::Failed(failure)),
    }
    Ok(())
}

/// Trainer states of one seed that this attempt has stored, oldest first: place in the spool, key.
#[derive(Debug, Clone, Default)]
struct SavedStates {
    recorded: Vec<(u64, String)>,
}

impl SavedStates {
    /// Removes those before the newest that is durable at the coordinator: nobody will ask for them.
    fn remove_superseded(&mut self, outlet: &Outlet, task: &Task) {
        let spool = &outlet.session.spool;
        let durable = self.recorded.iter().rposition(|(place, _)| spool.is_settled(*place));
        // A record is also settled when the lease was given away; then the states before it are
        // what the next holder goes on from.
        if task.lease().is_revoked() {
            return;
        }
        for (_, key) in self.recorded.drain(..durable.unwrap_or(0)) {
            outlet.runtime.block_on(outlet.store.remove(&key));
        }
    }
}

/// The lab's sink for the seeds of one lease.
struct Seeds<'a> {
    outlet: &'a Outlet,
    tasks: &'a [Task],
    metrics: Vec<MetricBuffer>,
    uploads: SyncSender<Upload>,
    /// What went wrong outside the training; it ends the training.
    problem: &'a Mutex<Option<pb::Failure>>,
}

impl<'a> Seeds<'a> {
    fn new(
        outlet: &'a Outlet,
        tasks: &'a [Task],
        recipe: &dyn AnyRecipe,
        uploads: SyncSender<Upload>,
        problem: &'a Mutex<Option<pb::Failure>>,
    ) -> Self {
        let metrics =
            tasks.iter().map(|_| MetricBuffer::new(recipe.card(), Readings::default())).collect();
        Self { outlet, tasks, metrics, uploads, problem }
    }

    fn flush(&mut self) -> Result<(), DeliverError> {
        self.tasks.iter().zip(&mut self.metrics).try_for_each(|(task, buffer)| buffer.flush(task))
    }

    fn note(&self, what: &str, error: DeliverError) -> sweep_lab::Error {
        lock(self.problem).get_or_insert_with(|| error.failure());
        sweep_lab::Error::Sink { what: what.to_owned(), source: Box::new(error) }
    }

    fn upload(&mut self, upload: Upload) -> sweep_lab::Result<()> {
        // Metrics first: what the file stands for includes them.
        let flushed = self.metrics[upload.seed].flush(&self.tasks[upload.seed]);
        flushed.map_err(|error| self.note("metrics", error))?;
        // The uploader lives as long as this sender; it takes files even after a failure.
        let _ = self.uploads.send(upload);
        Ok(())
    }
}

impl TrainSink for Seeds<'_> {
    fn metric(
        &mut self,
        seed: usize,
        name: &str,
        step: u64,
        value: Value,
    ) -> sweep_lab::Result<()> {
        let added = self.metrics[seed].add(&self.tasks[seed], name, step, value);
        added.map_err(|error| self.note(name, error))
    }

    fn checkpoint(&mut self, seed: usize, step: u64, file: Vec<u8>) -> sweep_lab::Result<()> {
        self.upload(Upload { seed, step, kind: UploadKind::Checkpoint(file.into()) })
    }

    fn trainer_state(&mut self, seed: usize, step: u64, file: Vec<u8>) -> sweep_lab::Result<()> {
        self.upload(Upload { seed, step, kind: UploadKind::TrainerState(file.into()) })
    }

    fn failed(&mut self, seed: usize, step: u64, error: sweep_lab::Error) -> sweep_lab::Result<()> {
        self.upload(Upload { seed, step, kind: UploadKind::Failed(of_lab(&error)) })
    }

    fn signal(&mut self, step: u64, total: u64) -> Signal {
        let Some(task) = self.tasks.first() else { return Signal::Cancel };
        task.lease().set_progress(step, total);
        for (task, buffer) in self.tasks.iter().zip(&mut self.metrics) {
            if let Err(error) = buffer.flush_if_due(task) {
                lock(self.problem).get_or_insert_with(|| error.failure());
            }
        }
        if task.lease().is_revoked() || lock(self.problem).is_some() {
            Signal::Cancel
        } else if self.outlet.session.is_draining() {
            Signal::Drain
        } else {
            Signal::Continue
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
