//! The one place that reads clocks. Everything else gets [`Now`] as an argument.
//!
//! The monotonic part does not count the time in which this process did not run (a suspended virtual
//! machine, a stopped process): nobody could renew a lease then, so none may expire for it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::core::time::Now;

/// The clock is read at least once a second; a gap longer than this means that nothing ran.
const LONGEST_GAP: Duration = Duration::from_secs(2);

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Both clocks, read now.
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    running: Mutex<RunningTime>,
}

/// Time in which the process ran.
#[derive(Debug, Default)]
struct RunningTime {
    last: Duration,
    stood_still: Duration,
}

impl RunningTime {
    /// The running time at `elapsed` since the start.
    fn at(&mut self, elapsed: Duration) -> Duration {
        let gap = elapsed.saturating_sub(self.last);
        if gap > LONGEST_GAP {
            tracing::warn!(gap_ms = gap.as_millis() as u64, "stood still; leases are extended");
            self.stood_still += gap;
        }
        self.last = self.last.max(elapsed);
        elapsed.saturating_sub(self.stood_still)
    }
}

impl SystemClock {
    /// A clock whose monotonic part starts now.
    pub fn start() -> Self {
        Self { start: Instant::now(), running: Mutex::default() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: the time handed out never runs backwards.
        let mono = running.at(self.start.elapsed());
        Now { mono, unix_ms: since_epoch.as_millis() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_nothing_ran_does_not_count() {
        let mut running = RunningTime::default();
        let mut at = |ms| running.at(Duration::from_millis(ms)).as_millis();
        assert_eq!([at(500), at(1500), at(61_500), at(62_000)], [500, 1500, 1500, 2000]);
    }
}
