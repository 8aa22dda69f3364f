//! `sweep logs`: what workers said about the tasks of a sweep.

use clap::Args;
use serde_json::{Value, json};
use sweep_proto::{id::Attempt, pb};

use super::{SweepArg, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
    format,
};

/// Arguments of `sweep logs`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep logs last seed0/train")]
pub struct LogsArgs {
    #[command(flatten)]
    sweep: SweepArg,
    /// Task label or a part of it
    #[arg(value_name = "TASK")]
    task: Option<String>,
}

pub(super) async fn run(cx: &Context, args: LogsArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let sweep = args.sweep.resolve(connection).await?.sweep;
        let task = args.task.clone().unwrap_or_default();
        let request = pb::LogsRequest { sweep: sweep.clone(), task };
        let mut stream = connection.sweeps().logs(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(line) = stream.message().await? {
            if cx.output.is_json() {
                lines.push(to_json(&line));
                continue;
            }
            cx.output.line(&format!(
                "{} {:<5} {} {}",
                format::short_time(line.time),
                line.level,
                line.label,
                line.text
            ))?;
        }
        if cx.output.is_json() {
            cx.output.json("sweep.logs/v1", json!({ "sweep": sweep, "lines": lines }))?;
        }
        Ok(Outcome::Success)
    })
    .await
}

fn to_json(line: &pb::LogLine) -> Value {
    json!({
        "time": format::timestamp(line.time),
        "level": line.level,
        "task": line.label,
        "attempt": Attempt(line.attempt).to_string(),
        "worker": line.worker,
        "text": line.text,
    })
}
