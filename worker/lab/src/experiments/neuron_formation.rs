//! Do neurons form abruptly or gradually?
//!
//! # What it measures
//! At every checkpoint and for every neuron: `kurtosis` and `frequency` (above 0) of its activation over a text, `jaccard`, the shared
//! fraction of its `k` top places with those at the last checkpoint, and the cosines of what it reads and writes to the last
//! checkpoint's, `w_in` and `w_out` (`mean_…` are means over a layer). Each curve of up to `max_neurons` evenly spread neurons per layer is put to the sigmoid test of
//! `phase-transition` (D29): `abrupt` is its verdict, with `midpoint`, the bracket of checkpoints around it (`bracket_low`, `bracket_high`),
//! `width_decades`, and a 95 % block-bootstrap interval (`midpoint_low`, `midpoint_high`) where the verdict is 1. By measure:
//! `fraction_abrupt`, `formed` (those of them that are past their midpoint at a checkpoint), and the same under two null controls: `fraction_shuffled`, checkpoints in random order, and `fraction_walk`, weights that take
//! steps of the same length in random directions (weight measures only, NaN elsewhere); `median_midpoint` of abrupt neurons with its 95 %
//! bootstrap interval over them. SoLU neurons are measured at `post` and `mid`.
//!
//! # Interpretation
//! Neurons form abruptly only as far as `fraction_abrupt` exceeds both controls. A random walk comes near its own end late and steeply on
//! a logarithmic axis: cosines to the end are the most deceptive measure. A bracket as wide as the transition leaves its shape open.
//!
//! # Source
//! Problem 5.23 of the experiment list (both controls), D27-D29; Elhage et al. 2022, Softmax Linear Units.

use sweep_lens::{Kind, Tensor, Transformer, checkpoint::Checkpoint, init};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, metric},
    curve::{
        order::interval,
        transition::{Known, Options, Transition},
    },
    documents::{Documents, document_params},
    error::Result,
    experiment::{Experiment, Inputs},
    neurons::{Extremes, Moments, Sites, cosines, jaccard, median, neuron_weights, places},
    params::ParamSet,
    random,
    sink::Context,
    subject::Subject,
    trajectory::{TrajectoryInput, load_checked},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct NeuronFormation;

document_params! {
    /// Places per neuron.
    k: u64 = 20, min = 1.0, max = 1000.0;
    /// Neurons per layer that are tested.
    max_neurons: u64 = 128, min = 1.0, max = 65536.0;
    /// Bootstrap resamples behind the interval of an abrupt neuron.
    n_bootstrap: u64 = 50, max = 10_000.0;
    /// Seed of controls and resampling.
    seed: u64 = 0;
}

impl Experiment for NeuronFormation {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "neuron-formation",
        version: 1,
        summary: "Tests whether neurons form abruptly, against shuffled time and random walks",
        source: "Elhage et al. 2022 (SoLU); BIC comparison of logistic, line and power law over log steps",
        stage: Stage::Trajectory,
        requires: Requires { mlp: true, ..Requires::ANY },
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
        let _no_grad = tch::no_grad_guard();
        let n_steps = steps.len() as u64;
        let last = steps[steps.len() - 1];
        let end = Neurons::read(&load_checked(checkpoints, last, Self::CARD)?, device, &params)?;
        let chosen = chosen(&end.sites, params.max_neurons);
        let mut curves = Curves::new(&end.sites);
        let mut before: Option<Neurons> = None;
        for (index, &step) in (1..).zip(&steps) {
            let here =
                Neurons::read(&load_checked(checkpoints, step, Self::CARD)?, device, &params)?;
            curves.add(&here, before.as_ref(), &end, step, cx)?;
            before = Some(here);
            cx.progress(index, n_steps + 1)?;
        }
        let verdicts = Verdicts::new(&curves, &steps, &chosen, &end, &params);
        cx.progress(n_steps + 1, n_steps + 1)?;
        for &step in &steps {
            cx.metric_at("formed", step, verdicts.formed(step))?;
        }
        verdicts.emit(&end.sites, &chosen, &params, cx)
    }
}

/// Neurons of each layer that are tested.
fn chosen(sites: &Sites, max: u64) -> Vec<usize> {
    let stride = sites.n_neurons.div_ceil(max as usize).max(1);
    (0..sites.n_neurons).step_by(stride).collect()
}

