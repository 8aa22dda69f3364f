//! `sweep status`: counts by kind and state, what runs, what failed.

use std::time::Duration;

use clap::Args;
use comfy_table::{Cell, Table};
use serde_json::{Value, json};
use sweep_proto::{
    id::{Attempt, FailureClass},
    pb::{self, SweepState},
};

use super::{SweepArg, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
    format,
    progress::{source_word, state_word},
    table::{self, Align},
};

/// Arguments of `sweep status`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep status last --output json | jq .total.done")]
pub struct StatusArgs {
    #[command(flatten)]
    sweep: SweepArg,
}

pub(super) async fn run(cx: &Context, args: StatusArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let status = args.sweep.resolve(connection).await?;
        show(cx, &status)?;
        Ok(Outcome::Success)
    })
    .await
}

/// Prints a status as the result of a command.
pub(super) fn show(cx: &Context, status: &pb::SweepStatus) -> Result<()> {
    if cx.output.is_json() {
        return cx.output.json("sweep.status/v1", to_json(status));
    }
    let mut facts = vec![format!("submitted {}", format::short_time(status.submitted_at))];
    let running = status.state() == SweepState::Running;
    facts.push(format!(
        "{} {}",
        if running { "running for" } else { "took" },
        took(status, cx.now_ms())
    ));
    if running {
        facts.push(format::plural(u64::from(status.workers), "worker", "workers"));
        if status.rate > 0.0 {
            facts.push(format!("{:.1} tasks/s", status.rate));
        }
    }
    cx.output.line(&format!(
        "{}  {}\n{}\n",
        status.sweep,
        state_word(status.state()),
        facts.join(" · ")
    ))?;
    cx.output.table(counts_table(status))?;
    if !status.running.is_empty() {
        let mut table = table::new(&[
            ("running", Align::Left),
            ("progress", Align::Right),
            ("worker", Align::Left),
        ]);
        for task in &status.running {
            let progress = if task.progress_total > 0 {
                format!("{}/{}", task.progress, task.progress_total)
            } else {
                String::new()
            };
            table.add_row(vec![task.label.clone(), progress, task.worker.clone()]);
        }
        cx.output.line("")?;
        cx.output.table(table)?;
    }
    if !status.failures.is_empty() {
        let columns = [("failure", Align::Left), ("class", Align::Left), ("message", Align::Left)];
        let mut table = table::new(&columns);
        for failure in &status.failures {
            let (class, message) = failure_words(failure.failure.as_ref());
            let class =
                if failure.r#final { class.to_owned() } else { format!("{class}, tried again") };
            table.add_row(vec![failure.label.clone(), class, message.to_owned()]);
        }
        cx.output.line("")?;
        cx.output.table(table)?;
    }
    Ok(())
}

/// Class and message of a failure.
pub(super) fn failure_words(failure: Option<&pb::Failure>) -> (&'static str, &str) {
    failure.map_or(("", ""), |failure| {
        (FailureClass::from_pb(failure.class).word(), failure.message.as_str())
    })
}

/// Tasks by kind and state.
pub(super) fn counts_table(status: &pb::SweepStatus) -> Table {
    let mut table = table::new(&[
        ("tasks", Align::Left),
        ("all", Align::Right),
        ("done", Align::Right),
        ("running", Align::Right),
        ("waiting", Align::Right),
        ("failed", Align::Right),
        ("skipped", Align::Right),
        ("cancelled", Align::Right),
    ]);
    let rows = [
        (source_word(status), &status.train),
        ("analyse", &status.analyse),
        ("compare", &status.compare),
        ("trajectory", &status.trajectory),
        ("all", &status.total),
    ];
    for (kind, counts) in rows {
        let counts = counts.unwrap_or_default();
        if kind == "compare" && counts.total == 0 {
            continue;
        }
        let numbers = [
            counts.total,
            counts.done,
            counts.running,
            counts.waiting,
            counts.failed,
            counts.skipped,
            counts.cancelled,
        ];
        let cells = numbers.into_iter().map(|number| Cell::new(format::count(number)));
        table.add_row(std::iter::once(Cell::new(kind)).chain(cells));
    }
    table
}

/// Time from submission to the end, or to now.
pub(super) fn took(status: &pb::SweepStatus, now_ms: u64) -> String {
    let end = if status.ended_at > 0 { status.ended_at } else { now_ms };
    format::duration(Duration::from_millis(end.saturating_sub(status.submitted_at)))
}

fn counts_json(counts: Option<&pb::Counts>) -> Value {
    let counts = counts.copied().unwrap_or_default();
    json!({
        "total": counts.total,
        "done": counts.done,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "running": counts.running,
        "cancelled": counts.cancelled,
        "waiting": counts.waiting,
    })
}

/// The JSON form of a status.
pub(super) fn to_json(status: &pb::SweepStatus) -> Value {
    let running = |task: &pb::RunningTask| {
        json!({
            "label": task.label,
            "worker": task.worker,
            "attempt": Attempt(task.attempt).to_string(),
            "progress": task.progress,
            "progress_total": task.progress_total,
            "started_at": format::timestamp(task.started_at),
        })
    };
    let failed = |failure: &pb::TaskFailure| {
        let (class, message) = failure_words(failure.failure.as_ref());
        json!({
            "label": failure.label,
            "attempt": Attempt(failure.attempt).to_string(),
            "class": class,
            "message": message,
            "final": failure.r#final,
        })
    };
    json!({
        "sweep": status.sweep,
        "name": status.name,
        "state": state_word(status.state()),
        "total": counts_json(status.total.as_ref()),
        "train": counts_json(status.train.as_ref()),
        "analyse": counts_json(status.analyse.as_ref()),
        "compare": counts_json(status.compare.as_ref()),
        "trajectory": counts_json(status.trajectory.as_ref()),
        "submitted_at": format::timestamp(status.submitted_at),
        "ended_at": format::timestamp(status.ended_at),
        "workers": status.workers,
        "tasks_per_second": status.rate,
        "artifact_root": status.artifact_root,
        "running": status.running.iter().map(running).collect::<Vec<_>>(),
        "failures": status.failures.iter().map(failed).collect::<Vec<_>>(),
        "spec": serde_json::from_str::<Value>(&status.spec).unwrap_or(Value::Null),
    })
}

/// How a command that waited for the end of a sweep ends.
pub(super) fn outcome(status: &pb::SweepStatus) -> Outcome {
    match status.state() {
        SweepState::Failed => Outcome::FailedTasks,
        SweepState::Cancelled => Outcome::Cancelled,
        SweepState::Done | SweepState::Running | SweepState::Unspecified => Outcome::Success,
    }
}
