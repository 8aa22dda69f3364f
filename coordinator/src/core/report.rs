//! What workers say: heartbeats and records. Fencing is decided here, per record.
//!
//! | the record's attempt | verdict |
//! |---|---|
//! | live lease of this worker that holds the task | applied, ACCEPTED |
//! | ended this very task by a report of its own | ACCEPTED, nothing changes |
//! | of a former incarnation, and could still be adopted | UNKNOWN_LEASE |
//! | anything else: expired, cancelled, overtaken | FENCED |
//!
//! Every write of a record has a key made of task, attempt and sequence (or is a state that is only
//! ever replaced by the same one), so that a record sent twice changes nothing.

use sweep_proto::{
    id::{Attempt, FailureClass, TaskKey, TaskKind},
    pb,
    spec::ImportPlan,
};

use super::{
    event::{Body, Chunk, Effect, Fact, Held, Outcome, Record, Write},
    lease::{Lease, LeasedTask},
    machine::{Core, Out},
    model::Cell,
    retry::truncate,
    time::Now,
};

/// Log lines kept of one task and attempt.
pub const MAX_LOG_LINES: u32 = 2_000;
/// Bytes kept of a log line.
const LOG_LINE_BYTES: usize = 8 << 10;
/// Metric names of one sweep.
pub const MAX_METRICS: usize = 10_000;

/// What a former incarnation's lease may still speak for.
enum Claim {
    /// The task can be taken over.
    Open,
    /// The attempt itself has ended the task.
    Ended,
    /// Somebody else has it, or had it since.
    Stale,
}

impl Core {
    /// Renews what the worker holds; returns what it must drop.
    pub(super) fn heartbeat(
        &mut self,
        worker: u64,
        held: &[Held],
        now: Now,
        out: &mut Out,
    ) -> Vec<u64> {
        let mut revoked = Vec::new();
        for lease in held {
            if !self.renew(worker, lease, now, out) {
                revoked.push(lease.attempt.0);
            }
        }
        let who = self.workers.get(worker).map(|w| (w.hello.name.clone(), &w.hello.instance));
        // It has named everything that it holds.
        if let Some((name, instance)) = who
            && self.unaccounted.get(&name) == Some(instance)
        {
            self.account_for(&name);
        }
        revoked
    }

    /// Renews or adopts one lease; returns whether the worker may go on.
    fn renew(&mut self, worker: u64, held: &Held, now: Now, out: &mut Out) -> bool {
        if let Some(lease) = self.leases.get_mut(held.attempt) {
            if lease.worker != worker {
                return false;
            }
            lease.progress = held.progress;
            lease.progress_total = held.progress_total;
            self.leases.renew(held.attempt, now.mono + self.config.timing.expiry());
            let number = self.leases.get(held.attempt).map(|lease| lease.sweep);
            for (_, task) in &held.tasks {
                self.extend(held.attempt, number.unwrap_or_default(), *task);
            }
            return true;
        }
        let Some((first, _)) = held.tasks.first() else { return false };
        if held.tasks.iter().any(|(sweep, _)| sweep != first) {
            return false;
        }
        let Some(&number) = self.by_id.get(first) else { return false };
        let mut tasks = Vec::new();
        for (_, task) in &held.tasks {
            match self.claim(number, *task, held.attempt) {
                Claim::Stale => return false,
                Claim::Ended => {
                    tasks.push((*task, LeasedTask { ended: true, ..LeasedTask::default() }));
                }
                Claim::Open => tasks.push((*task, self.taken_over(number, *task, held.attempt))),
            }
        }
        if tasks.iter().any(|(_, task)| !task.ended) {
            self.adopt(held.attempt, number, worker, &tasks, now, out);
            if let Some(lease) = self.leases.get_mut(held.attempt) {
                lease.progress = held.progress;
                lease.progress_total = held.progress_total;
            }
        }
        true
    }