/// The neurons of one checkpoint.
struct Neurons {
    sites: Sites,
    /// By site and layer.
    moments: Vec<Moments>,
    top: Vec<Extremes>,
    /// By layer: what is read and written, f64 `[neuron, d]`.
    weights: Vec<(Tensor, Tensor)>,
}

impl Neurons {
    fn read(checkpoint: &Checkpoint, device: sweep_lens::Device, params: &Params) -> Result<Self> {
        let weights = checkpoint.weights.to_device(device);
        let model = Transformer::new(checkpoint.config.clone(), weights)?;
        let subject = Subject::of(checkpoint, &model);
        let sites = Sites::of(model.config())?;
        let documents = Documents::new(&subject, &params.wanted())?;
        let n = sites.n_groups();
        let mut moments: Vec<Moments> = (0..n).map(|_| Moments::default()).collect();
        let mut top: Vec<Extremes> = (0..n).map(|_| Extremes::new(params.k, false)).collect();
        documents.for_each(&subject, |batch| {
            let places = places(batch, model.config());
            sites.read(&model, batch, |group, activations| {
                moments[group].add(&activations, 0.0);
                top[group].add(&activations, &places)
            })
        })?;
        let weights = (0..sites.n_layers).map(|layer| {
            let (read, written) = neuron_weights(model.weights(), model.config(), layer)?;
            Ok((read.to_kind(Kind::Double), written.to_kind(Kind::Double)))
        });
        Ok(Self { weights: weights.collect::<Result<_>>()?, sites, moments, top })
    }
}

/// Names of what is measured of a site.
const ACTIVITY: [&str; 3] = ["jaccard", "kurtosis", "frequency"];
/// Names of what is measured of weights.
const WEIGHTS: [&str; 2] = ["w_in", "w_out"];

/// All measures at all checkpoints.
struct Curves {
    /// Names of the measures, `jaccard (post)`, …, `w_in`, `w_out`.
    names: Vec<String>,
    /// [measure][layer][checkpoint][neuron]
    values: Vec<Vec<Vec<Vec<f64>>>>,
    /// Lengths of the steps between checkpoints, [w_in, w_out][layer][step][neuron].
    lengths: Vec<Vec<Vec<Vec<f64>>>>,
}

impl Curves {
    fn new(sites: &Sites) -> Self {
        let activity = sites
            .names
            .iter()
            .flat_map(|site| ACTIVITY.iter().map(move |name| format!("{name} ({site})")));
        let names: Vec<String> =
            activity.chain(WEIGHTS.iter().map(|&name| name.to_owned())).collect();
        let empty = || vec![Vec::new(); sites.n_layers];
        Self {
            values: names.iter().map(|_| empty()).collect(),
            lengths: WEIGHTS.iter().map(|_| empty()).collect(),
            names,
        }
    }

