//! Several models looked at together: when trajectory experiments over an entry or over the whole
//! sweep can run, and those that read comparisons. Main type: [`Group`].
//!
//! A model has *ended* when its training is at an end and so are all analyses of what it published. A
//! model that failed does not block its group: the task is told of it. A group in which every
//! model failed has nothing to look at; its tasks are skipped.

use sweep_proto::id::{TaskKey, TaskKind};

use super::{
    model::{Cell, Model},
    plan::Scope,
    sweep::Sweep,
};

/// How far the models of one entry are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Group {
    /// Models of which nothing is to come.
    pub ended: u32,
    /// Those among them without a complete training.
    pub failed: u32,
}

impl Group {
    /// Adds a model that has ended.
    pub fn add(&mut self, model: &Model) {
        self.ended += 1;
        self.failed += u32::from(matches!(model.train, Cell::Failed(_)));
    }

    fn plus(self, other: Self) -> Self {
        Self { ended: self.ended + other.ended, failed: self.failed + other.failed }
    }
}

impl Sweep {
    /// Whether a trajectory task looks at several models.
    pub fn is_joint(&self, index: u32) -> bool {
        let pinned = self.plan.trajectory().get(index as usize);
        pinned.is_some_and(|pinned| pinned.scope != Scope::Model)
    }

    /// Trajectory experiments of that scope.
    pub fn n_of_scope(&self, scope: Scope) -> u64 {
        self.plan.trajectory().iter().filter(|pinned| pinned.scope == scope).count() as u64
    }

    /// The group of a task, and how many models it has.
    fn group(&self, task: TaskKey) -> Option<(Group, u32)> {
        let TaskKind::Trajectory { index } = task.kind else { return None };
        let members = self.plan.members(task.model, index)?.len() as u32;
        let group = match self.plan.trajectory()[index as usize].scope {
            Scope::Entry => self.groups[self.plan.models().entry_of(task.model)?],
            Scope::Model | Scope::Sweep => {
                self.groups.iter().copied().fold(Group::default(), Group::plus)
            }
        };
        Some((group, members))
    }

    /// Whether no comparison is to come.
    pub fn comparisons_ended(&self) -> bool {
        let counts = &self.counts()[2];
        counts.done + counts.failed + counts.skipped == self.plan.totals().compare
    }

    /// Whether a trajectory task reads comparisons that have not all ended.
    pub(super) fn lacks_pairs(&self, index: u32) -> bool {
        self.plan.trajectory()[index as usize].reads_pairs && !self.comparisons_ended()
    }

    /// Whether every model of a task's group has ended, and every comparison of the sweep.
    pub fn is_group_settled(&self, task: TaskKey) -> bool {
        let ended = self.group(task).is_some_and(|(group, members)| group.ended == members);
        ended && self.comparisons_ended()
    }

    /// Whether no model of a task's group has a complete training.
    pub fn is_group_lost(&self, task: TaskKey) -> bool {
        self.group(task).is_some_and(|(group, members)| group.failed == members)
    }

    /// A model has ended: counts it, and the tasks that are lost with it.
    pub fn count_ended(&mut self, index: u32) {
        let Some(entry) = self.plan.models().entry_of(index) else { return };
        let Some(model) = self.models.get(&index).filter(|model| model.has_ended()) else { return };
        self.groups[entry].add(model);
        let members = self.plan.models().entries()[entry].models().len() as u32;
        if matches!(model.train, Cell::Failed(_)) && self.groups[entry].failed == members {
            let sweep_lost = self.lost_sweep_tasks();
            self.counts_mut(TaskKind::Trajectory { index: 0 }).skipped +=
                self.n_of_scope(Scope::Entry) + sweep_lost;
        }
    }

    /// Trajectory tasks over several models that are skipped, as the groups stand.
    pub fn lost_joint_tasks(&self) -> u64 {
        let lost = self.plan.models().entries().iter().zip(&self.groups);
        let lost = lost.filter(|(entry, group)| group.failed == entry.models().len() as u32);
        lost.count() as u64 * self.n_of_scope(Scope::Entry) + self.lost_sweep_tasks()
    }

    fn lost_sweep_tasks(&self) -> u64 {
        let failed: u32 = self.groups.iter().map(|group| group.failed).sum();
        if failed == self.plan.n_models() { self.n_of_scope(Scope::Sweep) } else { 0 }
    }

    /// Queues the tasks over several models that can run; of an entry's, only those of `entry`.
    pub fn enqueue_joint(&mut self, entry: Option<usize>) {
        if !self.is_running() || !self.comparisons_ended() {
            return;
        }
        let mut ready = Vec::new();
        for (index, pinned) in (0u32..).zip(self.plan.trajectory()) {
            let entries = self.plan.models().entries();
            let owners: Vec<u32> = match (pinned.scope, entry) {
                (Scope::Model, _) => continue,
                (Scope::Sweep, _) => vec![0],
                (Scope::Entry, Some(entry)) => vec![entries[entry].models().start],
                (Scope::Entry, None) => entries.iter().map(|e| e.models().start).collect(),
            };
            for model in owners {
                let task = TaskKey { model, kind: TaskKind::Trajectory { index } };
                if self.is_ready(task) {
                    ready.push((model, index));
                }
            }
        }
        self.queue.trajectory.extend(ready);
    }

    /// Queues what waited for the last comparison.
    pub(super) fn enqueue_readers_of_pairs(&mut self) {
        if !self.comparisons_ended() {
            return;
        }
        if self.plan.trajectory().iter().any(|pinned| pinned.reads_pairs) {
            let models: Vec<u32> = self.models.keys().copied().collect();
            for model in models {
                self.enqueue_trajectories(model);
            }
        }
        self.enqueue_joint(None);
    }
}
