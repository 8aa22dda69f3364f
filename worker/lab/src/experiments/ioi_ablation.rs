//! Knocking out heads while a model identifies indirect objects, and the heads that step in for them.
//!
//! # What it measures
//! Each head in turn is removed and the logit difference measured: `effect` is the difference without the head minus
//! the one with it. Removed means that the head's mixed values become their mean over ABC prompts (three other names;
//! per template, length and position) or zero. With `keep_patterns` all heads attend as in the whole model, otherwise
//! later patterns change too. `logit_diff_no_heads` removes all heads at once. Then the heads in `knock_out` (by
//! default the name movers that the rules of `ioi-attention` find, or the `top` heads of largest attribution if they
//! find none) are removed together: `dla_change` is what every other head's attribution gains, and `backup` flags heads
//! that gain more than `backup_share` of what the removed ones attributed.
//!
//! # Interpretation
//! Negative effects: the head helps. Name movers of GPT-2 small have small effects although they write the answer,
//! because backup name movers (10.10, 10.6, 10.2, …) take over: `dla_change` shows it, `effect` alone hides it. Zero
//! ablation also removes what a head contributes to every text, mean ablation only what depends on the names.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593, §3.4 and §4; pattern-preserving ablation: Olsson et al. 2022, §Ablations.

use std::collections::BTreeMap;

use sweep_lens::Tensor;

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        ablation::{Knockout, Means, patterns},
        attention,
        attribution::attribute,
        batch::{Meter, in_batches, mean_over_rows},
        classes::{Evidence, Rules, cached_numbers, strongest},
        copying::CopyScores,
        heads::{HEADS, Head, flags, flat, per_head},
        params::ioi_params,
        prompts::IoiSet,
    },
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
};

/// See the module documentation.
pub struct IoiAblation;

ioi_params! { 100, "mixed",
    /// What removed heads' mixed values become.
    method: String = "mean".to_owned(), choices = ["mean", "zero"];
    /// Whether all heads attend as in the whole model.
    keep_patterns: bool = false;
    /// Heads that are removed together, such as L9H6; empty: the name movers.
    knock_out: Vec<String> = Vec::new();
    /// How many heads of largest attribution may be name movers.
    top: u64 = 3, min = 1.0, max = 10_000.0;
    /// Smallest attribution of name movers, relative to the logit difference.
    effect: f64 = 0.02, min = 0.0, max = 1.0;
    /// A backup head gains at least this share of what the removed heads attributed.
    backup_share: f64 = 0.05, min = 0.0, max = 1.0;
}

impl Experiment for IoiAblation {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "ioi-ablation",
        version: 1,
        summary: "Removes heads, one by one and the name movers together, and finds backup heads",
        source: "Wang et al. 2023, arXiv 2211.00593, §3.4",
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
        let chosen = Head::parse("knock_out", &params.knock_out, subject.model.config())?;
        if params.method == "mean" {
            set.need_others()?;
        }
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&subject, &set, &params, chosen, cx))))
    }
}

fn measure(
    subject: &Subject<'_>,
    set: &IoiSet,
    params: &Params,
    chosen: Vec<Head>,
    cx: &mut Context<'_>,
) -> Result<()> {
    let config = subject.model.config();
    let meter = Meter::new(subject.model)?;
    let n_prompts = set.prompts.len() as u64;
    let mut means = Means::new(set);
    let before = survey(subject, set, (params.method == "mean").then_some(&mut means), cx)?;
    let removed = if chosen.is_empty() { before.name_movers(subject, params) } else { chosen };
    let heads = Head::all(config);
    let batches = in_batches(set, subject, cached_numbers(config, set), |batch| {
        let kept = params.keep_patterns.then(|| patterns(&meter, batch));
        let stand_in: Option<BTreeMap<u32, Tensor>> =
            (params.method == "mean").then(|| means.of(batch));
        let without = |heads: Vec<Head>| Knockout {
            heads,
            means: stand_in.as_ref(),
            patterns: kept.as_ref(),
        };
        let logit_diff =
            |heads: Vec<Head>| meter.logit_diff(batch, &batch.tokens, &mut without(heads));
        let mut singly = Vec::new();
        for &head in &heads {
            cx.progress(batch.first as u64, n_prompts)?;
            singly.push(logit_diff(vec![head]));
        }
        let after = attribute(&meter, batch, &batch.tokens, &mut without(removed.clone()))?;
        let whole = [logit_diff(heads.clone()), after.logit_diff];
        Ok((Tensor::stack(&singly, -1), Tensor::stack(&whole, -1), after.heads))
    })?;
    let mean = |of: &dyn Fn(&(Tensor, Tensor, Tensor)) -> Tensor| {
        flat(&mean_over_rows(&batches.iter().map(of).collect::<Vec<_>>()))
    };
    let singly = mean(&|batch| batch.0.shallow_clone());
    let whole = mean(&|batch| batch.1.shallow_clone());
    let after = mean(&|batch| batch.2.shallow_clone());
    let Survey { logit_diff, dla, .. } = before;
    let lost: f64 = removed.iter().map(|head| dla[head.index(config)]).sum();
    let change: Vec<f64> = after.iter().zip(&dla).map(|(after, before)| after - before).collect();
    let steps_in = |head: &&Head| {
        let gain = change[head.index(config)];
        gain > 0.0 && gain > params.backup_share * lost.abs() && !removed.contains(head)
    };
    let backup: Vec<Head> = heads.iter().filter(steps_in).copied().collect();
    cx.progress(n_prompts, n_prompts)?;
    cx.metric("logit_diff", logit_diff)?;
    cx.metric("logit_diff_no_heads", whole[0])?;
    cx.metric("logit_diff_knocked_out", whole[1])?;
    cx.metric("effect", per_head(config, singly.iter().map(|value| value - logit_diff).collect()))?;
    cx.metric("knocked_out", flags(config, &removed))?;
    cx.metric("dla", per_head(config, dla))?;
    cx.metric("dla_knocked_out", per_head(config, after))?;
    cx.metric("dla_change", per_head(config, change))?;
    cx.metric("backup", flags(config, &backup))?;
    cx.metric("n_backup", backup.len() as f64)
}

