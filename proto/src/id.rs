//! Identities as domain types: [`Attempt`], [`TaskKey`], [`FailureClass`], sweep ids.
//!
//! Wire messages are validated once, where they arrive (`TryFrom<pb::…>`); afterwards the types
//! cannot hold nonsense. The text forms (`m3/step100/e0`) are what artifact keys and logs use.

use std::fmt;

use crate::pb;

/// Why a wire message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A required field was absent.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field holds something that it must not.
    #[error("field `{field}` is invalid: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Fencing token of a lease: the coordinator's incarnation in the high 32 bits, a counter in the
/// low ones. A later grant always has a higher attempt, also across coordinator restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt(pub u64);

impl Attempt {
    /// The first attempt that `incarnation` may grant is `counter` 1.
    pub fn new(incarnation: u32, counter: u32) -> Self {
        Self(u64::from(incarnation) << 32 | u64::from(counter))
    }

    /// The coordinator start that granted this attempt.
    pub fn incarnation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// What kind of cell a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskKind {
    /// Training: produces the model's checkpoints.
    Source,
    /// One experiment on one checkpoint.
    Analyse {
        /// Step of the checkpoint.
        step: u64,
        /// Index into the sweep's `experiments`.
        experiment: u32,
    },
    /// One reduction over all checkpoints of a model, or over several models; then the task is
    /// counted with the first of them.
    Trajectory {
        /// Index into the sweep's `trajectory`.
        index: u32,
    },
    /// One experiment on a pair of checkpoints.
    Compare {
        /// Step of the first checkpoint.
        step: u64,
        /// Index into the sweep's `compare`.
        experiment: u32,
        /// Which of the pairs that begin with this checkpoint.
        pair: u32,
    },
}

/// One cell of one sweep. The order is model, then kind (as listed there), then step, then experiment, then pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey {
    /// Index of the model in the expanded model axis.
    pub model: u32,
    /// Which cell of that model.
    pub kind: TaskKind,
}

impl TaskKey {
    /// Wire form.
    pub fn to_pb(self, sweep: &str) -> pb::TaskKey {
        let kind = match self.kind {
            TaskKind::Source => pb::task_key::Kind::Source(pb::Source {}),
            TaskKind::Analyse { step, experiment } => {
                pb::task_key::Kind::Analyse(pb::AnalyseKey { step, experiment })
            }
            TaskKind::Trajectory { index } => {
                pb::task_key::Kind::Trajectory(pb::TrajectoryKey { trajectory: index })
            }
            TaskKind::Compare { step, experiment, pair } => {
                pb::task_key::Kind::Compare(pb::CompareKey { step, experiment, pair })
            }
        };
        pb::TaskKey { sweep: sweep.to_owned(), model: self.model, kind: Some(kind) }
    }

    /// Sweep id and key of a wire message.
    ///
    /// # Errors
    /// When the sweep or the kind is missing.
    pub fn from_pb(key: &pb::TaskKey) -> Result<(String, Self), ProtocolError> {
        if key.sweep.is_empty() {
            return Err(ProtocolError::Missing("task.sweep"));
        }
        let kind = match key.kind.as_ref().ok_or(ProtocolError::Missing("task.kind"))? {
            pb::task_key::Kind::Source(pb::Source {}) => TaskKind::Source,
            pb::task_key::Kind::Analyse(analyse) => {
                TaskKind::Analyse { step: analyse.step, experiment: analyse.experiment }
            }
            pb::task_key::Kind::Trajectory(trajectory) => {
                TaskKind::Trajectory { index: trajectory.trajectory }
            }
            pb::task_key::Kind::Compare(compare) => TaskKind::Compare {
                step: compare.step,
                experiment: compare.experiment,
                pair: compare.pair,
            },
        };
        Ok((key.sweep.clone(), Self { model: key.model, kind }))
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TaskKind::Source => write!(f, "m{}/train", self.model),
            TaskKind::Analyse { step, experiment } => {
                write!(f, "m{}/step{step}/e{experiment}", self.model)
            }
            TaskKind::Trajectory { index } => write!(f, "m{}/trajectory/t{index}", self.model),
            TaskKind::Compare { step, experiment, pair } => {
                write!(f, "m{}/step{step}/c{experiment}/p{pair}", self.model)
            }
        }
    }
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Where an artifact of a task lies below the artifact root. The attempt is part of the key, so
/// that a worker that lost its lease can never overwrite what the current one writes.
pub fn artifact_key(sweep: &str, task: TaskKey, attempt: Attempt, name: &str) -> String {
    format!("v1/{sweep}/{task}/{attempt}/{name}")
}

