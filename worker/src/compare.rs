//! A comparison lease: two checkpoints are loaded once and every experiment of the bundle runs on them.

use std::sync::Arc;

use sweep_lab::Couple;
use sweep_lens::{Device, Transformer};
use sweep_proto::pb::{self, record::Body};

use crate::{
    analyse::jobs,
    deliver::{Outlet, Provenance, TaskSink},
    leases::HeldLease,
    loading::Loaded,
};

/// Runs a comparison lease to its end; every task ends with a record.
pub fn run(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    work: &pb::CompareWork,
    device: Device,
    provenance: &Provenance,
) {
    let Some(jobs) = jobs(outlet, lease, &work.tasks) else { return };
    let load = |wanted: &Option<pb::Checkpoint>| -> Result<(Loaded, Transformer), pb::Failure> {
        let loaded = Loaded::new(outlet, &wanted.clone().unwrap_or_default(), device)?;
        let model = loaded.model()?;
        Ok((loaded, model))
    };
    let loaded = load(&work.first).and_then(|first| Ok((first, load(&work.second)?)));
    let ((first, first_model), (second, second_model)) = match loaded {
        Ok(loaded) => loaded,
        Err(failure) => {
            for job in jobs {
                job.task.end(Body::Failed(failure.clone()));
            }
            return;
        }
    };
    let couple = Couple {
        first: first.subject(&first_model, device),
        second: second.subject(&second_model, device),
    };
    let mut provenance = provenance.clone();
    first.add_to(&mut provenance);
    let mut of_second = Provenance::default();
    second.add_to(&mut of_second);
    of_second.insert("model".to_owned(), work.second_model.clone());
    of_second.insert("step".to_owned(), second.checkpoint.step.to_string());
    let of_second = of_second.into_iter().map(|(name, value)| (format!("partner_{name}"), value));
    provenance.extend(of_second);
    let readings = first.readings();
    second.add_reading(&readings);
    for job in jobs {
        if lease.is_revoked() {
            return;
        }
        match TaskSink::start(job.task.clone(), job.experiment.card(), readings.clone()) {
            Ok(mut sink) => {
                let outcome = sweep_lab::compare(job.experiment, &job.params, &couple, &mut sink);
                sink.finish(outcome, &provenance);
            }
            Err(error) => job.task.end(Body::Failed(error.failure())),
        }
    }
}
