//! `sweep local`: a whole sweep on this machine. Starts a coordinator and a worker on a folder (or
//! uses those that run there), submits, follows to the end, shows results and draws the figures.
//!
//! Invariants: the file is checked before anything is started; standard output gets the sweep id and
//! nothing else; whatever happens, the folder holds everything that was finished, and the same
//! command goes on from there.

mod engine;

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;
use sweep_proto::{catalog, pb, spec::SweepSpec};

use self::engine::Engine;
use super::{
    plan, plot, results, status, submit,
    watch::{End, Interrupts},
};
use crate::{
    connect::DEFAULT_DIR,
    context::Context,
    error::{Outcome, Result, file_error},
    imports,
    problems::FileArgs,
    progress::{ended, state_word},
    series::{Selection, SeriesStream},
    spec_file::SweepFile,
};

/// Arguments of `sweep local`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sweep local grokking.yaml\n  sweep local --problem 5.22\n  sweep results last\n\n\
    Everything is kept in --dir (default .sweep); all other verbs find it there. Ctrl-C stops in an\n\
    orderly way, and the same command goes on. The exit code tells how the sweep ended."
)]
pub struct LocalArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Leases that run side by side
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    slots: Option<u32>,
    /// CPU threads per lease
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Device: cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Refuse a sweep with more tasks
    #[arg(long, value_name = "N")]
    max_tasks: Option<u64>,
    /// Restart the coordinator and the worker however often they die (otherwise once each)
    #[arg(long)]
    keep_going: bool,
}

impl LocalArgs {
    fn worker_options(&self) -> Vec<String> {
        let mut options = vec!["--device".to_owned(), self.device.clone()];
        for (name, value) in [("--slots", self.slots), ("--threads", self.threads)] {
            if let Some(value) = value {
                options.extend([name.to_owned(), value.to_string()]);
            }
        }
        options
    }
}

pub(super) async fn run(cx: &Context, args: LocalArgs) -> Result<Outcome> {
    let file = args.file.read()?;
    let mut spec = file.decode()?;
    imports::list(cx, &file, &mut spec).await?;
    let known = catalog::embedded();
    file.check(&spec, &known)?;
    plan::check_size(&file, &spec, &known, args.max_tasks)?;
    if cx.connection.coordinator.is_some() {
        cx.output.note("`sweep local` uses a coordinator of its own, not the one that is named");
    }
    let dir = cx.connection.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    fs::create_dir_all(&dir).map_err(|error| file_error("create", &dir, error))?;
    let mut interrupts = Interrupts::new()?;
    let mut engine = Engine::open(cx, dir, args.worker_options(), args.keep_going).await?;
    let result = drive(cx, &mut engine, &mut interrupts, &file, &spec, &args).await;
    if matches!(result, Ok(Outcome::Interrupted)) {
        cx.output.note("stopping: the worker saves what it can (Ctrl-C again does not wait)");
    }
    engine.close(&mut interrupts).await;
    if matches!(result, Ok(Outcome::Interrupted)) {
        let place = match &cx.connection.dir {
            Some(dir) => format!(" --dir {}", dir.display()),
            None => String::new(),
        };
        cx.output.hint(&format!("go on with: sweep local {}{place}", args.file.again()));
    }
    result
}

async fn drive(
    cx: &Context,
    engine: &mut Engine<'_>,
    interrupts: &mut Interrupts,
    file: &SweepFile,
    spec: &SweepSpec,
    args: &LocalArgs,
) -> Result<Outcome> {
    let connection = engine.connection();
    let sweep = submit::submit(cx, connection, file, spec, args.max_tasks).await?.sweep;
    if !cx.output.is_json() {
        cx.output.line(&sweep)?;
    }
    let request = pb::GetSweepRequest { sweep: sweep.clone() };
    let mut last = connection.sweeps().get(request).await?.into_inner();
    if !ended(&last) {
        match engine.follow(&sweep, interrupts).await? {
            End::Ended(status) => last = *status,
            End::Interrupted => return Ok(Outcome::Interrupted),
        }
    }
    finish(cx, engine, &last).await
}

/// Results and figures of a sweep that has ended.
async fn finish(cx: &Context, engine: &Engine<'_>, last: &pb::SweepStatus) -> Result<Outcome> {
    let connection = engine.connection();
    let sweep = &last.sweep;
    let outcome = status::outcome(last);
    let selection = Selection { last: Some(1), ..Default::default() };
    let curves = SeriesStream::open(connection, sweep, &selection).await?.curves().await?;
    let summary = results::summary(curves);
    for (heading, table) in summary.tables {
        cx.output.note(&format!("\n{heading}:"));
        cx.output.note_table(table);
    }
    let folder = engine.dir().join("plots").join(sweep);
    let files = match plot::default_figures(cx, connection, last, &folder).await {
        Ok(files) => files,
        Err(error) => {
            // The sweep itself is complete; its end decides the exit code.
            cx.output.warn("the figures could not be drawn");
            cx.output.error(&error);
            Vec::new()
        }
    };
    if !files.is_empty() {
        cx.output.note("\nfigures:");
        for path in &files {
            cx.output.note(&format!("  {}", path.display()));
        }
    }
    cx.output.note("");
    match outcome {
        Outcome::FailedTasks => {
            cx.output.warn("the sweep ended with failed tasks");
            cx.output.hint(&format!("sweep tasks {sweep} --state failed"));
            cx.output.hint(&format!("sweep retry {sweep}, then the same `sweep local` again"));
        }
        Outcome::Cancelled => {
            cx.output.warn("the sweep was cancelled");
            cx.output.hint(&format!("sweep retry {sweep}, then the same `sweep local` again"));
        }
        Outcome::Success | Outcome::Interrupted => {
            cx.output.hint(&format!(
                "more: sweep results {sweep} --metric NAME · sweep plot · sweep export · sweep artifacts list"
            ));
        }
    }
    if cx.output.is_json() {
        let paths: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        let state = state_word(last.state());
        let fields = json!({ "sweep": sweep, "state": state, "figures": paths });
        cx.output.json("sweep.local/v1", fields)?;
    }
    Ok(outcome)
}
