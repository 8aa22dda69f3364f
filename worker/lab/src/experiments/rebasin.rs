//! Do two independently trained models differ by more than the order of their neurons?
//!
//! # What it measures
//! B, the second model, is permuted so that it comes as close as possible to A, the first: by its weights (coordinate
//! descent over exact assignments; heads of a transformer are matched by their QK and OV maps and rotated onto each
//! other) and, layer by layer, by the activations of its MLP neurons on the recipe's inputs. On the straight line from A to
//! B as it is (`naive`), matched by weights (`matched`) and by activations (`activation`): `curve_…` `[split, point]` and
//! `barrier_…` `[split]`, the largest excess of the loss over the line between the ends (see `mode-connectivity`).
//! `barrier_ratio` is matched over naive, NaN where there is no naive barrier. `cosine_naive` and `cosine_matched`: cosine
//! between the two weight vectors. `n_moved`: units that changed their place; `permutations.json` has the orders.
//!
//! For models of modular addition and subtraction with MLPs: `confusion_naive` and `confusion_matched` `[frequency,
//! partner_frequency]` count neurons of the last layer by the frequency they follow in either model, place by place, and
//! `same_frequency_…` is the share on the diagonal; `fve` is the smaller of the models' mean fractions of neuron variance
//! that one frequency explains (how far the circuit is understood); `frequency_cosine`: cosine between the components
//! of A and of matched B at each frequency, over all neurons. Other tasks have no frequencies: the arrays are empty and `fve`
//! is NaN.
//!
//! # Interpretation
//! A ratio below 0.05 is "the same up to permutation". One hidden layer on modular addition reaches 0.014; two hidden
//! layers 0.1; models that use different frequencies cannot be matched neuron by neuron, whatever the barrier.
//!
//! # Source
//! D33, D34, D34t: Ainsworth et al. 2022, arXiv 2209.04836 (samuela/git-re-basin); Frankle et al. 2020, arXiv 1912.05671.

use sweep_lens::{Architecture, Hook, Hooks, Kind, Run, Site, Tensor, Transformer, Weights};

use super::mode_connectivity::curve_value;
use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    compare::Couple,
    error::Result,
    experiment::{Experiment, Inputs, Subject},
    modular,
    params::{ParamSet, params},
    progress_measures::Measurer,
    random,
    rebasin::{
        Barrier, Symmetries, activation_matching, frequency_confusion, line, weight_matching,
    },
    shared_task::{SharedTask, ending},
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct Rebasin;

params! {
    /// How finely, and in which random order permutations are tried.
    pub struct Params {
        /// Points on the line, ends included.
        points: u64 = 25, min = 3.0, max = 1001.0;
        /// Seed of the order in which permutations are improved.
        seed: u64 = 0;
    }
}

impl Experiment for Rebasin {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "rebasin",
        version: 2,
        summary: "Permutes one model onto another and measures the loss barrier before and after",
        source: "Ainsworth et al. 2022, arXiv 2209.04836 (samuela/git-re-basin)",
        stage: Stage::Compare,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_shapes()?;
        let (first, second) = (&couple.first, &couple.second);
        let config = &first.checkpoint.config;
        let (a, b) = (&first.checkpoint.weights, &second.checkpoint.weights);
        let task = SharedTask::of(first.checkpoint, second.checkpoint, first.device)?;
        let mut rng = random::stream(params.seed, "rebasin");
        let matching = weight_matching(config, a, b, &mut rng)?;
        let activation = match_activations(couple)?;
        let n_points = params.points as usize;
        let mut heights = Vec::new();
        let versions = [("naive", b), ("matched", &matching.weights), ("activation", &activation)];
        let total = (versions.len() * n_points) as u64;
        for (index, (name, other)) in versions.into_iter().enumerate() {
            let mut splits = Vec::new();
            let mut done = (index * n_points) as u64;
            let curves = line(a, other, n_points, |weights| {
                let (names, losses) = ending(&task.scores(weights)?, "_loss");
                splits = names;
                done += 1;
                cx.progress(done, total)?;
                Ok(losses)
            })?;
            let of = |read: fn(&Barrier) -> f64| curves.iter().map(read).collect::<Vec<f64>>();
            cx.metric(&format!("curve_{name}"), curve_value(&splits, &curves))?;
            cx.metric(&format!("barrier_{name}"), Value::labelled(&splits, of(|b| b.height)))?;
            heights.push((splits, of(|b| b.height)));
        }
        let ratio = |(naive, matched): (&f64, &f64)| {
            if *naive > 0.0 { matched / naive } else { f64::NAN }
        };
        let ratios = heights[0].1.iter().zip(&heights[1].1).map(ratio).collect();
        cx.metric("barrier_ratio", Value::labelled(&heights[0].0, ratios))?;
        cx.metric("cosine_naive", cosine(a, b)?)?;
        cx.metric("cosine_matched", cosine(a, &matching.weights)?)?;
        let moved = |(_, order): &(String, Vec<i64>)| {
            (0i64..).zip(order).filter(|(place, unit)| place != *unit).count()
        };
        cx.metric("n_moved", matching.orders.iter().map(moved).sum::<usize>() as f64)?;
        let orders: serde_json::Map<String, serde_json::Value> = matching
            .orders
            .iter()
            .map(|(name, order)| (name.clone(), order.clone().into()))
            .collect();
        cx.json("permutations.json", &orders)?;
        circuits(couple, &matching.weights, cx)
    }
}

