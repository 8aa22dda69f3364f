//! The processes behind `sweep local`: who runs, who has died, who must be started again. Main type:
//! [`Engine`].
//!
//! The folder may be shared: another `sweep local` may own the coordinator or the worker, and may
//! take them away when it ends. What is missing then is started here.

use std::{
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use sweep_proto::pb;
use tokio::time::sleep;

use super::super::watch::{End, Feed, Interrupts};
use crate::{
    connect::{self, Connection},
    context::Context,
    daemon::Daemon,
    error::{ErrorKind, Result},
    progress::Display,
};

/// The worker's own limit for draining is a minute.
const DRAIN_PATIENCE: Duration = Duration::from_secs(75);

/// Before a second look at who is still there.
const SETTLE: Duration = Duration::from_millis(300);

/// A worker that was heard of this recently is at work.
const ALIVE_MS: u64 = 20_000;

/// Coordinator and worker of one folder.
pub(super) struct Engine<'a> {
    cx: &'a Context,
    dir: PathBuf,
    connection: Connection,
    worker: Option<Daemon>,
    worker_options: Vec<String>,
    keep_going: bool,
    coordinator_deaths: u32,
    worker_deaths: u32,
}

impl<'a> Engine<'a> {
    /// Connects to the folder's coordinator, starting it where none runs. The worker comes later,
    /// when there is work.
    pub(super) async fn open(
        cx: &'a Context,
        dir: PathBuf,
        worker_options: Vec<String>,
        keep_going: bool,
    ) -> Result<Self> {
        let connection = match connect::running(&dir).await {
            Some(connection) => {
                cx.output
                    .note(&format!("using the coordinator that runs on {} already", dir.display()));
                connection
            }
            None => connect::start(&cx.connection.programs, &dir, "127.0.0.1:0").await?,
        };
        cx.output.detail(|| format!("coordinator {}", connection.url()));
        Ok(Self {
            cx,
            dir,
            connection,
            worker: None,
            worker_options,
            keep_going,
            coordinator_deaths: 0,
            worker_deaths: 0,
        })
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The coordinator.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Works on a sweep until it has ended or the user wants to stop.
    pub(super) async fn follow(&mut self, sweep: &str, interrupts: &mut Interrupts) -> Result<End> {
        let mut display = Display::new(&self.cx.output);
        self.ensure_worker(&display).await?;
        loop {
            let feed = Feed::of(self.cx, &self.connection);
            let end = tokio::select! {
                end = feed.follow(sweep, &mut display, interrupts, None) => Some(end),
                () = first_end(self.connection.daemon(), self.worker.as_mut()) => None,
            };
            match end {
                Some(Ok(end)) => {
                    display.finish(true);
                    return Ok(end);
                }
                Some(Err(error)) if error.kind() != ErrorKind::Unreachable => return Err(error),
                // Lost the coordinator, or a process ended: see who is still there.
                Some(Err(_)) | None => self.heal(&display).await?,
            }
        }
    }

    async fn heal(&mut self, display: &Display) -> Result<()> {
        sleep(SETTLE).await;
        let url = self.connection.url().to_owned();
        self.ensure_coordinator(display).await?;
        if self.connection.url() != url
            && let Some(mut worker) = self.worker.take()
        {
            // It knows the old address only.
            worker.stop(DRAIN_PATIENCE).await;
        }
        self.ensure_worker(display).await
    }

    async fn ensure_coordinator(&mut self, display: &Display) -> Result<()> {
        let listen = self.connection.url().trim_start_matches("http://").to_owned();
        if let Some(daemon) = self.connection.daemon() {
            let Some(status) = daemon.ended() else { return Ok(()) };
            self.coordinator_deaths += 1;
            if self.coordinator_deaths > 1 && !self.keep_going {
                return Err(daemon.failure(&format!("the coordinator ended again, with {status}")));
            }
            display.note(&format!("the coordinator ended with {status}; starting it again"));
        } else if let Some(connection) = connect::running(&self.dir).await {
            self.connection = connection;
            return Ok(());
        }
        let programs = &self.cx.connection.programs;
        // On the same port the worker finds it by itself.
        self.connection = match connect::start(programs, &self.dir, &listen).await {
            Ok(connection) => connection,
            Err(_) => connect::start(programs, &self.dir, "127.0.0.1:0").await?,
        };
        Ok(())
    }

    async fn ensure_worker(&mut self, display: &Display) -> Result<()> {
        if let Some(worker) = &mut self.worker {
            let Some(status) = worker.ended() else { return Ok(()) };
            self.worker_deaths += 1;
            if self.worker_deaths > 1 && !self.keep_going {
                return Err(worker.failure(&format!("the worker ended again, with {status}")));
            }
            display.note(&format!("the worker ended with {status}; starting it again"));
        } else if self.connection.is_borrowed() && self.others_work().await? {
            return Ok(());
        }
        let programs = &self.cx.connection.programs;
        // The worker keeps its cache by absolute path, whatever its own working folder.
        let dir = std::fs::canonicalize(&self.dir)?;
        let url = self.connection.url();
        self.worker = Some(Daemon::worker(programs, &dir, url, &self.worker_options)?);
        Ok(())
    }

    /// Whether another command's worker is at work here. A second one on the same cache would take
    /// over the first one's identity.
    async fn others_work(&self) -> Result<bool> {
        let request = pb::WorkersRequest {};
        let workers = self.connection.sweeps().workers(request).await?.into_inner().workers;
        Ok(workers
            .iter()
            .any(|worker| worker.state == "ready" && worker.last_seen_ms_ago < ALIVE_MS))
    }

    /// Stops the worker, then the coordinator, as far as they are ours. An interrupt in the meantime
    /// ends the waiting.
    pub(super) async fn close(mut self, interrupts: &mut Interrupts) {
        if let Some(worker) = &mut self.worker {
            let by_itself = tokio::select! {
                by_itself = worker.stop(DRAIN_PATIENCE) => by_itself,
                () = interrupts.next() => worker.stop(Duration::ZERO).await,
            };
            if !by_itself {
                self.cx.output.warn("the worker did not stop in time and was ended");
            }
        }
        self.connection.close().await;
    }
}

/// Waits until one of the processes has ended; forever where there are none.
async fn first_end(coordinator: Option<&mut Daemon>, worker: Option<&mut Daemon>) {
    let end = async |daemon: Option<&mut Daemon>| match daemon {
        // An error means that there is nothing to wait for any more.
        Some(daemon) => drop(daemon.wait().await),
        None => pending().await,
    };
    tokio::select! {
        () = end(coordinator) => {}
        () = end(worker) => {}
    }
}