    /// Adds a checkpoint and emits it.
    fn add(
        &mut self,
        here: &Neurons,
        before: Option<&Neurons>,
        end: &Neurons,
        step: u64,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let sites = &here.sites;
        let mut activity: [Vec<Vec<f64>>; 3] = Default::default();
        for group in 0..sites.n_groups() {
            activity[0].push(jaccard(&here.top[group], &end.top[group]));
            activity[1].push(here.moments[group].kurtosis());
            activity[2].push(here.moments[group].frequency());
            for (kind, rows) in activity.iter().enumerate() {
                let measure = group / sites.n_layers * ACTIVITY.len() + kind;
                self.values[measure][group % sites.n_layers].push(rows[group].clone());
            }
        }
        for (name, rows) in ACTIVITY.iter().zip(&activity) {
            cx.metric_at(name, step, sites.value(rows))?;
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let overlaps = activity[0].iter().map(|layer| mean(layer)).collect();
        cx.metric_at("mean_jaccard", step, sites.layers(overlaps))?;
        let first = sites.names.len() * ACTIVITY.len();
        let mut cosine: [Vec<f64>; 2] = Default::default();
        for layer in 0..sites.n_layers {
            let pick = |neurons: &Neurons, side: usize| {
                let (read, written) = &neurons.weights[layer];
                if side == 0 { read.shallow_clone() } else { written.shallow_clone() }
            };
            for (side, cosine) in cosine.iter_mut().enumerate() {
                let values = cosines(&pick(here, side), &pick(end, side));
                cosine.extend(&values);
                self.values[first + side][layer].push(values);
                if let Some(before) = before {
                    let moved = pick(here, side) - pick(before, side);
                    let length = moved.norm_scalaropt_dim(2, &[-1i64][..], false);
                    self.lengths[side][layer].push(to_vec(&length));
                }
            }
        }
        for (name, data) in WEIGHTS.iter().zip(cosine) {
            let means = data.chunks(sites.n_neurons).map(mean).collect();
            cx.metric_at(&format!("mean_{name}"), step, Value::vector(means))?;
            let shape = vec![sites.n_layers, sites.n_neurons];
            cx.metric_at(name, step, Value::array(shape, data, vec![None, None]))?;
        }
        Ok(())
    }
}

/// Cosines to its own end of a walk of the given step lengths in random directions: [checkpoint][neuron].
fn walk(start: &Tensor, lengths: &[Vec<f64>], seed: u64, name: &str) -> Vec<Vec<f64>> {
    let advance = |at: &Tensor, index: usize| {
        let drawn = init::normal(seed, &format!("{name}/{index}"), &at.size(), 1.0, at.device());
        let drawn = drawn.to_kind(Kind::Double);
        let unit = &drawn / drawn.norm_scalaropt_dim(2, &[-1i64][..], true);
        at + unit * Tensor::from_slice(&lengths[index]).to_device(at.device()).unsqueeze(-1)
    };
    let end = (0..lengths.len()).fold(start.copy(), |at, index| advance(&at, index));
    let mut at = start.copy();
    let mut found = vec![cosines(&at, &end)];
    for index in 0..lengths.len() {
        at = advance(&at, index);
        found.push(cosines(&at, &end));
    }
    found
}

/// What the tests say.
struct Verdicts {
    names: Vec<String>,
    /// [measure][layer][tested neuron]
    tests: Vec<Vec<Vec<Transition>>>,
    shuffled: Vec<f64>,
    walked: Vec<f64>,
}

const QUICK: Options = Options { log_x: true, log_y: None, n_bootstrap: 0 };

fn fraction(verdicts: &[bool]) -> f64 {
    verdicts.iter().filter(|abrupt| **abrupt).count() as f64 / verdicts.len() as f64
}

impl Verdicts {
    fn new(
        curves: &Curves,
        steps: &[u64],
        chosen: &[usize],
        end: &Neurons,
        params: &Params,
    ) -> Self {
        let stream = |what: &str| random::stream(params.seed, &format!("neuron-formation/{what}"));
        let curve = |rows: &[Vec<f64>], neuron: usize| -> Vec<f64> {
            rows.iter().map(|row| row[neuron]).collect()
        };
        let full = Options { n_bootstrap: params.n_bootstrap as usize, ..QUICK };
        let (mut tests, mut shuffled, mut walked) = (Vec::new(), Vec::new(), Vec::new());
        let mut known = Known::default();
        for (measure, layers) in curves.values.iter().enumerate() {
            let (mut of_layers, mut nulls) = (Vec::new(), Vec::new());
            for (layer, rows) in layers.iter().enumerate() {
                let mut of_neurons = Vec::new();
                for &neuron in chosen {
                    let mut rng = stream(&format!("{measure}/{layer}/{neuron}"));
                    let values = curve(rows, neuron);
                    let mut found =
                        Transition::test_with(&mut known, steps, &values, QUICK, &mut rng);
                    if found.is_transition && params.n_bootstrap > 0 {
                        found = Transition::test_with(&mut known, steps, &values, full, &mut rng);
                    }
                    of_neurons.push(found);
                    let order = random::permutation(&mut rng, steps.len());
                    let mixed: Vec<f64> =
                        order.iter().map(|&place| values[place as usize]).collect();
                    let test = Transition::test_with(&mut known, steps, &mixed, QUICK, &mut rng);
                    nulls.push(test.is_transition);
                }
                of_layers.push(of_neurons);
            }
            tests.push(of_layers);
            shuffled.push(fraction(&nulls));
            let side = WEIGHTS.iter().position(|name| *name == curves.names[measure]);
            walked.push(side.map_or(f64::NAN, |side| {
                let mut nulls = Vec::new();
                for (layer, lengths) in curves.lengths[side].iter().enumerate() {
                    // The walk starts like a neuron that knows nothing: its length, any direction.
                    let (read, written) = &end.weights[layer];
                    let like = if side == 0 { read } else { written };
                    let name = format!("neuron-formation/walk/{side}/{layer}");
                    let start = init::normal(params.seed, &name, &like.size(), 1.0, like.device());
                    let first = curves.start_norm(side, layer, like);
                    let walked =
                        walk(&(start.to_kind(Kind::Double) * first), lengths, params.seed, &name);
                    for &neuron in chosen {
                        let mut rng = stream(&format!("walk/{side}/{layer}/{neuron}"));
                        let values = curve(&walked, neuron);
                        let test =
                            Transition::test_with(&mut known, steps, &values, QUICK, &mut rng);
                        nulls.push(test.is_transition);
                    }
                }
                fraction(&nulls)
            }));
        }
        Self { names: curves.names.clone(), tests, shuffled, walked }
    }

