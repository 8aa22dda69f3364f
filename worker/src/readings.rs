//! How the checkpoints were read that a task's values are about: weight processing and `prepend_bos`.
//! Main type: [`Readings`].
//!
//! An analysis has one checkpoint, a comparison two, a reduction loads as many as it likes while it
//! runs; so readings are collected as checkpoints are loaded, and a value carries what is known when it is
//! emitted.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use sweep_proto::pb;

/// A set of readings; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Readings(Arc<Mutex<BTreeSet<(String, bool)>>>);

impl Readings {
    /// Adds that of one more checkpoint.
    pub fn add(&self, processing: &str, prepend_bos: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((processing.to_owned(), prepend_bos));
    }

    /// What goes with a value; none before the first checkpoint.
    pub fn to_pb(&self) -> Option<pb::Reading> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, first) = known.first()?;
        let processing: BTreeSet<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        Some(pb::Reading {
            processing: processing.into_iter().collect::<Vec<_>>().join(";"),
            prepend_bos: Some(*first).filter(|first| known.iter().all(|(_, other)| other == first)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_checkpoints_it_says_what_they_agree_on() {
        let readings = Readings::default();
        assert_eq!(readings.to_pb(), None);
        let sink = readings.clone();
        let says = |processing: &str, prepend_bos| {
            Some(pb::Reading { processing: processing.to_owned(), prepend_bos })
        };
        readings.add("raw", true);
        readings.add("raw", true);
        assert_eq!(sink.to_pb(), says("raw", Some(true)));
        readings.add("fold_ln", false);
        assert_eq!(sink.to_pb(), says("fold_ln;raw", None));
    }
}
