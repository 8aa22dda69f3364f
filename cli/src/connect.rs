//! Which coordinator a command talks to, and the connection itself: [`ConnectionOptions`],
//! [`Connection`].
//!
//! `--coordinator` (or its variable) wins; else the embedded folder (`--dir`, or `.sweep` where it
//! exists): the coordinator that runs on it already, or one that is started for this command alone
//! and stopped after it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sweep_proto::{
    client,
    pb::{
        catalog_service_client::CatalogServiceClient, metrics_service_client::MetricsServiceClient,
        sweep_service_client::SweepServiceClient,
    },
};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::{
    daemon::{Daemon, Programs},
    error::{CommandError, ErrorKind, Result, file_error},
};

/// The folder of `sweep local` unless `--dir` says otherwise.
pub const DEFAULT_DIR: &str = ".sweep";

/// A coordinator on this machine answers at once or not at all.
const LOCAL_ANSWER: Duration = Duration::from_secs(2);

/// How long a coordinator that another command started may take to give its address.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// How long an embedded coordinator may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What the command line says about the coordinator.
#[derive(Debug, Clone, Default)]
pub struct ConnectionOptions {
    /// URL of a coordinator.
    pub coordinator: Option<String>,
    /// PEM file with the certificate that signs the coordinator's.
    pub tls_ca: Option<PathBuf>,
    /// Folder of embedded data.
    pub dir: Option<PathBuf>,
    /// Which programs to start.
    pub programs: Programs,
}

/// Where a command's coordinator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It runs somewhere.
    Url(String),
    /// Its data are in this folder.
    Dir(PathBuf),
}

impl ConnectionOptions {
    /// The coordinator to use, `None` when nothing says which.
    pub fn target(&self) -> Option<Target> {
        if let Some(url) = &self.coordinator {
            return Some(Target::Url(url.clone()));
        }
        if let Some(dir) = &self.dir {
            return Some(Target::Dir(dir.clone()));
        }
        let default = PathBuf::from(DEFAULT_DIR);
        default.is_dir().then_some(Target::Dir(default))
    }

    /// Connects to the coordinator of this command.
    ///
    /// # Errors
    /// `unreachable` when there is none, `not-found` when the folder does not exist.
    pub async fn connect(&self) -> Result<Connection> {
        match self.target() {
            Some(Target::Url(url)) => self.connect_url(&url).await,
            Some(Target::Dir(dir)) => self.connect_dir(&dir).await,
            None => Err(CommandError::new(
                ErrorKind::Unreachable,
                "no coordinator: neither --coordinator nor a folder of `sweep local` here",
            )
            .hint("run `sweep local FILE` to run a sweep on this machine")
            .hint("or name a coordinator: --coordinator http://HOST:7077, or SWEEP_COORDINATOR")
            .hint("or the folder of an earlier `sweep local`: --dir DIR")),
        }
    }

    async fn connect_url(&self, url: &str) -> Result<Connection> {
        let ca = match &self.tls_ca {
            None => None,
            Some(path) => Some(fs::read(path).map_err(|error| file_error("read", path, error))?),
        };
        let channel = client::connect(url, ca.as_deref()).await.map_err(|error| {
            let error = CommandError::from(error);
            if url.starts_with("https://") && ca.is_none() && error.kind() != ErrorKind::Usage {
                error.hint("for https, --tls-ca FILE names the certificate to trust")
            } else {
                error
            }
        })?;
        Ok(Connection { url: url.to_owned(), channel, daemon: None, dir: None })
    }

    async fn connect_dir(&self, dir: &Path) -> Result<Connection> {
        if !dir.is_dir() {
            let message = format!("there is no folder {}", dir.display());
            return Err(CommandError::not_found(message)
                .hint("`sweep local FILE --dir DIR` makes one; --dir names an existing one"));
        }
        if let Some(connection) = running(dir).await {
            return Ok(connection);
        }
        start(&self.programs, dir, "127.0.0.1:0").await
    }
}

