//! Harness of the end-to-end tests: starts the real binaries on free ports and looks at them from
//! outside. Main types: [`Cluster`] (a coordinator with its data folder), [`Process`] (a child that
//! dies with the test).
//!
//! Nothing here is a fake: sockets, files, processes and signals are the real ones.

pub mod published;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use sweep_proto::{
    client,
    pb::{
        self, SweepState, metrics_service_client::MetricsServiceClient,
        sweep_service_client::SweepServiceClient,
    },
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long anything may take on a busy machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(90);

/// A binary of this workspace, as `make test` and `cargo build --workspace --bins` build it.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let folder = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
    path
}

/// A child process that is killed when the test ends; its output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with stdout and stderr in `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name (`KILL`, `STOP`, `CONT`, `TERM`).
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name} {pid}");
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn ended(&mut self) -> anyhow::Result<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(begun.elapsed() < PATIENCE, "{} goes on\n{}", self.child.id(), self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator, its folder, and a client.
#[derive(Debug)]
pub struct Cluster {
    /// Everything lies below this folder.
    pub folder: TempDir,
    /// `http://127.0.0.1:PORT`; the same after a restart.
    pub url: String,
    coordinator: Option<Process>,
    arguments: Vec<String>,
    channel: Channel,
}

/// Leases of tests are short, so that takeovers are quick.
pub const LEASE_TTL: &str = "3s";

impl Cluster {
    /// Starts a coordinator on a free port; `more` are further arguments.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(more: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let arguments: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
        let (coordinator, url) = coordinator(folder.path(), "127.0.0.1:0", &arguments).await?;
        let channel = client::lazy(&url, None)?;
        Ok(Self { folder, url, coordinator: Some(coordinator), arguments, channel })
    }

    /// `kill -9` for the coordinator.
    pub fn kill_coordinator(&mut self) {
        if let Some(process) = self.coordinator.take() {
            process.kill();
        }
    }

    /// Starts the coordinator again, on the same port and data.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn restart_coordinator(&mut self) -> anyhow::Result<()> {
        let listen = self.url.trim_start_matches("http://").to_owned();
        let (process, _) = coordinator(self.folder.path(), &listen, &self.arguments).await?;
        self.coordinator = Some(process);
        Ok(())
    }

    /// The coordinator's process.
    pub fn coordinator(&self) -> &Process {
        self.coordinator.as_ref().expect("the coordinator is running")
    }

    /// Starts a worker with a cache folder of its own; `more` are further arguments and
    /// `environment` further variables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn worker_with(
        &self,
        name: &str,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Process> {
        let mut command = Command::new(binary("sweep-worker"));
        command.args(["run", "--coordinator", &self.url, "--name", name, "--threads", "1"]);
        command.arg("--cache").arg(self.folder.path().join(name)).args(more);
        command.envs(environment.iter().copied());
        Process::start(&mut command, &self.folder.path().join(format!("{name}.log")))
    }

    /// A worker with the usual settings.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn worker(&self, name: &str) -> anyhow::Result<Process> {
        self.worker_with(name, &[], &[])
    }

    /// Runs `sweep` against this cluster to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(binary("sweep"));
        command.current_dir(self.folder.path()).env("SWEEP_COORDINATOR", &self.url);
        Ok(command.args(arguments).output()?)
    }

    /// Submits a sweep file given as JSON.
    ///
    /// # Errors
    /// When the coordinator refuses it.
    pub async fn submit(&self, spec: &serde_json::Value) -> anyhow::Result<String> {
        let request = pb::SubmitRequest { spec: spec.to_string(), max_tasks: 0 };
        Ok(self.sweeps().submit(request).await?.into_inner().sweep)
    }

    /// Status of a sweep.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn status(&self, sweep: &str) -> anyhow::Result<pb::SweepStatus> {
        let request = pb::GetSweepRequest { sweep: sweep.to_owned() };
        Ok(self.sweeps().get(request).await?.into_inner())
    }

    /// Waits until `condition` holds for the sweep's status.
    ///
    /// # Errors
    /// When it does not in time; the error shows the status and the logs.
    pub async fn until(
        &self,
        sweep: &str,
        condition: impl Fn(&pb::SweepStatus) -> bool,
    ) -> anyhow::Result<pb::SweepStatus> {
        let begun = Instant::now();
        loop {
            let status = self.status(sweep).await;
            match status {
                Ok(status) if condition(&status) => return Ok(status),
                Ok(status) if begun.elapsed() > PATIENCE => {
                    bail!("waited in vain: {status:#?}\n{}", self.logs());
                }
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    }

    /// Waits for the end of the sweep.
    ///
    /// # Errors
    /// As [`Cluster::until`].
    pub async fn until_ended(&self, sweep: &str) -> anyhow::Result<pb::SweepStatus> {
        self.until(sweep, |status| status.state() != SweepState::Running).await
    }

    /// Every value of a sweep: (metric, model, step, cell) → value. Fails on a doubled point.
    ///
    /// # Errors
    /// When the coordinator does not answer or a point comes twice.
    pub async fn values(&self, sweep: &str, metric: &str) -> anyhow::Result<Values> {
        let request = pb::QueryRequest {
            sweep: sweep.to_owned(),
            metric: metric.to_owned(),
            ..Default::default()
        };
        let mut metrics = MetricsServiceClient::new(self.channel.clone())
            .max_decoding_message_size(client::MAX_MESSAGE_BYTES);
        let mut stream = metrics.query(request).await?.into_inner();
        let mut values = Values::new();
        while let Some(series) = stream.message().await? {
            let cells = series.axes.iter().map(|axis| axis.size as usize).product::<usize>();
            ensure!(series.values.len() == series.steps.len() * cells, "torn series {series:?}");
            for (step, block) in series.steps.iter().zip(series.values.chunks(cells.max(1))) {
                for (cell, value) in block.iter().enumerate() {
                    let metric = format!("{} {} {}", series.metric, series.params, series.partner);
                    let key = (metric, series.model.clone(), *step, cell);
                    let old = values.insert(key.clone(), value.to_bits());
                    ensure!(old.is_none(), "{key:?} is there twice");
                }
            }
        }
        Ok(values)
    }

    /// Every task of a sweep, by label.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn tasks(&self, sweep: &str) -> anyhow::Result<BTreeMap<String, pb::TaskInfo>> {
        let request = pb::TasksRequest { sweep: sweep.to_owned(), ..Default::default() };
        let mut stream = self.sweeps().tasks(request).await?.into_inner();
        let mut tasks = BTreeMap::new();
        while let Some(task) = stream.message().await? {
            tasks.insert(task.label.clone(), task);
        }
        Ok(tasks)
    }

    /// Every artifact of a sweep.
    ///
    /// # Errors
    /// When the coordinator does not answer.
    pub async fn artifacts(&self, sweep: &str) -> anyhow::Result<Vec<pb::ArtifactInfo>> {
        let request = pb::GetSweepRequest { sweep: sweep.to_owned() };
        let mut stream = self.sweeps().artifacts(request).await?.into_inner();
        let mut artifacts = Vec::new();
        while let Some(artifact) = stream.message().await? {
            artifacts.push(artifact);
        }
        Ok(artifacts)
    }

    /// Client of the sweep service.
    pub fn sweeps(&self) -> SweepServiceClient<Channel> {
        SweepServiceClient::new(self.channel.clone())
            .max_decoding_message_size(client::MAX_MESSAGE_BYTES)
    }

    /// Logs of every process, for failing tests.
    pub fn logs(&self) -> String {
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let mut text = String::new();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            text = format!("{text}--- {}\n{}\n", path.display(), tail.join("\n"));
        }
        text
    }
}

