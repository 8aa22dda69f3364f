//! What a failure costs and when the task is tried again. Main types: [`RetryPolicy`], [`Trouble`].
//!
//! Decisions look only at the failure's class, never at its text. Jitter comes from a hash of task
//! and attempt: deterministic for the core, spread out for the fleet.

use std::{collections::VecDeque, time::Duration};

use sweep_proto::{
    id::{Attempt, FailureClass, TaskKey, TaskKind},
    pb,
};

use super::event::{Outcome, TaskRecord};

/// Failures kept per task.
pub const MAX_FAILURES_KEPT: usize = 10;
/// Losses of the worker after which a task counts as the cause.
pub const CRASH_LIMIT: u32 = 5;
/// Bytes kept of the newest failure's message, and of older ones.
const MESSAGE_BYTES: usize = 4096;
const OLD_MESSAGE_BYTES: usize = 512;

/// Backoff of retries.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Wait after the first failure; doubles with each further one.
    pub base: Duration,
    /// Longest wait.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), cap: Duration::from_mins(1) }
    }
}

/// What happens to a task after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ready at once.
    Ready,
    /// Ready after a while.
    After(Duration),
    /// Given up.
    GiveUp,
}

/// The history of a task that has not gone smoothly. Tasks without one cost nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trouble {
    /// Failures that count against `max_attempts`.
    pub attempts: u32,
    /// Losses of the worker.
    pub crashes: u32,
    /// The last attempt that ended: it and earlier ones are stale.
    pub ended: Option<Attempt>,
    /// Whether the worker reported that end itself.
    pub reported: bool,
    /// The newest failures, newest last.
    pub failures: VecDeque<(Attempt, pb::Failure)>,
}

impl Trouble {
    /// Counts a failure of `attempt` and decides what happens next.
    pub fn failed(
        &mut self,
        policy: &RetryPolicy,
        max_attempts: u32,
        task: TaskKey,
        attempt: Attempt,
        failure: &pb::Failure,
    ) -> Next {
        self.remember(attempt, failure);
        match FailureClass::from_pb(failure.class) {
            FailureClass::Preempted => Next::Ready,
            FailureClass::WorkerLost => {
                self.crashes += 1;
                if self.crashes < CRASH_LIMIT { Next::Ready } else { Next::GiveUp }
            }
            FailureClass::Transient | FailureClass::OutOfMemory | FailureClass::Poisoned => {
                self.attempts += 1;
                if self.attempts < max_attempts {
                    Next::After(policy.delay(self.attempts, task, attempt))
                } else {
                    Next::GiveUp
                }
            }
            FailureClass::InputMissing | FailureClass::Permanent | FailureClass::Cancelled => {
                Next::GiveUp
            }
        }
    }

    fn remember(&mut self, attempt: Attempt, failure: &pb::Failure) {
        if let Some((_, last)) = self.failures.back_mut() {
            last.message = truncate(&last.message, OLD_MESSAGE_BYTES);
        }
        if self.failures.len() == MAX_FAILURES_KEPT {
            self.failures.pop_front();
        }
        let message = truncate(&failure.message, MESSAGE_BYTES);
        self.failures.push_back((attempt, pb::Failure { class: failure.class, message }));
    }

    /// Forgets what counted against the task; the history stays for people.
    pub fn forgive(&mut self) {
        self.attempts = 0;
        self.crashes = 0;
    }

    /// What is kept of it.
    pub fn record(
        &self,
        outcome: Outcome,
        epoch: u32,
        worker: &str,
        finished_at: u64,
    ) -> TaskRecord {
        TaskRecord {
            outcome,
            epoch,
            attempt: self.ended.unwrap_or(Attempt(0)),
            reported: self.reported,
            attempts: self.attempts,
            crashes: self.crashes,
            failures: self.failures.iter().cloned().collect(),
            worker: worker.to_owned(),
            finished_at,
            elapsed_ms: 0,
        }
    }

    /// The inverse of [`record`](Self::record).
    pub fn from_record(record: &TaskRecord) -> Self {
        Self {
            attempts: record.attempts,
            crashes: record.crashes,
            ended: (record.attempt != Attempt(0)).then_some(record.attempt),
            reported: record.reported,
            failures: record.failures.iter().cloned().collect(),
        }
    }
}

impl RetryPolicy {
    /// Wait before try `failures + 1`: exponential, half of it jitter.
    fn delay(&self, failures: u32, task: TaskKey, attempt: Attempt) -> Duration {
        let doubled = self.base.saturating_mul(1u32 << failures.saturating_sub(1).min(20));
        let full = doubled.min(self.cap);
        let share = spread(task, attempt) >> 11;
        full.mul_f64(0.5 + 0.5 * share as f64 / (1u64 << 53) as f64)
    }
}

/// 64 well-mixed bits (splitmix64 over the fields).
fn spread(task: TaskKey, attempt: Attempt) -> u64 {
    let mix = |state: u64, value: u64| {
        let mut z = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let (step, index) = match task.kind {
        TaskKind::Source => (0, 0),
        TaskKind::Analyse { step, experiment } => (step, 1 + u64::from(experiment)),
        TaskKind::Trajectory { index } => (u64::MAX, 1 + u64::from(index)),
        TaskKind::Compare { step, experiment, pair } => {
            (step, (1 << 48) + (u64::from(experiment) << 32) + u64::from(pair))
        }
    };
    [u64::from(task.model), step, index].into_iter().fold(mix(0, attempt.0), mix)
}

/// `text`, cut at a character boundary to at most `limit` bytes.
pub fn truncate(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(limit)])
}
