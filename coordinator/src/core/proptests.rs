//! Random sequences of events, restarts included, against the invariants of the core, and random
//! preemptions against the exactness of metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use proptest::prelude::*;
use serde_json::{Value, json};
use sweep_proto::{
    id::{Attempt, FailureClass, TaskKey, TaskKind, failure},
    pb,
};

use super::{
    event::{Answer, Body, Event},
    model::{Cell, State},
    scenario::{World, small, task},
    sweep::{Counts, Sweep, kind_index},
};
use crate::store::metrics::SeriesReader;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Op {
    Join(u8),
    Return(u8),
    Leave(u8),
    Acquire {
        worker: u8,
        training: bool,
    },
    /// Names all leases that the worker ever got, or none.
    Beat {
        worker: u8,
        all: bool,
    },
    /// A record about some task of some lease that the worker ever got.
    Say {
        worker: u8,
        lease: u8,
        task: u8,
        what: What,
    },
    Undelivered {
        worker: u8,
        lease: u8,
    },
    Pass(u16),
    Cancel,
    Retry,
    Submit,
    Restart,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Start(Option<u8>),
    Publish(u8),
    Save(u8),
    Measure(u8),
    Done,
    Fail(u8),
}

const CLASSES: [FailureClass; 8] = [
    FailureClass::Transient,
    FailureClass::Preempted,
    FailureClass::WorkerLost,
    FailureClass::OutOfMemory,
    FailureClass::InputMissing,
    FailureClass::Permanent,
    FailureClass::Poisoned,
    FailureClass::Cancelled,
];

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        1 => proptest::option::of(0..3u8).prop_map(What::Start),
        4 => (0..4u8).prop_map(What::Publish),
        1 => (0..3u8).prop_map(What::Save),
        1 => (0..4u8).prop_map(What::Measure),
        5 => Just(What::Done),
        2 => (0..8u8).prop_map(What::Fail),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let worker = 0..3u8;
    prop_oneof![
        2 => worker.clone().prop_map(Op::Join),
        2 => worker.clone().prop_map(Op::Return),
        1 => worker.clone().prop_map(Op::Leave),
        8 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, training)| Op::Acquire { worker, training }),
        4 => (worker.clone(), any::<bool>()).prop_map(|(worker, all)| Op::Beat { worker, all }),
        20 => (worker.clone(), any::<u8>(), any::<u8>(), what())
            .prop_map(|(worker, lease, task, what)| Op::Say { worker, lease, task, what }),
        1 => (worker, any::<u8>()).prop_map(|(worker, lease)| Op::Undelivered { worker, lease }),
        3 => (0..20_000u16).prop_map(Op::Pass),
        1 => Just(Op::Cancel),
        1 => Just(Op::Retry),
        1 => Just(Op::Submit),
        2 => Just(Op::Restart),
    ]
}

fn document() -> Value {
    let mut document = small(3);
    document["experiments"] = json!(["probe", "norms"]);
    document["trajectory"] = json!(["pca", "order", "drift", "rank"]);
    document["compare"] = json!([
        { "match": { "pairs": "seeds", "at": "all" } },
        { "match": { "pairs": "consecutive" } },
        { "match": { "pairs": [["r-lr=0.1-seed0", "r-lr=0.5-seed0"], ["r-lr=0.1-seed1", "r-lr=0.1-seed0"]] } },
    ]);
    let other = json!({
        "train": { "recipe": "r", "params": { "lr": 0.5 } },
        "checkpoints": { "steps": [100] },
    });
    document["models"].as_array_mut().unwrap().push(other);
    document["max_failures"] = json!(12);
    document
}

struct Checker {
    world: World,
    /// Every task that was done once.
    done: BTreeMap<TaskKey, Attempt>,
    /// The highest attempt granted.
    highest: Attempt,
}

impl Checker {
    fn apply(&mut self, op: &Op) {
        let name = |worker: u8| format!("w{worker}");
        match op {
            Op::Join(worker) => {
                self.world.register(&name(*worker), true);
            }
            Op::Return(worker) => {
                self.world.register(&name(*worker), false);
            }
            Op::Pass(ms) => self.world.advance(Duration::from_millis(u64::from(*ms))),
            Op::Submit => assert!(!self.world.submit(), "the sweep is there already"),
            Op::Restart => self.restart(),
            Op::Cancel => {
                let sweep = "last".to_owned();
                self.world.ask(Event::Cancel { request: 1, sweep });
            }
            Op::Retry => {
                let sweep = "last".to_owned();
                self.world.ask(Event::Retry { request: 1, sweep });
            }
            Op::Leave(worker)
            | Op::Acquire { worker, .. }
            | Op::Beat { worker, .. }
            | Op::Say { worker, .. }
            | Op::Undelivered { worker, .. } => {
                if self.world.workers.contains_key(&name(*worker)) {
                    self.apply_of(&name(*worker), op);
                }
            }
        }
    }

