//! Models that this system did not train, from a folder, with the real binaries.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use sweep_tests::{binary, published::write_gpt2};

use crate::hub_server::{Fault, HubServer, sha256};

const STEPS: [u64; 4] = [0, 10, 20, 30];

fn run_in(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("sweep"));
    command.current_dir(folder).args(arguments).env_remove("SWEEP_COORDINATOR");
    command
}

#[track_caller]
fn sweep(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = run_in(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn rows(folder: &Path, id: &str, metric: &str) -> Vec<Value> {
    let text = sweep(folder, &["results", id, "--metric", metric, "--output", "json"], 0);
    let document: Value = serde_json::from_str(&text).unwrap();
    document["rows"].as_array().unwrap().clone()
}

fn write_run(folder: &Path) {
    for step in STEPS {
        write_gpt2(&folder.join(format!("runs/my-lm/step{step}")), step).unwrap();
    }
}

fn sweep_file(folder: &Path) {
    let tokens = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]];
    let document = json!({
        "name": "real",
        "models": [{ "path": "runs/my-lm" }],
        "experiments": [
            "weight-norms",
            "integrity",
            { "per-token-loss": { "tokens": tokens } },
            { "activations": { "tokens": tokens, "names": ["blocks.1.attn.hook_pattern", "logits"] } },
        ],
        "trajectory": ["integrity-report"],
    });
    fs::write(folder.join("real.yaml"), document.to_string()).unwrap();
}

#[test]
fn every_checkpoint_of_a_folder_is_analysed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_run(folder);
    sweep_file(folder);
    let plan = sweep(folder, &["plan", "real.yaml", "--output", "json"], 0);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!((&plan["checkpoints"], &plan["analyse"]), (&json!(4), &json!(16)));
    let id = sweep(folder, &["local", "real.yaml"], 0);
    let id = id.trim();
    let losses = rows(folder, id, "per-token-loss.loss");
    let steps: Vec<u64> = losses.iter().filter_map(|row| row["step"].as_u64()).collect();
    assert_eq!(steps, STEPS);
    assert!(losses.iter().all(|row| row["model"] == "my-lm" && row["seed"].is_null()));
    let differ = |a: usize, b: usize| losses[a]["value"] != losses[b]["value"];
    assert!(differ(0, 1) && differ(1, 2) && differ(2, 3), "{losses:?}");

    sweep(folder, &["artifacts", "get", id, "*", "--to", "files"], 0);
    for step in STEPS {
        let file = format!("files/my-lm/step{step}/activations/activations.safetensors");
        let bytes = fs::read(folder.join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let pattern = tensors.tensor("blocks.1.attn.hook_pattern").unwrap();
        assert_eq!(pattern.shape(), [2, 2, 5, 5]);
        assert_eq!(tensors.tensor("logits").unwrap().shape(), [2, 5, 23]);
    }
    // The same again: the same sweep, nothing runs.
    assert_eq!(sweep(folder, &["local", "real.yaml"], 0).trim(), id);
}

#[test]
fn every_row_says_how_the_checkpoint_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_run(folder);
    let document = json!({
        "name": "processing",
        "models": [
            { "path": "runs/my-lm", "name": "as-stored", "prepend_bos": false },
            { "path": "runs/my-lm", "name": "folded", "processing": "folded" },
        ],
        "experiments": ["weight-norms", { "per-token-loss": { "tokens": [[1, 2, 3, 4, 5]] } }],
        "trajectory": [{ "pca": { "of": "weights" } }],
    });
    fs::write(folder.join("both.yaml"), document.to_string()).unwrap();
    let id = sweep(folder, &["local", "both.yaml"], 0);
    let id = id.trim();
    for metric in ["per-token-loss.loss", "weight-norms.norm", "pca.evr"] {
        let rows = rows(folder, id, metric);
        assert!(!rows.is_empty(), "{metric}");
        for row in rows {
            let folded = row["model"] == "folded";
            let expected = if folded {
                "fold_ln+center_writing_weights+center_unembed+fold_value_biases"
            } else {
                "raw"
            };
            assert_eq!(
                (&row["processing"], &row["prepend_bos"]),
                (&json!(expected), &json!(folded))
            );
        }
    }
    let table = sweep(folder, &["results", id, "--metric", "per-token-loss.loss"], 0);
    assert!(table.contains("processing") && table.contains("fold_ln+"), "{table}");
}

#[test]
fn a_damaged_checkpoint_fails_alone_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_run(folder);
    sweep_file(folder);
    let file = folder.join("runs/my-lm/step20/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    let id = sweep(folder, &["local", "real.yaml"], 10);
    let id = id.trim();
    assert_eq!(rows(folder, id, "per-token-loss.loss").len(), 3);
    let text = sweep(folder, &["tasks", id, "--state", "failed", "--output", "json"], 0);
    let tasks: Value = serde_json::from_str(&text).unwrap();
    let failed = tasks["tasks"].as_array().unwrap();
    assert!(failed.iter().any(|task| task["label"] == "my-lm/step20/per-token-loss"), "{text}");
    assert!(text.contains("model.safetensors"), "{text}");
    // The file is repaired: the same command goes on, and only what is missing runs.
    fs::write(&file, &bytes).unwrap();
    sweep(folder, &["local", "real.yaml"], 10);
    sweep(folder, &["retry", id], 0);
    sweep(folder, &["local", "real.yaml"], 0);
    assert_eq!(rows(folder, id, "per-token-loss.loss").len(), 4);
}

