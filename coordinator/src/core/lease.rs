//! Live leases. Main type: [`Leases`].
//!
//! Leases live in memory only: a grant needs no disk write, because the attempt carries the
//! coordinator's incarnation. After a restart the table is empty, and workers name what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sweep_proto::id::{Attempt, TaskKey};

/// The right of one worker to run a bundle of tasks.
#[derive(Debug)]
pub struct Lease {
    /// Number of the sweep.
    pub sweep: u32,
    /// The worker that holds it.
    pub worker: u64,
    /// When it ends unless it is renewed.
    pub deadline: Duration,
    /// Its tasks.
    pub tasks: BTreeMap<TaskKey, LeasedTask>,
    /// Work done, in the tasks' own unit.
    pub progress: u64,
    /// Work in all.
    pub progress_total: u64,
    /// Milliseconds since the Unix epoch.
    pub granted_at: u64,
}

/// A task under a lease.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeasedTask {
    /// Whether the worker has reported its end.
    pub ended: bool,
    /// Whether the attempt is known to have begun the task.
    pub started: bool,
    /// Log lines stored so far.
    pub log_lines: u32,
}

impl Lease {
    /// Tasks whose end was not reported.
    pub fn open_tasks(&self) -> impl Iterator<Item = TaskKey> + '_ {
        self.tasks.iter().filter(|(_, task)| !task.ended).map(|(key, _)| *key)
    }
}

/// All live leases, by attempt and by deadline.
#[derive(Debug, Default)]
pub struct Leases {
    by_attempt: BTreeMap<Attempt, Lease>,
    by_deadline: BTreeSet<(Duration, Attempt)>,
}

impl Leases {
    /// Adds a lease.
    pub fn insert(&mut self, attempt: Attempt, lease: Lease) {
        self.by_deadline.insert((lease.deadline, attempt));
        let replaced = self.by_attempt.insert(attempt, lease);
        debug_assert!(replaced.is_none(), "attempts are never granted twice: {attempt}");
    }

    /// The lease with that token.
    pub fn get(&self, attempt: Attempt) -> Option<&Lease> {
        self.by_attempt.get(&attempt)
    }

    /// The lease with that token; deadlines change through [`renew`](Self::renew) alone.
    pub fn get_mut(&mut self, attempt: Attempt) -> Option<&mut Lease> {
        self.by_attempt.get_mut(&attempt)
    }

    /// Moves the deadline of a lease.
    pub fn renew(&mut self, attempt: Attempt, deadline: Duration) {
        if let Some(lease) = self.by_attempt.get_mut(&attempt) {
            self.by_deadline.remove(&(lease.deadline, attempt));
            lease.deadline = deadline;
            self.by_deadline.insert((deadline, attempt));
        }
    }

    /// Takes a lease out.
    pub fn remove(&mut self, attempt: Attempt) -> Option<Lease> {
        let lease = self.by_attempt.remove(&attempt)?;
        self.by_deadline.remove(&(lease.deadline, attempt));
        Some(lease)
    }

    /// The lease whose deadline comes first.
    pub fn first_deadline(&self) -> Option<(Duration, Attempt)> {
        self.by_deadline.first().copied()
    }

    /// All leases.
    pub fn iter(&self) -> impl Iterator<Item = (Attempt, &Lease)> {
        self.by_attempt.iter().map(|(attempt, lease)| (*attempt, lease))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_attempt.is_empty()
    }
}
