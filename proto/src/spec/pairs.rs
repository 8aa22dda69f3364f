//! Pairs of checkpoints: what a `compare:` entry of a sweep file selects. Main types:
//! [`PairSelection`] (as written), [`Pairing`] (resolved against the sweep's models), [`Pair`].
//!
//! Pairs are never listed: a pairing computes from a first checkpoint and a small index which second
//! one is meant, and from any checkpoint which pairs it takes part in. Each pair has one first and
//! one second checkpoint, so that no two indices mean the same comparison.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use serde_json::{Map, Value, json};

use super::{Models, Segment};
use crate::catalog::did_you_mean;

/// Pairs that may be listed one by one.
pub(super) const MAX_LISTED: usize = 10_000;

/// Models whose names are offered as corrections.
const MAX_HINTS: u32 = 1_000;

/// Which pairs of checkpoints, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairSelection {
    /// Every unordered pair of seeds of one grid point.
    Seeds(At),
    /// Every unordered pair of models.
    Models(At),
    /// Every two checkpoints of one model, the later one first.
    Steps,
    /// Each checkpoint with the one before it.
    Consecutive,
    /// Each checkpoint with the first one of its model, or with the last one of the model `base`.
    ToBase {
        /// Label of another model.
        base: Option<String>,
        /// Which checkpoints are compared with the base.
        at: At,
    },
    /// Each checkpoint with the last one of its model.
    ToFinal,
    /// These.
    Listed(Vec<[Endpoint; 2]>, At),
}

/// At which steps models are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// At the last checkpoint of each.
    Final,
    /// At every checkpoint.
    All,
}

/// One side of a listed pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Label of a model.
    pub model: String,
    /// Step of its checkpoint, if one was given.
    pub step: Option<u64>,
}

/// A checkpoint of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointRef {
    /// Index of the model.
    pub model: u32,
    /// Step.
    pub step: u64,
}

/// Two checkpoints to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// What results are filed under.
    pub first: CheckpointRef,
    /// What it is compared with.
    pub second: CheckpointRef,
    /// Which of the pairs that begin with `first`.
    pub index: u32,
}

/// Something wrong with a selection: path below the experiment's parameters, message, hint.
pub type PairProblem = (Vec<Segment>, String, Option<String>);

/// A selection of pairs, resolved.
#[derive(Debug)]
pub struct Pairing {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Seeds(At),
    Models(At),
    Steps,
    Consecutive,
    ToFirst(At),
    ToBase(CheckpointRef, At),
    ToFinal,
    Listed(Listed),
}

/// A listed pair: second model, and both steps or none for every common step.
type ListedPair = (u32, Option<(u64, u64)>);

/// Listed pairs, by either side.
#[derive(Debug, Default)]
struct Listed {
    /// First model → its pairs.
    by_first: BTreeMap<u32, Vec<ListedPair>>,
    /// Model → first model and index there.
    by_second: BTreeMap<u32, Vec<(u32, u32)>>,
}

impl At {
    /// The word in a sweep file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::All => "all",
        }
    }

    fn picks(self, steps: &[u64], step: u64) -> bool {
        self == Self::All || steps.last() == Some(&step)
    }
}

