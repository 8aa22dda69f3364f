//! Which worker gets what: the grants of [`Core`].
//!
//! Sweeps are served by priority, then in order of submission; within one, see
//! [`queue`](super::queue). A lease is one bundle: everything that is ready on one checkpoint, one
//! trajectory task, or seeds that train together. A decision looks at a bounded number of candidates.

use std::time::Duration;

use sweep_proto::{
    id::{Attempt, TaskKey, TaskKind},
    pb,
    spec::CheckpointRef,
};

use super::{
    event::{Answer, Effect, Fact, Refusal, RequestId, Wish},
    lease::{Lease, LeasedTask},
    machine::{Core, MAX_LEASES, MAX_WAITING, Out, Waiter},
    model::{Cell, Model},
    plan::{Pinned, Plan},
    retry::truncate,
    sweep::Sweep,
    time::Now,
    workers::Worker,
};

/// Longest wait of an Acquire call; shorter than what proxies cut.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

impl Core {
    /// Answers with a lease now, or later, or with nothing when the wait is over.
    pub(super) fn acquire(
        &mut self,
        request: RequestId,
        wish: Wish,
        wait: Duration,
        now: Now,
        out: &mut Out,
    ) {
        let Some(number) = self.workers.number(&wish.worker) else {
            let refusal = Refusal::UnknownWorker(wish.worker);
            return out.push(Effect::Reply(request, Answer::Refused(refusal)));
        };
        if let Some(worker) = self.workers.get_mut(number) {
            worker.last_seen = now.mono;
        }
        if self.waiting.iter().filter(|waiter| waiter.worker == number).count() >= MAX_WAITING {
            let refusal = Refusal::Full { what: "waiting calls", limit: MAX_WAITING };
            return out.push(Effect::Reply(request, Answer::Refused(refusal)));
        }
        if let Some(lease) = self.grant(number, &wish, now, out) {
            return out.push(Effect::Reply(request, Answer::Lease(Some(Box::new(lease)))));
        }
        if wait.is_zero() {
            return out.push(Effect::Reply(request, Answer::Lease(None)));
        }
        let until = now.mono + wait.min(MAX_WAIT);
        self.waiting.push_back(Waiter { request, worker: number, wish, until });
    }

    /// Offers what became ready to the calls that wait, oldest first.
    pub(super) fn serve_waiting(&mut self, now: Now, out: &mut Out) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        for waiter in std::mem::take(&mut self.waiting) {
            match self.grant(waiter.worker, &waiter.wish, now, out) {
                Some(lease) => {
                    let answer = Answer::Lease(Some(Box::new(lease)));
                    out.push(Effect::Reply(waiter.request, answer));
                }
                None => self.waiting.push_back(waiter),
            }
        }
        self.dirty = false;
    }

    fn grant(&mut self, number: u64, wish: &Wish, now: Now, out: &mut Out) -> Option<pb::Lease> {
        let worker = self.workers.get(number)?;
        if !worker.takes_work() || worker.leases.len() >= MAX_LEASES || self.counter == u32::MAX {
            return None;
        }
        let order: Vec<u32> = self.active.iter().map(|(_, sweep)| *sweep).collect();
        for sweep_number in order {
            let Some(sweep) = self.sweeps.get_mut(&sweep_number) else { continue };
            if sweep.restored || !sweep.has_ready() {
                continue;
            }
            if let Some(tasks) = next_bundle(sweep, worker, number, wish) {
                return self.lease(sweep_number, number, tasks, now, out);
            }
        }
        None
    }

    fn lease(
        &mut self,
        sweep_number: u32,
        worker_number: u64,
        tasks: Vec<TaskKey>,
        now: Now,
        out: &mut Out,
    ) -> Option<pb::Lease> {
        let attempt = self.next_attempt();
        self.counter += 1;
        let sweep = self.sweeps.get_mut(&sweep_number)?;
        let mut work = work(sweep, &tasks)?;
        let task = *tasks.first()?;
        let worker = self.workers.get_mut(worker_number)?;
        out.push(Effect::Fact(Fact::LeaseGranted {
            attempt,
            worker: worker.id.clone(),
            sweep: sweep.plan.id().to_owned(),
            task,
            tasks: tasks.len(),
        }));
        for task in &tasks {
            sweep.lease(*task, attempt);
        }
        if let pb::lease::Work::Analyse(work) = &mut work {
            let offered = offers(worker, sweep.plan.experiments());
            work.next = sweep.announce_next(&offered, worker_number);
        }
        sweep.leases.insert(attempt);
        worker.leases.insert(attempt);
        let lease = Lease {
            sweep: sweep_number,
            worker: worker_number,
            deadline: now.mono + self.config.timing.expiry(),
            tasks: tasks.into_iter().map(|task| (task, LeasedTask::default())).collect(),
            progress: 0,
            progress_total: 0,
            granted_at: now.unix_ms,
        };
        self.leases.insert(attempt, lease);
        Some(pb::Lease { attempt: attempt.0, sweep: sweep.plan.id().to_owned(), work: Some(work) })
    }
}

