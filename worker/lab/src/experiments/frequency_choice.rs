//! Which frequencies a model of modular addition ends up with, when they are born and die, and whether that was to be seen
//! at the start.
//!
//! # What it measures
//! At every checkpoint, per frequency: `fourier_norm_embed`, `fourier_norm_neuron_logit` (norms of the components of embedding
//! and neuron-to-logit map), `cos_coefficient` (D6), `n_neurons_frequency` (D7). A frequency is alive at a checkpoint if at least
//! `min_neurons` neurons follow it to `threshold`. It is *born* when it comes alive and stays so for `persistence`
//! checkpoints (or to the end), and *dies* when it stops being alive for as long. A *switch* is a death with a birth at
//! most `persistence` checkpoints away. `birth_step` is the last birth of each frequency, `final` 1 if it is alive at the end.
//!
//! `correlation` is Spearman's, over frequencies, between the size of the final circuit (cos coefficient of the last
//! checkpoint) and predictors from the first checkpoint: both norms, the norm of the loss gradient in each
//! frequency of the embedding, and the growth of the embedding's norms to the second checkpoint. NaN where these are the last
//! checkpoint itself.
//!
//! # Interpretation
//! High correlations say that the choice is made by the initial weights (a lottery); low ones that data and noise make
//! it. Runs that share `init_seed` or `data_seed` separate the two. Many deaths are a competition.
//!
//! # Source
//! Nanda et al. 2023, arXiv 2301.05217, section 5; frequencies that switch: remarks there.

use serde::Serialize;
use sweep_lens::{Kind, Tensor, Transformer};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    curve::order::spearman,
    error::Result,
    experiment::{Experiment, Inputs},
    modular::{self, nll},
    params::{ParamSet, params},
    progress_measures::Measurer,
    sink::Context,
    trajectory::{TrajectoryInput, load_checked},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct FrequencyChoice;

params! {
    /// When a frequency is alive.
    pub struct Params {
        /// Fraction of its variance that a neuron's frequency must explain for it to count.
        threshold: f64 = 0.5, min = 0.0, max = 1.0;
        /// Neurons that must count for a frequency to be alive.
        min_neurons: u64 = 1, min = 1.0;
        /// Checkpoints in a row that make a birth or a death; single flickers are neither.
        persistence: u64 = 3, min = 1.0;
    }
}

impl Experiment for FrequencyChoice {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "frequency-choice",
        version: 2,
        summary: "Follows births, deaths and switches of frequencies and what foretells the survivors",
        source: "Nanda et al. 2023, arXiv 2301.05217, section 5",
        stage: Stage::Trajectory,
        requires: Requires { mlp: true, recipes: modular::RECIPES, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoints
    }

    fn trajectory(
        &self,
        input: &mut TrajectoryInput<'_>,
        params: Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let device = input.device;
        let checkpoints = input.checkpoints()?;
        let steps = checkpoints.steps().to_vec();
        let (mut alive, mut history, mut circuit) = (Vec::new(), Vec::new(), Vec::new());
        let mut start: Option<(Measurer, Vec<f64>)> = None;
        for (index, &step) in steps.iter().enumerate() {
            let checkpoint = load_checked(checkpoints, step, Self::CARD)?;
            if start.is_none() {
                let measurer = Measurer::new(&checkpoint, device)?;
                let weights = checkpoint.weights.to_device(device);
                let model = Transformer::new(checkpoint.config.clone(), weights)?;
                let gradient = gradient_norms(&model, &measurer)?;
                start = Some((measurer, gradient));
            }
            let (measurer, _) = start.as_ref().expect("made at the first checkpoint");
            let _no_grad = tch::no_grad_guard();
            let model = Transformer::new(checkpoint.config, checkpoint.weights.to_device(device))?;
            let outputs = measurer.outputs(&model);
            let neurons = measurer.neurons(&outputs.neurons, params.threshold);
            let counts = neurons.n_owned.clone();
            let found = measurer.measure(&outputs, model.weights(), neurons, Vec::new())?;
            let labels = measurer.basis.labels();
            for (name, values) in [
                ("fourier_norm_embed", &found.embed_norms),
                ("fourier_norm_neuron_logit", &found.neuron_logit_norms),
                ("cos_coefficient", &found.cos_coefficients),
                ("n_neurons_frequency", &counts),
            ] {
                cx.metric_at(name, step, Value::labelled(&labels, values.clone()))?;
            }
            alive.push(counts.iter().map(|&n| n >= params.min_neurons as f64).collect::<Vec<_>>());
            if index < 2 {
                history.push((found.embed_norms, found.neuron_logit_norms));
            }
            circuit = found.cos_coefficients;
            cx.progress(index as u64 + 1, steps.len() as u64)?;
        }
        let (measurer, gradient) = start.expect("checkpoints() gives at least one");
        let labels = measurer.basis.labels();
        emit_events(&steps, &alive, &labels, params.persistence as usize, cx)?;
        emit_correlations(&history, gradient, &circuit, steps.len(), cx)
    }
}

