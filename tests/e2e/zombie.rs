//! A worker that is frozen, loses its lease, and wakes up again.

use std::{collections::BTreeMap, fs, time::Duration};

use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, small_sweep};

/// Protections: records carry the attempt and are fenced; artifact keys contain the attempt; the
/// recorded manifests decide what readers see.
#[tokio::test]
async fn it_cannot_change_a_result_or_an_artifact() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let zombie = cluster.worker("zombie").unwrap();
    let spec = small_sweep("zombie", 3000, 250, 1);
    let sweep = cluster.submit(&spec).await.unwrap();
    cluster.until(&sweep, |s| s.analyse.as_ref().is_some_and(|a| a.done >= 2)).await.unwrap();
    zombie.signal("STOP");
    let running = cluster.status(&sweep).await.unwrap().running;
    let stale = running.iter().find(|task| task.label.ends_with("/train")).unwrap().attempt;

    let _second = cluster.worker("second").unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Done, "{status:#?}\n{}", cluster.logs());
    let values = cluster.values(&sweep, "").await.unwrap();
    let tasks = cluster.tasks(&sweep).await.unwrap();
    let files = contents(&cluster, &sweep).await;
    let train = tasks.keys().find(|label| label.ends_with("/train")).unwrap();
    assert!(tasks[train].attempt > stale, "the lease was never given away");

    // It wakes up in the middle of its training, finishes what it can and reports.
    zombie.signal("CONT");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let log = zombie.log();
    assert!(log.contains("lease revoked") || log.contains("given away"), "{log}");
    assert_eq!(cluster.values(&sweep, "").await.unwrap(), values);
    assert_eq!(contents(&cluster, &sweep).await, files);
    let after = cluster.tasks(&sweep).await.unwrap();
    for (label, task) in &tasks {
        assert_eq!(after[label].attempt, task.attempt, "{label}");
        assert_eq!(after[label].state, task.state, "{label}");
    }
}

/// Key → bytes of every artifact that readers are told of.
async fn contents(cluster: &Cluster, sweep: &str) -> BTreeMap<String, Vec<u8>> {
    let root = cluster.folder.path().join("coordinator/artifacts");
    let artifacts = cluster.artifacts(sweep).await.unwrap();
    assert!(artifacts.len() > 10);
    let files = artifacts.into_iter().filter_map(|artifact| artifact.file);
    files.map(|file| (file.key.clone(), fs::read(root.join(&file.key)).unwrap())).collect()
}
