//! Which examples does a model answer by the same means, and was each of those means learned in a step of its own?
//!
//! # What it measures
//! Quanta discovery from gradients (D38). From the last checkpoint: predictions with a loss below `max_loss` (nats), every
//! `every`th of them up to `n_examples`; in texts without those that induction explains (the token ends a trigram that stood
//! in the row before). The gradient of each prediction's loss, without embeddings, unembedding and norms (of a perceptron all
//! of it), is normalised; similarities are `1 - arccos(C) / π` of their inner products C, which are computed block by block so
//! that at most `memory_mb` of gradients are held. Spectral clustering gives `n_clusters` groups, numbered by size:
//! `cluster` of each example, `cluster_size`, `similarity_within` and `similarity_to_others` of each group.
//!
//! Over all checkpoints: `cluster_loss`, the mean loss of a group's examples, and its `t_half`, `step_frac` and `verdict` as in
//! `quanta`. Null: examples are dealt to groups of the same sizes at random; `median_step_frac_random` and
//! `fraction_abrupt_random` are what such groups give. `agreement` is the adjusted Rand index with the kinds of
//! examples that the recipe knows itself (NaN if it knows none). `clusters.json` lists the examples.
//!
//! Examples are the held-out ones of the recipe, `tokens`, or `text` for a model with a tokenizer.
//!
//! # Interpretation
//! `cluster_size` over rank is a power law if quanta are. Groups that fall in steps while random ones fall smoothly are
//! quanta; equal `median_step_frac` says that the grouping adds nothing to what single examples do. Examples with other answers
//! are never in one quantum, since their gradients point apart: sparse parity of one bit is taken apart exactly into its tasks
//! and answers, parities of more bits into what neurons make of them, patterns of a task's bits.
//!
//! # Source
//! Michaud et al. 2023, arXiv 2303.13506, section 5 (ejmichaud/quantization-model); clustering as in scikit-learn.

use serde::Serialize;
use serde_json::Value as Json;
use sweep_lens::{Architecture, Device, Kind, Run, Tensor, Transformer, checkpoint::Checkpoint};

use super::quanta::Quantum;
use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    cluster::{adjusted_rand, spectral},
    curve::transition::quantile,
    error::{Error, Result},
    experiment::{Experiment, Inputs},
    gram::{Rows, inner_products},
    params::{ParamSet, params},
    prompts::Prompts,
    random,
    recipes::RECIPES,
    sequence::next_token_nll,
    sink::Context,
    subject::Subject,
    trajectory::{Cell, TrajectoryInput, load_checked},
    value::{Value, to_vec},
};

/// See the module documentation.
pub struct QuantaClusters;

params! {
    /// Which predictions, and how many groups.
    pub struct Params {
        /// Rows of token ids; without these and text, what the model's recipe holds out.
        tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
        /// Rows as texts for the model's tokenizer.
        text: Vec<String> = Vec::new();
        /// Predictions with at least this loss at the last checkpoint, in nats, are not looked at.
        max_loss: f64 = 0.1, min = 0.0;
        /// Every this many of the others are taken …
        every: u64 = 1, min = 1.0;
        /// … up to this many.
        n_examples: u64 = 1000, min = 2.0, max = 20_000.0;
        /// Groups.
        n_clusters: u64 = 10, min = 2.0, max = 2000.0;
        /// A group is learned when its loss is below this fraction of its first value.
        fraction: f64 = 0.5, min = 0.01, max = 0.99;
        /// Gradients held at once, in mebibytes; with less, they are computed more often.
        memory_mb: u64 = 512, min = 1.0, max = 1_048_576.0;
        /// Seed of the clustering and of the random groups.
        seed: u64 = 0;
    }
}

