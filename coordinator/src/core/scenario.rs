//! A world for tests of the core: a core whose writes go to a store in memory, a clock that is
//! moved by hand, and workers that remember what they were given. [`World::run`] reads a script and
//! tells what happened, one line each.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use sweep_proto::{
    id::{Attempt, FailureClass, TaskKey, TaskKind, artifact_key, failure},
    pb,
    timing::LeaseTiming,
};

use super::{
    Core, CoreConfig,
    event::{Answer, Body, Effect, Event, Fact, Held, Hello, Record, Wish},
    plan::Plan,
    retry::RetryPolicy,
    time::Now,
};
use crate::store::{Store, metrics};

/// Lease time of the tests; a lease expires a sixth later.
pub(crate) const TTL: Duration = Duration::from_secs(30);

/// A catalogue with one recipe (`r`, pairs of seeds), two experiments, one on pairs of checkpoints, and
/// trajectories over a model, an entry and a sweep.
pub(crate) fn test_catalog() -> pb::Catalog {
    let param = |name: &str, kind: &str, default: &str| pb::Param {
        name: name.into(),
        kind: kind.into(),
        default: default.into(),
        ..Default::default()
    };
    let experiment = |name: &str, stage: &str| pb::Experiment {
        name: name.into(),
        version: 1,
        stage: stage.into(),
        params: vec![param("of", "text", "\"weights\""), param("k", "int", "3")],
        ..Default::default()
    };
    pb::Catalog {
        recipes: vec![pb::Recipe {
            name: "r".into(),
            version: 1,
            params: vec![param("steps", "int", "200"), param("lr", "float", "0.1")],
            population: 2,
            ..Default::default()
        }],
        experiments: vec![
            experiment("probe", "analyse"),
            experiment("norms", "analyse"),
            experiment("pca", "trajectory"),
            experiment("phase", "trajectory"),
            pb::Experiment {
                metrics: vec![pb::Metric { name: "x".into(), ..Default::default() }],
                ..experiment("match", "compare")
            },
            pb::Experiment { reads: vec!["match.x".into()], ..experiment("drift", "trajectory") },
            pb::Experiment { scope: "entry".into(), ..experiment("order", "trajectory") },
            pb::Experiment {
                scope: "sweep".into(),
                reads_checkpoints: true,
                ..experiment("rank", "trajectory")
            },
        ],
    }
}

/// The usual sweep: `seeds` models with checkpoints 0, 100, 200, one experiment, one trajectory.
pub(crate) fn small(seeds: u32) -> Value {
    json!({
        "name": "s",
        "models": [{
            "train": { "recipe": "r", "seeds": seeds },
            "checkpoints": { "every": 100 },
        }],
        "experiments": ["probe"],
        "trajectory": ["pca"],
    })
}

pub(crate) fn plan(document: &Value) -> Arc<Plan> {
    Arc::new(Plan::resolve(document, &test_catalog(), 20_000_000).unwrap())
}

pub(crate) fn config() -> CoreConfig {
    CoreConfig {
        timing: LeaseTiming::from_ttl(TTL).unwrap(),
        retry: RetryPolicy::default(),
        artifact_root: "file:///artifacts".into(),
    }
}

/// `m0/train` (or `m0/import`), `m1/step100/e0`, `m2/trajectory/t1`.
pub(crate) fn task(text: &str) -> TaskKey {
    let parts: Vec<&str> = text.split('/').collect();
    let number = |text: &str, prefix: &str| text.strip_prefix(prefix).unwrap().parse().unwrap();
    let kind = match parts[1] {
        "train" | "import" => TaskKind::Source,
        "trajectory" => TaskKind::Trajectory { index: number(parts[2], "t") },
        step if parts.len() == 4 => TaskKind::Compare {
            step: step.strip_prefix("step").unwrap().parse().unwrap(),
            experiment: number(parts[2], "c"),
            pair: number(parts[3], "p"),
        },
        step => TaskKind::Analyse {
            step: step.strip_prefix("step").unwrap().parse().unwrap(),
            experiment: number(parts[2], "e"),
        },
    };
    TaskKey { model: number(parts[0], "m"), kind }
}

