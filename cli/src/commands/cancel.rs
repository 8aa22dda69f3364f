//! `sweep cancel`: stops what runs and what waits; finished results stay.

use clap::Args;

use super::{SweepArg, status, with_connection};
use crate::{
    context::Context,
    error::{Outcome, Result},
};

/// Arguments of `sweep cancel`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sweep cancel grokking-1a2b\n\nWhat is done stays readable; \
    `sweep retry` makes the rest run again.")]
pub struct CancelArgs {
    #[command(flatten)]
    sweep: SweepArg,
}

pub(super) async fn run(cx: &Context, args: CancelArgs) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let current = connection.sweeps().cancel(args.sweep.request()).await?.into_inner();
        status::show(cx, &current)?;
        Ok(Outcome::Success)
    })
    .await
}
