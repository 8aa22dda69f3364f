//! Sweep files that make no sense: exit 2, line and column, nothing submitted.

use std::fs;

use sweep_proto::pb;
use sweep_tests::{Cluster, small_sweep};

const GOOD: &str = "\
name: typo
models:
  - train:
      recipe: modular-addition
      params: { p: 13, d_model: 16, n_heads: 2, d_mlp: 32, steps: 40 }
    checkpoints: { every: 20 }
experiments:
  - grokking-progress
trajectory:
  - phase-transition: { metric: grokking-progress.test_loss }
";

#[tokio::test]
async fn every_mistake_has_line_and_column_and_nothing_is_submitted() {
    let cluster = Cluster::start(&[]).await.unwrap();
    let cases: &[(&str, &str, &[&str])] = &[
        ("experiments:", "experimets:", &["7:1", "experimets", "did you mean `experiments`?"]),
        ("p: 13", "p: thirteen", &["5:20", "whole number"]),
        ("p: 13", "p: []", &["5:20", "empty"]),
        (
            "recipe: modular-addition",
            "recipe: modular-adition",
            &["4:15", "did you mean `modular-addition`?"],
        ),
        (
            "- grokking-progress",
            "- groking-progress",
            &["8:5", "did you mean `grokking-progress`?"],
        ),
        ("d_mlp: 32", "d_mpl: 32", &["5:49", "did you mean `d_mlp`?"]),
        (
            "grokking-progress.test_loss",
            "grokking-progress.tst_loss",
            &["10:33", "did you mean `grokking-progress.test_loss`?"],
        ),
        ("models:", "models: [", &["typo.yaml:", "models"]),
        ("every: 20", "every: 0", &["6:27", "above 0"]),
    ];
    for (good, bad, expected) in cases {
        let text = GOOD.replacen(good, bad, 1);
        fs::write(cluster.folder.path().join("typo.yaml"), text).unwrap();
        let output = cluster.cli(&["submit", "typo.yaml"]).unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{bad}: {message}");
        assert!(output.stdout.is_empty(), "{bad}");
        for part in *expected {
            assert!(message.contains(part), "{bad}: `{part}` is not in\n{message}");
        }
    }
    fs::write(
        cluster.folder.path().join("typo.yaml"),
        GOOD.replace("steps: 40", "lr: [1.0, 2.0, 3.0]"),
    )
    .unwrap();
    let output = cluster.cli(&["submit", "typo.yaml", "--max-tasks", "10"]).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    let sweeps = cluster.sweeps().list(pb::ListSweepsRequest {}).await.unwrap().into_inner();
    assert!(sweeps.sweeps.is_empty());
}

/// The coordinator trusts nobody: the same checks hold for a client without them.
#[tokio::test]
async fn the_coordinator_checks_for_itself() {
    let cluster = Cluster::start(&[]).await.unwrap();
    for (field, value) in [("experiments", "nonsense"), ("modles", "x")] {
        let mut spec = small_sweep("bad", 10, 10, 1);
        spec[field] = serde_json::json!([value]);
        let error = cluster.submit(&spec).await.unwrap_err();
        let status = error.downcast_ref::<tonic::Status>().unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(value) || status.message().contains(field));
    }
    let request = pb::SubmitRequest { spec: "{".to_owned(), max_tasks: 0 };
    let status = cluster.sweeps().submit(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

/// A worker whose device cannot be used says so and takes no work.
#[tokio::test]
async fn a_worker_without_its_device_leaves_at_once() {
    let cluster = Cluster::start(&[]).await.unwrap();
    for (device, reason) in [("cuda:97", "cuda"), ("gpu", "expected cpu, cuda or cuda:N")] {
        let mut worker = std::process::Command::new(sweep_tests::binary("sweep-worker"));
        worker.args(["run", "--coordinator", &cluster.url, "--device", device, "--cache"]);
        worker.arg(cluster.folder.path().join("cache"));
        let output = tokio::task::spawn_blocking(move || worker.output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(reason), "{device}: {text}");
        assert!(!text.contains("registered"), "{text}");
    }
}
