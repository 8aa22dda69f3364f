//! Connections to a coordinator: keep-alive against NAT timeouts, windows for long links, TLS.

use std::{error::Error as _, time::Duration};

use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// Largest message either side accepts. Metric queries are paged well below it.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Cloud load balancers and NAT gateways drop connections that are silent for 30 s or more.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not a usable URL.
    #[error("`{url}` is not a coordinator URL (expected http://HOST:PORT or https://HOST:PORT)")]
    Url {
        /// What was given.
        url: String,
    },
    /// The TLS settings do not work.
    #[error("TLS settings for `{url}` do not work")]
    Tls {
        /// The coordinator.
        url: String,
        /// The reason.
        #[source]
        source: tonic::transport::Error,
    },
    /// Nobody answered.
    #[error("coordinator {url} cannot be reached")]
    Unreachable {
        /// The coordinator.
        url: String,
        /// The reason.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A channel that connects on first use and reconnects by itself.
///
/// `ca` is a PEM certificate that signs the coordinator's, for `https://` URLs.
///
/// # Errors
/// [`ConnectError::Url`] or [`ConnectError::Tls`]; reachability is not tested.
pub fn lazy(url: &str, ca: Option<&[u8]>) -> Result<Channel, ConnectError> {
    Ok(endpoint(url, ca)?.connect_lazy())
}

/// A channel that is connected now.
///
/// # Errors
/// As [`lazy`], and [`ConnectError::Unreachable`].
pub async fn connect(url: &str, ca: Option<&[u8]>) -> Result<Channel, ConnectError> {
    endpoint(url, ca)?
        .connect()
        .await
        .map_err(|source| ConnectError::Unreachable { url: url.to_owned(), source })
}

fn endpoint(url: &str, ca: Option<&[u8]>) -> Result<Endpoint, ConnectError> {
    let bad = || ConnectError::Url { url: url.to_owned() };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(bad());
    }
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_| bad())?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_while_idle(true)
        .keep_alive_timeout(Duration::from_secs(10))
        .http2_adaptive_window(true)
        .tcp_nodelay(true);
    if url.starts_with("https://") {
        let mut tls = ClientTlsConfig::new();
        if let Some(pem) = ca {
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        endpoint = endpoint
            .tls_config(tls)
            .map_err(|source| ConnectError::Tls { url: url.to_owned(), source })?;
    }
    Ok(endpoint)
}

/// Whether a call failed on its way, so that the coordinator said nothing about it: one that is killed in the middle of a call
/// leaves `Unknown` with the broken connection as its source, not `Unavailable`.
pub fn is_transport(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::Unknown | Code::Internal | Code::Cancelled => {
            status.source().is_some() || status.message().contains("h2 protocol error")
        }
        _ => false,
    }
}
