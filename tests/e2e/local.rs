//! `sweep local` from an empty folder, and every query verb afterwards.

use std::{fs, path::Path, process::Command, process::Output};

use sweep_tests::{binary, small_sweep};

fn sweep(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("sweep"));
    command.current_dir(folder).args(arguments).env_remove("SWEEP_COORDINATOR");
    command.output().unwrap()
}

#[track_caller]
fn ok(output: Output) -> String {
    let (stdout, stderr) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status.code());
    stdout
}

#[test]
fn one_command_trains_analyses_and_leaves_everything_queryable() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("sweep.yaml"), small_sweep("local", 400, 50, 2).to_string()).unwrap();
    let id = ok(sweep(folder, &["local", "sweep.yaml"]));
    let id = id.trim();
    assert!(id.starts_with("local-") && !id.contains(char::is_whitespace), "{id}");

    let json = |arguments: &[&str]| -> serde_json::Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        serde_json::from_str(&ok(sweep(folder, &all))).unwrap()
    };
    let status = json(&["status", id]);
    assert_eq!(status["state"], "done", "{status}");
    assert_eq!(json(&["list"])["sweeps"].as_array().unwrap().len(), 1);
    let losses = json(&["results", id, "--metric", "grokking-progress.test_loss"]);
    let rows = losses["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 9);
    assert!(rows.iter().all(|row| row["value"].is_number() && row["step"].is_number()));
    assert!(json(&["tasks", id])["tasks"].as_array().unwrap().len() >= 2 * (1 + 9 * 2 + 3));
    json(&["workers"]);
    json(&["catalog"]);
    ok(sweep(folder, &["logs", id]));
    ok(sweep(folder, &["results", id]));

    ok(sweep(folder, &["export", id, "--format", "csv", "--to", "all.csv"]));
    ok(sweep(folder, &["export", id, "--format", "jsonl", "--to", "all.jsonl"]));
    ok(sweep(folder, &["export", id, "--format", "parquet", "--to", "all.parquet"]));
    let csv = fs::read_to_string(folder.join("all.csv")).unwrap();
    let jsonl = fs::read_to_string(folder.join("all.jsonl")).unwrap();
    assert_eq!(csv.lines().count(), jsonl.lines().count() + 1);
    let head = csv.lines().next().unwrap();
    for column in [
        "sweep",
        "model",
        "seed",
        "checkpoint",
        "step",
        "experiment",
        "metric",
        "unit",
        "frequency",
        "tensor",
        "value",
    ] {
        assert!(head.split(',').any(|name| name == column), "{column} is not in {head}");
    }
    ok(sweep(folder, &["artifacts", "get", id, "*", "--to", "files"]));
    let model = folder.join("files").join("modular-addition-seed0");
    assert!(model.join("step50").is_dir() && model.join("trajectory").is_dir(), "{model:?}");
    ok(sweep(folder, &["plot", id, "--metric", "modular-addition.train_loss", "--to", "loss.png"]));
    let png = fs::read(folder.join("loss.png")).unwrap();
    assert_eq!(&png[1..4], b"PNG");

    // The same again: the same sweep, nothing runs.
    let before = json(&["tasks", id]);
    assert_eq!(ok(sweep(folder, &["local", "sweep.yaml"])).trim(), id);
    assert_eq!(json(&["tasks", id]), before);
    assert_eq!(sweep(folder, &["status", "nonsense"]).status.code(), Some(3));
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(
        sweep(elsewhere.path(), &["list", "--coordinator", "http://127.0.0.1:1"]).status.code(),
        Some(6)
    );
}