impl PairSelection {
    /// The keys that select pairs; no experiment on pairs has parameters of these names.
    pub const KEYS: [&'static str; 3] = ["pairs", "at", "base"];

    /// The words that `pairs` takes.
    pub const WORDS: [&'static str; 6] =
        ["seeds", "models", "steps", "consecutive", "to-base", "to-final"];

    /// Whether each checkpoint is compared with one other at most, so that the results of a model are
    /// a series over its steps.
    pub fn is_series(&self) -> bool {
        matches!(self, Self::Consecutive | Self::ToBase { .. } | Self::ToFinal)
    }

    /// Adds the keys to an experiment's parameters.
    pub(super) fn add_to(&self, params: &mut Map<String, Value>) {
        let endpoint = |end: &Endpoint| match end.step {
            Some(step) => format!("{}@{step}", end.model),
            None => end.model.clone(),
        };
        let (pairs, at) = match self {
            Self::Seeds(at) => (json!("seeds"), Some(*at)),
            Self::Models(at) => (json!("models"), Some(*at)),
            Self::Steps => (json!("steps"), None),
            Self::Consecutive => (json!("consecutive"), None),
            Self::ToBase { at, .. } => (json!("to-base"), Some(*at)),
            Self::ToFinal => (json!("to-final"), None),
            Self::Listed(pairs, at) => {
                let pair = |[a, b]: &[Endpoint; 2]| json!([endpoint(a), endpoint(b)]);
                (pairs.iter().map(pair).collect(), Some(*at))
            }
        };
        params.insert("pairs".to_owned(), pairs);
        if let Some(at) = at {
            params.insert("at".to_owned(), json!(at.word()));
        }
        if let Self::ToBase { base: Some(base), .. } = self {
            params.insert("base".to_owned(), json!(base));
        }
    }

    /// Finds the models and steps that are named.
    ///
    /// # Errors
    /// Unknown models or steps, step grids that do not fit each other, or no pair at all.
    pub fn resolve(&self, models: &Models) -> Result<Pairing, Vec<PairProblem>> {
        let key = |key: &str| vec![Segment::Key(key.to_owned())];
        let kind = match self {
            Self::Seeds(at) => Kind::Seeds(*at),
            Self::Models(at) => {
                if *at == At::All
                    && let Some(message) = different_grids(models)
                {
                    let hint = "compare at: final, or select equal `checkpoints`".to_owned();
                    return Err(vec![(key("at"), message, Some(hint))]);
                }
                Kind::Models(*at)
            }
            Self::Steps => Kind::Steps,
            Self::Consecutive => Kind::Consecutive,
            Self::ToBase { base: None, at } => Kind::ToFirst(*at),
            Self::ToBase { base: Some(base), at } => {
                let found = find(models, [base.as_str()]);
                let Some(&model) = found.get(base.as_str()) else {
                    return Err(vec![unknown_model(models, key("base"), base)]);
                };
                let step = models.steps(model).last().copied().unwrap_or_default();
                Kind::ToBase(CheckpointRef { model, step }, *at)
            }
            Self::ToFinal => Kind::ToFinal,
            Self::Listed(pairs, at) => Kind::Listed(listed(models, pairs, *at)?),
        };
        let pairing = Pairing { kind };
        if pairing.count(models) > 0 {
            return Ok(pairing);
        }
        let message = match self {
            Self::Seeds(_) => "`pairs: seeds` makes no pairs: no entry of `models` has two seeds",
            Self::Models(_) => "`pairs: models` makes no pairs: the sweep has a single model",
            Self::ToBase { base: Some(_), .. } => {
                "`pairs: to-base` makes no pairs: the sweep has no model besides the base"
            }
            Self::Steps | Self::Consecutive | Self::ToBase { base: None, .. } | Self::ToFinal => {
                "no pairs: every model of the sweep has a single checkpoint"
            }
            Self::Listed(..) => "no pairs: the models have no step in common",
        };
        Err(vec![(key("pairs"), message.to_owned(), None)])
    }
}

impl Pairing {
    /// Number of pairs.
    pub fn count(&self, models: &Models) -> u64 {
        let two_of = |n: u64| n.saturating_mul(n.saturating_sub(1)) / 2;
        let entries = models.entries().iter();
        let sum = |of: &dyn Fn(&super::Entry) -> u64| {
            models.entries().iter().fold(0u64, |n, entry| n.saturating_add(of(entry)))
        };
        match &self.kind {
            Kind::Seeds(at) => sum(&|entry| {
                let pairs = two_of(entry.seeds().len() as u64);
                entry.sum_over_points(|steps| at.of(steps)).saturating_mul(pairs)
            }),
            Kind::Models(At::Final) => two_of(u64::from(models.len())),
            Kind::Models(At::All) => {
                let steps = entries.clone().next().and_then(super::Entry::schedule_of_all);
                let steps = steps.map_or(0, <[u64]>::len) as u64;
                two_of(u64::from(models.len())).saturating_mul(steps)
            }
            Kind::Steps => sum(&|entry| {
                let seeds = entry.seeds().len() as u64;
                entry.sum_over_points(two_of).saturating_mul(seeds)
            }),
            Kind::ToFirst(At::Final) => sum(&|entry| {
                let seeds = entry.seeds().len() as u64;
                entry.sum_over_points(|steps| u64::from(steps > 1)).saturating_mul(seeds)
            }),
            Kind::Consecutive | Kind::ToFirst(At::All) | Kind::ToFinal => sum(&|entry| {
                let seeds = entry.seeds().len() as u64;
                entry.sum_over_points(|steps| steps.saturating_sub(1)).saturating_mul(seeds)
            }),
            Kind::ToBase(base, at) => {
                let all = sum(&|entry| {
                    let seeds = entry.seeds().len() as u64;
                    entry.sum_over_points(|steps| at.of(steps)).saturating_mul(seeds)
                });
                all.saturating_sub(at.of(models.steps(base.model).len() as u64))
            }
            Kind::Listed(listed) => listed.count(models),
        }
    }

    /// How many pairs begin with one checkpoint of `model` at most.
    pub fn indices(&self, models: &Models, model: u32) -> u32 {
        match &self.kind {
            Kind::Seeds(_) => models.siblings(model).end.saturating_sub(model + 1),
            Kind::Models(_) => models.len().saturating_sub(model + 1),
            Kind::Steps => models.steps(model).len().saturating_sub(1) as u32,
            Kind::Consecutive | Kind::ToFirst(_) | Kind::ToBase(..) | Kind::ToFinal => 1,
            Kind::Listed(listed) => listed.by_first.get(&model).map_or(0, |l| l.len() as u32),
        }
    }

    /// The second checkpoint of a pair; none where there is no such pair.
    pub fn second(
        &self,
        models: &Models,
        first: CheckpointRef,
        index: u32,
    ) -> Option<CheckpointRef> {
        let CheckpointRef { model, step } = first;
        let steps = models.steps(model);
        let place = steps.binary_search(&step).ok()?;
        let last = |model: u32| {
            let step = models.steps(model).last().copied()?;
            Some(CheckpointRef { model, step })
        };
        if index >= self.indices(models, model) {
            return None;
        }
        match &self.kind {
            Kind::Seeds(at) | Kind::Models(at) => {
                let other = model + 1 + index;
                match at {
                    At::Final => last(other).filter(|_| place + 1 == steps.len()),
                    At::All => Some(CheckpointRef { model: other, step }),
                }
            }
            Kind::Steps => {
                let earlier = (index as usize) < place;
                earlier.then(|| CheckpointRef { model, step: steps[index as usize] })
            }
            Kind::Consecutive => Some(CheckpointRef { model, step: steps[place.checked_sub(1)?] }),
            Kind::ToFirst(at) => (place > 0 && at.picks(steps, step))
                .then(|| CheckpointRef { model, step: steps[0] }),
            Kind::ToBase(base, at) => {
                (model != base.model && at.picks(steps, step)).then_some(*base)
            }
            Kind::ToFinal => last(model).filter(|final_| final_.step != step),
            Kind::Listed(listed) => {
                let (other, exact) = *listed.by_first.get(&model)?.get(index as usize)?;
                match exact {
                    Some((here, there)) => {
                        (here == step).then_some(CheckpointRef { model: other, step: there })
                    }
                    None => Some(CheckpointRef { model: other, step }),
                }
            }
        }
    }

    /// Calls `visit` once for every pair that a checkpoint takes part in. Where it meets many models,
    /// only those are looked at that `within` gives of a range.
    pub fn touching(
        &self,
        models: &Models,
        at: CheckpointRef,
        within: &dyn Fn(Range<u32>) -> Vec<u32>,
        visit: &mut dyn FnMut(Pair),
    ) {
        let mut as_first = |first: CheckpointRef, index: u32, wanted: Option<CheckpointRef>| {
            let second = self.second(models, first, index);
            if let Some(second) = second.filter(|second| wanted.is_none_or(|w| w == *second)) {
                visit(Pair { first, second, index });
            }
        };
        match &self.kind {
            Kind::Seeds(_) | Kind::Models(_) => {
                let range = match &self.kind {
                    Kind::Seeds(_) => models.siblings(at.model),
                    _ => 0..models.len(),
                };
                for other in within(range) {
                    if other > at.model {
                        as_first(at, other - at.model - 1, None);
                    } else if other < at.model {
                        let first = match &self.kind {
                            Kind::Seeds(At::Final) | Kind::Models(At::Final) => {
                                let step = models.steps(other).last().copied();
                                CheckpointRef { model: other, step: step.unwrap_or_default() }
                            }
                            _ => CheckpointRef { model: other, step: at.step },
                        };
                        as_first(first, at.model - other - 1, Some(at));
                    }
                }
            }
            Kind::Steps => {
                let steps = models.steps(at.model);
                let Ok(place) = steps.binary_search(&at.step) else { return };
                for index in 0..place {
                    as_first(at, index as u32, None);
                }
                for &step in &steps[place + 1..] {
                    let later = CheckpointRef { model: at.model, step };
                    as_first(later, place as u32, Some(at));
                }
            }
            Kind::Consecutive | Kind::ToFirst(_) | Kind::ToFinal => {
                as_first(at, 0, None);
                let steps = models.steps(at.model);
                let Ok(place) = steps.binary_search(&at.step) else { return };
                let others = match &self.kind {
                    Kind::Consecutive => steps.get(place + 1..).unwrap_or_default().iter().take(1),
                    Kind::ToFirst(_) if place == 0 => steps.iter().take(steps.len()),
                    Kind::ToFinal if place + 1 == steps.len() => steps.iter().take(steps.len()),
                    _ => steps.iter().take(0),
                };
                for &step in others {
                    as_first(CheckpointRef { model: at.model, step }, 0, Some(at));
                }
            }
            Kind::ToBase(base, _) if base.model == at.model => {
                if *base != at {
                    return;
                }
                let others = within(0..models.len()).into_iter();
                for model in others.filter(|model| *model != base.model) {
                    for &step in models.steps(model) {
                        as_first(CheckpointRef { model, step }, 0, None);
                    }
                }
            }
            Kind::ToBase(..) => as_first(at, 0, None),
            Kind::Listed(listed) => {
                for index in 0..self.indices(models, at.model) {
                    as_first(at, index, None);
                }
                for &(model, index) in listed.by_second.get(&at.model).into_iter().flatten() {
                    let exact = listed.by_first.get(&model).and_then(|l| l.get(index as usize));
                    let step = match exact {
                        Some((_, Some((here, _)))) => *here,
                        _ => at.step,
                    };
                    let first = CheckpointRef { model, step };
                    // A pair of one checkpoint with itself was visited as its first side.
                    if first != at {
                        as_first(first, index, Some(at));
                    }
                }
            }
        }
    }
}

impl At {
    /// How many of a model's checkpoints are meant.
    fn of(self, checkpoints: u64) -> u64 {
        match self {
            Self::Final => checkpoints.min(1),
            Self::All => checkpoints,
        }
    }
}

impl Listed {
    fn count(&self, models: &Models) -> u64 {
        let pairs =
            self.by_first.iter().flat_map(|(model, list)| list.iter().map(move |p| (model, p)));
        pairs.fold(0, |n: u64, (model, (_, exact))| {
            n.saturating_add(match exact {
                Some(_) => 1,
                None => models.steps(*model).len() as u64,
            })
        })
    }
}

/// Resolves listed pairs.
fn listed(models: &Models, pairs: &[[Endpoint; 2]], at: At) -> Result<Listed, Vec<PairProblem>> {
    let names = pairs.iter().flatten().map(|end| end.model.as_str());
    let found = find(models, names);
    let mut problems = Vec::new();
    let mut listed = Listed::default();
    for (index, pair) in pairs.iter().enumerate() {
        let path = |side: usize| {
            vec![Segment::Key("pairs".to_owned()), Segment::Index(index), Segment::Index(side)]
        };
        let mut resolved = Vec::new();
        for (side, end) in pair.iter().enumerate() {
            let Some(&model) = found.get(end.model.as_str()) else {
                problems.push(unknown_model(models, path(side), &end.model));
                continue;
            };
            let steps = models.steps(model);
            match end.step {
                Some(step) if steps.binary_search(&step).is_err() => {
                    problems.push(unknown_step(path(side), &end.model, step, steps));
                }
                step => resolved.push((model, step, steps)),
            }
        }
        let [(a, a_step, a_steps), (b, b_step, b_steps)] = resolved[..] else { continue };
        let last = |steps: &[u64]| steps.last().copied().unwrap_or_default();
        let exact = if at == At::All && a_step.is_none() && b_step.is_none() {
            if a_steps != b_steps {
                let message = different(&pair[0].model, a_steps, &pair[1].model, b_steps);
                problems.push((path(1), message, None));
                continue;
            }
            None
        } else {
            Some((a_step.unwrap_or(last(a_steps)), b_step.unwrap_or(last(b_steps))))
        };
        let list = listed.by_first.entry(a).or_default();
        if list.contains(&(b, exact)) {
            let mut path = path(0);
            path.pop();
            problems.push((path, "this pair is listed twice".to_owned(), None));
            continue;
        }
        listed.by_second.entry(b).or_default().push((a, list.len() as u32));
        list.push((b, exact));
    }
    if problems.is_empty() { Ok(listed) } else { Err(problems) }
}

/// Indices of the models with these labels; what has no model is missing.
fn find<'n>(models: &Models, names: impl IntoIterator<Item = &'n str>) -> HashMap<&'n str, u32> {
    let mut wanted: HashMap<&str, Option<u32>> =
        names.into_iter().map(|name| (name, None)).collect();
    let mut missing = wanted.len();
    for index in 0..models.len() {
        if missing == 0 {
            break;
        }
        if let Some(slot @ None) = wanted.get_mut(models.label(index).as_str()) {
            *slot = Some(index);
            missing -= 1;
        }
    }
    wanted.into_iter().filter_map(|(name, index)| Some((name, index?))).collect()
}

