//! The two programs that `sweep` starts by itself, as child processes: the coordinator of an
//! embedded folder and the worker of `sweep local`. Main type: [`Daemon`].
//!
//! Invariants: a daemon writes its messages to a log file below the folder, never to our terminal;
//! it stands in a process group of its own, so that Ctrl-C reaches it through us and in order; it
//! holds the read end of a pipe from us and ends when we are gone, however we went.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

use crate::error::{CommandError, Result, file_error};

/// A coordinator that replays a large store may take a while before it listens.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// How much of the end of a log is looked at for the last messages.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// A log that has grown beyond this starts anew; the old one is kept beside it.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// Programs that take the place of the installed ones.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Instead of `sweep-coordinator`.
    pub coordinator: Option<PathBuf>,
    /// Instead of `sweep-worker`.
    pub worker: Option<PathBuf>,
}

/// A running child process.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Never written to; closing it tells the daemon that we are gone.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "held open: what we started ends when it closes")
    )]
    stdin: Option<ChildStdin>,
    /// Kept open, so that a late line on standard output does not end the daemon.
    stdout: Option<BufReader<ChildStdout>>,
}

impl Daemon {
    /// Starts the coordinator of the folder `dir` and waits for its address. `listen` is the address
    /// to bind.
    ///
    /// # Errors
    /// When the program is missing, ends at once, or does not listen in time.
    pub async fn coordinator(
        programs: &Programs,
        dir: &Path,
        listen: &str,
    ) -> Result<(Self, String)> {
        let mut command = program("sweep-coordinator", programs.coordinator.as_deref())?;
        command.arg("serve").arg("--data").arg(dir).args(["--listen", listen]);
        command.arg("--exit-when-orphaned").stdout(Stdio::piped());
        let mut daemon = Self::spawn("coordinator", command, dir)?;
        let address = daemon.first_line().await?;
        Ok((daemon, address))
    }

    /// Starts a worker for the coordinator at `url`, with its cache below `dir`.
    ///
    /// # Errors
    /// When the program is missing or cannot be started.
    pub fn worker(programs: &Programs, dir: &Path, url: &str, options: &[String]) -> Result<Self> {
        let mut command = program("sweep-worker", programs.worker.as_deref())?;
        command.args(["run", "--coordinator", url, "--cache"]).arg(dir.join("worker"));
        command.arg("--exit-when-orphaned").args(options).stdout(Stdio::null());
        Self::spawn("worker", command, dir)
    }

    fn spawn(name: &'static str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join("logs").join(format!("{name}.log"));
        let file = open_log(&log)?;
        command.stdin(Stdio::piped()).stderr(Stdio::from(file)).process_group(0);
        // Logs are read as text.
        command.env("NO_COLOR", "1");
        let shown = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| {
            let message = format!("cannot start `{shown}`: {error}");
            let hint = match name {
                "worker" => "install sweep-worker beside sweep, or set SWEEP_WORKER_BIN",
                _ => "install sweep-coordinator beside sweep, or set SWEEP_COORDINATOR_BIN",
            };
            CommandError::unexpected(message).hint(hint)
        })?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self { name, child, log, stdin, stdout })
    }

    async fn first_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if let Some(stdout) = &mut self.stdout {
            match timeout(START_PATIENCE, stdout.read_line(&mut line)).await {
                Ok(read) => drop(read?),
                Err(_) => {
                    return Err(self.failure(&format!(
                        "the {} did not start within {} s",
                        self.name,
                        START_PATIENCE.as_secs()
                    )));
                }
            }
        }
        let line = line.trim().to_owned();
        if line.starts_with("http://") || line.starts_with("https://") {
            return Ok(line);
        }
        let ended = timeout(Duration::from_secs(5), self.child.wait()).await;
        let how = match ended {
            Ok(Ok(status)) => format!("ended with {status}"),
            Ok(Err(_)) | Err(_) => format!("printed `{line}` instead of its address"),
        };
        Err(self.failure(&format!("the {} {how}", self.name)))
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for the process to end.
    pub async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// An error that shows the last lines of the log.
    pub fn failure(&self, message: &str) -> CommandError {
        let tail = log_tail(&self.log, 8);
        let mut error = CommandError::unexpected(message);
        if !tail.is_empty() {
            error = error.caused_by(format!("its last messages:\n    {}", tail.join("\n    ")));
        }
        error.hint(format!("the whole log is {}", self.log.display()))
    }

    /// Asks the process to end.
    pub fn terminate(&self) {
        signal(&self.child, Signal::TERM);
    }

    /// Asks the process to end, and ends it by force after `patience`. Returns whether it went by
    /// itself.
    pub async fn stop(&mut self, patience: Duration) -> bool {
        self.terminate();
        if timeout(patience, self.child.wait()).await.is_ok() {
            return true;
        }
        // Fails only when the process is gone already.
        let _ = self.child.kill().await;
        false
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.terminate();
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The only failure is that the process has ended, which is what we want.
        let _ = kill_process(pid, signal);
    }
}

/// The program next to our own executable, else the one on the search path.
fn program(name: &str, instead: Option<&Path>) -> Result<Command> {
    if let Some(path) = instead {
        return Ok(Command::new(path));
    }
    let own = std::env::current_exe().map_err(|error| {
        CommandError::unexpected("cannot find the own program").caused_by(error)
    })?;
    let sibling = own.with_file_name(name);
    Ok(if sibling.is_file() { Command::new(sibling) } else { Command::new(name) })
}

