//! The state machine of the coordinator. Main type: [`Core`]; its one entry is [`Core::step`].
//!
//! Pure: no I/O, clock, randomness or async. What must survive is asked for as
//! [`Effect::Write`](super::event::Effect); [`restore`](super::restore) builds an equal core from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use sweep_proto::{
    catalog,
    id::{Attempt, FailureClass, TaskKey, failure},
    pb,
    timing::LeaseTiming,
};

use super::{
    event::{Answer, Effect, Event, Fact, Hello, Outcome, Refusal, RequestId, Stop, Wish, Write},
    lease::{Lease, Leases},
    plan::Plan,
    retry::{Next, RetryPolicy},
    sweep::{RECENT_FAILURES, RecentFailure, Sweep},
    time::Now,
    workers::Workers,
};

/// Workers known at a time.
pub const MAX_WORKERS: usize = 10_000;
/// Sweeps stored.
pub const MAX_SWEEPS: usize = 10_000;
/// Leases of one worker; it works on a few at a time.
pub const MAX_LEASES: usize = 256;
/// Acquire calls of one worker that wait at the same time.
pub const MAX_WAITING: usize = 16;
/// A silent worker without leases is forgotten after this long.
const FORGET_AFTER: Duration = Duration::from_hours(1);

/// What the core is configured with.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Lease timing.
    pub timing: LeaseTiming,
    /// Backoff of retries.
    pub retry: RetryPolicy,
    /// URL that artifact keys are relative to.
    pub artifact_root: String,
}

/// The whole state of the coordinator.
#[derive(Debug)]
pub struct Core {
    pub(super) config: CoreConfig,
    pub(super) incarnation: u32,
    pub(super) counter: u32,
    pub(super) sweeps: BTreeMap<u32, Sweep>,
    pub(super) by_id: HashMap<String, u32>,
    /// Sweeps that may have something to lease, in the order in which they are served.
    pub(super) active: BTreeSet<(std::cmp::Reverse<i64>, u32)>,
    pub(super) leases: Leases,
    pub(super) workers: Workers,
    pub(super) waiting: VecDeque<Waiter>,
    /// Tasks in backoff, by the time when they are tried again.
    pub(super) delayed: BTreeSet<(Duration, u32, TaskKey)>,
    pub(super) catalog: pb::Catalog,
    /// Until then nothing is granted that a worker of a former incarnation may be running.
    pub(super) grace_until: Duration,
    /// Workers of former incarnations that may hold leases: name → instance.
    pub(super) unaccounted: BTreeMap<String, String>,
    /// Whether something became ready since waiting workers were looked at.
    pub(super) dirty: bool,
}

/// An Acquire call that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub request: RequestId,
    pub worker: u64,
    pub wish: Wish,
    pub until: Duration,
}

/// What the core asks for, in order.
pub(super) type Out = Vec<Effect>;

