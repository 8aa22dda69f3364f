//! The command line of `sweep-worker`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs training and analysis tasks of a sweep coordinator on one device.
#[derive(Debug, Parser)]
#[command(name = "sweep-worker", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Verbs of the worker binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take work from a coordinator until told to leave (SIGTERM drains).
    Run(Box<RunConfig>),
    /// Print what this worker can run, as JSON.
    Catalog,
}

/// Settings of `sweep-worker run`.
#[derive(Debug, Clone, Args)]
pub struct RunConfig {
    /// Coordinator URL, http://HOST:PORT or https://HOST:PORT.
    #[arg(long, env = "SWEEP_COORDINATOR", default_value = "http://127.0.0.1:7077")]
    pub coordinator: String,
    /// PEM certificate that signs the coordinator's (for https).
    #[arg(long, env = "SWEEP_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// Folder for checkpoint files and results on their way.
    #[arg(long, env = "SWEEP_CACHE", default_value = "sweep-cache")]
    pub cache: PathBuf,
    /// Bound of the checkpoint cache.
    #[arg(long, default_value = "50GiB", value_parser = bytes)]
    pub cache_bytes: u64,
    /// Memory that the weights of one checkpoint may take [default: what the machine has free].
    #[arg(long, value_parser = bytes)]
    pub memory_bytes: Option<u64>,
    /// Device: cpu, cuda (the first GPU) or cuda:N.
    #[arg(long, env = "SWEEP_DEVICE", default_value = "cpu")]
    pub device: String,
    /// Leases that run side by side. With more than one, one is kept free of training, so that
    /// checkpoints are analysed while training goes on [default: cores + 1 on a CPU, 2 on a GPU].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub slots: Option<u32>,
    /// CPU threads of libtorch per slot [default: cores divided by the slots that may train].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Artifact root, when it is not the one that the coordinator names (file:// or s3://).
    #[arg(long, env = "SWEEP_ARTIFACTS")]
    pub artifacts: Option<String>,
    /// Bound of the results that wait for the coordinator; computation stands still above it.
    #[arg(long, default_value = "1GiB", value_parser = bytes)]
    pub spool_bytes: u64,
    /// How long a full spool or a failing object store is waited for before the task fails.
    #[arg(long, default_value = "10m", value_parser = duration)]
    pub patience: Duration,
    /// How long SIGTERM waits for running work and for the spool.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Also drain and leave when standard input ends, that is, when whoever started this is gone.
    #[arg(long)]
    pub exit_when_orphaned: bool,
    /// Name in `sweep workers` [default: host name and cache folder].
    #[arg(long, env = "SWEEP_WORKER_NAME")]
    pub name: Option<String>,
    /// Log format on stderr.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Beyond this many lanes a small model gains nothing from another.
const SLOTS_MAX: u32 = 17;

impl RunConfig {
    /// Slots and threads per slot on a machine with `cores` cores.
    pub fn lanes(&self, cores: u32, on_gpu: bool) -> (u32, u32) {
        let usual = if on_gpu { 2 } else { (cores + 1).min(SLOTS_MAX) };
        let slots = self.slots.unwrap_or(usual);
        let training = slots.saturating_sub(1).max(1);
        (slots, self.threads.unwrap_or((cores / training).max(1)))
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `64KiB`, `512MiB`, `50GiB` or a number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[number.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("unknown unit `{unit}` (use KiB, MiB, GiB or TiB)")),
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// `500ms`, `30s`, `10m` or `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = number.parse().map_err(|_| format!("`{text}` is not a duration"))?;
    match &text[number.len()..] {
        "ms" => Ok(Duration::from_millis(count)),
        "s" => Ok(Duration::from_secs(count)),
        "m" => Ok(Duration::from_secs(count.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(count.saturating_mul(3600))),
        unit => Err(format!("unknown unit `{unit}` (use ms, s, m or h)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(bytes("64KiB"), Ok(65536));
        assert_eq!(bytes("7"), Ok(7));
        assert!(bytes("1GB").is_err() && bytes("GiB").is_err());
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert!(duration("2").is_err() && duration("s").is_err());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
