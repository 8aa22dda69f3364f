//! Do the neurons of two models mean the same?
//!
//! # What it measures
//! Both models read the same text. For every neuron: `jaccard`, shared fraction of the places where it is most active (the `k` largest
//! activations of each model, D27); `rank_correlation` (Spearman, ties by mean ranks) and `correlation` (Pearson) of its
//! activations over 1024 to 2047 evenly spread positions; `frequency_change`, fraction of positions above 0 in the first minus that
//! in the second model. `mean_jaccard` by layer, and `kept`, the fraction of neurons with a `jaccard` of at least one half. From the weights:
//! `w_in_cosine` and `w_out_cosine`. `site` tells `mid` and `post` of SoLU apart. `changed.jsonl` lists the neurons that overlap least.
//!
//! # Interpretation
//! A model against itself has overlap 1. Neurons are compared by number: a fine-tuned model keeps them, two seeds do not (their overlap is
//! the noise: about k over the number of positions). Overlap falls earlier than correlation, because the top places are few.
//!
//! # Source
//! Problem 5.19 of the experiment list, D27; Gurnee et al. 2024, arXiv 2401.12181 (correlation of neurons between models).

use serde_json::json;

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, metric},
    compare::{Couple, different},
    documents::{Documents, document_params},
    error::Result,
    experiment::{Experiment, Inputs},
    neurons::{Extremes, Moments, Sample, Sites, cosines, jaccard, neuron_weights, places},
    params::ParamSet,
    sink::Context,
    value::Value,
};

/// See the module documentation.
pub struct MaxActOverlap;

document_params! {
    /// Places per neuron.
    k: u64 = 20, min = 1.0, max = 1000.0;
    /// Neurons per site and layer in the list of those that changed.
    listed: u64 = 20, max = 100_000.0;
}

impl Experiment for MaxActOverlap {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "max-act-overlap",
        version: 1,
        summary: "Measures whether the neurons of two models are active at the same places",
        source: "Gurnee et al. 2024, arXiv 2401.12181 (neurons of different models)",
        stage: Stage::Compare,
        requires: Requires { mlp: true, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_vocabulary()?;
        let models = [couple.first.model, couple.second.model];
        let sites = Sites::of(models[0].config())?;
        let other = Sites::of(models[1].config())?;
        if sites != other {
            let text = |sites: &Sites| {
                let Sites { names, n_layers, n_neurons } = sites;
                format!("{n_layers} layers of {n_neurons} neurons ({})", names.join(", "))
            };
            return Err(different(&format!(
                "{} in one, {} in the other",
                text(&sites),
                text(&other)
            )));
        }
        let documents = Documents::new(&couple.first, &params.wanted())?;
        let mut groups = [0, 1]
            .map(|_| (0..sites.n_groups()).map(|_| Group::new(params.k)).collect::<Vec<Group>>());
        documents.for_each(&couple.first, |batch| {
            let places = places(batch, models[0].config());
            for (model, groups) in models.iter().zip(&mut groups) {
                sites.read(model, batch, |group, activations| {
                    let Group { top, moments, sample } = &mut groups[group];
                    moments.add(&activations, 0.0);
                    sample.add(&activations);
                    top.add(&activations, &places)
                })?;
            }
            cx.progress(batch.progress.0, batch.progress.1)
        })?;
        let found: Vec<Overlap> =
            groups[0].iter().zip(&groups[1]).map(|(a, b)| Overlap::of(a, b)).collect();
        emit(&sites, &found, groups[0][0].moments.n, &params, cx)?;
        emit_weights(couple, &sites, cx)
    }
}

/// What is known of the neurons of one site and layer of one model.
struct Group {
    top: Extremes,
    moments: Moments,
    sample: Sample,
}

impl Group {
    fn new(k: u64) -> Self {
        Self {
            top: Extremes::new(k, false),
            moments: Moments::default(),
            sample: Sample::default(),
        }
    }
}

/// By neuron.
struct Overlap {
    jaccard: Vec<f64>,
    correlation: Vec<f64>,
    rank_correlation: Vec<f64>,
    frequency_change: Vec<f64>,
}

impl Overlap {
    fn of(a: &Group, b: &Group) -> Self {
        let [correlation, rank_correlation] = a.sample.correlations(&b.sample);
        let frequencies = a.moments.frequency().into_iter().zip(b.moments.frequency());
        Self {
            jaccard: jaccard(&a.top, &b.top),
            correlation,
            rank_correlation,
            frequency_change: frequencies.map(|(a, b)| a - b).collect(),
        }
    }
}