#[test]
fn weights_that_are_not_finite_are_reported_by_integrity_and_refused_by_others() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_run(folder);
    sweep_file(folder);
    let file = folder.join("runs/my-lm/step20/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, &bytes).unwrap();
    let id = sweep(folder, &["local", "real.yaml"], 10);
    let id = id.trim();
    let text = sweep(folder, &["tasks", id, "--state", "failed", "--output", "json"], 0);
    let tasks: Value = serde_json::from_str(&text).unwrap();
    let mut failed: Vec<&str> = tasks["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["label"].as_str().unwrap())
        .collect();
    failed.sort_unstable();
    // Step 30 is compared with step 20.
    let expected = ["20/activations", "20/per-token-loss", "20/weight-norms", "30/weight-norms"];
    assert_eq!(failed, expected.map(|task| format!("my-lm/step{task}")), "{text}");
    assert!(text.contains("step 20, to compare with: ") && text.contains("1 non-finite"), "{text}");
    let found = rows(folder, id, "integrity.n_nonfinite");
    let counts: Vec<&Value> = found.iter().map(|row| &row["value"]).collect();
    // The last number of the file is in the embedding, which is the unembedding too.
    assert_eq!(counts, [&json!(0.0), &json!(0.0), &json!(2.0), &json!(0.0)]);
    let report = sweep(
        folder,
        &["results", id, "--metric", "integrity-report.n_flags", "--output", "json"],
        0,
    );
    assert!(report.contains("1.0"), "{report}");
}

#[test]
fn a_place_without_checkpoints_is_refused_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join("empty")).unwrap();
    for (model, message) in [
        ("  - { path: nowhere }", "nowhere"),
        ("  - { path: empty }", "empty"),
        ("  - pythia-160n", "did you mean `pythia-160m`"),
    ] {
        let text = format!("name: x\nmodels:\n{model}\nexperiments: [weight-norms]\n");
        fs::write(folder.join("bad.yaml"), text).unwrap();
        let output = run_in(folder, &["local", "bad.yaml"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("bad.yaml:3:") && stderr.contains(message), "{stderr}");
        assert!(!folder.join(".sweep").exists(), "nothing was started");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_revision_of_a_hub_is_fetched_once_and_analysed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_run(folder);
    let hub = HubServer::start().await;
    for step in STEPS {
        let file = |name: &str| fs::read(folder.join(format!("runs/my-lm/step{step}/{name}")));
        let revision = format!("step{step}");
        hub.file("lab/my-lm", &revision, "config.json", &file("config.json").unwrap(), false);
        let weights = file("model.safetensors").unwrap();
        hub.file("lab/my-lm", &revision, "model.safetensors", &weights, true);
        if step == 20 {
            hub.fault(&sha256(&weights), Fault::Cut(weights.len() / 2), 1);
        }
    }
    // One connection breaks in mid-file, and the hub is overloaded once.
    hub.fault("resolve/step10/model.safetensors", Fault::Status(503, Vec::new()), 1);
    let tokens = json!([[1, 2, 3, 4, 5]]);
    let model = |source: Value| {
        json!({
            "name": "published", "models": [source],
            "experiments": ["integrity", { "per-token-loss": { "tokens": tokens } }],
        })
    };
    fs::write(folder.join("hub.yaml"), model(json!({ "hub": "lab/my-lm" })).to_string()).unwrap();
    fs::write(folder.join("path.yaml"), model(json!({ "path": "runs/my-lm" })).to_string())
        .unwrap();
    let run = |arguments: &[&str]| {
        let output = command(folder, arguments).env("HF_ENDPOINT", &hub.url).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let from_hub = run(&["local", "hub.yaml"]);
    let from_folder = run(&["local", "path.yaml"]);
    for metric in ["per-token-loss.loss", "integrity.distance_previous"] {
        let values = |id: &str| -> Vec<(Value, Value)> {
            let rows = rows(folder, id, metric);
            rows.iter().map(|row| (row["step"].clone(), row["value"].clone())).collect()
        };
        assert_eq!(values(&from_hub), values(&from_folder), "{metric}");
        assert!(!values(&from_hub).is_empty(), "{metric}");
    }
    // Two experiments, one of which reads the checkpoint before, cost one download of each.
    for step in STEPS {
        let fetches = hub.seen(&format!("resolve/step{step}/model.safetensors")).len();
        assert_eq!(fetches, if [10, 20].contains(&step) { 2 } else { 1 }, "step {step}");
    }
}

#[test]
fn checkpoints_of_this_system_can_be_analysed_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let params = json!({ "p": 13, "d_model": 16, "d_mlp": 32, "n_heads": 2, "steps": 40 });
    let train = json!({
        "name": "trained",
        "models": [{ "train": { "recipe": "modular-addition", "params": params, "seeds": 1 },
                     "checkpoints": { "every": 20 } }],
        "experiments": ["grokking-progress"],
    });
    fs::write(folder.join("train.yaml"), train.to_string()).unwrap();
    let trained = sweep(folder, &["local", "train.yaml"], 0);
    let run = format!(".sweep/artifacts/v1/{}/m0/train/1.1", trained.trim());
    let again = json!({
        "name": "again", "models": [{ "path": run }], "experiments": ["grokking-progress"],
    });
    fs::write(folder.join("again.yaml"), again.to_string()).unwrap();
    let again = sweep(folder, &["local", "again.yaml"], 0);
    let losses = |id: &str| -> Vec<Value> {
        let rows = rows(folder, id.trim(), "grokking-progress.restricted_loss");
        rows.iter().map(|row| row["value"].clone()).collect()
    };
    assert_eq!(losses(&trained).len(), 3);
    assert_eq!(losses(&trained), losses(&again));
}