    /// Share of the tested neurons that are abrupt and past their midpoint, by measure.
    fn formed(&self, step: u64) -> Value {
        let past = |t: &Transition| t.is_transition && t.midpoint <= step as f64;
        let share = |layers: &Vec<Vec<Transition>>| {
            let past: Vec<bool> = layers.iter().flatten().map(past).collect();
            fraction(&past)
        };
        Value::labelled(&self.names, self.tests.iter().map(share).collect())
    }

    fn emit(
        &self,
        sites: &Sites,
        chosen: &[usize],
        params: &Params,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let neurons: Vec<String> = chosen.iter().map(usize::to_string).collect();
        let table = |read: &dyn Fn(&Transition) -> f64| {
            let data = self.tests.iter().flatten().flatten().map(read).collect();
            let shape = vec![self.names.len(), sites.n_layers, chosen.len()];
            let labels = vec![Some(self.names.clone()), None, Some(neurons.clone())];
            Value::array(shape, data, labels)
        };
        cx.metric("abrupt", table(&|t| f64::from(u8::from(t.is_transition))))?;
        cx.metric("midpoint", table(&|t| t.midpoint))?;
        cx.metric("midpoint_low", table(&|t| t.interval[0]))?;
        cx.metric("midpoint_high", table(&|t| t.interval[1]))?;
        cx.metric("bracket_low", table(&|t| t.bracket[0]))?;
        cx.metric("bracket_high", table(&|t| t.bracket[1]))?;
        cx.metric("width_decades", table(&|t| t.width_decades))?;
        let of_measures = |values: Vec<f64>| Value::labelled(&self.names, values);
        let abrupt = self.tests.iter().map(|layers| {
            let verdicts: Vec<bool> = layers.iter().flatten().map(|t| t.is_transition).collect();
            fraction(&verdicts)
        });
        cx.metric("fraction_abrupt", of_measures(abrupt.collect()))?;
        cx.metric("fraction_shuffled", of_measures(self.shuffled.clone()))?;
        cx.metric("fraction_walk", of_measures(self.walked.clone()))?;
        let mut medians: [Vec<f64>; 3] = Default::default();
        for (measure, layers) in self.tests.iter().enumerate() {
            let abrupt = layers.iter().flatten().filter(|test| test.is_transition);
            let midpoints: Vec<f64> = abrupt.map(|test| test.midpoint).collect();
            let mut rng =
                random::stream(params.seed, &format!("neuron-formation/median/{measure}"));
            let n = midpoints.len() as u64;
            let samples = (0..if n > 0 { 200 } else { 0 }).map(|_| {
                median((0..n).map(|_| midpoints[random::below(&mut rng, n) as usize]).collect())
            });
            let [low, high] = interval(samples.collect());
            let found = [median(midpoints.clone()), low, high];
            medians.iter_mut().zip(found).for_each(|(list, value)| list.push(value));
        }
        let names = ["median_midpoint", "median_low", "median_high"];
        for (name, values) in names.into_iter().zip(medians) {
            cx.metric(name, of_measures(values))?;
        }
        Ok(())
    }
}

impl Curves {
    /// Root mean square of an entry of the weights that the walk has to start with, so that it ends as long as
    /// the real ones: their squared length minus the squares of the steps, or a tenth of it if the steps are longer.
    fn start_norm(&self, side: usize, layer: usize, end: &Tensor) -> f64 {
        let squares = end.square().sum(Kind::Double).double_value(&[]);
        let steps: f64 = self.lengths[side][layer].iter().flatten().map(|l| l * l).sum();
        ((squares - steps).max(0.1 * squares) / end.numel() as f64).sqrt()
    }
}

const SITES: &[Axis] = &[Axis::Site, Axis::Layer, Axis::Neuron];
const LAYERS: &[Axis] = &[Axis::Layer, Axis::Neuron];
const TESTED: &[Axis] = &[Axis::Measure, Axis::Layer, Axis::Neuron];
const MEASURES: &[Axis] = &[Axis::Measure];

const METRICS: &[MetricDef] = &[
    metric("jaccard", Unit::Ratio, SITES, "Shared fraction of top places with the last checkpoint"),
    metric("kurtosis", Unit::Ratio, SITES, "Fourth standardised moment of the activation"),
    metric("frequency", Unit::Probability, SITES, "Fraction of positions above 0"),
    metric("w_in", Unit::Ratio, LAYERS, "Cosine of the input weights to the last checkpoint's"),
    metric("w_out", Unit::Ratio, LAYERS, "Cosine of the output weights to the last checkpoint's"),
    metric(
        "mean_jaccard",
        Unit::Ratio,
        &[Axis::Site, Axis::Layer],
        "Mean of `jaccard` over a layer",
    ),
    metric("mean_w_in", Unit::Ratio, &[Axis::Layer], "Mean of `w_in` over a layer"),
    metric("mean_w_out", Unit::Ratio, &[Axis::Layer], "Mean of `w_out` over a layer"),
    metric("abrupt", Unit::Truth, TESTED, "1: the curve of a neuron is a transition"),
    metric("midpoint", Unit::Steps, TESTED, "Step at half of the change"),
    metric("midpoint_low", Unit::Steps, TESTED, "95 % interval of it, where abrupt; lower end"),
    metric("midpoint_high", Unit::Steps, TESTED, "The same, upper end"),
    metric("bracket_low", Unit::Steps, TESTED, "Last checkpoint before the midpoint"),
    metric("bracket_high", Unit::Steps, TESTED, "First checkpoint at or after the midpoint"),
    metric("width_decades", Unit::Decades, TESTED, "From 10 % to 90 % of the change"),
    metric("fraction_abrupt", Unit::Probability, MEASURES, "Tested neurons that are abrupt"),
    metric("formed", Unit::Probability, MEASURES, "Those that are past their midpoint"),
    metric(
        "fraction_shuffled",
        Unit::Probability,
        MEASURES,
        "The same with checkpoints in random order",
    ),
    metric(
        "fraction_walk",
        Unit::Probability,
        MEASURES,
        "The same of random walks with steps of the same length; NaN for activations",
    ),
    metric("median_midpoint", Unit::Steps, MEASURES, "Median midpoint of abrupt neurons"),
    metric("median_low", Unit::Steps, MEASURES, "95 % bootstrap interval over neurons, lower end"),
    metric("median_high", Unit::Steps, MEASURES, "The same, upper end"),
];

const fn figure(
    name: &'static str,
    title: &'static str,
    metrics: &'static [&'static str],
    log_x: bool,
) -> Figure {
    Figure { name, title, kind: FigureKind::Lines, metrics, log_x, log_y: false }
}

