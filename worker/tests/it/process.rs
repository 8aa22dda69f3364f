//! The worker as a child process. Main type: [`Worker`].

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::coordinator::Coordinator;

/// A running worker; killed when the test forgets it.
pub(crate) struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    /// Starts a worker with one slot, its cache and log below the coordinator's folder.
    pub(crate) fn start(coordinator: &Coordinator, more: &[&str]) -> Self {
        Self::start_with(coordinator, more, &[])
    }

    /// The same, with environment variables.
    pub(crate) fn start_with(
        coordinator: &Coordinator,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sweep-worker"));
        command.envs(environment.iter().copied());
        Self::spawn(coordinator, command, more)
    }

    fn spawn(coordinator: &Coordinator, mut command: Command, more: &[&str]) -> Self {
        let log = coordinator.folder().join("worker.log");
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        command.args(["run", "--coordinator", coordinator.url(), "--name", "worker"]);
        command.args(["--slots", "1", "--threads", "1", "--cache"]);
        command.arg(coordinator.folder().join("cache")).args(more);
        command.stdin(Stdio::null()).stderr(file);
        Self { child: command.spawn().unwrap(), log }
    }

    /// A worker whose files cannot grow beyond so many KiB, as on a full disk.
    pub(crate) fn start_limited(coordinator: &Coordinator, more: &[&str], kib: u32) -> Self {
        // The signal that comes with the limit is ignored, so that writes fail instead.
        let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_sweep-worker"));
        Self::spawn(coordinator, command, more)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the end; the exit code and how long it took.
    pub(crate) async fn terminate(mut self) -> (Option<i32>, Duration) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), begun.elapsed());
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "it stays\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