/// Cosine between two models as vectors of all their parameters.
fn cosine(a: &Weights, b: &Weights) -> Result<f64> {
    let (mut product, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (name, a) in a.iter() {
        let (a, b) = (a.to_kind(Kind::Double), b.require(name)?.to_kind(Kind::Double));
        let sum = |x: &Tensor, y: &Tensor| (x * y).sum(Kind::Double).double_value(&[]);
        product += sum(&a, &b);
        of_a += sum(&a, &a);
        of_b += sum(&b, &b);
    }
    // The root of a square is exact, so that a model has cosine 1 with itself.
    Ok(product / (of_a * of_b).sqrt())
}

/// B with the MLP neurons of every layer in the order in which their activations fit those of A.
fn match_activations(couple: &Couple<'_>) -> Result<Weights> {
    let shown = couple.token_set(&[], &[], None)?;
    let config = couple.first.model.config();
    let mut weights = couple.second.checkpoint.weights.shallow_clone();
    for layer in 0..config.n_layers {
        let name = format!("neurons.{layer}");
        let symmetries = Symmetries::of(config).permutations;
        let Some(symmetry) = symmetries.iter().find(|symmetry| symmetry.name == name) else {
            continue;
        };
        let hook = Hook::block(layer as u32, Site::MlpPost);
        let neurons = |subject: &Subject<'_>| -> Tensor {
            let rows = shown.batches().map(|(tokens, _)| {
                let mut kept = Kept { hook, found: None };
                let run = if shown.last_position_only { Run::LAST_POSITION } else { Run::FULL };
                let _ = subject.model.forward(&tokens, &run, &mut kept);
                let found = kept.found.expect("a model with MLPs visits the hook of each layer");
                found.reshape([-1, symmetry.size])
            });
            Tensor::cat(&rows.collect::<Vec<_>>(), 0)
        };
        let order = activation_matching(&neurons(&couple.first), &neurons(&couple.second))?;
        symmetry.permute(&mut weights, &order);
    }
    Ok(weights)
}

struct Kept {
    hook: Hook,
    found: Option<Tensor>,
}

impl Hooks for Kept {
    fn wants(&self, hook: Hook) -> bool {
        hook == self.hook
    }

    fn visit(&mut self, _hook: Hook, activation: Tensor) -> Tensor {
        self.found = Some(activation.shallow_clone());
        activation
    }
}

/// What the neurons follow, before and after matching.
fn circuits(couple: &Couple<'_>, matched: &Weights, cx: &mut Context<'_>) -> Result<()> {
    let first = couple.first.checkpoint;
    let recipe = first.extra.get("recipe").and_then(serde_json::Value::as_str);
    let is_modular = recipe.is_some_and(|recipe| modular::RECIPES.contains(&recipe));
    let has_mlp = first.config.architecture == Architecture::Mlp || !first.config.attn_only;
    // Products and quadratic forms have no waves to follow.
    let measurer =
        if is_modular && has_mlp { Measurer::new(first, couple.first.device).ok() } else { None };
    let Some(measurer) = measurer else {
        for name in ["confusion_naive", "confusion_matched"] {
            cx.metric(name, Value::array(vec![0, 0], Vec::new(), vec![None, None]))?;
        }
        for name in ["same_frequency_naive", "same_frequency_matched", "fve"] {
            cx.metric(name, f64::NAN)?;
        }
        return cx.metric("frequency_cosine", Value::vector(Vec::new()));
    };
    let matched_model = Transformer::new(first.config.clone(), matched.shallow_clone())?;
    let neurons = |model: &Transformer| measurer.outputs(model).neurons;
    let a = neurons(couple.first.model);
    let labels = measurer.basis.labels();
    let mut fve = measurer.neurons(&a, 0.0).mean_explained();
    for (name, model) in [("naive", couple.second.model), ("matched", &matched_model)] {
        let b = neurons(model);
        fve = fve.min(measurer.neurons(&b, 0.0).mean_explained());
        let counts = frequency_confusion(&measurer.basis, &a, &b);
        let total: f64 = counts.iter().flatten().sum();
        let same: f64 = (0..counts.len()).map(|k| counts[k][k]).sum();
        let axis = Some(labels.clone());
        let value = Value::array(
            vec![labels.len(), labels.len()],
            counts.into_iter().flatten().collect(),
            vec![axis.clone(), axis],
        );
        cx.metric(&format!("confusion_{name}"), value)?;
        cx.metric(&format!("same_frequency_{name}"), same / total)?;
    }
    cx.metric("fve", fve)?;
    let b = neurons(&matched_model);
    let cosines = frequency_cosines(&measurer, &a, &b);
    cx.metric("frequency_cosine", Value::labelled(labels, cosines))
}

