//! Indirect-object identification: whether a model completes "Then, Mary and John went to the store. John gave a
//! drink to" with the name that came once.
//!
//! # What it measures
//! At the end of every prompt: `logit_diff` (logit of the indirect object minus that of the subject; mean over
//! prompts, standard error, per template, per prompt), `accuracy` (fraction of prompts with a positive difference),
//! `p_io` and `p_s` (probability of either name), `log_p_io`, `rank` (how many tokens are likelier than the indirect
//! object) and `top1` (fraction with rank 0). Prompts come from 15 templates with the subject first (BABA) and 15
//! with the indirect object first (ABBA), 8 places, 8 objects and those of 99 names that are single tokens for the
//! model; models without a tokenizer get sentences of their own vocabulary, or the tokens that the user gives.
//! `prompts.json` holds what was run.
//!
//! # Interpretation
//! Names are drawn uniformly, so a model that knows no more than frequencies has a mean difference of 0 and an
//! accuracy of one half; GPT-2 small reaches 3.56 and 99 %. Differences and log-probabilities grow smoothly where
//! accuracy and rank jump: a transition in `accuracy` alone may be the threshold's. A large difference
//! between ABBA and BABA templates says that positions help.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593, §2; dataset of redwoodresearch/Easy-Transformer.

use sweep_lens::{Kind, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        batch::{Meter, in_batches},
        heads::flat,
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
pub struct Ioi;

ioi_params! { 300, "mixed", }

impl Experiment for Ioi {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "ioi",
        version: 1,
        summary: "Measures how well a model identifies indirect objects",
        source: "Wang et al. 2023, arXiv 2211.00593, §2",
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

/// Columns of what is measured of each prompt.
const COLUMNS: usize = 6;

fn measure(subject: &Subject<'_>, set: &IoiSet, cx: &mut Context<'_>) -> Result<()> {
    let meter = Meter::new(subject.model)?;
    let n_prompts = set.prompts.len();
    let d_vocab = subject.model.config().d_vocab_out;
    let batches = in_batches(set, subject, 4 * d_vocab, |batch| {
        cx.progress(batch.first as u64, n_prompts as u64)?;
        let logits = meter.unembed(&meter.ends(batch, &batch.tokens, &mut ()));
        let logits = logits.to_kind(Kind::Double); // [row, d_vocab_out]
        let of = |table: &Tensor, token: &Tensor| {
            table.gather(-1, &token.unsqueeze(-1), false).squeeze_dim(-1)
        };
        let log_probs = logits.log_softmax(-1, Kind::Double);
        let io = of(&logits, &batch.io);
        let logit_diff = &io - of(&logits, &batch.s);
        let log_p = of(&log_probs, &batch.io);
        let rank =
            logits.gt_tensor(&io.unsqueeze(-1)).sum_dim_intlist(&[-1i64][..], false, Kind::Double);
        let columns = [
            logit_diff.shallow_clone(),
            logit_diff.gt(0.0).to_kind(Kind::Double),
            log_p.exp(),
            of(&log_probs, &batch.s).exp(),
            log_p,
            rank,
        ];
        Ok(flat(&Tensor::stack(&columns, -1)))
    })?;
    let rows: Vec<f64> = batches.concat();
    let column =
        |index: usize| -> Vec<f64> { rows.iter().skip(index).step_by(COLUMNS).copied().collect() };
    let (logit_diffs, accuracy, ranks) = (column(0), column(1), column(5));
    cx.progress(n_prompts as u64, n_prompts as u64)?;
    let mean_diff = mean(&logit_diffs);
    let variance =
        logit_diffs.iter().map(|x| (x - mean_diff).powi(2)).sum::<f64>() / (n_prompts as f64 - 1.0);
    cx.metric("logit_diff", mean_diff)?;
    cx.metric("logit_diff_se", (variance / n_prompts as f64).sqrt())?;
    cx.metric("accuracy", mean(&accuracy))?;
    cx.metric("p_io", mean(&column(2)))?;
    cx.metric("p_s", mean(&column(3)))?;
    cx.metric("log_p_io", mean(&column(4)))?;
    cx.metric("rank", mean(&ranks))?;
    let is_first: Vec<f64> = ranks.iter().map(|&rank| f64::from(u8::from(rank == 0.0))).collect();
    cx.metric("top1", mean(&is_first))?;
    for (name, values) in [("logit_diff_template", &logit_diffs), ("accuracy_template", &accuracy)]
    {
        cx.metric(name, per_template(set, values))?;
    }
    cx.metric("logit_diff_prompt", Value::vector(logit_diffs))?;
    cx.metric("n_prompts", n_prompts as f64)?;
    cx.metric("n_names", set.n_names as f64)?;
    cx.metric("prepend_bos", f64::from(u8::from(set.prepend_bos)))?;
    let record = serde_json::json!({ "templates": set.templates, "prompts": set.prompts });
    cx.json("prompts.json", &record)
}

/// Means over the prompts of each template; NaN for templates that were not drawn.
fn per_template(set: &IoiSet, values: &[f64]) -> Value {
    let of = |template: usize| {
        let rows = set.prompts.iter().zip(values);
        let mine: Vec<f64> = rows
            .filter(|(prompt, _)| prompt.template == template)
            .map(|(_, value)| *value)
            .collect();
        mean(&mine)
    };
    Value::labelled(&set.templates, (0..set.templates.len()).map(of).collect())
}

/// NaN of nothing.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "logit_diff",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit of the indirect object minus that of the subject",
    },
    MetricDef {
        name: "logit_diff_se",
        unit: Unit::Logit,
        axes: &[],
        doc: "Standard error of logit_diff over prompts; NaN for a single one",
    },
    MetricDef {
        name: "accuracy",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of prompts in which the indirect object is likelier than the subject",
    },
    MetricDef {
        name: "p_io",
        unit: Unit::Probability,
        axes: &[],
        doc: "Mean probability of the indirect object",
    },
    MetricDef {
        name: "p_s",
        unit: Unit::Probability,
        axes: &[],
        doc: "Mean probability of the subject",
    },
    MetricDef {
        name: "log_p_io",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean log-probability of the indirect object",
    },
    MetricDef {
        name: "rank",
        unit: Unit::Count,
        axes: &[],
        doc: "Mean number of tokens that are likelier than the indirect object",
    },
    MetricDef {
        name: "top1",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of prompts in which the indirect object is the likeliest token",
    },
    MetricDef {
        name: "logit_diff_template",
        unit: Unit::Logit,
        axes: &[Axis::Template],
        doc: "Mean logit_diff of each template; NaN if it was not drawn",
    },
    MetricDef {
        name: "accuracy_template",
        unit: Unit::Probability,
        axes: &[Axis::Template],
        doc: "accuracy of each template; NaN if it was not drawn",
    },
    MetricDef {
        name: "logit_diff_prompt",
        unit: Unit::Logit,
        axes: &[Axis::Row],
        doc: "logit_diff of each prompt, in the order of prompts.json",
    },
    MetricDef { name: "n_prompts", unit: Unit::Count, axes: &[], doc: "Number of prompts" },
    MetricDef {
        name: "n_names",
        unit: Unit::Count,
        axes: &[],
        doc: "Number of names to choose from: single tokens for this model",
    },
    MetricDef {
        name: "prepend_bos",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if a BOS token was put in front of every prompt, else 0",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "logit-diff",
        title: "Logit of the indirect object minus that of the subject",
        kind: FigureKind::Lines,
        metrics: &["logit_diff"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "accuracy",
        title: "Identification of the indirect object",
        kind: FigureKind::Lines,
        metrics: &["accuracy", "top1", "p_io", "p_s"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "logit-diff-template",
        title: "Logit difference by template",
        kind: FigureKind::HeatMap,
        metrics: &["logit_diff_template"],
        log_x: true,
        log_y: false,
    },
];
