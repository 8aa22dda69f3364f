//! What of a sweep can be leased now, and which of it next. Main type: [`Queue`].
//!
//! Order: checkpoints to analyse (oldest first, those preferred that the worker holds already),
//! pairs to compare (in the order of their first checkpoint, with the same preference), then trajectories, then trainings (resumed ones before new ones). New trainings are not listed:
//! a cursor walks the models that nothing has happened to. Every choice looks at a bounded number
//! of candidates.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sweep_proto::{
    id::{TaskKey, TaskKind},
    pb,
};

use super::{couples::CoupleKey, model::Cell, sweep::Sweep};

/// Ready checkpoints looked at for one that the worker holds.
const AFFINITY_WINDOW: usize = 64;
/// How often the oldest checkpoint may be passed over for one that is at hand.
const MAX_PASSED: u32 = 16;
/// Queue entries looked at for one that the worker can run at all.
const SCAN_LIMIT: usize = 4096;

/// Ready work of one sweep.
#[derive(Debug, Default)]
pub struct Queue {
    analyse: BTreeMap<u64, Waiting>,
    next_place: u64,
    /// Pairs with comparisons that wait.
    pub compare: BTreeSet<CoupleKey>,
    /// Trajectory tasks: model, index.
    pub trajectory: BTreeSet<(u32, u32)>,
    /// Models whose training was begun before and is open again.
    pub train: BTreeSet<u32>,
    /// Models from here on, unless materialised, have a training that was never begun.
    pub cursor: u32,
}

#[derive(Debug)]
struct Waiting {
    model: u32,
    step: u64,
    passed: u32,
    /// The worker that was told to fetch it, by number.
    announced: Option<u64>,
}

/// Why a worker should take a checkpoint, the best reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// It has the files, or the checkpoint was passed over often enough.
    AtHand,
    /// It was told to fetch them.
    Announced,
    Nobody,
    /// Another worker was told to fetch them.
    Another,
}

impl Queue {
    /// Adds a checkpoint at the end; returns its place.
    pub fn push_analysis(&mut self, model: u32, step: u64) -> u64 {
        let place = self.next_place;
        self.next_place += 1;
        self.analyse.insert(place, Waiting { model, step, passed: 0, announced: None });
        place
    }

    /// Removes a checkpoint.
    pub fn remove_analysis(&mut self, place: u64) {
        self.analyse.remove(&place);
    }

    /// Whether nothing is listed (new trainings are not listed).
    pub fn is_empty(&self) -> bool {
        self.analyse.is_empty()
            && self.compare.is_empty()
            && self.trajectory.is_empty()
            && self.train.is_empty()
    }

    /// Checkpoints in the queue, oldest first.
    pub fn checkpoints(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.analyse.values().map(|waiting| (waiting.model, waiting.step))
    }
}

impl Sweep {
    /// The analyses of the next checkpoint that a worker can run. `offered` tells by index which
    /// of the sweep's experiments it has, `resident` which checkpoint files. What was announced to
    /// another worker is left to that one while there is something else.
    pub fn next_analyses(
        &mut self,
        offered: &[bool],
        resident: &HashSet<String>,
        worker: u64,
    ) -> Option<Vec<TaskKey>> {
        if !offered.contains(&true) {
            return None;
        }
        let mut oldest: Option<u64> = None;
        let mut best: Option<(Claim, u64)> = None;
        let mut seen = 0;
        for (&place, waiting) in self.queue.analyse.iter().take(SCAN_LIMIT) {
            let Some(published) =
                self.models.get(&waiting.model).and_then(|m| m.published.get(&waiting.step))
            else {
                continue;
            };
            if !published.cells.iter().zip(offered).any(|(c, offered)| *offered && *c == Cell::Open)
            {
                continue;
            }
            let must = oldest.is_none() && waiting.passed >= MAX_PASSED;
            oldest = oldest.or(Some(place));
            let claim = match waiting.announced {
                _ if must || published.files().any(|file| resident.contains(&file.sha256)) => {
                    Claim::AtHand
                }
                Some(other) if other == worker => Claim::Announced,
                None => Claim::Nobody,
                Some(_) => Claim::Another,
            };
            best = best.into_iter().chain([(claim, place)]).min();
            seen += 1;
            if claim == Claim::AtHand || seen == AFFINITY_WINDOW {
                break;
            }
        }
        let (oldest, (_, chosen)) = (oldest?, best?);
        if chosen != oldest
            && let Some(passed) = self.queue.analyse.get_mut(&oldest)
        {
            passed.passed += 1;
        }
        let &Waiting { model, step, .. } = self.queue.analyse.get(&chosen)?;
        let cells = &self.models.get(&model)?.published.get(&step)?.cells;
        let open = cells.iter().zip(offered).enumerate();
        let open = open.filter(|(_, (cell, offered))| **offered && **cell == Cell::Open);
        let key = |experiment| TaskKey { model, kind: TaskKind::Analyse { step, experiment } };
        Some(open.map(|(index, _)| key(index as u32)).collect())
    }