/// The coordinator that runs on a folder already, if one answers.
pub async fn running(dir: &Path) -> Option<Connection> {
    let url = fs::read_to_string(dir.join("address")).ok()?.trim().to_owned();
    let channel = timeout(LOCAL_ANSWER, client::connect(&url, None)).await.ok()?.ok()?;
    Some(Connection { url, channel, daemon: None, dir: Some(dir.to_owned()) })
}

/// Starts a coordinator on a folder; where another command was faster, uses that one.
pub async fn start(programs: &Programs, dir: &Path, listen: &str) -> Result<Connection> {
    let absolute = fs::canonicalize(dir).map_err(|error| file_error("open", dir, error))?;
    match Daemon::coordinator(programs, &absolute, listen).await {
        Ok((daemon, url)) => {
            let channel = client::connect(&url, None).await?;
            Ok(Connection { url, channel, daemon: Some(daemon), dir: Some(dir.to_owned()) })
        }
        Err(error) => {
            // Two commands at the same time: the folder belongs to the other's coordinator, which
            // is about to write its address. Without an address there is nobody to wait for.
            let mut waited = Duration::ZERO;
            while dir.join("address").exists() && waited < BUSY_PATIENCE {
                if let Some(connection) = running(dir).await {
                    return Ok(connection);
                }
                sleep(Duration::from_millis(250)).await;
                waited += Duration::from_millis(250);
            }
            Err(error)
        }
    }
}

/// A connection to a coordinator, and the coordinator itself where it was started for it.
#[derive(Debug)]
pub struct Connection {
    url: String,
    channel: Channel,
    daemon: Option<Daemon>,
    dir: Option<PathBuf>,
}

impl Connection {
    /// Where the coordinator listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder of embedded data, if that is what this command works on.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The coordinator process, where it is ours.
    pub fn daemon(&mut self) -> Option<&mut Daemon> {
        self.daemon.as_mut()
    }

    /// Whether the coordinator belongs to another command and may go away with it.
    pub fn is_borrowed(&self) -> bool {
        self.dir.is_some() && self.daemon.is_none()
    }

    /// Sweeps: submit, status, watch, tasks, logs, artifacts.
    pub fn sweeps(&self) -> SweepServiceClient<Channel> {
        SweepServiceClient::new(self.channel.clone())
            .max_decoding_message_size(client::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(client::MAX_MESSAGE_BYTES)
    }

    /// Metric values.
    pub fn metrics(&self) -> MetricsServiceClient<Channel> {
        MetricsServiceClient::new(self.channel.clone())
            .max_decoding_message_size(client::MAX_MESSAGE_BYTES)
    }

    /// What workers can run.
    pub fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel.clone())
            .max_decoding_message_size(client::MAX_MESSAGE_BYTES)
    }

    /// Ends the connection, and the coordinator where it was started for it.
    pub async fn close(self) {
        if let Some(mut daemon) = self.daemon {
            daemon.stop(STOP_PATIENCE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_coordinator_wins_over_a_folder() {
        let options = ConnectionOptions {
            coordinator: Some("http://a:1".into()),
            dir: Some("x".into()),
            ..Default::default()
        };
        assert_eq!(options.target(), Some(Target::Url("http://a:1".into())));
        let options = ConnectionOptions { coordinator: None, ..options };
        assert_eq!(options.target(), Some(Target::Dir("x".into())));
    }

    #[tokio::test]
    async fn a_missing_folder_and_a_bad_url_are_different_errors() {
        let options =
            ConnectionOptions { dir: Some("does/not/exist".into()), ..Default::default() };
        assert_eq!(options.connect().await.unwrap_err().kind(), ErrorKind::NotFound);
        let options =
            ConnectionOptions { coordinator: Some("host:7077".into()), ..Default::default() };
        assert_eq!(options.connect().await.unwrap_err().kind(), ErrorKind::Usage);
        let options = ConnectionOptions {
            coordinator: Some("http://127.0.0.1:1".into()),
            ..Default::default()
        };
        assert_eq!(options.connect().await.unwrap_err().kind(), ErrorKind::Unreachable);
    }

    #[tokio::test]
    async fn a_stale_address_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("address"), "http://127.0.0.1:1\n").unwrap();
        assert!(running(dir.path()).await.is_none());
    }
}
