//! Orderly ends: signals, orphanhood, and a tracker of everything that runs in the background.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

/// How long open calls and streams may take to end.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Cancels `token` at SIGTERM, SIGINT or, if asked for, at the end of standard input.
///
/// # Errors
/// When signal handlers cannot be installed.
pub fn listen(
    tracker: &TaskTracker,
    token: &CancellationToken,
    exit_when_orphaned: bool,
) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = token.clone();
    tracker.spawn(async move {
        let reason = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = end_of_stdin(), if exit_when_orphaned => "end of standard input",
            () = stop.cancelled() => return,
        };
        info!(reason, "stopping");
        stop.cancel();
    });
    Ok(())
}

async fn end_of_stdin() {
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 256];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Waits for everything tracked, but not for ever.
pub async fn drain(tracker: &TaskTracker) {
    tracker.close();
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        warn!(open = tracker.len(), "gave up waiting for open calls");
    }
}
