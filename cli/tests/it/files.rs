//! Verbs that read and write files: submit, plan, export, plot.

use std::fs;

use crate::{
    fake::{Fake, Server, example},
    run::{Finished, sweep},
};

const GOOD: &str = "\
name: good
models:
  - train:
      recipe: modular-addition
      params: { p: [13, 17], steps: 40 }
      seeds: 3
    checkpoints: { every: 20 }
experiments:
  - grokking-progress
trajectory:
  - phase-transition: { metric: grokking-progress.test_loss }
";

struct Setup {
    fake: Fake,
    server: Server,
    folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let fake = example();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good.yaml"), GOOD).unwrap();
    Setup { server: fake.start(), fake, folder }
}

impl Setup {
    fn run(&self, arguments: &[&str]) -> Finished {
        sweep(self.folder.path(), arguments).env("SWEEP_COORDINATOR", &self.server.url).run()
    }
}

#[test]
fn submit_prints_the_id_alone_and_twice_is_once() {
    let setup = setup();
    let first = setup.run(&["submit", "good.yaml"]);
    let id = first.stdout.trim().to_owned();
    assert!(id.starts_with("good-") && first.stdout == format!("{id}\n"), "{first:?}");
    assert!(first.stderr.contains(&format!("sweep watch {id}")), "{}", first.stderr);
    let again = setup.run(&["submit", "good.yaml"]);
    assert_eq!(again.stdout.trim(), id);
    assert!(again.stderr.contains("is there already"), "{}", again.stderr);
    let sent: serde_json::Value =
        setup.fake.with(|state| serde_json::from_str(&state.submitted[0]).unwrap());
    assert_eq!(sent["models"][0]["train"]["seeds"], serde_json::json!([0, 1, 2]));
    let json = setup.run(&["submit", "good.yaml", "--output", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], &json["created"]), (&"sweep.submit/v1".into(), &false.into()));
}

#[test]
fn nothing_bad_is_submitted() {
    let setup = setup();
    let check = |good: &str, bad: &str, words: &[&str]| {
        fs::write(setup.folder.path().join("bad.yaml"), GOOD.replacen(good, bad, 1)).unwrap();
        setup.run(&["submit", "bad.yaml"]).fails(2, words);
    };
    check(
        "recipe: modular-addition",
        "recipe: modular-adition",
        &[
            "bad.yaml:4:15: unknown recipe `modular-adition`",
            "4 |       recipe: modular-adition",
            "^^^^^^^^^^^^^^^",
            "did you mean `modular-addition`?",
        ],
    );
    check("grokking-progress.test_loss", "grokking-progress.tst_loss", &["bad.yaml:11:33"]);
    check("[13, 17]", "[]", &["bad.yaml:5:20", "empty"]);
    check("name: good", "\tname: good", &["bad.yaml:1:1: ", "tabs"]);
    setup.run(&["submit", "missing.yaml"]).fails(3, &["missing.yaml"]);
    let refused = setup.run(&["submit", "good.yaml", "--max-tasks", "20"]);
    // 6 trainings, 18 analyses, 6 trajectories.
    refused.fails(2, &["good.yaml:3:5: the sweep has 30 tasks, more than --max-tasks 20"]);
    assert!(setup.fake.with(|state| state.submitted.is_empty()));
    setup.run(&["submit", "good.yaml", "--max-tasks", "30"]).ok();
}

#[test]
fn a_plan_needs_no_coordinator() {
    let setup = setup();
    let without = sweep(setup.folder.path(), &["plan", "good.yaml", "--output", "json"]).run().ok();
    let plan: serde_json::Value = serde_json::from_str(&without).unwrap();
    assert_eq!(plan["schema"], "sweep.plan/v1");
    assert_eq!((&plan["models"], &plan["tasks"]), (&6.into(), &30.into()));
    assert_eq!(plan["model_labels"][1], "modular-addition-p=13-seed1");
    let with = setup.run(&["plan", "good.yaml"]);
    assert!(
        with.stdout.contains("120 000") && with.stderr.contains("submitted before"),
        "{with:?}"
    );
    assert!(setup.fake.with(|state| state.submitted.is_empty()));
}

