//! A spool that fills up while the coordinator does not answer.

use std::time::Duration;

use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, small_sweep};

/// Protections: the spool's bound holds the training back instead of dropping results, a failure is
/// reported in words, and the task is tried again.
#[tokio::test]
async fn the_training_waits_then_fails_clearly_and_nothing_is_lost() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let arguments = ["--spool-bytes", "2KiB", "--patience", "2s"];
    let worker = cluster.worker_with("worker", &arguments, &[]).unwrap();
    let spec = small_sweep("spool", 3000, 500, 1);
    let sweep = cluster.submit(&spec).await.unwrap();
    cluster.until(&sweep, |s| s.analyse.as_ref().is_some_and(|a| a.done >= 1)).await.unwrap();
    cluster.coordinator().signal("STOP");
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.coordinator().signal("CONT");
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", worker.log());
    let tasks = cluster.tasks(&sweep).await.unwrap();
    let failures: Vec<String> = tasks
        .values()
        .flat_map(|task| &task.failures)
        .map(|failure| failure.message.clone())
        .collect();
    assert!(failures.iter().any(|message| message.contains("spool")), "{failures:?}");
    let losses = cluster.values(&sweep, "modular-addition.train_loss").await.unwrap();
    let steps: Vec<u64> = losses.keys().map(|key| key.2).collect();
    let gaps: Vec<u64> = steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap == gaps[0]), "a gap in {steps:?}");
}