fn emit(
    sites: &Sites,
    found: &[Overlap],
    n_positions: f64,
    params: &Params,
    cx: &mut Context<'_>,
) -> Result<()> {
    let table = |read: fn(&Overlap) -> &Vec<f64>| {
        sites.value(&found.iter().map(|overlap| read(overlap).clone()).collect::<Vec<_>>())
    };
    cx.metric("jaccard", table(|overlap| &overlap.jaccard))?;
    cx.metric("correlation", table(|overlap| &overlap.correlation))?;
    cx.metric("rank_correlation", table(|overlap| &overlap.rank_correlation))?;
    cx.metric("frequency_change", table(|overlap| &overlap.frequency_change))?;
    let mean =
        |overlap: &Overlap| overlap.jaccard.iter().sum::<f64>() / overlap.jaccard.len() as f64;
    cx.metric("mean_jaccard", sites.layers(found.iter().map(mean).collect()))?;
    let kept = |overlap: &Overlap| {
        let kept = overlap.jaccard.iter().filter(|jaccard| **jaccard >= 0.5).count();
        kept as f64 / overlap.jaccard.len() as f64
    };
    cx.metric("kept", sites.layers(found.iter().map(kept).collect()))?;
    cx.metric("n_positions", n_positions)?;
    let mut lines = String::new();
    for (group, overlap) in found.iter().enumerate() {
        let (site, layer) = sites.label(group);
        let mut order: Vec<usize> = (0..overlap.jaccard.len()).collect();
        order.sort_by(|&a, &b| overlap.jaccard[a].total_cmp(&overlap.jaccard[b]).then(a.cmp(&b)));
        for &neuron in order.iter().take(params.listed as usize) {
            let line = json!({
                "site": site, "layer": layer, "neuron": neuron,
                "jaccard": overlap.jaccard[neuron],
                "correlation": overlap.correlation[neuron],
                "rank_correlation": overlap.rank_correlation[neuron],
                "frequency_change": overlap.frequency_change[neuron],
            });
            lines += &line.to_string();
            lines.push('\n');
        }
    }
    cx.artifact("changed.jsonl", lines.into_bytes())
}

fn emit_weights(couple: &Couple<'_>, sites: &Sites, cx: &mut Context<'_>) -> Result<()> {
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for layer in 0..sites.n_layers {
        let of = |subject: &crate::Subject<'_>| {
            neuron_weights(subject.model.weights(), subject.model.config(), layer)
        };
        let ((in_a, out_a), (in_b, out_b)) = (of(&couple.first)?, of(&couple.second)?);
        let compare = |a: &sweep_lens::Tensor, b: &sweep_lens::Tensor| {
            let fits = a.size() == b.size();
            if fits { cosines(a, b) } else { vec![f64::NAN; sites.n_neurons] }
        };
        read.extend(compare(&in_a, &in_b));
        written.extend(compare(&out_a, &out_b));
    }
    let shape = || vec![sites.n_layers, sites.n_neurons];
    cx.metric("w_in_cosine", Value::array(shape(), read, vec![None, None]))?;
    cx.metric("w_out_cosine", Value::array(shape(), written, vec![None, None]))
}

const NEURONS: &[Axis] = &[Axis::Site, Axis::Layer, Axis::Neuron];
const LAYERS: &[Axis] = &[Axis::Site, Axis::Layer];
const WEIGHTS: &[Axis] = &[Axis::Layer, Axis::Neuron];

const METRICS: &[MetricDef] = &[
    metric("jaccard", Unit::Ratio, NEURONS, "Shared fraction of the places of largest activation"),
    metric("correlation", Unit::Ratio, NEURONS, "Correlation of activations; NaN for a constant"),
    metric("rank_correlation", Unit::Ratio, NEURONS, "Rank correlation of activations"),
    metric("frequency_change", Unit::Probability, NEURONS, "Fraction above 0, first minus second"),
    metric("mean_jaccard", Unit::Ratio, LAYERS, "Mean overlap of a layer's neurons"),
    metric("kept", Unit::Probability, LAYERS, "Neurons with an overlap of at least one half"),
    metric("n_positions", Unit::Count, &[], "Positions that counted"),
    metric(
        "w_in_cosine",
        Unit::Ratio,
        WEIGHTS,
        "Cosine of what a neuron reads with in both models",
    ),
    metric("w_out_cosine", Unit::Ratio, WEIGHTS, "Cosine of what it writes in both models"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "overlap",
        title: "Overlap of top places",
        kind: FigureKind::Lines,
        metrics: &["mean_jaccard"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "kept",
        title: "Neurons that keep half of their top places",
        kind: FigureKind::Lines,
        metrics: &["kept"],
        log_x: false,
        log_y: false,
    },
];
