//! NaN in training.

use serde_json::json;
use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, small_sweep};

/// Protection: a diverged model fails by name and the others go on.
#[tokio::test]
async fn it_is_reported_as_such_and_the_others_go_on() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let _worker = cluster.worker("worker").unwrap();
    let mut spec = small_sweep("nan", 200, 50, 1);
    spec["models"][0]["train"]["params"]["lr"] = json!([0.003, 1e38]);
    let sweep = cluster.submit(&spec).await.unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Failed);
    let train = status.train.unwrap();
    assert_eq!((train.done, train.failed), (1, 1));
    assert!(status.trajectory.unwrap().done >= 3, "the good model is complete");
    let tasks = cluster.tasks(&sweep).await.unwrap();
    let (label, failed) = tasks.iter().find(|(_, task)| task.state == "failed").unwrap();
    assert!(label.contains("lr=1e+38") || label.contains("lr=1e38"), "{label}");
    let failure = failed.failures.last().unwrap();
    assert_eq!(failure.class(), sweep_proto::pb::FailureClass::Permanent);
    assert!(
        failure.message.contains("step") && failure.message.to_lowercase().contains("nan")
            || failure.message.contains("inf"),
        "{}",
        failure.message
    );
    assert_eq!(failed.failures.len(), 1, "a diverging training is not tried again");
    let output = cluster.cli(&["watch", &sweep, "--until-done"]).unwrap();
    assert_eq!(output.status.code(), Some(10));
}