/// The tasks of a lease.
pub(crate) fn tasks_of(lease: &pb::Lease) -> Vec<TaskKey> {
    let key = |task: &Option<pb::TaskKey>| TaskKey::from_pb(task.as_ref().unwrap()).unwrap().1;
    match lease.work.as_ref().unwrap() {
        pb::lease::Work::Train(work) => work.seeds.iter().map(|seed| key(&seed.task)).collect(),
        pb::lease::Work::Analyse(work) => work.tasks.iter().map(|task| key(&task.task)).collect(),
        pb::lease::Work::Trajectory(work) => vec![key(&work.task)],
        pb::lease::Work::Import(work) => vec![key(&work.task)],
        pb::lease::Work::Compare(work) => work.tasks.iter().map(|task| key(&task.task)).collect(),
    }
}

#[derive(Debug, Default)]
pub(crate) struct FakeWorker {
    pub(crate) id: String,
    pub(crate) instance: u32,
    /// Every lease that it ever got.
    pub(crate) leases: BTreeMap<Attempt, Vec<TaskKey>>,
}

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) store: Store,
    pub(crate) now: Now,
    pub(crate) plan: Arc<Plan>,
    pub(crate) workers: BTreeMap<String, FakeWorker>,
    pub(crate) facts: Vec<Fact>,
    sequence: u64,
    answers: Vec<(u64, Answer)>,
}

impl World {
    /// A coordinator that was just started, with the sweep submitted.
    pub(crate) fn new(document: &Value) -> Self {
        let store = Store::in_memory();
        let now = Now { mono: Duration::from_secs(1), unix_ms: 1_000_000 };
        let core = Core::restore(config(), store.begin().unwrap(), now).unwrap();
        let mut world = Self {
            core,
            store,
            now,
            plan: plan(document),
            workers: BTreeMap::new(),
            facts: Vec::new(),
            sequence: 0,
            answers: Vec::new(),
        };
        world.submit();
        world
    }

    pub(crate) fn submit(&mut self) -> bool {
        let plan = Arc::clone(&self.plan);
        match self.ask(Event::Submit { request: 1, plan }) {
            Answer::Submitted { created, .. } => created,
            answer => panic!("{answer:?}"),
        }
    }

    /// Steps the core and keeps its writes.
    pub(crate) fn step(&mut self, event: Event) {
        let mut writes = Vec::new();
        for effect in self.core.step(event, self.now) {
            match effect {
                Effect::Write(write) => writes.push(write),
                Effect::Reply(request, answer) => self.answers.push((request, answer)),
                Effect::Fact(fact) => self.facts.push(fact),
            }
        }
        self.store.commit(&writes).unwrap();
    }

    /// Steps the core with a request (number 1) and takes its answer.
    pub(crate) fn ask(&mut self, event: Event) -> Answer {
        self.step(event);
        self.answer(1).expect("the core answers every request")
    }

    /// The answer to a request, if it was given.
    pub(crate) fn answer(&mut self, request: u64) -> Option<Answer> {
        let at = self.answers.iter().position(|(answered, _)| *answered == request)?;
        Some(self.answers.remove(at).1)
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.unix_ms += time.as_millis() as u64;
        self.step(Event::Tick);
    }

    /// The coordinator is killed and started again.
    pub(crate) fn restart(&mut self) {
        self.answers.clear();
        self.core = Core::restore(config(), self.store.begin().unwrap(), self.now).unwrap();
    }

    pub(crate) fn register(&mut self, name: &str, anew: bool) -> Answer {
        self.register_with(name, anew, 2)
    }