/// Which of these experiments a worker has.
fn offers(worker: &Worker, list: &[Pinned]) -> Vec<bool> {
    list.iter().map(|pinned| worker.offers(&pinned.name, pinned.version)).collect()
}

/// The tasks of the next lease of a sweep for a worker.
fn next_bundle(
    sweep: &mut Sweep,
    worker: &Worker,
    number: u64,
    wish: &Wish,
) -> Option<Vec<TaskKey>> {
    let offered = offers(worker, sweep.plan.experiments());
    if let Some(tasks) = sweep.next_analyses(&offered, &wish.resident, number) {
        return Some(tasks);
    }
    let offered = offers(worker, sweep.plan.compare());
    if let Some(tasks) = sweep.next_comparisons(&offered, &wish.resident) {
        return Some(tasks);
    }
    let offered = offers(worker, sweep.plan.trajectory());
    if let Some(task) = sweep.next_trajectory(&offered) {
        return Some(vec![task]);
    }
    let models = sweep.next_trainings(|sweep, model| {
        let model = sweep.plan.model(model)?;
        if model.entry.import().is_some() {
            // An import is short and needs no device.
            return Some(1);
        }
        let recipe = model.entry.recipe();
        worker.population(&recipe.name, recipe.version).filter(|_| wish.training)
    })?;
    let key = |model| TaskKey { model, kind: TaskKind::Source };
    Some(models.into_iter().map(key).collect())
}

/// What the lease tells the worker to do.
fn work(sweep: &Sweep, tasks: &[TaskKey]) -> Option<pb::lease::Work> {
    let first = tasks.first()?;
    match first.kind {
        TaskKind::Source => import(sweep, *first)
            .map(pb::lease::Work::Import)
            .or_else(|| train(sweep, tasks).map(pb::lease::Work::Train)),
        TaskKind::Analyse { step, .. } => {
            analyse(sweep, first.model, step, tasks).map(pb::lease::Work::Analyse)
        }
        TaskKind::Trajectory { .. } => trajectory(sweep, *first).map(pb::lease::Work::Trajectory),
        TaskKind::Compare { .. } => compare(sweep, tasks).map(pb::lease::Work::Compare),
    }
}

/// None when the model is one to train.
fn import(sweep: &Sweep, task: TaskKey) -> Option<pb::ImportWork> {
    let plan = &sweep.plan;
    let import = plan.model(task.model)?.entry.import()?;
    Some(pb::ImportWork {
        task: Some(task.to_pb(plan.id())),
        model: plan.model_label(task.model),
        at: import.at.clone(),
        checkpoints: import.checkpoints.clone(),
        options: Some(import.options.clone()),
    })
}

fn train(sweep: &Sweep, tasks: &[TaskKey]) -> Option<pb::TrainWork> {
    let plan = &sweep.plan;
    let model = plan.model(tasks.first()?.model)?;
    let seeds = tasks.iter().map(|task| {
        let resume = sweep.models.get(&task.model).and_then(|model| model.resume.as_ref());
        Some(pb::TrainSeed {
            task: Some(task.to_pb(plan.id())),
            model: plan.model_label(task.model),
            seed: plan.model(task.model)?.seed?,
            resume: resume.map(|(_, state)| state.clone()),
        })
    });
    Some(pb::TrainWork {
        recipe: model.entry.recipe().name.clone(),
        version: model.entry.recipe().version,
        params: model.params(),
        seeds: seeds.collect::<Option<_>>()?,
        publish_steps: model.steps().to_vec(),
    })
}

fn analyse(sweep: &Sweep, model: u32, step: u64, tasks: &[TaskKey]) -> Option<pb::AnalyseWork> {
    let plan = &sweep.plan;
    let published = &sweep.models.get(&model)?.published;
    let of = |found: Option<(&u64, &super::model::Published)>| {
        found.map(|(_, published)| published.checkpoint.clone())
    };
    Some(pb::AnalyseWork {
        model: plan.model_label(model),
        checkpoint: Some(published.get(&step)?.checkpoint.clone()),
        init: of(published.first_key_value()),
        previous: of(published.range(..step).next_back()),
        tasks: analyse_tasks(plan, tasks),
        next: None,
    })
}