    fn apply_of(&mut self, name: &str, op: &Op) {
        let leases: Vec<Attempt> = self.world.workers[name].leases.keys().copied().collect();
        let pick = |index: u8| leases.get(usize::from(index) % leases.len().max(1)).copied();
        match op {
            Op::Leave(_) => {
                let worker = self.world.workers[name].id.clone();
                self.world.ask(Event::Leave { request: 1, worker });
            }
            Op::Acquire { training, .. } => {
                if let Answer::Lease(Some(lease)) = self.world.acquire(name, *training, &[]) {
                    let attempt = Attempt(lease.attempt);
                    assert!(attempt > self.highest, "attempts strictly increase");
                    self.highest = attempt;
                    let is_train = matches!(lease.work, Some(pb::lease::Work::Train(_)));
                    assert!(*training || !is_train, "no trainings for who wants none");
                }
            }
            Op::Beat { all, .. } => {
                self.world.beat(name, if *all { &leases } else { &[] });
            }
            Op::Say { lease, task, what, .. } => {
                let Some(attempt) = pick(*lease) else { return };
                let tasks = &self.world.workers[name].leases[&attempt];
                let task = tasks[usize::from(*task) % tasks.len()];
                self.say(name, task, attempt, *what);
            }
            Op::Undelivered { lease, .. } => {
                // Only the lease that was granted last can turn out to be undelivered.
                if let Some(attempt) = pick(*lease).filter(|attempt| *attempt == self.highest) {
                    self.world.step(Event::Undelivered { attempt });
                }
            }
            Op::Join(_)
            | Op::Return(_)
            | Op::Pass(_)
            | Op::Cancel
            | Op::Retry
            | Op::Submit
            | Op::Restart => {}
        }
    }

    fn say(&mut self, name: &str, task: TaskKey, attempt: Attempt, what: What) {
        let body = match what {
            What::Start(step) => Body::Started { resumed_from: step.map(|s| u64::from(s) * 50) },
            What::Publish(step) => self.world.checkpoint(task, attempt, u64::from(step) * 100),
            What::Save(step) => self.world.state(task, attempt, u64::from(step) * 50),
            What::Measure(step) => {
                let producer = self.world.plan.producer(task).unwrap().to_owned();
                World::metric(&format!("{producer}.loss"), &[(u64::from(step), 1.0)])
            }
            What::Done => Body::Done(pb::Manifest::default()),
            What::Fail(class) => Body::Failed(failure(CLASSES[usize::from(class)], "it failed")),
        };
        // Time passes first, so that what changes below is the record's doing.
        self.world.step(Event::Tick);
        let before = picture(&self.world, false);
        let record = self.world.record(task, attempt, body);
        let verdict = match self.world.report(name, vec![record.clone()]) {
            Answer::Verdicts(verdicts) => verdicts[0],
            Answer::Refused(_) => return,
            answer => panic!("{answer:?}"),
        };
        let after = picture(&self.world, false);
        if verdict != pb::Verdict::Accepted {
            assert_eq!(before, after, "{verdict:?} changes nothing");
            return;
        }
        // Sent again, the record changes nothing.
        let again = self.world.report(name, vec![record]);
        if let Answer::Verdicts(verdicts) = again {
            assert!(
                matches!(verdicts[0], pb::Verdict::Accepted | pb::Verdict::Fenced),
                "{verdicts:?}"
            );
            assert_eq!(after, picture(&self.world, false), "a repeated record changes nothing");
        }
    }

    fn restart(&mut self) {
        let before = picture(&self.world, true);
        self.world.restart();
        assert_eq!(before, picture(&self.world, true), "the core is rebuilt from the store");
        self.highest = self.highest.max(Attempt(u64::from(self.highest.incarnation()) << 32));
    }

