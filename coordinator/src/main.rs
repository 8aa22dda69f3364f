//! The `sweep-coordinator` binary: options, log, signals, exit code.
//!
//! Exit codes: 0 stopped as asked, 1 something failed, 2 options that cannot be used.

use std::{io::Write as _, process::ExitCode, sync::Arc};

use clap::Parser as _;
use sweep_coordinator::{
    Coordinator, ServeError,
    clock::SystemClock,
    config::{Cli, Command, Serve, Settings},
    error::chain,
    shutdown, telemetry,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn main() -> ExitCode {
    let Command::Serve(options) = Cli::parse().command;
    let settings = match options.validate() {
        Ok(settings) => settings,
        Err(error) => return fail(2, &chain(&error)),
    };
    if let Err(problem) = telemetry::install(options.log_format, &options.log) {
        return fail(2, &format!("--log `{}` cannot be used: {problem}", options.log));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("the runtime cannot be started: {error}")),
    };
    let end = runtime.block_on(run(&options, settings));
    // A read of standard input may still be in progress; nothing else is.
    runtime.shutdown_background();
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &chain(&error)),
    }
}

async fn run(options: &Serve, settings: Settings) -> Result<(), ServeError> {
    let (token, tracker) = (CancellationToken::new(), TaskTracker::new());
    let signals = shutdown::listen(&tracker, &token, options.exit_when_orphaned);
    signals.map_err(ServeError::Thread)?;
    let clock = Arc::new(SystemClock::start());
    let coordinator = Coordinator::start(settings, options.listen, clock, token, tracker).await?;
    // Whoever started us with a pipe waits for this line; one that closed it does not.
    let _ = writeln!(std::io::stdout(), "{}", coordinator.url());
    coordinator.serve().await
}

fn fail(code: u8, message: &str) -> ExitCode {
    // Nobody is left to be told when even this fails.
    let _ = writeln!(std::io::stderr(), "error: {message}");
    ExitCode::from(code)
}
