//! What people see of the core: statuses, plans, workers, task listings. Reads only.
//!
//! A status costs the same for ten tasks and ten million: it is made of counters. Listings walk
//! the plan lazily, a bounded number of tasks per call.

use std::{ops::Bound, time::Duration};

use sweep_proto::{
    id::{Attempt, TaskKey, TaskKind},
    pb,
};

use super::{
    event::Stop,
    machine::Core,
    model::State,
    plan::Plan,
    sweep::{Sweep, kind_index},
    time::Now,
};

/// Running tasks that a status lists.
const MAX_RUNNING: usize = 200;
/// Model labels that a plan lists.
const MAX_LABELS: u32 = 100;
/// Tasks looked at in one call of [`Core::tasks`].
const SCAN_LIMIT: usize = 10_000;

/// Which tasks a listing wants.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// State word; empty = all.
    pub state: String,
    /// Kind word; empty = all.
    pub kind: String,
}

/// A task in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// The task.
    pub task: TaskKey,
    /// Where it stands.
    pub state: State,
    /// Name of the worker, while it runs.
    pub worker: String,
}

/// Words of task kinds, in the order of the counters.
pub const KINDS: [&str; 4] = ["train", "analyse", "compare", "trajectory"];
/// Words of task states.
pub const STATES: [&str; 7] =
    ["waiting", "ready", "running", "done", "failed", "skipped", "cancelled"];

impl Core {
    /// A sweep in numbers.
    pub fn status(&self, sweep: &Sweep, now: Now) -> pb::SweepStatus {
        let totals = sweep.plan.totals();
        let totals = [totals.train, totals.analyse, totals.compare, totals.trajectory];
        let mut kinds = [pb::Counts::default(); 4];
        for (index, counts) in sweep.counts().iter().enumerate() {
            let ended = counts.done + counts.failed + counts.skipped + counts.running;
            let rest = totals[index] - ended;
            let cancelled = if sweep.stop.is_some() { rest } else { 0 };
            kinds[index] = pb::Counts {
                total: totals[index],
                done: counts.done,
                failed: counts.failed,
                skipped: counts.skipped,
                running: counts.running,
                cancelled,
                waiting: rest - cancelled,
            };
        }
        let [train, analyse, compare, trajectory] = kinds;
        let alive_since = now.mono.saturating_sub(self.config.timing.expiry());
        pb::SweepStatus {
            sweep: sweep.plan.id().to_owned(),
            name: sweep.plan.spec().name.clone(),
            state: state(sweep) as i32,
            total: Some(kinds.iter().fold(pb::Counts::default(), |sum, counts| add(sum, *counts))),
            train: Some(train),
            analyse: Some(analyse),
            compare: Some(compare),
            trajectory: Some(trajectory),
            submitted_at: sweep.submitted_at,
            ended_at: sweep.ended_at,
            running: self.running(sweep),
            failures: failures(sweep),
            spec: sweep.plan.document().to_owned(),
            workers: self.workers.alive(alive_since) as u32,
            rate: sweep.rate.per_second(now),
            artifact_root: self.config.artifact_root.clone(),
        }
    }

    fn running(&self, sweep: &Sweep) -> Vec<pb::RunningTask> {
        let leases = sweep.leases.iter().filter_map(|a| Some((*a, self.leases.get(*a)?)));
        let tasks = leases.flat_map(|(attempt, lease)| {
            let worker = self.workers.get(lease.worker).map(|w| w.hello.name.clone());
            let worker = worker.unwrap_or_default();
            lease.open_tasks().map(move |task| pb::RunningTask {
                task: Some(task.to_pb(sweep.plan.id())),
                label: sweep.plan.task_label(task),
                worker: worker.clone(),
                attempt: attempt.0,
                progress: lease.progress,
                progress_total: lease.progress_total,
                started_at: lease.granted_at,
            })
        });
        tasks.take(MAX_RUNNING).collect()
    }

    /// All workers.
    pub fn worker_infos(&self, now: Now) -> Vec<pb::WorkerInfo> {
        let expiry = self.config.timing.expiry();
        let info = |worker: &super::workers::Worker| {
            let silent = now.mono.saturating_sub(worker.last_seen);
            let state = match () {
                () if silent > expiry => "lost",
                () if worker.poisoned => "poisoned",
                () if worker.draining => "draining",
                () => "ready",
            };
            pb::WorkerInfo {
                worker: worker.id.clone(),
                name: worker.hello.name.clone(),
                device: worker.hello.device.clone(),
                slots: worker.hello.slots,
                busy: worker.leases.len() as u32,
                state: state.to_owned(),
                last_seen_ms_ago: silent.as_millis() as u64,
                spool_bytes: worker.spool_bytes,
                tasks_done: worker.tasks_done,
                code_version: worker.hello.code_version.clone(),
            }
        };
        self.workers.iter().map(|(_, worker)| info(worker)).collect()
    }

    /// What submitting `plan` means.
    pub fn plan_response(&self, plan: &Plan) -> pb::PlanResponse {
        let existing = self.find(plan.id()).ok().and_then(|number| self.sweep(number));
        let done = existing.map(|s| s.counts().iter().map(|counts| counts.done).sum());
        let totals = plan.totals();
        pb::PlanResponse {
            sweep: plan.id().to_owned(),
            exists: existing.is_some(),
            models: totals.train,
            train: totals.train,
            analyse: totals.analyse,
            compare: totals.compare,
            trajectory: totals.trajectory,
            done: done.unwrap_or_default(),
            checkpoints: totals.checkpoints,
            model_labels: (0..plan.n_models().min(MAX_LABELS))
                .map(|model| plan.model_label(model))
                .collect(),
        }
    }