    /// What is known of a task that a former incarnation leased.
    fn taken_over(&self, number: u32, task: TaskKey, attempt: Attempt) -> LeasedTask {
        let sweep = self.sweeps.get(&number);
        let started = sweep.is_some_and(|sweep| sweep.started.get(&task) == Some(&attempt));
        LeasedTask { started, ..LeasedTask::default() }
    }

    /// What an attempt without a live lease may still say about a task.
    fn claim(&self, sweep: u32, task: TaskKey, attempt: Attempt) -> Claim {
        let Some(sweep) = self.sweeps.get(&sweep).filter(|s| s.plan.contains(task)) else {
            return Claim::Stale;
        };
        let trouble = sweep.trouble.get(&task);
        if sweep.cell(task) == Some(Cell::Done(attempt))
            || trouble.is_some_and(|t| t.reported && t.ended == Some(attempt))
        {
            return Claim::Ended;
        }
        let is_former = attempt.incarnation() < self.incarnation;
        if is_former && sweep.is_ready(task) && attempt >= sweep.floor(task) {
            Claim::Open
        } else {
            Claim::Stale
        }
    }

    /// Adds a task to an adopted lease that named only some of its tasks when it was taken over.
    fn extend(&mut self, attempt: Attempt, number: u32, task: TaskKey) {
        let is_new = self.leases.get(attempt).is_some_and(|l| !l.tasks.contains_key(&task));
        if is_new && matches!(self.claim(number, task, attempt), Claim::Open) {
            let leased = self.taken_over(number, task, attempt);
            if let Some(sweep) = self.sweeps.get_mut(&number) {
                sweep.lease(task, attempt);
            }
            if let Some(lease) = self.leases.get_mut(attempt) {
                lease.tasks.insert(task, leased);
            }
        }
    }

    /// Applies records in order; one verdict per record.
    pub(super) fn report(
        &mut self,
        worker: u64,
        records: Vec<Result<Record, String>>,
        now: Now,
        out: &mut Out,
    ) -> Vec<pb::Verdict> {
        let mut verdicts = Vec::with_capacity(records.len());
        let mut records = records.into_iter();
        for record in records.by_ref() {
            let verdict = match record {
                Ok(record) => self.record(worker, record, now, out),
                Err(problem) => self.invalid(worker, problem, out),
            };
            verdicts.push(verdict);
            if verdict == pb::Verdict::UnknownLease {
                break;
            }
        }
        verdicts.extend(records.map(|_| pb::Verdict::Unspecified));
        verdicts
    }

    fn invalid(&self, worker: u64, problem: String, out: &mut Out) -> pb::Verdict {
        let worker = self.workers.get(worker).map(|w| w.id.clone()).unwrap_or_default();
        out.push(Effect::Fact(Fact::RecordInvalid { worker, problem }));
        pb::Verdict::Invalid
    }

    fn record(&mut self, worker: u64, record: Record, now: Now, out: &mut Out) -> pb::Verdict {
        let Some(&number) = self.by_id.get(&record.sweep) else { return pb::Verdict::Fenced };
        if !self.sweeps[&number].plan.contains(record.task) {
            let problem = format!("sweep `{}` has no task {}", record.sweep, record.task);
            return self.invalid(worker, problem, out);
        }
        let is_held = |l: &&Lease| l.worker == worker && l.sweep == number;
        if self.leases.get(record.attempt).as_ref().is_some_and(is_held) {
            self.extend(record.attempt, number, record.task);
        }
        let held = self.leases.get(record.attempt).filter(is_held);
        match held.and_then(|lease| lease.tasks.get(&record.task)) {
            Some(task) if task.ended => pb::Verdict::Accepted,
            Some(_) => match self.apply(number, worker, record, now, out) {
                Ok(()) => pb::Verdict::Accepted,
                Err(problem) => self.invalid(worker, problem, out),
            },
            None => match self.claim(number, record.task, record.attempt) {
                Claim::Ended => pb::Verdict::Accepted,
                Claim::Open => pb::Verdict::UnknownLease,
                Claim::Stale => pb::Verdict::Fenced,
            },
        }
    }

