//! How long it will take: from the speeds that were seen here, since clocks of other machines are
//! never compared with ours.

use std::{collections::HashMap, time::Duration};

use sweep_proto::pb;

/// Speeds of running tasks.
#[derive(Debug, Default)]
pub(super) struct Estimator {
    tasks: HashMap<(String, u64), Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: (Duration, u64),
    last: (Duration, u64),
    total: u64,
}

impl Seen {
    /// Work per second.
    fn speed(&self) -> Option<f64> {
        let seconds = self.last.0.saturating_sub(self.first.0).as_secs_f64();
        let work = self.last.1.saturating_sub(self.first.1);
        (seconds > 0.5 && work > 0).then(|| work as f64 / seconds)
    }

    fn remaining(&self) -> Option<Duration> {
        let left = self.total.saturating_sub(self.last.1) as f64;
        Some(seconds(left / self.speed()?))
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Estimator {
    /// Notes where running tasks are; `now` is time since the display began.
    pub(super) fn observe(&mut self, now: Duration, running: &[pb::RunningTask]) {
        let key = |task: &pb::RunningTask| (task.label.clone(), task.attempt);
        self.tasks.retain(|known, _| running.iter().any(|task| key(task) == *known));
        for task in running {
            let here = (now, task.progress);
            let seen = self.tasks.entry(key(task)).or_insert(Seen {
                first: here,
                last: here,
                total: task.progress_total,
            });
            if task.progress > seen.last.1 {
                // The first report of a resumed task is no work of this attempt.
                if seen.last.1 == 0 {
                    seen.first = here;
                }
                seen.last = here;
            }
            seen.total = task.progress_total;
        }
    }

    /// Time left for each running task whose speed is known.
    pub(super) fn remaining(&self) -> HashMap<String, Duration> {
        let left = |(key, seen): (&(String, u64), &Seen)| Some((key.0.clone(), seen.remaining()?));
        self.tasks.iter().filter_map(left).collect()
    }

    /// Time left for the sweep. Analyses follow the trainings that feed them, so trainings decide
    /// while there are any; afterwards the rate of finished tasks does.
    pub(super) fn eta(&self, status: &pb::SweepStatus) -> Option<Duration> {
        let train = status.train.unwrap_or_default();
        let total = status.total.unwrap_or_default();
        if train.running > 0 {
            let trainings =
                || self.tasks.iter().filter(|((label, _), _)| label.ends_with("/train"));
            let longest = trainings().filter_map(|(_, seen)| seen.remaining()).max()?;
            let whole = trainings()
                .filter_map(|(_, seen)| Some(seen.total as f64 / seen.speed()?))
                .fold(0.0, f64::max);
            let rounds = train.waiting.div_ceil(train.running.max(1));
            return longest.checked_add(seconds(whole * rounds as f64));
        }
        let left = total.waiting + total.running;
        (status.rate > 0.0 && left > 0).then(|| seconds(left as f64 / status.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(label: &str, progress: u64) -> pb::RunningTask {
        pb::RunningTask {
            label: label.into(),
            attempt: 1,
            progress,
            progress_total: 1000,
            ..Default::default()
        }
    }

    #[test]
    fn a_training_is_extrapolated_from_what_was_seen() {
        let mut estimator = Estimator::default();
        // Resumed at 400: what was done before does not count as speed.
        estimator.observe(Duration::from_secs(9), &[task("m/train", 0)]);
        estimator.observe(Duration::from_secs(10), &[task("m/train", 400)]);
        assert_eq!(estimator.remaining().len(), 0);
        estimator.observe(Duration::from_secs(20), &[task("m/train", 600)]);
        assert_eq!(estimator.remaining()["m/train"], Duration::from_secs(20));
        let status = pb::SweepStatus {
            train: Some(pb::Counts { total: 3, running: 1, waiting: 2, ..Default::default() }),
            total: Some(pb::Counts { total: 30, running: 1, waiting: 29, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(estimator.eta(&status), Some(Duration::from_mins(2)));
        estimator.observe(Duration::from_secs(21), &[]);
        assert_eq!(estimator.remaining().len(), 0);
    }

    #[test]
    fn afterwards_the_rate_decides() {
        let status = pb::SweepStatus {
            total: Some(pb::Counts { total: 30, waiting: 10, done: 20, ..Default::default() }),
            rate: 2.0,
            ..Default::default()
        };
        assert_eq!(Estimator::default().eta(&status), Some(Duration::from_secs(5)));
        let stalled = pb::SweepStatus { rate: 0.0, ..status };
        assert_eq!(Estimator::default().eta(&stalled), None);
    }
}
