//! Activation patching: which activation of the clean prompt, put into the corrupt one, restores the answer.
//!
//! # What it measures
//! The corrupt prompt has the indirect object in place of the second subject, so that the answer changes (or three
//! other names with `corruption: abc`). `recovery` of a patch is the logit difference of the corrupt prompt with
//! one clean activation, minus the corrupt one, divided by clean minus corrupt, each averaged over prompts. Sweeps:
//! `resid_pre`, `attn_out` and `mlp_out` by layer and position, and of each head `z`, `q`, `k`, `v` and `pattern` at all
//! positions. Where all prompts have the same layout, positions are those of the tokens; otherwise they are
//! grouped by what stands there (`before`, `IO`, `S1`, `S1+1`, `S2`, `between`, `behind S2`, `END`). `resid_final` patches
//! the last residual stream everywhere: 1 by definition.
//!
//! # Interpretation
//! 1: this activation alone carries the answer; 0: it does not matter; negative: it works against it. In GPT-2
//! small the residual stream matters at S2 up to layer 7 and at the end from layer 8 on; 8.6, 8.10 and 7.9 matter by
//! their values, 5.5, 6.9 and 3.0 by their patterns. If clean and corrupt hardly differ (early checkpoints), recovery is
//! noise: look at `logit_diff_clean` and `logit_diff_corrupt` first.
//!
//! # Source
//! TransformerLens `patching.py` and its Exploratory Analysis demo; Wang et al. 2023, arXiv 2211.00593.

use std::collections::BTreeMap;

use sweep_lens::{Cache, Config, Device, Hook, Hooks, Patch, Site, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        batch::{Batch, Meter, in_batches, mean_over_rows},
        heads::{HEADS, flat},
        params::ioi_params,
        prompts::{IoiSet, Places},
    },
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct ActivationPatching;

/// Sweeps over positions, with their metrics.
const STREAMS: [(&str, Site); 3] =
    [("resid_pre", Site::ResidPre), ("attn_out", Site::AttnOut), ("mlp_out", Site::MlpOut)];
/// Sweeps over heads.
const HEAD_SITES: [(&str, Site); 5] =
    [("z", Site::Z), ("q", Site::Q), ("k", Site::K), ("v", Site::V), ("pattern", Site::Pattern)];

ioi_params! { 50, "mixed",
    /// What is different in the corrupt prompts: the second subject (flip) or all names (abc).
    corruption: String = "flip".to_owned(), choices = ["flip", "abc"];
    /// Which activations are swept; others are NaN.
    sweeps: Vec<String> = ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"].map(str::to_owned).to_vec(),
        choices = ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"];
}

impl Experiment for ActivationPatching {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "activation-patching",
        version: 1,
        summary: "Restores single activations of IOI prompts in corrupt ones, by layer, position and head",
        source: "TransformerLens patching.py; Wang et al. 2023, arXiv 2211.00593",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let set = IoiSet::new(subject, &params.prompts())?;
        if params.corruption == "abc" {
            set.need_others()?;
        }
        if params.sweeps.is_empty() {
            return Err(Error::params("sweeps", "expected at least one, found none"));
        }
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&subject, &set, &params, cx))))
    }
}

/// One cell of one sweep.
#[derive(Debug, Clone, Copy)]
enum Cell {
    /// An activation at a group of positions.
    Position { hook: Hook, group: usize },
    /// One head's activation at all positions.
    Head { hook: Hook, head: i64 },
    /// A whole activation.
    Whole { hook: Hook },
}

impl Cell {
    fn hook(self) -> Hook {
        match self {
            Self::Position { hook, .. } | Self::Head { hook, .. } | Self::Whole { hook } => hook,
        }
    }
}