const FIGURES: &[Figure] = &[
    figure("jaccard", "Overlap of top places with the last checkpoint", &["mean_jaccard"], true),
    figure(
        "weights",
        "Cosine of neurons' weights to the last checkpoint",
        &["mean_w_in", "mean_w_out"],
        true,
    ),
    figure("formed", "Neurons that have formed abruptly, by measure", &["formed"], true),
    figure(
        "controls",
        "Abrupt neurons against shuffled time and random walks",
        &["fraction_abrupt", "fraction_shuffled", "fraction_walk"],
        false,
    ),
    Figure {
        name: "midpoints",
        title: "When abrupt neurons form",
        kind: FigureKind::Intervals,
        metrics: &["median_midpoint", "median_low", "median_high"],
        log_x: false,
        log_y: true,
    },
];

#[cfg(test)]
mod tests {
    use sweep_lens::Device;

    use super::*;

    #[test]
    fn a_walk_has_the_lengths_it_was_given() {
        let start = init::normal(0, "w", &[3, 40], 1.0, Device::Cpu).to_kind(Kind::Double);
        // Steps of no length: it is at its end all the time.
        let still = walk(&start, &[vec![0.0; 3], vec![0.0; 3]], 0, "walk");
        assert!(still.iter().flatten().all(|cosine| (cosine - 1.0).abs() < 1e-12));
        let far = walk(&start, &vec![vec![5.0; 3]; 30], 0, "walk");
        assert!(far[0][0] < 0.6 && (far[30][0] - 1.0).abs() < 1e-12);
        // Orthogonal steps: cos² to the end grows like the part of the squared length that is walked.
        let length = 6.3f64.powi(2);
        let expected = ((length + 10.0 * 25.0) / (length + 30.0 * 25.0)).sqrt();
        assert!((far[10][1] - expected).abs() < 0.25, "{} {expected}", far[10][1]);
    }
}
