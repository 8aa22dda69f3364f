//! Pairs of published checkpoints, with the comparisons that they are for. Main type: [`Couple`].
//!
//! A couple exists from the moment when both checkpoints are published; before that, its
//! comparisons are known to the plan alone. A comparison is *lost* when one of its checkpoints will
//! never be there: it counts as skipped.

use sweep_proto::{
    id::{TaskKey, TaskKind},
    spec::{CheckpointRef, Pair},
};

use super::{model::Cell, sweep::Sweep};

/// First and second checkpoint of comparisons.
pub type CoupleKey = (CheckpointRef, CheckpointRef);

/// The comparisons of two published checkpoints.
#[derive(Debug, Default)]
pub struct Couple {
    /// Experiment, index of the pair, and where it stands.
    pub cells: Vec<(u32, u32, Cell)>,
}

impl Couple {
    /// Where one of the comparisons stands.
    pub fn cell(&self, experiment: u32, pair: u32) -> Option<Cell> {
        let cell = self.cells.iter().find(|(e, p, _)| (*e, *p) == (experiment, pair));
        cell.map(|(_, _, cell)| *cell)
    }

    /// The same, to change it.
    pub fn cell_mut(&mut self, experiment: u32, pair: u32) -> Option<&mut Cell> {
        let cell = self.cells.iter_mut().find(|(e, p, _)| (*e, *p) == (experiment, pair));
        cell.map(|(_, _, cell)| cell)
    }

    /// Whether one of the comparisons waits for a lease.
    pub fn is_open(&self) -> bool {
        self.cells.iter().any(|(_, _, cell)| *cell == Cell::Open)
    }

    /// Whether nothing was leased yet.
    pub fn is_untouched(&self) -> bool {
        self.cells.iter().all(|(_, _, cell)| matches!(cell, Cell::Open | Cell::Delayed))
    }

    /// The comparisons of `key` that have cells.
    pub fn tasks(&self, key: CoupleKey) -> impl Iterator<Item = (TaskKey, Cell)> + '_ {
        let CheckpointRef { model, step } = key.0;
        self.cells.iter().map(move |&(experiment, pair, cell)| {
            (TaskKey { model, kind: TaskKind::Compare { step, experiment, pair } }, cell)
        })
    }
}

impl Sweep {
    /// The couple that a comparison belongs to.
    pub fn couple_key(&self, task: TaskKey) -> Option<CoupleKey> {
        let TaskKind::Compare { step, .. } = task.kind else { return None };
        Some((CheckpointRef { model: task.model, step }, self.plan.partner(task)?))
    }

    /// Whether a checkpoint is published.
    fn is_published(&self, at: CheckpointRef) -> bool {
        self.models.get(&at.model).is_some_and(|model| model.published.contains_key(&at.step))
    }

    /// Whether a checkpoint will never be there.
    pub fn is_missing(&self, at: CheckpointRef) -> bool {
        let model = self.models.get(&at.model);
        model.is_some_and(|model| {
            model.train.is_terminal() && !model.published.contains_key(&at.step)
        })
    }

    /// Whether one of two checkpoints will never be there.
    pub fn is_lost(&self, (first, second): CoupleKey) -> bool {
        self.is_missing(first) || self.is_missing(second)
    }

    /// Couples a checkpoint that was just published with those that are there; returns the couples
    /// that got a comparison.
    pub fn marry(&mut self, at: CheckpointRef) -> Vec<CoupleKey> {
        let mut found: Vec<(u32, Pair)> = Vec::new();
        let within =
            |range| self.models.range::<u32, std::ops::Range<u32>>(range).map(|m| *m.0).collect();
        for (experiment, pairing) in (0u32..).zip(self.plan.pairings()) {
            pairing.touching(self.plan.models(), at, &within, &mut |pair| {
                let other = if pair.first == at { pair.second } else { pair.first };
                if self.is_published(other) {
                    found.push((experiment, pair));
                }
            });
        }
        let keys = found.iter().map(|(_, pair)| (pair.first, pair.second)).collect();
        for (experiment, pair) in found {
            let couple = self.couples.entry((pair.first, pair.second)).or_default();
            if couple.cell(experiment, pair.index).is_none() {
                couple.cells.push((experiment, pair.index, Cell::Open));
            }
        }
        keys
    }

    /// Whether no comparison with this checkpoint was leased yet.
    pub fn is_uncompared(&self, at: CheckpointRef) -> bool {
        let within =
            |range| self.models.range::<u32, std::ops::Range<u32>>(range).map(|m| *m.0).collect();
        let mut untouched = true;
        for pairing in self.plan.pairings() {
            pairing.touching(self.plan.models(), at, &within, &mut |pair| {
                let couple = self.couples.get(&(pair.first, pair.second));
                untouched &= couple.is_none_or(Couple::is_untouched);
            });
        }
        untouched
    }

    /// How many comparisons are lost with the checkpoints that a model did not publish. Each counts
    /// once: `before` tells whether a checkpoint of another model was missing already.
    pub fn lost_with(&self, model: u32, before: impl Fn(&Self, CheckpointRef) -> bool) -> u64 {
        if self.plan.pairings().is_empty() {
            return 0;
        }
        let within = |range: std::ops::Range<u32>| range.collect();
        let mut lost = 0;
        for &step in self.plan.steps(model) {
            let at = CheckpointRef { model, step };
            if self.is_published(at) {
                continue;
            }
            for pairing in self.plan.pairings() {
                pairing.touching(self.plan.models(), at, &within, &mut |pair| {
                    let other = if pair.first == at { pair.second } else { pair.first };
                    let counted = if other.model == model {
                        // Both sides are of this model: the first one counts.
                        pair.first != at && !self.is_published(pair.first)
                    } else {
                        before(self, other)
                    };
                    lost += u64::from(!counted);
                });
            }
        }
        lost
    }

    /// The same for a sweep at rest: of two missing checkpoints of different models, the first one of
    /// the pair counts.
    pub fn lost_at_rest(&self) -> u64 {
        let ended = self.models.iter().filter(|(_, model)| model.train.is_terminal());
        let lost = ended.map(|(&model, _)| {
            // Asked from the lower model, which is visited first.
            self.lost_with(model, |sweep, other| other.model < model && sweep.is_missing(other))
        });
        lost.sum()
    }
}
