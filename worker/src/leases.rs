//! The leases that this process holds. Main types: [`Leases`], [`HeldLease`].
//!
//! A lease is *alive* while its last answered renewal was sent less than a time to live ago. When it
//! is not, the worker is silent for it: it keeps computing (a coordinator that restarts will take it
//! back), but reports nothing until a heartbeat has confirmed that it is still the holder. When the
//! coordinator says that it is not, the lease is *revoked*: its work stops and its results are dropped.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sweep_proto::pb;

/// One lease and what its lane shares with the heartbeat.
#[derive(Debug)]
pub struct HeldLease {
    /// Fencing token.
    pub attempt: u64,
    /// Tasks of the bundle whose end is not acknowledged yet.
    tasks: Mutex<Vec<pb::TaskKey>>,
    sequence: AtomicU64,
    progress: (AtomicU64, AtomicU64),
    revoked: AtomicBool,
    renewed: Mutex<Instant>,
}

impl HeldLease {
    fn new(attempt: u64, tasks: Vec<pb::TaskKey>, now: Instant) -> Self {
        Self {
            attempt,
            tasks: Mutex::new(tasks),
            sequence: AtomicU64::new(0),
            progress: (AtomicU64::new(0), AtomicU64::new(0)),
            revoked: AtomicBool::new(false),
            renewed: Mutex::new(now),
        }
    }

    /// The next record of this attempt, for `task`.
    pub fn record(&self, task: &pb::TaskKey, body: pb::record::Body) -> pb::Record {
        pb::Record {
            attempt: self.attempt,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            task: Some(task.clone()),
            body: Some(body),
        }
    }

    /// Whether the work must stop.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Stops the work.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    /// Notes how far the work is, for the next heartbeat.
    pub fn set_progress(&self, done: u64, total: u64) {
        self.progress.0.store(done, Ordering::Relaxed);
        self.progress.1.store(total, Ordering::Relaxed);
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<pb::TaskKey>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewed(&self) -> MutexGuard<'_, Instant> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every lease of this process, by attempt.
#[derive(Debug, Default)]
pub struct Leases {
    held: Mutex<BTreeMap<u64, Arc<HeldLease>>>,
}

impl Leases {
    /// Adds a lease that was granted to a request sent at `now`.
    pub fn add(&self, attempt: u64, tasks: Vec<pb::TaskKey>, now: Instant) -> Arc<HeldLease> {
        let lease = Arc::new(HeldLease::new(attempt, tasks, now));
        self.held().insert(attempt, Arc::clone(&lease));
        lease
    }

    /// Notes that the end of `task` is acknowledged; a lease without tasks is forgotten.
    pub fn task_settled(&self, attempt: u64, task: &pb::TaskKey) {
        let Some(lease) = self.get(attempt) else { return };
        let mut tasks = lease.tasks();
        tasks.retain(|held| held != task);
        if tasks.is_empty() {
            self.held().remove(&attempt);
        }
    }

    /// Forgets a revoked lease whose work has stopped.
    pub fn forget(&self, attempt: u64) {
        self.held().remove(&attempt);
    }

    /// The lease with that attempt.
    pub fn get(&self, attempt: u64) -> Option<Arc<HeldLease>> {
        self.held().get(&attempt).cloned()
    }

    /// Every lease that is not revoked.
    pub fn all(&self) -> Vec<Arc<HeldLease>> {
        self.held().values().filter(|lease| !lease.is_revoked()).cloned().collect()
    }

    /// Whether results of `attempt` may be sent now: the lease was renewed less than `ttl` ago.
    pub fn may_report(&self, attempt: u64, now: Instant, ttl: Duration) -> bool {
        self.get(attempt).is_none_or(|lease| now.duration_since(*lease.renewed()) < ttl)
    }

    /// What a heartbeat says.
    pub fn heartbeat(&self) -> Vec<pb::HeldLease> {
        let describe = |lease: Arc<HeldLease>| pb::HeldLease {
            attempt: lease.attempt,
            tasks: lease.tasks().clone(),
            progress: lease.progress.0.load(Ordering::Relaxed),
            progress_total: lease.progress.1.load(Ordering::Relaxed),
        };
        self.all().into_iter().map(describe).collect()
    }

    /// Takes in the answer to a heartbeat that was sent at `sent`.
    pub fn renewed(&self, said: &[pb::HeldLease], revoked: &[u64], sent: Instant) {
        for lease in said.iter().filter_map(|lease| self.get(lease.attempt)) {
            if revoked.contains(&lease.attempt) {
                tracing::info!(attempt = lease.attempt, "lease revoked");
                lease.revoke();
            } else {
                *lease.renewed() = sent;
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<HeldLease>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_silent_after_its_time_and_speaks_again_when_renewed() {
        let (leases, start, ttl) = (Leases::default(), Instant::now(), Duration::from_secs(10));
        leases.add(7, vec![], start);
        assert!(leases.may_report(7, start + ttl / 2, ttl));
        assert!(!leases.may_report(7, start + ttl, ttl));
        leases.renewed(&leases.heartbeat(), &[], start + ttl);
        assert!(leases.may_report(7, start + ttl, ttl));
    }

    #[test]
    fn a_revoked_lease_is_neither_renewed_nor_named_again() {
        let (leases, start) = (Leases::default(), Instant::now());
        let lease = leases.add(7, vec![], start);
        leases.renewed(&leases.heartbeat(), &[7], start);
        assert!(lease.is_revoked());
        assert!(leases.heartbeat().is_empty());
    }
}
