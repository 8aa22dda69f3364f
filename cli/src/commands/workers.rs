//! `sweep workers`: who works for this coordinator.

use std::time::Duration;

use clap::Args;
use comfy_table::Cell;
use serde_json::{Value, json};
use sweep_proto::pb;

use super::with_connection;
use crate::{
    context::Context,
    error::{Outcome, Result},
    format,
    table::{self, Align},
};

/// Arguments of `sweep workers`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep workers --coordinator http://lab-vm:7077")]
pub struct WorkersArgs {}

pub(super) async fn run(cx: &Context, _args: WorkersArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let answer = connection.sweeps().workers(pb::WorkersRequest {}).await?.into_inner();
        if cx.output.is_json() {
            let list: Vec<Value> = answer.workers.iter().map(to_json).collect();
            cx.output.json("sweep.workers/v1", json!({ "workers": list }))?;
            return Ok(Outcome::Success);
        }
        if answer.workers.is_empty() {
            cx.output.note("no workers");
            return Ok(Outcome::Success);
        }
        let mut table = table::new(&[
            ("worker", Align::Left),
            ("name", Align::Left),
            ("device", Align::Left),
            ("state", Align::Left),
            ("busy", Align::Right),
            ("done", Align::Right),
            ("spool", Align::Right),
            ("seen", Align::Right),
            ("version", Align::Left),
        ]);
        for worker in &answer.workers {
            let seen = Duration::from_millis(worker.last_seen_ms_ago);
            table.add_row(vec![
                Cell::new(&worker.worker),
                Cell::new(&worker.name),
                Cell::new(&worker.device),
                table::state(&worker.state),
                Cell::new(format!("{}/{}", worker.busy, worker.slots)),
                Cell::new(format::count(worker.tasks_done)),
                Cell::new(format::bytes(worker.spool_bytes)),
                Cell::new(format!("{} ago", format::duration(seen))),
                Cell::new(&worker.code_version),
            ]);
        }
        cx.output.table(table)?;
        Ok(Outcome::Success)
    })
    .await
}

fn to_json(worker: &pb::WorkerInfo) -> Value {
    json!({
        "worker": worker.worker,
        "name": worker.name,
        "device": worker.device,
        "state": worker.state,
        "slots": worker.slots,
        "busy": worker.busy,
        "tasks_done": worker.tasks_done,
        "spool_bytes": worker.spool_bytes,
        "last_seen_ms_ago": worker.last_seen_ms_ago,
        "code_version": worker.code_version,
    })
}