    /// Applies a record of a live lease.
    fn apply(
        &mut self,
        sweep: u32,
        worker: u64,
        record: Record,
        now: Now,
        out: &mut Out,
    ) -> Result<(), String> {
        let Record { attempt, sequence, task, body, .. } = record;
        match body {
            Body::Started { resumed_from } => {
                self.started(sweep, task, attempt, resumed_from, out);
                Ok(())
            }
            Body::Metrics(chunk) => self.metrics(sweep, task, attempt, sequence, chunk, out),
            Body::Checkpoint(checkpoint) => self.publish(sweep, task, attempt, checkpoint, out),
            Body::TrainerState(state) => self.save(sweep, task, attempt, state, out),
            Body::Log(entry) => {
                self.log(sweep, task, attempt, sequence, entry, out);
                Ok(())
            }
            Body::Done(manifest) => self.done(sweep, worker, task, attempt, manifest, now, out),
            Body::Failed(failure) => {
                self.failed(worker, task, attempt, &failure, now, out);
                Ok(())
            }
        }
    }

    fn started(
        &mut self,
        number: u32,
        task: TaskKey,
        attempt: Attempt,
        resumed_from: Option<u64>,
        out: &mut Out,
    ) {
        let lease = self.leases.get_mut(attempt);
        if let Some(leased) = lease.and_then(|lease| lease.tasks.get_mut(&task)) {
            leased.started = true;
        }
        out.push(Effect::Write(Write::Started { sweep: number, task, attempt, resumed_from }));
        if task.kind != TaskKind::Source {
            return;
        }
        let Some(sweep) = self.sweeps.get_mut(&number) else { return };
        let model = sweep.model_mut(task.model);
        // Metric points beyond `resumed_from` are void from now on; a trainer state that stands
        // behind such points would skip them.
        let is_void = model.resume.as_ref().is_some_and(|(saved_by, state)| {
            *saved_by < attempt && resumed_from.is_none_or(|step| step < state.step)
        });
        if is_void {
            model.resume = None;
            let write = Write::Resume { sweep: number, model: task.model, state: None };
            out.push(Effect::Write(write));
        }
    }

    fn metrics(
        &mut self,
        number: u32,
        task: TaskKey,
        attempt: Attempt,
        sequence: u64,
        chunk: Chunk,
        out: &mut Out,
    ) -> Result<(), String> {
        let Some(sweep) = self.sweeps.get_mut(&number) else { return Ok(()) };
        let producer = sweep.plan.producer(task).unwrap_or_default();
        let is_own = chunk.metric.strip_prefix(producer).is_some_and(|rest| rest.starts_with('.'));
        if !is_own {
            return Err(format!("metric `{}` does not belong to `{producer}`", chunk.metric));
        }
        if !sweep.metrics.contains(&chunk.metric) {
            if sweep.metrics.len() >= MAX_METRICS {
                return Err(format!("the sweep has {MAX_METRICS} metrics already"));
            }
            sweep.metrics.insert(chunk.metric.clone());
            let mut axes = chunk.axes.clone();
            if let Some(partner) = sweep.plan.partner_label(task) {
                axes.insert(0, partner_axis(partner));
            }
            let summary =
                pb::MetricSummary { metric: chunk.metric.clone(), unit: chunk.unit.clone(), axes };
            out.push(Effect::Write(Write::MetricName { sweep: number, summary }));
        }
        let leased = self.leases.get(attempt).and_then(|lease| lease.tasks.get(&task));
        if leased.is_some_and(|leased| !leased.started) {
            // Values count only behind the beginning of their attempt.
            self.started(number, task, attempt, None, out);
        }
        let write = Write::Metrics { sweep: number, task, attempt, sequence, chunk };
        out.push(Effect::Write(write));
        Ok(())
    }

