//! `sweep local` that is killed: what it leaves behind, and what the same command does next.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use sweep_tests::{Process, binary, small_sweep};

/// `sweep` in `folder`, with nothing of the caller's own settings.
fn sweep(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("sweep"));
    command.current_dir(folder).args(arguments).env_remove("SWEEP_COORDINATOR");
    command
}

fn local(folder: &Path) -> Process {
    let mut command = sweep(folder, &["local", "sweep.yaml", "--threads", "1"]);
    Process::start(&mut command, &folder.join("local.log")).unwrap()
}

/// Process id, parent's id and program of every process that runs (zombies do not).
fn processes() -> Vec<(u32, u32, String)> {
    let stat = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (head, tail) = text.rsplit_once(") ")?;
        let (pid, name) = head.split_once(" (")?;
        let mut fields = tail.split(' ');
        let runs = !matches!(fields.next()?, "Z" | "X");
        runs.then_some(())?;
        Some((pid.parse().ok()?, fields.next()?.parse().ok()?, name.to_owned()))
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(stat).collect()
}

async fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every value of the sweep in `folder`, as text.
fn values(folder: &Path) -> String {
    let exported =
        sweep(folder, &["export", "last", "--format", "csv", "--to", "all.csv"]).output();
    assert!(exported.unwrap().status.success());
    fs::read_to_string(folder.join("all.csv")).unwrap()
}

/// Protections: coordinator and worker end with the command that started them, however it went; a
/// worker waits for the one that still leaves the same folder; the sweep goes on from its last
/// trainer state.
#[tokio::test]
async fn a_killed_local_leaves_no_process_behind_and_the_same_command_goes_on() {
    // Long enough to be caught in the middle, on a fast machine too.
    let spec = small_sweep("orphans", 15_000, 500, 1).to_string();
    let undisturbed = tempfile::tempdir().unwrap();
    fs::write(undisturbed.path().join("sweep.yaml"), &spec).unwrap();
    assert_eq!(local(undisturbed.path()).ended().await.unwrap(), 0);

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("sweep.yaml"), &spec).unwrap();
    let killed = local(folder);
    let done = || {
        let status = sweep(folder, &["status", "last", "--output", "json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        (status["state"] == "running").then(|| status["analyse"]["done"].as_u64())?
    };
    eventually("some analyses", Duration::from_mins(1), || done().is_some_and(|n| n >= 4)).await;
    let children: Vec<(u32, u32, String)> =
        processes().into_iter().filter(|(_, parent, _)| *parent == killed.id()).collect();
    assert_eq!(children.len(), 2, "a coordinator and a worker: {children:?}");
    killed.kill();

    // Again at once, while they are still leaving.
    let mut again = local(folder);
    let left = || {
        processes().iter().any(|(pid, _, name)| {
            children.iter().any(|(child, _, program)| child == pid && program == name)
        })
    };
    eventually("both are gone", Duration::from_secs(30), || !left()).await;
    assert_eq!(again.ended().await.unwrap(), 0, "{}", again.log());
    assert_eq!(values(folder), values(undisturbed.path()));
    let logs = sweep(folder, &["logs", "last"]).output().unwrap();
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    assert!(logs.contains("goes on from step"), "{logs}\n{}", again.log());
}
