//! An analysis lease: one checkpoint is loaded once and every experiment of the bundle runs on it.

use std::sync::Arc;

use sweep_lab::{AnalyseJob, Inputs, Subject};
use sweep_lens::Device;
use sweep_proto::{
    id::{FailureClass, failure},
    pb::{self, record::Body},
};

use crate::{
    deliver::{Outlet, Provenance, Task, TaskSink},
    failure::of_lab,
    leases::HeldLease,
    loading::Loaded,
};

/// Runs an analysis lease to its end; every task ends with a record.
pub fn run(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    work: &pb::AnalyseWork,
    device: Device,
    provenance: &Provenance,
) {
    let Some(mut jobs) = jobs(outlet, lease, &work.tasks) else { return };
    let wanted = work.checkpoint.clone().unwrap_or_default();
    let loaded = Loaded::as_is(outlet, &wanted, device)
        .and_then(|loaded| loaded.model().map(|model| (loaded, model)));
    let (loaded, model) = match loaded {
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
    loaded.add_to(&mut provenance);
    let first = init.as_ref().ok().and_then(Option::as_ref);
    let before = previous.as_ref().ok().and_then(Option::as_ref);
    let subject = Subject {
        init: first.map(|init| &init.checkpoint.weights),
        previous: before.map(|before| (before.checkpoint.step, &before.checkpoint.weights)),
        previous_stored: before.map(Loaded::stored),
        ..loaded.subject(&model, device)
    };
    let defects = [&init, &previous].map(|reference| {
        let loaded = reference.as_ref().ok().and_then(Option::as_ref);
        loaded
            .and_then(|loaded| Some(not_of_this(loaded.checkpoint.step, loaded.defect()?.clone())))
    });
    jobs.retain(|job| {
        let problem = init.as_ref().err().filter(|_| job.init);
        let problem = problem.or_else(|| previous.as_ref().err().filter(|_| job.previous));
        let [of_init, of_previous] = &defects;
        let defect = loaded.defect().or_else(|| of_init.as_ref().filter(|_| job.init));
        let defect = defect.or_else(|| of_previous.as_ref().filter(|_| job.previous));
        let is_finite_needed = job.experiment.card().requires.finite;
        let problem = problem.or_else(|| defect.filter(|_| is_finite_needed));
        if let Some(failure) = problem {
            job.task.end(Body::Failed(failure.clone()));
        }
        problem.is_none()
    });
    let mut started: Vec<(Job, TaskSink)> = Vec::new();
    for job in jobs {
        match TaskSink::start(job.task.clone(), job.experiment.card(), loaded.readings()) {
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

/// The experiments of a lease; those that cannot run have ended already. None when the lease itself
/// makes no sense.
pub(crate) fn jobs(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    tasks: &[pb::AnalyseTask],
) -> Option<Vec<Job>> {
    let mut jobs = Vec::new();
    for wanted in tasks {
        let Some(Ok(task)) = wanted.task.as_ref().map(|key| outlet.task(lease, key)) else {
            tracing::error!(attempt = lease.attempt, "lease with a malformed task, dropped");
            lease.revoke();
            return None;
        };
        match Job::new(&task, wanted) {
            Ok(job) => jobs.push(job),
            Err(failure) => task.end(Body::Failed(failure)),
        }
    }
    Some(jobs)
}

/// One experiment of a lease.
pub(crate) struct Job {
    pub(crate) task: Task,
    pub(crate) experiment: &'static dyn sweep_lab::AnyExperiment,
    pub(crate) params: serde_json::Value,
    /// Whether it compares with the first checkpoint, and with the one before.
    init: bool,
    previous: bool,
}

impl Job {
    pub(crate) fn new(task: &Task, wanted: &pb::AnalyseTask) -> Result<Self, pb::Failure> {
        let permanent = |message: String| failure(FailureClass::Permanent, message);
        let experiment = crate::catalog::experiment(&wanted.experiment).ok_or_else(|| {
            permanent(format!("this worker has no experiment `{}`", wanted.experiment))
        })?;
        let params = serde_json::from_str(&wanted.params)
            .map_err(|error| permanent(format!("malformed parameters: {error}")))?;
        let (init, previous) = match experiment.inputs(&params).map_err(|error| of_lab(&error))? {
            Inputs::Checkpoint { init, previous } => (init, previous),
            Inputs::Couple | Inputs::Checkpoints | Inputs::Series(_) => (false, false),
        };
        Ok(Self { task: task.clone(), experiment, params, init, previous })
    }
}

fn reference(
    outlet: &Outlet,
    wanted: Option<&pb::Checkpoint>,
    device: Device,
) -> Result<Option<Loaded>, pb::Failure> {
    let Some(wanted) = wanted else { return Ok(None) };
    let loaded = Loaded::as_is(outlet, wanted, device);
    loaded.map(Some).map_err(|failure| not_of_this(wanted.step, failure))
}

/// The checkpoint that is analysed may be in order: the message has to say whose fault it is.
fn not_of_this(step: u64, failure: pb::Failure) -> pb::Failure {
    let message = format!("step {step}, to compare with: {}", failure.message);
    pb::Failure { message, ..failure }
}
