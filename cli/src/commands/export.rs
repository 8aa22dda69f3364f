//! `sweep export`: all metrics of a sweep in one tidy file.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::{SweepArg, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
    export::{ExportFormat, write_file},
    format,
    series::Selection,
};

/// Arguments of `sweep export`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep export last --format parquet --to grokking.parquet\n\n\
    Columns: sweep, model, seed, checkpoint, step, experiment, version, params, metric, unit,\n\
    one per axis (layer, head, frequency, …), value. Values are exact 64-bit numbers; in JSON\n\
    Lines, values that are no numbers are the strings \"NaN\", \"inf\" and \"-inf\".")]
pub struct ExportArgs {
    #[command(flatten)]
    sweep: SweepArg,
    /// File format
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// File to write; it appears when it is complete
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Only this metric; * stands for any characters
    #[arg(long, value_name = "PATTERN", default_value = "", hide_default_value = true)]
    metric: String,
    /// Only this model
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    model: String,
}

pub(super) async fn run(cx: &Context, args: ExportArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let sweep = args.sweep.resolve(connection).await?.sweep;
        let selection =
            Selection { metric: args.metric.clone(), model: args.model.clone(), last: None };
        let bar = progress_bar(cx);
        let mut progress = |rows: u64| {
            bar.set_position(rows);
            bar.set_message(format::plural(rows, "row", "rows"));
        };
        let written =
            write_file(connection, &sweep, &selection, args.format, &args.to, &mut progress).await;
        bar.finish_and_clear();
        let written = written?;
        let path = args.to.display().to_string();
        if cx.output.is_json() {
            let fields = json!({
                "sweep": sweep,
                "file": path,
                "rows": written.rows,
                "bytes": written.bytes,
            });
            cx.output.json("sweep.export/v1", fields)?;
        } else {
            cx.output.line(&path)?;
            cx.output.note(&format!(
                "{}, {}",
                format::plural(written.rows, "row", "rows"),
                format::bytes(written.bytes)
            ));
        }
        Ok(Outcome::Success)
    })
    .await
}

/// Nobody knows the number of rows beforehand: a spinner with the count.
fn progress_bar(cx: &Context) -> ProgressBar {
    if !cx.output.is_live() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {per_sec}  {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
