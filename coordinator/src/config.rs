//! Command line and environment of the coordinator. Main type: [`Cli`]; [`Serve::validate`] turns
//! it into [`Settings`]. Nothing else reads the environment.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use sweep_proto::timing::LeaseTiming;

use crate::core::retry::RetryPolicy;

/// Tasks of one sweep unless `--max-tasks` says otherwise; a larger grid is mostly a typing error.
pub const DEFAULT_MAX_TASKS: u64 = 10_000_000;

/// The coordinator of distributed sweeps: shards tasks onto workers and keeps what they find.
#[derive(Debug, Parser)]
#[command(name = "sweep-coordinator", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves workers and command lines until it is told to stop (SIGTERM or Ctrl-C).
    Serve(Box<Serve>),
}

/// Options of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, env = "SWEEP_LISTEN", default_value = "127.0.0.1:7077", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Folder of the store, created if missing.
    #[arg(long, env = "SWEEP_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Where workers put files: file:// or s3:// [default: DIR/artifacts].
    #[arg(long, env = "SWEEP_ARTIFACTS", value_name = "URL")]
    pub artifacts: Option<String>,
    /// How long a worker may be silent before its tasks go to others.
    #[arg(long, env = "SWEEP_LEASE_TTL", default_value = "30s", value_parser = duration)]
    pub lease_ttl: Duration,
    /// Wait before the first retry of a failed task; doubles with each further one.
    #[arg(long, env = "SWEEP_RETRY_BASE", default_value = "1s", value_parser = duration)]
    pub retry_base: Duration,
    /// Certificate chain for TLS, PEM.
    #[arg(long, env = "SWEEP_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key for TLS, PEM.
    #[arg(long, env = "SWEEP_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Allow an address that others can reach without TLS.
    #[arg(long, env = "SWEEP_INSECURE")]
    pub insecure: bool,
    /// Refuse sweeps with more tasks.
    #[arg(long, env = "SWEEP_MAX_TASKS", default_value_t = DEFAULT_MAX_TASKS, value_name = "N")]
    pub max_tasks: u64,
    /// Form of the log on stderr; what is logged is chosen by SWEEP_LOG (info, debug, …).
    #[arg(long, env = "SWEEP_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, or a filter like `sweep_coordinator=debug`.
    #[arg(long, env = "SWEEP_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Stop when standard input ends, that is, when the parent process has gone.
    #[arg(long)]
    pub exit_when_orphaned: bool,
    /// Begin with an empty store although an earlier one was moved aside.
    #[arg(long)]
    pub fresh_store: bool,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What a coordinator needs to know, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the store.
    pub data: PathBuf,
    /// URL that artifact keys are relative to.
    pub artifacts: String,
    /// Lease timing.
    pub timing: LeaseTiming,
    /// Backoff of retries.
    pub retry: RetryPolicy,
    /// Largest sweep.
    pub max_tasks: u64,
    /// Certificate chain and private key, PEM.
    pub tls: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether an empty store may follow one that was moved aside.
    pub fresh_store: bool,
}

/// Why options cannot be used together, or at all.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Everybody could talk to the coordinator, and read along.
    #[error(
        "{0} can be reached from other machines; give --tls-cert and --tls-key, or --insecure if \
         the network is trusted (a tunnel, a private network)"
    )]
    Exposed(SocketAddr),
    /// The lease time makes no sense.
    #[error("--lease-ttl {ttl:?} cannot be used")]
    Lease {
        /// What was given.
        ttl: Duration,
        /// The reason.
        #[source]
        source: sweep_proto::timing::InvalidTiming,
    },
    /// The lease time makes no sense.
    #[error("--lease-ttl {0:?} is shorter than 300 ms or longer than a day")]
    LeaseRange(Duration),
    /// A limit is beyond what can be counted.
    #[error("--max-tasks {0} is not between 1 and 1000000000000")]
    MaxTasks(u64),
    /// The artifact root is no URL that workers understand.
    #[error("--artifacts `{0}` is neither a file:// nor an s3:// URL")]
    Artifacts(String),
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

impl Serve {
    /// Checks the options.
    ///
    /// # Errors
    /// [`ConfigError`] for the first that does not work.
    pub fn validate(&self) -> Result<Settings, ConfigError> {
        if !self.listen.ip().is_loopback() && self.tls_cert.is_none() && !self.insecure {
            return Err(ConfigError::Exposed(self.listen));
        }
        let ttl = self.lease_ttl;
        if ttl < Duration::from_millis(300) || ttl > Duration::from_hours(24) {
            return Err(ConfigError::LeaseRange(ttl));
        }
        let timing = LeaseTiming::from_ttl(ttl);
        let timing = timing.map_err(|source| ConfigError::Lease { ttl, source })?;
        if self.max_tasks == 0 || self.max_tasks > 1_000_000_000_000 {
            return Err(ConfigError::MaxTasks(self.max_tasks));
        }
        let artifacts = match &self.artifacts {
            Some(url) if url.starts_with("file:///") || url.starts_with("s3://") => url.clone(),
            Some(url) => return Err(ConfigError::Artifacts(url.clone())),
            None => file_url(&self.data.join("artifacts"))?,
        };
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Settings {
            data: self.data.clone(),
            artifacts,
            timing,
            retry: RetryPolicy { base: self.retry_base, ..RetryPolicy::default() },
            max_tasks: self.max_tasks,
            tls,
            fresh_store: self.fresh_store,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })
}

/// A `file://` URL of a folder that need not exist; what URLs do not allow is escaped.
fn file_url(path: &Path) -> Result<String, ConfigError> {
    let absolute = std::path::absolute(path);
    let absolute =
        absolute.map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
    let mut url = "file://".to_owned();
    for byte in absolute.as_os_str().as_encoded_bytes().iter().copied() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
    Ok(url)
}

fn hex_digit(nibble: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(nibble & 15)])
}

/// `30s`, `500ms`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a number with ms, s, m or h, as in 30s".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(args: &str) -> Result<Settings, ConfigError> {
        let words = format!("sweep-coordinator serve --data d {args}");
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Serve(serve) = cli.command;
        serve.validate()
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(duration("30").is_err());
        assert!(duration("s").is_err());
        assert!(duration("99999999999999999999h").is_err());
    }

    #[test]
    fn open_addresses_need_tls_or_a_word() {
        assert!(serve("").is_ok());
        assert!(serve("--listen [::1]:0").is_ok());
        assert!(matches!(serve("--listen 0.0.0.0:7077"), Err(ConfigError::Exposed(_))));
        assert!(serve("--listen 0.0.0.0:7077 --insecure").is_ok());
    }

    #[test]
    fn artifacts_default_to_the_data_folder() {
        let url = serve("").unwrap().artifacts;
        assert!(url.starts_with("file:///") && url.ends_with("/d/artifacts"), "{url}");
        assert_eq!(serve("--artifacts s3://b/p").unwrap().artifacts, "s3://b/p");
        assert!(serve("--artifacts /tmp/x").is_err());
        assert_eq!(file_url(Path::new("/a b/ü")).unwrap(), "file:///a%20b/%C3%BC");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(serve("--lease-ttl 1ms").is_err());
        assert!(serve("--max-tasks 0").is_err());
    }
}
