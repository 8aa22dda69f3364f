//! Direct logit attribution of the indirect object: what every part of the model adds to the logit difference.
//!
//! # What it measures
//! At the end of each prompt the residual stream is a sum of what embeddings, heads, MLPs and biases wrote. Each
//! is centred and divided by the final norm's scale of that prompt as the norm does it, and projected on
//! `W_U[IO] - W_U[S]` (weighted where the norm has weights that are not folded). `dla_part` lists all parts, biases
//! included, whose sum is the logit difference; `sum_error` is the largest deviation of any prompt. `dla` has
//! the heads by layer, `rank` their places from the largest, and `dla_mlp` and `dla_attn` whole layers.
//!
//! # Interpretation
//! Heads with large positive values write the answer (name movers: 9.9, 9.6 and 10.0 in GPT-2 small), those with
//! large negative ones write against it (10.7, 11.10). What a head does by way of later ones does not show here:
//! see `path-patching` and `ioi-ablation`. Values are comparable between checkpoints only relative to
//! `logit_diff`.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593, §3.1; logit attribution of TransformerLens' ActivationCache.

use sweep_lens::Tensor;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        attribution::{Attribution, attribute},
        batch::{Meter, in_batches, mean_over_rows},
        heads::{HEADS, flat, per_head},
        params::ioi_params,
        prompts::IoiSet,
    },
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct IoiDla;

ioi_params! { 300, "mixed", }

impl Experiment for IoiDla {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "ioi-dla",
        version: 1,
        summary: "Attributes the logit difference of indirect objects to heads, MLPs and biases",
        source: "Wang et al. 2023, arXiv 2211.00593, §3.1",
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
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&subject, &set, cx))))
    }
}

fn measure(subject: &Subject<'_>, set: &IoiSet, cx: &mut Context<'_>) -> Result<()> {
    let meter = Meter::new(subject.model)?;
    let config = subject.model.config();
    let n_prompts = set.prompts.len() as u64;
    let cached = 4 * config.n_layers * (config.n_heads * config.d_head + config.d_model);
    let batches = in_batches(set, subject, cached, |batch| {
        cx.progress(batch.first as u64, n_prompts)?;
        attribute(&meter, batch, &batch.tokens, &mut ())
    })?;
    cx.progress(n_prompts, n_prompts)?;
    let mean = |of: &dyn Fn(&Attribution) -> Tensor| {
        flat(&mean_over_rows(&batches.iter().map(of).collect::<Vec<_>>()))
    };
    let names = batches.first().map(|batch| batch.names.clone()).unwrap_or_default();
    let heads = mean(&|batch| batch.heads.shallow_clone());
    let parts = mean(&|batch| batch.components.shallow_clone());
    let of_layers = |is_mine: &dyn Fn(&str, i64) -> bool| -> Vec<f64> {
        let layer = |layer: i64| {
            let mine = names.iter().zip(&parts).filter(|(name, _)| is_mine(name, layer));
            mine.map(|(_, value)| value).sum()
        };
        (0..config.n_layers).map(layer).collect()
    };
    let attn = of_layers(&|name, layer| {
        name.starts_with(&format!("L{layer}H")) || name == format!("L{layer}.b_O")
    });
    let mlp = of_layers(&|name, layer| {
        name == format!("L{layer}.mlp") || name == format!("L{layer}.b_out")
    });
    cx.metric("logit_diff", mean(&|batch| batch.logit_diff.shallow_clone())[0])?;
    let sum_error = batches.iter().map(|batch| {
        let sum = batch.components.sum_dim_intlist(&[-1i64][..], false, sweep_lens::Kind::Double);
        (sum - &batch.logit_diff).abs().max().double_value(&[])
    });
    cx.metric(
        "sum_error",
        sum_error.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a }),
    )?;
    let ranks =
        heads.iter().map(|value| heads.iter().filter(|other| *other > value).count() as f64);
    cx.metric("rank", per_head(config, ranks.collect()))?;
    cx.metric("dla", per_head(config, heads))?;
    cx.metric("dla_attn", Value::vector(attn))?;
    cx.metric("dla_mlp", Value::vector(mlp))?;
    cx.metric("dla_part", Value::labelled(names, parts))
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "logit_diff",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit of the indirect object minus that of the subject",
    },
    MetricDef {
        name: "sum_error",
        unit: Unit::Logit,
        axes: &[],
        doc: "Largest difference of any prompt between the sum of all parts and its logit difference",
    },
    MetricDef {
        name: "rank",
        unit: Unit::Count,
        axes: HEADS,
        doc: "Number of heads that add more to the logit difference",
    },
    MetricDef {
        name: "dla",
        unit: Unit::Logit,
        axes: HEADS,
        doc: "What each head adds to the logit difference",
    },
    MetricDef {
        name: "dla_attn",
        unit: Unit::Logit,
        axes: &[Axis::Layer],
        doc: "What each attention layer adds, its bias included",
    },
    MetricDef {
        name: "dla_mlp",
        unit: Unit::Logit,
        axes: &[Axis::Layer],
        doc: "What each MLP adds, its bias included; 0 where there is none",
    },
    MetricDef {
        name: "dla_part",
        unit: Unit::Logit,
        axes: &[Axis::Part],
        doc: "What every part adds: embeddings, heads, MLPs and biases; they sum to logit_diff",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "dla",
        title: "What heads add to the logit difference",
        kind: FigureKind::HeatMap,
        metrics: &["dla"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "dla-layers",
        title: "What layers add to the logit difference",
        kind: FigureKind::Lines,
        metrics: &["dla_attn", "dla_mlp"],
        log_x: true,
        log_y: false,
    },
];