    fn publish(
        &mut self,
        number: u32,
        task: TaskKey,
        attempt: Attempt,
        checkpoint: pb::Checkpoint,
        out: &mut Out,
    ) -> Result<(), String> {
        let Some(sweep) = self.sweeps.get_mut(&number) else { return Ok(()) };
        if task.kind != TaskKind::Source {
            return Err(format!("task {task} cannot publish checkpoints"));
        }
        if sweep.plan.steps(task.model).binary_search(&checkpoint.step).is_err() {
            return Err(format!("no checkpoint is wanted at step {}", checkpoint.step));
        }
        match sweep.plan.model(task.model).and_then(|model| model.entry.import()) {
            Some(import) => check_imported(import, &checkpoint)?,
            None => check_blob(sweep.plan.id(), task, attempt, checkpoint.file.as_ref())?,
        }
        if sweep.publish(task.model, attempt, &checkpoint) {
            self.dirty = true;
            let model = task.model;
            let write = Write::Checkpoint { sweep: number, model, attempt, checkpoint };
            out.push(Effect::Write(write));
        }
        Ok(())
    }

    fn save(
        &mut self,
        number: u32,
        task: TaskKey,
        attempt: Attempt,
        state: pb::TrainerState,
        out: &mut Out,
    ) -> Result<(), String> {
        let Some(sweep) = self.sweeps.get_mut(&number) else { return Ok(()) };
        if task.kind != TaskKind::Source {
            return Err(format!("task {task} cannot save a trainer state"));
        }
        check_blob(sweep.plan.id(), task, attempt, state.file.as_ref())?;
        let model = sweep.model_mut(task.model);
        let known = model.resume.as_ref().map(|(saved_by, state)| (*saved_by, state.step));
        if known.is_none_or(|known| (attempt, state.step) > known) {
            model.resume = Some((attempt, state));
            let write =
                Write::Resume { sweep: number, model: task.model, state: model.resume.clone() };
            out.push(Effect::Write(write));
        }
        Ok(())
    }

    fn log(
        &mut self,
        sweep: u32,
        task: TaskKey,
        attempt: Attempt,
        sequence: u64,
        mut entry: pb::LogEntry,
        out: &mut Out,
    ) {
        let Some(lease) = self.leases.get_mut(attempt) else { return };
        let worker = self.workers.get(lease.worker).map(|w| w.hello.name.clone());
        let Some(leased) = lease.tasks.get_mut(&task) else { return };
        leased.log_lines += 1;
        if leased.log_lines > MAX_LOG_LINES {
            return;
        }
        entry.text = if leased.log_lines == MAX_LOG_LINES {
            format!("{MAX_LOG_LINES} lines are kept of one attempt; further ones are dropped")
        } else {
            truncate(&entry.text, LOG_LINE_BYTES)
        };
        entry.level = truncate(&entry.level, 16);
        let worker = worker.unwrap_or_default();
        out.push(Effect::Write(Write::Log { sweep, task, attempt, sequence, worker, entry }));
    }

    #[expect(clippy::too_many_arguments, reason = "one transition, all of it needed")]
    fn done(
        &mut self,
        number: u32,
        worker: u64,
        task: TaskKey,
        attempt: Attempt,
        manifest: pb::Manifest,
        now: Now,
        out: &mut Out,
    ) -> Result<(), String> {
        let Some(sweep) = self.sweeps.get_mut(&number) else { return Ok(()) };
        for blob in &manifest.artifacts {
            check_blob(sweep.plan.id(), task, attempt, Some(blob))?;
        }
        let mut trouble = sweep.trouble.get(&task).cloned().unwrap_or_default();
        trouble.ended = Some(attempt);
        trouble.reported = true;
        let name = self.workers.get_mut(worker).map(|worker| {
            worker.tasks_done += 1;
            worker.hello.name.clone()
        });
        let mut record =
            trouble.record(Outcome::Done, sweep.retries, &name.unwrap_or_default(), now.unix_ms);
        record.elapsed_ms = manifest.elapsed_ms;
        out.push(Effect::Write(Write::Manifest { sweep: number, task, attempt, manifest }));
        out.push(Effect::Write(Write::Task { sweep: number, task, record }));
        sweep.rate.count(now);
        sweep.complete(task, attempt);
        let id = sweep.plan.id().to_owned();
        out.push(Effect::Fact(Fact::TaskDone { sweep: id, task, attempt }));
        self.dirty = true;
        self.close(attempt, task);
        self.finish_sweep(number, now, out);
        Ok(())
    }

