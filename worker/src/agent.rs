//! The life of a worker process: register, take work in every lane, drain on SIGTERM (or, if asked
//! for, when whoever started it is gone), leave.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use sweep_proto::pb::{self, lease::Work};
use sweep_source::{Access, Cache};
use tokio::{
    io::AsyncReadExt,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::ArtifactStore,
    catalog::catalog,
    config::RunConfig,
    deliver::{Outlet, Provenance},
    heartbeat,
    lane::Lane,
    loading::Loaded,
    reporter,
    session::Session,
    spool::Spool,
};

/// How long the coordinator may hold a request for work.
const ACQUIRE_WAIT: Duration = Duration::from_secs(10);
/// Pause after an unanswered request for work.
const PAUSE: Duration = Duration::from_millis(500);
/// Checkpoint hashes named in a request for work.
const RESIDENT: usize = 256;
/// How long an orphan goes on draining.
const ORPHAN_DRAIN: Duration = Duration::from_secs(5);
/// The version of the libtorch that tch 0.24 binds.
const LIBTORCH: &str = "2.11.0";
/// The version of this program.
const CODE: &str = env!("CARGO_PKG_VERSION");

/// Runs a worker until it is told to leave. `settings` are those of [`sweep_source::settings`].
///
/// # Errors
/// When the device, cache, coordinator or artifact store cannot be used at all.
pub async fn run(config: RunConfig, settings: BTreeMap<String, String>) -> anyhow::Result<()> {
    let device = sweep_lens::device::parse(&config.device)?;
    // Also what makes CUDA work at all: nothing else loads libtorch's part for it.
    sweep_lens::device::check(device)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let (slots, threads) = config.lanes(cores, device != sweep_lens::Device::Cpu);
    let orphaned = if config.exit_when_orphaned { orphaned() } else { CancellationToken::new() };
    let outlet = tokio::select! {
        outlet = join(&config, &settings, device, slots) => outlet?,
        () = orphaned.cancelled() => return Ok(()),
    };
    let session = Arc::clone(&outlet.session);
    heartbeat::spawn(Arc::clone(&session)).context("start the heartbeat thread")?;

    let provenance: Provenance = [
        ("device".to_owned(), config.device.clone()),
        ("libtorch".to_owned(), LIBTORCH.to_owned()),
        ("code".to_owned(), CODE.to_owned()),
        ("threads".to_owned(), threads.to_string()),
    ]
    .into();
    let mut tasks = JoinSet::new();
    // One slot of several stays free for analyses: checkpoints are looked at while they come.
    let training = Arc::new(Semaphore::new(slots.saturating_sub(1).max(1) as usize));
    for index in 0..slots {
        let lane = Lane::spawn(index, outlet.clone(), device, threads as i32, provenance.clone())
            .context("start a lane")?;
        let slot = Slot { outlet: outlet.clone(), training: Arc::clone(&training) };
        tasks.spawn(slot.serve(lane));
    }
    let reporter = tokio::spawn(reporter::run(Arc::clone(&session)));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut broken = false;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = orphaned.cancelled() => {}
        () = session.broken() => broken = true,
        _ = tasks.join_next() => anyhow::bail!("a lane died; restart this worker"),
    }
    tracing::info!("draining: running work is finished or given back");
    session.drain();
    session.beat.notify_one();
    let drained = tokio::select! {
        done = tokio::time::timeout(config.drain_timeout, drain(&session, tasks)) => done.is_ok(),
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = nobody_waits(&orphaned) => false,
    };
    if !drained {
        tracing::warn!("left before everything was finished; the coordinator gives the rest away");
    }
    reporter.abort();
    let leave = pb::LeaveRequest { worker: session.registration().worker };
    let _ = tokio::time::timeout(Duration::from_secs(2), session.workers().leave(leave)).await;
    anyhow::ensure!(!broken, "device {} is unusable until this worker is restarted", config.device);
    Ok(())
}

/// Opens the folders, the connection and the object store; returns when the coordinator has answered.
async fn join(
    config: &RunConfig,
    settings: &BTreeMap<String, String>,
    device: sweep_lens::Device,
    slots: u32,
) -> anyhow::Result<Outlet> {
    let spool = open_spool(config).await?;
    let cache = Cache::open(&config.cache.join("checkpoints"), config.cache_bytes)
        .with_context(|| format!("open the checkpoint cache in {}", config.cache.display()))?;
    let cache = Arc::new(cache);
    let access = Access::new(settings.clone(), Some(Arc::clone(&cache)), config.patience)
        .context("set up access to hub and buckets")?;
    let ca = match &config.tls_ca {
        Some(path) => {
            Some(std::fs::read(path).with_context(|| format!("read {}", path.display()))?)
        }
        None => None,
    };
    let request = pb::RegisterRequest {
        instance: instance_id()?,
        name: config.name.clone().unwrap_or_else(|| default_name(config)),
        catalog: Some(catalog(device)),
        device: config.device.clone(),
        slots,
        memory_bytes: 0,
        code_version: CODE.to_owned(),
        libtorch_version: LIBTORCH.to_owned(),
    };
    let session = Session::start(&config.coordinator, ca.as_deref(), request, spool, cache).await?;
    let root = config.artifacts.clone().unwrap_or_else(|| session.registration().artifact_root);
    let store = ArtifactStore::open(&root, settings, config.patience)?;
    Ok(Outlet {
        session: Arc::new(session),
        store,
        access: Arc::new(access),
        memory_bytes: config.memory_bytes,
        runtime: Handle::current(),
    })
}

