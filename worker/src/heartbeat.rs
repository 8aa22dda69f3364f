//! Heartbeats, from a thread and runtime of their own: computation and uploads cannot starve them.

use std::{io, sync::Arc, thread};

use crate::session::Session;

/// Starts the heartbeat thread. It lives as long as the process.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(session: Arc<Session>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                if let Err(status) = session.heartbeat().await {
                    tracing::warn!(problem = status.message(), "heartbeat not answered");
                }
                let interval = session.registration().heartbeat;
                // A call for an early beat cuts the wait short; an unanswered one does not spin.
                let _ = tokio::time::timeout(interval, session.beat.notified()).await;
            }
        });
    })?;
    Ok(())
}
