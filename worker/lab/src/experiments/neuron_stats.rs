//! How neurons behave on a text: how often, how much and how heavy-tailed they fire.
//!
//! # What it measures
//! Over all counted positions (a BOS token put in front does not count), for every neuron: `mean`, `std`, `skewness`,
//! `kurtosis` (fourth central moment over the squared variance, 3 for a normal distribution), `frequency` (fraction of
//! positions above `threshold`), `largest`. `site` tells the activations of a SoLU MLP apart: `mid` is in front of its norm,
//! `post` behind it; other MLPs have `post` only. By layer: `dead`, the fraction of neurons that never exceed the threshold, and
//! `median_kurtosis`. From the weights: norms of what a neuron reads (`w_in_norm`) and writes (`w_out_norm`),
//! `in_out_cosine` between the two, and cosines of both to the weights before training (`w_in_init`, `w_out_init`). The text streams.
//!
//! # Interpretation
//! A neuron that fires rarely and strongly (high kurtosis, low frequency) is a candidate for one feature; SoLU was made to have
//! more of them. Kurtosis of a neuron that never fires is NaN. Cosines to the beginning fall as neurons find their direction.
//!
//! # Source
//! Elhage et al. 2022, Softmax Linear Units (SoLU, dead neurons); Gurnee et al. 2024, arXiv 2401.12181 (statistics of
//! neurons); Pébay 2008 (one-pass moments); D27, D28.

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, metric},
    documents::{Documents, document_params},
    error::Result,
    experiment::{Analysis, Experiment, Inputs, Subject},
    neurons::{Extremes, Moments, Sites, cosines, median, neuron_weights, places},
    params::ParamSet,
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct NeuronStats;

document_params! {
    /// A neuron fires where its activation is above this.
    threshold: f64 = 0.0;
}

impl Experiment for NeuronStats {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "neuron-stats",
        version: 1,
        summary: "Measures moments and frequency of every neuron's activation over a text",
        source: "Elhage et al. 2022 (SoLU); Gurnee et al. 2024, arXiv 2401.12181",
        stage: Stage::Analyse,
        requires: Requires { mlp: true, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: true, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let sites = Sites::of(subject.model.config())?;
        let documents = Documents::new(subject, &params.wanted())?;
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            measure(&subject, &sites, &documents, params.threshold, cx)
        })))
    }
}

/// A statistic of every neuron.
type Read = fn(&Moments) -> Vec<f64>;

fn measure(
    subject: &Subject<'_>,
    sites: &Sites,
    documents: &Documents,
    threshold: f64,
    cx: &mut Context<'_>,
) -> Result<()> {
    let mut moments: Vec<Moments> = (0..sites.n_groups()).map(|_| Moments::default()).collect();
    let mut largest: Vec<Extremes> =
        (0..sites.n_groups()).map(|_| Extremes::new(1, false)).collect();
    documents.for_each(subject, |batch| {
        let places = places(batch, subject.model.config());
        sites.read(subject.model, batch, |group, activations| {
            moments[group].add(&activations, threshold);
            largest[group].add(&activations, &places)
        })?;
        cx.progress(batch.progress.0, batch.progress.1)
    })?;
    let reads: [(&str, Read); 5] = [
        ("mean", Moments::mean),
        ("std", Moments::std),
        ("skewness", Moments::skewness),
        ("kurtosis", Moments::kurtosis),
        ("frequency", Moments::frequency),
    ];
    for (name, read) in reads {
        let rows: Vec<Vec<f64>> = moments.iter().map(read).collect();
        cx.metric(name, sites.value(&rows))?;
    }
    let best: Vec<Vec<f64>> = largest.iter().map(Extremes::best).collect();
    cx.metric("largest", sites.value(&best))?;
    let dead = |largest: &Vec<f64>| {
        largest.iter().filter(|value| **value <= threshold).count() as f64 / largest.len() as f64
    };
    cx.metric("dead", sites.layers(best.iter().map(dead).collect()))?;
    let medians = moments.iter().map(|moments| median(moments.kurtosis())).collect();
    cx.metric("median_kurtosis", sites.layers(medians))?;
    cx.metric("n_positions", moments[0].n)?;
    emit_weights(subject, sites, cx)
}

