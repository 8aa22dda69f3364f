//! An analysis lease: one checkpoint is loaded once and every experiment of the bundle runs on it.

use std::sync::Arc;

use sweep_lab::{AnalyseJob, Inputs, Subject};
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
    // A reference that cannot be read fails only the experiments that compare with it.
    let (wants_init, wants_previous) =
        (jobs.iter().any(|j| j.init), jobs.iter().any(|j| j.previous));
    let init = reference(outlet, work.init.as_ref().filter(|_| wants_init), device);
    let previous = reference(outlet, work.previous.as_ref().filter(|_| wants_previous), device);
    let mut provenance = provenance.clone();
    let checkpoint = work.checkpoint.clone().unwrap_or_default();
    provenance.insert("weights_hash".to_owned(), checkpoint.weights_hash);
    let (first, before) = (init.as_ref().ok(), previous.as_ref().ok());
    let subject = Subject {
        checkpoint: &loaded.checkpoint,
        model: &loaded.model,
        init: first.and_then(|init| init.as_ref()).map(|init| &init.weights),
        previous: before
            .and_then(|previous| previous.as_ref())
            .map(|previous| (previous.step, &previous.weights)),
        device,
    };
    jobs.retain(|job| {
        let problem = init.as_ref().err().filter(|_| job.init);
        let problem = problem.or_else(|| previous.as_ref().err().filter(|_| job.previous));
        if let Some(failure) = problem {
            job.task.end(Body::Failed(failure.clone()));
        }
        problem.is_none()
    });
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
    /// Whether it compares with the first checkpoint, and with the one before.
    init: bool,
    previous: bool,
}

impl Job {
    fn new(task: &Task, wanted: &pb::AnalyseTask) -> Result<Self, pb::Failure> {
        let permanent = |message: String| failure(FailureClass::Permanent, message);
        let experiment = crate::catalog::experiment(&wanted.experiment).ok_or_else(|| {
            permanent(format!("this worker has no experiment `{}`", wanted.experiment))
        })?;
        let params = serde_json::from_str(&wanted.params)
            .map_err(|error| permanent(format!("malformed parameters: {error}")))?;
        let (init, previous) = match experiment.inputs(&params).map_err(|error| of_lab(&error))? {
            Inputs::Checkpoint { init, previous } => (init, previous),
            Inputs::Checkpoints | Inputs::Series(_) => (false, false),
        };
        Ok(Self { task: task.clone(), experiment, params, init, previous })
    }
}

/// The checkpoint of the bundle, as a model.
struct Loaded {
    checkpoint: Checkpoint,
    model: Transformer,
}

impl Loaded {
    fn new(outlet: &Outlet, work: &pb::AnalyseWork, device: Device) -> Result<Self, pb::Failure> {
        let missing = || failure(FailureClass::Permanent, "analysis without a checkpoint");
        let wanted = work.checkpoint.as_ref().ok_or_else(missing)?;
        let checkpoint = load(outlet, wanted, device)?;
        let weights = checkpoint.weights.shallow_clone();
        let model = Transformer::new(checkpoint.config.clone(), weights);
        let model = model.map_err(|error| of_lab(&error.into()))?;
        Ok(Self { checkpoint, model })
    }
}

fn reference(
    outlet: &Outlet,
    wanted: Option<&pb::Checkpoint>,
    device: Device,
) -> Result<Option<Checkpoint>, pb::Failure> {
    wanted.map(|wanted| load(outlet, wanted, device)).transpose()
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
    let bytes = if let Some(bytes) = outlet.session.cache.read(&blob.sha256) {
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
