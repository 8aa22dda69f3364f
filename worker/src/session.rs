//! What the parts of a worker share: the connection, the current registration, leases, spool, cache.
//! Main type: [`Session`].
//!
//! The registration changes when the coordinator has restarted and knows this process no more; the
//! held leases survive that, and the next heartbeat re-attaches them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sweep_proto::{
    client::{self, MAX_MESSAGE_BYTES},
    pb::{
        self, metrics_service_client::MetricsServiceClient,
        worker_service_client::WorkerServiceClient,
    },
};
use sweep_source::Cache;
use tokio::sync::Notify;
use tonic::{Code, Status, transport::Channel};

use crate::{leases::Leases, spool::Spool};

/// Shared state of one worker process.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    request: pb::RegisterRequest,
    registration: Mutex<Registration>,
    /// Leases of this process.
    pub leases: Leases,
    /// Results on their way.
    pub spool: Spool,
    /// Checkpoint files.
    pub cache: Arc<Cache>,
    draining: AtomicBool,
    /// The device cannot be used any more.
    broken: Notify,
    /// Asks the heartbeat thread not to wait for its interval.
    pub beat: Notify,
}

/// What the coordinator answered to the last registration.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Id in this coordinator's run.
    pub worker: String,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// How long a renewal lasts.
    pub ttl: Duration,
    /// Where artifacts go.
    pub artifact_root: String,
}

impl Session {
    /// Registers; tries until the coordinator answers.
    ///
    /// # Errors
    /// When the URL is no good or the coordinator refuses this worker.
    pub async fn start(
        url: &str,
        ca: Option<&[u8]>,
        request: pb::RegisterRequest,
        spool: Spool,
        cache: Arc<Cache>,
    ) -> anyhow::Result<Self> {
        let channel = client::lazy(url, ca)?;
        let registration = register(&channel, &request, url).await?;
        tracing::info!(worker = registration.worker, coordinator = url, "registered");
        Ok(Self {
            channel,
            request,
            registration: Mutex::new(registration),
            leases: Leases::default(),
            spool,
            cache,
            draining: AtomicBool::new(false),
            broken: Notify::new(),
            beat: Notify::new(),
        })
    }

    /// The registration in force.
    pub fn registration(&self) -> Registration {
        self.lock().clone()
    }

    /// Whether the worker was told to leave.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes no more work; running work is finished or given back.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Notes that the device is unusable until this process has ended.
    pub fn device_broke(&self) {
        self.drain();
        self.broken.notify_one();
    }

    /// Returns when the device has become unusable.
    pub async fn broken(&self) {
        self.broken.notified().await;
    }

    /// Client for leases and reports.
    pub fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Client for metric series.
    pub fn metrics(&self) -> MetricsServiceClient<Channel> {
        MetricsServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// One heartbeat; registers again if the coordinator does not know this worker.
    ///
    /// # Errors
    /// When the coordinator cannot be reached or refuses.
    pub async fn heartbeat(&self) -> Result<(), Status> {
        let leases = self.leases.heartbeat();
        let request = pb::HeartbeatRequest {
            worker: self.registration().worker,
            leases: leases.clone(),
            spool_bytes: self.spool.bytes(),
            draining: self.is_draining(),
        };
        let (timeout, sent) = (self.registration().ttl / 2, Instant::now());
        let mut workers = self.workers();
        let answer = tokio::time::timeout(timeout, workers.heartbeat(request)).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(answer) => {
                self.leases.renewed(&leases, &answer.into_inner().revoked, sent);
                Ok(())
            }
            Err(status) if status.code() == Code::NotFound => {
                let again = self.workers().register(self.request.clone()).await?;
                let registration = Registration::new(again.into_inner());
                tracing::info!(worker = registration.worker, "registered again");
                *self.lock() = registration;
                self.beat.notify_one();
                Ok(())
            }
            Err(status) => Err(status),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registration> {
        self.registration.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    fn new(answer: pb::RegisterResponse) -> Self {
        Self {
            worker: answer.worker,
            heartbeat: Duration::from_millis(u64::from(answer.heartbeat_ms.max(10))),
            ttl: Duration::from_millis(u64::from(answer.lease_ttl_ms.max(30))),
            artifact_root: answer.artifact_root,
        }
    }
}

async fn register(
    channel: &Channel,
    request: &pb::RegisterRequest,
    url: &str,
) -> anyhow::Result<Registration> {
    let mut workers = WorkerServiceClient::new(channel.clone());
    let mut pause = Duration::from_millis(200);
    loop {
        match workers.register(request.clone()).await {
            Ok(answer) => return Ok(Registration::new(answer.into_inner())),
            Err(status) if client::is_transport(&status) => {
                tracing::warn!(coordinator = url, "coordinator not reached, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(10));
            }
            Err(status) => {
                anyhow::bail!("coordinator {url} refused this worker: {}", status.message())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Protection: a coordinator that is killed while a worker registers has not refused it.
    #[tokio::test]
    async fn a_call_that_is_cut_is_made_again() {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = tokio::spawn(async move {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&SETTINGS).await.unwrap();
                // The name of the method is compressed; the whole request is more than preface and settings.
                let mut seen = Vec::new();
                while seen.len() < 150 {
                    let mut part = [0; 1024];
                    match stream.read(&mut part).await {
                        Ok(n) if n > 0 => seen.extend_from_slice(&part[..n]),
                        _ => break,
                    }
                }
            }
        });
        let channel = client::lazy(&url, None).unwrap();
        let request = pb::RegisterRequest::default();
        tokio::select! {
            answer = register(&channel, &request, &url) => panic!("{answer:?}"),
            done = calls => done.unwrap(),
        }
    }
}
