//! Messages of workers as domain types, checked once, where they arrive. Nothing here panics,
//! whatever a peer sends: a malformed record becomes a reason.

use sweep_proto::{
    id::{Attempt, TaskKey},
    pb,
};

use crate::{
    core::event::{Body, Held, Hello, Record},
    error::Error,
    store::metrics,
};

/// Records of one report.
pub(super) const MAX_RECORDS: usize = 10_000;
/// Leases of one heartbeat, and tasks of one lease.
const MAX_HELD: usize = 1_000;
const MAX_HELD_TASKS: usize = 10_000;
/// Experiments and recipes of one worker, and bytes of its catalogue.
const MAX_OFFERS: usize = 1_000;
const MAX_CATALOG_BYTES: usize = 4 << 20;
/// Bytes of names that people read.
const MAX_NAME_BYTES: usize = 256;

/// What a worker says about itself.
pub(super) fn hello(request: pb::RegisterRequest) -> Result<Hello, Error> {
    let invalid = |problem: &str| Err(Error::InvalidRequest(problem.to_owned()));
    let texts = [&request.name, &request.instance, &request.device, &request.code_version];
    if request.name.is_empty() || request.instance.is_empty() {
        return invalid("`name` and `instance` of a worker must not be empty");
    }
    if texts.iter().any(|text| text.len() > MAX_NAME_BYTES || text.contains('\0')) {
        return invalid("a name of the worker is too long or has a zero character");
    }
    let catalog = request.catalog.unwrap_or_default();
    let bytes = prost::Message::encoded_len(&catalog);
    if catalog.experiments.len() + catalog.recipes.len() > MAX_OFFERS || bytes > MAX_CATALOG_BYTES {
        return invalid("the worker's catalogue is too large");
    }
    Ok(Hello {
        instance: request.instance,
        name: request.name,
        catalog,
        device: request.device,
        slots: request.slots,
        code_version: request.code_version,
    })
}

/// The leases that a worker names. What cannot be decoded cannot be taken over, only renewed.
pub(super) fn held(leases: Vec<pb::HeldLease>) -> Result<Vec<Held>, Error> {
    let too_many = leases.len() > MAX_HELD || leases.iter().any(|l| l.tasks.len() > MAX_HELD_TASKS);
    if too_many {
        let problem = format!("more than {MAX_HELD} leases or {MAX_HELD_TASKS} tasks of one");
        return Err(Error::InvalidRequest(problem));
    }
    let held = |lease: pb::HeldLease| {
        let tasks: Result<Vec<_>, _> = lease.tasks.iter().map(TaskKey::from_pb).collect();
        Held {
            attempt: Attempt(lease.attempt),
            tasks: tasks.unwrap_or_default(),
            progress: lease.progress,
            progress_total: lease.progress_total,
        }
    };
    Ok(leases.into_iter().map(held).collect())
}

/// One record, or what is wrong with it.
pub(super) fn record(record: pb::Record) -> Result<Record, String> {
    let task = record.task.as_ref().ok_or("the record names no task")?;
    let (sweep, task) = TaskKey::from_pb(task).map_err(|error| error.to_string())?;
    let body = match record.body.ok_or("the record is empty")? {
        pb::record::Body::Started(started) => Body::Started { resumed_from: started.resumed_from },
        pb::record::Body::Metrics(chunk) => Body::Metrics(metrics::encode(&chunk)?),
        pb::record::Body::Checkpoint(checkpoint) => Body::Checkpoint(checkpoint),
        pb::record::Body::TrainerState(state) => Body::TrainerState(state),
        pb::record::Body::Log(entry) => Body::Log(entry),
        pb::record::Body::Done(manifest) => Body::Done(manifest),
        pb::record::Body::Failed(failure) => Body::Failed(failure),
    };
    Ok(Record { attempt: Attempt(record.attempt), sequence: record.sequence, sweep, task, body })
}
