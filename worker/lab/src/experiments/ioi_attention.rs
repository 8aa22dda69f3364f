//! Attention of the heads that identify indirect objects, and which heads those are.
//!
//! # What it measures
//! `attention` is every head's mean attention between the places of the circuit: from the end to the indirect object
//! (IO) and both subjects (S1, S2), from S2 to S1 and the token behind it, from that token to S1. `class_attention`
//! combines them as classes of heads do, and `class_attention_max` is the best head's: name movers END→IO minus END→S1 and END→S2; S-inhibition END→S2 minus
//! END→IO and END→S1; duplicate-token S2→S1; induction S2→S1+1; previous-token S1+1→S1. `member` says
//! which heads belong to which class by automatic rules, `n_members` how many there are, and `members_attention` is the
//! class's attention averaged over its members. The rules: name movers are among the `top` heads of largest attribution (above `effect` times the logit difference),
//! attend END→IO above 0.3 and copy more than half of the names; negative ones likewise with negative attribution
//! and negated output; S-inhibition heads attend END→S2 above 0.3 and, path-patched from ABC prompts into the queries
//! of the name movers, lower the logit difference; duplicate-token, induction and previous-token heads attend above
//! 0.3 (induction also by prefix matching on random tokens; previous-token on random tokens only); backup name movers
//! gain attribution when the name movers are removed.
//!
//! # Interpretation
//! In GPT-2 small name movers attend END→IO with 0.59 on average and S-inhibition heads END→S2 with 0.51. Indices of
//! heads differ between seeds, the inventory of classes much less: compare `n_members` and `members_attention`. Classes
//! that are defined through name movers (S-inhibition, backup) are empty as long as there is none.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593, §3 and appendices; Tigges et al. 2024, arXiv 2407.10827 (classes over training).

use sweep_lens::Tensor;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        attention::{self, PAIRS},
        attribution::{Attribution, attribute},
        batch::{Meter, in_batches, mean_over_rows},
        classes::{self, Evidence, Rules},
        copying::CopyScores,
        heads::{Head, flat},
        params::ioi_params,
        prompts::IoiSet,
    },
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct IoiAttention;

ioi_params! { 200, "mixed",
    /// Whether heads are assigned to classes, which takes further passes and prompts with three names to spare.
    classify: bool = true;
    /// Name movers are among this many heads of largest attribution.
    top: u64 = 10, min = 1.0, max = 10_000.0;
    /// Smallest attribution of name movers, effect of S-inhibition heads and gain of backup heads, relative to the logit
    /// difference.
    effect: f64 = 0.02, min = 0.0, max = 1.0;
}

impl Experiment for IoiAttention {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "ioi-attention",
        version: 1,
        summary: "Measures attention between names and assigns heads to the classes of the IOI circuit",
        source: "Wang et al. 2023, arXiv 2211.00593, §3",
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
        if params.classify {
            set.need_others()?;
        }
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| measure(&subject, &set, &params, cx))))
    }
}

fn measure(
    subject: &Subject<'_>,
    set: &IoiSet,
    params: &Params,
    cx: &mut Context<'_>,
) -> Result<()> {
    let config = subject.model.config();
    let evidence = gather(subject, set, params.classify, cx)?;
    let shape = |n: usize| vec![n, config.n_layers as usize, config.n_heads as usize];
    let labels = |names: Vec<&str>| {
        vec![Some(names.into_iter().map(str::to_owned).collect::<Vec<_>>()), None, None]
    };
    let all: Vec<f64> = evidence.attention.concat();
    cx.metric("attention", Value::array(shape(PAIRS.len()), all, labels(PAIRS.to_vec())))?;
    let combined: Vec<Vec<f64>> =
        attention::CLASSES.iter().map(|(_, weights)| combine(&evidence, weights)).collect();
    let names = attention::CLASSES.map(|(name, _)| name);
    let flat_classes = combined.concat();
    let largest = |heads: &[f64]| heads.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let n_heads = flat_classes.len() / names.len();
    let best = flat_classes.chunks(n_heads).map(largest).collect();
    cx.metric("class_attention_max", Value::labelled(names, best))?;
    cx.metric(
        "class_attention",
        Value::array(shape(names.len()), flat_classes, labels(names.to_vec())),
    )?;
    let members = if params.classify {
        let rules = Rules { top: params.top as usize, effect: params.effect };
        let n_prompts = set.prompts.len() as u64;
        let mut tick = || cx.progress(n_prompts, n_prompts);
        Some(classes::classify(subject, set, &evidence, rules, &mut tick)?)
    } else {
        None
    };
    let flags = |class: usize| -> Vec<f64> {
        let flag = |head: &Head| match &members {
            Some(members) => f64::from(u8::from(members[class].contains(head))),
            None => f64::NAN,
        };
        Head::all(config).iter().map(flag).collect()
    };
    let n_classes = classes::CLASSES.len();
    let flags: Vec<Vec<f64>> = (0..n_classes).map(flags).collect();
    let counts = flags.iter().map(|flags| flags.iter().sum()).collect();
    // Of negative and backup name movers the attention is that of name movers.
    let class_of = |class: usize| if class < combined.len() { class } else { 0 };
    let of_members = (0..n_classes).map(|class| {
        let weights = &flags[class];
        let sum: f64 = weights.iter().zip(&combined[class_of(class)]).map(|(a, b)| a * b).sum();
        sum / weights.iter().sum::<f64>()
    });
    cx.metric("n_members", Value::labelled(classes::CLASSES, counts))?;
    cx.metric("members_attention", Value::labelled(classes::CLASSES, of_members.collect()))?;
    let flags = flags.concat();
    cx.metric("member", Value::array(shape(n_classes), flags, labels(classes::CLASSES.to_vec())))
}

