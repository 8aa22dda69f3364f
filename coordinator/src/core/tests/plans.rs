//! Grants, plans, labels, listings.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sweep_proto::{
    id::{Attempt, FailureClass, failure},
    pb,
};

use super::check_in;
use crate::core::{
    event::{Answer, Body, Event, Hello},
    model::State,
    plan::Plan,
    scenario::{World, plan, small, task, tasks_of, test_catalog},
    status::TaskFilter,
};

#[test]
fn a_waiting_call_is_answered_when_work_appears_or_time_is_up() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w2 joins; w1 acquires");
    let wish = world.wish("w2", true, &[]);
    let wait = Duration::from_secs(10);
    world.step(Event::Acquire { request: 7, wish: wish.clone(), wait });
    assert!(world.answer(7).is_none());
    world.run("w1 publishes m0/train 0");
    let Some(Answer::Lease(Some(lease))) = world.answer(7) else { panic!("no lease") };
    // The caller has hung up: the lease goes back, and to the next one who waits.
    world.step(Event::Acquire { request: 8, wish: wish.clone(), wait });
    world.step(Event::Undelivered { attempt: Attempt(lease.attempt) });
    assert!(matches!(world.answer(8), Some(Answer::Lease(Some(_)))));
    world.step(Event::Acquire { request: 9, wish, wait: Duration::from_hours(1) });
    world.advance(Duration::from_secs(29));
    assert!(world.answer(9).is_none());
    world.advance(Duration::from_secs(1));
    assert!(matches!(world.answer(9), Some(Answer::Lease(None))), "waits are capped");
}