/// Cosine between the components of two models' neurons at each frequency. `a`, `b`: `[p², n_neurons]`.
fn frequency_cosines(measurer: &Measurer, a: &Tensor, b: &Tensor) -> Vec<f64> {
    let waves = |x: &Tensor| measurer.basis.sums.matmul(&x.to_kind(Kind::Double));
    let (a, b) = (waves(a), waves(b));
    let per_frequency = |x: &Tensor, y: &Tensor| {
        let products = (x * y).sum_dim_intlist(&[-1i64][..], false, Kind::Double);
        to_vec(&products.view([-1, 2]).sum_dim_intlist(&[-1i64][..], false, Kind::Double))
    };
    let norms = per_frequency(&a, &a).into_iter().zip(per_frequency(&b, &b));
    let products = per_frequency(&a, &b).into_iter().zip(norms);
    products.map(|(product, (a, b))| product / (a * b).sqrt()).collect()
}

const fn split(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Split], doc }
}

const fn curve(name: &'static str, doc: &'static str) -> MetricDef {
    MetricDef { name, unit: Unit::Nats, axes: &[Axis::Split, Axis::Point], doc }
}

const fn confusion(name: &'static str, doc: &'static str) -> MetricDef {
    let axes = &[Axis::Frequency, Axis::PartnerFrequency];
    MetricDef { name, unit: Unit::Count, axes, doc }
}

const METRICS: &[MetricDef] = &[
    split("barrier_naive", Unit::Nats, "Loss barrier between the models as they are"),
    split("barrier_matched", Unit::Nats, "The same with the second one matched by its weights"),
    split(
        "barrier_activation",
        Unit::Nats,
        "The same with the second one matched by its neurons' activations",
    ),
    split("barrier_ratio", Unit::Ratio, "Matched barrier over naive barrier"),
    curve("curve_naive", "Loss along the line between the models as they are"),
    curve("curve_matched", "The same with the second one matched by its weights"),
    curve("curve_activation", "The same with the second one matched by its neurons' activations"),
    scalar("cosine_naive", Unit::Ratio, "Cosine between all parameters of the models as they are"),
    scalar("cosine_matched", Unit::Ratio, "The same with the second one matched by its weights"),
    scalar("n_moved", Unit::Count, "Units that changed their place in weight matching"),
    confusion(
        "confusion_naive",
        "Neurons by the frequency they follow in either model, as they are",
    ),
    confusion("confusion_matched", "The same with the second one matched by its weights"),
    scalar(
        "same_frequency_naive",
        Unit::Probability,
        "Share of places whose neurons follow one frequency",
    ),
    scalar("same_frequency_matched", Unit::Probability, "The same after weight matching"),
    scalar(
        "fve",
        Unit::Ratio,
        "Mean fraction of neuron variance that one frequency explains, of the worse model",
    ),
    MetricDef {
        name: "frequency_cosine",
        unit: Unit::Ratio,
        axes: &[Axis::Frequency],
        doc: "Cosine between the components of the models' neurons at each frequency, matched",
    },
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "barrier",
        title: "Loss barrier before and after matching",
        kind: FigureKind::Pairs,
        metrics: &["barrier_naive", "barrier_matched"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "confusion",
        title: "Frequencies of matched neurons",
        kind: FigureKind::HeatMap,
        metrics: &["confusion_matched"],
        log_x: false,
        log_y: false,
    },
];