impl Experiment for QuantaClusters {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "quanta-clusters",
        version: 2,
        summary: "Groups examples by their gradients and tests each group's loss for a step of its own",
        source: "Michaud et al. 2023, arXiv 2303.13506, section 5",
        stage: Stage::Trajectory,
        requires: Requires::ANY,
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
        let last = load_checked(checkpoints, steps[steps.len() - 1], Self::CARD)?;
        let model = model_of(&last, device)?;
        let subject = Subject { text: checkpoints.text(), ..Subject::of(&last, &model) };
        let asked = Asked::new(&subject, &params)?;
        let (chosen, n_candidates) = asked.choose(&model, &params)?;
        let n_clusters = params.n_clusters as usize;
        let total = (chosen.len() + steps.len()) as u64;
        let mut gradients = Gradients::new(&asked, &model, &chosen, cx, total);
        let inner = inner_products(&mut gradients, params.memory_mb << 20)?;
        drop(gradients);
        // Zero at an angle of π, 1 at none.
        let similarity = inner.clamp(-1.0, 1.0).arccos() / -std::f64::consts::PI + 1.0;
        let mut rng = random::stream(params.seed, "quanta-clusters");
        let cluster = spectral(&similarity, n_clusters, &mut rng)?;
        emit_groups(&asked, &chosen, &cluster, &similarity, n_candidates, n_clusters, cx)?;
        let order = random::permutation(&mut rng, chosen.len());
        let dealt: Vec<usize> = order.iter().map(|&place| cluster[place as usize]).collect();
        let (mut groups, mut control) = (Curves::new(n_clusters), Curves::new(n_clusters));
        for (index, &step) in steps.iter().enumerate() {
            let checkpoint = load_checked(checkpoints, step, Self::CARD)?;
            let losses = {
                let _no_grad = tch::no_grad_guard();
                let losses = to_vec(&asked.losses(&model_of(&checkpoint, device)?));
                chosen.iter().map(|&place| losses[place]).collect::<Vec<f64>>()
            };
            cx.metric_at("cluster_loss", step, Value::vector(groups.add(&cluster, &losses)))?;
            control.add(&dealt, &losses);
            cx.progress((chosen.len() + index + 1) as u64, total)?;
        }
        emit_steps(
            &groups.test(&steps, params.fraction),
            &control.test(&steps, params.fraction),
            cx,
        )
    }
}

fn model_of(checkpoint: &Checkpoint, device: Device) -> Result<Transformer> {
    Ok(Transformer::new(checkpoint.config.clone(), checkpoint.weights.to_device(device))?)
}

/// Examples that a model is asked, and their answers.
struct Asked {
    /// i64 `[row, pos]`
    tokens: Tensor,
    /// Answers at the last position, i64 `[row]`; without them every next token is one.
    labels: Option<Tensor>,
    /// Rows and their lengths, where every next token is an answer.
    rows: Vec<Vec<i64>>,
    /// What the recipe knows to be different kinds, by row.
    tasks: Vec<usize>,
}

impl Asked {
    fn new(subject: &Subject<'_>, params: &Params) -> Result<Self> {
        let (tokens, text) = (&params.tokens, &params.text);
        if !tokens.is_empty() && !text.is_empty() {
            return Err(Error::params("tokens or text", "expected one of them, found both"));
        }
        if tokens.is_empty() && text.is_empty() {
            return Self::held_out(subject);
        }
        if subject.model.config().architecture == Architecture::Mlp {
            let problem = "a perceptron predicts no next tokens: leave `tokens` and `text` out";
            return Err(Error::Unsupported(problem.to_owned()));
        }
        let prompts = Prompts::new(subject, tokens, text, None)?;
        let padded = prompts.padded().to_device(subject.device);
        Self::of_text(subject, padded, prompts.rows)
    }

    fn of_text(subject: &Subject<'_>, tokens: Tensor, rows: Vec<Vec<i64>>) -> Result<Self> {
        let width = subject.model.config().d_vocab_out;
        let mut targets = rows.iter().flat_map(|row| row.iter().skip(1));
        if let Some(token) = targets.find(|token| **token >= width) {
            let problem = format!("token {token} is none of the {width} that the model predicts");
            return Err(Error::Unsupported(problem));
        }
        if rows.iter().all(|row| row.len() < 2) {
            return Err(Error::params("tokens", "expected rows of two or more tokens"));
        }
        Ok(Self { tokens, labels: None, rows, tasks: Vec::new() })
    }

    /// What the model's recipe measures on.
    fn held_out(subject: &Subject<'_>) -> Result<Self> {
        let extra = &subject.checkpoint.extra;
        let (recipe, params) = (extra["recipe"].as_str(), &extra["params"]);
        let recipe = RECIPES.iter().find(|known| Some(known.card().name) == recipe);
        let (Some(recipe), Some(seed)) = (recipe, extra["seed"].as_u64()) else {
            let problem = "a model that no recipe trained needs `tokens` or `text`";
            return Err(Error::Unsupported(problem.to_owned()));
        };
        if let Some(found) = recipe.objective(params, &[seed], subject.device)?.examples() {
            let labels = Some(found.labels);
            return Ok(Self { tokens: found.tokens, labels, rows: Vec::new(), tasks: found.tasks });
        }
        let probe = recipe.probe(params, subject.device)?;
        if probe.last_position_only || subject.model.config().architecture == Architecture::Mlp {
            let name = recipe.card().name;
            let problem = format!("recipe `{name}` has no single examples: give `tokens`");
            return Err(Error::Unsupported(problem));
        }
        let width = probe.tokens.size()[1] as usize;
        let flat: Vec<i64> = to_vec(&probe.tokens).into_iter().map(|id| id as i64).collect();
        let rows = flat.chunks(width).map(<[i64]>::to_vec).collect();
        Self::of_text(subject, probe.tokens, rows)
    }

