//! The one place that reads clocks. Everything else gets [`Now`] as an argument.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::core::time::Now;

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Both clocks, read now.
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic part starts now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: self.start.elapsed(), unix_ms: since_epoch.as_millis() as u64 }
    }
}
