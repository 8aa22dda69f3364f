//! One sweep: its counters, its materialised models and its ready queue. Main type: [`Sweep`].
//!
//! Every transition of a task goes through one method here, which keeps cell, counters and queue
//! in step. [`rebuild`](Sweep::rebuild) derives counters and queue from the cells alone; tests hold
//! the two against each other.
//!
//! Nothing here knows leases' deadlines, workers or time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sweep_proto::{
    id::{Attempt, TaskKey, TaskKind},
    pb,
    spec::CheckpointRef,
};

use super::{
    couples::{Couple, CoupleKey},
    event::{Stop, SweepRecord},
    groups::Group,
    model::{Cell, Model, Published, State},
    plan::{Plan, Scope},
    queue::Queue,
    rate::Rate,
    retry::Trouble,
};

/// Tasks of one kind by state; what is missing to the total waits (or was cancelled).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Done.
    pub done: u64,
    /// Given up.
    pub failed: u64,
    /// Can never run.
    pub skipped: u64,
    /// Under a lease.
    pub running: u64,
}

/// A failure for the status view.
#[derive(Debug, Clone)]
pub struct RecentFailure {
    /// The task.
    pub task: TaskKey,
    /// The attempt.
    pub attempt: Attempt,
    /// What went wrong.
    pub failure: pb::Failure,
    /// Whether the task was given up.
    pub is_final: bool,
}

/// Failures that the status view shows.
pub const RECENT_FAILURES: usize = 20;

/// One sweep.
#[derive(Debug)]
pub struct Sweep {
    /// Rises with submission.
    pub number: u32,
    /// Its axes.
    pub plan: Arc<Plan>,
    /// Milliseconds since the Unix epoch.
    pub submitted_at: u64,
    /// The same; 0 while it runs.
    pub ended_at: u64,
    /// Why it was stopped.
    pub stop: Option<Stop>,
    /// Attempts below this one are stale.
    pub fence: Attempt,
    /// How often failed tasks were made runnable again.
    pub retries: u32,
    /// Models that something happened to.
    pub models: BTreeMap<u32, Model>,
    /// Pairs of published checkpoints that are compared.
    pub couples: BTreeMap<CoupleKey, Couple>,
    /// How far the models are, per entry of `models:`.
    pub groups: Vec<Group>,
    /// Trajectory tasks over several models that are not open: first model, index.
    pub joint: BTreeMap<(u32, u32), Cell>,
    /// Histories of tasks that did not go smoothly.
    pub trouble: BTreeMap<TaskKey, Trouble>,
    /// Highest attempt that had begun before the restart, per task that was open then.
    pub started: BTreeMap<TaskKey, Attempt>,
    /// Names of the metrics that it has values of.
    pub metrics: BTreeSet<String>,
    /// Live leases.
    pub leases: BTreeSet<Attempt>,
    /// What can be leased.
    pub queue: Queue,
    /// The newest failures, newest last.
    pub recent: VecDeque<RecentFailure>,
    /// How fast tasks finish.
    pub rate: Rate,
    /// Whether tasks may be running that a former incarnation leased.
    pub restored: bool,
    counts: [Counts; 4],
}

/// Index of a task's kind in the counters.
pub fn kind_index(kind: TaskKind) -> usize {
    match kind {
        TaskKind::Source => 0,
        TaskKind::Analyse { .. } => 1,
        TaskKind::Compare { .. } => 2,
        TaskKind::Trajectory { .. } => 3,
    }
}

impl Sweep {
    /// A sweep that nothing has happened to.
    pub fn new(number: u32, plan: Arc<Plan>, submitted_at: u64) -> Self {
        let groups = vec![Group::default(); plan.models().entries().len()];
        Self {
            number,
            plan,
            couples: BTreeMap::new(),
            groups,
            joint: BTreeMap::new(),
            submitted_at,
            ended_at: 0,
            stop: None,
            fence: Attempt(0),
            retries: 0,
            models: BTreeMap::new(),
            trouble: BTreeMap::new(),
            started: BTreeMap::new(),
            metrics: BTreeSet::new(),
            leases: BTreeSet::new(),
            queue: Queue::default(),
            recent: VecDeque::new(),
            rate: Rate::default(),
            restored: false,
            counts: [Counts::default(); 4],
        }
    }

