//! Workers that die or leave in mid-training.

use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, Values, small_sweep};

/// The values of the sweep when nothing goes wrong: what every faulty run must equal, bit by bit.
async fn undisturbed(spec: &serde_json::Value) -> Values {
    let cluster = Cluster::start(&[]).await.unwrap();
    let _worker = cluster.worker("alone").unwrap();
    let sweep = cluster.submit(spec).await.unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    cluster.values(&sweep, "").await.unwrap()
}

/// Protections: trainer states are recorded after the metrics before them; points of an attempt
/// beyond the state that its successor went on from are void; resumed training is exact.
#[tokio::test]
async fn killed_in_mid_training_another_worker_goes_on_and_no_metric_is_lost_or_doubled() {
    let spec = small_sweep("crash", 3000, 250, 2);
    let expected = undisturbed(&spec).await;

    let cluster = Cluster::start(&[]).await.unwrap();
    let first = cluster.worker("first").unwrap();
    let sweep = cluster.submit(&spec).await.unwrap();
    // Some checkpoints are published, so there is a state to go on from.
    let trained = |status: &sweep_proto::pb::SweepStatus| {
        status.analyse.as_ref().is_some_and(|analyse| analyse.done >= 4)
    };
    cluster.until(&sweep, trained).await.unwrap();
    first.kill();
    let status = cluster.status(&sweep).await.unwrap();
    assert_eq!(status.train.as_ref().unwrap().done, 0, "the training was over too soon");

    let second = cluster.worker("second").unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    let values = cluster.values(&sweep, "").await.unwrap();
    assert_eq!(values.len(), expected.len());
    assert_eq!(values, expected);
    let logs = cluster.cli(&["logs", &sweep]).unwrap();
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains("goes on from step"), "{logs}\n{}", second.log());
}

/// Protection: SIGTERM saves the trainer state and gives the work back at no cost.
#[tokio::test]
async fn a_worker_that_is_told_to_leave_gives_its_training_back_without_a_failure() {
    let spec = small_sweep("drain", 3000, 250, 1);
    let expected = undisturbed(&spec).await;

    let cluster = Cluster::start(&[]).await.unwrap();
    let mut first = cluster.worker("first").unwrap();
    // With a single attempt allowed, a preemption that counted as a failure would end the sweep.
    let mut spec = spec;
    spec["retry"] = serde_json::json!({ "max_attempts": 1 });
    let sweep = cluster.submit(&spec).await.unwrap();
    cluster.until(&sweep, |s| s.analyse.as_ref().is_some_and(|a| a.done >= 2)).await.unwrap();
    first.signal("TERM");
    assert_eq!(first.ended().await.unwrap(), 0, "{}", first.log());
    assert_eq!(cluster.status(&sweep).await.unwrap().train.unwrap().done, 0, "over too soon");

    let _second = cluster.worker("second").unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    assert_eq!(cluster.values(&sweep, "").await.unwrap(), expected);
}

/// Many workers share a sweep; the result does not depend on who did what.
#[tokio::test]
async fn one_worker_or_three_the_values_are_the_same() {
    let spec = small_sweep("shared", 400, 50, 3);
    let expected = undisturbed(&spec).await;
    let cluster = Cluster::start(&[]).await.unwrap();
    let _workers = ["a", "b", "c"].map(|name| cluster.worker(name).unwrap());
    let sweep = cluster.submit(&spec).await.unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    assert_eq!(cluster.values(&sweep, "").await.unwrap(), expected);
}
