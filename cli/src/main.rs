//! The `sweep` binary: parses the command line, runs the verb, maps the end to an exit code.

use std::process::ExitCode;

use clap::Parser;
use sweep_cli::app::App;

fn main() -> ExitCode {
    // object_store's HTTP client takes TLS from the process; the first call wins, and it is ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let app = App::parse();
    let output = app.output();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&error.into());
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(app.run()) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            output.error(&error);
            error.kind().exit_code()
        }
    };
    // A thread that waits on standard input must not hold up the exit.
    runtime.shutdown_background();
    ExitCode::from(code)
}