#[test]
fn exports_hold_every_value() {
    let setup = setup();
    for (format, file) in
        [("csv", "out/all.csv"), ("jsonl", "all.jsonl"), ("parquet", "all.parquet")]
    {
        let output = setup.run(&["export", "last", "--format", format, "--to", file]);
        assert_eq!(output.ok(), format!("{file}\n"));
    }
    let text = fs::read_to_string(setup.folder.path().join("out/all.csv")).unwrap();
    // 4 metrics × 2 models × 2 steps, and 10 frequencies × 2 steps.
    assert_eq!(text.lines().count(), 1 + 16 + 20);
    let row = "grokking-0123456789,modular-addition-seed1,1,step100,100,grokking-progress,1,{},\
        grokking-progress.test_loss,nats,,,,NaN";
    assert!(text.contains(row), "{text}");
    let jsonl = fs::read_to_string(setup.folder.path().join("all.jsonl")).unwrap();
    assert_eq!(jsonl.lines().count(), 36);
    let only = [
        "export",
        "last",
        "--format",
        "csv",
        "--to",
        "x.csv",
        "--metric",
        "modular-addition.train_loss",
    ];
    setup.run(&only).ok();
    assert_eq!(fs::read_to_string(setup.folder.path().join("x.csv")).unwrap().lines().count(), 5);
    setup.run(&["export", "last", "--format", "csv", "--to", "/"]).fails(2, &["not a file name"]);
}

#[test]
fn a_metric_that_appears_during_the_export_gets_its_column() {
    let setup = setup();
    setup.fake.with(|state| state.unlisted = vec!["grokking-progress.cos_coefficient".into()]);
    setup.run(&["export", "last", "--format", "csv", "--to", "all.csv"]).ok();
    let text = fs::read_to_string(setup.folder.path().join("all.csv")).unwrap();
    assert!(text.lines().next().unwrap().contains(",frequency,value"));
    assert_eq!(text.lines().count(), 37);
    assert_eq!(fs::read_dir(setup.folder.path()).unwrap().count(), 2, "no partial file stays");
}

#[test]
fn plots_are_written_in_both_formats() {
    let setup = setup();
    let paths = setup.run(&["plot", "--metric", "grokking-progress.*", "--to", "figures"]).ok();
    let mut names: Vec<&str> = paths.lines().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "figures/grokking-progress.cos_coefficient.png",
            "figures/grokking-progress.cos_coefficient.svg",
            "figures/grokking-progress.test_acc+test_loss.png",
            "figures/grokking-progress.test_acc+test_loss.svg",
        ]
    );
    for name in names {
        let bytes = fs::read(setup.folder.path().join(name)).unwrap();
        let magic: &[u8] = if name.ends_with("png") { b"\x89PNG" } else { b"<svg" };
        assert!(bytes.starts_with(magic), "{name}");
    }
    let one = ["plot", "--metric", "modular-addition.train_loss", "--log-y", "--to", "loss.svg"];
    assert_eq!(setup.run(&one).ok(), "loss.svg\n");
    setup
        .run(&["plot", "--metric", "grokking-progress.*", "--to", "loss.svg"])
        .fails(2, &["2 figures do not fit"]);
    setup.run(&["plot", "--metric", "a.b"]).fails(3, &["no values of `a.b`"]);
    setup.run(&["plot", "--figure", "nonsense"]).fails(3, &["no figure `nonsense`", "there are:"]);
    let default = setup.run(&["plot", "--output", "json"]).ok();
    let default: serde_json::Value = serde_json::from_str(&default).unwrap();
    assert!(default["files"].as_array().unwrap().len() >= 4, "{default}");
}