    /// A worker that trains `population` seeds of a recipe together.
    fn register_with(&mut self, name: &str, anew: bool, population: u32) -> Answer {
        let mut catalog = test_catalog();
        catalog.recipes[0].population = population;
        let worker = self.workers.entry(name.to_owned()).or_default();
        worker.instance += u32::from(anew);
        let hello = Hello {
            instance: format!("{name}#{}", worker.instance),
            name: name.to_owned(),
            catalog,
            slots: 2,
            ..Hello::default()
        };
        let answer = self.ask(Event::Register { request: 1, hello });
        if let Answer::Registered(id) = &answer {
            self.workers.get_mut(name).unwrap().id.clone_from(id);
        }
        answer
    }

    pub(crate) fn wish(&self, name: &str, training: bool, resident: &[&str]) -> Wish {
        let resident: HashSet<String> = resident.iter().map(|hash| (*hash).to_owned()).collect();
        Wish { worker: self.workers[name].id.clone(), training, resident: Arc::new(resident) }
    }

    pub(crate) fn acquire(&mut self, name: &str, training: bool, resident: &[&str]) -> Answer {
        let wish = self.wish(name, training, resident);
        let answer = self.ask(Event::Acquire { request: 1, wish, wait: Duration::ZERO });
        if let Answer::Lease(Some(lease)) = &answer {
            let leases = &mut self.workers.get_mut(name).unwrap().leases;
            leases.insert(Attempt(lease.attempt), tasks_of(lease));
        }
        answer
    }

    /// A heartbeat that names `held`.
    pub(crate) fn beat(&mut self, name: &str, held: &[Attempt]) -> Answer {
        let sweep = self.plan.id().to_owned();
        let worker = &self.workers[name];
        let held = held.iter().map(|attempt| Held {
            attempt: *attempt,
            tasks: worker.leases[attempt].iter().map(|task| (sweep.clone(), *task)).collect(),
            progress: 1,
            progress_total: 2,
        });
        let (held, worker) = (held.collect(), worker.id.clone());
        self.ask(Event::Heartbeat { request: 1, worker, held, spool_bytes: 0, draining: false })
    }

    pub(crate) fn record(&mut self, task: TaskKey, attempt: Attempt, body: Body) -> Record {
        self.sequence += 1;
        let sweep = self.plan.id().to_owned();
        Record { attempt, sequence: self.sequence, sweep, task, body }
    }

    pub(crate) fn report(&mut self, name: &str, records: Vec<Record>) -> Answer {
        let worker = self.workers[name].id.clone();
        let records = records.into_iter().map(Ok).collect();
        self.ask(Event::Report { request: 1, worker, records })
    }