/// (metric and parameters, model, step, cell) → the value's bits.
pub type Values = BTreeMap<(String, String, u64, usize), u64>;

async fn coordinator(
    folder: &Path,
    listen: &str,
    arguments: &[String],
) -> anyhow::Result<(Process, String)> {
    let data = folder.join("coordinator");
    let address = data.join("address");
    let _ = fs::remove_file(&address);
    let mut command = Command::new(binary("sweep-coordinator"));
    command.args(["serve", "--listen", listen, "--lease-ttl", LEASE_TTL, "--retry-base", "100ms"]);
    command.arg("--data").arg(&data).args(arguments);
    let process = Process::start(&mut command, &folder.join("coordinator.log"))?;
    let begun = Instant::now();
    loop {
        if let Ok(url) = fs::read_to_string(&address)
            && client::connect(url.trim(), None).await.is_ok()
        {
            return Ok((process, url.trim().to_owned()));
        }
        ensure!(begun.elapsed() < PATIENCE, "no coordinator\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A small grokking sweep that runs in seconds: `steps` steps, a checkpoint every `every`.
pub fn small_sweep(name: &str, steps: u64, every: u64, seeds: u64) -> serde_json::Value {
    serde_json::json!({
        "name": name,
        "models": [{
            "train": {
                "recipe": "modular-addition",
                "params": {
                    "p": 13, "frac_train": 0.5, "d_model": 16, "n_heads": 2, "d_mlp": 32,
                    "lr": 0.003, "steps": steps
                },
                "seeds": seeds,
            },
            "checkpoints": { "every": every },
        }],
        "experiments": ["grokking-progress", "weight-norms"],
        "trajectory": [
            "grokking-phases",
            { "phase-transition": { "metric": "grokking-progress.test_loss" } },
            { "pca": { "of": "weights" } },
        ],
    })
}