/// A frequency that comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Event {
    step: u64,
    frequency: usize,
    is_birth: bool,
    /// Checkpoint index.
    #[serde(skip)]
    at: usize,
}

/// Changes of a frequency's state that last `persistence` checkpoints, or to the end.
fn events_of(frequency: usize, steps: &[u64], alive: &[bool], persistence: usize) -> Vec<Event> {
    let mut state = false;
    let mut events = Vec::new();
    for at in 0..alive.len() {
        let lasts = alive[at..].iter().take(persistence).all(|&now| now != state);
        if lasts {
            state = !state;
            events.push(Event { step: steps[at], frequency, is_birth: state, at });
        }
    }
    events
}

/// Deaths that have a birth of another frequency at most `window` checkpoints away, each birth used once.
fn count_switches(events: &[Event], window: usize) -> usize {
    let mut births: Vec<&Event> = events.iter().filter(|event| event.is_birth).collect();
    let mut switches = 0;
    for death in events.iter().filter(|event| !event.is_birth) {
        let partner = births.iter().position(|birth| {
            birth.frequency != death.frequency && birth.at.abs_diff(death.at) <= window
        });
        if let Some(partner) = partner {
            births.remove(partner);
            switches += 1;
        }
    }
    switches
}

fn emit_events(
    steps: &[u64],
    alive: &[Vec<bool>],
    labels: &[String],
    persistence: usize,
    cx: &mut Context<'_>,
) -> Result<()> {
    let mut events: Vec<Event> = (0..labels.len())
        .flat_map(|index| {
            let states: Vec<bool> = alive.iter().map(|now| now[index]).collect();
            events_of(index + 1, steps, &states, persistence)
        })
        .collect();
    events.sort_by_key(|event| (event.at, event.frequency));
    let last_birth = |frequency: usize| {
        let mut births = events.iter().filter(|e| e.is_birth && e.frequency == frequency);
        births.next_back().map_or(f64::NAN, |event| event.step as f64)
    };
    let survives = |frequency: usize| {
        let last = events.iter().rfind(|event| event.frequency == frequency);
        f64::from(u8::from(last.is_some_and(|event| event.is_birth)))
    };
    let all = 1..=labels.len();
    cx.metric("birth_step", Value::labelled(labels, all.clone().map(last_birth).collect()))?;
    let survivors: Vec<f64> = all.map(survives).collect();
    cx.metric("n_final", survivors.iter().sum::<f64>())?;
    cx.metric("final", Value::labelled(labels, survivors))?;
    let births = events.iter().filter(|event| event.is_birth).count();
    cx.metric("n_births", births as f64)?;
    cx.metric("n_deaths", (events.len() - births) as f64)?;
    cx.metric("n_switches", count_switches(&events, persistence) as f64)?;
    cx.json("events.json", &events)
}