fn measure(
    subject: &Subject<'_>,
    set: &IoiSet,
    params: &Params,
    cx: &mut Context<'_>,
) -> Result<()> {
    let config = subject.model.config();
    let meter = Meter::new(subject.model)?;
    let groups = Groups::of(set);
    let sweeps = sweeps(config, params, groups.names.len());
    let last = Hook::block(config.n_layers as u32 - 1, Site::ResidPost);
    let mut cells: Vec<Cell> = sweeps.iter().flat_map(|sweep| sweep.cells.clone()).collect();
    cells.push(Cell::Whole { hook: last });
    let hooks: Vec<Hook> = cells.iter().map(|cell| cell.hook()).collect();
    let n_prompts = set.prompts.len() as u64;
    let cached = cached_numbers(config, groups.longest);
    let batches = in_batches(set, subject, cached, |batch| {
        let corrupt =
            if params.corruption == "abc" { batch.abc.shallow_clone() } else { batch.flipped() };
        let mut clean = Cache::of(&hooks);
        let best = meter.logit_diff(batch, &batch.tokens, &mut clean);
        let worst = meter.logit_diff(batch, &corrupt, &mut ());
        let masks = groups.masks(set, batch, subject.device);
        let mut found = vec![best, worst];
        for &cell in &cells {
            cx.progress(batch.first as u64, n_prompts)?;
            let with = clean[cell.hook()].shallow_clone();
            let patched = match cell {
                Cell::Position { hook, group } => {
                    let mut patch = Masked { hook, with, mask: masks[group].shallow_clone() };
                    meter.logit_diff(batch, &corrupt, &mut patch)
                }
                Cell::Head { hook, head } => {
                    meter.logit_diff(batch, &corrupt, &mut Patch::new(hook, with).head(head))
                }
                Cell::Whole { hook } => {
                    meter.logit_diff(batch, &corrupt, &mut Patch::new(hook, with))
                }
            };
            found.push(patched);
        }
        Ok(Tensor::stack(&found, -1))
    })?;
    let found = flat(&mean_over_rows(&batches));
    let (clean, corrupt) = (found[0], found[1]);
    let recovery: Vec<f64> =
        found[2..].iter().map(|patched| (patched - corrupt) / (clean - corrupt)).collect();
    cx.progress(n_prompts, n_prompts)?;
    cx.metric("logit_diff_clean", clean)?;
    cx.metric("logit_diff_corrupt", corrupt)?;
    let mut first = 0;
    for sweep in &sweeps {
        let n_cells = sweep.cells.len();
        let data = if n_cells == 0 {
            vec![f64::NAN; sweep.shape.iter().product()]
        } else {
            recovery[first..first + n_cells].to_vec()
        };
        first += n_cells;
        let labels = sweep.is_by_position.then(|| groups.names.clone()).filter(|_| !groups.is_raw);
        cx.metric(sweep.metric, Value::array(sweep.shape.clone(), data, vec![None, labels]))?;
    }
    cx.metric("resid_final", recovery[recovery.len() - 1])
}

/// One metric and the cells that it consists of; none if it is not wanted or the model has no such activation.
struct Sweep {
    metric: &'static str,
    is_by_position: bool,
    shape: Vec<usize>,
    cells: Vec<Cell>,
}

fn sweeps(config: &Config, params: &Params, n_groups: usize) -> Vec<Sweep> {
    let known = config.hooks();
    let layers = 0..config.n_layers as u32;
    let is_wanted = |name: &str| params.sweeps.iter().any(|wanted| wanted == name);
    let of = |name, site, is_by_position: bool| {
        let width = match site {
            _ if is_by_position => n_groups,
            Site::K | Site::V => config.n_key_value_heads as usize,
            _ => config.n_heads as usize,
        };
        let hooks = layers.clone().map(|layer| Hook::block(layer, site));
        let hooks = hooks.filter(|hook| is_wanted(name) && known.contains(hook));
        let cell = |hook, index: usize| {
            if is_by_position {
                Cell::Position { hook, group: index }
            } else {
                Cell::Head { hook, head: index as i64 }
            }
        };
        let cells = hooks.flat_map(|hook| (0..width).map(move |index| cell(hook, index)));
        Sweep {
            metric: name,
            is_by_position,
            shape: vec![config.n_layers as usize, width],
            cells: cells.collect(),
        }
    };
    let streams = STREAMS.into_iter().map(|(name, site)| of(name, site, true));
    streams.chain(HEAD_SITES.into_iter().map(|(name, site)| of(name, site, false))).collect()
}

/// Numbers per prompt of the clean activations.
fn cached_numbers(config: &Config, pos: i64) -> i64 {
    let Config { n_layers, d_model, n_heads, d_head, .. } = *config;
    n_layers * pos * (4 * d_model + 4 * n_heads * d_head + n_heads * pos)
}