    /// Up to `limit` tasks behind `after`, and where to go on, if there may be more.
    pub fn tasks(
        &self,
        sweep: &Sweep,
        filter: &TaskFilter,
        after: Option<TaskKey>,
        limit: usize,
    ) -> (Vec<TaskView>, Option<TaskKey>) {
        // Tasks of models that nothing happened to wait, or were cancelled.
        let sparse = matches!(filter.state.as_str(), "running" | "done" | "failed" | "skipped");
        let mut found = Vec::new();
        let mut at = after;
        for _ in 0..SCAN_LIMIT {
            let Some(task) = successor(sweep, at, sparse) else { return (found, None) };
            at = Some(task);
            let kind = KINDS[kind_index(task.kind)];
            let state = sweep.state(task);
            let fits = |want: &str, word: &str| want.is_empty() || want == word;
            if fits(&filter.kind, kind) && fits(&filter.state, state.word()) {
                found.push(TaskView { task, state, worker: self.worker_of(state) });
                if found.len() >= limit {
                    break;
                }
            }
        }
        (found, at)
    }

    fn worker_of(&self, state: State) -> String {
        let State::Running(attempt) = state else { return String::new() };
        let lease = self.leases.get(attempt);
        let worker = lease.and_then(|lease| self.workers.get(lease.worker));
        worker.map(|worker| worker.hello.name.clone()).unwrap_or_default()
    }

    /// Tokens of all live leases with the time that is left to them.
    pub fn live_leases(&self, now: Now) -> Vec<(Attempt, Duration)> {
        let left = |deadline: Duration| deadline.saturating_sub(now.mono);
        self.leases.iter().map(|(attempt, lease)| (attempt, left(lease.deadline))).collect()
    }
}

/// The state of a sweep as a whole.
pub fn state(sweep: &Sweep) -> pb::SweepState {
    let done: u64 = sweep.counts().iter().map(|counts| counts.done).sum();
    match sweep.stop {
        Some(Stop::Cancelled) => pb::SweepState::Cancelled,
        None if sweep.ended_at == 0 => pb::SweepState::Running,
        None if done == sweep.plan.totals().tasks() => pb::SweepState::Done,
        Some(Stop::MaxFailures) | None => pb::SweepState::Failed,
    }
}

fn add(a: pb::Counts, b: pb::Counts) -> pb::Counts {
    pb::Counts {
        total: a.total + b.total,
        done: a.done + b.done,
        failed: a.failed + b.failed,
        skipped: a.skipped + b.skipped,
        running: a.running + b.running,
        cancelled: a.cancelled + b.cancelled,
        waiting: a.waiting + b.waiting,
    }
}

fn failures(sweep: &Sweep) -> Vec<pb::TaskFailure> {
    let failure = |recent: &super::sweep::RecentFailure| pb::TaskFailure {
        task: Some(recent.task.to_pb(sweep.plan.id())),
        label: sweep.plan.task_label(recent.task),
        attempt: recent.attempt.0,
        failure: Some(recent.failure.clone()),
        r#final: recent.is_final,
    };
    sweep.recent.iter().map(failure).collect()
}

/// The task after `after` in the order of keys; with `sparse`, only of models that something
/// happened to.
fn successor(sweep: &Sweep, after: Option<TaskKey>, sparse: bool) -> Option<TaskKey> {
    let plan = &sweep.plan;
    let Some(TaskKey { model, kind }) = after else { return first_of(sweep, 0, sparse) };
    let n_experiments = plan.experiments().len() as u32;
    let analyse = |step: Option<&u64>| {
        step.filter(|_| n_experiments > 0)
            .map(|step| TaskKind::Analyse { step: *step, experiment: 0 })
    };
    let compare = |after| plan.next_comparison(model, after);
    let trajectory = |from: u32| {
        // Those over several models are listed with the first of them.
        let mut indices = from..plan.trajectory().len() as u32;
        let own = indices.find(|index| plan.members(model, *index).is_some());
        own.map(|index| TaskKind::Trajectory { index }).or_else(|| compare(None))
    };
    let steps = plan.steps(model);
    let next = match kind {
        TaskKind::Source => analyse(steps.first()).or_else(|| trajectory(0)),
        TaskKind::Analyse { step, experiment } if experiment + 1 < n_experiments => {
            Some(TaskKind::Analyse { step, experiment: experiment + 1 })
        }
        TaskKind::Analyse { step, .. } => {
            let behind = steps.partition_point(|other| *other <= step);
            analyse(steps.get(behind)).or_else(|| trajectory(0))
        }
        TaskKind::Trajectory { index } => trajectory(index + 1),
        TaskKind::Compare { step, experiment, pair } => compare(Some((step, experiment, pair))),
    };
    match next {
        Some(kind) => Some(TaskKey { model, kind }),
        None => first_of(sweep, model + 1, sparse),
    }
}

fn first_of(sweep: &Sweep, from: u32, sparse: bool) -> Option<TaskKey> {
    let model = if sparse {
        *sweep.models.range((Bound::Included(from), Bound::Unbounded)).next()?.0
    } else {
        from
    };
    (model < sweep.plan.n_models()).then_some(TaskKey { model, kind: TaskKind::Source })
}
