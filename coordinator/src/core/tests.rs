//! Scenarios of the core: a script in, what happened out.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    event::{Answer, Body, Event},
    model::State,
    plan::Plan,
    scenario::{World, plan, small, task, test_catalog},
    status::TaskFilter,
};
use sweep_proto::{
    id::{Attempt, FailureClass, failure},
    pb,
};

#[track_caller]
fn check_in(world: &mut World, script: &str, expected: &str) {
    let told = world.run(script);
    let lines = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    };
    assert_eq!(lines(&told), lines(expected), "\n--- told:\n{told}");
}

#[track_caller]
fn check(seeds: u32, script: &str, expected: &str) {
    check_in(&mut World::new(&small(seeds)), script, expected);
}

#[test]
fn a_model_is_trained_analysed_and_reduced() {
    check(
        1,
        "w1 joins; w1 acquires; w1 acquires
         w1 starts m0/train; w1 publishes m0/train 0; w1 acquires
         w1 finishes m0/step0/e0; w1 publishes m0/train 100; w1 publishes m0/train 200
         w1 finishes m0/train; w1 acquires; w1 acquires; w1 acquires
         w1 finishes m0/step200/e0; w1 acquires; w1 finishes m0/step100/e0; w1 acquires
         status; w1 finishes m0/trajectory/t0; status; w1 acquires; submit",
        "w1 <- 1.1: m0/train
         w1 <- nothing
         w1 <- 1.2: m0/step0/e0
         w1 <- 1.3: m0/step100/e0
         w1 <- 1.4: m0/step200/e0
         w1 <- nothing
         w1 <- nothing
         w1 <- 1.5: m0/trajectory/t0
         status: running; train 1: 1 done; analyse 3: 3 done; traj 1: 1 running
         sweep done
         status: done; train 1: 1 done; analyse 3: 3 done; traj 1: 1 done
         w1 <- nothing
         created: false",
    );
}

#[test]
fn seeds_of_one_grid_point_train_together_and_end_on_their_own() {
    check(
        3,
        "w1 joins; w2 joins; w1 acquires; w2 acquires; w2 acquires
         w1 fails m0/train permanent; w1 saves m1/train 50; w1 fails m1/train preempted
         w2 acquires; status",
        "w1 <- 1.1: m0/train m1/train
         w2 <- 1.2: m2/train
         w2 <- nothing
         m0/train failed in 1.1: permanent, given up
         m1/train failed in 1.1: preempted
         w2 <- 1.3: m1/train from 50
         status: running; train 3: 1 failed 2 running; analyse 9: 3 skipped 6 waiting; traj 3: 1 skipped 2 waiting",
    );
}

#[test]
fn seeds_at_different_steps_do_not_share_a_lease() {
    check(
        2,
        "w1 joins; w1 acquires; w1 saves m0/train 50; w1 leaves; w1 joins; w1 acquires; w1 acquires",
        "w1 <- 1.1: m0/train m1/train
         w1 <- 1.2: m0/train from 50
         w1 <- 1.3: m1/train",
    );
}

#[test]
fn a_lease_that_is_not_renewed_goes_to_somebody_else() {
    check(
        1,
        "w1 joins; w2 joins; w1 acquires; w1 starts m0/train; w1 saves m0/train 60
         +20s; w1 beats; +30s; w1 measures m0/train 61; w2 acquires
         +5s; w2 acquires; w1 measures m0/train 62; w1 beats; w1 finishes m0/train
         w2 starts m0/train from 60; w2 finishes m0/train",
        "w1 <- 1.1: m0/train
         w2 <- nothing
         1.1 lost: expired
         m0/train failed in 1.1: worker-lost
         w2 <- 1.2: m0/train from 60
         w1 measures m0/train: VERDICT_FENCED
         w1 must drop 1.1
         w1 finishes m0/train: VERDICT_FENCED",
    );
}

#[test]
fn a_task_that_loses_five_workers_is_given_up() {
    check(
        1,
        "w1 joins
         w1 acquires; +35s; w1 acquires; +35s; w1 acquires; +35s; w1 acquires; +35s; w1 acquires; +35s
         w1 acquires; status",
        "w1 <- 1.1: m0/train
         1.1 lost: expired
         m0/train failed in 1.1: worker-lost
         w1 <- 1.2: m0/train
         1.2 lost: expired
         m0/train failed in 1.2: worker-lost
         w1 <- 1.3: m0/train
         1.3 lost: expired
         m0/train failed in 1.3: worker-lost
         w1 <- 1.4: m0/train
         1.4 lost: expired
         m0/train failed in 1.4: worker-lost
         w1 <- 1.5: m0/train
         1.5 lost: expired
         m0/train failed in 1.5: worker-lost, given up
         sweep failed
         w1 <- nothing
         status: failed; train 1: 1 failed; analyse 3: 3 skipped; traj 1: 1 skipped",
    );
}

