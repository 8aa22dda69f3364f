//! Lease timing: the inequalities that make "the worker is silent before anyone else starts" true.
//!
//! Durations only; clocks of different machines are never compared. The worker counts its deadline
//! from the moment it *sent* the last renewal that was answered, the coordinator from the moment
//! it *received* one, so the worker's deadline is always the earlier one.

use std::time::Duration;

/// How often leases are renewed and when they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTiming {
    heartbeat: Duration,
    ttl: Duration,
    grace: Duration,
}

/// Why a combination of durations cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTiming {
    /// Two lost heartbeats would already lose the lease.
    #[error("a lease must outlive three heartbeats: ttl {ttl:?}, heartbeat {heartbeat:?}")]
    TooShort {
        /// The lease's time to live.
        ttl: Duration,
        /// The heartbeat interval.
        heartbeat: Duration,
    },
    /// Nothing between the worker's silence and the next grant.
    #[error("the grace period must not be zero")]
    NoGrace,
    /// A heartbeat of zero would spin.
    #[error("the heartbeat interval must not be zero")]
    NoHeartbeat,
}

impl LeaseTiming {
    /// Checks `3 · heartbeat ≤ ttl` and that no duration is zero.
    ///
    /// # Errors
    /// [`InvalidTiming`] names the inequality that does not hold.
    pub fn new(heartbeat: Duration, ttl: Duration, grace: Duration) -> Result<Self, InvalidTiming> {
        if heartbeat.is_zero() {
            return Err(InvalidTiming::NoHeartbeat);
        }
        if heartbeat * 3 > ttl {
            return Err(InvalidTiming::TooShort { ttl, heartbeat });
        }
        if grace.is_zero() {
            return Err(InvalidTiming::NoGrace);
        }
        Ok(Self { heartbeat, ttl, grace })
    }

    /// The usual proportions for a time to live: six heartbeats per lease, a sixth as grace.
    ///
    /// # Errors
    /// [`InvalidTiming`] when `ttl` is (nearly) zero.
    pub fn from_ttl(ttl: Duration) -> Result<Self, InvalidTiming> {
        Self::new(ttl / 6, ttl, ttl / 6)
    }

    /// Interval between renewals.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// The worker stops talking for a lease this long after the last answered renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The coordinator gives a lease away this long after the last renewal it received.
    pub fn expiry(&self) -> Duration {
        self.ttl + self.grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_worker_is_silent_before_the_lease_is_given_away() {
        for ttl in 1..100 {
            let timing = LeaseTiming::from_ttl(s(ttl)).unwrap();
            assert!(timing.ttl() < timing.expiry());
            assert!(timing.heartbeat() * 3 <= timing.ttl());
        }
    }

    #[test]
    fn impossible_timings_are_refused() {
        assert!(matches!(LeaseTiming::new(s(5), s(14), s(1)), Err(InvalidTiming::TooShort { .. })));
        assert_eq!(LeaseTiming::new(s(1), s(9), s(0)), Err(InvalidTiming::NoGrace));
        assert_eq!(LeaseTiming::new(s(0), s(9), s(1)), Err(InvalidTiming::NoHeartbeat));
    }
}