    /// Row and position of a prediction, both 0 for what is not one of several in a row.
    fn place(&self, prediction: usize) -> (usize, usize) {
        let width = match self.labels {
            Some(_) => 1,
            None => self.tokens.size()[1] as usize - 1,
        };
        (prediction / width.max(1), prediction % width.max(1))
    }

    /// Losses of rows in nats, `[row]` or `[row, pos - 1]`.
    fn of_rows(&self, model: &Transformer, first: i64, count: i64) -> Tensor {
        let tokens = self.tokens.narrow(0, first, count);
        if let Some(labels) = &self.labels {
            let logits = model.forward(&tokens, &Run::LAST_POSITION, &mut ()).squeeze_dim(-2);
            let answer = labels.narrow(0, first, count).unsqueeze(-1);
            -logits.log_softmax(-1, Kind::Double).gather(-1, &answer, false).squeeze_dim(-1)
        } else {
            let logits = model.forward(&tokens, &Run::FULL, &mut ());
            next_token_nll(&logits.to_kind(Kind::Double), &tokens)
        }
    }

    /// Losses of all predictions, f64 `[prediction]`.
    fn losses(&self, model: &Transformer) -> Tensor {
        let n = self.tokens.size()[0];
        let parts: Vec<Tensor> = (0..n)
            .step_by(ROWS as usize)
            .map(|first| self.of_rows(model, first, ROWS.min(n - first)).view([-1]))
            .collect();
        Tensor::cat(&parts, 0)
    }

    /// Whether a prediction is one, and not what copying from the row explains.
    fn is_wanted(&self, prediction: usize) -> bool {
        if self.labels.is_some() {
            return true;
        }
        let (row, position) = self.place(prediction);
        let row = &self.rows[row];
        let target = position + 1;
        if target >= row.len() {
            return false;
        }
        let Some(start) = target.checked_sub(2) else { return true };
        !row[..target].windows(3).any(|seen| seen == &row[start..=target])
    }

    /// The predictions to be looked at, in order, and how many there were to choose from.
    fn choose(&self, model: &Transformer, params: &Params) -> Result<(Vec<usize>, usize)> {
        let losses = {
            let _no_grad = tch::no_grad_guard();
            to_vec(&self.losses(model))
        };
        let is_known = |&place: &usize| losses[place] < params.max_loss && self.is_wanted(place);
        let known: Vec<usize> = (0..losses.len()).filter(is_known).collect();
        let chosen = known.iter().step_by(params.every as usize).take(params.n_examples as usize);
        let chosen: Vec<usize> = chosen.copied().collect();
        if chosen.len() <= params.n_clusters as usize {
            return Err(Error::Input(format!(
                "{} of {} predictions have a loss below {} nats and are looked at, expected more than n_clusters {}",
                chosen.len(),
                losses.len(),
                params.max_loss,
                params.n_clusters
            )));
        }
        Ok((chosen, known.len()))
    }
}

/// Rows in one forward pass.
const ROWS: i64 = 64;

/// Normalised gradients of single predictions, made one at a time.
struct Gradients<'a, 'c, 's> {
    asked: &'a Asked,
    model: &'a Transformer,
    chosen: &'a [usize],
    leaves: Vec<Tensor>,
    /// The row whose pass is held, and its losses.
    held: Option<(usize, Tensor)>,
    /// How far the first round is.
    furthest: usize,
    total: u64,
    cx: &'c mut Context<'s>,
}

impl<'a, 'c, 's> Gradients<'a, 'c, 's> {
    fn new(
        asked: &'a Asked,
        model: &'a Transformer,
        chosen: &'a [usize],
        cx: &'c mut Context<'s>,
        total: u64,
    ) -> Self {
        let is_wanted = |name: &str| {
            !name.contains("embed") && !name.contains(".ln") && !name.starts_with("ln")
        };
        let weights = model.weights().iter().filter(|(name, _)| is_wanted(name));
        let leaves = weights.map(|(_, tensor)| tensor.set_requires_grad(true)).collect();
        Self { asked, model, chosen, leaves, held: None, furthest: 0, total, cx }
    }
}