#[test]
fn a_new_process_of_the_same_worker_ends_the_leases_of_the_old_one() {
    check(
        1,
        "w1 joins; w1 acquires; w1 returns; w1 acquires; w1 joins; w1 acquires",
        "w1 <- 1.1: m0/train
         w1 <- nothing
         1.1 lost: replaced by a new process
         m0/train failed in 1.1: worker-lost
         w1 <- 1.2: m0/train",
    );
}

#[test]
fn passing_failures_are_retried_with_backoff_and_then_given_up() {
    check(
        1,
        "w1 joins; w1 acquires; w1 fails m0/train transient; w1 acquires; +1s; w1 acquires
         w1 fails m0/train transient; +0.9s; w1 acquires; +1.1s; w1 acquires
         w1 fails m0/train transient; status",
        "w1 <- 1.1: m0/train
         m0/train failed in 1.1: transient
         w1 <- nothing
         w1 <- 1.2: m0/train
         m0/train failed in 1.2: transient
         w1 <- nothing
         w1 <- 1.3: m0/train
         m0/train failed in 1.3: transient, given up
         sweep failed
         status: failed; train 1: 1 failed; analyse 3: 3 skipped; traj 1: 1 skipped",
    );
}

#[test]
fn preemption_is_free() {
    let round = "w1 acquires; w1 fails m0/train preempted;";
    let mut world = World::new(&small(1));
    world.run("w1 joins");
    for _ in 0..20 {
        world.run(round);
    }
    check_in(
        &mut world,
        "w1 acquires; status",
        "w1 <- 1.21: m0/train
        status: running; train 1: 1 running; analyse 3: 3 waiting; traj 1: 1 waiting",
    );
}

#[test]
fn a_poisoned_device_gets_no_more_work_until_its_process_is_new() {
    check(
        1,
        "w1 joins; w2 joins; w1 acquires; w1 fails m0/train poisoned; +2s; w1 acquires; w2 acquires
         w2 fails m0/train transient; +4s; w1 joins; w1 acquires",
        "w1 <- 1.1: m0/train
         m0/train failed in 1.1: poisoned
         w1 <- nothing
         w2 <- 1.2: m0/train
         m0/train failed in 1.2: transient
         w1 <- 1.3: m0/train",
    );
}

#[test]
fn published_checkpoints_of_a_failed_training_are_still_analysed() {
    check(
        1,
        "w1 joins; w1 acquires; w1 publishes m0/train 0; w1 fails m0/train permanent; w1 acquires
         status; w1 finishes m0/step0/e0; status; retry; status; w1 acquires; submit",
        "w1 <- 1.1: m0/train
         m0/train failed in 1.1: permanent, given up
         w1 <- 1.2: m0/step0/e0
         status: running; train 1: 1 failed; analyse 3: 2 skipped 1 running; traj 1: 1 skipped
         sweep failed
         status: failed; train 1: 1 failed; analyse 3: 1 done 2 skipped; traj 1: 1 skipped
         sweep running
         status: running; train 1: 1 waiting; analyse 3: 1 done 2 waiting; traj 1: 1 waiting
         w1 <- 1.3: m0/train
         created: false",
    );
}

#[test]
fn trajectories_run_with_what_is_there() {
    check(
        1,
        "w1 joins; w1 acquires; w1 publishes m0/train 0; w1 publishes m0/train 200; w1 finishes m0/train
         w1 acquires; w1 fails m0/step0/e0 permanent; w1 acquires; w1 finishes m0/step200/e0; w1 acquires
         w1 finishes m0/trajectory/t0; status; retry; w1 acquires; w1 finishes m0/step0/e0; status",
        "w1 <- 1.1: m0/train
         w1 <- 1.2: m0/step0/e0
         m0/step0/e0 failed in 1.2: permanent, given up
         w1 <- 1.3: m0/step200/e0
         w1 <- 1.4: m0/trajectory/t0
         sweep failed
         status: failed; train 1: 1 done; analyse 3: 1 done 1 failed 1 skipped; traj 1: 1 done
         sweep running
         w1 <- 1.5: m0/step0/e0
         sweep failed
         status: failed; train 1: 1 done; analyse 3: 2 done 1 skipped; traj 1: 1 done",
    );
}

