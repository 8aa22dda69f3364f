//! `sweep completions`: completion scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{
    app::App,
    context::Context,
    error::{Outcome, Result},
};

/// Arguments of `sweep completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sweep completions bash > ~/.local/share/bash-completion/completions/sweep"
)]
pub struct CompletionsArgs {
    /// Shell to complete for
    shell: Shell,
}

pub(super) fn run(cx: &Context, args: &CompletionsArgs) -> Result<Outcome> {
    // The generator panics when its writer fails; a buffer does not.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut App::command(), "sweep", &mut script);
    cx.output.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Outcome::Success)
}
