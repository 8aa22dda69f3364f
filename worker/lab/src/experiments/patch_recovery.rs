//! Which parts of a model carry the difference to another one of the same architecture?
//!
//! # What it measures
//! A receiver reads a text with parts of a donor put in; M is the mean log-probability of the tokens, and `recovery` of a patch
//! is `(M_patched - M_receiver) / (M_donor - M_receiver)` (D25). `into: second` makes the second model the receiver (the base of a
//! fine-tuned model), `first` the reverse. *Activations* of the donor: `resid_post`, `attn_out`, `mlp_out` by layer and part of the row
//! (`positions` equal parts), `z` by head, at all positions. *Weights* of the donor: `weights` by part (embedding, each layer's attention and MLP with
//! the norms that they read through, final norm and unembedding); `greedy`, recovery as parts are added, each time the one that helps most,
//! until `target` is reached; `n_parts` their number (NaN if it is never reached) and `parts.json` their order.
//! Identities: `nothing` is 0 and `everything` (all weights) 1 exactly; `resid_final`, the donor's last residual stream at all positions
//! read by the donor's final norm and unembedding, is 1 up to rounding. `gap` is `M_donor - M_receiver`.
//!
//! # Interpretation
//! 1: this part alone makes the receiver as good as the donor; parts may sum to more or less than 1. Where `gap` is small,
//! recovery is noise (NaN where it is 0). Few parts to 90 % say that the change is local.
//!
//! # Source
//! Problem 5.18 of the experiment list, D25; Prakash et al. 2024, arXiv 2402.14811 (cross-model activation patching).

use std::collections::BTreeMap;

use serde_json::json;
use sweep_lens::{Cache, Config, Hook, Hooks, Patch, Site, Tensor, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, metric},
    compare::{Couple, different},
    documents::{Batch, Documents, document_params},
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    experiments::activation_patching::Masked,
    params::ParamSet,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct PatchRecovery;

document_params! {
    /// Rows that are read at most.
    max_rows: u64 = 64, min = 1.0, max = 65536.0;
    /// Which model the other's parts are put into.
    into: String = "second".to_owned(), choices = ["first", "second"];
    /// Parts of a row that activations are patched in.
    positions: u64 = 4, min = 1.0, max = 1024.0;
    /// Recovery at which the greedy search ends.
    target: f64 = 0.9, min = 0.0, max = 1.0;
}

/// Sweeps over positions, with their metrics.
const STREAMS: [(&str, Site); 3] =
    [("resid_post", Site::ResidPost), ("attn_out", Site::AttnOut), ("mlp_out", Site::MlpOut)];

impl Experiment for PatchRecovery {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "patch-recovery",
        version: 1,
        summary: "Patches activations and weights of one model into another and measures what recovers",
        source: "Prakash et al. 2024, arXiv 2402.14811 (cross-model activation patching)",
        stage: Stage::Compare,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_vocabulary()?;
        couple.check_same_shapes()?;
        if couple.first.model.config() != couple.second.model.config() {
            return Err(different("their weights have equal shapes, their configurations differ"));
        }
        let pair = Pair::new(couple, &params)?;
        let config = couple.first.model.config();
        let cells = cells(config, params.positions as usize);
        let n_parts = pair.parts.len();
        // Passes over all rows: every cell, every part alone, the search, and the identities.
        let total = (cells.len() + n_parts + n_parts * (n_parts + 1) / 2 + 5) as u64;
        let mut work = Work { done: 0, total, cx };
        let receiver = pair.plain(pair.receiver, &mut work)?;
        let donor = pair.plain(pair.donor, &mut work)?;
        let recovery = |patched: f64| (patched - receiver) / (donor - receiver);
        let found: Vec<f64> = pair.cells(&cells, &mut work)?.into_iter().map(recovery).collect();
        let swapped = |names: &[usize], work: &mut Work<'_, '_>| -> Result<f64> {
            Ok(recovery(pair.plain(&pair.swapped(names)?, work)?))
        };
        let alone: Vec<f64> =
            (0..n_parts).map(|part| swapped(&[part], &mut work)).collect::<Result<_>>()?;
        let greedy = greedy(n_parts, params.target, |parts| swapped(parts, &mut work))?;
        let nothing = swapped(&[], &mut work)?;
        let all: Vec<usize> = (0..n_parts).collect();
        let everything = swapped(&all, &mut work)?;
        let last = recovery(pair.last_stream(&mut work)?);
        let Work { cx, .. } = work;
        cx.metric("gap", donor - receiver)?;
        emit_cells(config, &params, &found, cx)?;
        cx.metric("weights", Value::labelled(pair.names(&all), alone))?;
        let order: Vec<usize> = greedy.iter().map(|(part, _)| *part).collect();
        let curve: Vec<f64> = greedy.iter().map(|(_, recovery)| *recovery).collect();
        let is_reached = curve.last().is_some_and(|recovery| *recovery >= params.target);
        cx.metric("n_parts", if is_reached { curve.len() as f64 } else { f64::NAN })?;
        cx.json(
            "parts.json",
            &json!({ "order": pair.names(&order), "recovery": curve, "target": params.target }),
        )?;
        cx.metric("greedy", Value::vector(curve))?;
        cx.metric("nothing", nothing)?;
        cx.metric("everything", everything)?;
        cx.metric("resid_final", last)
    }
}

