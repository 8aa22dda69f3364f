//! A trajectory lease: one reduction over all checkpoints of a model, or over its metric series, or over
//! those of several models.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use sweep_lab::{
    AnyExperiment, Checkpoints, Cohort, CohortCheckpoints, CohortSeries, Inputs, Member,
    MemberSeries, Series, SeriesTable, TextCodec, TrajectoryInput, Value,
};
use sweep_lens::{Device, checkpoint::Checkpoint, tokenizer::Tokenizer};
use sweep_proto::{
    id::{FailureClass, failure},
    pb::{self, record::Body},
    spec::MetricName,
};
use tonic::Status;

use crate::{
    deliver::{Outlet, Provenance, Task, TaskSink},
    leases::HeldLease,
    loading::Loaded,
    readings::Readings,
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
    if work.members.is_empty() {
        of_model(outlet, work, &task, experiment, &params, &inputs, device, provenance);
    } else {
        of_cohort(outlet, work, &task, experiment, &params, &inputs, device, provenance);
    }
}

/// A reduction over one model.
#[expect(clippy::too_many_arguments, reason = "one task, all of it needed")]
fn of_model(
    outlet: &Outlet,
    work: &pb::TrajectoryWork,
    task: &Task,
    experiment: &dyn AnyExperiment,
    params: &serde_json::Value,
    inputs: &Inputs,
    device: Device,
    provenance: &Provenance,
) {
    let mut table = SeriesTable::default();
    for name in series_names(inputs) {
        let is_own = |part: &pb::Series| part.model_index == work.model_index;
        match read(outlet, task, name, is_own) {
            Ok(found) => {
                // Of a model alone, or of each of its checkpoints with one other.
                let own = found.into_values().next();
                table.insert(name.clone(), own.map(|own| own.series).unwrap_or_default());
            }
            Err(failure) => return task.end(Body::Failed(failure)),
        }
    }
    let readings = Readings::default();
    let mut sink = match TaskSink::start(task.clone(), experiment.card(), readings.clone()) {
        Ok(sink) => sink,
        Err(error) => return task.end(Body::Failed(error.failure())),
    };
    let mut checkpoints = Stored::new(outlet, &work.checkpoints, device, readings);
    let input = TrajectoryInput { checkpoints: Some(&mut checkpoints), series: &table, device };
    let outcome = sweep_lab::trajectory(experiment, params, input, &mut sink);
    sink.finish(outcome, provenance);
}

/// A reduction over several models.
#[expect(clippy::too_many_arguments, reason = "one task, all of it needed")]
fn of_cohort(
    outlet: &Outlet,
    work: &pb::TrajectoryWork,
    task: &Task,
    experiment: &dyn AnyExperiment,
    params: &serde_json::Value,
    inputs: &Inputs,
    device: Device,
    provenance: &Provenance,
) {
    let members: Vec<Member> = work.members.iter().map(member).collect();
    let place: HashMap<u32, usize> =
        work.members.iter().enumerate().map(|(at, member)| (member.model_index, at)).collect();
    let mut series = CohortSeries::new();
    for name in series_names(inputs) {
        match read(outlet, task, name, |part| place.contains_key(&part.model_index)) {
            Ok(found) => {
                let found = found
                    .into_iter()
                    .map(|((model, _), found)| MemberSeries { member: place[&model], ..found });
                series.insert(name.clone(), found.collect());
            }
            Err(failure) => return task.end(Body::Failed(failure)),
        }
    }
    let readings = Readings::default();
    let mut sink = match TaskSink::start(task.clone(), experiment.card(), readings.clone()) {
        Ok(sink) => sink,
        Err(error) => return task.end(Body::Failed(error.failure())),
    };
    let stored = work
        .members
        .iter()
        .map(|member| Stored::new(outlet, &member.checkpoints, device, readings.clone()));
    let mut stored = StoredCohort(stored.collect());
    let wants_checkpoints = *inputs == Inputs::Checkpoints;
    let cohort = Cohort {
        members: &members,
        checkpoints: wants_checkpoints.then_some(&mut stored as &mut dyn CohortCheckpoints),
        series: &series,
        device,
    };
    let outcome = sweep_lab::joint(experiment, params, cohort, &mut sink);
    sink.finish(outcome, provenance);
}