/// The spool below the cache folder; waits for a worker that is just leaving it.
async fn open_spool(config: &RunConfig) -> anyhow::Result<Spool> {
    let folder = config.cache.join("spool");
    let begun = Instant::now();
    let mut warned = false;
    loop {
        match Spool::open(&folder, config.spool_bytes, config.patience) {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    && begun.elapsed() < config.drain_timeout =>
            {
                if !std::mem::replace(&mut warned, true) {
                    let cache = config.cache.display();
                    tracing::warn!(%cache, "another worker uses this cache, waiting for its end");
                }
                tokio::time::sleep(PAUSE).await;
            }
            opened => {
                return opened
                    .with_context(|| format!("open the metric spool in {}", folder.display()));
            }
        }
    }
}

/// Cancelled when standard input has ended.
fn orphaned() -> CancellationToken {
    let token = CancellationToken::new();
    let ended = token.clone();
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 256];
        while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
        tracing::info!("whoever started this worker is gone");
        ended.cancel();
    });
    token
}

/// Returns a while after `orphaned`: its coordinator may have gone as well and take nothing more.
async fn nobody_waits(orphaned: &CancellationToken) {
    orphaned.cancelled().await;
    tokio::time::sleep(ORPHAN_DRAIN).await;
}

/// Waits until every lane has stopped and everything they produced is acknowledged.
async fn drain(session: &Session, mut lanes: JoinSet<()>) {
    while lanes.join_next().await.is_some() {}
    while !session.spool.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns when the worker wants to leave.
async fn draining(session: &Session) {
    while !session.is_draining() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Brings the files of a checkpoint near while another one is computed on.
fn fetch_ahead(outlet: Outlet, next: pb::Checkpoint) -> impl FnOnce() {
    move || {
        outlet.runtime.block_on(async {
            tokio::select! {
                () = Loaded::prefetch(&outlet, &next) => {}
                () = draining(&outlet.session) => {}
            }
        });
    }
}

/// Takes work for one lane.
struct Slot {
    outlet: Outlet,
    /// Held by a lane that trains, or asks for a training.
    training: Arc<Semaphore>,
}

impl Slot {
    async fn serve(self, lane: Lane) {
        let session = Arc::clone(&self.outlet.session);
        let mut ahead = JoinSet::new();
        while !session.is_draining() {
            let permit = Arc::clone(&self.training).try_acquire_owned().ok();
            let sent = Instant::now();
            let Some((lease, work)) = self.acquire(permit.is_some()).await else { continue };
            let permit = permit.filter(|_: &OwnedSemaphorePermit| matches!(work, Work::Train(_)));
            let held = session.leases.add(lease.attempt, task_keys(&work), sent);
            tracing::info!(
                attempt = lease.attempt,
                sweep = lease.sweep,
                kind = kind(&work),
                "lease"
            );
            if let Work::Analyse(pb::AnalyseWork { next: Some(next), .. }) = &work {
                while ahead.try_join_next().is_some() {}
                if ahead.is_empty() {
                    ahead.spawn_blocking(fetch_ahead(self.outlet.clone(), next.clone()));
                }
            }
            let alive = lane.run(held, work).await;
            drop(permit);
            if !alive {
                return;
            }
        }
    }

    async fn acquire(&self, training: bool) -> Option<(pb::Lease, Work)> {
        let request = pb::AcquireRequest {
            worker: self.outlet.session.registration().worker,
            training,
            resident: self.outlet.session.cache.resident(RESIDENT),
            wait_ms: ACQUIRE_WAIT.as_millis() as u32,
        };
        let mut workers = self.outlet.session.workers();
        let answer = tokio::select! {
            answer = workers.acquire(request) => answer,
            () = draining(&self.outlet.session) => return None,
        };
        match answer {
            Ok(answer) => {
                let mut lease = answer.into_inner().lease?;
                let work = lease.work.take()?;
                Some((lease, work))
            }
            Err(status) => {
                tracing::debug!(problem = status.message(), "no work");
                self.outlet.session.beat.notify_one();
                tokio::time::sleep(PAUSE).await;
                None
            }
        }
    }
}

fn kind(work: &Work) -> &'static str {
    match work {
        Work::Train(_) => "train",
        Work::Analyse(_) => "analyse",
        Work::Trajectory(_) => "trajectory",
        Work::Import(_) => "import",
        Work::Compare(_) => "compare",
    }
}

fn task_keys(work: &Work) -> Vec<pb::TaskKey> {
    match work {
        Work::Train(work) => work.seeds.iter().filter_map(|seed| seed.task.clone()).collect(),
        Work::Analyse(work) => work.tasks.iter().filter_map(|task| task.task.clone()).collect(),
        Work::Trajectory(work) => work.task.iter().cloned().collect(),
        Work::Import(work) => work.task.iter().cloned().collect(),
        Work::Compare(work) => work.tasks.iter().filter_map(|task| task.task.clone()).collect(),
    }
}

/// Distinguishes this process from an earlier one of the same name.
fn instance_id() -> anyhow::Result<String> {
    let boot =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("draw an instance id")?;
    Ok(boot.trim().to_owned())
}

/// Host name and cache folder: stable over restarts, different for two workers of one machine.
fn default_name(config: &RunConfig) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let folder = config.cache.canonicalize().unwrap_or_else(|_| config.cache.clone());
    format!("{}:{}", host.trim(), folder.display())
}