impl Rows for Gradients<'_, '_, '_> {
    fn count(&self) -> usize {
        self.chosen.len()
    }

    fn row(&mut self, index: usize) -> Result<Tensor> {
        self.furthest = self.furthest.max(index);
        self.cx.progress(self.furthest as u64, self.total)?;
        let (row, position) = self.asked.place(self.chosen[index]);
        if self.held.as_ref().is_none_or(|(held, _)| *held != row) {
            let losses = self.asked.of_rows(self.model, row as i64, 1).view([-1]);
            self.held = Some((row, losses));
        }
        let (_, losses) = self.held.as_ref().expect("made above");
        let loss = losses.get(position as i64);
        let parts = Tensor::run_backward(&[loss], &self.leaves, true, false);
        let flat: Vec<Tensor> = parts.iter().map(|part| part.reshape([-1])).collect();
        let gradient = Tensor::cat(&flat, 0).to_kind(Kind::Float);
        // A prediction beyond doubt has no gradient, and an angle of a quarter turn to all others.
        let norm = gradient.norm().double_value(&[]).max(f64::from(f32::MIN_POSITIVE));
        Ok(gradient / norm)
    }
}

/// One line of `clusters.json`.
#[derive(Debug, Serialize)]
struct Listed {
    row: usize,
    position: usize,
    cluster: usize,
    task: Option<usize>,
    tokens: Json,
}

fn emit_groups(
    asked: &Asked,
    chosen: &[usize],
    cluster: &[usize],
    similarity: &Tensor,
    n_candidates: usize,
    n_clusters: usize,
    cx: &mut Context<'_>,
) -> Result<()> {
    let n = chosen.len();
    let cells = to_vec(similarity);
    // Sum and number of similarities inside a group, and of those that lead out of it.
    let mut sums = vec![[0.0; 4]; n_clusters];
    for (i, &own) in cluster.iter().enumerate() {
        for (j, &other) in cluster.iter().enumerate().filter(|(j, _)| *j != i) {
            let part = if own == other { 0 } else { 2 };
            sums[own][part] += cells[i * n + j];
            sums[own][part + 1] += 1.0;
        }
    }
    let sizes = (0..n_clusters).map(|group| cluster.iter().filter(|c| **c == group).count() as f64);
    cx.metric("cluster_size", Value::vector(sizes.collect()))?;
    let mean = |part: usize| sums.iter().map(|sum| sum[part] / sum[part + 1]).collect();
    cx.metric("similarity_within", Value::vector(mean(0)))?;
    cx.metric("similarity_to_others", Value::vector(mean(2)))?;
    let label = |&prediction: &usize| {
        let (row, position) = asked.place(prediction);
        format!("{row}:{position}")
    };
    let labels: Vec<String> = chosen.iter().map(label).collect();
    cx.metric("cluster", Value::labelled(labels, cluster.iter().map(|&c| c as f64).collect()))?;
    cx.metric("n_examples", n as f64)?;
    cx.metric("n_candidates", n_candidates as f64)?;
    let task = |place: &usize| asked.tasks.get(asked.place(*place).0).copied();
    let tasks: Vec<Option<usize>> = chosen.iter().map(task).collect();
    let is_known = tasks.iter().all(Option::is_some);
    cx.metric("agreement", if is_known { adjusted_rand(&tasks, cluster) } else { f64::NAN })?;
    let listed = chosen.iter().zip(cluster).zip(tasks).map(|((&prediction, &cluster), task)| {
        let (row, position) = asked.place(prediction);
        let tokens = match asked.rows.get(row) {
            Some(tokens) => tokens[..=(position + 1).min(tokens.len() - 1)].into(),
            None => Json::Null,
        };
        Listed { row, position, cluster, task, tokens }
    });
    cx.json("clusters.json", &listed.collect::<Vec<_>>())
}

/// Mean loss of each group over the checkpoints.
struct Curves {
    groups: Vec<Vec<f64>>,
}

impl Curves {
    fn new(n_clusters: usize) -> Self {
        Self { groups: vec![Vec::new(); n_clusters] }
    }

    /// Adds a checkpoint; returns its means, NaN for a group without examples.
    fn add(&mut self, cluster: &[usize], losses: &[f64]) -> Vec<f64> {
        let mut sums = vec![(0.0, 0.0); self.groups.len()];
        for (&group, loss) in cluster.iter().zip(losses) {
            sums[group].0 += loss;
            sums[group].1 += 1.0;
        }
        let means: Vec<f64> = sums.iter().map(|(sum, n)| sum / n).collect();
        self.groups.iter_mut().zip(&means).for_each(|(curve, mean)| curve.push(*mean));
        means
    }

    fn test(self, steps: &[u64], fraction: f64) -> Vec<Quantum> {
        let cells = self.groups.into_iter().map(|values| Cell { label: String::new(), values });
        cells.map(|cell| Quantum::new(steps, &cell, fraction)).collect()
    }
}

