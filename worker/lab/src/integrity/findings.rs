//! From the series of the experiment `integrity` to findings about a trajectory.
//!
//! [`Table`] is those series by checkpoint, [`Findings`] what is wrong. A checkpoint that one finding
//! explains is left out of what is asked next, so that one defect is one finding: copies do not count as
//! misplaced, and what is misplaced does not count as a jump.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    compare::relative,
    copies::{TensorHistory, copied_tensors, duplicates},
    jumps::jumps,
    order::{Distances, Misplaced, misplaced},
    report::{Finding, Kind},
    schedule::Gap,
};
use crate::{
    error::Result,
    trajectory::{Series, TrajectoryInput},
    value::Value,
};

/// Embeddings whose norms are followed.
const EMBEDDINGS: [&str; 2] = ["embed.W_E", "unembed.W_U"];

/// The series of `integrity`, one entry per checkpoint in step order.
pub(crate) struct Table {
    /// Steps.
    pub steps: Vec<u64>,
    /// First 48 bits of the hash of the weights.
    pub fingerprints: Vec<f64>,
    /// NaN and infinite weights.
    pub n_nonfinite: Vec<f64>,
    /// Most frequent stored element type.
    pub dtypes: Vec<String>,
    /// Norm of all weights.
    norms: Vec<f64>,
    tensors: Vec<TensorHistory>,
    distances: Distances,
}

impl Table {
    /// What it is read from.
    pub(crate) const SERIES: [&'static str; 7] = [
        "integrity.fingerprint",
        "integrity.fingerprint_tensor",
        "integrity.n_nonfinite",
        "integrity.norm",
        "integrity.size",
        "integrity.elements",
        "integrity.sketch",
    ];

    /// Reads the series.
    ///
    /// # Errors
    /// When one of them has no points.
    pub(crate) fn read(input: &TrajectoryInput<'_>) -> Result<Self> {
        let [fingerprint, of_tensors, n_nonfinite, norm, size, elements, sketch] = Self::SERIES;
        let series = input.series(fingerprint)?;
        let steps: Vec<u64> = series.points.iter().map(|point| point.0).collect();
        let fingerprints = numbers(series, &steps);
        let n_nonfinite = numbers(input.series(n_nonfinite)?, &steps);
        let elements = by_step(input.series(elements)?);
        let dtypes = steps.iter().map(|step| elements.get(step).map_or(String::new(), |v| most(v)));
        let norms = by_step(input.series(norm)?);
        let total = |value: &&Value| value.data.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        let sketches = by_step(input.series(sketch)?);
        let length = sketches.values().map(|value| value.data.len()).max().unwrap_or(0);
        let unknown = vec![f64::NAN; length];
        let points: Vec<&[f64]> = steps
            .iter()
            .map(|step| sketches.get(step).filter(|value| value.data.len() == length))
            .map(|value| value.map_or(&*unknown, |value| &*value.data))
            .collect();
        Ok(Self {
            fingerprints,
            n_nonfinite,
            dtypes: dtypes.collect(),
            norms: steps.iter().map(|step| norms.get(step).map_or(f64::NAN, total)).collect(),
            tensors: histories(
                &steps,
                &by_step(input.series(of_tensors)?),
                &norms,
                &by_step(input.series(size)?),
            ),
            distances: Distances::new(&points),
            steps,
        })
    }

    /// Distance to the last checkpoint over its norm, and the cosine to it.
    pub(crate) fn against_last(&self) -> Vec<(f64, f64)> {
        let last = self.steps.len() - 1;
        let against = |index: usize| {
            let (distance, norm, other) =
                (self.distances.get(index, last), self.norms[index], self.norms[last]);
            let cosine = (norm * norm + other * other - distance * distance) / (2.0 * norm * other);
            (relative(distance, other), cosine)
        };
        (0..=last).map(against).collect()
    }

    /// Distance to the first checkpoint over its norm.
    pub(crate) fn distances_to_first(&self) -> Vec<f64> {
        let to_first = |index: usize| relative(self.distances.get(index, 0), self.norms[0]);
        (0..self.steps.len()).map(to_first).collect()
    }

    /// See [`Distances::turn`].
    pub(crate) fn turn(&self, index: usize) -> f64 {
        let order: Vec<usize> = (0..self.steps.len()).collect();
        self.distances.turn(&order, index)
    }

    fn steps_of(&self, indices: &[usize]) -> Vec<u64> {
        indices.iter().map(|&index| self.steps[index]).collect()
    }
}

fn by_step(series: &Series) -> BTreeMap<u64, &Value> {
    series.points.iter().map(|(step, value)| (*step, value)).collect()
}

fn numbers(series: &Series, steps: &[u64]) -> Vec<f64> {
    let points = by_step(series);
    let number = |step: &u64| points.get(step).and_then(|value| value.as_scalar());
    steps.iter().map(|step| number(step).unwrap_or(f64::NAN)).collect()
}

