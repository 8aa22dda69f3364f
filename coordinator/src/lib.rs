//! The coordinator: shards sweeps into leases for workers and keeps what they find.
//!
//! # Layout
//! - [`core`]: the pure scheduling core: events in, effects out.
//! - [`store`]: what is kept on disk, and how it becomes durable.
//! - [`actor`]: the one thread that joins the two: step, commit, answer.
//! - [`service`]: the gRPC services; [`mod@error`]: errors and their codes.
//! - [`config`], [`clock`], [`shutdown`], [`telemetry`]: the edges to the process.
//!
//! `core` and `store` do not know each other's workings: the core asks for writes by what they
//! mean, the store decides what they look like. Nothing here knows libtorch or object stores.

pub mod actor;
pub mod clock;
pub mod config;
pub mod core;
pub mod error;
pub mod service;
pub mod shutdown;
pub mod store;
pub mod telemetry;

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info};

use crate::{
    clock::Clock,
    config::Settings,
    core::{Core, CoreConfig},
    store::directory::{Directory, DirectoryError},
};

/// Why a coordinator cannot run, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error("the data folder cannot be used")]
    Directory(#[from] DirectoryError),
    /// The stored sweeps make no sense.
    #[error("the stored sweeps cannot be restored")]
    Restore(#[from] core::restore::RestoreError),
    /// The address cannot be listened on.
    #[error("{address} cannot be listened on")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The server failed.
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
    /// A thread cannot be started.
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// What was done last may not be on disk; nothing was acknowledged since.
    #[error("the store failed; what was not acknowledged may be lost, start the coordinator again")]
    Store(#[source] store::Error),
    /// The writer thread ended for a reason that is in the log.
    #[error("the coordinator's core failed")]
    Core,
}

/// A coordinator that has read its store and listens, but does not serve yet.
pub struct Coordinator {
    directory: Directory,
    shared: service::Shared,
    writer: std::thread::JoinHandle<Result<(), store::Error>>,
    listener: TcpListener,
    tls: Option<(Vec<u8>, Vec<u8>)>,
    url: String,
}

impl Coordinator {
    /// Opens the data folder, restores the core, and binds `listen`.
    ///
    /// # Errors
    /// [`ServeError`] says which of these did not work.
    pub async fn start(
        settings: Settings,
        listen: SocketAddr,
        clock: Arc<dyn Clock>,
        token: CancellationToken,
        tracker: TaskTracker,
    ) -> Result<Self, ServeError> {
        let directory = Directory::open(&settings.data)?;
        let now = clock.now();
        let (store, image) = directory.open_store(settings.fresh_store, now.unix_ms)?;
        info!(incarnation = image.incarnation, sweeps = image.sweeps.len(), "store opened");
        let config = CoreConfig {
            timing: settings.timing,
            retry: settings.retry,
            artifact_root: settings.artifacts.clone(),
        };
        let core = Core::restore(config, image, now)?;
        let listener = TcpListener::bind(listen)
            .await
            .and_then(|listener| Ok((listener.local_addr()?, listener)))
            .map_err(|source| ServeError::Listen { address: listen, source });
        let (address, listener) = listener?;
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        let (handle, writer) =
            actor::spawn(core, store.clone(), clock).map_err(ServeError::Thread)?;
        let shared = service::Shared {
            handle,
            store,
            token,
            tracker,
            max_tasks: settings.max_tasks,
            artifacts: settings.artifacts,
            timing: settings.timing,
        };
        let url = format!("{scheme}://{address}");
        directory.write_address(&url)?;
        info!(url, data = %directory.path().display(), "listening");
        Ok(Self { directory, shared, writer, listener, tls: settings.tls, url })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Serves until the token is cancelled or the store fails.
    ///
    /// # Errors
    /// [`ServeError`]; everything acknowledged before is on disk.
    pub async fn serve(self) -> Result<(), ServeError> {
        let Self { directory, shared, writer, listener, tls, .. } = self;
        let (handle, token) = (shared.handle.clone(), shared.token.clone());
        let tracker = shared.tracker.clone();
        // The writer ends by itself only when the store fails; then everything ends.
        let failed = token.clone();
        let writer = tracker.spawn_blocking(move || {
            let end = writer.join();
            failed.cancel();
            end
        });
        let server = service::serve(shared, listener, tls);
        let served = tokio::select! {
            served = server => served,
            () = async { token.cancelled().await; tokio::time::sleep(shutdown::DRAIN).await } => Ok(()),
        };
        token.cancel();
        handle.stop();
        let end = writer.await;
        shutdown::drain(&tracker).await;
        directory.remove_address()?;
        match end {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(source))) => return Err(ServeError::Store(source)),
            Ok(Err(_)) | Err(_) => {
                error!("the writer thread panicked");
                return Err(ServeError::Core);
            }
        }
        info!("stopped");
        Ok(served?)
    }
}
