//! From what was kept back to a core. Main type: [`Image`].
//!
//! Leases are not kept. Until every worker that may hold some has spoken (or one lease time has
//! passed) nothing is granted that such a worker may be running.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use sweep_proto::{
    catalog,
    id::{Attempt, TaskKey, TaskKind},
    pb,
    spec::{CheckpointRef, SweepSpec},
};

use super::{
    event::{Outcome, SweepRecord, TaskRecord},
    lease::Leases,
    machine::{Core, CoreConfig},
    model::{Cell, Published},
    plan::Plan,
    retry::Trouble,
    sweep::{RECENT_FAILURES, RecentFailure, Sweep},
    time::Now,
    workers::Workers,
};

/// Everything that was kept.
#[derive(Debug, Default)]
pub struct Image {
    /// Of this start; higher than of any before.
    pub incarnation: u32,
    /// What workers could run.
    pub catalog: pb::Catalog,
    /// Worker processes that may hold leases: name and instance.
    pub workers: Vec<(String, String)>,
    /// Whether the last coordinator stopped without live leases.
    pub quiet: bool,
    /// All sweeps.
    pub sweeps: Vec<SweepImage>,
}

/// What was kept of one sweep.
#[derive(Debug)]
pub struct SweepImage {
    /// The sweep as a whole.
    pub record: SweepRecord,
    /// Published checkpoints: model, attempt, checkpoint.
    pub checkpoints: Vec<(u32, Attempt, pb::Checkpoint)>,
    /// Where trainings can go on: model, attempt, state.
    pub resumes: Vec<(u32, Attempt, pb::TrainerState)>,
    /// Tasks with an ended attempt.
    pub tasks: Vec<(TaskKey, TaskRecord)>,
    /// The highest attempt that began, per task.
    pub started: BTreeMap<TaskKey, Attempt>,
    /// Metrics that there are values of.
    pub metrics: BTreeSet<String>,
}

/// Why an image does not make sense.
#[derive(Debug, thiserror::Error)]
#[error("the record of sweep {number} does not make sense: {problem}")]
pub struct RestoreError {
    /// Number of the sweep.
    pub number: u32,
    /// What is wrong.
    pub problem: String,
}

impl Core {
    /// Builds a core from what was kept.
    ///
    /// # Errors
    /// [`RestoreError`] when a record names something that its sweep does not have.
    pub fn restore(config: CoreConfig, image: Image, now: Now) -> Result<Self, RestoreError> {
        let mut known = catalog::embedded();
        catalog::merge(&mut known, &image.catalog);
        let mut core = Self {
            config,
            incarnation: image.incarnation,
            counter: 0,
            sweeps: BTreeMap::new(),
            by_id: HashMap::new(),
            active: BTreeSet::new(),
            leases: Leases::default(),
            workers: Workers::default(),
            waiting: VecDeque::new(),
            delayed: BTreeSet::new(),
            catalog: known,
            grace_until: Duration::ZERO,
            unaccounted: BTreeMap::new(),
            dirty: true,
        };
        for image in image.sweeps {
            core.insert_sweep(Sweep::restore(image)?);
        }
        let may_be_running = !image.quiet && !image.workers.is_empty() && !core.active.is_empty();
        if may_be_running {
            core.grace_until = now.mono + core.config.timing.expiry();
            core.unaccounted = image.workers.into_iter().collect();
            core.sweeps.values_mut().for_each(|sweep| sweep.restored = true);
        }
        // A crash may have come between a task's end and the sweep's.
        let mut out = Vec::new();
        let running: Vec<u32> = core.active.iter().map(|(_, number)| *number).collect();
        for number in running {
            core.finish_sweep(number, now, &mut out);
        }
        Ok(core)
    }
}