#[test]
fn cancelling_revokes_and_retrying_goes_on() {
    check(
        2,
        "w1 joins; w1 acquires; w1 saves m0/train 70; w1 saves m1/train 70; cancel; status; w1 beats
         w1 saves m0/train 80; w1 acquires; cancel; retry; w1 finishes m0/train; w1 acquires; status",
        "w1 <- 1.1: m0/train m1/train
         sweep cancelled
         status: cancelled; train 2: 2 cancelled; analyse 6: 6 cancelled; traj 2: 2 cancelled
         w1 must drop 1.1
         w1 saves m0/train: VERDICT_FENCED
         w1 <- nothing
         sweep running
         w1 finishes m0/train: VERDICT_FENCED
         w1 <- 1.2: m0/train m1/train from 70
         status: running; train 2: 2 running; analyse 6: 6 waiting; traj 2: 2 waiting",
    );
}

#[test]
fn a_cancelled_sweep_stays_cancelled_and_fenced_over_a_restart() {
    check(
        1,
        "w1 joins; w1 acquires; cancel; restart; w1 returns; status; w1 beats; retry
         w1 beats; w1 finishes m0/train; w1 acquires",
        "w1 <- 1.1: m0/train
         sweep cancelled
         status: cancelled; train 1: 1 cancelled; analyse 3: 3 cancelled; traj 1: 1 cancelled
         w1 must drop 1.1
         sweep running
         w1 must drop 1.1
         w1 finishes m0/train: VERDICT_FENCED
         w1 <- 2.1: m0/train",
    );
}

#[test]
fn a_hopeless_sweep_is_stopped() {
    let mut document = small(6);
    document["max_failures"] = json!(2);
    check_in(
        &mut World::new(&document),
        "w1 joins; w1 acquires; w1 acquires; w1 fails m0/train permanent; w1 fails m1/train permanent
         status; w1 beats; w1 acquires",
        "w1 <- 1.1: m0/train m1/train
         w1 <- 1.2: m2/train m3/train
         m0/train failed in 1.1: permanent, given up
         m1/train failed in 1.1: permanent, given up
         sweep failed
         status: failed; train 6: 2 failed 4 cancelled; analyse 18: 6 skipped 12 cancelled; traj 6: 2 skipped 4 cancelled
         w1 must drop 1.2
         w1 <- nothing",
    );
}

#[test]
fn after_a_restart_workers_re_attach_and_nothing_runs_twice() {
    check(
        2,
        "w1 joins; w2 joins; w1 acquires; w1 starts m0/train; w1 publishes m0/train 0; w2 acquires
         restart
         w2 returns; w2 acquires; w2 finishes m0/step0/e0
         w2 beats; w2 finishes m0/step0/e0; w2 acquires
         w1 returns; w1 measures m0/train 5; w1 beats; w1 measures m0/train 5; w1 finishes m0/train
         w2 acquires; status",
        "w1 <- 1.1: m0/train m1/train
         w2 <- 1.2: m0/step0/e0
         w2 <- nothing
         w2 finishes m0/step0/e0: VERDICT_UNKNOWN_LEASE
         1.2 taken over
         w2 <- nothing
         w1 measures m0/train: VERDICT_UNKNOWN_LEASE
         1.1 taken over
         w2 <- 2.1: m0/trajectory/t0
         status: running; train 2: 1 done 1 running; analyse 6: 1 done 2 skipped 3 waiting; traj 2: 1 running 1 waiting",
    );
}

#[test]
fn workers_that_do_not_come_back_lose_their_leases_after_one_lease_time() {
    check(
        1,
        "w1 joins; w2 joins; w1 acquires; w1 starts m0/train; restart; w2 returns; w2 beats
         w2 acquires; +34s; w2 acquires; +1s; w2 acquires; w1 returns; w1 beats; w1 finishes m0/train",
        "w1 <- 1.1: m0/train
         w2 <- nothing
         w2 <- nothing
         w2 <- 2.1: m0/train
         w1 must drop 1.1
         w1 finishes m0/train: VERDICT_FENCED",
    );
}