    /// What is kept of it as a whole.
    pub fn record(&self) -> SweepRecord {
        SweepRecord {
            number: self.number,
            document: self.plan.document().to_owned(),
            pinned: self.plan.pinned().clone(),
            submitted_at: self.submitted_at,
            ended_at: self.ended_at,
            stop: self.stop,
            fence: self.fence,
            retries: self.retries,
        }
    }

    /// Counters by kind: train, analyse, compare, trajectory.
    pub fn counts(&self) -> &[Counts; 4] {
        &self.counts
    }

    /// The counters of a kind.
    pub(super) fn counts_mut(&mut self, kind: TaskKind) -> &mut Counts {
        &mut self.counts[kind_index(kind)]
    }

    /// Whether tasks may be leased.
    pub fn is_running(&self) -> bool {
        self.stop.is_none() && self.ended_at == 0
    }

    /// Whether every task is at an end.
    pub fn is_finished(&self) -> bool {
        let ended: u64 = self.counts.iter().map(|c| c.done + c.failed + c.skipped).sum();
        ended == self.plan.totals().tasks()
    }

    /// Tasks given up, of all kinds.
    pub fn failed(&self) -> u64 {
        self.counts.iter().map(|counts| counts.failed).sum()
    }

    /// The cell of a task, if it has one by now.
    pub fn cell(&self, task: TaskKey) -> Option<Cell> {
        let model = self.models.get(&task.model);
        match task.kind {
            TaskKind::Source => Some(model.map_or(Cell::Open, |model| model.train)),
            TaskKind::Analyse { step, experiment } => {
                model?.published.get(&step)?.cells.get(experiment as usize).copied()
            }
            TaskKind::Trajectory { index } if self.is_joint(index) => {
                Some(self.joint.get(&(task.model, index)).copied().unwrap_or(Cell::Open))
            }
            TaskKind::Trajectory { index } => model?.trajectory.get(index as usize).copied(),
            TaskKind::Compare { experiment, pair, .. } => {
                self.couples.get(&self.couple_key(task)?)?.cell(experiment, pair)
            }
        }
    }

    /// Where a task of the plan stands.
    pub fn state(&self, task: TaskKey) -> State {
        let model = self.models.get(&task.model);
        let train = model.map_or(Cell::Open, |model| model.train);
        let (cell, blocked) = match (task.kind, self.cell(task)) {
            (TaskKind::Source, cell) => (cell.unwrap_or(Cell::Open), false),
            (TaskKind::Analyse { .. } | TaskKind::Compare { .. }, Some(cell)) => (cell, false),
            (TaskKind::Analyse { .. }, None) if train.is_terminal() => return State::Skipped,
            (TaskKind::Compare { .. }, None) => {
                if self.couple_key(task).is_some_and(|key| self.is_lost(key)) {
                    return State::Skipped;
                }
                (Cell::Open, true)
            }
            (TaskKind::Trajectory { index }, cell) if self.is_joint(index) => {
                let cell = cell.unwrap_or(Cell::Open);
                if matches!(cell, Cell::Open | Cell::Delayed) && self.is_group_lost(task) {
                    return State::Skipped;
                }
                (cell, !self.is_group_settled(task))
            }
            (TaskKind::Trajectory { .. }, _) if matches!(train, Cell::Failed(_)) => {
                return State::Skipped;
            }
            (TaskKind::Trajectory { index }, Some(cell)) => {
                (cell, !model.is_some_and(Model::is_settled) || self.lacks_pairs(index))
            }
            (TaskKind::Analyse { .. } | TaskKind::Trajectory { .. }, None) => (Cell::Open, true),
        };
        match cell {
            Cell::Done(attempt) => State::Done(attempt),
            Cell::Failed(attempt) => State::Failed(attempt),
            Cell::Leased(attempt) => State::Running(attempt),
            Cell::Open | Cell::Delayed if self.stop.is_some() => State::Cancelled,
            Cell::Open if !blocked => State::Ready,
            Cell::Open | Cell::Delayed => State::Waiting,
        }
    }

    /// Whether the task can be leased now.
    pub fn is_ready(&self, task: TaskKey) -> bool {
        self.is_running() && self.state(task) == State::Ready
    }

    /// The lowest attempt that may still speak for a task that is not leased.
    pub fn floor(&self, task: TaskKey) -> Attempt {
        let ended = self.trouble.get(&task).and_then(|trouble| trouble.ended);
        let after_ended = ended.map_or(0, |attempt| attempt.0 + 1);
        let started = self.started.get(&task).map_or(0, |attempt| attempt.0);
        Attempt(self.fence.0.max(after_ended).max(started))
    }

