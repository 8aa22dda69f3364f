//! `sweep catalog models` and `sweep catalog checkpoints`, without any network.

use std::{fs, path::Path};

use serde_json::Value;

use crate::run::{Sweep, sweep};

/// A hub that nobody answers for.
const NOWHERE: &str = "http://127.0.0.1:9";

fn offline(folder: &Path, arguments: &[&str]) -> Sweep {
    sweep(folder, arguments).env("HF_ENDPOINT", NOWHERE).env("HOME", folder)
}

#[track_caller]
fn labels(folder: &Path, model: &str) -> Vec<u64> {
    let text = offline(folder, &["catalog", "checkpoints", model]).run().ok();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn labels_come_one_a_line_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let pythia = labels(folder.path(), "pythia-160m");
    assert_eq!((pythia.len(), pythia[0], pythia[153]), (154, 0, 143_000));
    assert_eq!(labels(folder.path(), "EleutherAI/pythia-160m-v0").len(), 143);
    assert_eq!(labels(folder.path(), "stanford-gpt2-medium-c").len(), 609);
    let toy = labels(folder.path(), "gelu-1l");
    assert_eq!((toy.len(), toy[10], toy[163]), (164, 22_000_000, 22_000_000_000));

    let found = offline(folder.path(), &["catalog", "checkpoints", "pythia-2.8b"]).run();
    assert!(found.stderr.contains("86 of 154"), "{}", found.stderr);
    assert_eq!(found.ok().lines().count(), 154);
    let arguments = ["catalog", "checkpoints", "pythia-2.8b", "--output", "json"];
    let document: Value =
        serde_json::from_str(&offline(folder.path(), &arguments).run().ok()).unwrap();
    assert_eq!(document["schema"], "sweep.catalog.checkpoints/v1");
    assert_eq!(document["at"], "hub:EleutherAI/pythia-2.8b@{}");
    assert_eq!(document["checkpoints"][2], serde_json::json!({"step": 2, "name": "step2"}));
    assert!(document["defects"][0].as_str().unwrap().contains("EleutherAI/pythia#205"));
}

#[test]
fn folders_are_listed_like_models() {
    let folder = tempfile::tempdir().unwrap();
    for step in [10, 9, 100] {
        let step = folder.path().join(format!("runs/m/step{step}"));
        fs::create_dir_all(&step).unwrap();
        fs::write(step.join("model.safetensors"), "x").unwrap();
    }
    assert_eq!(labels(folder.path(), "runs/m"), [9, 10, 100]);
    let absolute = folder.path().join("runs/m").canonicalize().unwrap();
    assert_eq!(labels(folder.path(), &format!("file://{}", absolute.display())), [9, 10, 100]);
    let run = |name: &str| offline(folder.path(), &["catalog", "checkpoints", name]).run();
    run("./runs").fails(2, &["no checkpoints are recognised", "step<N>", "m/"]);
    run("./nothing").fails(3, &["does not exist"]);
    run("pythia-71m").fails(3, &["no published model is called `pythia-71m`", "did you mean"]);
    run("hub:a/b/c").fails(2, &["OWNER/NAME"]);
    offline(folder.path(), &["catalog", "checkpoints"]).run().fails(2, &["of which model"]);
}

#[test]
fn models_are_listed_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| offline(folder.path(), arguments).run();
    let table = run(&["catalog", "models"]).ok();
    for row in [
        ["pythia-2.8b", "EleutherAI/pythia-2.8b", "154 steps", "known defects"],
        ["alias-gpt2-small-x21", "stanford-crfm/alias-gpt2-small-x21", "609 steps", ""],
        ["solu-12l", "NeelNanda/SoLU_12L1536W_C4_Code", "164 by tokens", ""],
        ["olmo-2-7b", "allenai/OLMo-2-1124-7B", "listed by the hub", "known defects"],
        ["gpt2-xl", "openai-community/gpt2-xl", "final", ""],
    ] {
        let line = table.lines().find(|line| line.starts_with(&format!("{} ", row[0]))).unwrap();
        assert!(row.iter().all(|word| line.contains(word)), "{line}");
    }
    let one = run(&["catalog", "models", "EleutherAI/pythia-350m-seed9"]).ok();
    assert!(one.starts_with("pythia-410m-seed9"), "{one}");
    for words in ["EleutherAI/pythia-70m", "prepend_bos", "false", "50277", "EleutherAI/pythia#202"]
    {
        assert!(one.contains(words), "`{words}` is not in\n{one}");
    }
    assert_eq!(run(&["catalog", "pythia-410m-seed9"]).ok(), one);
    let document = run(&["catalog", "models", "stanford-gpt2-small-a", "--output", "json"]).ok();
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["schema"], "sweep.catalog/v1");
    let model = &document["models"][0];
    assert_eq!((&model["checkpoints"], &model["tokens_per_step"]), (&609.into(), &524_288.into()));
    assert_eq!(model["repo"], "stanford-crfm/alias-gpt2-small-x21");
    let document: Value =
        serde_json::from_str(&run(&["catalog", "models", "--output", "json"]).ok()).unwrap();
    assert!(document["models"].as_array().unwrap().len() > 100);
    run(&["catalog", "models", "pythia-71m"]).fails(3, &["did you mean"]);
}