/// The label of the largest entry.
fn most(value: &Value) -> String {
    let largest = value.data.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.map_or(String::new(), |(index, _)| value.label(0, index))
}

type ByStep<'a> = BTreeMap<u64, &'a Value>;

/// Tensors by name, with a value for every step.
fn histories(
    steps: &[u64],
    fingerprints: &ByStep<'_>,
    norms: &ByStep<'_>,
    sizes: &ByStep<'_>,
) -> Vec<TensorHistory> {
    let mut tensors: BTreeMap<String, TensorHistory> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        let Some(value) = fingerprints.get(step) else { continue };
        let others = [norms, sizes].map(|others| others.get(step).map(|value| labelled(value)));
        for (place, &fingerprint) in value.data.iter().enumerate() {
            let name = value.label(0, place);
            let [norm, size] = others.each_ref().map(|other| {
                other.as_ref().and_then(|other| other.get(&name).copied()).unwrap_or(f64::NAN)
            });
            let tensor = tensors.entry(name.clone()).or_insert_with(|| TensorHistory {
                name,
                size,
                fingerprints: vec![f64::NAN; steps.len()],
                norms: vec![f64::NAN; steps.len()],
            });
            tensor.fingerprints[index] = fingerprint;
            tensor.norms[index] = norm;
        }
    }
    tensors.into_values().collect()
}

fn labelled(value: &Value) -> BTreeMap<String, f64> {
    value.data.iter().enumerate().map(|(index, &number)| (value.label(0, index), number)).collect()
}

/// Width of a number of this type.
fn bits(dtype: &str) -> f64 {
    let digits: String = dtype.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(f64::NAN)
}

/// What is wrong with a trajectory.
pub(crate) struct Findings {
    /// By kind, then step.
    pub list: Vec<Finding>,
    /// Of each checkpoint, the first one with equal weights, if it has twins.
    pub first_twin: Vec<Option<usize>>,
}

impl Findings {
    /// Everything but gaps, which [`Findings::add_gaps`] adds.
    pub(crate) fn of(table: &Table) -> Self {
        let mut found = Self { list: Vec::new(), first_twin: vec![None; table.steps.len()] };
        let mut explained: BTreeSet<usize> = found.non_finite(table);
        found.dtypes(table);
        explained.extend(found.copies(table));
        explained.extend(found.copied_tensors(table, &explained));
        explained.extend(found.order(table, &explained));
        found.embeddings(table, &explained);
        found.sort();
        found
    }

    /// Adds missing steps.
    pub(crate) fn add_gaps(&mut self, gaps: &[Gap]) {
        for Gap { after, before, missing } in gaps {
            let place = match (after, before) {
                (Some(after), Some(before)) => format!("between steps {after} and {before}"),
                (Some(after), None) => format!("after step {after}"),
                (None, _) => "before the first step".to_owned(),
            };
            self.add(Kind::Gap, missing.clone(), format!("missing {place}"));
        }
        self.sort();
    }

    fn add(&mut self, kind: Kind, steps: Vec<u64>, detail: String) {
        self.list.push(Finding { kind, steps, detail });
    }

    fn sort(&mut self) {
        self.list.sort_by(|a, b| (a.kind, &a.steps).cmp(&(b.kind, &b.steps)));
    }

    fn non_finite(&mut self, table: &Table) -> BTreeSet<usize> {
        let broken: Vec<usize> =
            (0..table.steps.len()).filter(|&index| table.n_nonfinite[index] > 0.0).collect();
        if !broken.is_empty() {
            let most = broken.iter().map(|&index| table.n_nonfinite[index]).fold(0.0, f64::max);
            let detail = format!("NaN or infinite weights, up to {most} of them");
            self.add(Kind::NonFinite, table.steps_of(&broken), detail);
        }
        broken.into_iter().collect()
    }

    /// Runs of checkpoints that are stored otherwise than most.
    fn dtypes(&mut self, table: &Table) {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for dtype in &table.dtypes {
            *counts.entry(dtype).or_default() += 1;
        }
        let Some(last) = table.dtypes.last() else { return };
        // Of equally many, the type at the end of training is the usual one.
        let usual = counts.iter().max_by_key(|(dtype, count)| (**count, **dtype == last));
        let Some((&usual, _)) = usual else { return };
        let mut runs: Vec<(&str, Vec<usize>)> = Vec::new();
        for (index, dtype) in table.dtypes.iter().enumerate() {
            match runs.last_mut() {
                Some((of, run)) if *of == dtype => run.push(index),
                Some(_) | None => runs.push((dtype, vec![index])),
            }
        }
        for (dtype, run) in runs.into_iter().filter(|(dtype, _)| *dtype != usual) {
            let name = |dtype: &str| {
                if dtype.is_empty() { "no numbers".to_owned() } else { dtype.to_owned() }
            };
            let detail = format!("stored as {}, most are {}", name(dtype), name(usual));
            self.add(Kind::DtypeChange, table.steps_of(&run), detail);
        }
    }