fn open_log(path: &Path) -> Result<File> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| file_error("create", folder, error))?;
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX_BYTES) {
        let old = path.with_extension("log.1");
        fs::rename(path, &old).map_err(|error| file_error("rename", path, error))?;
    }
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| file_error("open", path, error))
}

/// The last `n` lines of a log file.
pub fn log_tail(path: &Path, n: usize) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    // The log is extra information in an error; that it cannot be read is not worth another one.
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(n)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Waits until `condition` holds, looking every 50 ms.
pub async fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        sleep(Duration::from_millis(50)).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A real program in a few lines of shell.
    fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn coordinator(path: PathBuf) -> Programs {
        Programs { coordinator: Some(path), worker: None }
    }

    #[tokio::test]
    async fn a_coordinator_is_told_its_folder_and_stops_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let body = "echo \"$@\" > \"$3/arguments\"\necho http://127.0.0.1:7\ncat > /dev/null";
        let programs = coordinator(script(dir.path(), "good", body));
        let (mut daemon, address) =
            Daemon::coordinator(&programs, dir.path(), "127.0.0.1:0").await.unwrap();
        assert_eq!(address, "http://127.0.0.1:7");
        let arguments = fs::read_to_string(dir.path().join("arguments")).unwrap();
        let expected = format!(
            "serve --data {} --listen 127.0.0.1:0 --exit-when-orphaned\n",
            dir.path().display()
        );
        assert_eq!(arguments, expected);
        assert!(daemon.ended().is_none());
        assert!(daemon.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn closing_our_end_of_the_pipe_ends_an_orphan() {
        let dir = tempfile::tempdir().unwrap();
        let body = "trap '' TERM\necho http://127.0.0.1:7\ncat > /dev/null\ntouch \"$3/gone\"";
        let programs = coordinator(script(dir.path(), "orphan", body));
        let (daemon, _) = Daemon::coordinator(&programs, dir.path(), "x").await.unwrap();
        drop(daemon);
        let gone = dir.path().join("gone");
        assert!(wait_until(Duration::from_secs(10), || gone.exists()).await);
    }

    #[tokio::test]
    async fn a_failed_start_shows_the_last_messages() {
        let dir = tempfile::tempdir().unwrap();
        let body = "echo 'the store is in use' >&2\nexit 3";
        let programs = coordinator(script(dir.path(), "bad", body));
        let error = Daemon::coordinator(&programs, dir.path(), "x").await.unwrap_err();
        assert!(error.message().contains("exit status: 3"), "{error}");
        assert!(error.causes()[0].contains("the store is in use"), "{:?}", error.causes());
    }

    #[tokio::test]
    async fn who_does_not_want_to_stop_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let body = "trap '' TERM\ntouch \"$5/started\"\nwhile :; do sleep 0.1; done";
        let worker = Some(script(dir.path(), "stubborn", body));
        let programs = Programs { coordinator: None, worker };
        fs::create_dir_all(dir.path().join("worker")).unwrap();
        let mut daemon = Daemon::worker(&programs, dir.path(), "http://x", &[]).unwrap();
        let started = dir.path().join("worker/started");
        assert!(wait_until(Duration::from_secs(10), || started.exists()).await);
        assert!(!daemon.stop(Duration::from_millis(200)).await);
        assert!(daemon.ended().is_some());
    }

    #[tokio::test]
    async fn a_worker_stands_apart_and_ends_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let body = "echo \"$@\" > \"$5/arguments\"\n\
                    echo $$ `cut -d' ' -f5 /proc/$$/stat` > \"$5/group\"\n\
                    env > \"$5/environment\"\ncat > /dev/null\ntouch \"$5/gone\"";
        let worker = Some(script(dir.path(), "worker-program", body));
        let programs = Programs { coordinator: None, worker };
        let folder = dir.path().join("worker");
        fs::create_dir_all(&folder).unwrap();
        let options = ["--slots".to_owned(), "2".to_owned()];
        let daemon = Daemon::worker(&programs, dir.path(), "http://x", &options).unwrap();
        let written = || fs::read_to_string(folder.join("environment")).unwrap_or_default();
        assert!(wait_until(Duration::from_secs(10), || written().contains("NO_COLOR=1")).await);
        let arguments = fs::read_to_string(folder.join("arguments")).unwrap();
        assert!(arguments.ends_with(" --exit-when-orphaned --slots 2\n"), "{arguments}");
        // Ctrl-C in our terminal is not for it.
        let group = fs::read_to_string(folder.join("group")).unwrap();
        let (own, group) = group.trim().split_once(' ').unwrap();
        assert_eq!(own, group, "it leads a process group");
        // As the kernel does when this process is killed: the pipe is closed, no signal is sent.
        let mut daemon = std::mem::ManuallyDrop::new(daemon);
        drop(daemon.stdin.take());
        assert!(wait_until(Duration::from_secs(10), || folder.join("gone").exists()).await);
        assert!(daemon.wait().await.unwrap().success());
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs { coordinator: None, worker: Some(dir.path().join("nowhere")) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime
            .block_on(async { Daemon::worker(&programs, dir.path(), "http://x", &[]) })
            .unwrap_err();
        assert!(error.message().contains("nowhere"), "{error}");
    }
}