/// Why a task failed, by what the scheduler does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// Goes away by itself: network, object store. Retried with backoff.
    Transient,
    /// The worker was told to leave. Free of charge.
    Preempted,
    /// The worker vanished. Counted against the crash limit.
    WorkerLost,
    /// Retried, then given up.
    OutOfMemory,
    /// An input does not exist. Not retried by itself.
    InputMissing,
    /// Would fail again.
    Permanent,
    /// The device is broken: retried on another worker.
    Poisoned,
    /// Somebody asked for it.
    Cancelled,
}

impl FailureClass {
    /// Every class with its wire code and its word in tables and JSON.
    const TABLE: [(Self, pb::FailureClass, &'static str); 8] = [
        (Self::Transient, pb::FailureClass::Transient, "transient"),
        (Self::Preempted, pb::FailureClass::Preempted, "preempted"),
        (Self::WorkerLost, pb::FailureClass::WorkerLost, "worker-lost"),
        (Self::OutOfMemory, pb::FailureClass::OutOfMemory, "out-of-memory"),
        (Self::InputMissing, pb::FailureClass::InputMissing, "input-missing"),
        (Self::Permanent, pb::FailureClass::Permanent, "permanent"),
        (Self::Poisoned, pb::FailureClass::Poisoned, "poisoned"),
        (Self::Cancelled, pb::FailureClass::Cancelled, "cancelled"),
    ];

    /// The word that tables and JSON use.
    pub fn word(self) -> &'static str {
        Self::TABLE.iter().find(|row| row.0 == self).map_or("transient", |row| row.2)
    }

    /// Wire code.
    pub fn to_pb(self) -> pb::FailureClass {
        Self::TABLE
            .iter()
            .find(|row| row.0 == self)
            .map_or(pb::FailureClass::Transient, |row| row.1)
    }

    /// From a wire code; an unknown one (a newer peer) counts as transient, which is retried and
    /// limited.
    pub fn from_pb(code: i32) -> Self {
        Self::TABLE.iter().find(|row| row.1 as i32 == code).map_or(Self::Transient, |row| row.0)
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A failure with the class `class`, as it goes over the wire.
pub fn failure(class: FailureClass, message: impl Into<String>) -> pb::Failure {
    pb::Failure { class: class.to_pb() as i32, message: message.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = TaskKey> {
        let kind = prop_oneof![
            Just(TaskKind::Source),
            (any::<u64>(), any::<u32>())
                .prop_map(|(step, experiment)| TaskKind::Analyse { step, experiment }),
            any::<u32>().prop_map(|index| TaskKind::Trajectory { index }),
            (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(step, experiment, pair)| {
                TaskKind::Compare { step, experiment, pair }
            }),
        ];
        (any::<u32>(), kind).prop_map(|(model, kind)| TaskKey { model, kind })
    }

    proptest! {
        #[test]
        fn task_keys_survive_the_wire(key in any_key()) {
            prop_assert_eq!(TaskKey::from_pb(&key.to_pb("s")), Ok(("s".to_owned(), key)));
        }

        #[test]
        fn later_incarnations_have_higher_attempts(a in 0..u32::MAX, b: u32, c: u32) {
            prop_assert!(Attempt::new(a, b) < Attempt::new(a + 1, c));
            prop_assert_eq!(Attempt::new(a, b).incarnation(), a);
        }
    }

    #[test]
    fn failure_classes_survive_the_wire() {
        for (class, code, word) in FailureClass::TABLE {
            assert_eq!(FailureClass::from_pb(code as i32), class);
            assert_eq!(class.to_pb(), code);
            assert_eq!(class.word(), word);
        }
        assert_eq!(FailureClass::from_pb(99), FailureClass::Transient);
    }

    #[test]
    fn keys_without_kind_or_sweep_are_refused() {
        let missing = pb::TaskKey { sweep: "s".into(), model: 0, kind: None };
        assert_eq!(TaskKey::from_pb(&missing), Err(ProtocolError::Missing("task.kind")));
        let nameless = pb::TaskKey { sweep: String::new(), ..missing };
        assert_eq!(TaskKey::from_pb(&nameless), Err(ProtocolError::Missing("task.sweep")));
    }
}
