//! Training, analysis, reduction; failures, retries, cancellation.

use serde_json::json;

use super::{check, check_in};
use crate::core::scenario::{World, small};

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

/// The sweep was submitted with a catalogue that says 2.
#[test]
fn a_lease_carries_as_many_seeds_as_the_worker_that_asks_trains_together() {
    check(
        9,
        "gpu joins with 4; cpu joins with 1; old joins with 0
         cpu acquires; gpu acquires; old acquires; gpu acquires
         gpu saves m1/train 50; gpu saves m2/train 50; gpu saves m3/train 50; gpu saves m4/train 50
         gpu leaves; cpu acquires; old acquires; gpu joins with 4; gpu acquires",
        "cpu <- 1.1: m0/train
         gpu <- 1.2: m1/train m2/train m3/train m4/train
         old <- 1.3: m5/train
         gpu <- 1.4: m6/train m7/train m8/train
         cpu <- 1.5: m1/train from 50
         old <- 1.6: m2/train from 50
         gpu <- 1.7: m3/train m4/train from 50",
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