fn emit_correlations(
    history: &[(Vec<f64>, Vec<f64>)],
    gradient: Vec<f64>,
    circuit: &[f64],
    n_steps: usize,
    cx: &mut Context<'_>,
) -> Result<()> {
    // The end foretells nothing, least of all itself.
    let early = |values: Vec<f64>, n_used: usize| {
        if n_steps > n_used { values } else { vec![f64::NAN; values.len()] }
    };
    let circuit: Vec<f64> = circuit.iter().map(|coefficient| coefficient.abs()).collect();
    let (embed, logit) = &history[0];
    let growth = match history.get(1) {
        Some((later, _)) => later.iter().zip(embed).map(|(later, now)| later - now).collect(),
        None => vec![f64::NAN; embed.len()],
    };
    let predictors = [
        ("norm_embed", early(embed.clone(), 1)),
        ("norm_neuron_logit", early(logit.clone(), 1)),
        ("gradient_embed", early(gradient, 1)),
        ("early_growth", early(growth, 2)),
    ];
    let names: Vec<&str> = predictors.iter().map(|predictor| predictor.0).collect();
    let values = predictors.iter().map(|(_, values)| spearman(values, &circuit)).collect();
    cx.metric("correlation", Value::labelled(names, values))
}

/// Norm of each frequency's component of the training loss's gradient with respect to the embedding.
fn gradient_norms(model: &Transformer, measurer: &Measurer) -> Result<Vec<f64>> {
    let embedding = modular::embedding(model.weights())?.shallow_clone();
    let _leaf = embedding.set_requires_grad(true);
    let pairs = &measurer.pairs;
    let tokens = pairs.tokens.index_select(0, &pairs.train);
    let labels = pairs.labels.index_select(0, &pairs.train);
    let logits = model.forward(&tokens, &sweep_lens::Run::LAST_POSITION, &mut ()).squeeze_dim(-2);
    let loss = nll(&logits, &labels).mean(Kind::Double);
    let gradient = Tensor::run_backward(&[loss], &[embedding], false, false);
    let rows = gradient[0].narrow(0, 0, pairs.p).to_kind(Kind::Double);
    Ok(to_vec(&measurer.basis.norms(&rows)))
}

const fn frequency(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Frequency], doc }
}

const METRICS: &[MetricDef] = &[
    frequency("fourier_norm_embed", Unit::Norm, "Norm of the embedding's component"),
    frequency("fourier_norm_neuron_logit", Unit::Norm, "Norm of W_L's component"),
    frequency("cos_coefficient", Unit::Logit, "Cos coefficient of the logits (D6)"),
    frequency("n_neurons_frequency", Unit::Count, "Neurons that follow the frequency"),
    frequency("birth_step", Unit::Steps, "Last step at which it came alive to stay; NaN if never"),
    frequency("final", Unit::Truth, "1 if it is alive at the end, else 0"),
    scalar("n_final", Unit::Count, "Frequencies alive at the end"),
    scalar("n_births", Unit::Count, "Times that a frequency came alive to stay"),
    scalar("n_deaths", Unit::Count, "Times that a frequency died to stay dead"),
    scalar("n_switches", Unit::Count, "Deaths with the birth of another frequency beside them"),
    MetricDef {
        name: "correlation",
        unit: Unit::Ratio,
        axes: &[Axis::Predictor],
        doc: "Spearman's correlation of a predictor at the start with the final circuit",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "frequencies",
    title: "Neurons per frequency",
    kind: FigureKind::HeatMap,
    metrics: &["n_neurons_frequency"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flickers_are_no_births_and_switches_need_two() {
        let steps: Vec<u64> = (0..10).map(|i| i * 100).collect();
        let on = |pattern: &str| pattern.chars().map(|c| c == '1').collect::<Vec<_>>();
        let events = |frequency, pattern| events_of(frequency, &steps, &on(pattern), 2);
        assert!(events(1, "0100100000").is_empty());
        let short = events(2, "0111100000");
        assert_eq!(
            short.iter().map(|e| (e.step, e.is_birth)).collect::<Vec<_>>(),
            [(100, true), (500, false)]
        );
        // Alive at the very end counts, however short.
        assert_eq!(events(3, "0000000001").len(), 1);
        let rise = events(4, "0000001111");
        let all = [short.clone(), rise].concat();
        assert_eq!(count_switches(&all, 2), 1, "one goes, another comes 100 steps later");
        assert_eq!(count_switches(&short, 9), 0, "its own birth is no switch");
    }
}
