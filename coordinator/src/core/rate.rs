//! How many tasks finished lately. Main type: [`Rate`]: one bucket per second of the last minute.

use super::time::Now;

const BUCKETS: usize = 60;

/// Tasks finished per second over the last minute.
#[derive(Debug, Clone)]
pub struct Rate {
    buckets: [u32; BUCKETS],
    /// The second that was counted last.
    last: u64,
    /// The second that counting began in.
    first: Option<u64>,
}

impl Default for Rate {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], last: 0, first: None }
    }
}

impl Rate {
    /// Counts one finished task.
    pub fn count(&mut self, now: Now) {
        let second = now.mono.as_secs();
        let first = *self.first.get_or_insert(second);
        let idle = second.saturating_sub(self.last.max(first)).min(BUCKETS as u64);
        for back in 0..idle {
            self.buckets[((second - back) % BUCKETS as u64) as usize] = 0;
        }
        self.last = second;
        self.buckets[(second % BUCKETS as u64) as usize] += 1;
    }

    /// Tasks per second; over the time since the first one while that is less than a minute.
    pub fn per_second(&self, now: Now) -> f64 {
        let second = now.mono.as_secs();
        let Some(first) = self.first else { return 0.0 };
        let window = (second.saturating_sub(first) + 1).min(BUCKETS as u64);
        let oldest = (second + 1).saturating_sub(window);
        let seconds = oldest..=self.last;
        let sum: u64 =
            seconds.map(|at| u64::from(self.buckets[(at % BUCKETS as u64) as usize])).sum();
        sum as f64 / window as f64
    }
}