fn emit_weights(subject: &Subject<'_>, sites: &Sites, cx: &mut Context<'_>) -> Result<()> {
    let config = subject.model.config();
    let mut found: [Vec<f64>; 5] = Default::default();
    for layer in 0..sites.n_layers {
        let (w_in, w_out) = neuron_weights(subject.model.weights(), config, layer)?;
        let norms = |w: &sweep_lens::Tensor| {
            to_vec(&w.to_kind(sweep_lens::Kind::Double).norm_scalaropt_dim(2, &[-1i64][..], false))
        };
        let unknown = || vec![f64::NAN; sites.n_neurons];
        let both = if w_in.size() == w_out.size() { cosines(&w_in, &w_out) } else { unknown() };
        let before = match subject.init {
            Some(init) => {
                let (a, b) = neuron_weights(init, config, layer)?;
                let device = w_in.device();
                [cosines(&w_in, &a.to_device(device)), cosines(&w_out, &b.to_device(device))]
            }
            None => [unknown(), unknown()],
        };
        let [in_init, out_init] = before;
        let all = [norms(&w_in), norms(&w_out), both, in_init, out_init];
        found.iter_mut().zip(all).for_each(|(found, values)| found.extend(values));
    }
    let names = ["w_in_norm", "w_out_norm", "in_out_cosine", "w_in_init", "w_out_init"];
    for (name, data) in names.into_iter().zip(found) {
        let shape = vec![sites.n_layers, sites.n_neurons];
        cx.metric(name, Value::array(shape, data, vec![None, None]))?;
    }
    Ok(())
}

const NEURONS: &[Axis] = &[Axis::Site, Axis::Layer, Axis::Neuron];
const WEIGHTS: &[Axis] = &[Axis::Layer, Axis::Neuron];

const METRICS: &[MetricDef] = &[
    metric("mean", Unit::Dimensionless, NEURONS, "Mean activation"),
    metric("std", Unit::Dimensionless, NEURONS, "Standard deviation of the activation"),
    metric("skewness", Unit::Ratio, NEURONS, "Third standardised moment"),
    metric("kurtosis", Unit::Ratio, NEURONS, "Fourth standardised moment; 3 for a normal one"),
    metric("frequency", Unit::Probability, NEURONS, "Fraction of positions above the threshold"),
    metric("largest", Unit::Dimensionless, NEURONS, "Largest activation"),
    metric(
        "dead",
        Unit::Probability,
        &[Axis::Site, Axis::Layer],
        "Fraction of neurons that never exceed the threshold",
    ),
    metric(
        "median_kurtosis",
        Unit::Ratio,
        &[Axis::Site, Axis::Layer],
        "Median kurtosis of the neurons that vary",
    ),
    metric("n_positions", Unit::Count, &[], "Positions that counted"),
    metric("w_in_norm", Unit::Norm, WEIGHTS, "Norm of the weights a neuron reads with"),
    metric("w_out_norm", Unit::Norm, WEIGHTS, "Norm of the weights a neuron writes with"),
    metric("in_out_cosine", Unit::Ratio, WEIGHTS, "Cosine between what it reads and writes"),
    metric(
        "w_in_init",
        Unit::Ratio,
        WEIGHTS,
        "Cosine of the input weights to those before training",
    ),
    metric(
        "w_out_init",
        Unit::Ratio,
        WEIGHTS,
        "Cosine of the output weights to those before training",
    ),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "kurtosis",
        title: "Median kurtosis of neurons",
        kind: FigureKind::Lines,
        metrics: &["median_kurtosis"],
        log_x: true,
        log_y: true,
    },
    Figure {
        name: "dead",
        title: "Neurons that never fire",
        kind: FigureKind::Lines,
        metrics: &["dead"],
        log_x: true,
        log_y: false,
    },
];
