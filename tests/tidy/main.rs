//! Rules of this repository as tests, over the files that git tracks.

#![expect(
    clippy::unwrap_used,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "a test that cannot go on fails where it stands; the tree's names are lower case"
)]

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Paths of every tracked (or about to be tracked) file, relative to the root.
fn files() -> Vec<String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").current_dir(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "these tests need the git checkout");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|path| root().join(path).is_file()).map(str::to_owned).collect()
}

fn rust_files() -> Vec<(String, String)> {
    let files = files().into_iter().filter(|path| path.ends_with(".rs"));
    files.map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

#[track_caller]
fn none(found: Vec<String>, rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent = rust_files()
        .into_iter()
        .filter(|(path, text)| !text.starts_with("//!") && !path.ends_with("/tests.rs"));
    none(silent.map(|(path, _)| path).collect(), "files begin with `//!`");
}

#[test]
fn files_stay_readable() {
    let long = rust_files().into_iter().filter(|(_, text)| text.lines().count() > 700);
    none(
        long.map(|(path, text)| format!("{path}: {}", text.lines().count())).collect(),
        "at most 700 lines a file",
    );
}

#[test]
fn no_stubs_and_no_silenced_checks() {
    // In two parts, so that this list is none of them.
    let bad = ["todo!|(", "unimplemented!|(", "#[|ignore", "#[|allow(", "FIX|ME"];
    let bad = bad.map(|word| word.replace('|', ""));
    let found = rust_files().into_iter().flat_map(|(path, text)| {
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| bad.iter().any(|word| line.contains(word.as_str())));
        lines
            .map(|(number, line)| format!("{path}:{}: {}", number + 1, line.trim()))
            .collect::<Vec<_>>()
    });
    none(found.collect(), "stubs and `#[allow]` are not kept (use `#[expect]` with a reason)");
}

#[test]
fn no_large_files() {
    let large = files().into_iter().filter(|path| path != "Cargo.lock");
    let large = large.filter(|path| fs::metadata(root().join(path)).unwrap().len() > 400 << 10);
    none(large.collect(), "no file above 400 KiB");
}

/// Home folders of any system, and wherever this checkout lies.
#[test]
fn no_paths_of_one_machine() {
    let checkout = fs::canonicalize(root()).unwrap();
    // A folder at the top (`/src`) is named by relative paths, too.
    let is_told_apart = checkout.components().count() > 2;
    let checkout = checkout.join("").display().to_string();
    let homes = ["root", "home", "Users"].map(|folder| format!("/{folder}/"));
    let found = files().into_iter().filter_map(|path| {
        let text = fs::read_to_string(root().join(&path)).ok()?;
        let named = homes.iter().any(|home| text.contains(home))
            || is_told_apart && text.contains(&checkout);
        named.then_some(path)
    });
    none(found.collect(), "nothing names a folder of a developer's machine");
}

/// The command line and the coordinator are built and installed where no libtorch is.
#[test]
fn cli_coordinator_and_proto_do_not_depend_on_libtorch_or_each_other() {
    for (package, banned) in [
        ("sweep-cli", &["tch ", "torch-sys ", "sweep-lens ", "sled ", "sweep-coordinator "][..]),
        ("sweep-coordinator", &["tch ", "torch-sys ", "sweep-lens ", "object_store "][..]),
        ("sweep-proto", &["tch ", "sled ", "object_store "][..]),
        ("sweep-lab", &["tokio ", "tonic ", "object_store ", "reqwest "][..]),
        ("sweep-source", &["tch ", "torch-sys ", "sweep-lens ", "sled "][..]),
        ("sweep-worker", &["sled "][..]),
    ] {
        let arguments = ["tree", "--locked", "-p", package, "-e", "normal", "--prefix", "none"];
        let output = Command::new("cargo").current_dir(root()).args(arguments).output().unwrap();
        let tree = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && tree.contains(package));
        let found = tree.lines().filter(|line| banned.iter().any(|name| line.starts_with(name)));
        let found: BTreeSet<String> = found.map(str::to_owned).collect();
        none(found.into_iter().collect(), &format!("dependencies of {package}"));
    }
}

/// What this build's workers advertise is what submissions are checked against before any worker has
/// registered.
#[test]
fn the_embedded_catalogue_is_the_one_that_workers_advertise() {
    let output = Command::new(sweep_tests::binary("sweep-worker")).arg("catalog").output().unwrap();
    assert!(output.status.success());
    let advertised: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = fs::read_to_string(root().join("proto/catalog.json")).unwrap();
    let embedded: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(advertised == embedded, "run `make catalog` and commit proto/catalog.json");
}

/// Persisted bytes and wire fields are append-only: a number that was used once keeps its meaning.
#[test]
fn wire_fields_are_not_reused_within_a_message() {
    for file in files().into_iter().filter(|path| path.ends_with(".proto")) {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new()];
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            if line.starts_with("message ") || line.starts_with("enum ") {
                seen.push(BTreeSet::new());
            }
            let Some((_, number)) = line.trim_end_matches(';').rsplit_once(" = ") else { continue };
            if number.chars().all(|c| c.is_ascii_digit()) {
                let message = seen.last_mut().unwrap();
                assert!(message.insert(number.to_owned()), "{file}: `{line}` reuses a number");
            }
        }
    }
}
