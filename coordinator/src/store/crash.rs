//! Crash test: a child process commits in a loop and is killed; every acknowledged commit must be
//! there, whole. (A kill loses what is in the process, not what the kernel holds: power loss is
//! what [`power`](super::power) is about.)

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use super::{kv::Kv as _, sled::SledKv};

const FOLDER: &str = "SWEEP_TEST_CRASH_FOLDER";
/// Keys that each commit sets to its number.
const KEYS: u8 = 20;

/// The child. Without the variable, as in an ordinary test run, there is nothing to do for it.
#[test]
fn child_that_commits_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let kv = SledKv::open(Path::new(&folder)).unwrap();
    let mut stdout = std::io::stdout();
    for number in last(&kv) + 1.. {
        let value = format!("{number} {}", "x".repeat(number as usize * 37 % 5000));
        let mut batch: Vec<_> =
            (0..KEYS).map(|key| (vec![b'k', key], Some(value.clone().into_bytes()))).collect();
        batch.push((format!("log{number:08}").into_bytes(), Some(value.into_bytes())));
        kv.commit(batch).unwrap();
        writeln!(stdout, "acknowledged {number}").unwrap();
        stdout.flush().unwrap();
    }
}

/// The number of the last commit; asserts that it is there as a whole, with all before it.
pub(super) fn last(kv: &SledKv) -> u64 {
    let mut values = Vec::new();
    kv.scan(b"k", b"", &mut |_, value| {
        values.push(String::from_utf8(value.to_vec()).unwrap());
        true
    })
    .unwrap();
    assert!(values.is_empty() || values.len() == usize::from(KEYS));
    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "a commit is there in part");
    let number = |value: &String| value.split(' ').next().unwrap().parse().unwrap();
    let last = values.first().map_or(0, number);
    let mut logged = 0;
    kv.scan(b"log", b"", &mut |_, _| {
        logged += 1;
        true
    })
    .unwrap();
    assert_eq!(logged, last, "an earlier commit is missing");
    last
}

/// Lets a child go on with the store at `path` until it has acknowledged `until`, kills it, and returns the last
/// acknowledged number.
pub(super) fn kill_after(path: &Path, until: u64, variables: &[(&str, &Path)]) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["store::crash::child_that_commits_until_it_is_killed", "--exact", "--nocapture"])
        .env(FOLDER, path)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok).filter_map(|line| {
        // The harness writes on the same line as the first acknowledgement.
        line.split("acknowledged ").nth(1).and_then(|number| number.parse::<u64>().ok())
    });
    let mut acknowledged = lines.by_ref().find(|number| *number >= until).unwrap();
    child.kill().unwrap();
    // What it still said before it died counts too.
    acknowledged = lines.last().unwrap_or(acknowledged);
    child.wait().unwrap();
    acknowledged
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut acknowledged = 0;
    for round in 0..6u64 {
        acknowledged = kill_after(&path, acknowledged + 5 + round * 7, &[]);
        let there = last(&SledKv::open(&path).unwrap());
        assert!(there >= acknowledged, "{acknowledged} was acknowledged, {there} is there");
    }
    assert!(acknowledged >= 100);
}
