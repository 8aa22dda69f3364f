//! What is wrong with a trajectory: duplicates, swaps, gaps, changed element types, broken weights.
//!
//! # What it measures
//! From the series of `integrity`, without loading weights again. `flags` counts findings by kind, `n_flags` all:
//! - *duplicate*: steps with equal weights (bit for bit); where the distances to the neighbours say so, the step
//!   that the weights belong to is named;
//! - *copied-tensors*: tensors that come back bit for bit after they had changed, as when one shard of a
//!   checkpoint is another checkpoint's;
//! - *swap*: checkpoints that stand in each other's place, or are nearer to a distant step than to their neighbours;
//! - *gap*: steps that are missing from an otherwise regular schedule, or from `expected`;
//! - *dtype-change*: steps stored in another element type than most;
//! - *non-finite*: NaN or infinite weights;
//! - *embedding-norm*: an embedding or unembedding whose norm jumps.
//!
//! Per step: `flagged`, how many findings name it; `duplicate_of`, the first step with equal weights (NaN if there
//! is none); `missing_before`, how many steps are missing in front of it; `distance_final` and `cosine_final`, to the
//! last checkpoint, and `distance_first`, all relative to the norm of the checkpoint they go to; `turn`, the
//! cosine between the moves into and out of the checkpoint. Distances come from sketches
//! (standard error 3 %); with `exact` those to the last checkpoint are computed from the weights.
//!
//! # Interpretation
//! A `turn` is 1 on a straight line, 0 in a random walk, -1/2 at rest, and far below its surroundings where a
//! checkpoint does not belong. Where a training oscillates or rests, a swap leaves no trace and none is claimed. `integrity-report.json`
//! and `integrity-report.md` hold the findings with their steps.
//!
//! # Source
//! Defects seen in published checkpoints (EleutherAI/pythia #83, #205, #206, #202; allenai/OLMo #915).

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::Result,
    experiment::{Experiment, Inputs},
    integrity::{
        compare::{relative, sums},
        findings::{Findings, Table},
        report::{Kind, Report, Row},
        schedule,
    },
    params::{ParamSet, params},
    sink::Context,
    trajectory::{Checkpoints, TrajectoryInput, load_checked},
    value::Value,
};

/// See the module documentation.
pub struct IntegrityReport;

params! {
    /// What to expect, and how exact to be.
    pub struct Params {
        /// Steps that should be there; empty: what the regularity of the steps suggests.
        expected: Vec<u64> = Vec::new(), min = 0.0;
        /// Loads every checkpoint once more for exact distances to the last.
        exact: bool = false;
    }
}

impl Experiment for IntegrityReport {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "integrity-report",
        version: 1,
        summary: "Finds duplicated, misplaced, missing and damaged checkpoints of a trajectory",
        source: "Known defects of published checkpoints",
        stage: Stage::Trajectory,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Series(Table::SERIES.map(str::to_owned).to_vec())
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let table = Table::read(input)?;
        cx.progress(0, table.steps.len() as u64)?;
        let known = input.checkpoints.as_ref().map(|checkpoints| checkpoints.steps().to_vec());
        // A checkpoint whose analysis failed is not missing.
        let mut steps = known.unwrap_or_default();
        steps.extend(&table.steps);
        steps.sort_unstable();
        steps.dedup();
        let gaps = schedule::gaps(&steps, &params.expected);
        let mut findings = Findings::of(&table);
        findings.add_gaps(&gaps);
        let (mut to_final, first) = (table.against_last(), table.distances_to_first());
        if params.exact {
            to_final = exact(input.checkpoints()?, &table.steps, cx)?;
        }
        for (index, &step) in table.steps.iter().enumerate() {
            let count =
                findings.list.iter().filter(|f| f.kind != Kind::Gap && f.steps.contains(&step));
            cx.metric_at("flagged", step, count.count() as f64)?;
            let twin = findings.first_twin[index].map_or(f64::NAN, |twin| table.steps[twin] as f64);
            cx.metric_at("duplicate_of", step, twin)?;
            let before = gaps.iter().filter(|gap| gap.before == Some(step));
            cx.metric_at(
                "missing_before",
                step,
                before.map(|gap| gap.missing.len()).sum::<usize>() as f64,
            )?;
            cx.metric_at("distance_final", step, to_final[index].0)?;
            cx.metric_at("cosine_final", step, to_final[index].1)?;
            cx.metric_at("distance_first", step, first[index])?;
            if (1..table.steps.len().saturating_sub(1)).contains(&index) {
                cx.metric_at("turn", step, table.turn(index))?;
            }
        }
        let counts =
            Kind::ALL.map(|kind| findings.list.iter().filter(|f| f.kind == kind).count() as f64);
        cx.metric("n_flags", counts.iter().sum::<f64>())?;
        cx.metric("flags", Value::labelled(Kind::ALL.map(Kind::name), counts.to_vec()))?;
        let rows = table.steps.iter().enumerate().map(|(index, &step)| Row {
            step,
            fingerprint: format!("{:012x}", table.fingerprints[index] as u64),
            dtype: table.dtypes[index].clone(),
            n_nonfinite: table.n_nonfinite[index],
            distance_final: to_final[index].0,
            cosine_final: to_final[index].1,
            distance_first: first[index],
        });
        steps.retain(|step| !table.steps.contains(step));
        let report = Report {
            n_checkpoints: table.steps.len(),
            not_examined: steps,
            distances: if params.exact {
                "exact to the last checkpoint and estimates to the first (standard error 3 %)"
            } else {
                "estimates (standard error 3 %)"
            },
            checkpoints: rows.collect(),
            findings: findings.list,
        };
        cx.json("integrity-report.json", &report)?;
        cx.artifact("integrity-report.md", report.markdown().into_bytes())
    }
}