    /// Whole checkpoints with equal weights; returns those that are not in their own place.
    fn copies(&mut self, table: &Table) -> BTreeSet<usize> {
        let mut copies = BTreeSet::new();
        for group in duplicates(&table.fingerprints) {
            for &index in &group {
                self.first_twin[index] = Some(group[0]);
            }
            let own = own_place(&group, table);
            let detail = match own {
                Some(own) => format!("equal weights, those of step {}", table.steps[own]),
                None => "equal weights".to_owned(),
            };
            self.add(Kind::Duplicate, table.steps_of(&group), detail);
            let kept = own.unwrap_or(group[0]);
            copies.extend(group.into_iter().filter(|&index| index != kept));
        }
        copies
    }

    /// Checkpoints that share tensors across others; returns those that are not explained yet.
    fn copied_tensors(&mut self, table: &Table, explained: &BTreeSet<usize>) -> BTreeSet<usize> {
        let kept: Vec<usize> =
            (0..table.steps.len()).filter(|index| !explained.contains(index)).collect();
        let only_kept = |values: &[f64]| kept.iter().map(|&index| values[index]).collect();
        let tensors: Vec<TensorHistory> = table
            .tensors
            .iter()
            .map(|tensor| TensorHistory {
                fingerprints: only_kept(&tensor.fingerprints),
                norms: only_kept(&tensor.norms),
                ..tensor.clone()
            })
            .collect();
        let widths: Vec<f64> = kept.iter().map(|&index| bits(&table.dtypes[index])).collect();
        let mut involved = BTreeSet::new();
        for copied in copied_tensors(&tensors, &widths) {
            let pair = [kept[copied.pair.0], kept[copied.pair.1]];
            let detail = format!(
                "{} tensors are equal though they differ in between: {}",
                copied.tensors.len(),
                shortened(&copied.tensors)
            );
            self.add(Kind::CopiedTensors, table.steps_of(&pair), detail);
            involved.extend(pair);
        }
        involved
    }

    /// Checkpoints in the wrong place; returns them.
    fn order(&mut self, table: &Table, explained: &BTreeSet<usize>) -> BTreeSet<usize> {
        let kept: Vec<usize> = (0..table.steps.len())
            .filter(|index| {
                !explained.contains(index) && table.distances.get(*index, *index) == 0.0
            })
            .collect();
        let mut involved = BTreeSet::new();
        for wrong in misplaced(&table.distances.of(&kept)) {
            match wrong {
                Misplaced::Exchanged(a, b) => {
                    let pair = [kept[a], kept[b]];
                    let detail = "each fits in the other's place".to_owned();
                    self.add(Kind::Swap, table.steps_of(&pair), detail);
                    involved.extend(pair);
                }
                Misplaced::Stranger { index, near } => {
                    let near = table.steps[kept[near]];
                    let detail = format!("nearer to step {near} than to its neighbours");
                    self.add(Kind::Swap, table.steps_of(&[kept[index]]), detail);
                    involved.insert(kept[index]);
                }
            }
        }
        involved
    }

    /// Embeddings whose norm jumps, at checkpoints that nothing else explains.
    fn embeddings(&mut self, table: &Table, explained: &BTreeSet<usize>) {
        let kept: Vec<usize> =
            (0..table.steps.len()).filter(|index| !explained.contains(index)).collect();
        let mut seen: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in EMBEDDINGS {
            let Some(tensor) = table.tensors.iter().find(|tensor| tensor.name == name) else {
                continue;
            };
            let norms: Vec<f64> = kept.iter().map(|&index| tensor.norms[index]).collect();
            for jump in jumps(&norms) {
                let factor = jump.log_change.exp();
                let back = if jump.is_spike { " and comes back" } else { "" };
                let text = format!("norm of `{name}` changes by a factor of {factor:.3}{back}");
                seen.entry(kept[jump.index]).or_default().push(text);
            }
        }
        for (index, texts) in seen {
            self.add(Kind::EmbeddingNorm, table.steps_of(&[index]), texts.join("; "));
        }
    }
}

/// Of checkpoints with equal weights, the one whose neighbours are by far the nearest, if there is one.
fn own_place(group: &[usize], table: &Table) -> Option<usize> {
    let is_other = |index: &usize| !group.contains(index) && table.n_nonfinite[*index] == 0.0;
    let nearest = |&index: &usize| {
        let before = (0..index).rfind(is_other);
        let after = (index + 1..table.steps.len()).find(is_other);
        let distances = [before, after].into_iter().flatten();
        let distances = distances.map(|other| table.distances.get(index, other));
        distances.fold(f64::INFINITY, f64::min)
    };
    let mut places: Vec<(f64, usize)> =
        group.iter().map(|index| (nearest(index), *index)).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [(best, own), (second, _), ..] = places[..] else { return None };
    (best < 0.5 * second).then_some(own)
}

/// The first names of a list.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}
