//! `sweep list`: all sweeps of a coordinator, newest first.

use clap::Args;
use serde_json::{Value, json};
use sweep_proto::pb;

use super::{status, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
    format,
    progress::state_word,
    table::{self, Align},
};

/// Arguments of `sweep list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep list --output json | jq -r '.sweeps[].sweep'")]
pub struct ListArgs {}

pub(super) async fn run(cx: &Context, _args: ListArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let answer = connection.sweeps().list(pb::ListSweepsRequest {}).await?.into_inner();
        let mut sweeps = answer.sweeps;
        sweeps.sort_by_key(|sweep| std::cmp::Reverse(sweep.submitted_at));
        if cx.output.is_json() {
            let list: Vec<Value> = sweeps.iter().map(status::to_json).collect();
            cx.output.json("sweep.list/v1", json!({ "sweeps": list }))?;
            return Ok(Outcome::Success);
        }
        if sweeps.is_empty() {
            cx.output.note("no sweeps yet");
            return Ok(Outcome::Success);
        }
        let mut table = table::new(&[
            ("sweep", Align::Left),
            ("state", Align::Left),
            ("done", Align::Right),
            ("failed", Align::Right),
            ("tasks", Align::Right),
            ("submitted (UTC)", Align::Left),
            ("took", Align::Right),
        ]);
        for sweep in &sweeps {
            let total = sweep.total.unwrap_or_default();
            table.add_row(vec![
                comfy_table::Cell::new(&sweep.sweep),
                table::state(state_word(sweep.state())),
                comfy_table::Cell::new(format::count(total.done)),
                comfy_table::Cell::new(format::count(total.failed + total.skipped)),
                comfy_table::Cell::new(format::count(total.total)),
                comfy_table::Cell::new(format::short_time(sweep.submitted_at)),
                comfy_table::Cell::new(status::took(sweep, cx.now_ms())),
            ]);
        }
        cx.output.table(table)?;
        Ok(Outcome::Success)
    })
    .await
}
