//! Comparisons of two checkpoints and trajectories over several models, from the sweep file to the
//! exported table.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sweep_tests::{Process, binary};

/// Three seeds, compared at the end and step by step; reductions over all of them.
fn spec(name: &str) -> Value {
    json!({
        "name": name,
        "models": [{
            "train": {
                "recipe": "modular-addition-mlp",
                "params": { "p": 13, "d_mlp": 32, "lr": 0.003, "steps": 3000 },
                "seeds": 3,
            },
            "checkpoints": { "every": 250 },
        }],
        "experiments": ["grokking-progress"],
        "compare": [
            { "rebasin": { "pairs": "seeds" } },
            { "output-similarity": { "pairs": "to-final" } },
        ],
        "trajectory": [
            "rebasin-search",
            { "seed-variance": { "metric": "grokking-progress.excluded_loss_frequency" } },
        ],
    })
}

fn sweep(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("sweep"));
    command.current_dir(folder).args(arguments).env_remove("SWEEP_COORDINATOR");
    command
}

#[track_caller]
fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = sweep(folder, arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[track_caller]
fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(folder, &[arguments, &["--output", "json"]].concat())).unwrap()
}

fn local(folder: &Path) -> Process {
    let mut command = sweep(folder, &["local", "sweep.yaml", "--threads", "1"]);
    Process::start(&mut command, &folder.join("local.log")).unwrap()
}

/// The worker that a `sweep local` started.
fn worker_of(parent: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(") ")?;
        let (pid, name) = head.split_once(" (")?;
        let mut fields = tail.split(' ');
        let runs = !matches!(fields.next()?, "Z" | "X");
        let is_child = fields.next()?.parse::<u32>().ok()? == parent;
        (runs && is_child && name.starts_with("sweep-worker")).then(|| pid.parse().ok())?
    });
    found.max()
}

/// All values as text, in the order of the store.
fn values(folder: &Path) -> String {
    ok(folder, &["export", "last", "--format", "csv", "--to", "all.csv"]);
    fs::read_to_string(folder.join("all.csv")).unwrap()
}

/// Protection: a comparison whose worker dies is run again, and a reduction over several models
/// waits for it; nothing is lost or doubled.
#[tokio::test]
async fn pairs_and_groups_survive_the_death_of_their_worker() {
    let undisturbed = tempfile::tempdir().unwrap();
    fs::write(undisturbed.path().join("sweep.yaml"), spec("pairs").to_string()).unwrap();
    let mut run = local(undisturbed.path());
    assert_eq!(run.ended().await.unwrap(), 0, "{}", run.log());

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("sweep.yaml"), spec("pairs").to_string()).unwrap();
    let mut run = local(folder);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(80), "{}", run.log());
        tokio::time::sleep(Duration::from_millis(30)).await;
        let status = sweep(folder, &["status", "last", "--output", "json"]).output().unwrap();
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        // In mid-training: some analyses are done, no comparison with a final checkpoint can be.
        if status["analyse"]["done"].as_u64().unwrap_or(0) < 2 {
            continue;
        }
        assert_eq!(status["train"]["done"], 0, "the training was over too soon");
        let worker = worker_of(run.id()).unwrap().to_string();
        assert!(Command::new("kill").args(["-9", &worker]).status().unwrap().success());
        break;
    }
    assert_eq!(run.ended().await.unwrap(), 0, "{}", run.log());
    assert_eq!(values(folder), values(undisturbed.path()), "bit by bit the same");

    let status = json_of(folder, &["status", "last"]);
    assert_eq!(status["compare"]["done"], 3 + 3 * 12, "{status}");
    assert_eq!(status["trajectory"]["done"], 2);
    let rows = json_of(folder, &["results", "last", "--metric", "rebasin.barrier_ratio"]);
    let rows = rows["rows"].as_array().unwrap();
    let pairs: Vec<(&str, &str, &str)> = rows
        .iter()
        .filter(|row| row["split"] == "test")
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap();
            (text("model"), text("checkpoint"), text("partner"))
        })
        .collect();
    let model = |seed: u32| format!("modular-addition-mlp-seed{seed}");
    let (a, b, c) = (model(0), model(1), model(2));
    let (to_b, to_c) = (format!("{b}@3000"), format!("{c}@3000"));
    let step = "step3000";
    assert_eq!(pairs, [(&*a, step, &*to_b), (&*a, step, &*to_c), (&*b, step, &*to_c)]);
    let ranking = json_of(folder, &["results", "last", "--metric", "rebasin-search.n_pairs"]);
    assert_eq!(
        (&ranking["rows"][0]["model"], &ranking["rows"][0]["value"]),
        (&json!("all"), &json!(3.0))
    );
    let icc = json_of(folder, &["results", "last", "--metric", "seed-variance.n_seeds"]);
    assert_eq!(icc["rows"][0]["model"], "modular-addition-mlp");
    assert_eq!(icc["rows"][0]["value"], 3.0);

    ok(folder, &["results", "last"]);
    let header = values(folder).lines().next().unwrap().to_owned();
    assert!(header.split(',').any(|column| column == "partner"), "{header}");
    ok(folder, &["artifacts", "get", "last", "*", "--to", "files"]);
    let files = folder.join("files");
    let of_pair = files.join(&a).join(step).join(format!("rebasin-{to_b}"));
    assert!(of_pair.join("permutations.json").is_file(), "{of_pair:?}");
    assert!(files.join("all/trajectory/rebasin-search/ranking.csv").is_file());
    ok(folder, &["plot", "last", "--metric", "rebasin.barrier_matched", "--to", "matched.svg"]);
    let svg = fs::read_to_string(folder.join("matched.svg")).unwrap();
    assert!(svg.contains("First model") && svg.contains("Second model"), "{svg}");
}