/// What has been done so far.
struct Work<'a, 'b> {
    done: u64,
    total: u64,
    cx: &'a mut Context<'b>,
}

impl Work<'_, '_> {
    fn step(&mut self) -> Result<()> {
        self.done += 1;
        self.cx.progress(self.done.min(self.total), self.total)
    }
}

/// A patch of activations.
#[derive(Debug, Clone, Copy)]
enum Cell {
    /// In one part of every row.
    Stream { hook: Hook, part: usize, n_parts: usize },
    /// One head, everywhere.
    Head { hook: Hook, head: i64 },
}

fn cells(config: &Config, n_parts: usize) -> Vec<Cell> {
    let known = config.hooks();
    let layers = || 0..config.n_layers as u32;
    let streams = STREAMS.into_iter().flat_map(|(_, site)| {
        let hooks = layers().map(move |layer| Hook::block(layer, site));
        hooks.flat_map(move |hook| {
            (0..n_parts).map(move |part| Cell::Stream { hook, part, n_parts })
        })
    });
    let heads = layers().flat_map(|layer| {
        (0..config.n_heads).map(move |head| Cell::Head { hook: Hook::block(layer, Site::Z), head })
    });
    streams.chain(heads).filter(|cell| known.contains(&cell.hook())).collect()
}

impl Cell {
    fn hook(self) -> Hook {
        match self {
            Self::Stream { hook, .. } | Self::Head { hook, .. } => hook,
        }
    }

    /// The donor's activation at this cell.
    fn patch(self, donor: &Cache, batch: &Batch) -> Box<dyn Hooks> {
        let with = donor[self.hook()].shallow_clone();
        match self {
            Self::Head { hook, head } => Box::new(Patch::new(hook, with).head(head)),
            Self::Stream { hook, part, n_parts } => {
                let width = batch.tokens.size()[1] as usize;
                let inside = batch.rows.iter().flat_map(|row| {
                    let length = row.len();
                    (0..width).map(move |place| place.min(length - 1) * n_parts / length == part)
                });
                let inside: Vec<bool> = inside.collect();
                let mask = Tensor::from_slice(&inside).view([-1, width as i64, 1]);
                Box::new(Masked { hook, with, mask: mask.to_device(batch.tokens.device()) })
            }
        }
    }
}

/// Both models and what they read.
struct Pair<'a> {
    donor: &'a Transformer,
    receiver: &'a Transformer,
    batches: Vec<Batch>,
    /// Names of parts and of their tensors.
    parts: Vec<(String, Vec<String>)>,
}

impl<'a> Pair<'a> {
    fn new(couple: &Couple<'a>, params: &Params) -> Result<Self> {
        let (donor, receiver) = match params.into.as_str() {
            "first" => (couple.second.model, couple.first.model),
            _ => (couple.first.model, couple.second.model),
        };
        let documents = Documents::new(&couple.first, &params.wanted())?;
        let mut batches: Vec<Batch> = Vec::new();
        documents.for_each(&couple.first, |batch| {
            let seen = batches.iter().map(|batch| batch.rows.len() as u64).sum();
            batches.extend(batch.first_rows(params.max_rows.saturating_sub(seen)));
            Ok(())
        })?;
        Ok(Self { donor, receiver, batches, parts: parts(receiver.weights()) })
    }

    fn names(&self, parts: &[usize]) -> Vec<String> {
        parts.iter().map(|&part| self.parts[part].0.clone()).collect()
    }

