//! A trajectory lease: one reduction over all checkpoints of a model, or over its metric series.

use std::sync::Arc;

use sweep_lab::{Checkpoints, Inputs, Series, SeriesTable, TrajectoryInput, Value};
use sweep_lens::{Device, checkpoint::Checkpoint};
use sweep_proto::{
    id::{FailureClass, failure},
    pb::{self, record::Body},
};
use tonic::Status;

use crate::{
    deliver::{Outlet, Provenance, TaskSink},
    leases::HeldLease,
    loading::Loaded,
};

/// Runs a trajectory lease to its end; the task ends with a record.
pub fn run(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    work: &pb::TrajectoryWork,
    device: Device,
    provenance: &Provenance,
) {
    let Some(Ok(task)) = work.task.as_ref().map(|key| outlet.task(lease, key)) else {
        tracing::error!(attempt = lease.attempt, "lease with a malformed task, dropped");
        lease.revoke();
        return;
    };
    let permanent = |message: String| failure(FailureClass::Permanent, message);
    let Some(experiment) = crate::catalog::experiment(&work.experiment) else {
        let problem = permanent(format!("this worker has no experiment `{}`", work.experiment));
        return task.end(Body::Failed(problem));
    };
    let params: serde_json::Value = match serde_json::from_str(&work.params) {
        Ok(params) => params,
        Err(error) => {
            return task.end(Body::Failed(permanent(format!("malformed parameters: {error}"))));
        }
    };
    let inputs = match experiment.inputs(&params) {
        Ok(inputs) => inputs,
        Err(error) => return task.end(Body::Failed(crate::failure::of_lab(&error))),
    };
    let mut table = SeriesTable::default();
    if let Inputs::Series(names) = &inputs {
        let sweep = task.key.sweep.as_str();
        for name in names {
            match outlet.runtime.block_on(series(outlet, sweep, name, work.model_index)) {
                Ok(found) => {
                    table.insert(name.clone(), found);
                }
                Err(status) => {
                    let message =
                        format!("metric `{name}` could not be read: {}", status.message());
                    return task.end(Body::Failed(failure(FailureClass::Transient, message)));
                }
            }
        }
    }
    let mut sink = match TaskSink::start(task.clone(), experiment.card()) {
        Ok(sink) => sink,
        Err(error) => return task.end(Body::Failed(error.failure())),
    };
    let steps = work.checkpoints.iter().map(|checkpoint| checkpoint.step).collect();
    let mut checkpoints = Stored { outlet, wanted: &work.checkpoints, steps, device };
    let input = TrajectoryInput { checkpoints: Some(&mut checkpoints), series: &table, device };
    let outcome = sweep_lab::trajectory(experiment, &params, input, &mut sink);
    sink.finish(outcome, provenance);
}

/// The checkpoints of a model, read one at a time.
struct Stored<'a> {
    outlet: &'a Outlet,
    wanted: &'a [pb::Checkpoint],
    steps: Vec<u64>,
    device: Device,
}

impl Checkpoints for Stored<'_> {
    fn steps(&self) -> &[u64] {
        &self.steps
    }

    fn load(&mut self, step: u64) -> sweep_lab::Result<Checkpoint> {
        let wanted = self.wanted.iter().find(|checkpoint| checkpoint.step == step);
        let wanted = wanted.ok_or_else(|| {
            sweep_lab::Error::Input(format!("there is no checkpoint of step {step}"))
        })?;
        Loaded::new(self.outlet, wanted, self.device)
            .map(|loaded| loaded.checkpoint)
            .map_err(|failure| sweep_lab::Error::Input(failure.message))
    }
}

/// One metric of one model, all steps.
async fn series(outlet: &Outlet, sweep: &str, metric: &str, model: u32) -> Result<Series, Status> {
    let request = pb::QueryRequest {
        sweep: sweep.to_owned(),
        metric: metric.to_owned(),
        ..Default::default()
    };
    let mut stream = outlet.session.metrics().query(request).await?.into_inner();
    let mut series = Series::default();
    while let Some(part) = stream.message().await? {
        if part.model_index != model {
            continue;
        }
        let shape: Vec<usize> = part.axes.iter().map(|axis| axis.size as usize).collect();
        let labels = |axis: &pb::Axis| (!axis.labels.is_empty()).then(|| axis.labels.clone());
        let labels: Vec<_> = part.axes.iter().map(labels).collect();
        let cells: usize = shape.iter().product();
        let values = part.values.chunks(cells.max(1));
        series.points.extend(part.steps.iter().zip(values).map(|(&step, data)| {
            (step, Value { shape: shape.clone(), data: data.to_vec(), labels: labels.clone() })
        }));
        series.axes = part.axes.into_iter().map(|axis| axis.name).collect();
        series.unit = part.unit;
    }
    series.points.sort_by_key(|point| point.0);
    Ok(series)
}