fn analyse_tasks(plan: &Plan, tasks: &[TaskKey]) -> Vec<pb::AnalyseTask> {
    let task = |task: &TaskKey| {
        let experiment = plan.experiment(task.kind)?;
        Some(pb::AnalyseTask {
            task: Some(task.to_pb(plan.id())),
            experiment: experiment.name.clone(),
            version: experiment.version,
            params: experiment.params.clone(),
        })
    };
    tasks.iter().filter_map(task).collect()
}

fn compare(sweep: &Sweep, tasks: &[TaskKey]) -> Option<pb::CompareWork> {
    let plan = &sweep.plan;
    let (first, second) = sweep.couple_key(*tasks.first()?)?;
    let checkpoint = |at: CheckpointRef| {
        let published = sweep.models.get(&at.model)?.published.get(&at.step)?;
        Some(published.checkpoint.clone())
    };
    Some(pb::CompareWork {
        first_model: plan.model_label(first.model),
        first: Some(checkpoint(first)?),
        second_model: plan.model_label(second.model),
        second: Some(checkpoint(second)?),
        tasks: analyse_tasks(plan, tasks),
    })
}

fn trajectory(sweep: &Sweep, task: TaskKey) -> Option<pb::TrajectoryWork> {
    let plan = &sweep.plan;
    let experiment = plan.experiment(task.kind)?;
    let TaskKind::Trajectory { index } = task.kind else { return None };
    let mut work = pb::TrajectoryWork {
        task: Some(task.to_pb(plan.id())),
        model: plan.subject(task),
        model_index: task.model,
        experiment: experiment.name.clone(),
        version: experiment.version,
        params: experiment.params.clone(),
        ..Default::default()
    };
    if sweep.is_joint(index) {
        let members = plan.members(task.model, index)?;
        work.members = members.filter_map(|model| member(sweep, model, experiment)).collect();
    } else {
        work.checkpoints = checkpoints(sweep.models.get(&task.model)?);
    }
    Some(work)
}

fn checkpoints(model: &Model) -> Vec<pb::Checkpoint> {
    model.published.values().map(|published| published.checkpoint.clone()).collect()
}

/// Bytes of a model's failure that its group is told.
const MEMBER_FAILURE_BYTES: usize = 300;

fn member(sweep: &Sweep, index: u32, experiment: &Pinned) -> Option<pb::Member> {
    let plan = &sweep.plan;
    let model = plan.model(index)?;
    let known = sweep.models.get(&index);
    let failed = known.is_some_and(|known| matches!(known.train, Cell::Failed(_)));
    let failure = || {
        let task = TaskKey { model: index, kind: TaskKind::Source };
        let last = sweep.trouble.get(&task).and_then(|trouble| trouble.failures.back());
        let message = last.map(|(_, failure)| truncate(&failure.message, MEMBER_FAILURE_BYTES));
        message.filter(|text| !text.is_empty()).unwrap_or_else(|| "its training failed".to_owned())
    };
    let trained = model.entry.import().is_none();
    Some(pb::Member {
        model_index: index,
        model: plan.model_label(index),
        seed: model.seed,
        recipe: if trained { model.entry.recipe().name.clone() } else { String::new() },
        params: if trained { model.params() } else { String::new() },
        failure: if failed { failure() } else { String::new() },
        checkpoints: known
            .filter(|_| experiment.reads_checkpoints)
            .map_or_else(Vec::new, checkpoints),
        axes: model.entry.axes().map(str::to_owned).collect(),
    })
}

impl Core {
    /// Takes over a lease that a former incarnation granted. `tasks` are those that are open.
    pub(super) fn adopt(
        &mut self,
        attempt: Attempt,
        sweep_number: u32,
        worker_number: u64,
        tasks: &[(TaskKey, LeasedTask)],
        now: Now,
        out: &mut Out,
    ) {
        let deadline = now.mono + self.config.timing.expiry();
        let Some(sweep) = self.sweeps.get_mut(&sweep_number) else { return };
        let Some(worker) = self.workers.get_mut(worker_number) else { return };
        for (task, leased) in tasks {
            if !leased.ended {
                sweep.lease(*task, attempt);
            }
        }
        sweep.leases.insert(attempt);
        worker.leases.insert(attempt);
        out.push(Effect::Fact(Fact::LeaseAdopted { attempt, worker: worker.id.clone() }));
        let lease = Lease {
            sweep: sweep_number,
            worker: worker_number,
            deadline,
            tasks: tasks.iter().copied().collect(),
            progress: 0,
            progress_total: 0,
            granted_at: now.unix_ms,
        };
        self.leases.insert(attempt, lease);
    }
}