/// What is known before anything is removed.
struct Survey {
    logit_diff: f64,
    dla: Vec<f64>,
    to_io: Vec<f64>,
    copies: Vec<f64>,
}

impl Survey {
    /// Name movers, or the heads of largest attribution if there is none.
    fn name_movers(&self, subject: &Subject<'_>, params: &Params) -> Vec<Head> {
        let config = subject.model.config();
        let rules = Rules { top: params.top as usize, effect: params.effect };
        let evidence = Evidence {
            logit_diff: self.logit_diff,
            attribution: self.dla.clone(),
            attention: vec![self.to_io.clone()],
            copies: self.copies.clone(),
            ..Evidence::default()
        };
        let found = evidence.name_movers(config, rules);
        if found.is_empty() { strongest(config, &self.dla, rules.top, 0.0) } else { found }
    }
}

/// One pass over the prompts as they are, and one over the ABC prompts for the means.
fn survey(
    subject: &Subject<'_>,
    set: &IoiSet,
    mut means: Option<&mut Means>,
    cx: &mut Context<'_>,
) -> Result<Survey> {
    const N_COPIED: usize = 300;
    let meter = Meter::new(subject.model)?;
    let mut copying = CopyScores::new(subject.model, N_COPIED);
    let cached = cached_numbers(subject.model.config(), set);
    let batches = in_batches(set, subject, cached, |batch| {
        cx.progress(batch.first as u64, set.prompts.len() as u64)?;
        let attribution = attribute(&meter, batch, &batch.tokens, &mut ())?;
        let to_io = attention::between_places(&meter, batch).select(1, 0);
        if let Some(means) = means.as_deref_mut() {
            means.see(&meter, batch);
        }
        copying.see(&meter, batch)?;
        Ok((attribution, to_io))
    })?;
    let diffs: Vec<Tensor> =
        batches.iter().map(|batch| batch.0.logit_diff.shallow_clone()).collect();
    let heads: Vec<Tensor> = batches.iter().map(|batch| batch.0.heads.shallow_clone()).collect();
    let to_io: Vec<Tensor> = batches.iter().map(|batch| batch.1.shallow_clone()).collect();
    Ok(Survey {
        logit_diff: flat(&mean_over_rows(&diffs))[0],
        dla: flat(&mean_over_rows(&heads)),
        to_io: flat(&mean_over_rows(&to_io)),
        copies: copying.scores(),
    })
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "logit_diff",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit of the indirect object minus that of the subject, with all heads",
    },
    MetricDef {
        name: "logit_diff_no_heads",
        unit: Unit::Logit,
        axes: &[],
        doc: "logit_diff with every head removed",
    },
    MetricDef {
        name: "logit_diff_knocked_out",
        unit: Unit::Logit,
        axes: &[],
        doc: "logit_diff with the knocked-out heads removed together",
    },
    MetricDef {
        name: "effect",
        unit: Unit::Logit,
        axes: HEADS,
        doc: "logit_diff without the head, minus logit_diff",
    },
    MetricDef {
        name: "knocked_out",
        unit: Unit::Dimensionless,
        axes: HEADS,
        doc: "1 for heads that are removed together, else 0",
    },
    MetricDef {
        name: "dla",
        unit: Unit::Logit,
        axes: HEADS,
        doc: "What each head adds to the logit difference of the whole model",
    },
    MetricDef {
        name: "dla_knocked_out",
        unit: Unit::Logit,
        axes: HEADS,
        doc: "The same with the knocked-out heads removed",
    },
    MetricDef {
        name: "dla_change",
        unit: Unit::Logit,
        axes: HEADS,
        doc: "dla_knocked_out minus dla",
    },
    MetricDef {
        name: "backup",
        unit: Unit::Dimensionless,
        axes: HEADS,
        doc: "1 for other heads that gain more than backup_share of what was removed, else 0",
    },
    MetricDef { name: "n_backup", unit: Unit::Count, axes: &[], doc: "Number of backup heads" },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "effect",
        title: "Change of the logit difference without a head",
        kind: FigureKind::HeatMap,
        metrics: &["effect"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "dla-change",
        title: "Gain of attribution when name movers are removed",
        kind: FigureKind::HeatMap,
        metrics: &["dla_change"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "logit-diff",
        title: "Logit difference with and without heads",
        kind: FigureKind::Lines,
        metrics: &["logit_diff", "logit_diff_knocked_out", "logit_diff_no_heads"],
        log_x: true,
        log_y: false,
    },
];