#[test]
fn the_grace_ends_when_every_worker_has_spoken() {
    // w1 is started anew, so that its old leases are dead; w2 says what it holds.
    check(
        4,
        "w1 joins; w2 joins; w1 acquires; w2 acquires; restart; w1 joins; w1 acquires
         w2 returns; w1 acquires; w2 beats; w1 acquires; w1 acquires",
        "w1 <- 1.1: m0/train m1/train
         w2 <- 1.2: m2/train m3/train
         w1 <- nothing
         w1 <- nothing
         1.2 taken over
         w1 <- 2.1: m0/train m1/train
         w1 <- nothing",
    );
}

#[test]
fn what_ended_before_a_restart_cannot_be_taken_over() {
    // 1.1 expired and 1.2 holds the task when the coordinator dies: the zombie comes back first.
    check(
        1,
        "w1 joins; w2 joins; w1 acquires; w1 starts m0/train; +35s; w2 acquires
         restart; w1 returns; w1 beats; w2 returns; w2 beats; w2 finishes m0/train; w1 finishes m0/train",
        "w1 <- 1.1: m0/train
         1.1 lost: expired
         m0/train failed in 1.1: worker-lost
         w2 <- 1.2: m0/train
         w1 must drop 1.1
         1.2 taken over
         w1 finishes m0/train: VERDICT_FENCED",
    );
}

#[test]
fn a_later_attempt_that_began_keeps_an_earlier_one_out() {
    // The give-back of 1.1 was undone by nothing durable but 1.2's beginning.
    let mut world = World::new(&small(1));
    check_in(&mut world, "w1 joins; w2 joins; w1 acquires", "w1 <- 1.1: m0/train");
    world.step(Event::Undelivered { attempt: Attempt::new(1, 1) });
    check_in(
        &mut world,
        "w2 acquires; w2 starts m0/train; restart; w1 returns; w1 beats; w2 returns; w2 beats",
        "w2 <- 1.2: m0/train
         w1 must drop 1.1
         1.2 taken over",
    );
}

#[test]
fn records_of_others_are_fenced_and_repeated_ones_harmless() {
    check(
        1,
        "w1 joins; w2 joins; w1 acquires; w1 publishes m0/train 0; w2 acquires analyses
         w1 publishes m0/train 0; w1 publishes m0/train 100; w1 publishes m0/train 100
         w1 finishes m0/train; w1 finishes m0/train; w1 publishes m0/train 100; w1 publishes m0/train 200
         w2 fails m0/step0/e0 transient; w2 fails m0/step0/e0 transient; w2 measures m0/step0/e0 0; status",
        "w1 <- 1.1: m0/train
         w2 <- 1.2: m0/step0/e0
         m0/step0/e0 failed in 1.2: transient
         status: running; train 1: 1 done; analyse 3: 1 skipped 2 waiting; traj 1: 1 waiting",
    );
}

#[test]
fn malformed_records_are_invalid_and_change_nothing() {
    let mut world = World::new(&small(1));
    check_in(&mut world, "w1 joins; w1 acquires", "w1 <- 1.1: m0/train");
    let (train, attempt) = (task("m0/train"), Attempt::new(1, 1));
    let elsewhere = pb::Blob { key: "v1/other/m0/train/1.1/x".into(), ..Default::default() };
    let checkpoint = |step: u64, file: Option<pb::Blob>| {
        Body::Checkpoint(pb::Checkpoint { step, file, weights_hash: "w".into() })
    };
    let upwards = format!("v1/{}/m0/train/1.1/../../x", world.plan.id());
    let upwards = pb::Blob { key: upwards, ..Default::default() };
    let own = world.blob(train, attempt, "x");
    for (body, problem) in [
        (checkpoint(0, None), "names no file"),
        (checkpoint(0, Some(elsewhere.clone())), "does not lie in"),
        (checkpoint(0, Some(upwards)), "does not lie in"),
        (checkpoint(7, Some(own)), "no checkpoint is wanted at step 7"),
        (World::metric("probe.loss", &[(0, 1.0)]), "does not belong to `r`"),
        (World::metric("rx.loss", &[(0, 1.0)]), "does not belong to `r`"),
        (
            Body::Done(pb::Manifest { artifacts: vec![elsewhere], ..Default::default() }),
            "does not lie in",
        ),
    ] {
        assert_eq!(world.say("w1", train, attempt, body), pb::Verdict::Invalid);
        let told = world.run("+0s");
        assert!(told.contains(problem), "{told} lacks {problem}");
    }
    let missing = task("m0/step7/e0");
    let started = Body::Started { resumed_from: None };
    assert_eq!(world.say("w1", missing, attempt, started), pb::Verdict::Invalid);
    world.run("w1 publishes m0/train 0; w1 acquires");
    let state = world.state(task("m0/step0/e0"), Attempt::new(1, 2), 3);
    let verdict = world.say("w1", task("m0/step0/e0"), Attempt::new(1, 2), state);
    assert_eq!(verdict, pb::Verdict::Invalid);
}

