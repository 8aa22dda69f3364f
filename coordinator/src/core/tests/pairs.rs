//! Comparisons of two checkpoints, and trajectories over several models.

use serde_json::{Value, json};
use sweep_proto::{
    id::{Attempt, TaskKind},
    pb,
};

use super::check_in;
use crate::core::{
    event::Answer,
    scenario::{World, plan, small, task},
    status::TaskFilter,
};

fn seeds(n: u32, compare: &Value, trajectory: &Value) -> Value {
    let mut document = small(n);
    document["experiments"] = json!([]);
    document["compare"] = compare.clone();
    document["trajectory"] = trajectory.clone();
    document
}

#[test]
fn a_comparison_waits_for_both_checkpoints() {
    let compare = json!([{ "match": { "pairs": "seeds", "at": "all" } }]);
    let mut world = World::new(&seeds(2, &compare, &json!([])));
    let totals = world.plan.totals();
    assert_eq!((totals.compare, totals.tasks()), (3, 5));
    check_in(
        &mut world,
        "w1 joins; w2 joins; w1 acquires; w1 publishes m0/train 0; w2 acquires; status
         w1 publishes m1/train 100; w2 acquires; w1 publishes m1/train 0; w2 acquires; status
         w2 finishes m0/step0/c0/p0; w1 finishes m0/train; w1 finishes m1/train; status",
        "w1 <- 1.1: m0/train m1/train
        w2 <- nothing
        status: running; train 2: 2 running; analyse 0:; traj 0:; compare 3: 3 waiting
        w2 <- nothing
        w2 <- 1.2: m0/step0/c0/p0
        status: running; train 2: 2 running; analyse 0:; traj 0:; compare 3: 1 running 2 waiting
        sweep failed
        status: failed; train 2: 2 done; analyse 0:; traj 0:; compare 3: 1 done 2 skipped",
    );
}

