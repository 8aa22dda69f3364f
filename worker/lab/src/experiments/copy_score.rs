//! Copy scores: whether a head writes the name that it attends to, or writes against it.
//!
//! # What it measures
//! At every name of the prompts (indirect object and both subjects, up to `n_names` of them) the residual stream
//! behind block 0 goes through each head's own norm, `W_V` and `W_O`, the final norm and the unembedding: what the head would
//! write if it attended to that name only. `copy_score` is the fraction of names that are among the five likeliest tokens then,
//! `negative_copy_score` the same with the head's output negated. The head's value bias is added as in the paper's code;
//! `processing: folded` has moved it to the layer's output bias, where no single head has it.
//!
//! # Interpretation
//! Name movers of GPT-2 small have copy scores above 0.95, the average head below 0.2; negative name movers have negative
//! copy scores of 0.98 (average 0.12). A token ties with others only against it, so that a head that writes nothing scores 0.
//! Raw and folded weights can differ by a few names, for the value bias. With a vocabulary of few tokens, five of them are a large part: compare with 5 / d_vocab.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593, §3.1 and appendix.

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        batch::{Meter, in_batches},
        copying::CopyScores,
        heads::{HEADS, per_head},
        params::ioi_params,
        prompts::IoiSet,
    },
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
};

/// See the module documentation.
pub struct CopyScore;

ioi_params! { 334, "mixed",
    /// Names that are looked at, three in each prompt.
    n_names: u64 = 1000, min = 1.0, max = 1_000_000.0;
}

impl Experiment for CopyScore {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "copy-score",
        version: 1,
        summary: "Measures whether heads copy the names that they attend to",
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
        let n_names = params.n_names as usize;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&subject, &set, n_names, cx))))
    }
}

fn measure(
    subject: &Subject<'_>,
    set: &IoiSet,
    n_names: usize,
    cx: &mut Context<'_>,
) -> Result<()> {
    let config = subject.model.config();
    let meter = Meter::new(subject.model)?;
    let n_prompts = set.prompts.len() as u64;
    let mut copying = CopyScores::new(subject.model, n_names);
    in_batches(set, subject, 4 * config.n_heads * config.d_model, |batch| {
        cx.progress(batch.first as u64, n_prompts)?;
        copying.see(&meter, batch)
    })?;
    cx.progress(n_prompts, n_prompts)?;
    cx.metric("copy_score", per_head(config, copying.scores()))?;
    cx.metric("negative_copy_score", per_head(config, copying.negative_scores()))?;
    cx.metric("n_names", copying.n_names() as f64)
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "copy_score",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "Fraction of names among the five likeliest tokens after the head's OV circuit",
    },
    MetricDef {
        name: "negative_copy_score",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "The same with the head's output negated",
    },
    MetricDef { name: "n_names", unit: Unit::Count, axes: &[], doc: "Number of names looked at" },
];

const FIGURES: &[Figure] = &[Figure {
    name: "copy-score",
    title: "Names copied by each head",
    kind: FigureKind::HeatMap,
    metrics: &["copy_score"],
    log_x: true,
    log_y: false,
}];