    /// A ready task is leased.
    pub fn lease(&mut self, task: TaskKey, attempt: Attempt) {
        debug_assert!(self.is_ready(task), "only ready tasks are leased: {task}");
        self.counts[kind_index(task.kind)].running += 1;
        *self.cell_mut(task) = Cell::Leased(attempt);
        self.started.remove(&task);
        match task.kind {
            TaskKind::Source => {
                self.queue.train.remove(&task.model);
            }
            TaskKind::Analyse { step, .. } => self.requeue(task.model, step),
            TaskKind::Trajectory { index } => {
                self.queue.trajectory.remove(&(task.model, index));
            }
            TaskKind::Compare { .. } => {
                if let Some(key) = self.couple_key(task) {
                    self.requeue_couple(key);
                }
            }
        }
    }

    /// A leased task is open again, or waits for its next try.
    pub fn release(&mut self, task: TaskKey, delayed: bool) {
        self.counts[kind_index(task.kind)].running -= 1;
        *self.cell_mut(task) = if delayed { Cell::Delayed } else { Cell::Open };
        if !delayed {
            self.enqueue(task);
        }
    }

    /// A delayed task may be tried again.
    pub fn wake(&mut self, task: TaskKey) {
        if self.cell(task) == Some(Cell::Delayed) {
            *self.cell_mut(task) = Cell::Open;
            self.enqueue(task);
        }
    }

    /// A leased task is done.
    pub fn complete(&mut self, task: TaskKey, attempt: Attempt) {
        let counts = &mut self.counts[kind_index(task.kind)];
        counts.running -= 1;
        counts.done += 1;
        *self.cell_mut(task) = Cell::Done(attempt);
        self.trouble.remove(&task);
        self.settle(task);
    }

    /// A leased task is given up.
    pub fn give_up(&mut self, task: TaskKey, attempt: Attempt) {
        let counts = &mut self.counts[kind_index(task.kind)];
        counts.running -= 1;
        counts.failed += 1;
        *self.cell_mut(task) = Cell::Failed(attempt);
        self.settle(task);
    }

    /// What follows for other tasks when `task` has come to an end.
    fn settle(&mut self, task: TaskKey) {
        let n_trajectory = self.plan.trajectory().len();
        let own = self.n_of_scope(Scope::Model);
        let unpublished = self.unpublished(task.model);
        let model = self.model_mut(task.model);
        match task.kind {
            TaskKind::Source => {
                model.open_analyses -= unpublished;
                let lost = matches!(model.train, Cell::Failed(_));
                if !lost {
                    model.trajectory = vec![Cell::Open; n_trajectory];
                }
                self.counts[1].skipped += unpublished;
                self.counts[2].skipped += self.lost_with(task.model, Self::is_missing);
                self.counts[3].skipped += if lost { own } else { 0 };
            }
            TaskKind::Analyse { .. } => model.open_analyses -= 1,
            TaskKind::Trajectory { .. } => return,
            TaskKind::Compare { .. } => return self.enqueue_readers_of_pairs(),
        }
        self.count_ended(task.model);
        self.enqueue_trajectories(task.model);
        let skips = task.kind == TaskKind::Source && !self.plan.pairings().is_empty();
        if skips {
            // A failed training may have been what the comparisons still waited for.
            self.enqueue_readers_of_pairs();
        } else {
            self.enqueue_joint(self.plan.models().entry_of(task.model));
        }
    }

    /// Adds a published checkpoint. Returns false when the one that is there stays: it has the
    /// same weights, or work on it has begun.
    pub fn publish(&mut self, index: u32, attempt: Attempt, checkpoint: &pb::Checkpoint) -> bool {
        let step = checkpoint.step;
        let n_experiments = self.plan.experiments().len();
        let model = self.model_mut(index);
        if let Some(known) = model.published.get(&step) {
            let untouched =
                known.cells.iter().all(|cell| matches!(cell, Cell::Open | Cell::Delayed));
            let is_known = known.checkpoint.weights_hash == checkpoint.weights_hash;
            if is_known || !untouched || !self.is_uncompared(CheckpointRef { model: index, step }) {
                return false;
            }
            let Some(known) = self.model_mut(index).published.get_mut(&step) else { return false };
            known.checkpoint = checkpoint.clone();
            known.attempt = attempt;
            return true;
        }
        let published = Published {
            checkpoint: checkpoint.clone(),
            attempt,
            cells: vec![Cell::Open; n_experiments].into(),
            queued: None,
        };
        model.published.insert(step, published);
        self.requeue(index, step);
        for key in self.marry(CheckpointRef { model: index, step }) {
            self.requeue_couple(key);
        }
        true
    }

