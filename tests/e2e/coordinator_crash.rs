//! A coordinator that is killed in mid-sweep and started again.

use std::time::Duration;

use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, small_sweep};

/// Protections: the spool holds results until they are durable; running work is re-attached after
/// the restart instead of being run again; done tasks are known to the restarted coordinator.
#[tokio::test]
async fn workers_reattach_nothing_is_run_again_and_metrics_of_the_outage_arrive() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let worker = cluster.worker("worker").unwrap();
    let spec = small_sweep("outage", 4000, 250, 1);
    let sweep = cluster.submit(&spec).await.unwrap();
    cluster.until(&sweep, |s| s.analyse.as_ref().is_some_and(|a| a.done >= 4)).await.unwrap();
    let before = cluster.tasks(&sweep).await.unwrap();
    let training = |label: &&String| label.ends_with("/train");
    let train = before.keys().find(training).unwrap().clone();
    let attempt = before[&train].attempt;
    assert_eq!(before[&train].state, "running");

    cluster.kill_coordinator();
    // The worker goes on meanwhile; what it finds out waits in its spool.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.restart_coordinator().await.unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());

    let after = cluster.tasks(&sweep).await.unwrap();
    assert_eq!(after[&train].attempt, attempt, "the training was started again\n{}", worker.log());
    for (label, task) in before.iter().filter(|(_, task)| task.state == "done") {
        assert_eq!(after[label].attempt, task.attempt, "{label} was run again");
        assert_eq!(after[label].finished_at, task.finished_at, "{label} was run again");
    }
    let losses = cluster.values(&sweep, "modular-addition.train_loss").await.unwrap();
    let steps: Vec<u64> = losses.keys().map(|key| key.2).collect();
    let gaps: Vec<u64> = steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!((steps[0], *steps.last().unwrap()), (0, 4000));
    assert!(gaps.iter().all(|gap| *gap == gaps[0]), "a gap in {steps:?}");
}

/// Protection: submissions and results are durable before they are acknowledged.
#[tokio::test]
async fn a_finished_sweep_is_complete_after_any_number_of_kills() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let _worker = cluster.worker("worker").unwrap();
    let spec = small_sweep("durable", 300, 50, 2);
    let sweep = cluster.submit(&spec).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        cluster.kill_coordinator();
        cluster.restart_coordinator().await.unwrap();
    }
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    let values = cluster.values(&sweep, "").await.unwrap();
    let artifacts = cluster.artifacts(&sweep).await.unwrap().len();
    cluster.kill_coordinator();
    cluster.restart_coordinator().await.unwrap();
    assert_eq!(cluster.values(&sweep, "").await.unwrap(), values);
    assert_eq!(cluster.artifacts(&sweep).await.unwrap().len(), artifacts);
    assert_eq!(cluster.submit(&spec).await.unwrap(), sweep);
    assert_eq!(cluster.status(&sweep).await.unwrap().state(), SweepState::Done);
}