/// Groups of positions.
struct Groups {
    names: Vec<String>,
    /// Whether groups are single positions.
    is_raw: bool,
    longest: i64,
}

/// Groups of positions by what stands there.
const ROLES: [&str; 8] = ["before", "IO", "S1", "S1+1", "between", "S2", "behind S2", "END"];

impl Groups {
    fn of(set: &IoiSet) -> Self {
        let longest = set.prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        match set.common_places() {
            Some(places) => {
                let names = (0..=places.end).map(|position| position.to_string()).collect();
                Self { names, is_raw: true, longest: longest as i64 }
            }
            None => Self {
                names: ROLES.map(str::to_owned).to_vec(),
                is_raw: false,
                longest: longest as i64,
            },
        }
    }

    /// Which positions of a batch belong to each group, bool `[row, pos, 1]`. Every position of a prompt belongs to
    /// exactly one.
    fn masks(&self, set: &IoiSet, batch: &Batch, device: Device) -> Vec<Tensor> {
        let n_pos = batch.n_pos() as usize;
        let rows = &set.prompts[batch.first..batch.first + batch.n_rows() as usize];
        let groups: Vec<i64> = rows
            .iter()
            .flat_map(|prompt| (0..n_pos).map(|position| self.group(prompt.places, position)))
            .collect();
        let groups = Tensor::from_slice(&groups).view([-1, n_pos as i64, 1]).to_device(device);
        (0..self.names.len() as i64).map(|group| groups.eq(group)).collect()
    }

    fn group(&self, places: Places, position: usize) -> i64 {
        if self.is_raw {
            return position as i64;
        }
        let Places { io, s1, s2, end } = places;
        let roles = BTreeMap::from([(s1 + 1, 3), (end, 7), (s2, 5), (s1, 2), (io, 1)]);
        let default = match position {
            _ if position < io.min(s1) => 0,
            _ if position < s2 => 4,
            _ => 6,
        };
        roles.get(&position).copied().unwrap_or(default)
    }
}

/// Puts values in at some positions.
pub(crate) struct Masked {
    pub hook: Hook,
    pub with: Tensor,
    pub mask: Tensor,
}

impl Hooks for Masked {
    fn wants(&self, hook: Hook) -> bool {
        hook == self.hook
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        self.with.where_self(&self.mask, &activation).to_kind(activation.kind())
    }
}

const POSITIONS: &[Axis] = &[Axis::Layer, Axis::Position];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "logit_diff_clean",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit difference of the prompts",
    },
    MetricDef {
        name: "logit_diff_corrupt",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit difference of the corrupt prompts, for the same answers",
    },
    MetricDef {
        name: "resid_pre",
        unit: Unit::Ratio,
        axes: POSITIONS,
        doc: "Recovery by the residual stream in front of a block, at some positions",
    },
    MetricDef {
        name: "attn_out",
        unit: Unit::Ratio,
        axes: POSITIONS,
        doc: "Recovery by what attention writes",
    },
    MetricDef {
        name: "mlp_out",
        unit: Unit::Ratio,
        axes: POSITIONS,
        doc: "Recovery by what the MLP writes; NaN where there is none",
    },
    MetricDef {
        name: "z",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "Recovery by a head's mixed values",
    },
    MetricDef { name: "q", unit: Unit::Ratio, axes: HEADS, doc: "Recovery by a head's queries" },
    MetricDef {
        name: "k",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "Recovery by keys; one entry per key/value head",
    },
    MetricDef {
        name: "v",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "Recovery by values; one entry per key/value head",
    },
    MetricDef {
        name: "pattern",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "Recovery by a head's attention pattern",
    },
    MetricDef {
        name: "resid_final",
        unit: Unit::Ratio,
        axes: &[],
        doc: "Recovery by the whole residual stream behind the last block: 1 up to rounding",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "resid-pre",
        title: "Recovery by the residual stream",
        kind: FigureKind::HeatMap,
        metrics: &["resid_pre"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "heads",
        title: "Recovery by heads' outputs",
        kind: FigureKind::HeatMap,
        metrics: &["z"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "patterns",
        title: "Recovery by heads' patterns",
        kind: FigureKind::HeatMap,
        metrics: &["pattern"],
        log_x: true,
        log_y: false,
    },
];