    /// Stops the sweep: nothing is queued any more. The caller has ended the leases.
    pub fn halt(&mut self, stop: Stop, fence: Attempt) {
        debug_assert!(self.leases.is_empty(), "leases end before their sweep is halted");
        self.stop = Some(stop);
        self.fence = fence;
        self.rebuild();
    }

    /// Makes failed, skipped and cancelled tasks runnable again.
    pub fn reopen(&mut self) {
        self.stop = None;
        self.ended_at = 0;
        self.retries += 1;
        for model in self.models.values_mut() {
            let analyses = model.published.values_mut().flat_map(|p| p.cells.iter_mut());
            let cells = analyses.chain(&mut model.trajectory).chain([&mut model.train]);
            cells.filter(|cell| matches!(cell, Cell::Failed(_))).for_each(|c| *c = Cell::Open);
        }
        let couples = self.couples.values_mut().flat_map(|couple| &mut couple.cells);
        let cells = couples.map(|(_, _, cell)| cell).chain(self.joint.values_mut());
        cells.filter(|cell| matches!(cell, Cell::Failed(_))).for_each(|c| *c = Cell::Open);
        for trouble in self.trouble.values_mut() {
            trouble.forgive();
        }
        self.rebuild();
    }

    /// Derives counters, per-model totals and the queue from the cells.
    pub fn rebuild(&mut self) {
        let running = self.is_running();
        self.queue = Queue::default();
        self.counts = [Counts::default(); 4];
        self.groups = vec![Group::default(); self.plan.models().entries().len()];
        let n_trajectory = self.plan.trajectory().len();
        let own = self.n_of_scope(Scope::Model);
        let mut gap = 0;
        let indices: Vec<u32> = self.models.keys().copied().collect();
        for index in indices {
            gap += u32::from(gap == index);
            let unpublished = self.unpublished(index);
            let Some(model) = self.models.get_mut(&index) else { continue };
            model.published.values_mut().for_each(|published| published.queued = None);
            let cells = model.published.values().flat_map(|published| published.cells.iter());
            model.open_analyses = cells.filter(|cell| !cell.is_terminal()).count() as u64;
            match model.train {
                Cell::Done(_) | Cell::Failed(_) => self.counts[1].skipped += unpublished,
                Cell::Open | Cell::Delayed | Cell::Leased(_) => model.open_analyses += unpublished,
            }
            match model.train {
                Cell::Failed(_) => self.counts[3].skipped += own,
                Cell::Done(_) if model.trajectory.is_empty() => {
                    model.trajectory = vec![Cell::Open; n_trajectory];
                }
                Cell::Done(_) | Cell::Open | Cell::Delayed | Cell::Leased(_) => {}
            }
            tally(&mut self.counts[0], model.train);
            for published in model.published.values() {
                published.cells.iter().for_each(|cell| tally(&mut self.counts[1], *cell));
            }
            model.trajectory.iter().for_each(|cell| tally(&mut self.counts[3], *cell));
            if let Some(entry) = self.plan.models().entry_of(index).filter(|_| model.has_ended()) {
                self.groups[entry].add(model);
            }
            let steps: Vec<u64> = model.published.keys().copied().collect();
            let train = model.train;
            if running {
                if train == Cell::Open {
                    self.queue.train.insert(index);
                }
                for step in steps {
                    self.requeue(index, step);
                }
                self.enqueue_trajectories(index);
            }
        }
        self.queue.cursor = if running { gap } else { self.plan.n_models() };
        self.rebuild_shared();
    }

    /// The part of [`rebuild`](Self::rebuild) that is about several models.
    fn rebuild_shared(&mut self) {
        for (_, _, cell) in self.couples.values().flat_map(|couple| &couple.cells) {
            tally(&mut self.counts[2], *cell);
        }
        self.counts[2].skipped += self.lost_at_rest();
        self.joint.retain(|_, cell| *cell != Cell::Open);
        self.joint.values().for_each(|cell| tally(&mut self.counts[3], *cell));
        self.counts[3].skipped += self.lost_joint_tasks();
        let keys: Vec<CoupleKey> = self.couples.keys().copied().collect();
        for key in keys {
            self.requeue_couple(key);
        }
        self.enqueue_readers_of_pairs();
    }

