//! Query verbs: tables, JSON schemas, exit codes.

use std::fs;

use crate::{
    fake::{Fake, Server, example},
    run::{Finished, sweep},
};

struct Setup {
    fake: Fake,
    server: Server,
    folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let fake = example();
    Setup { server: fake.start(), fake, folder: tempfile::tempdir().unwrap() }
}

impl Setup {
    fn run(&self, arguments: &[&str]) -> Finished {
        sweep(self.folder.path(), arguments).env("SWEEP_COORDINATOR", &self.server.url).run()
    }
}

#[test]
fn tables_for_people() {
    let setup = setup();
    let mut screen = String::new();
    for arguments in [
        &["status"][..],
        &["list"],
        &["tasks"],
        &["tasks", "last", "--state", "failed"],
        &["workers"],
        &["logs", "last", "seed1"],
        &["results"],
        &["results", "last", "--metric", "grokking-progress.test_loss"],
        &["results", "last", "--metric", "grokking-progress.*", "--latest", "--limit", "6"],
        &[
            "results",
            "grok",
            "--model",
            "modular-addition-seed0",
            "--metric",
            "grokking-progress.test_acc",
            "--last",
            "1",
        ],
    ] {
        let output = setup.run(arguments).ok();
        let plain: Vec<&str> = output.lines().map(str::trim_end).collect();
        screen = format!("{screen}$ sweep {}\n{}\n\n", arguments.join(" "), plain.join("\n"));
    }
    insta::assert_snapshot!(screen);
}

#[test]
fn json_for_scripts() {
    let setup = setup();
    let mut screen = String::new();
    for arguments in [
        &["status"][..],
        &["list"],
        &["tasks"],
        &["workers"],
        &["logs"],
        &["results", "last", "--metric", "grokking-progress.test_loss"],
        &["results", "last", "--metric", "grokking-progress.cos_coefficient", "--latest"],
        &["artifacts", "list"],
        &["cancel"],
        &["retry"],
    ] {
        let arguments = [arguments, &["--output", "json"]].concat();
        let output = setup.run(&arguments).ok();
        let document: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert!(document["schema"].as_str().unwrap().ends_with("/v1"));
        let document = serde_json::to_string_pretty(&document).unwrap();
        screen = format!("{screen}$ sweep {}\n{document}\n\n", arguments.join(" "));
    }
    insta::assert_snapshot!(screen);
}

#[test]
fn the_catalogue_has_a_schema_too() {
    let setup = setup();
    let document = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&setup.run(arguments).ok()).unwrap()
    };
    let all = document(&["catalog", "--output", "json"]);
    assert_eq!(all["schema"], "sweep.catalog/v1");
    let one = document(&["catalog", "experiments", "grokking-progress", "--output", "json"]);
    assert_eq!(one["experiments"][0]["name"], "grokking-progress");
    assert!(one["experiments"][0]["metrics"][0]["unit"].is_string());
    assert_eq!(one["recipes"], serde_json::json!([]));
    let text = setup.run(&["catalog", "modular-addition"]).ok();
    assert!(text.contains("frac_train") && text.contains("Source:"), "{text}");
    // The same without any coordinator.
    let elsewhere = tempfile::tempdir().unwrap();
    let embedded = sweep(elsewhere.path(), &["catalog", "--output", "json"]).run().ok();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&embedded).unwrap(), all);
    setup.run(&["catalog", "groking-progress"]).fails(3, &["did you mean `grokking-progress`?"]);
    setup.run(&["catalog", "recipes", "grokking-progress"]).fails(3, &["no experiment or recipe"]);
}

#[test]
fn every_kind_of_failure_has_its_exit_code() {
    let setup = setup();
    setup.run(&["status", "nonsense"]).fails(3, &["no sweep `nonsense`"]);
    setup.run(&["results", "last", "--metric", "a.b"]).fails(3, &["no metric `a.b`"]);
    let hint = &["did you mean `grokking-progress.test_loss`?"];
    setup.run(&["results", "last", "--metric", "grokking-progress.tst_loss"]).fails(3, hint);
    // Declared, but nothing was measured yet: no error, no rows.
    let arguments = ["results", "last", "--metric", "grokking-progress.fve", "--output", "json"];
    let empty: serde_json::Value = serde_json::from_str(&setup.run(&arguments).ok()).unwrap();
    assert_eq!(empty["rows"], serde_json::json!([]));
    setup.run(&["results", "last", "--last", "0"]).fails(2, &["0"]);
    setup.run(&["tasks", "--state", "sleeping"]).fails(2, &["possible values"]);
    setup.run(&["frobnicate"]).fails(2, &["unrecognized subcommand"]);
    setup.fake.with(|state| state.sweeps[0].state = sweep_proto::pb::SweepState::Done as i32);
    setup.run(&["cancel"]).fails(2, &["has ended"]);
    let dead = sweep(setup.folder.path(), &["list", "--coordinator", "http://127.0.0.1:1"]).run();
    dead.fails(6, &["cannot be reached"]);
    let wrong = sweep(setup.folder.path(), &["list", "--coordinator", "127.0.0.1:1"]).run();
    wrong.fails(2, &["expected http://HOST:PORT"]);
}

#[test]
fn errors_are_json_where_results_are() {
    let setup = setup();
    let finished = setup.run(&["status", "nonsense", "--output", "json"]);
    finished.fails(3, &[]);
    let error: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
    assert_eq!((&error["schema"], &error["code"]), (&"sweep.error/v1".into(), &"not-found".into()));
    fs::write(setup.folder.path().join("bad.yaml"), "name: x\nmodles: []\n").unwrap();
    let finished = setup.run(&["submit", "bad.yaml", "--output", "json"]);
    finished.fails(2, &[]);
    let error: serde_json::Value = serde_json::from_str(&finished.stderr).unwrap();
    assert_eq!(error["code"], "sweep-file");
    let first = &error["problems"][0];
    assert_eq!((&first["file"], &first["column"]), (&"bad.yaml".into(), &1.into()));
    assert!(setup.fake.with(|state| state.submitted.is_empty()));
}

#[test]
fn colours_and_closed_pipes() {
    let setup = setup();
    assert!(!setup.run(&["status"]).ok().contains('\u{1b}'));
    assert!(setup.run(&["status", "--color", "always"]).ok().contains('\u{1b}'));
    // The reader leaves after one line: no error message, no panic.
    let script = format!(
        "{} results last --metric 'grokking-progress.*' --output json 2>err | head -n 1; cat err",
        env!("CARGO_BIN_EXE_sweep")
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(setup.folder.path())
        .env("SWEEP_COORDINATOR", &setup.server.url)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\n");
}

#[test]
fn completions_for_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = sweep(folder.path(), &["completions", shell]).run().ok();
        assert!(script.contains("artifacts"), "{shell}");
    }
}