fn series_names(inputs: &Inputs) -> &[String] {
    match inputs {
        Inputs::Series(names) => names,
        Inputs::Checkpoint { .. } | Inputs::Couple | Inputs::Checkpoints => &[],
    }
}

fn member(member: &pb::Member) -> Member {
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    Member {
        label: member.model.clone(),
        seed: member.seed,
        recipe: given(&member.recipe),
        params: serde_json::from_str(&member.params).unwrap_or_default(),
        axes: member.axes.clone(),
        failure: given(&member.failure),
    }
}

/// Reads one metric of all wanted models: by model and, for a metric of pairs, second model.
fn read(
    outlet: &Outlet,
    task: &Task,
    name: &str,
    wanted: impl Fn(&pb::Series) -> bool,
) -> Result<BTreeMap<(u32, String), MemberSeries>, pb::Failure> {
    let found = outlet.runtime.block_on(series(outlet, task.key.sweep.as_str(), name, wanted));
    found.map_err(|status| {
        let message = format!("metric `{name}` could not be read: {}", status.message());
        failure(FailureClass::Transient, message)
    })
}

/// The checkpoints of a model, read one at a time.
struct Stored<'a> {
    outlet: &'a Outlet,
    wanted: &'a [pb::Checkpoint],
    steps: Vec<u64>,
    device: Device,
    readings: Readings,
    /// Of the checkpoint loaded last.
    tokenizer: Option<Tokenizer>,
}

impl<'a> Stored<'a> {
    fn new(
        outlet: &'a Outlet,
        wanted: &'a [pb::Checkpoint],
        device: Device,
        readings: Readings,
    ) -> Self {
        let steps = wanted.iter().map(|checkpoint| checkpoint.step).collect();
        Self { outlet, wanted, steps, device, readings, tokenizer: None }
    }
}

/// The checkpoints of several models.
struct StoredCohort<'a>(Vec<Stored<'a>>);

impl CohortCheckpoints for StoredCohort<'_> {
    fn steps(&self, member: usize) -> &[u64] {
        &self.0[member].steps
    }

    fn load(&mut self, member: usize, step: u64) -> sweep_lab::Result<Checkpoint> {
        self.0[member].load(step)
    }
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
        let loaded = Loaded::new(self.outlet, wanted, self.device)
            .map_err(|failure| sweep_lab::Error::Input(failure.message))?;
        loaded.add_reading(&self.readings);
        let (checkpoint, tokenizer) = loaded.into_parts();
        self.tokenizer = tokenizer;
        Ok(checkpoint)
    }

    fn text(&self) -> Option<&dyn TextCodec> {
        self.tokenizer.as_ref().map(|tokenizer| tokenizer as &dyn TextCodec)
    }
}

/// One metric of the wanted models, all steps.
async fn series(
    outlet: &Outlet,
    sweep: &str,
    metric: &str,
    wanted: impl Fn(&pb::Series) -> bool,
) -> Result<BTreeMap<(u32, String), MemberSeries>, Status> {
    let name = MetricName::parse(metric)
        .ok_or_else(|| Status::invalid_argument(format!("`{metric}` is not experiment.metric")))?;
    let request =
        pb::QueryRequest { sweep: sweep.to_owned(), metric: name.full(), ..Default::default() };
    let mut stream = outlet.session.metrics().query(request).await?.into_inner();
    let mut all: BTreeMap<(u32, String), MemberSeries> = BTreeMap::new();
    while let Some(mut part) = stream.message().await? {
        let written = serde_json::from_str(&part.params).unwrap_or_default();
        if !wanted(&part) || !name.fits(&written) {
            continue;
        }
        if !part.partner.is_empty() && !part.axes.is_empty() {
            // It only names the second checkpoint, which tells the series apart already.
            part.axes.remove(0);
        }
        let partner = Some(part.partner.clone()).filter(|partner| !partner.is_empty());
        let MemberSeries { series, .. } = all
            .entry((part.model_index, part.partner.clone()))
            .or_insert_with(|| MemberSeries { member: 0, partner, series: Series::default() });
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
    for found in all.values_mut() {
        found.series.points.sort_by_key(|point| point.0);
    }
    Ok(all)
}
