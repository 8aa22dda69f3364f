//! The binary as a process: address, exit codes, signals, kill -9, data folders.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use sweep_proto::pb;

use crate::support::{Client, Worker, sweep_file, tasks};

const BINARY: &str = env!("CARGO_BIN_EXE_sweep-coordinator");

fn command(data: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("serve").arg("--data").arg(data).args(more).env_clear();
    for [option, value] in [["--listen", "127.0.0.1:0"], ["--lease-ttl", "3s"]] {
        if !more.contains(&option) {
            command.args([option, value]);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A coordinator process; killed when the test forgets it.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(data: &Path, more: &[&str]) -> Self {
        let mut child = command(data, more).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        if url.is_empty() {
            let mut log = String::new();
            child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            panic!("no address: {log}");
        }
        Self { child, url }
    }

    async fn client(&self) -> Client {
        Client::new(sweep_proto::client::connect(&self.url, None).await.unwrap())
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits for the end; the exit code.
    fn wait(mut self) -> Option<i32> {
        let before = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(before.elapsed() < Duration::from_secs(20), "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(data: &Path, more: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command(data, more).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn the_address_is_printed_and_written_and_removed_at_a_clean_stop() {
    let data = tempfile::tempdir().unwrap();
    let process = Process::start(data.path(), &[]);
    assert!(process.url.starts_with("http://127.0.0.1:"));
    let address = data.path().join("address");
    assert_eq!(std::fs::read_to_string(&address).unwrap().trim(), process.url);
    process.signal("-TERM");
    assert_eq!(process.wait(), Some(0));
    assert!(!address.exists());
    let process = Process::start(data.path(), &[]);
    process.signal("-INT");
    assert_eq!(process.wait(), Some(0));
}

#[test]
fn it_stops_when_its_parent_has_gone() {
    let data = tempfile::tempdir().unwrap();
    let mut process = Process::start(data.path(), &["--exit-when-orphaned"]);
    drop(process.child.stdin.take());
    assert_eq!(process.wait(), Some(0));
}

#[test]
fn options_that_expose_it_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let (code, problem) = run(data.path(), &["--listen", "0.0.0.0:0"]);
    assert_eq!(code, Some(2));
    assert!(problem.contains("--tls-cert") && problem.contains("--insecure"), "{problem}");
    assert_eq!(run(data.path(), &["--lease-ttl", "soon"]).0, Some(2));
    assert_eq!(run(data.path(), &["--tls-cert", "x"]).0, Some(2));
    let (code, problem) = run(data.path(), &["--tls-cert", "no", "--tls-key", "no"]);
    assert!(code == Some(2) && problem.contains("no cannot be read"), "{problem}");
}

#[test]
fn a_data_folder_has_one_coordinator() {
    let data = tempfile::tempdir().unwrap();
    let process = Process::start(data.path(), &[]);
    let (code, problem) = run(data.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(problem.contains("in use by another coordinator"), "{problem}");
    let (code, problem) =
        run(tempfile::tempdir().unwrap().path(), &["--listen", &process.url[7..]]);
    assert!(code == Some(1) && problem.contains("cannot be listened on"), "{problem}");
}

#[test]
fn a_store_that_does_not_open_is_moved_aside_and_never_replaced_silently() {
    let data = tempfile::tempdir().unwrap();
    let process = Process::start(data.path(), &[]);
    process.signal("-KILL");
    process.wait();
    std::fs::write(data.path().join("store/conf"), "nonsense that is no configuration").unwrap();
    let (code, problem) = run(data.path(), &[]);
    assert_eq!(code, Some(1), "{problem}");
    assert!(problem.contains("moved to") && problem.contains("--fresh-store"), "{problem}");
    let is_broken = |name: &str| name.starts_with("store.broken-");
    let names = || std::fs::read_dir(data.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names().any(|name| is_broken(&name.to_string_lossy())));
    let (code, problem) = run(data.path(), &[]);
    assert!(code == Some(1) && problem.contains("moved aside earlier"), "{problem}");
    let process = Process::start(data.path(), &["--fresh-store"]);
    process.signal("-TERM");
    assert_eq!(process.wait(), Some(0));
    assert!(names().any(|name| is_broken(&name.to_string_lossy())), "nothing is deleted");
    drop(Process::start(data.path(), &[]));
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9_and_workers_go_on() {
    let data = tempfile::tempdir().unwrap();
    let process = Process::start(data.path(), &[]);
    let mut client = process.client().await;
    let mut worker = Worker::join(&client, "a", "1").await;
    let sweep = client.submit(&sweep_file()).await.unwrap().sweep;
    let train = worker.acquire(0).await.unwrap();
    worker.work(&train).await;
    let analysis = worker.acquire(0).await.unwrap();
    process.signal("-KILL");
    process.wait();
    let process = Process::start(data.path(), &[]);
    let mut client = process.client().await;
    let status = client.status(&sweep).await;
    assert_eq!(status.train.unwrap().done, 2);
    let request = pb::QueryRequest { sweep: sweep.clone(), ..Default::default() };
    assert_eq!(client.query(request).await.len(), 2);
    worker.move_to(&client).await;
    assert!(worker.beat(analysis.attempt, tasks(&analysis)).await.is_empty());
    worker.work(&analysis).await;
    // The only worker has spoken: nobody waits for the end of a grace period.
    while let Some(lease) = worker.acquire(0).await {
        assert!(lease.attempt > analysis.attempt);
        assert!(!matches!(lease.work, Some(pb::lease::Work::Train(_))), "nothing runs again");
        worker.work(&lease).await;
    }
    assert_eq!(client.status(&sweep).await.state(), pb::SweepState::Done);
}