/// A weighted sum of attention between places, per head.
fn combine(evidence: &Evidence, weights: &[f64; 6]) -> Vec<f64> {
    let n_heads = evidence.attention[0].len();
    let of = |head: usize| {
        weights.iter().zip(&evidence.attention).map(|(weight, pair)| weight * pair[head]).sum()
    };
    (0..n_heads).map(of).collect()
}

/// What one pass over the prompts and one over random tokens tell of every head; without `all`, attention only.
fn gather(
    subject: &Subject<'_>,
    set: &IoiSet,
    all: bool,
    cx: &mut Context<'_>,
) -> Result<Evidence> {
    const N_COPIED: usize = 1000;
    let meter = Meter::new(subject.model)?;
    let n_prompts = set.prompts.len() as u64;
    let mut copying = CopyScores::new(subject.model, N_COPIED);
    let cached = classes::cached_numbers(subject.model.config(), set);
    let batches = in_batches(set, subject, cached, |batch| {
        cx.progress(batch.first as u64, n_prompts)?;
        let attention = attention::between_places(&meter, batch);
        if !all {
            return Ok((attention, None));
        }
        copying.see(&meter, batch)?;
        Ok((attention, Some(attribute(&meter, batch, &batch.tokens, &mut ())?)))
    })?;
    let (attention, attribution): (Vec<Tensor>, Vec<Option<Attribution>>) =
        batches.into_iter().unzip();
    let attention = mean_over_rows(&attention); // [pair, layer, head]
    let mut evidence = Evidence {
        attention: (0..PAIRS.len() as i64).map(|pair| flat(&attention.get(pair))).collect(),
        ..Evidence::default()
    };
    if all {
        let (heads, diffs): (Vec<Tensor>, Vec<Tensor>) =
            attribution.into_iter().flatten().map(|found| (found.heads, found.logit_diff)).unzip();
        evidence.attribution = flat(&mean_over_rows(&heads));
        evidence.logit_diff = flat(&mean_over_rows(&diffs))[0];
        evidence.copies = copying.scores();
        evidence.negative_copies = copying.negative_scores();
        let repeats = attention::on_repeats(subject.model, 0);
        evidence.prefix_matching = to_vec(&repeats.prefix_matching);
        evidence.previous_token = to_vec(&repeats.previous_token);
    }
    Ok(evidence)
}

const CLASS_HEADS: &[Axis] = &[Axis::HeadClass, Axis::Layer, Axis::Head];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "attention",
        unit: Unit::Probability,
        axes: &[Axis::Pair, Axis::Layer, Axis::Head],
        doc: "Mean attention from one place to another",
    },
    MetricDef {
        name: "class_attention",
        unit: Unit::Dimensionless,
        axes: CLASS_HEADS,
        doc: "Attention to what a class attends to, minus attention to the other names",
    },
    MetricDef {
        name: "class_attention_max",
        unit: Unit::Dimensionless,
        axes: &[Axis::HeadClass],
        doc: "Largest class_attention of any head, whether it is a member or not",
    },
    MetricDef {
        name: "n_members",
        unit: Unit::Count,
        axes: &[Axis::HeadClass],
        doc: "Number of heads of each class; NaN without classify",
    },
    MetricDef {
        name: "members_attention",
        unit: Unit::Dimensionless,
        axes: &[Axis::HeadClass],
        doc: "Mean class_attention of the members; NaN if there is none",
    },
    MetricDef {
        name: "member",
        unit: Unit::Truth,
        axes: CLASS_HEADS,
        doc: "1 if the head belongs to the class, else 0; NaN without classify",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "members-attention",
        title: "Attention of each class of heads",
        kind: FigureKind::Lines,
        metrics: &["members_attention"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "n-members",
        title: "Heads of each class",
        kind: FigureKind::Lines,
        metrics: &["n_members"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "best-head",
        title: "Attention of the best head by class",
        kind: FigureKind::Lines,
        metrics: &["class_attention_max"],
        log_x: true,
        log_y: false,
    },
];