    /// Mean log-probability of the tokens.
    fn mean(
        &self,
        model: &Transformer,
        mut hooks: impl FnMut(&Batch) -> Box<dyn Hooks>,
    ) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0.0);
        for batch in &self.batches {
            for loss in batch.losses_with(model, hooks(batch).as_mut())?.into_iter().flatten() {
                sum -= loss;
                n += 1.0;
            }
        }
        if n == 0.0 {
            return Err(Error::params(
                "tokens",
                "expected a row of two or more tokens, found none",
            ));
        }
        Ok(sum / n)
    }

    fn plain(&self, model: &Transformer, work: &mut Work<'_, '_>) -> Result<f64> {
        work.step()?;
        self.mean(model, |_| Box::new(()))
    }

    /// Mean log-probability with each patch of activations: batch by batch, so that the donor runs once for each.
    fn cells(&self, cells: &[Cell], work: &mut Work<'_, '_>) -> Result<Vec<f64>> {
        let hooks: Vec<Hook> = cells.iter().map(|cell| cell.hook()).collect();
        let (mut sums, mut n) = (vec![0.0; cells.len()], 0.0);
        for (index, batch) in self.batches.iter().enumerate() {
            let mut cache = Cache::of(&hooks);
            let found = batch.losses_with(self.donor, &mut cache)?;
            n += found.iter().flatten().count() as f64;
            for (cell, sum) in cells.iter().zip(&mut sums) {
                let mut patch = cell.patch(&cache, batch);
                let losses = batch.losses_with(self.receiver, patch.as_mut())?;
                *sum -= losses.into_iter().flatten().sum::<f64>();
                if index == 0 {
                    work.step()?;
                } else {
                    work.cx.progress(work.done, work.total)?;
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / n).collect())
    }

    /// The receiver with some parts of the donor.
    fn swapped(&self, parts: &[usize]) -> Result<Transformer> {
        let mut weights = self.receiver.weights().shallow_clone();
        for name in parts.iter().flat_map(|&part| &self.parts[part].1) {
            weights.insert(name.as_str(), self.donor.weights().require(name)?.shallow_clone());
        }
        Ok(Transformer::new(self.receiver.config().clone(), weights)?)
    }

    /// The donor's last residual stream in the receiver, with the donor's readout.
    fn last_stream(&self, work: &mut Work<'_, '_>) -> Result<f64> {
        work.step()?;
        let readout = self.parts.iter().position(|(name, _)| name == READOUT);
        let model = self.swapped(&readout.into_iter().collect::<Vec<_>>())?;
        let last = Hook::block(model.config().n_layers as u32 - 1, Site::ResidPost);
        self.mean(&model, |batch| {
            let mut cache = Cache::of(&[last]);
            let _ = self.donor.forward(&batch.tokens, &sweep_lens::Run::FULL, &mut cache);
            Box::new(Patch::new(last, cache[last].shallow_clone()))
        })
    }
}

/// Final norm and unembedding.
const READOUT: &str = "unembed";

/// Tensors by the part that they belong to, in the order of the computation.
fn parts(weights: &Weights) -> Vec<(String, Vec<String>)> {
    let part = |name: &str| -> (i64, String) {
        let words: Vec<&str> = name.split('.').collect();
        match words.as_slice() {
            ["blocks", layer, rest @ ..] => {
                let index = layer.parse::<i64>().unwrap_or(0);
                let is_mlp =
                    rest.first().is_some_and(|word| *word == "mlp" || word.starts_with("ln2"));
                let kind = if is_mlp { "mlp" } else { "attn" };
                (1 + 2 * index + i64::from(is_mlp), format!("L{index}.{kind}"))
            }
            ["ln_final" | "unembed", ..] => (i64::MAX, READOUT.to_owned()),
            _ => (0, "embed".to_owned()),
        }
    };
    let mut found: BTreeMap<(i64, String), Vec<String>> = BTreeMap::new();
    for name in weights.names() {
        found.entry(part(name)).or_default().push(name.to_owned());
    }
    found.into_iter().map(|((_, part), names)| (part, names)).collect()
}