    /// Reports one record; the verdict.
    pub(crate) fn say(
        &mut self,
        name: &str,
        task: TaskKey,
        attempt: Attempt,
        body: Body,
    ) -> pb::Verdict {
        let record = self.record(task, attempt, body);
        match self.report(name, vec![record]) {
            Answer::Verdicts(verdicts) => verdicts[0],
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn blob(&self, task: TaskKey, attempt: Attempt, name: &str) -> pb::Blob {
        pb::Blob {
            name: name.to_owned(),
            key: artifact_key(self.plan.id(), task, attempt, name),
            size: 1,
            sha256: format!("{name}-of-m{}", task.model),
        }
    }

    /// A checkpoint at the place where the sweep's listing has it.
    pub(crate) fn imported(&self, task: TaskKey, step: u64) -> pb::Checkpoint {
        let entry = self.plan.model(task.model).unwrap().entry;
        let import = entry.import().unwrap();
        let found = import.checkpoints.iter().find(|found| found.step == step);
        let name = found.map_or("nowhere", |found| &found.name);
        let sha256 = format!("file-of-step{step}");
        let file = pb::Blob { name: "model.safetensors".into(), sha256, ..Default::default() };
        let imported = pb::Imported {
            location: import.at.replace("{}", name),
            files: vec![file],
            options: Some(import.options.clone()),
        };
        let weights_hash = format!("w{step}");
        pb::Checkpoint { step, file: None, weights_hash, imported: Some(imported) }
    }

    pub(crate) fn checkpoint(&self, task: TaskKey, attempt: Attempt, step: u64) -> Body {
        if self.plan.source_word(task.model) == "import" {
            return Body::Checkpoint(self.imported(task, step));
        }
        Body::Checkpoint(pb::Checkpoint {
            step,
            file: Some(self.blob(task, attempt, &format!("step{step}"))),
            weights_hash: format!("w{step}"),
            imported: None,
        })
    }

    pub(crate) fn state(&self, task: TaskKey, attempt: Attempt, step: u64) -> Body {
        let file = Some(self.blob(task, attempt, &format!("state{step}")));
        Body::TrainerState(pb::TrainerState { step, file })
    }

    pub(crate) fn metric(name: &str, points: &[(u64, f64)]) -> Body {
        let chunk = pb::MetricChunk {
            reading: None,
            metric: name.to_owned(),
            unit: "nats".into(),
            axes: Vec::new(),
            steps: points.iter().map(|point| point.0).collect(),
            values: points.iter().map(|point| point.1).collect(),
        };
        Body::Metrics(metrics::encode(&chunk).unwrap())
    }

    /// Runs a script; see the arms of [`command`](Self::command) for its words.
    pub(crate) fn run(&mut self, script: &str) -> String {
        let mut told = String::new();
        for command in script.split([';', '\n']).map(str::trim).filter(|c| !c.is_empty()) {
            let answer = self.command(command);
            for fact in std::mem::take(&mut self.facts) {
                told.push_str(&tell(&fact));
            }
            if !answer.is_empty() {
                writeln!(told, "{answer}").unwrap();
            }
        }
        told
    }

    fn command(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        if let Some(seconds) = command.strip_prefix('+') {
            let seconds: f64 = seconds.trim_end_matches('s').parse().unwrap();
            self.advance(Duration::from_secs_f64(seconds));
            return String::new();
        }
        match words[..] {
            ["submit"] => format!("created: {}", self.submit()),
            ["restart"] => {
                self.restart();
                String::new()
            }
            ["cancel"] => self.change(|request, sweep| Event::Cancel { request, sweep }),
            ["retry"] => self.change(|request, sweep| Event::Retry { request, sweep }),
            ["status"] => self.status(),
            [name, "joins"] => shown(name, &self.register(name, true)),
            [name, "joins", "with", population] => {
                shown(name, &self.register_with(name, true, population.parse().unwrap()))
            }
            [name, "returns"] => shown(name, &self.register(name, false)),
            [name, "acquires", ref more @ ..] => {
                let training = !more.contains(&"analyses");
                let resident: Vec<&str> =
                    more.iter().copied().filter(|word| *word != "analyses").collect();
                shown(name, &self.acquire(name, training, &resident))
            }
            [name, "beats", ref more @ ..] => {
                let held: Vec<Attempt> = match more {
                    [] => self.workers[name].leases.keys().copied().collect(),
                    _ => Vec::new(),
                };
                shown(name, &self.beat(name, &held))
            }
            [name, "leaves"] => {
                let worker = self.workers[name].id.clone();
                shown(name, &self.ask(Event::Leave { request: 1, worker }))
            }
            [name, verb, key, ref more @ ..] => self.tell_of(name, verb, task(key), more),
            _ => panic!("unknown command `{command}`"),
        }
    }

    /// `w1 starts|publishes|saves|measures|finishes|fails TASK …`, with the worker's last attempt at it.
    fn tell_of(&mut self, name: &str, verb: &str, task: TaskKey, more: &[&str]) -> String {
        let leases = self.workers[name].leases.iter();
        let attempt = leases.rev().find(|(_, tasks)| tasks.contains(&task)).map(|(a, _)| *a);
        let attempt = attempt.expect("the worker had that task once");
        let number = |at: usize| more.get(at).and_then(|word| word.parse::<u64>().ok());
        let body = match verb {
            "starts" => Body::Started { resumed_from: number(1) },
            "publishes" => self.checkpoint(task, attempt, number(0).unwrap()),
            "saves" => self.state(task, attempt, number(0).unwrap()),
            "measures" => {
                let producer = self.plan.producer(task).unwrap().to_owned();
                Self::metric(&format!("{producer}.loss"), &[(number(0).unwrap(), 0.5)])
            }
            "finishes" => Body::Done(pb::Manifest::default()),
            "fails" => {
                let classes = [
                    FailureClass::Transient,
                    FailureClass::Preempted,
                    FailureClass::Permanent,
                    FailureClass::Poisoned,
                ];
                let class = classes.into_iter().find(|class| class.word() == more[0]).unwrap();
                Body::Failed(failure(class, "it failed"))
            }
            _ => panic!("unknown verb `{verb}`"),
        };
        match self.say(name, task, attempt, body) {
            pb::Verdict::Accepted => String::new(),
            verdict => format!("{name} {verb} {task}: {}", verdict.as_str_name()),
        }
    }

    fn change(&mut self, event: impl FnOnce(u64, String) -> Event) -> String {
        let event = event(1, self.plan.id().to_owned());
        match self.ask(event) {
            Answer::Status(_) => String::new(),
            answer => format!("{answer:?}"),
        }
    }

    fn status(&self) -> String {
        let status = self.core.status(self.core.sweeps().next().unwrap(), self.now);
        let state = status.state().as_str_name().trim_start_matches("SWEEP_STATE_").to_lowercase();
        let mut text = format!("status: {state}");
        let kinds =
            [("train", status.train), ("analyse", status.analyse), ("traj", status.trajectory)];
        let compare = status.compare.filter(|counts| counts.total > 0);
        let kinds = kinds.into_iter().chain(compare.map(|counts| ("compare", Some(counts))));
        for (kind, counts) in kinds {
            let c = counts.unwrap();
            write!(text, "; {kind} {}:", c.total).unwrap();
            for (word, n) in [
                ("done", c.done),
                ("failed", c.failed),
                ("skipped", c.skipped),
                ("running", c.running),
                ("cancelled", c.cancelled),
                ("waiting", c.waiting),
            ] {
                if n > 0 {
                    write!(text, " {n} {word}").unwrap();
                }
            }
        }
        text
    }
}

fn shown(name: &str, answer: &Answer) -> String {
    match answer {
        Answer::Registered(_) | Answer::Left => String::new(),
        Answer::Lease(None) => format!("{name} <- nothing"),
        Answer::Lease(Some(lease)) => {
            let tasks: Vec<String> = tasks_of(lease).iter().map(ToString::to_string).collect();
            let mut text = format!("{name} <- {}: {}", Attempt(lease.attempt), tasks.join(" "));
            if let Some(pb::lease::Work::Train(work)) = &lease.work
                && let Some(resume) = &work.seeds[0].resume
            {
                write!(text, " from {}", resume.step).unwrap();
            }
            text
        }
        Answer::Revoked(revoked) if revoked.is_empty() => String::new(),
        Answer::Revoked(revoked) => {
            let revoked: Vec<String> = revoked.iter().map(|a| Attempt(*a).to_string()).collect();
            format!("{name} must drop {}", revoked.join(" "))
        }
        Answer::Refused(refusal) => format!("{name}: {refusal}"),
        answer => format!("{name}: {answer:?}"),
    }
}

fn tell(fact: &Fact) -> String {
    match fact {
        Fact::LeaseAdopted { attempt, .. } => format!("{attempt} taken over\n"),
        Fact::LeaseLost { attempt, reason, .. } => format!("{attempt} lost: {reason}\n"),
        Fact::TaskFailed { task, attempt, class, is_final, .. } => {
            let end = if *is_final { ", given up" } else { "" };
            format!("{task} failed in {attempt}: {class}{end}\n")
        }
        Fact::SweepState { state, .. } => format!("sweep {state}\n"),
        Fact::RecordInvalid { problem, .. } => format!("invalid: {problem}\n"),
        Fact::SweepSubmitted { .. }
        | Fact::WorkerJoined { .. }
        | Fact::WorkerGone { .. }
        | Fact::LeaseGranted { .. }
        | Fact::TaskDone { .. } => String::new(),
    }
}
