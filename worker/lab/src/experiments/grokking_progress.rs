//! Progress measures of grokking on modular addition.
//!
//! # What it measures
//! Loss and accuracy on training and test pairs; the loss of the Fourier circuit alone (`restricted_loss`: only
//! key frequencies and class means of the logits are kept, D2) and of everything but the circuit
//! (`excluded_loss`: key frequencies removed, training pairs, no bias correction, D3; also for each
//! frequency by itself); how concentrated embedding and neuron-to-logit map W_L = W_out W_U are in few
//! frequencies (Gini of per-frequency norms, cos and sin grouped, D4); cos coefficients of the logits (D6);
//! how much of each neuron's variance one frequency explains (D7); sums of squared weights (D5).
//!
//! Key frequencies are those of *this* checkpoint: frequency k is key if at least `min_neurons` neurons have k as
//! their best frequency and are explained by it to at least `threshold`. Above one half a
//! neuron follows that frequency and no other; a stricter value finds the circuit later (with 0.85 the
//! restricted loss of the demo setting falls together with the test loss). Early in training there may be none: the restricted loss then keeps class means only and the excluded loss is the training loss.
//! `grokking-phases` repeats the measures with the final checkpoint's key frequencies.
//!
//! # Interpretation
//! Restricted loss falling while test loss is still high is the circuit forming under the memorised answers;
//! excluded loss rising is memory giving way; both Gini coefficients jump at cleanup.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217, sections 5.1-5.2; `helpers.py` of the authors' repository.

use sweep_lens::{Hook, Tensor, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Observer, Subject},
    modular,
    params::{ParamSet, params},
    progress_measures::{Measurer, Outputs},
    sink::Context,
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct GrokkingProgress;

params! {
    /// What counts as a key frequency.
    pub struct Params {
        /// Fraction of its variance that a neuron's frequency must explain for it to count.
        threshold: f64 = 0.5, min = 0.0, max = 1.0;
        /// Neurons that must count for a frequency to be key.
        min_neurons: u64 = 1, min = 1.0;
    }
}

impl Experiment for GrokkingProgress {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "grokking-progress",
        version: 1,
        summary: "Follows memorisation and the Fourier circuit of modular addition",
        source: "Nanda et al. 2023, arXiv 2301.05217, sections 5.1-5.2",
        stage: Stage::Analyse,
        requires: Requires { mlp: true, recipes: modular::RECIPES, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let measurer = Measurer::new(subject.checkpoint, subject.device)?;
        let tokens = modular::probe(measurer.pairs.tokens.shallow_clone());
        let observer = Progress {
            neuron_hook: Measurer::neuron_hook(subject.model),
            weights: subject.model.weights(),
            measurer,
            params,
            neurons: Vec::new(),
            logits: Vec::new(),
        };
        Ok(Analysis::Observe(tokens, Box::new(observer)))
    }
}

/// Collects logits and neurons of all pairs.
struct Progress<'a> {
    measurer: Measurer,
    weights: &'a Weights,
    neuron_hook: Hook,
    params: Params,
    neurons: Vec<Tensor>,
    logits: Vec<Tensor>,
}

impl Observer for Progress<'_> {
    fn wants(&self, hook: Hook) -> bool {
        hook == self.neuron_hook
    }

    fn wants_logits(&self) -> bool {
        true
    }

    fn see(&mut self, _hook: Hook, _first_row: i64, activation: &Tensor) -> Result<()> {
        self.neurons.push(activation.squeeze_dim(1));
        Ok(())
    }

    fn logits(&mut self, _first_row: i64, logits: &Tensor) -> Result<()> {
        self.logits.push(logits.squeeze_dim(1).to_kind(sweep_lens::Kind::Double));
        Ok(())
    }

    fn finish(self: Box<Self>, cx: &mut Context<'_>) -> Result<()> {
        let Self { measurer, weights, params, neurons, logits, .. } = *self;
        if logits.is_empty() || neurons.is_empty() {
            return Err(Error::Input("the forward pass gave no activations".to_owned()));
        }
        let outputs =
            Outputs { logits: Tensor::cat(&logits, 0), neurons: Tensor::cat(&neurons, 0) };
        let neurons = measurer.neurons(&outputs.neurons, params.threshold);
        let keys = neurons.key_frequencies(params.min_neurons);
        let found = measurer.measure(&outputs, weights, neurons, keys)?;
        for (name, value) in [
            ("train_loss", found.train_loss),
            ("test_loss", found.test_loss),
            ("train_acc", found.train_acc),
            ("test_acc", found.test_acc),
            ("restricted_loss", found.restricted_loss),
            ("restricted_test_loss", found.restricted_test_loss),
            ("excluded_loss", found.excluded_loss),
            ("gini_embed", found.gini_embed),
            ("gini_neuron_logit", found.gini_neuron_logit),
            ("fve", found.neurons.mean_explained()),
            ("n_neurons_explained", found.neurons.n_explained),
            ("n_neurons_varying", found.neurons.explained.len() as f64),
            ("n_key_frequencies", found.key_frequencies.len() as f64),
        ] {
            cx.metric(name, value)?;
        }
        let frequencies = measurer.basis.labels();
        let is_key = |k: i64| f64::from(u8::from(found.key_frequencies.contains(&k)));
        let n_frequencies = measurer.basis.n_frequencies();
        let mut per_frequency =
            |name: &str, values: Vec<f64>| cx.metric(name, Value::labelled(&frequencies, values));
        per_frequency("key_frequency", (1..=n_frequencies).map(is_key).collect())?;
        per_frequency("n_neurons_frequency", found.neurons.n_owned.clone())?;
        per_frequency("cos_coefficient", found.cos_coefficients.clone())?;
        per_frequency("fourier_norm_embed", found.embed_norms.clone())?;
        per_frequency("fourier_norm_neuron_logit", found.neuron_logit_norms.clone())?;
        let levels = [0.1, 0.25, 0.5, 0.75, 0.9];
        let quantiles = levels.map(|level| found.neurons.quantile(level)).to_vec();
        cx.metric("fve_quantile", Value::labelled(levels, quantiles))?;
        emit_sums_of_squares(weights, cx)?;
        let excluded = measurer.excluded_frequencies(
            &outputs.logits,
            &found.coefficients,
            |done, total| cx.progress(done, total),
        )?;
        cx.metric("excluded_loss_frequency", Value::labelled(&frequencies, excluded))
    }
}

