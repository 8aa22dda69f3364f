//! How long something that fails is tried again. Main type: [`Patience`].
//!
//! Pauses double from a fifth of a second to fifteen seconds, spread by a quarter so that many
//! workers do not come back at the same moment. Progress renews the patience: a large file over a
//! bad line arrives as long as every try brings some of it.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use tokio::time::Instant;

/// First pause after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Time that may pass without progress.
#[derive(Debug)]
pub struct Patience {
    total: Duration,
    since: Instant,
    pause: Duration,
}

impl Patience {
    /// Full patience from now on.
    pub fn new(total: Duration) -> Self {
        Self { total, since: Instant::now(), pause: PAUSE }
    }

    /// Something arrived.
    pub fn renew(&mut self) {
        self.since = Instant::now();
        self.pause = PAUSE;
    }

    /// Pauses before the next try, at least for as long as the other side `asked`. Returns false
    /// without a pause when that would be longer than the patience lasts.
    pub async fn wait(&mut self, asked: Option<Duration>) -> bool {
        let pause = spread(self.pause).max(asked.unwrap_or(Duration::ZERO));
        if self.since.elapsed() + pause > self.total {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

/// `pause`, up to a quarter longer or shorter.
fn spread(pause: Duration) -> Duration {
    // The keys of a `RandomState` are random; that is all the randomness that is needed here.
    let random = RandomState::new().build_hasher().finish();
    pause * 3 / 4 + pause / 2 * (random % 1000) as u32 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_around_their_length() {
        let pauses: Vec<Duration> = (0..200).map(|_| spread(Duration::from_secs(4))).collect();
        assert!(pauses.iter().all(|p| (3000..=5000).contains(&p.as_millis())));
        assert!(pauses.iter().min() != pauses.iter().max());
    }

    #[tokio::test]
    async fn it_ends_unless_there_is_progress() {
        let mut patience = Patience::new(Duration::from_millis(400));
        assert!(patience.wait(None).await);
        assert!(!patience.wait(Some(Duration::from_mins(1))).await, "asked for too much");
        patience.renew();
        assert!(patience.wait(None).await);
        assert!(!patience.wait(None).await, "the second pause is at least 300 ms");
    }
}