    fn check(&mut self) {
        let core = &self.world.core;
        let sweep = core.sweep(1).unwrap();
        let mut counts = [Counts::default(); 4];
        let mut leased = BTreeSet::new();
        for (attempt, lease) in core.leases.iter() {
            assert!(sweep.leases.contains(&attempt));
            assert!(lease.open_tasks().next().is_some(), "a lease ends with its last task");
            for task in lease.open_tasks() {
                assert!(leased.insert(task), "{task} has two live leases");
                assert_eq!(sweep.cell(task), Some(Cell::Leased(attempt)));
            }
        }
        let queued = queued(sweep);
        for task in all_tasks(sweep) {
            let state = sweep.state(task);
            let counts = &mut counts[kind_index(task.kind)];
            match state {
                State::Running(_) => counts.running += 1,
                State::Done(attempt) => {
                    counts.done += 1;
                    let first = *self.done.entry(task).or_insert(attempt);
                    assert_eq!(first, attempt, "done absorbs");
                }
                State::Failed(_) => counts.failed += 1,
                State::Skipped => counts.skipped += 1,
                State::Waiting | State::Ready | State::Cancelled => {}
            }
            assert_eq!(leased.contains(&task), matches!(state, State::Running(_)), "{task}");
            let is_ready = sweep.is_ready(task);
            assert_eq!(queued.contains(&task), is_ready, "{task} is {state:?}");
        }
        for (task, attempt) in &self.done {
            assert_eq!(sweep.state(*task), State::Done(*attempt), "done absorbs");
        }
        assert_eq!(*sweep.counts(), counts, "counters follow the cells");
        if sweep.ended_at == 0 {
            assert!(!sweep.is_finished(), "a finished sweep has ended");
        }
    }
}

fn all_tasks(sweep: &Sweep) -> Vec<TaskKey> {
    let mut tasks = Vec::new();
    for model in 0..sweep.plan.n_models() {
        tasks.push(TaskKey { model, kind: TaskKind::Source });
        for &step in sweep.plan.steps(model) {
            for experiment in 0..sweep.plan.experiments().len() as u32 {
                tasks.push(TaskKey { model, kind: TaskKind::Analyse { step, experiment } });
            }
        }
        for index in 0..sweep.plan.trajectory().len() as u32 {
            if sweep.plan.members(model, index).is_some() {
                tasks.push(TaskKey { model, kind: TaskKind::Trajectory { index } });
            }
        }
        let mut at = None;
        while let Some(kind) = sweep.plan.next_comparison(model, at) {
            let TaskKind::Compare { step, experiment, pair } = kind else { panic!("{kind:?}") };
            at = Some((step, experiment, pair));
            tasks.push(TaskKey { model, kind });
        }
    }
    tasks
}

/// Every task that some worker could get.
fn queued(sweep: &Sweep) -> BTreeSet<TaskKey> {
    let mut queued = BTreeSet::new();
    for (model, step) in sweep.queue.checkpoints() {
        for (experiment, cell) in sweep.models[&model].published[&step].cells.iter().enumerate() {
            if *cell == Cell::Open {
                let kind = TaskKind::Analyse { step, experiment: experiment as u32 };
                assert!(queued.insert(TaskKey { model, kind }), "queued once");
            }
        }
    }
    for key in &sweep.queue.compare {
        let open = sweep.couples[key].tasks(*key).filter(|(_, cell)| *cell == Cell::Open);
        queued.extend(open.map(|(task, _)| task));
    }
    let trajectory = sweep.queue.trajectory.iter();
    queued.extend(
        trajectory.map(|&(model, index)| TaskKey { model, kind: TaskKind::Trajectory { index } }),
    );
    let new = sweep.queue.cursor..sweep.plan.n_models();
    let new = new.filter(|model| !sweep.models.contains_key(model));
    let source = |model| TaskKey { model, kind: TaskKind::Source };
    queued.extend(sweep.queue.train.iter().copied().chain(new).map(source));
    queued
}