/// Relative distance and cosine of every checkpoint to the last one, from the weights.
fn exact(
    checkpoints: &mut dyn Checkpoints,
    steps: &[u64],
    cx: &mut Context<'_>,
) -> Result<Vec<(f64, f64)>> {
    let last = steps.last().copied().unwrap_or_default();
    let last = load_checked(checkpoints, last, IntegrityReport::CARD)?.weights;
    let mut found = Vec::with_capacity(steps.len());
    for (done, &step) in steps.iter().enumerate() {
        let here = load_checked(checkpoints, step, IntegrityReport::CARD)?.weights;
        let (mut moved, mut dot, mut norm, mut last_norm) = (0.0, 0.0, 0.0, 0.0);
        for (name, tensor) in here.iter() {
            let sums = sums(name, tensor, [last.get(name), None], None);
            // A tensor that only one of them has is not compared.
            let Some(pair) = sums.against[0] else { continue };
            moved += pair.distance.powi(2);
            dot += pair.dot;
            norm += sums.norm.powi(2);
            last_norm += pair.other_norm.powi(2);
        }
        let cosine = dot / (norm * last_norm).sqrt();
        found.push((relative(moved.sqrt(), last_norm.sqrt()), cosine));
        cx.progress(done as u64 + 1, steps.len() as u64)?;
    }
    Ok(found)
}

const METRICS: &[MetricDef] = &[
    scalar("n_flags", Unit::Count, "Number of findings"),
    MetricDef {
        name: "flags",
        unit: Unit::Count,
        axes: &[Axis::Finding],
        doc: "Number of findings of each kind",
    },
    scalar("flagged", Unit::Count, "Findings that name this step"),
    scalar("duplicate_of", Unit::Steps, "First step with equal weights; NaN if there is none"),
    scalar("missing_before", Unit::Count, "Steps that are missing in front of this one"),
    scalar("distance_final", Unit::Ratio, "Distance to the last checkpoint over its norm"),
    scalar("cosine_final", Unit::Ratio, "Cosine to the last checkpoint"),
    scalar("distance_first", Unit::Ratio, "Distance to the first checkpoint over its norm"),
    scalar(
        "turn",
        Unit::Ratio,
        "Cosine between the moves into and out of the checkpoint; absent at the ends",
    ),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "distances",
        title: "Distance to the first and the last checkpoint",
        kind: FigureKind::Lines,
        metrics: &["distance_first", "distance_final"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "flagged",
        title: "Findings by step",
        kind: FigureKind::Lines,
        metrics: &["flagged"],
        log_x: true,
        log_y: false,
    },
];