#[test]
fn after_an_unknown_lease_the_rest_of_a_report_is_not_looked_at() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w1 acquires; restart; w1 returns");
    let attempt = Attempt::new(1, 1);
    let done = |world: &mut World| {
        world.record(task("m0/train"), attempt, Body::Done(pb::Manifest::default()))
    };
    let records = vec![done(&mut world), done(&mut world)];
    let Answer::Verdicts(verdicts) = world.report("w1", records) else { panic!() };
    assert_eq!(verdicts, [pb::Verdict::UnknownLease, pb::Verdict::Unspecified]);
}

#[test]
fn a_lease_that_names_more_tasks_later_is_extended() {
    let mut world = World::new(&small(2));
    world.run("w1 joins; w1 acquires; restart; w1 returns");
    let both = world.workers["w1"].leases.clone();
    let leases = &mut world.workers.get_mut("w1").unwrap().leases;
    leases.values_mut().for_each(|tasks| tasks.truncate(1));
    check_in(
        &mut world,
        "w1 beats; status",
        "1.1 taken over
        status: running; train 2: 1 running 1 waiting; analyse 6: 6 waiting; traj 2: 2 waiting",
    );
    world.workers.get_mut("w1").unwrap().leases = both;
    check_in(&mut world, "w1 finishes m1/train; w1 beats; status", "
        status: running; train 2: 1 done 1 running; analyse 6: 3 skipped 3 waiting; traj 2: 2 waiting");
}

#[test]
fn checkpoints_that_are_published_again_stay_unless_they_differ_and_nobody_looked() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w1 acquires");
    let (train, attempt) = (task("m0/train"), Attempt::new(1, 1));
    let mut publish = |hash: &str, name: &str| {
        let file = Some(world.blob(train, attempt, name));
        let body =
            Body::Checkpoint(pb::Checkpoint { step: 0, file, weights_hash: hash.to_owned() });
        assert_eq!(world.say("w1", train, attempt, body), pb::Verdict::Accepted);
        let published = &world.core.sweep(1).unwrap().models[&0].published[&0];
        published.checkpoint.file.as_ref().unwrap().name.clone()
    };
    assert_eq!(publish("a", "first"), "first");
    assert_eq!(publish("a", "second"), "first", "equal weights: the first stays");
    assert_eq!(publish("b", "third"), "third", "other weights, nobody has looked: replaced");
    world.run("w1 acquires");
    let file = Some(world.blob(train, attempt, "fourth"));
    let body = Body::Checkpoint(pb::Checkpoint { step: 0, file, weights_hash: "c".into() });
    world.say("w1", train, attempt, body);
    let published = &world.core.sweep(1).unwrap().models[&0].published[&0];
    assert_eq!(published.checkpoint.file.as_ref().unwrap().name, "third", "work has begun");
}

#[test]
fn a_trainer_state_behind_void_points_is_dropped() {
    // w2 begins from nothing although there is a state: what w1 measured is void, so that nobody
    // may go on from w1's state any more.
    check(
        1,
        "w1 joins; w1 acquires; w1 starts m0/train; w1 saves m0/train 50; w1 saves m0/train 60; w1 leaves
         w2 joins; w2 acquires; w2 starts m0/train; w2 leaves
         w1 joins; w1 acquires; w1 starts m0/train from 0; w1 saves m0/train 20; w1 leaves; w1 joins; w1 acquires",
        "w1 <- 1.1: m0/train
         w2 <- 1.2: m0/train from 60
         w1 <- 1.3: m0/train
         w1 <- 1.4: m0/train from 20",
    );
}

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
fn work_goes_only_to_workers_that_offer_its_version() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w1 acquires; w1 publishes m0/train 0");
    let mut catalog = test_catalog();
    catalog.experiments[0].version = 2;
    let hello = super::event::Hello {
        instance: "new".into(),
        name: "new".into(),
        catalog,
        ..Default::default()
    };
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
        assert_eq!(super::scenario::tasks_of(&lease).len(), 2);
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
    document["compare"] = json!(["pca"]);
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
