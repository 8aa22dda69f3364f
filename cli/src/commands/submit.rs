//! `sweep submit`: checks a sweep file against the coordinator's catalogue and starts it. The id
//! alone goes to standard output.

use clap::Args;
use serde_json::json;
use sweep_proto::{pb, spec::SweepSpec};

use super::{plan, watch};
use crate::{
    connect::Connection,
    context::Context,
    error::{Outcome, Result},
    format, imports,
    problems::FileArgs,
    spec_file::SweepFile,
};

/// Arguments of `sweep submit`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  id=$(sweep submit grokking.yaml) && sweep watch \"$id\"\n  \
    sweep submit --problem 5.22 --setting full")]
pub struct SubmitArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Refuse a sweep with more tasks
    #[arg(long, value_name = "N")]
    max_tasks: Option<u64>,
    /// Follow it until its end
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(cx: &Context, args: SubmitArgs) -> Result<Outcome> {
    let file = args.file.read()?;
    let mut spec = file.decode()?;
    imports::list(cx, &file, &mut spec).await?;
    let connection = cx.connect().await?;
    let submitted = submit(cx, &connection, &file, &spec, args.max_tasks).await;
    let answer = match submitted {
        Ok(answer) => answer,
        Err(error) => {
            connection.close().await;
            return Err(error);
        }
    };
    if cx.output.is_json() {
        let plan = answer.plan.clone().unwrap_or_default();
        cx.output.json(
            "sweep.submit/v1",
            json!({
                "sweep": answer.sweep,
                "created": answer.created,
                "plan": plan::to_json(&plan),
            }),
        )?;
    } else {
        cx.output.line(&answer.sweep)?;
    }
    if args.watch {
        return watch::follow(cx, connection, &answer.sweep, true).await;
    }
    cx.output.hint(&format!("sweep watch {}", answer.sweep));
    connection.close().await;
    Ok(Outcome::Success)
}

/// Checks and submits; says on standard error what was begun.
pub(super) async fn submit(
    cx: &Context,
    connection: &Connection,
    file: &SweepFile,
    spec: &SweepSpec,
    max_tasks: Option<u64>,
) -> Result<pb::SubmitResponse> {
    let catalog = cx.catalog(connection).await?;
    file.check(spec, &catalog)?;
    plan::check_size(file, spec, &catalog, max_tasks)?;
    let request =
        pb::SubmitRequest { spec: spec.to_json().to_string(), max_tasks: max_tasks.unwrap_or(0) };
    let answer = connection.sweeps().submit(request).await?.into_inner();
    let plan = answer.plan.clone().unwrap_or_default();
    let total = plan.train + plan.analyse + plan.compare + plan.trajectory;
    let what = if answer.created {
        format!(
            "submitted {}: {} on {}",
            answer.sweep,
            format::plural(total, "task", "tasks"),
            format::plural(plan.models, "model", "models")
        )
    } else {
        format!("{} is there already: {} of {total} tasks are done", answer.sweep, plan.done)
    };
    cx.output.note(&what);
    Ok(answer)
}