/// Sums of squared weights, in all and per tensor (D5).
fn emit_sums_of_squares(weights: &Weights, cx: &mut Context<'_>) -> Result<()> {
    let kind = sweep_lens::Kind::Double;
    let sums: Vec<f64> =
        weights.iter().map(|(_, w)| to_vec(&w.to_kind(kind).square().sum(kind))[0]).collect();
    cx.metric("sum_squared_weights", sums.iter().sum::<f64>())?;
    cx.metric("sum_squared_weights_tensor", Value::labelled(weights.names(), sums))
}

const fn frequency(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Frequency], doc }
}

const METRICS: &[MetricDef] = &[
    scalar("train_loss", Unit::Nats, "Mean loss on the training pairs"),
    scalar("test_loss", Unit::Nats, "Mean loss on the other pairs"),
    scalar("train_acc", Unit::Probability, "Fraction of training pairs answered correctly"),
    scalar("test_acc", Unit::Probability, "Fraction of the other pairs answered correctly"),
    scalar("restricted_loss", Unit::Nats, "Loss on all pairs of the key frequencies alone"),
    scalar("restricted_test_loss", Unit::Nats, "The same on the test pairs"),
    scalar("excluded_loss", Unit::Nats, "Training loss without the key frequencies"),
    frequency("excluded_loss_frequency", Unit::Nats, "Training loss without one frequency"),
    scalar("gini_embed", Unit::Ratio, "Gini coefficient of the embedding's norms per frequency"),
    scalar("gini_neuron_logit", Unit::Ratio, "Gini coefficient of W_L's norms per frequency"),
    frequency(
        "cos_coefficient",
        Unit::Logit,
        "Inner product of the logits with the unit vector along cos(w_k(a+b-c))",
    ),
    frequency("fourier_norm_embed", Unit::Norm, "Norm of the embedding's component"),
    frequency("fourier_norm_neuron_logit", Unit::Norm, "Norm of W_L's component"),
    scalar(
        "fve",
        Unit::Ratio,
        "Fraction of a neuron's variance explained by its best frequency, mean over varying neurons",
    ),
    MetricDef {
        name: "fve_quantile",
        unit: Unit::Ratio,
        axes: &[Axis::Quantile],
        doc: "Quantiles over varying neurons of the fraction explained",
    },
    scalar("n_neurons_explained", Unit::Count, "Neurons explained to at least the threshold"),
    scalar("n_neurons_varying", Unit::Count, "Neurons that vary over the pairs at all"),
    frequency("n_neurons_frequency", Unit::Count, "Explained neurons that follow the frequency"),
    scalar("n_key_frequencies", Unit::Count, "Number of key frequencies"),
    frequency("key_frequency", Unit::Truth, "1 if the frequency is key, else 0"),
    scalar("sum_squared_weights", Unit::SquaredNorm, "Sum of squares of all parameters"),
    MetricDef {
        name: "sum_squared_weights_tensor",
        unit: Unit::SquaredNorm,
        axes: &[Axis::Tensor],
        doc: "Sum of squares of one tensor",
    },
];

const fn figure(
    name: &'static str,
    title: &'static str,
    kind: FigureKind,
    metrics: &'static [&'static str],
    log_y: bool,
) -> Figure {
    Figure { name, title, kind, metrics, log_x: false, log_y }
}

const FIGURES: &[Figure] = &[
    figure(
        "losses",
        "Grokking: losses",
        FigureKind::Lines,
        &["train_loss", "test_loss", "restricted_loss", "excluded_loss"],
        true,
    ),
    figure(
        "gini",
        "Concentration in few frequencies",
        FigureKind::Lines,
        &["gini_embed", "gini_neuron_logit"],
        false,
    ),
    figure("fve", "Neuron variance explained", FigureKind::Lines, &["fve"], false),
    figure("weights", "Sum of squared weights", FigureKind::Lines, &["sum_squared_weights"], false),
    figure(
        "cos-coefficients",
        "Cos coefficients of the logits",
        FigureKind::HeatMap,
        &["cos_coefficient"],
        false,
    ),
    figure(
        "excluded",
        "Training loss without one frequency",
        FigureKind::HeatMap,
        &["excluded_loss_frequency"],
        false,
    ),
    figure(
        "embedding",
        "Embedding norm per frequency",
        FigureKind::HeatMap,
        &["fourier_norm_embed"],
        false,
    ),
];
