//! A checkpoint file that is damaged or cut in the object store.

use std::{fs, path::PathBuf};

use sweep_proto::pb::SweepState;
use sweep_tests::{Cluster, small_sweep};

/// Protections: files are checked against the recorded hash, tensors against their own.
#[tokio::test]
async fn the_failure_names_file_and_tensor_and_other_checkpoints_are_analysed() {
    let cluster = Cluster::start(&[]).await.unwrap();
    // One slot: training comes first, so that the files can be damaged before anyone reads them.
    let first = cluster.worker_with("first", &["--slots", "1"], &[]).unwrap();
    let mut spec = small_sweep("corrupt", 3000, 500, 1);
    spec["trajectory"] = serde_json::json!([]);
    spec["experiments"] = serde_json::json!(["grokking-progress"]);
    let sweep = cluster.submit(&spec).await.unwrap();
    let root = cluster.folder.path().join("coordinator/artifacts");
    let find = |step: u64| -> Option<PathBuf> {
        let attempts = fs::read_dir(root.join(format!("v1/{sweep}/m0/train"))).ok()?.flatten();
        let file =
            |attempt: fs::DirEntry| attempt.path().join(format!("step{step}/model.safetensors"));
        attempts.map(file).find(|file| file.exists())
    };
    cluster.until(&sweep, |_| find(1000).is_some()).await.unwrap();
    first.kill();
    let (damaged, cut) = (find(0).unwrap(), find(500).unwrap());
    let mut bytes = fs::read(&damaged).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&damaged, bytes).unwrap();
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();

    let _second = cluster.worker_with("second", &["--patience", "2s"], &[]).unwrap();
    let status = cluster.until_ended(&sweep).await.unwrap();
    assert_eq!(status.state(), SweepState::Failed);
    let analyse = status.analyse.unwrap();
    assert_eq!((analyse.done, analyse.failed), (5, 2), "{:?}", status.failures);
    let tasks = cluster.tasks(&sweep).await.unwrap();
    let message = |step: u64| {
        let part = format!("/step{step}/");
        let task = tasks.iter().find(|(label, _)| label.contains(&part)).unwrap().1;
        task.failures.last().unwrap().message.clone()
    };
    for (step, word) in [(0, "tensor `"), (500, "truncated")] {
        let message = message(step);
        assert!(message.contains(&format!("step{step}/model.safetensors")), "{message}");
        assert!(message.contains(word), "{message}");
    }
}
