//! Restarts, zombies, repeated and malformed records.

use sweep_proto::{id::Attempt, pb};

use super::{check, check_in};
use crate::core::{
    event::{Answer, Body, Event},
    scenario::{World, small, task},
};

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
fn an_end_that_is_reported_twice_does_not_cost_the_other_tasks_of_the_lease() {
    check(
        2,
        "w1 joins; w2 joins; w1 acquires; w1 finishes m0/train; w1 finishes m0/train
         w1 fails m1/train preempted; w1 fails m1/train preempted; w2 acquires; w1 fails m1/train preempted",
        "w1 <- 1.1: m0/train m1/train
         m1/train failed in 1.1: preempted
         w2 <- 1.2: m0/trajectory/t0
         ",
    );
}

#[test]
fn a_token_is_good_only_for_its_holder() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w2 joins; w1 acquires");
    let (train, attempt) = (task("m0/train"), Attempt::new(1, 1));
    let done = Body::Done(pb::Manifest::default());
    assert_eq!(world.say("w2", train, attempt, done.clone()), pb::Verdict::Fenced);
    assert_eq!(world.say("w1", train, attempt, done), pb::Verdict::Accepted);
}

#[test]
fn a_lease_that_was_taken_back_as_undelivered_is_dropped_by_who_got_it_after_all() {
    let mut world = World::new(&small(1));
    world.run("w1 joins; w1 acquires");
    world.step(Event::Undelivered { attempt: Attempt::new(1, 1) });
    check_in(
        &mut world,
        "w1 finishes m0/train; w1 beats; w1 acquires",
        "w1 finishes m0/train: VERDICT_FENCED
         w1 must drop 1.1
         w1 <- 1.2: m0/train",
    );
}

#[test]
fn malformed_records_are_invalid_and_change_nothing() {
    let mut world = World::new(&small(1));
    check_in(&mut world, "w1 joins; w1 acquires", "w1 <- 1.1: m0/train");
    let (train, attempt) = (task("m0/train"), Attempt::new(1, 1));
    let elsewhere = pb::Blob { key: "v1/other/m0/train/1.1/x".into(), ..Default::default() };
    let checkpoint = |step: u64, file: Option<pb::Blob>| {
        Body::Checkpoint(pb::Checkpoint { step, file, weights_hash: "w".into(), imported: None })
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
    for tasks in leases.values_mut() {
        tasks.truncate(1);
    }
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
        let body = Body::Checkpoint(pb::Checkpoint {
            step: 0,
            file,
            weights_hash: hash.to_owned(),
            imported: None,
        });
        assert_eq!(world.say("w1", train, attempt, body), pb::Verdict::Accepted);
        let published = &world.core.sweep(1).unwrap().models[&0].published[&0];
        published.checkpoint.file.as_ref().unwrap().name.clone()
    };
    assert_eq!(publish("a", "first"), "first");
    assert_eq!(publish("a", "second"), "first", "equal weights: the first stays");
    assert_eq!(publish("b", "third"), "third", "other weights, nobody has looked: replaced");
    world.run("w1 acquires");
    let file = Some(world.blob(train, attempt, "fourth"));
    let body = Body::Checkpoint(pb::Checkpoint {
        step: 0,
        file,
        weights_hash: "c".into(),
        imported: None,
    });
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