    /// Whether anything is queued.
    pub fn has_ready(&self) -> bool {
        self.is_running() && (!self.queue.is_empty() || self.queue.cursor < self.plan.n_models())
    }

    /// The model, from now on materialised.
    pub fn model_mut(&mut self, index: u32) -> &mut Model {
        let plan = &self.plan;
        self.models.entry(index).or_insert_with(|| {
            Model::new(plan.steps(index).len() as u64 * plan.experiments().len() as u64)
        })
    }

    /// Analyses of checkpoints that are not published.
    fn unpublished(&self, index: u32) -> u64 {
        let published = self.models.get(&index).map_or(0, |model| model.published.len());
        let missing = self.plan.steps(index).len().saturating_sub(published);
        missing as u64 * self.plan.experiments().len() as u64
    }

    fn cell_mut(&mut self, task: TaskKey) -> &mut Cell {
        match task.kind {
            TaskKind::Source => &mut self.model_mut(task.model).train,
            TaskKind::Analyse { step, experiment } => {
                let published = self.model_mut(task.model).published.get_mut(&step);
                let cells = &mut published.expect("only published checkpoints have cells").cells;
                &mut cells[experiment as usize]
            }
            TaskKind::Trajectory { index } if self.is_joint(index) => {
                self.joint.entry((task.model, index)).or_insert(Cell::Open)
            }
            TaskKind::Trajectory { index } => {
                &mut self.model_mut(task.model).trajectory[index as usize]
            }
            TaskKind::Compare { experiment, pair, .. } => {
                let couple = self.couple_key(task).and_then(|key| self.couples.get_mut(&key));
                let cell = couple.and_then(|couple| couple.cell_mut(experiment, pair));
                cell.expect("only comparisons of published checkpoints have cells")
            }
        }
    }

    fn enqueue(&mut self, task: TaskKey) {
        if !self.is_running() {
            return;
        }
        match task.kind {
            TaskKind::Source => {
                self.queue.train.insert(task.model);
            }
            TaskKind::Analyse { step, .. } => self.requeue(task.model, step),
            TaskKind::Trajectory { index } if self.is_joint(index) => {
                self.enqueue_joint(self.plan.models().entry_of(task.model));
            }
            TaskKind::Trajectory { .. } => self.enqueue_trajectories(task.model),
            TaskKind::Compare { .. } => {
                if let Some(key) = self.couple_key(task) {
                    self.requeue_couple(key);
                }
            }
        }
    }

    /// Puts a couple into the queue or takes it out, as its cells say.
    fn requeue_couple(&mut self, key: CoupleKey) {
        if self.is_running() && self.couples.get(&key).is_some_and(Couple::is_open) {
            self.queue.compare.insert(key);
        } else {
            self.queue.compare.remove(&key);
        }
    }

    pub(super) fn enqueue_trajectories(&mut self, index: u32) {
        let Some(model) = self.models.get(&index) else { return };
        if self.stop.is_none() && model.is_settled() {
            let cells = (0u32..).zip(&model.trajectory);
            let is_open = |(at, cell): &(u32, &Cell)| {
                **cell == Cell::Open && !self.is_joint(*at) && !self.lacks_pairs(*at)
            };
            let open = cells.filter(is_open);
            let open: Vec<(u32, u32)> = open.map(|(at, _)| (index, at)).collect();
            self.queue.trajectory.extend(open);
        }
    }

    /// Puts a checkpoint into the queue or takes it out, as its cells say.
    fn requeue(&mut self, index: u32, step: u64) {
        let running = self.is_running();
        let Some(model) = self.models.get_mut(&index) else { return };
        let Some(published) = model.published.get_mut(&step) else { return };
        let open = running && published.cells.contains(&Cell::Open);
        match published.queued {
            None if open => published.queued = Some(self.queue.push_analysis(index, step)),
            Some(place) if !open => {
                self.queue.remove_analysis(place);
                published.queued = None;
            }
            None | Some(_) => {}
        }
    }
}

fn tally(counts: &mut Counts, cell: Cell) {
    match cell {
        Cell::Open | Cell::Delayed => {}
        Cell::Leased(_) => counts.running += 1,
        Cell::Done(_) => counts.done += 1,
        Cell::Failed(_) => counts.failed += 1,
    }
}