fn emit_steps(groups: &[Quantum], control: &[Quantum], cx: &mut Context<'_>) -> Result<()> {
    let median = |groups: &[Quantum]| {
        let mut values: Vec<f64> =
            groups.iter().map(|g| g.step_frac).filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        if values.is_empty() { f64::NAN } else { quantile(&values, 0.5) }
    };
    let abrupt = |groups: &[Quantum]| {
        let tested = groups.iter().filter(|group| group.is_learned() && !group.verdict.is_nan());
        let (n, called) = tested.fold((0.0, 0.0), |(n, sum), group| (n + 1.0, sum + group.verdict));
        called / n
    };
    let column = |read: fn(&Quantum) -> f64| Value::vector(groups.iter().map(read).collect());
    cx.metric("t_half", column(|group| group.t_half))?;
    cx.metric("step_frac", column(|group| group.step_frac))?;
    cx.metric("verdict", column(|group| group.verdict))?;
    cx.metric("median_step_frac", median(groups))?;
    cx.metric("median_step_frac_random", median(control))?;
    cx.metric("fraction_abrupt", abrupt(groups))?;
    cx.metric("fraction_abrupt_random", abrupt(control))
}

const fn of_cluster(name: &'static str, unit: Unit, doc: &'static str) -> MetricDef {
    MetricDef { name, unit, axes: &[Axis::Cluster], doc }
}

const METRICS: &[MetricDef] = &[
    of_cluster(
        "cluster_loss",
        Unit::Nats,
        "Mean loss of the group's examples, at every checkpoint",
    ),
    of_cluster("cluster_size", Unit::Count, "Examples of the group; the largest comes first"),
    of_cluster("similarity_within", Unit::Ratio, "Mean similarity of the group's gradients"),
    of_cluster("similarity_to_others", Unit::Ratio, "Mean similarity to those of other groups"),
    of_cluster("t_half", Unit::Steps, "First step below the fraction of the first loss"),
    of_cluster("step_frac", Unit::Ratio, "Share of the change in a tenth of log time"),
    of_cluster(
        "verdict",
        Unit::Truth,
        "1: learned, in a transition by the sigmoid test; 0: not; NaN: too few checkpoints",
    ),
    MetricDef {
        name: "cluster",
        unit: Unit::Count,
        axes: &[Axis::Cell],
        doc: "Group of each example, labelled row:position",
    },
    scalar(
        "n_candidates",
        Unit::Count,
        "Predictions with a low loss that copying does not explain",
    ),
    scalar("n_examples", Unit::Count, "Those that were grouped"),
    scalar("agreement", Unit::Ratio, "Adjusted Rand index with the kinds that the recipe knows"),
    scalar("median_step_frac", Unit::Ratio, "Median step_frac of the learned groups"),
    scalar("median_step_frac_random", Unit::Ratio, "The same for random groups of equal sizes"),
    scalar("fraction_abrupt", Unit::Probability, "Share of the learned groups with verdict 1"),
    scalar("fraction_abrupt_random", Unit::Probability, "The same for random groups"),
];

const FIGURES: &[Figure] = &[
    Figure {
        name: "losses",
        title: "Mean loss of each group of examples",
        kind: FigureKind::Lines,
        metrics: &["cluster_loss"],
        log_x: true,
        log_y: false,
    },
    Figure {
        name: "sizes",
        title: "Size of each group of examples",
        kind: FigureKind::Lines,
        metrics: &["cluster_size"],
        log_x: true,
        log_y: true,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_before_is_left_to_induction() {
        let rows = vec![vec![1, 2, 3, 4, 1, 2, 3, 5], vec![7, 7]];
        let tokens = Tensor::zeros([2, 8], (Kind::Int64, Device::Cpu));
        let asked = Asked { tokens, labels: None, rows, tasks: Vec::new() };
        assert_eq!((asked.place(5), asked.place(7)), ((0, 5), (1, 0)));
        // 1 2 3 comes twice: the second 3 is copied, the 5 behind it is not.
        let wanted: Vec<usize> = (0..14).filter(|&place| asked.is_wanted(place)).collect();
        assert_eq!(wanted, [0, 1, 2, 3, 4, 6, 7], "and nothing behind the end of a row");
    }

    #[test]
    fn means_of_groups_are_kept_apart() {
        let mut curves = Curves::new(3);
        let means = curves.add(&[0, 0, 2], &[1.0, 3.0, 5.0]);
        assert!(means[0] == 2.0 && means[1].is_nan() && means[2] == 5.0);
    }
}