fn unknown_model(models: &Models, path: Vec<Segment>, name: &str) -> PairProblem {
    let labels: Vec<String> =
        (0..models.len().min(MAX_HINTS)).map(|index| models.label(index)).collect();
    let hint = did_you_mean(name, labels.iter().map(String::as_str)).unwrap_or_else(|| {
        let shown: Vec<&str> = labels.iter().take(10).map(String::as_str).collect();
        let more = if labels.len() > shown.len() { ", …" } else { "" };
        format!("the sweep's models are: {}{more}", shown.join(", "))
    });
    (path, format!("the sweep has no model `{name}`"), Some(hint))
}

fn unknown_step(path: Vec<Segment>, model: &str, step: u64, steps: &[u64]) -> PairProblem {
    let near = steps.iter().min_by_key(|other| other.abs_diff(step));
    let hint = near.map(|near| format!("the nearest one is {near}"));
    (path, format!("`{model}` has no checkpoint of step {step}"), hint)
}

/// Why the models of a sweep cannot be compared step by step.
fn different_grids(models: &Models) -> Option<String> {
    let mut first: Option<(u32, &[u64])> = None;
    for entry in models.entries() {
        let range = entry.models();
        let odd = match entry.schedule_of_all() {
            Some(_) => range.start,
            None => {
                range.clone().find(|model| models.steps(*model) != models.steps(range.start))?
            }
        };
        let known = *first.get_or_insert((range.start, models.steps(range.start)));
        if models.steps(odd) != known.1 {
            let (a, b) = (models.label(known.0), models.label(odd));
            return Some(different(&a, known.1, &b, models.steps(odd)));
        }
    }
    None
}

fn different(a: &str, a_steps: &[u64], b: &str, b_steps: &[u64]) -> String {
    let only = |these: &'_ [u64], those: &[u64]| {
        these.iter().copied().find(|step| those.binary_search(step).is_err())
    };
    let odd = only(a_steps, b_steps).map(|step| (step, b));
    let odd = odd.or_else(|| only(b_steps, a_steps).map(|step| (step, a)));
    let reason = odd.map(|(step, who)| format!(": `{who}` has no checkpoint of step {step}"));
    format!("`{a}` and `{b}` have different step grids{}", reason.unwrap_or_default())
}

#[cfg(test)]
mod tests;