#[test]
fn bundles_hold_everything_on_a_checkpoint_and_name_its_neighbours() {
    let mut document = small(1);
    document["experiments"] = json!(["probe", { "norms": { "k": 4 } }]);
    let mut world = World::new(&document);
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 0; w1 publishes m0/train 100");
    world.run("w1 publishes m0/train 200; w1 acquires; w1 acquires");
    let Answer::Lease(Some(lease)) = world.acquire("w1", true, &[]) else { panic!("no lease") };
    let Some(pb::lease::Work::Analyse(work)) = lease.work else { panic!("no analysis") };
    let step = |checkpoint: &Option<pb::Checkpoint>| checkpoint.as_ref().map(|c| c.step);
    assert_eq!(step(&work.checkpoint), Some(200));
    assert_eq!(step(&work.previous), Some(100));
    assert_eq!(step(&work.init), Some(0));
    assert_eq!(work.model, "r-seed0");
    let tasks: Vec<_> =
        work.tasks.iter().map(|t| (t.experiment.as_str(), t.params.as_str())).collect();
    assert_eq!(
        tasks,
        [("probe", r#"{"of":"weights","k":3}"#), ("norms", r#"{"of":"weights","k":4}"#)]
    );
}

#[test]
fn resident_checkpoints_are_preferred_but_nobody_starves() {
    let document = json!({
        "name": "many",
        "models": [{ "train": { "recipe": "r", "seeds": 1 }, "checkpoints": { "every": 5 } }],
        "experiments": ["probe"],
    });
    let mut world = World::new(&document);
    world.run("w1 joins; w1 acquires");
    for step in (0..=200).step_by(5) {
        world.run(&format!("w1 publishes m0/train {step}"));
    }
    let names: Vec<String> = (1..40).map(|i| format!("step{}-of-m0", 5 * i)).collect();
    let resident: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut order = Vec::new();
    for _ in 0..20 {
        let Answer::Lease(Some(lease)) = world.acquire("w1", true, &resident) else { panic!() };
        let Some(pb::lease::Work::Analyse(work)) = lease.work else { panic!() };
        order.push(work.checkpoint.unwrap().step);
    }
    assert_eq!(order[..3], [5, 10, 15], "what is at hand comes first");
    assert_eq!(order.iter().position(|step| *step == 0), Some(16), "the oldest waits 16 times");
}

#[test]
fn what_one_worker_was_told_to_fetch_is_left_to_it() {
    let document = json!({
        "name": "ahead",
        "models": [{ "train": { "recipe": "r", "seeds": 1 }, "checkpoints": { "every": 10 } }],
        "experiments": ["probe"],
    });
    let mut world = World::new(&document);
    world.run("w1 joins; w2 joins; w1 acquires");
    for step in (0..=50).step_by(10) {
        world.run(&format!("w1 publishes m0/train {step}"));
    }
    let mut given = |name: &str, resident: &[&str]| {
        let Answer::Lease(Some(lease)) = world.acquire(name, false, resident) else { panic!() };
        let Some(pb::lease::Work::Analyse(work)) = lease.work else { panic!() };
        (work.checkpoint.unwrap().step, work.next.map(|next| next.step))
    };
    assert_eq!(given("w1", &[]), (0, Some(10)));
    assert_eq!(given("w2", &[]), (20, Some(30)), "10 is on its way to w1");
    assert_eq!(given("w1", &["something-else"]), (10, Some(40)), "whether it has arrived or not");
    assert_eq!(given("w2", &[]), (30, Some(50)));
    assert_eq!(given("w2", &[]), (50, None));
    // The last one was announced to w1, but w2 has nothing else to do.
    assert_eq!(given("w2", &[]), (40, None));
}

#[test]
fn work_goes_only_to_workers_that_offer_its_version() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 0");
    let mut catalog = test_catalog();
    catalog.experiments[0].version = 2;
    let hello = Hello { instance: "new".into(), name: "new".into(), catalog, ..Default::default() };
    let Answer::Registered(id) = world.ask(Event::Register { request: 1, hello }) else { panic!() };
    world.workers.entry("new".into()).or_default().id = id;
    check_in(
        &mut world,
        "new acquires; w1 acquires",
        "new <- nothing
        w1 <- 1.2: m0/step0/e0",
    );
    assert_eq!(
        world.core.catalog().experiments.iter().find(|e| e.name == "probe").unwrap().version,
        2
    );
}

#[test]
fn higher_priority_first_then_order_of_submission() {
    let mut world = World::new(&small(1));
    for (name, priority) in [("low", -1), ("late", 0), ("high", 5)] {
        let mut document = small(1);
        document["name"] = json!(name);
        document["priority"] = json!(priority);
        let event = Event::Submit { request: 1, plan: plan(&document) };
        assert!(matches!(world.ask(event), Answer::Submitted { created: true, .. }));
    }
    world.run("w1 joins");
    let names: Vec<String> = (0..4)
        .map(|_| match world.acquire("w1", true, &[]) {
            Answer::Lease(Some(lease)) => lease.sweep.split('-').next().unwrap().to_owned(),
            answer => panic!("{answer:?}"),
        })
        .collect();
    assert_eq!(names, ["high", "s", "late", "low"]);
    assert!(world.core.find("l").is_err(), "two sweeps begin with l");
    assert_eq!(world.core.find("hi"), Ok(4));
    assert_eq!(world.core.find("last"), Ok(4));
    assert!(world.core.find("").is_err());
}

#[test]
fn ten_million_tasks_cost_nothing_until_they_run() {
    let document = json!({
        "name": "huge",
        "models": [{
            "train": {
                "recipe": "r",
                "params": { "lr": (1..=100).map(f64::from).collect::<Vec<_>>(), "steps": [100, 200] },
                "seeds": 500,
            },
            "checkpoints": { "every": 4 },
        }],
        "experiments": ["probe", "norms"],
        "trajectory": ["pca", "phase"],
    });
    let before = Instant::now();
    let mut world = World::new(&document);
    let totals = world.plan.totals();
    assert_eq!(totals.train, 100_000);
    assert_eq!(totals.analyse, 2 * (26 + 51) * 50_000);
    assert_eq!(totals.tasks(), 100_000 + 7_700_000 + 200_000);
    let status = |world: &World| world.core.status(world.core.sweep(1).unwrap(), world.now);
    assert_eq!(status(&world).total.unwrap().waiting, totals.tasks());
    assert!(world.core.sweep(1).unwrap().models.is_empty(), "no model is materialised");
    assert!(world.core.sweep(1).unwrap().queue.is_empty(), "no task is queued");
    // A thousand leases and statuses in the middle of it.
    world.run("w1 joins");
    for _ in 0..200 {
        let Answer::Lease(Some(lease)) = world.acquire("w1", true, &[]) else { panic!() };
        assert_eq!(tasks_of(&lease).len(), 2);
        assert_eq!(status(&world).total.unwrap().total, totals.tasks());
    }
    assert_eq!(world.core.sweep(1).unwrap().models.len(), 400);
    assert_eq!(world.plan.steps(0), world.plan.steps(499));
    assert_ne!(world.plan.steps(0).len(), world.plan.steps(500).len(), "steps is a grid axis");
    let elapsed = before.elapsed();
    assert!(elapsed < Duration::from_secs(5), "took {elapsed:?}");
}

#[test]
fn huge_grids_and_schedules_are_refused_before_they_are_built() {
    let problems = |document: &Value, limit| {
        Plan::resolve(document, &test_catalog(), limit).unwrap_err().join("\n")
    };
    let axis: Vec<u64> = (1..=1000).collect();
    let mut document = small(1000);
    document["models"][0]["train"]["params"] = json!({ "lr": axis, "steps": axis });
    assert!(problems(&document, 10_000_000).contains("1000000000 models, more than the limit"));
    document["models"][0]["checkpoints"] = json!({ "steps": [1] });
    assert!(problems(&document, 10_000_000).contains("more than the limit"));
    let mut document = small(1);
    document["models"][0]["train"]["params"] = json!({ "steps": 1_000_000_000_000u64 });
    document["models"][0]["checkpoints"] = json!({ "every": 1 });
    assert!(problems(&document, 10).contains("more than the limit of 1000000"));
    assert!(problems(&small(3), 14).contains("15 tasks, more than the limit of 14"));
    let mut document = small(1);
    document["compare"] = json!([{ "pca": { "pairs": "seeds" } }]);
    assert!(problems(&document, 10).contains("not an experiment for `compare`"));
}

#[test]
fn labels_are_unique_and_say_what_differs() {
    let train = |params: Value| json!({ "train": { "recipe": "r", "params": params, "seeds": 1 } });
    let document = json!({
        "name": "labels",
        "models": [train(json!({})), train(json!({ "lr": 0.5 })), train(json!({ "lr": [0.5, 0.7] }))],
        "experiments": ["probe", { "probe": { "k": 5 } }, "norms"],
        "trajectory": [{ "pca": { "of": "logits" } }, { "pca": { "of": "weights", "k": 2 } }],
    });
    let plan = plan(&document);
    let labels: Vec<String> = (0..plan.n_models()).map(|model| plan.model_label(model)).collect();
    assert_eq!(
        labels,
        [
            "r-lr=0.1-seed0",
            "r-lr=0.5-entry=1-seed0",
            "r-lr=0.5-entry=2-seed0",
            "r-lr=0.7-entry=2-seed0"
        ]
    );
    let label = |text: &str| plan.task_label(task(text));
    assert_eq!(label("m0/train"), "r-lr=0.1-seed0/train");
    assert_eq!(label("m0/step5/e0"), "r-lr=0.1-seed0/step5/probe");
    assert_eq!(label("m0/step5/e1"), "r-lr=0.1-seed0/step5/probe[k=5]");
    assert_eq!(label("m0/trajectory/t0"), "r-lr=0.1-seed0/trajectory/pca[of=logits]");
    assert_eq!(plan.trajectory()[1].folder, "pca-k=2-of=weights");
    let single = plan_of_one();
    assert_eq!(single.model_label(0), "r-seed0");
}

fn plan_of_one() -> std::sync::Arc<Plan> {
    plan(&small(1))
}

#[test]
fn a_plan_is_the_same_after_a_restart() {
    let document = json!({
        "name": "same",
        "models": [
            { "train": { "recipe": "r", "params": { "steps": [100, 300], "lr": [1.0, 2.0] }, "seeds": [7, 9] },
              "checkpoints": { "log2": [0, 4] } },
        ],
        "experiments": [{ "probe": { "k": 5 } }],
    });
    let first = plan(&document);
    let text: Value = serde_json::from_str(first.document()).unwrap();
    let spec = sweep_proto::spec::SweepSpec::decode(&text).unwrap();
    let again = Plan::new(spec, first.pinned().clone()).unwrap();
    assert_eq!(again.id(), first.id());
    assert_eq!(again.totals(), first.totals());
    for model in 0..first.n_models() {
        let (a, b) = (first.model(model).unwrap(), again.model(model).unwrap());
        assert_eq!(first.model_label(model), again.model_label(model));
        assert_eq!((a.seed, a.params(), a.steps()), (b.seed, b.params(), b.steps()));
        let written = first.model(model).unwrap().written();
        assert_eq!(*a.steps().last().unwrap(), written["steps"].as_u64().unwrap());
    }
}

#[test]
fn listings_are_lazy_and_complete() {
    let mut world = World::new(&small(3));
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 0; w1 fails m1/train permanent");
    let sweep = world.core.sweep(1).unwrap();
    let list = |state: &str, kind: &str| {
        let filter = TaskFilter { state: state.into(), kind: kind.into() };
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = world.core.tasks(sweep, &filter, after, 2);
            found.extend(page.into_iter().map(|view| view.task.to_string()));
            after = next;
            if after.is_none() {
                return found;
            }
        }
    };
    assert_eq!(list("", "").len(), 15);
    assert_eq!(list("running", ""), ["m0/train"]);
    assert_eq!(list("failed", ""), ["m1/train"]);
    assert_eq!(list("skipped", "analyse").len(), 3);
    assert_eq!(list("ready", ""), ["m0/step0/e0", "m2/train"]);
    assert_eq!(list("waiting", "trajectory"), ["m0/trajectory/t0", "m2/trajectory/t0"]);
    assert!(list("done", "").is_empty());
    assert_eq!(sweep.state(task("m2/train")), State::Ready);
}

#[test]
fn histories_are_bounded() {
    let mut world = World::new(&small(1));
    world.run("w1 joins");
    for _ in 0..30 {
        world.run("w1 acquires");
        let attempt = *world.workers["w1"].leases.keys().next_back().unwrap();
        let message = "é".repeat(10_000);
        let body = Body::Failed(failure(FailureClass::Preempted, message));
        world.say("w1", task("m0/train"), attempt, body);
    }
    let record = world.store.task(1, task("m0/train")).unwrap().unwrap();
    assert_eq!(record.failures.len(), 10);
    let bytes: usize = record.failures.iter().map(|(_, failure)| failure.message.len()).sum();
    assert!(bytes < 12_000, "{bytes} bytes of messages");
    assert_eq!(world.core.status(world.core.sweep(1).unwrap(), world.now).failures.len(), 20);
}

#[test]
fn unknown_workers_are_told_to_register() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; restart");
    let Answer::Refused(refusal) = world.acquire("w1", true, &[]) else { panic!() };
    assert!(refusal.to_string().starts_with("UNKNOWN_WORKER"));
}
