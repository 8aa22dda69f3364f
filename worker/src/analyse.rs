//! An analysis lease: one checkpoint is loaded once and every experiment of the bundle runs on it.

use std::sync::Arc;

use sweep_lab::{AnalyseJob, Subject};
use sweep_lens::{Device, Transformer, checkpoint::Checkpoint};
use sweep_proto::{
    id::{FailureClass, failure},
    pb::{self, record::Body},
};

use crate::{
    artifacts::StoreError,
    deliver::{Outlet, Provenance, Task, TaskSink},
    failure::{of_lab, of_store},
    leases::HeldLease,
};

/// Runs an analysis lease to its end; every task ends with a record.
pub fn run(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    work: &pb::AnalyseWork,
    device: Device,
    provenance: &Provenance,
) {
    let mut jobs = Vec::new();
    for wanted in &work.tasks {
        let Some(Ok(task)) = wanted.task.as_ref().map(|key| outlet.task(lease, key)) else {
            tracing::error!(attempt = lease.attempt, "lease with a malformed task, dropped");
            lease.revoke();
            return;
        };
        match Job::new(&task, wanted) {
            Ok(job) => jobs.push(job),
            Err(failure) => task.end(Body::Failed(failure)),
        }
    }
    let loaded = match Loaded::new(outlet, work, device) {
        Ok(loaded) => loaded,
        Err(failure) => {
            for job in jobs {
                job.task.end(Body::Failed(failure.clone()));
            }
            return;
        }
    };
    let mut provenance = provenance.clone();
    let checkpoint = work.checkpoint.clone().unwrap_or_default();
    provenance.insert("weights_hash".to_owned(), checkpoint.weights_hash);
    let subject = Subject {
        checkpoint: &loaded.checkpoint,
        model: &loaded.model,
        init: loaded.init.as_ref().map(|init| &init.weights),
        previous: loaded.previous.as_ref().map(|previous| (previous.step, &previous.weights)),
        device,
    };
    let mut started: Vec<(Job, TaskSink)> = Vec::new();
    for job in jobs {
        match TaskSink::start(job.task.clone(), job.experiment.card()) {
            Ok(sink) => started.push((job, sink)),
            Err(error) => job.task.end(Body::Failed(error.failure())),
        }
    }
    let mut lab_jobs: Vec<AnalyseJob<'_>> = started
        .iter_mut()
        .map(|(job, sink)| AnalyseJob { experiment: job.experiment, params: &job.params, sink })
        .collect();
    let outcomes = sweep_lab::analyse(&mut lab_jobs, &subject);
    for ((_, sink), outcome) in started.into_iter().zip(outcomes) {
        sink.finish(outcome, &provenance);
    }
}

struct Job {
    task: Task,
    experiment: &'static dyn sweep_lab::AnyExperiment,
    params: serde_json::Value,
}

impl Job {
    fn new(task: &Task, wanted: &pb::AnalyseTask) -> Result<Self, pb::Failure> {
        let permanent = |message: String| failure(FailureClass::Permanent, message);
        let experiment = crate::catalog::experiment(&wanted.experiment).ok_or_else(|| {
            permanent(format!("this worker has no experiment `{}`", wanted.experiment))
        })?;
        let params = serde_json::from_str(&wanted.params)
            .map_err(|error| permanent(format!("malformed parameters: {error}")))?;
        Ok(Self { task: task.clone(), experiment, params })
    }
}

/// The checkpoint of the bundle and those that it is compared with.
struct Loaded {
    checkpoint: Checkpoint,
    model: Transformer,
    init: Option<Checkpoint>,
    previous: Option<Checkpoint>,
}

impl Loaded {
    fn new(outlet: &Outlet, work: &pb::AnalyseWork, device: Device) -> Result<Self, pb::Failure> {
        let missing = || failure(FailureClass::Permanent, "analysis without a checkpoint");
        let wanted = work.checkpoint.as_ref().ok_or_else(missing)?;
        let checkpoint = load(outlet, wanted, device)?;
        let other = |wanted: &Option<pb::Checkpoint>| {
            wanted.as_ref().map(|wanted| load(outlet, wanted, device)).transpose()
        };
        let (init, previous) = (other(&work.init)?, other(&work.previous)?);
        let weights = checkpoint.weights.shallow_clone();
        let model = Transformer::new(checkpoint.config.clone(), weights);
        let model = model.map_err(|error| of_lab(&error.into()))?;
        Ok(Self { checkpoint, model, init, previous })
    }
}

/// A checkpoint from the cache, or else from the object store, on `device`.
///
/// # Errors
/// The failure to report: missing, corrupt (file and tensor named), or a store that keeps failing.
pub fn load(
    outlet: &Outlet,
    wanted: &pb::Checkpoint,
    device: Device,
) -> Result<Checkpoint, pb::Failure> {
    let missing = || StoreError::Missing { key: format!("checkpoint of step {}", wanted.step) };
    let blob = wanted.file.as_ref().ok_or_else(|| of_store(&missing()))?;
    let bytes = if let Some(bytes) = outlet.session.cache.get(&blob.sha256) {
        bytes
    } else {
        let fetched = outlet.runtime.block_on(outlet.store.get(blob));
        let bytes = fetched.map_err(|error| of_store(&error))?.to_vec();
        outlet.session.cache.put(&blob.sha256, &bytes);
        bytes
    };
    let checkpoint = sweep_lens::checkpoint::decode(&blob.key, &bytes);
    let mut checkpoint = checkpoint.map_err(|error| of_lab(&error.into()))?;
    checkpoint.weights = checkpoint.weights.to_device(device);
    Ok(checkpoint)
}