/// Everything that matters of the core, as text. With `at_rest`, without what dies with the process.
fn picture(world: &World, at_rest: bool) -> String {
    let sweep = world.core.sweep(1).unwrap();
    let mut text = format!(
        "{:?} ended {} fence {} retries {} metrics {:?}\n",
        sweep.stop, sweep.ended_at, sweep.fence, sweep.retries, sweep.metrics
    );
    for task in all_tasks(sweep) {
        let state = sweep.state(task);
        let at_work = matches!(state, State::Running(_) | State::Ready)
            || sweep.cell(task) == Some(Cell::Delayed);
        if at_rest && at_work && sweep.is_running() {
            writeln!(text, "{task}: open").unwrap();
        } else {
            writeln!(text, "{task}: {state:?}").unwrap();
        }
    }
    for (task, trouble) in &sweep.trouble {
        writeln!(text, "{task}: {trouble:?}").unwrap();
    }
    for (model, known) in &sweep.models {
        if let Some(resume) = &known.resume {
            writeln!(text, "m{model}: resume {resume:?}").unwrap();
        }
        for published in known.published.values() {
            writeln!(text, "m{model}: {} {:?}", published.attempt, published.checkpoint).unwrap();
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_whatever_happens(ops in proptest::collection::vec(op(), 1..120)) {
        let world = World::new(&document());
        let mut checker = Checker { world, done: BTreeMap::new(), highest: Attempt(0) };
        for op in &ops {
            checker.apply(op);
            checker.check();
        }
    }

    /// A sweep ends whatever went wrong before, once workers just do their work.
    #[test]
    fn every_sweep_comes_to_an_end(ops in proptest::collection::vec(op(), 1..60)) {
        let world = World::new(&document());
        let mut checker = Checker { world, done: BTreeMap::new(), highest: Attempt(0) };
        for op in &ops {
            checker.apply(op);
        }
        let mut world = checker.world;
        if world.core.sweep(1).unwrap().stop.is_some() {
            world.run("retry");
        }
        world.run("+60s; w9 joins");
        for _ in 0..200 {
            let Answer::Lease(Some(lease)) = world.acquire("w9", true, &[]) else {
                world.run("+60s");
                if world.core.sweep(1).unwrap().ended_at != 0 {
                    break;
                }
                continue;
            };
            for task in super::scenario::tasks_of(&lease) {
                let attempt = Attempt(lease.attempt);
                if task.kind == TaskKind::Source {
                    for step in [0, 100, 200] {
                        let body = world.checkpoint(task, attempt, step);
                        world.say("w9", task, attempt, body);
                    }
                }
                world.say("w9", task, attempt, Body::Done(pb::Manifest::default()));
            }
        }
        let sweep = world.core.sweep(1).unwrap();
        prop_assert!(sweep.ended_at != 0, "{}", picture(&world, false));
    }

    /// A training is preempted again and again; at every moment what is read are the points of the
    /// run that counts, each once. A point's value names the attempt that made it.
    #[test]
    fn no_metric_is_lost_or_doubled(
        runs in proptest::collection::vec(
            (1..80u64, 1..30u64, any::<bool>(), any::<bool>(), any::<bool>()),
            1..8,
        ),
        chunk in 1..9usize,
    ) {
        const STEPS: u64 = 200;
        let mut world = World::new(&small(1));
        let train = task("m0/train");
        let mut expected: BTreeMap<u64, f64> = BTreeMap::new();
        let last_run = (STEPS + 1, 50, true, false, false);
        for (index, (length, save_every, obeys, crashes, overlaps)) in
            runs.into_iter().chain([last_run]).enumerate()
        {
            let name = format!("w{index}");
            world.register(&name, true);
            let Answer::Lease(Some(lease)) = world.acquire(&name, true, &[]) else { panic!() };
            let Some(pb::lease::Work::Train(work)) = &lease.work else { panic!() };
            let attempt = Attempt(lease.attempt);
            // A worker that lost the state on the way begins from nothing.
            let resumed_from =
                work.seeds[0].resume.as_ref().map(|state| state.step).filter(|_| obeys);
            // Some trainings report the step that they go on from once more.
            let first = resumed_from.map_or(0, |step| step + u64::from(!overlaps));
            world.say(&name, train, attempt, Body::Started { resumed_from });
            expected.retain(|step, _| resumed_from.is_some_and(|from| *step <= from));
            let last = (first + length).min(STEPS);
            let mut pending = Vec::new();
            for step in first..=last {
                pending.push((step, attempt.0 as f64));
                expected.insert(step, attempt.0 as f64);
                let saves = step % save_every == 0;
                if pending.len() == chunk || saves || step == last {
                    let points = std::mem::take(&mut pending);
                    let body = World::metric("r.loss", &points);
                    let record = world.record(train, attempt, body);
                    // The answer to the first report was lost.
                    world.report(&name, vec![record.clone()]);
                    world.report(&name, vec![record]);
                }
                if saves {
                    let body = world.state(train, attempt, step);
                    world.say(&name, train, attempt, body);
                }
            }
            prop_assert_eq!(read(&world), expected.clone().into_iter().collect::<Vec<_>>());
            if last == STEPS {
                let steps: Vec<u64> = expected.keys().copied().collect();
                prop_assert_eq!(steps, (0..=STEPS).collect::<Vec<_>>());
                break;
            }
            if crashes {
                // Its successor is a new process of the same worker.
                world.register(&name, true);
            } else {
                let body = Body::Failed(failure(FailureClass::Preempted, "gone"));
                world.say(&name, train, attempt, body);
            }
            if world.core.sweep(1).unwrap().ended_at != 0 {
                break;
            }
        }
    }
}

/// All points of the training's metric, in the order of reading.
fn read(world: &World) -> Vec<(u64, f64)> {
    let mut points = Vec::new();
    SeriesReader::new(&world.store, 1, "r.loss", false)
        .read(
            |_| true,
            |part| {
                points.extend(part.steps.into_iter().zip(part.values));
                true
            },
        )
        .unwrap();
    points
}