#[test]
fn a_lease_brings_everything_on_one_pair() {
    let compare = json!([
        { "match": { "pairs": "seeds" } },
        { "match": { "pairs": [["r-seed0", "r-seed1"]], "k": 5 } },
    ]);
    let mut world = World::new(&seeds(2, &compare, &json!([])));
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 200; w1 publishes m1/train 200");
    let Answer::Lease(Some(lease)) = world.acquire("w1", true, &[]) else { panic!("no lease") };
    let Some(pb::lease::Work::Compare(work)) = lease.work else { panic!("no comparison") };
    assert_eq!((work.first_model.as_str(), work.second_model.as_str()), ("r-seed0", "r-seed1"));
    assert_eq!((work.first.unwrap().step, work.second.unwrap().step), (200, 200));
    let params: Vec<&str> = work.tasks.iter().map(|task| task.params.as_str()).collect();
    assert_eq!(params, [r#"{"of":"weights","k":3}"#, r#"{"of":"weights","k":5}"#]);
    let labels: Vec<String> = ["m0/step200/c0/p0", "m0/step200/c1/p0"]
        .iter()
        .map(|text| world.plan.task_label(task(text)))
        .collect();
    assert_eq!(
        labels,
        [
            "r-seed0/step200/match[pairs=seeds,at=final]/r-seed1@200",
            "r-seed0/step200/match[k=5,pairs=listed1,at=final]/r-seed1@200"
        ]
    );
}

#[test]
fn comparisons_outlive_the_coordinator_and_lost_ones_come_back_with_a_retry() {
    let compare = json!([{ "match": { "pairs": "to-base", "base": "r-seed1" } }]);
    let mut world = World::new(&seeds(2, &compare, &json!([])));
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 0; w1 publishes m1/train 200");
    world.run("w1 acquires; w1 finishes m0/step0/c0/p0; w1 finishes m1/train");
    check_in(
        &mut world,
        "w1 fails m0/train permanent; status; restart; status; retry; status",
        "m0/train failed in 1.1: permanent, given up
        sweep failed
        status: failed; train 2: 1 done 1 failed; analyse 0:; traj 0:; compare 3: 1 done 2 skipped
        status: failed; train 2: 1 done 1 failed; analyse 0:; traj 0:; compare 3: 1 done 2 skipped
        sweep running
        status: running; train 2: 1 done 1 waiting; analyse 0:; traj 0:; compare 3: 1 done 2 waiting",
    );
}

#[test]
fn a_reduction_of_pairs_waits_for_the_last_comparison() {
    let compare = json!([{ "match": { "pairs": "to-final" } }]);
    let mut document = seeds(1, &compare, &json!(["pca", "drift"]));
    document["models"][0]["checkpoints"] = json!({ "steps": [0, 200] });
    let mut world = World::new(&document);
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 0; w1 publishes m0/train 200");
    world.run("w1 finishes m0/train; w1 acquires");
    check_in(
        &mut world,
        "w1 acquires; w1 acquires; w1 finishes m0/step0/c0/p0; w1 acquires; status",
        "w1 <- 1.3: m0/trajectory/t0
        w1 <- nothing
        w1 <- 1.4: m0/trajectory/t1
        status: running; train 1: 1 done; analyse 0:; traj 2: 2 running; compare 1: 1 done",
    );
}

#[test]
fn a_group_waits_for_all_of_its_models_and_is_told_who_failed() {
    let compare = json!([{ "match": { "pairs": "seeds" } }]);
    let mut document = seeds(3, &compare, &json!(["order", "rank"]));
    document["models"].as_array_mut().unwrap().push(json!({
        "train": { "recipe": "r", "params": { "lr": 0.5 } }, "checkpoints": "final",
    }));
    let mut world = World::new(&document);
    assert_eq!(world.plan.totals().trajectory, 3, "one per entry and one per sweep");
    assert_eq!(world.plan.task_label(task("m0/trajectory/t0")), "r-lr=0.1/trajectory/order");
    assert_eq!(world.plan.task_label(task("m3/trajectory/t0")), "r-lr=0.5/trajectory/order");
    assert_eq!(world.plan.task_label(task("m0/trajectory/t1")), "all/trajectory/rank");
    world.run("w1 joins; w1 acquires; w1 acquires; w1 acquires");
    world.run("w1 publishes m0/train 200; w1 publishes m1/train 200; w1 finishes m0/train");
    world.run("w1 finishes m1/train; w1 acquires");
    check_in(
        &mut world,
        "w1 fails m2/train permanent; w1 acquires; w1 finishes m0/step200/c0/p0; w1 acquires",
        "m2/train failed in 1.2: permanent, given up
        w1 <- nothing
        w1 <- 1.5: m0/trajectory/t0",
    );
    world.run("w1 publishes m3/train 200; w1 finishes m3/train; w1 acquires");
    let Answer::Lease(Some(lease)) = world.acquire("w1", true, &[]) else { panic!("no lease") };
    assert_eq!(Attempt(lease.attempt).to_string(), "1.7");
    let Some(pb::lease::Work::Trajectory(work)) = lease.work else { panic!("no trajectory") };
    assert_eq!(
        work.model, "r-lr=0.5",
        "t0 of the second entry sorts after those of the first model"
    );
    check_in(
        &mut world,
        "w1 finishes m3/trajectory/t0; w1 finishes m0/trajectory/t0; w1 finishes m0/trajectory/t1; status",
        "sweep failed
        status: failed; train 4: 3 done 1 failed; analyse 0:; traj 3: 3 done; compare 3: 1 done 2 skipped",
    );
}

#[test]
fn the_members_of_a_group_come_with_all_that_is_known_of_them() {
    let mut document = seeds(2, &json!([]), &json!(["rank"]));
    document["models"][0]["train"]["params"] = json!({ "lr": [0.1, 0.2] });
    let mut world = World::new(&document);
    world.run("w1 joins; w1 acquires; w1 acquires");
    world.run("w1 publishes m0/train 0; w1 publishes m0/train 200; w1 finishes m0/train");
    world.run("w1 finishes m1/train; w1 finishes m2/train; w1 fails m3/train permanent");
    let Answer::Lease(Some(lease)) = world.acquire("w1", true, &[]) else { panic!("no lease") };
    let Some(pb::lease::Work::Trajectory(work)) = lease.work else { panic!("no trajectory") };
    assert_eq!(work.model, "all");
    let shown: Vec<_> = work
        .members
        .iter()
        .map(|m| (m.model.as_str(), m.seed, m.checkpoints.len(), m.failure.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("r-lr=0.1-seed0", Some(0), 2, ""),
            ("r-lr=0.1-seed1", Some(1), 0, ""),
            ("r-lr=0.2-seed0", Some(0), 0, ""),
            ("r-lr=0.2-seed1", Some(1), 0, "it failed"),
        ]
    );
    assert_eq!(work.members[2].params, r#"{"steps":200,"lr":0.2}"#);
    assert_eq!(work.members[2].axes, ["lr"]);
}

#[test]
fn a_group_of_failures_has_nothing_to_look_at() {
    let document = seeds(2, &json!([]), &json!(["order", "rank"]));
    let mut world = World::new(&document);
    check_in(
        &mut world,
        "w1 joins; w1 acquires; w1 fails m0/train permanent; status; w1 fails m1/train permanent; status
         restart; status; retry; status",
        "w1 <- 1.1: m0/train m1/train
        m0/train failed in 1.1: permanent, given up
        status: running; train 2: 1 failed 1 running; analyse 0:; traj 2: 2 waiting
        m1/train failed in 1.1: permanent, given up
        sweep failed
        status: failed; train 2: 2 failed; analyse 0:; traj 2: 2 skipped
        status: failed; train 2: 2 failed; analyse 0:; traj 2: 2 skipped
        sweep running
        status: running; train 2: 2 waiting; analyse 0:; traj 2: 2 waiting",
    );
}

#[test]
fn pairs_are_listed_without_being_stored() {
    let compare = json!([
        { "match": { "pairs": "models" } },
        { "match": { "pairs": "consecutive" } },
    ]);
    let world = World::new(&seeds(1000, &compare, &json!(["pca"])));
    assert_eq!(world.plan.totals().compare, 499_500 + 2_000);
    let sweep = world.core.sweep(1).unwrap();
    let filter = TaskFilter { kind: "compare".into(), ..TaskFilter::default() };
    let (tasks, next) = world.core.tasks(sweep, &filter, None, 1_003);
    let shown = |at: usize| tasks[at].task.to_string();
    assert_eq!(shown(0), "m0/step100/c1/p0");
    assert_eq!(shown(1), "m0/step200/c0/p0");
    assert_eq!(shown(999), "m0/step200/c0/p998");
    assert_eq!(shown(1000), "m0/step200/c1/p0");
    assert_eq!(shown(1002), "m1/step200/c0/p0");
    assert!(matches!(next.unwrap().kind, TaskKind::Compare { pair: 0, .. }));
    assert!(world.core.sweep(1).unwrap().couples.is_empty());
}

#[test]
fn too_many_pairs_are_refused() {
    let document = seeds(1000, &json!([{ "match": { "pairs": "models" } }]), &json!([]));
    let problems = crate::core::plan::Plan::resolve(
        &document,
        &crate::core::scenario::test_catalog(),
        100_000,
    );
    assert!(problems.unwrap_err()[0].contains("the sweep has 500500 tasks"));
    assert_eq!(plan(&document).totals().compare, 499_500);
}
