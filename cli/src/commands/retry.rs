//! `sweep retry`: makes failed, skipped and cancelled tasks runnable again.

use clap::Args;
use sweep_proto::pb::SweepState;

use super::{SweepArg, status, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
};

/// Arguments of `sweep retry`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep retry last && sweep watch last --until-done")]
pub struct RetryArgs {
    #[command(flatten)]
    sweep: SweepArg,
}

pub(super) async fn run(cx: &Context, args: RetryArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let current = connection.sweeps().retry(args.sweep.request()).await?.into_inner();
        status::show(cx, &current)?;
        if current.state() == SweepState::Running && current.workers == 0 {
            cx.output.hint("no worker is connected: `sweep local FILE`, or start a sweep-worker");
        }
        Ok(Outcome::Success)
    })
    .await
}