/// Mistakes in the selection of pairs are found before anything is started, line and column given.
#[test]
fn senseless_pairs_are_refused_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let refused = |pairs: &str, expected: &[&str]| {
        let text = format!(
            "name: x\nmodels:\n  - train: {{ recipe: modular-addition-mlp, seeds: 2 }}\n\
             compare:\n  - rebasin: {{ {pairs} }}\n"
        );
        fs::write(folder.join("sweep.yaml"), text).unwrap();
        for verb in ["local", "plan"] {
            let output = sweep(folder, &[verb, "sweep.yaml"]).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{pairs}");
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            for part in expected {
                assert!(message.contains(part), "{part} is not in {message}");
            }
        }
    };
    refused("pairs: seds", &["sweep.yaml:5:", "did you mean `seeds`?"]);
    refused(
        "pairs: to-base, base: modular-addition-mlp-seed3",
        &["sweep.yaml:5:", "has no model `modular-addition-mlp-seed3`", "did you mean"],
    );
    refused(
        "pairs: [[modular-addition-mlp-seed0@7, modular-addition-mlp-seed1]]",
        &["sweep.yaml:5:", "no checkpoint of step 7"],
    );
    refused("pairs: seeds, at: sometimes", &["sweep.yaml:5:", "`at` must be final or all"]);
    assert!(!folder.join(".sweep").exists(), "nothing was started");
}

/// Protection: a reduction over one model reads the comparison that it names, all of it and nothing of the
/// other one of the same experiment.
#[tokio::test]
async fn a_reduction_reads_the_comparison_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let of = |pairs: &str| format!("weight-delta[pairs={pairs}].relative_norm_total");
    let mut spec = json!({
        "name": "chosen",
        "models": [{
            "train": {
                "recipe": "modular-addition-mlp",
                "params": { "p": 13, "d_mlp": 32, "lr": 0.003, "steps": 400 },
            },
            "checkpoints": { "every": 40 },
        }],
        "compare": [
            { "weight-delta": { "pairs": "consecutive" } },
            { "weight-delta": { "pairs": "to-final" } },
        ],
        "trajectory": [
            { "phase-transition": { "metric": of("consecutive") } },
            { "phase-transition": { "metric": of("to-final") } },
        ],
    });
    fs::write(folder.join("sweep.yaml"), spec.to_string()).unwrap();
    let mut run = local(folder);
    assert_eq!(run.ended().await.unwrap(), 0, "{}", run.log());
    let numbers = |name: &str| -> Vec<f64> {
        let metric = format!("phase-transition.{name}");
        let found = json_of(folder, &["results", "last", "--metric", &metric]);
        found["rows"].as_array().unwrap().iter().map(|row| row["value"].as_f64().unwrap()).collect()
    };
    assert_eq!(
        numbers("n_points"),
        [10.0, 10.0],
        "ten of the eleven checkpoints have a second one"
    );
    let widths = numbers("width_decades");
    assert!(widths[0] != widths[1], "two curves: {widths:?}");

    spec["trajectory"] = json!([{ "phase-transition": { "metric": "weight-delta.cosine_total" } }]);
    fs::write(folder.join("both.yaml"), spec.to_string()).unwrap();
    let output = sweep(folder, &["plan", "both.yaml"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        message.contains("name one, in quotes: `weight-delta[pairs=consecutive].cosine_total`"),
        "{message}"
    );
}
