//! `sweep tasks`: the tasks of a sweep, one row each.

use std::time::Duration;

use clap::Args;
use comfy_table::Cell;
use serde_json::{Value, json};
use sweep_proto::{id::Attempt, pb};

use super::{SweepArg, status, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
    format,
    table::{self, Align},
};

/// Tasks that are listed unless `--limit` says otherwise; a sweep may have millions.
const LIMIT: u64 = 10_000;

/// Arguments of `sweep tasks`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep tasks last --state failed")]
pub struct TasksArgs {
    #[command(flatten)]
    sweep: SweepArg,
    /// Only tasks in this state
    #[arg(long, value_parser = ["waiting", "ready", "running", "done", "failed", "skipped", "cancelled"])]
    state: Option<String>,
    /// Only tasks of this kind
    #[arg(long, value_parser = ["train", "analyse", "trajectory"])]
    kind: Option<String>,
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = LIMIT)]
    limit: u64,
}

pub(super) async fn run(cx: &Context, args: TasksArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let sweep = args.sweep.resolve(connection).await?.sweep;
        let request = pb::TasksRequest {
            sweep: sweep.clone(),
            state: args.state.clone().unwrap_or_default(),
            kind: args.kind.clone().unwrap_or_default(),
            // One more tells whether there are more.
            limit: args.limit.saturating_add(1),
        };
        let mut stream = connection.sweeps().tasks(request).await?.into_inner();
        let mut tasks = Vec::new();
        while let Some(task) = stream.message().await? {
            tasks.push(task);
        }
        let more = tasks.len() as u64 > args.limit;
        tasks.truncate(usize::try_from(args.limit).unwrap_or(usize::MAX));
        if cx.output.is_json() {
            let list: Vec<Value> = tasks.iter().map(to_json).collect();
            let document = json!({ "sweep": sweep, "tasks": list, "truncated": more });
            cx.output.json("sweep.tasks/v1", document)?;
            return Ok(Outcome::Success);
        }
        if tasks.is_empty() {
            cx.output.note("no such tasks");
            return Ok(Outcome::Success);
        }
        cx.output.table(to_table(&tasks))?;
        if more {
            cx.output
                .hint(&format!("there are more than {}: --limit N, --state, --kind", args.limit));
        }
        Ok(Outcome::Success)
    })
    .await
}

fn to_table(tasks: &[pb::TaskInfo]) -> comfy_table::Table {
    let failing = tasks.iter().any(|task| !task.failures.is_empty());
    let mut columns = vec![
        ("task", Align::Left),
        ("state", Align::Left),
        ("attempt", Align::Right),
        ("took", Align::Right),
    ];
    let mut workers: Vec<&str> = tasks.iter().map(|task| task.worker.as_str()).collect();
    workers.retain(|worker| !worker.is_empty());
    workers.sort_unstable();
    workers.dedup();
    // One worker for all says nothing.
    let with_worker = workers.len() > 1;
    if with_worker {
        columns.push(("worker", Align::Left));
    }
    if failing {
        columns.push(("last failure", Align::Left));
    }
    let mut table = table::new(&columns);
    for task in tasks {
        let took = match task.elapsed_ms {
            0 => String::new(),
            ms => format::duration(Duration::from_millis(ms)),
        };
        let attempt = match task.attempt {
            0 => String::new(),
            attempt => Attempt(attempt).to_string(),
        };
        let mut cells = vec![
            Cell::new(&task.label),
            table::state(&task.state),
            Cell::new(attempt),
            Cell::new(took),
        ];
        if with_worker {
            cells.push(Cell::new(&task.worker));
        }
        if failing {
            let (class, message) = status::failure_words(task.failures.last());
            let words =
                if class.is_empty() { String::new() } else { format!("{class}: {message}") };
            cells.push(Cell::new(words));
        }
        table.add_row(cells);
    }
    table
}

fn to_json(task: &pb::TaskInfo) -> Value {
    let failure = |failure: &pb::Failure| {
        let (class, message) = status::failure_words(Some(failure));
        json!({ "class": class, "message": message })
    };
    json!({
        "label": task.label,
        "model": task.model,
        "seed": task.seed,
        "experiment": task.experiment,
        "state": task.state,
        "attempt": (task.attempt > 0).then(|| Attempt(task.attempt).to_string()),
        "worker": task.worker,
        "elapsed_ms": task.elapsed_ms,
        "finished_at": format::timestamp(task.finished_at),
        "failures": task.failures.iter().map(failure).collect::<Vec<_>>(),
    })
}
