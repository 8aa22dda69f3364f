//! Time as the core sees it: an argument, never a clock.
//!
//! Deadlines (leases, backoff, long polls) are counted on a monotonic clock, so that a jump of the
//! wall clock can neither expire nor revive anything; the wall clock only dates what people read.

use std::time::Duration;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since an arbitrary start that never moves while the process lives.
    pub mono: Duration,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}