impl Sweep {
    fn restore(image: SweepImage) -> Result<Self, RestoreError> {
        let record = image.record;
        let number = record.number;
        let error = |problem: String| RestoreError { number, problem };
        let plan = plan(&record).map_err(error)?;
        let mut sweep = Self::new(number, Arc::new(plan), record.submitted_at);
        sweep.ended_at = record.ended_at;
        sweep.stop = record.stop;
        sweep.fence = record.fence;
        sweep.retries = record.retries;
        sweep.metrics = image.metrics;
        let n_experiments = sweep.plan.experiments().len();
        for (model, attempt, checkpoint) in image.checkpoints {
            if sweep.plan.steps(model).binary_search(&checkpoint.step).is_err() {
                return Err(error(format!("model {model} has no step {}", checkpoint.step)));
            }
            let cells = vec![Cell::Open; n_experiments].into();
            let published = Published { attempt, cells, queued: None, checkpoint };
            let step = published.checkpoint.step;
            sweep.model_mut(model).published.insert(step, published);
            sweep.marry(CheckpointRef { model, step });
        }
        for (model, attempt, state) in image.resumes {
            if model >= sweep.plan.n_models() {
                return Err(error(format!("there is no model {model}")));
            }
            sweep.model_mut(model).resume = Some((attempt, state));
        }
        sweep.restore_tasks(image.tasks).map_err(error)?;
        let open = |task: &TaskKey| !sweep.cell(*task).is_some_and(Cell::is_terminal);
        sweep.started = image.started.into_iter().filter(|(task, _)| open(task)).collect();
        sweep.rebuild();
        Ok(sweep)
    }

    fn restore_tasks(&mut self, tasks: Vec<(TaskKey, TaskRecord)>) -> Result<(), String> {
        let mut failures: Vec<RecentFailure> = Vec::new();
        // Trainings first: trajectory cells exist only behind a training that is done.
        let (sources, others): (Vec<_>, Vec<_>) =
            tasks.into_iter().partition(|(task, _)| task.kind == TaskKind::Source);
        for (task, record) in sources.into_iter().chain(others) {
            if !self.plan.contains(task) {
                return Err(format!("there is no task {task}"));
            }
            let forgiven = record.epoch < self.retries;
            let cell = match record.outcome {
                Outcome::Done => Cell::Done(record.attempt),
                Outcome::Failed if !forgiven => Cell::Failed(record.attempt),
                Outcome::Failed | Outcome::Open => Cell::Open,
            };
            self.restore_cell(task, cell)?;
            failures.extend(record.failures.iter().map(|(attempt, failure)| RecentFailure {
                task,
                attempt: *attempt,
                failure: failure.clone(),
                is_final: record.outcome == Outcome::Failed && *attempt == record.attempt,
            }));
            if record.outcome != Outcome::Done {
                let mut trouble = Trouble::from_record(&record);
                if forgiven {
                    trouble.forgive();
                }
                self.trouble.insert(task, trouble);
            }
        }
        failures.sort_by_key(|failure| failure.attempt);
        let newest = failures.len().saturating_sub(RECENT_FAILURES);
        self.recent = failures.split_off(newest).into();
        Ok(())
    }

    fn restore_cell(&mut self, task: TaskKey, cell: Cell) -> Result<(), String> {
        let n_trajectory = self.plan.trajectory().len();
        if let TaskKind::Trajectory { index } = task.kind
            && self.is_joint(index)
        {
            self.joint.insert((task.model, index), cell);
            return Ok(());
        }
        let missing = || format!("task {task} has a record, but not what it needs");
        if let TaskKind::Compare { experiment, pair, .. } = task.kind {
            let couple = self.couple_key(task).and_then(|key| self.couples.get_mut(&key));
            let slot = couple.and_then(|couple| couple.cell_mut(experiment, pair));
            *slot.ok_or_else(missing)? = cell;
            return Ok(());
        }
        let model = self.model_mut(task.model);
        let slot = match task.kind {
            TaskKind::Source => {
                if matches!(cell, Cell::Done(_)) {
                    model.trajectory = vec![Cell::Open; n_trajectory];
                }
                Some(&mut model.train)
            }
            TaskKind::Analyse { step, experiment } => model
                .published
                .get_mut(&step)
                .and_then(|published| published.cells.get_mut(experiment as usize)),
            TaskKind::Trajectory { index } => model.trajectory.get_mut(index as usize),
            TaskKind::Compare { .. } => None,
        };
        *slot.ok_or_else(missing)? = cell;
        Ok(())
    }
}

/// The plan of a stored sweep.
fn plan(record: &SweepRecord) -> Result<Plan, String> {
    let document = serde_json::from_str(&record.document).map_err(|error| error.to_string())?;
    let spec = SweepSpec::decode(&document).map_err(|problems| {
        problems.iter().map(sweep_proto::spec::Problem::one_line).collect::<Vec<_>>().join("; ")
    })?;
    Plan::new(spec, record.pinned.clone()).map_err(|problems| problems.join("; "))
}
