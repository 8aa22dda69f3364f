//! `sweep-worker`: parses the command line, sets up logging, hands over to [`sweep_worker::agent`].

use std::{io, process::ExitCode};

use clap::Parser;
use sweep_worker::{
    agent, catalog,
    config::{Cli, Command, LogFormat},
    failure,
};

/// Serves libtorch too. Threads that train side by side wait for each other in the C library's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Catalog => {
            let text = catalog::in_lines(&catalog::catalog(sweep_lens::Device::Cpu));
            // A closed pipe is the reader's choice.
            let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
            ExitCode::SUCCESS
        }
        Command::Run(config) => {
            let filter = tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info".into());
            let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
            match config.log_format {
                LogFormat::Text => log.init(),
                LogFormat::Json => log.json().init(),
            }
            // object_store and tonic share rustls; one provider for both.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let settings = sweep_source::settings(std::env::vars());
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime needs threads and a poller");
            let outcome = runtime.block_on(agent::run(*config, settings));
            // Lanes may still sit in libtorch; the process ends now all the same.
            runtime.shutdown_background();
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{}", failure::chain(error.as_ref()));
                    ExitCode::FAILURE
                }
            }
        }
    }
}
