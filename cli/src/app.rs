//! The command line: [`App`] with the options that every verb takes. The verbs are in
//! [`commands`](crate::commands).

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser};

use crate::{
    commands::Command,
    connect::ConnectionOptions,
    context::Context,
    daemon::Programs,
    error::{EXIT_CODES, Outcome, Result},
    output::{ColorChoice, Format, Output},
};

/// Runs experiments over every checkpoint of many models, on this machine or on many.
#[derive(Debug, Parser)]
#[command(
    name = "sweep",
    version,
    max_term_width = 100,
    after_long_help = EXIT_CODES,
    after_help = "Start here: sweep local FILE. Exit codes: sweep --help",
    arg_required_else_help = true,
    disable_help_subcommand = true,
)]
pub struct App {
    /// Options of every verb.
    #[command(flatten)]
    pub global: GlobalOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every verb.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalOptions {
    /// Coordinator, http://HOST:PORT or https://HOST:PORT
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "SWEEP_COORDINATOR",
        hide_env_values = true
    )]
    pub coordinator: Option<String>,
    /// PEM certificate that signs the coordinator's (for https)
    #[arg(long, global = true, value_name = "FILE", env = "SWEEP_TLS_CA", hide_env_values = true)]
    pub tls_ca: Option<PathBuf>,
    /// Folder of `sweep local` [default: .sweep, where it exists]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Tables for people, or JSON documents with a versioned schema
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// When to use colours (NO_COLOR is respected)
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// Say more about what is done
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    pub verbose: bool,
    /// Program to start as coordinator
    #[arg(long, global = true, hide = true, env = "SWEEP_COORDINATOR_BIN")]
    pub coordinator_bin: Option<PathBuf>,
    /// Program to start as worker
    #[arg(long, global = true, hide = true, env = "SWEEP_WORKER_BIN")]
    pub worker_bin: Option<PathBuf>,
}

impl App {
    /// Where this command writes.
    pub fn output(&self) -> Output {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Output::new(self.global.output, self.global.color, no_color, self.global.verbose)
    }

    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever the verb could not do.
    pub async fn run(self) -> Result<Outcome> {
        let output = self.output();
        // An empty variable means that it is not set.
        let coordinator = self.global.coordinator.filter(|url| !url.is_empty());
        let connection = ConnectionOptions {
            coordinator,
            tls_ca: self.global.tls_ca,
            dir: self.global.dir,
            programs: Programs {
                coordinator: self.global.coordinator_bin,
                worker: self.global.worker_bin,
            },
        };
        self.command.run(&Context { output, connection }).await
    }
}
