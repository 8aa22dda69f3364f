//! The gRPC services: decode, ask the actor or the store, encode. No decisions are made here.
//!
//! # Layout
//! - `sweeps`: what the command line asks for; `listing`: its streams.
//! - `workers`: what workers say; `decode`: their records, checked where they arrive.
//! - `metrics`, `catalog`.
//!
//! Reads of the store run on blocking threads, page by page, and give way when the reader is slow.

mod catalog;
mod decode;
mod listing;
mod metrics;
mod sweeps;
mod workers;

use std::{sync::Arc, time::Duration};

use sweep_proto::{
    client::{KEEPALIVE_INTERVAL, MAX_MESSAGE_BYTES},
    pb::{
        self, catalog_service_server::CatalogServiceServer,
        metrics_service_server::MetricsServiceServer, sweep_service_server::SweepServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Status,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use crate::{
    actor::Handle,
    core::plan::Plan,
    error::Error,
    store::{self, Store},
};

/// Calls that one connection may have open.
const MAX_STREAMS: u32 = 1024;
/// Messages of a stream that wait for a slow reader.
const STREAM_BUFFER: usize = 4;

/// What all services share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The actor.
    pub handle: Handle,
    /// For reading.
    pub store: Store,
    /// Ends streams and long polls.
    pub token: CancellationToken,
    /// Everything in the background.
    pub tracker: TaskTracker,
    /// Largest sweep.
    pub max_tasks: u64,
    /// URL that artifact keys are relative to.
    pub artifacts: String,
    /// Heartbeat interval and time to live of leases.
    pub timing: sweep_proto::timing::LeaseTiming,
}

/// A stream of answers.
pub(crate) type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Hands messages of a stream to a reader; false when nobody wants more.
pub(crate) struct Sink<T> {
    sender: mpsc::Sender<Result<T, Status>>,
    token: CancellationToken,
}

impl<T> Sink<T> {
    /// Waits until the reader has room.
    pub(crate) fn send(&self, message: T) -> bool {
        !self.token.is_cancelled() && self.sender.blocking_send(Ok(message)).is_ok()
    }
}

impl Shared {
    /// The number and the plan of the sweep that `text` means.
    pub(crate) async fn find(&self, text: &str) -> Result<(u32, Arc<Plan>), Error> {
        let text = text.to_owned();
        let found = self.handle.read(move |core, _| {
            let number = core.find(&text)?;
            let sweep = core.sweep(number).ok_or(crate::core::event::Refusal::NoSuchSweep(text))?;
            Ok((number, Arc::clone(&sweep.plan)))
        });
        found.await?
    }

    /// A stream whose messages a blocking thread produces.
    pub(crate) fn stream<T: Send + 'static>(
        &self,
        produce: impl FnOnce(&Store, &Sink<T>) -> store::Result<()> + Send + 'static,
    ) -> Stream<T> {
        let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
        let store = self.store.clone();
        let sink = Sink { sender, token: self.token.clone() };
        self.tracker.spawn_blocking(move || {
            if let Err(error) = produce(&store, &sink) {
                // A reader that went away needs no error.
                let _ = sink.sender.blocking_send(Err(Error::from(error).into()));
            }
        });
        ReceiverStream::new(receiver)
    }

    /// Runs something that takes its time on a blocking thread.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let result = self.tracker.spawn_blocking(work).await;
        result.map_err(|error| Error::Internal(error.to_string()))
    }
}

/// Serves until the token is cancelled.
///
/// # Errors
/// When TLS cannot be set up or the listener fails.
pub async fn serve(
    shared: Shared,
    listener: TcpListener,
    tls: Option<(Vec<u8>, Vec<u8>)>,
) -> Result<(), tonic::transport::Error> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_adaptive_window(Some(true))
        .max_concurrent_streams(Some(MAX_STREAMS));
    if let Some((certificate, key)) = tls {
        let identity = Identity::from_pem(certificate, key);
        server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
    }
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<SweepServiceServer<sweeps::Sweeps>>().await;
    reporter.set_serving::<WorkerServiceServer<workers::Workers>>().await;
    reporter.set_serving::<MetricsServiceServer<metrics::Metrics>>().await;
    reporter.set_serving::<CatalogServiceServer<catalog::Catalog>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the embedded descriptors are complete");
    macro_rules! service {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        };
    }
    let token = shared.token.clone();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    server
        .add_service(service!(SweepServiceServer, sweeps::Sweeps(shared.clone())))
        .add_service(service!(WorkerServiceServer, workers::Workers(shared.clone())))
        .add_service(service!(MetricsServiceServer, metrics::Metrics(shared.clone())))
        .add_service(service!(CatalogServiceServer, catalog::Catalog(shared)))
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, token.cancelled_owned())
        .await
}