    /// The checkpoint that `worker` should fetch while it computes: the first that nobody was told to.
    pub fn announce_next(&mut self, offered: &[bool], worker: u64) -> Option<pb::Checkpoint> {
        let waiting = self.queue.analyse.values_mut().take(AFFINITY_WINDOW);
        for waiting in waiting {
            let model = self.models.get(&waiting.model);
            let Some(published) = model.and_then(|model| model.published.get(&waiting.step)) else {
                continue;
            };
            let mut cells = published.cells.iter().zip(offered);
            let runs = cells.any(|(cell, offered)| *offered && *cell == Cell::Open);
            if runs && waiting.announced.is_none() {
                waiting.announced = Some(worker);
                return Some(published.checkpoint.clone());
            }
        }
        None
    }

    /// The comparisons of the next pair that a worker can run. `offered` tells by index which of the
    /// sweep's experiments on pairs it has, `resident` which checkpoint files.
    pub fn next_comparisons(
        &self,
        offered: &[bool],
        resident: &HashSet<String>,
    ) -> Option<Vec<TaskKey>> {
        if !offered.contains(&true) {
            return None;
        }
        let at_hand = |key: &CoupleKey| {
            let ends = [key.0, key.1].into_iter().filter(|at| {
                let model = self.models.get(&at.model);
                let published = model.and_then(|model| model.published.get(&at.step));
                published.is_some_and(|p| p.files().any(|file| resident.contains(&file.sha256)))
            });
            ends.count()
        };
        let open = |key: &CoupleKey| -> Vec<TaskKey> {
            let tasks = self.couples.get(key).into_iter().flat_map(|couple| couple.tasks(*key));
            let wanted = |task: &TaskKey| match task.kind {
                TaskKind::Compare { experiment, .. } => offered[experiment as usize],
                TaskKind::Source | TaskKind::Analyse { .. } | TaskKind::Trajectory { .. } => false,
            };
            tasks.filter(|(task, cell)| *cell == Cell::Open && wanted(task)).map(|t| t.0).collect()
        };
        let waiting = self.queue.compare.iter().take(SCAN_LIMIT);
        let runnable = waiting.map(|key| (key, open(key))).filter(|(_, tasks)| !tasks.is_empty());
        let mut best: Option<(usize, Vec<TaskKey>)> = None;
        for (key, tasks) in runnable.take(AFFINITY_WINDOW) {
            let score = at_hand(key);
            if best.as_ref().is_none_or(|(known, _)| score > *known) {
                best = Some((score, tasks));
            }
            if score == 2 || resident.is_empty() {
                break;
            }
        }
        best.map(|(_, tasks)| tasks)
    }

    /// The next trajectory task that a worker can run.
    pub fn next_trajectory(&self, offered: &[bool]) -> Option<TaskKey> {
        let offers = |index: u32| offered.get(index as usize).copied().unwrap_or(false);
        let found = self.queue.trajectory.iter().take(SCAN_LIMIT).find(|(_, i)| offers(*i));
        found.map(|&(model, index)| TaskKey { model, kind: TaskKind::Trajectory { index } })
    }

    /// The next trainings that can share a lease: seeds of one grid point at an equal step.
    /// `population` tells how many of them the worker takes, if it has the recipe of a model.
    pub fn next_trainings(
        &mut self,
        population: impl Fn(&Sweep, u32) -> Option<usize>,
    ) -> Option<Vec<u32>> {
        let mut returned = self.queue.train.iter().take(SCAN_LIMIT).copied();
        let first = match returned.find(|model| population(self, *model).is_some()) {
            Some(model) => model,
            None => self.next_new(&population)?,
        };
        let step = self.resume_step(first);
        let population = population(self, first)?;
        let siblings = self.plan.siblings(first);
        let listed = self.queue.train.range(siblings.clone()).take(SCAN_LIMIT).copied();
        let mut models: Vec<u32> = vec![first];
        models.extend(listed.filter(|m| *m != first && self.resume_step(*m) == step));
        models.truncate(population);
        if step.is_none() {
            // Seeds that were never begun lie behind the cursor.
            let new = siblings.start.max(self.queue.cursor)..siblings.end;
            for model in new.take(SCAN_LIMIT) {
                if models.len() == population {
                    break;
                }
                if model != first && !self.models.contains_key(&model) {
                    models.push(model);
                }
            }
        }
        models.sort_unstable();
        Some(models)
    }

    /// The first model from the cursor on whose training was never begun and that the worker has
    /// the recipe of.
    fn next_new(&mut self, population: &impl Fn(&Sweep, u32) -> Option<usize>) -> Option<u32> {
        while self.queue.cursor < self.plan.n_models()
            && self.models.contains_key(&self.queue.cursor)
        {
            self.queue.cursor += 1;
        }
        let mut candidate = self.queue.cursor;
        for _ in 0..SCAN_LIMIT {
            if candidate >= self.plan.n_models() {
                return None;
            }
            if self.models.contains_key(&candidate) {
                candidate += 1;
            } else if population(self, candidate).is_some() {
                return Some(candidate);
            } else {
                // No model of this entry will do; go to the next entry.
                candidate = self.plan.next_entry(candidate);
            }
        }
        None
    }

    fn resume_step(&self, model: u32) -> Option<u64> {
        self.models.get(&model).and_then(super::model::Model::resume_step)
    }
}