    fn failed(
        &mut self,
        worker: u64,
        task: TaskKey,
        attempt: Attempt,
        failure: &pb::Failure,
        now: Now,
        out: &mut Out,
    ) {
        if FailureClass::from_pb(failure.class) == FailureClass::Poisoned
            && let Some(worker) = self.workers.get_mut(worker)
        {
            worker.poisoned = true;
        }
        // Out of the table for a moment: the transition needs the whole core.
        let Some(mut lease) = self.leases.remove(attempt) else { return };
        let number = lease.sweep;
        if let Some(leased) = lease.tasks.get_mut(&task) {
            leased.ended = true;
        }
        self.end_attempt(&lease, task, attempt, failure, true, now, out);
        self.leases.insert(attempt, lease);
        self.close(attempt, task);
        self.finish_sweep(number, now, out);
    }

    /// Marks a task of a lease as ended; the lease goes with its last task.
    fn close(&mut self, attempt: Attempt, task: TaskKey) {
        let Some(lease) = self.leases.get_mut(attempt) else { return };
        if let Some(leased) = lease.tasks.get_mut(&task) {
            leased.ended = true;
        }
        if lease.open_tasks().next().is_none() {
            self.detach(attempt);
        }
    }
}

/// The axis that tells with what a checkpoint was compared.
pub fn partner_axis(label: String) -> pb::Axis {
    pb::Axis { name: PARTNER.to_owned(), size: 1, labels: vec![label] }
}

/// Name of that axis.
const PARTNER: &str = "partner";

/// Files of one checkpoint; the largest published models have about a hundred.
const MAX_FILES: usize = 1024;

/// Checks that a worker made known what the sweep asked for, and within bounds.
fn check_imported(import: &ImportPlan, checkpoint: &pb::Checkpoint) -> Result<(), String> {
    let imported = checkpoint.imported.as_ref().ok_or("the record names no location")?;
    let found = import.checkpoints.binary_search_by_key(&checkpoint.step, |found| found.step);
    let name = found.map_or("", |index| import.checkpoints[index].name.as_str());
    let expected = import.at.replacen("{}", name, 1);
    if imported.location != expected {
        return Err(format!(
            "step {} is said to be at `{}`, expected `{expected}`",
            checkpoint.step,
            truncate(&imported.location, 256)
        ));
    }
    let too_long = |file: &pb::Blob| file.name.len() > 512 || file.sha256.len() > 64;
    let long_options = imported.options.as_ref().is_some_and(|options| {
        let texts = [&options.family, &options.dtype, &options.processing, &options.tokenizer];
        texts.into_iter().any(|text| text.len() > 1024)
    });
    if imported.files.len() > MAX_FILES
        || imported.files.iter().any(too_long)
        || long_options
        || checkpoint.weights_hash.len() > 64
        || checkpoint.file.is_some()
    {
        return Err(format!("the files of step {} are out of bounds", checkpoint.step));
    }
    Ok(())
}

/// Files lie in the folder of the attempt that reports them, so that no attempt can point at, or
/// overwrite, what another one wrote.
fn check_blob(
    sweep: &str,
    task: TaskKey,
    attempt: Attempt,
    blob: Option<&pb::Blob>,
) -> Result<(), String> {
    let blob = blob.ok_or("the record names no file")?;
    let folder = sweep_proto::id::artifact_key(sweep, task, attempt, "");
    let name = blob.key.strip_prefix(&folder).unwrap_or_default();
    let is_plain = |part: &str| !matches!(part, "" | "." | "..");
    if !name.split('/').all(is_plain) || blob.key.len() > 1024 || blob.name.len() > 512 {
        return Err(format!(
            "artifact key `{}` does not lie in `{folder}`",
            truncate(&blob.key, 256)
        ));
    }
    Ok(())
}