impl Core {
    /// Handles one event. Effects are in order: what a reply rests on is written before it.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        self.pass_time(now, &mut out);
        match event {
            Event::Submit { request, plan } => self.submit(request, plan, now, &mut out),
            Event::Cancel { request, sweep } => self.cancel(request, &sweep, now, &mut out),
            Event::Retry { request, sweep } => self.retry(request, &sweep, now, &mut out),
            Event::Register { request, hello } => self.register(request, hello, now, &mut out),
            Event::Acquire { request, wish, wait } => {
                self.acquire(request, wish, wait, now, &mut out);
            }
            Event::Heartbeat { request, worker, held, spool_bytes, draining } => {
                let answer = match self.seen(&worker, now) {
                    Err(refusal) => Answer::Refused(refusal),
                    Ok(number) => {
                        if let Some(worker) = self.workers.get_mut(number) {
                            worker.spool_bytes = spool_bytes;
                            worker.draining = draining;
                        }
                        Answer::Revoked(self.heartbeat(number, &held, now, &mut out))
                    }
                };
                out.push(Effect::Reply(request, answer));
            }
            Event::Report { request, worker, records } => {
                let answer = match self.seen(&worker, now) {
                    Err(refusal) => Answer::Refused(refusal),
                    Ok(number) => Answer::Verdicts(self.report(number, records, now, &mut out)),
                };
                out.push(Effect::Reply(request, answer));
            }
            Event::Leave { request, worker } => self.leave(request, &worker, now, &mut out),
            Event::Undelivered { attempt } => self.undelivered(attempt),
            Event::Tick => {}
        }
        self.serve_waiting(now, &mut out);
        out
    }

    /// When the core wants to be woken at the latest.
    pub fn next_deadline(&self) -> Option<Duration> {
        let lease = self.leases.first_deadline().map(|(deadline, _)| deadline);
        let delayed = self.delayed.first().map(|(at, _, _)| *at);
        let waiting = self.waiting.iter().map(|waiter| waiter.until).min();
        // While workers wait, the end of the grace period makes work ready.
        let grace = (self.grace_until > Duration::ZERO).then_some(self.grace_until);
        [lease, delayed, waiting, grace].into_iter().flatten().min()
    }

    /// Everything that becomes true because time has passed.
    fn pass_time(&mut self, now: Now, out: &mut Out) {
        if self.grace_until > Duration::ZERO && now.mono >= self.grace_until {
            // Whoever did not come back in time holds nothing that anybody waits for.
            for name in std::mem::take(&mut self.unaccounted).into_keys() {
                out.push(Effect::Write(Write::Worker { name, instance: None }));
            }
            self.end_grace();
        }
        while let Some((deadline, attempt)) = self.leases.first_deadline() {
            if deadline > now.mono {
                break;
            }
            self.lose(attempt, "expired", now, out);
        }
        while let Some(&(at, sweep, task)) = self.delayed.first() {
            if at > now.mono {
                break;
            }
            self.delayed.pop_first();
            if let Some(sweep) = self.sweeps.get_mut(&sweep) {
                sweep.wake(task);
                self.dirty = true;
            }
        }
        let expired = |waiter: &Waiter| waiter.until <= now.mono;
        while let Some(at) = self.waiting.iter().position(expired) {
            if let Some(waiter) = self.waiting.remove(at) {
                out.push(Effect::Reply(waiter.request, Answer::Lease(None)));
            }
        }
    }

    pub(super) fn end_grace(&mut self) {
        self.grace_until = Duration::ZERO;
        self.unaccounted.clear();
        self.sweeps.values_mut().for_each(|sweep| sweep.restored = false);
        self.dirty = true;
    }

    /// A worker of a former incarnation cannot hold anything unknown any more.
    pub(super) fn account_for(&mut self, name: &str) {
        if self.unaccounted.remove(name).is_some() && self.unaccounted.is_empty() {
            self.end_grace();
        }
    }

    /// The number of a registered worker, now known to be alive.
    fn seen(&mut self, id: &str, now: Now) -> Result<u64, Refusal> {
        let unknown = || Refusal::UnknownWorker(id.to_owned());
        let number = self.workers.number(id).ok_or_else(unknown)?;
        self.workers.get_mut(number).ok_or_else(unknown)?.last_seen = now.mono;
        Ok(number)
    }

    fn submit(&mut self, request: RequestId, plan: Arc<Plan>, now: Now, out: &mut Out) {
        if let Some(&number) = self.by_id.get(plan.id()) {
            let answer = Answer::Submitted { sweep: number, created: false };
            out.push(Effect::Reply(request, answer));
            return;
        }
        if self.sweeps.len() >= MAX_SWEEPS {
            let refusal = Refusal::Full { what: "sweeps", limit: MAX_SWEEPS };
            out.push(Effect::Reply(request, Answer::Refused(refusal)));
            return;
        }
        let number = self.sweeps.last_key_value().map_or(1, |(last, _)| last + 1);
        let sweep = Sweep::new(number, plan, now.unix_ms);
        out.push(Effect::Write(Write::Sweep(sweep.record())));
        out.push(Effect::Fact(Fact::SweepSubmitted {
            sweep: sweep.plan.id().to_owned(),
            tasks: sweep.plan.totals().tasks(),
        }));
        self.insert_sweep(sweep);
        self.dirty = true;
        out.push(Effect::Reply(request, Answer::Submitted { sweep: number, created: true }));
    }

    pub(super) fn insert_sweep(&mut self, sweep: Sweep) {
        self.by_id.insert(sweep.plan.id().to_owned(), sweep.number);
        if sweep.is_running() {
            let priority = std::cmp::Reverse(sweep.plan.spec().priority);
            self.active.insert((priority, sweep.number));
        }
        self.sweeps.insert(sweep.number, sweep);
    }

    fn cancel(&mut self, request: RequestId, sweep: &str, now: Now, out: &mut Out) {
        match self.find(sweep) {
            Err(refusal) => out.push(Effect::Reply(request, Answer::Refused(refusal))),
            Ok(number) => {
                if self.sweeps[&number].is_running() {
                    self.halt(number, Stop::Cancelled, now, out);
                }
                self.reply_status(request, number, now, out);
            }
        }
    }

    fn retry(&mut self, request: RequestId, sweep: &str, now: Now, out: &mut Out) {
        let number = match self.find(sweep) {
            Err(refusal) => return out.push(Effect::Reply(request, Answer::Refused(refusal))),
            Ok(number) => number,
        };
        if let Some(sweep) = self.sweeps.get_mut(&number) {
            let failed = sweep.failed() > 0 || sweep.counts().iter().any(|c| c.skipped > 0);
            if sweep.stop.is_some() || failed {
                sweep.reopen();
                out.push(Effect::Write(Write::Sweep(sweep.record())));
                let priority = std::cmp::Reverse(sweep.plan.spec().priority);
                self.active.insert((priority, number));
                let sweep = sweep.plan.id().to_owned();
                out.push(Effect::Fact(Fact::SweepState { sweep, state: "running" }));
                self.dirty = true;
                self.finish_sweep(number, now, out);
            }
        }
        self.reply_status(request, number, now, out);
    }

    fn reply_status(&self, request: RequestId, number: u32, now: Now, out: &mut Out) {
        let status = Box::new(self.status(&self.sweeps[&number], now));
        out.push(Effect::Reply(request, Answer::Status(status)));
    }

    /// Ends all leases of a sweep and cancels what is not at an end.
    pub(super) fn halt(&mut self, number: u32, stop: Stop, now: Now, out: &mut Out) {
        let Some(sweep) = self.sweeps.get(&number) else { return };
        for attempt in sweep.leases.clone() {
            let Some(lease) = self.detach(attempt) else { continue };
            let Some(sweep) = self.sweeps.get_mut(&number) else { continue };
            lease.open_tasks().for_each(|task| sweep.release(task, false));
        }
        let fence = self.next_attempt();
        let delayed: Vec<_> = self.delayed.iter().filter(|d| d.1 == number).copied().collect();
        for entry in delayed {
            self.delayed.remove(&entry);
            if let Some(sweep) = self.sweeps.get_mut(&number) {
                sweep.wake(entry.2);
            }
        }
        let Some(sweep) = self.sweeps.get_mut(&number) else { return };
        sweep.halt(stop, fence);
        sweep.ended_at = now.unix_ms;
        let priority = std::cmp::Reverse(sweep.plan.spec().priority);
        self.active.remove(&(priority, number));
        out.push(Effect::Write(Write::Sweep(sweep.record())));
        let state = match stop {
            Stop::Cancelled => "cancelled",
            Stop::MaxFailures => "failed",
        };
        let sweep = sweep.plan.id().to_owned();
        out.push(Effect::Fact(Fact::SweepState { sweep, state }));
    }

    /// Ends the sweep when nothing of it can run any more.
    pub(super) fn finish_sweep(&mut self, number: u32, now: Now, out: &mut Out) {
        let Some(sweep) = self.sweeps.get_mut(&number) else { return };
        let limit = sweep.plan.spec().max_failures;
        if sweep.is_running() && !sweep.is_finished() && limit.is_some_and(|n| sweep.failed() >= n)
        {
            self.halt(number, Stop::MaxFailures, now, out);
            return;
        }
        if !sweep.is_running() || !sweep.is_finished() {
            return;
        }
        sweep.ended_at = now.unix_ms;
        let done: u64 = sweep.counts().iter().map(|counts| counts.done).sum();
        let state = if done == sweep.plan.totals().tasks() { "done" } else { "failed" };
        let priority = std::cmp::Reverse(sweep.plan.spec().priority);
        self.active.remove(&(priority, number));
        out.push(Effect::Write(Write::Sweep(sweep.record())));
        let sweep = sweep.plan.id().to_owned();
        out.push(Effect::Fact(Fact::SweepState { sweep, state }));
    }

    fn register(&mut self, request: RequestId, mut hello: Hello, now: Now, out: &mut Out) {
        if catalog::merge(&mut self.catalog, &hello.catalog) {
            out.push(Effect::Write(Write::Catalog(self.catalog.clone())));
        }
        if let Some(known) = self.workers.named(&hello.name) {
            let same = self.workers.get(known).filter(|w| w.hello.instance == hello.instance);
            if let Some(worker) = same {
                // The answer to the first call was lost.
                out.push(Effect::Reply(request, Answer::Registered(worker.id.clone())));
                return;
            }
            self.dismiss(known, "replaced by a new process", Some(now), out);
        } else if self.workers.is_full(MAX_WORKERS) && !self.forget_silent(now, out) {
            let refusal = Refusal::Full { what: "workers", limit: MAX_WORKERS };
            out.push(Effect::Reply(request, Answer::Refused(refusal)));
            return;
        }
        // A process that was started anew cannot hold what its predecessor held.
        if self.unaccounted.get(&hello.name).is_some_and(|old| *old != hello.instance) {
            self.account_for(&hello.name.clone());
        }
        hello.slots = hello.slots.max(1);
        let (name, instance) = (hello.name.clone(), hello.instance.clone());
        out.push(Effect::Write(Write::Worker { name: name.clone(), instance: Some(instance) }));
        let number = self.workers.insert(self.incarnation, hello, now.mono);
        let worker = self.workers.get(number).map(|w| w.id.clone()).unwrap_or_default();
        out.push(Effect::Fact(Fact::WorkerJoined { worker: worker.clone(), name }));
        out.push(Effect::Reply(request, Answer::Registered(worker)));
        self.dirty = true;
    }

    fn leave(&mut self, request: RequestId, worker: &str, now: Now, out: &mut Out) {
        let answer = match self.seen(worker, now) {
            Err(refusal) => Answer::Refused(refusal),
            Ok(number) => {
                let name = self.workers.get(number).map(|w| w.hello.name.clone());
                let name = name.unwrap_or_default();
                self.dismiss(number, "left", None, out);
                self.account_for(&name);
                out.push(Effect::Write(Write::Worker { name, instance: None }));
                Answer::Left
            }
        };
        out.push(Effect::Reply(request, answer));
    }

    /// Removes a worker. Its leases end: lost when `lost` gives the time, else given back.
    fn dismiss(&mut self, number: u64, reason: &'static str, lost: Option<Now>, out: &mut Out) {
        let Some(worker) = self.workers.get(number) else { return };
        for attempt in worker.leases.clone() {
            match lost {
                Some(now) => self.lose(attempt, reason, now, out),
                None => self.give_back(attempt, out),
            }
        }
        let waits = std::mem::take(&mut self.waiting);
        for waiter in waits {
            if waiter.worker == number {
                out.push(Effect::Reply(waiter.request, Answer::Lease(None)));
            } else {
                self.waiting.push_back(waiter);
            }
        }
        if let Some(worker) = self.workers.remove(number) {
            out.push(Effect::Fact(Fact::WorkerGone { worker: worker.id, reason }));
        }
    }

    /// Makes room among the workers; returns whether there is some.
    fn forget_silent(&mut self, now: Now, out: &mut Out) -> bool {
        let is_silent = |since: Duration| now.mono.saturating_sub(since) > FORGET_AFTER;
        let silent = self.workers.iter().filter(|(_, w)| w.leases.is_empty());
        let oldest = silent.min_by_key(|(_, w)| w.last_seen).map(|(n, w)| (n, w.last_seen));
        let Some((number, _)) = oldest.filter(|(_, since)| is_silent(*since)) else { return false };
        let name = self.workers.get(number).map(|w| w.hello.name.clone()).unwrap_or_default();
        self.dismiss(number, "silent", None, out);
        out.push(Effect::Write(Write::Worker { name, instance: None }));
        true
    }

    /// Takes a lease out of every table; its tasks are still marked as leased.
    pub(super) fn detach(&mut self, attempt: Attempt) -> Option<Lease> {
        let lease = self.leases.remove(attempt)?;
        if let Some(worker) = self.workers.get_mut(lease.worker) {
            worker.leases.remove(&attempt);
        }
        if let Some(sweep) = self.sweeps.get_mut(&lease.sweep) {
            sweep.leases.remove(&attempt);
        }
        self.dirty = true;
        Some(lease)
    }

    /// A lease ended without a word from its worker.
    fn lose(&mut self, attempt: Attempt, reason: &'static str, now: Now, out: &mut Out) {
        let Some(lease) = self.detach(attempt) else { return };
        let worker = self.workers.get(lease.worker).map(|worker| worker.id.clone());
        let worker = worker.unwrap_or_default();
        out.push(Effect::Fact(Fact::LeaseLost { attempt, worker: worker.clone(), reason }));
        let lost = failure(FailureClass::WorkerLost, format!("worker {worker} was lost: {reason}"));
        let tasks: Vec<TaskKey> = lease.open_tasks().collect();
        for task in tasks {
            self.end_attempt(&lease, task, attempt, &lost, false, now, out);
        }
        self.finish_sweep(lease.sweep, now, out);
    }

    /// A worker that leaves gives back a lease: nobody is to blame.
    fn give_back(&mut self, attempt: Attempt, out: &mut Out) {
        let Some(lease) = self.detach(attempt) else { return };
        let name = self.workers.get(lease.worker).map(|worker| worker.hello.name.clone());
        let name = name.unwrap_or_default();
        let Some(sweep) = self.sweeps.get_mut(&lease.sweep) else { return };
        let epoch = sweep.retries;
        let tasks: Vec<TaskKey> = lease.open_tasks().collect();
        for task in tasks {
            let trouble = sweep.trouble.entry(task).or_default();
            trouble.ended = Some(attempt);
            trouble.reported = false;
            let record = trouble.record(Outcome::Open, epoch, &name, 0);
            out.push(Effect::Write(Write::Task { sweep: lease.sweep, task, record }));
            sweep.release(task, false);
        }
    }

    /// The worker never learned of its lease.
    fn undelivered(&mut self, attempt: Attempt) {
        let Some(lease) = self.detach(attempt) else { return };
        if let Some(sweep) = self.sweeps.get_mut(&lease.sweep) {
            lease.open_tasks().for_each(|task| sweep.release(task, false));
        }
    }

    /// One task of a lease has failed: it is tried again or given up.
    #[expect(clippy::too_many_arguments, reason = "one transition, fed from two places")]
    pub(super) fn end_attempt(
        &mut self,
        lease: &Lease,
        task: TaskKey,
        attempt: Attempt,
        failure: &pb::Failure,
        reported: bool,
        now: Now,
        out: &mut Out,
    ) {
        let name = self.workers.get(lease.worker).map(|worker| worker.hello.name.clone());
        let policy = self.config.retry;
        let Some(sweep) = self.sweeps.get_mut(&lease.sweep) else { return };
        let (max_attempts, epoch) = (sweep.plan.spec().max_attempts, sweep.retries);
        let trouble = sweep.trouble.entry(task).or_default();
        let next = trouble.failed(&policy, max_attempts, task, attempt, failure);
        trouble.ended = Some(attempt);
        trouble.reported = reported;
        let is_final = next == Next::GiveUp;
        let outcome = if is_final { Outcome::Failed } else { Outcome::Open };
        let record = trouble.record(outcome, epoch, &name.unwrap_or_default(), now.unix_ms);
        out.push(Effect::Write(Write::Task { sweep: lease.sweep, task, record }));
        match next {
            Next::Ready => sweep.release(task, false),
            Next::After(wait) => {
                sweep.release(task, true);
                self.delayed.insert((now.mono + wait, lease.sweep, task));
            }
            Next::GiveUp => {
                sweep.rate.count(now);
                sweep.give_up(task, attempt);
            }
        }
        if sweep.recent.len() == RECENT_FAILURES {
            sweep.recent.pop_front();
        }
        sweep.recent.push_back(RecentFailure { task, attempt, failure: failure.clone(), is_final });
        out.push(Effect::Fact(Fact::TaskFailed {
            sweep: sweep.plan.id().to_owned(),
            task,
            attempt,
            class: FailureClass::from_pb(failure.class),
            message: failure.message.clone(),
            is_final,
        }));
        self.dirty = true;
    }

    /// The attempt that the next grant will carry.
    pub(super) fn next_attempt(&self) -> Attempt {
        Attempt(Attempt::new(self.incarnation, self.counter).0 + 1)
    }

    /// The sweep that `text` means: an id, a unique prefix of one, or `last`.
    ///
    /// # Errors
    /// When nothing or several sweeps fit.
    pub fn find(&self, text: &str) -> Result<u32, Refusal> {
        if let Some(&number) = self.by_id.get(text) {
            return Ok(number);
        }
        let none = || Refusal::NoSuchSweep(text.to_owned());
        if text == "last" {
            return self.sweeps.last_key_value().map(|(number, _)| *number).ok_or_else(none);
        }
        let fits = |sweep: &&Sweep| !text.is_empty() && sweep.plan.id().starts_with(text);
        let found: Vec<u32> = self.sweeps.values().filter(fits).map(|sweep| sweep.number).collect();
        match found[..] {
            [] => Err(none()),
            [number] => Ok(number),
            _ => Err(Refusal::Ambiguous { prefix: text.to_owned(), count: found.len() }),
        }
    }

    /// A sweep by number.
    pub fn sweep(&self, number: u32) -> Option<&Sweep> {
        self.sweeps.get(&number)
    }

    /// All sweeps, oldest first.
    pub fn sweeps(&self) -> impl Iterator<Item = &Sweep> {
        self.sweeps.values()
    }

    /// The union of what workers can run.
    pub fn catalog(&self) -> &pb::Catalog {
        &self.catalog
    }

    /// Whether no lease is live and none of a former incarnation can be.
    pub fn is_quiet(&self) -> bool {
        self.leases.is_empty() && self.grace_until == Duration::ZERO
    }
}
