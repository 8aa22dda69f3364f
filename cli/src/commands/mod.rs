//! The verbs: one file each, and this list. A new verb is a file, a variant of [`Command`] and an
//! arm of [`Command::run`].

mod artifacts;
mod cancel;
mod catalog;
mod completions;
mod export;
mod list;
mod local;
mod logs;
mod plan;
mod plot;
mod results;
mod retry;
mod status;
mod submit;
mod tasks;
mod watch;
mod workers;

use clap::{Args, Subcommand};
use sweep_proto::pb;

use crate::{
    connect::Connection,
    context::Context,
    error::{ErrorKind, Outcome, Result},
};

/// Every verb.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a sweep on this machine to its end
    Local(local::LocalArgs),
    /// Submit a sweep to a coordinator
    Submit(submit::SubmitArgs),
    /// Show what a sweep file would run, without running it
    Plan(plan::PlanArgs),
    /// List all sweeps
    List(list::ListArgs),
    /// Show how far a sweep is
    Status(status::StatusArgs),
    /// Follow a sweep live
    Watch(watch::WatchArgs),
    /// List the tasks of a sweep
    Tasks(tasks::TasksArgs),
    /// Show metric values
    Results(results::ResultsArgs),
    /// Draw metrics as PNG and SVG
    Plot(plot::PlotArgs),
    /// Write all metrics into one tidy file
    Export(export::ExportArgs),
    /// List or fetch files that tasks left behind
    Artifacts(artifacts::ArtifactsArgs),
    /// Show what workers said about tasks
    Logs(logs::LogsArgs),
    /// Stop a sweep
    Cancel(cancel::CancelArgs),
    /// Make failed, skipped and cancelled tasks run again
    Retry(retry::RetryArgs),
    /// List the workers
    Workers(workers::WorkersArgs),
    /// Show experiments, recipes and published models
    Catalog(catalog::CatalogArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

impl Command {
    /// Runs the verb.
    ///
    /// # Errors
    /// Whatever the verb could not do.
    pub async fn run(self, cx: &Context) -> Result<Outcome> {
        match self {
            Self::Local(args) => Box::pin(local::run(cx, args)).await,
            Self::Submit(args) => Box::pin(submit::run(cx, args)).await,
            Self::Plan(args) => plan::run(cx, args).await,
            Self::List(args) => list::run(cx, args).await,
            Self::Status(args) => status::run(cx, args).await,
            Self::Watch(args) => Box::pin(watch::run(cx, args)).await,
            Self::Tasks(args) => tasks::run(cx, args).await,
            Self::Results(args) => results::run(cx, args).await,
            Self::Plot(args) => plot::run(cx, args).await,
            Self::Export(args) => export::run(cx, args).await,
            Self::Artifacts(args) => artifacts::run(cx, args).await,
            Self::Logs(args) => logs::run(cx, args).await,
            Self::Cancel(args) => cancel::run(cx, args).await,
            Self::Retry(args) => retry::run(cx, args).await,
            Self::Workers(args) => workers::run(cx, args).await,
            Self::Catalog(args) => catalog::run(cx, args).await,
            Self::Completions(args) => completions::run(cx, &args),
        }
    }
}

/// Which sweep.
#[derive(Debug, Clone, Args)]
pub struct SweepArg {
    /// Sweep id, a unique beginning of one, or `last`
    #[arg(value_name = "SWEEP", default_value = "last")]
    pub sweep: String,
}

impl SweepArg {
    /// The request that names it.
    pub fn request(&self) -> pb::GetSweepRequest {
        pb::GetSweepRequest { sweep: self.sweep.clone() }
    }

    /// Its full id.
    pub async fn resolve(&self, connection: &Connection) -> Result<pb::SweepStatus> {
        Ok(connection.sweeps().get(self.request()).await?.into_inner())
    }
}

/// Connects, runs `verb`, and stops the coordinator where it was started for this command.
///
/// A coordinator that belongs to another `sweep` command may stop in the middle; the verb is run
/// again then, unless part of its result is out already.
async fn with_connection(
    cx: &Context,
    verb: impl AsyncFn(&Connection) -> Result<Outcome>,
) -> Result<Outcome> {
    let connection = cx.connect().await?;
    let result = verb(&connection).await;
    let borrowed = connection.is_borrowed();
    connection.close().await;
    match result {
        Err(error)
            if borrowed && error.kind() == ErrorKind::Unreachable && !cx.output.has_results() =>
        {
            let connection = cx.connect().await?;
            let result = verb(&connection).await;
            connection.close().await;
            result
        }
        result => result,
    }
}
