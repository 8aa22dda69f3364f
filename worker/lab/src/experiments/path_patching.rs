//! Path patching: how each head and MLP acts on chosen receivers without the help of other heads.
//!
//! # What it measures
//! `effect` of a sender is the mean logit difference when only the paths from it to the receivers carry what it writes on
//! ABC prompts (three other names, same template), minus the logit difference of the prompts themselves; `relative_effect`
//! divides by the latter. Receivers are the logits, or the queries, keys or values (`input`) of the heads in `receivers`.
//! `kind: full` holds all other heads as they are and lets MLPs compute anew (unless `freeze_mlps`); `direct` takes the
//! sender's change through the receiver's norm and weights alone, linear.
//!
//! # Interpretation
//! Negative effects: the sender helps by that path. To the logits, name movers (9.9, 9.6, 10.0) have the largest negative
//! effects in GPT-2 small and negative name movers positive ones; to the name movers' queries, S-inhibition heads (7.3,
//! 7.9, 8.6, 8.10); to their values, duplicate-token and induction heads. A sender in a receiver's layer or behind it has
//! no path and an effect of exactly 0.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593, §3 and appendix B; direct form: Goldowsky-Dill et al. 2023, arXiv 2304.05969.

use sweep_lens::{Config, Site, Tensor};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    circuit::{
        batch::{Meter, in_batches, mean_over_rows},
        classes::cached_numbers,
        heads::{HEADS, Head, flat, per_head},
        params::ioi_params,
        paths::{Paths, Receivers, Sender},
        prompts::IoiSet,
    },
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::ParamSet,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct PathPatching;

ioi_params! { 50, "mixed",
    /// Heads that receive, such as L9H6; empty: the logits.
    receivers: Vec<String> = Vec::new();
    /// What receiving heads read.
    input: String = "q".to_owned(), choices = ["q", "k", "v"];
    /// All paths without other heads (full), or the direct one (direct).
    kind: String = "full".to_owned(), choices = ["full", "direct"];
    /// Whether MLPs are held as well in the full form.
    freeze_mlps: bool = false;
}

impl Experiment for PathPatching {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "path-patching",
        version: 1,
        summary: "Measures how heads and MLPs act on the logits or on chosen heads directly",
        source: "Wang et al. 2023, arXiv 2211.00593, §3 and appendix B",
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
        set.need_others()?;
        let heads = Head::parse("receivers", &params.receivers, subject.model.config())?;
        let site = match params.input.as_str() {
            "k" => Site::K,
            "v" => Site::V,
            _ => Site::Q,
        };
        let receivers =
            if heads.is_empty() { Receivers::Logits } else { Receivers::Heads(heads, site) };
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            measure(&subject, &set, &params, &receivers, cx)
        })))
    }
}

/// Heads, then MLPs.
fn senders(config: &Config) -> Vec<Sender> {
    let mlps = if config.attn_only { 0 } else { config.n_layers as u32 };
    Head::all(config).into_iter().map(Sender::Head).chain((0..mlps).map(Sender::Mlp)).collect()
}

fn measure(
    subject: &Subject<'_>,
    set: &IoiSet,
    params: &Params,
    receivers: &Receivers,
    cx: &mut Context<'_>,
) -> Result<()> {
    let config = subject.model.config();
    let meter = Meter::new(subject.model)?;
    let senders = senders(config);
    let n_prompts = set.prompts.len() as u64;
    let batches = in_batches(set, subject, 2 * cached_numbers(config, set), |batch| {
        let paths = Paths::new(&meter, batch, &batch.abc, params.freeze_mlps);
        let mut found = vec![paths.base.shallow_clone()];
        for &sender in &senders {
            cx.progress(batch.first as u64, n_prompts)?;
            found.push(if params.kind == "direct" {
                paths.direct(sender, receivers)?
            } else {
                paths.full(sender, receivers)
            });
        }
        found.push(meter.logit_diff(batch, &batch.abc, &mut ()));
        Ok(Tensor::stack(&found, -1))
    })?;
    let mut found = flat(&mean_over_rows(&batches));
    let base = found.remove(0);
    let abc = found.pop().unwrap_or(f64::NAN);
    let effects: Vec<f64> = found.iter().map(|value| value - base).collect();
    let (heads, mlps) = effects.split_at(Head::all(config).len());
    let mut mlps = mlps.to_vec();
    mlps.resize(config.n_layers as usize, f64::NAN);
    cx.progress(n_prompts, n_prompts)?;
    cx.metric("logit_diff", base)?;
    cx.metric("logit_diff_abc", abc)?;
    cx.metric("effect", per_head(config, heads.to_vec()))?;
    cx.metric("relative_effect", per_head(config, heads.iter().map(|x| x / base).collect()))?;
    cx.metric("mlp_effect", Value::vector(mlps))
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "logit_diff",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit of the indirect object minus that of the subject",
    },
    MetricDef {
        name: "logit_diff_abc",
        unit: Unit::Logit,
        axes: &[],
        doc: "The same logits on the ABC prompts: 0 up to chance",
    },
    MetricDef {
        name: "effect",
        unit: Unit::Logit,
        axes: HEADS,
        doc: "Change of logit_diff when the head's paths to the receivers carry its ABC output",
    },
    MetricDef {
        name: "relative_effect",
        unit: Unit::Ratio,
        axes: HEADS,
        doc: "effect divided by logit_diff",
    },
    MetricDef {
        name: "mlp_effect",
        unit: Unit::Logit,
        axes: &[Axis::Layer],
        doc: "The same for the MLP of each layer; NaN where there is none",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "effect",
        title: "Effect of heads on the receivers",
        kind: FigureKind::HeatMap,
        metrics: &["effect"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "mlp-effect",
        title: "Effect of MLPs on the receivers",
        kind: FigureKind::HeatMap,
        metrics: &["mlp_effect"],
        log_x: true,
        log_y: false,
    },
];