/// Adds parts, each time the one that recovers most, until `target` is reached or all are there.
fn greedy(
    n_parts: usize,
    target: f64,
    mut recovery: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<(usize, f64)>> {
    let mut chosen: Vec<(usize, f64)> = Vec::new();
    while chosen.len() < n_parts && chosen.last().is_none_or(|last| last.1 < target) {
        let mut best: Option<(usize, f64)> = None;
        for part in 0..n_parts {
            let taken: Vec<usize> = chosen.iter().map(|(part, _)| *part).collect();
            if taken.contains(&part) {
                continue;
            }
            let found = recovery(&[taken.as_slice(), &[part]].concat())?;
            if best.is_none_or(|(_, most)| found > most) {
                best = Some((part, found));
            }
        }
        // Nothing is larger than NaN: where the models do not differ, there is nothing to find.
        let Some(found) = best.filter(|(_, recovery)| recovery.is_finite()) else { break };
        chosen.push(found);
    }
    Ok(chosen)
}

fn emit_cells(config: &Config, params: &Params, found: &[f64], cx: &mut Context<'_>) -> Result<()> {
    let known = config.hooks();
    let (n_layers, n_parts) = (config.n_layers as usize, params.positions as usize);
    let labels: Vec<String> = (0..n_parts).map(|part| format!("{part}/{n_parts}")).collect();
    let mut first = 0;
    let mut take = |n: usize, is_there: bool| {
        let part = if is_there { found[first..first + n].to_vec() } else { vec![f64::NAN; n] };
        first += if is_there { n } else { 0 };
        part
    };
    for (name, site) in STREAMS {
        let data = take(n_layers * n_parts, known.contains(&Hook::block(0, site)));
        let labels = vec![None, Some(labels.clone())];
        cx.metric(name, Value::array(vec![n_layers, n_parts], data, labels))?;
    }
    let n_heads = config.n_heads as usize;
    let data = take(n_layers * n_heads, true);
    cx.metric("z", Value::array(vec![n_layers, n_heads], data, vec![None, None]))
}

const PLACES: &[Axis] = &[Axis::Layer, Axis::Position];

const METRICS: &[MetricDef] = &[
    metric("gap", Unit::Nats, &[], "Mean log-probability of the donor minus the receiver"),
    metric("resid_post", Unit::Ratio, PLACES, "Recovery by the residual stream behind a block"),
    metric("attn_out", Unit::Ratio, PLACES, "Recovery by what attention writes"),
    metric("mlp_out", Unit::Ratio, PLACES, "Recovery by what the MLP writes; NaN without one"),
    metric("z", Unit::Ratio, &[Axis::Layer, Axis::Head], "Recovery by a head's mixed values"),
    metric("weights", Unit::Ratio, &[Axis::Part], "Recovery by the weights of a part"),
    metric(
        "greedy",
        Unit::Ratio,
        &[Axis::Component],
        "Recovery by the best parts together, as they are added; `parts.json` names them",
    ),
    metric("n_parts", Unit::Count, &[], "Parts that reach the target; NaN if all do not"),
    metric("nothing", Unit::Ratio, &[], "Recovery without a patch: 0"),
    metric("everything", Unit::Ratio, &[], "Recovery by all weights: 1"),
    metric(
        "resid_final",
        Unit::Ratio,
        &[],
        "Recovery by the last residual stream with its readout: 1 up to rounding",
    ),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "weights",
        title: "Recovery by the weights of a part",
        kind: FigureKind::HeatMap,
        metrics: &["weights"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "greedy",
        title: "Recovery by the best parts together",
        kind: FigureKind::HeatMap,
        metrics: &["greedy"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "heads",
        title: "Recovery by heads' outputs",
        kind: FigureKind::HeatMap,
        metrics: &["z"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greedy_search_takes_the_best_of_what_is_left() {
        // Parts 1 and 3 work only together.
        let value = |parts: &[usize]| {
            let has = |part: usize| parts.contains(&part);
            let both = if has(1) && has(3) { 0.6 } else { 0.0 };
            Ok(both + if has(0) { 0.35 } else { 0.0 } + if has(2) { 0.05 } else { 0.0 })
        };
        let found = greedy(4, 0.9, value).unwrap();
        let order: Vec<usize> = found.iter().map(|(part, _)| *part).collect();
        assert_eq!(order, [0, 2, 1, 3]);
        assert!((found[3].1 - 1.0).abs() < 1e-12);
        assert_eq!(greedy(4, 0.3, value).unwrap().len(), 1);
        assert!(greedy(4, 0.9, |_| Ok(f64::NAN)).unwrap().is_empty());
    }
}
