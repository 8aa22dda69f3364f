//! Which pairs of heads would compose more after a step down the gradient of the induction loss?
//!
//! # What it measures
//! The induction loss of `induction-heads` on random tokens that repeat (nats, from the second token of the second copy on), its
//! gradient `g` with respect to `W_Q`, `W_K`, `W_V` and `W_O` of all heads, and for every ordered pair of heads of different layers the
//! derivative of its composition scores (as in `composition`) along `-g`: `k_composition_gradient` is what K-composition gains per unit of
//! learning rate of gradient descent, `q_…` and `v_…` the same for the others; 0 where the reader is not later. `…_max` is the
//! largest one. `gradient_norm` is `‖g‖`, `induction_loss` the loss itself. In f64, by central differences of the scores over a step of
//! 1e-6 of the weights' norm.
//!
//! # Interpretation
//! Positive: the loss itself pulls the two heads together. It is a rate, not a distance: large while a circuit forms, small before the loss
//! has anything to gain and after it is done. A ranking of pairs by it is one of the predictors of `predict-pair`
//! (`gradient: true`). Momentum and weight decay of an optimiser are not part of it.
//!
//! # Source
//! Elhage et al. 2021 (composition); Nanda 2022, 200 Concrete Open Problems, 5.12 and 5.13.

use sweep_lens::{Kind, Run, Tensor, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit, scalar},
    error::{Error, Result},
    experiment::{Analysis, Experiment, Inputs, Subject},
    params::{ParamSet, params},
    qk_ov::{Circuits, Compositions},
    sequence::next_token_nll,
    sink::Context,
    token_rows::{Drawing, Layout, TokenRows},
    value::Value,
};

/// See the module documentation.
pub struct CompositionGradient;

params! {
    /// Tokens of the loss.
    pub struct Params {
        /// Rows of random tokens.
        batch: u64 = 64, min = 1.0, max = 65536.0;
        /// Random tokens that repeat; null: 50, or as many as the context has room for.
        seq_len: Option<u64> = None, min = 2.0, max = 65536.0;
        /// How often they stand there.
        n_copies: u64 = 2, min = 2.0, max = 64.0;
        /// Whether there is a BOS token; null: the model's default.
        prepend_bos: Option<bool> = None;
        /// Seed of the tokens.
        seed: u64 = 0;
    }
}

/// Tensors of a layer that scores depend on.
const PARTS: [&str; 4] = ["W_Q", "W_K", "W_V", "W_O"];

/// Rows of one forward and backward pass.
const ROWS_PER_PASS: i64 = 16;

/// Step of the central difference over the norm of the weights: in f64 right to about seven digits.
const STEP: f64 = 1e-6;

impl Experiment for CompositionGradient {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "composition-gradient",
        version: 1,
        summary: "Measures how the gradient of the induction loss changes the composition of every pair of heads",
        source: "Elhage et al. 2021; Nanda 2022, 200 Concrete Open Problems, 5.12",
        stage: Stage::Analyse,
        requires: Requires { min_layers: 2, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Checkpoint { init: false, previous: false }
    }

    fn analyse<'a>(&self, subject: &Subject<'a>, params: Params) -> Result<Analysis<'a>> {
        let drawing = Drawing {
            batch: params.batch,
            seq_len: params.seq_len,
            n_copies: params.n_copies,
            overwrite_bos: false,
            distinct: false,
            seed: params.seed,
        };
        let rows = TokenRows::draw(subject, params.prepend_bos, drawing)?;
        let config = subject.model.config();
        rows.check_targets(config)?;
        let n_cells = (config.n_layers * config.n_heads).pow(2);
        if n_cells > 1 << 21 {
            return Err(Error::Unsupported(format!("{n_cells} pairs of heads cannot be kept")));
        }
        let tokens = rows.tokens(subject);
        let layout = rows.layout.expect("drawn rows have a layout");
        let subject = *subject;
        Ok(Analysis::Procedure(Box::new(move |cx| {
            let found = Descent::of(&subject, &tokens, layout, cx)?;
            found.emit(&subject, cx)
        })))
    }
}

/// Where gradient descent goes.
struct Descent {
    loss: f64,
    /// Weights in f64.
    weights: Weights,
    /// Name and negative gradient of each weight that scores depend on.
    direction: Vec<(String, Tensor)>,
}

impl Descent {
    fn of(
        subject: &Subject<'_>,
        tokens: &Tensor,
        layout: Layout,
        cx: &mut Context<'_>,
    ) -> Result<Self> {
        let config = subject.model.config();
        let mut weights = subject.model.weights().copy().to_kind(Kind::Double);
        let mut names = Vec::new();
        for layer in 0..config.n_layers {
            for part in PARTS {
                let name = format!("blocks.{layer}.attn.{part}");
                let leaf = weights.require(&name)?.detach().copy().set_requires_grad(true);
                weights.insert(name.as_str(), leaf);
                names.push(name);
            }
        }
        let leaves: Vec<Tensor> = names
            .iter()
            .map(|name| Ok(weights.require(name)?.shallow_clone()))
            .collect::<Result<_>>()?;
        let model = Transformer::new(config.clone(), weights.shallow_clone())?;
        let n_rows = tokens.size()[0];
        let mut direction: Vec<Tensor> = leaves.iter().map(Tensor::zeros_like).collect();
        let mut total = 0.0;
        for first in (0..n_rows).step_by(ROWS_PER_PASS as usize) {
            cx.progress(first as u64, n_rows as u64)?;
            let some = tokens.narrow(0, first, ROWS_PER_PASS.min(n_rows - first));
            let (loss, gradients) = tch::with_grad(|| {
                let logits = model.forward(&some, &Run::FULL, &mut ());
                let losses = next_token_nll(&logits, &some);
                let from = layout.seq_len + 1;
                let repeated = losses.narrow(1, from, losses.size()[1] - from);
                let loss = repeated.sum(Kind::Double) / (repeated.size()[1] * n_rows) as f64;
                let gradients = Tensor::run_backward(&[&loss], &leaves, false, false);
                (loss.double_value(&[]), gradients)
            });
            total += loss;
            for (sum, gradient) in direction.iter_mut().zip(&gradients).filter(|(_, g)| g.defined())
            {
                *sum -= gradient.detach();
            }
        }
        let detached = |leaf: &Tensor| leaf.detach();
        names.iter().zip(&leaves).for_each(|(name, leaf)| {
            weights.insert(name.as_str(), detached(leaf));
        });
        Ok(Self { loss: total, weights, direction: names.into_iter().zip(direction).collect() })
    }

    /// Scores of the weights moved by `step` along the direction.
    fn scores(&self, subject: &Subject<'_>, step: f64) -> Result<Compositions> {
        let mut moved = self.weights.shallow_clone();
        for (name, direction) in &self.direction {
            let weight = self.weights.require(name)? + direction * step;
            moved.insert(name.as_str(), weight);
        }
        Ok(Circuits::new(subject.model.config(), &moved, None)?.compositions())
    }

    fn emit(&self, subject: &Subject<'_>, cx: &mut Context<'_>) -> Result<()> {
        let norm = |tensors: &mut dyn Iterator<Item = &Tensor>| {
            let squares = tensors.map(|x| x.square().sum(Kind::Double).double_value(&[]));
            squares.sum::<f64>().sqrt()
        };
        let gradient = norm(&mut self.direction.iter().map(|(_, direction)| direction));
        let weights: Vec<&Tensor> = self
            .direction
            .iter()
            .map(|(name, _)| Ok(self.weights.require(name)?))
            .collect::<Result<_>>()?;
        let weights = norm(&mut weights.into_iter());
        let step =
            if gradient > 0.0 { STEP * weights.max(f64::MIN_POSITIVE) / gradient } else { 1.0 };
        let (ahead, behind) = (self.scores(subject, step)?, self.scores(subject, -step)?);
        let pairs = [("q", ahead.q, behind.q), ("k", ahead.k, behind.k), ("v", ahead.v, behind.v)];
        for (name, ahead, behind) in pairs {
            let slope = (ahead - behind) / (2.0 * step);
            cx.metric(&format!("{name}_composition_gradient_max"), slope.max().double_value(&[]))?;
            cx.metric(&format!("{name}_composition_gradient"), Value::from_tensor(&slope))?;
        }
        cx.metric("gradient_norm", gradient)?;
        cx.metric("induction_loss", self.loss)
    }
}

const fn of_pairs(name: &'static str, doc: &'static str) -> MetricDef {
    const AXES: &[Axis] = &[Axis::Layer, Axis::Head, Axis::ToLayer, Axis::ToHead];
    MetricDef { name, unit: Unit::Dimensionless, axes: AXES, doc }
}

const METRICS: &[MetricDef] = &[
    of_pairs("q_composition_gradient", "Rise of Q-composition per unit of learning rate"),
    of_pairs("k_composition_gradient", "Rise of K-composition per unit of learning rate"),
    of_pairs("v_composition_gradient", "Rise of V-composition per unit of learning rate"),
    scalar("q_composition_gradient_max", Unit::Dimensionless, "Largest one of any pair"),
    scalar("k_composition_gradient_max", Unit::Dimensionless, "Largest one of any pair"),
    scalar("v_composition_gradient_max", Unit::Dimensionless, "Largest one of any pair"),
    scalar("gradient_norm", Unit::Norm, "Norm of the gradient with respect to all heads' weights"),
    scalar("induction_loss", Unit::Nats, "Loss behind the first copy, from its second token on"),
];

const FIGURES: &[Figure] = &[Figure {
    name: "gradient",
    title: "Best pair's rise of composition down the gradient of the induction loss",
    kind: FigureKind::Lines,
    metrics: &[
        "q_composition_gradient_max",
        "k_composition_gradient_max",
        "v_composition_gradient_max",
    ],
    log_x: true,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sweep_lens::{Config, Device, checkpoint::Checkpoint, init};

    use super::*;

    /// Two layers of two heads with random weights.
    fn model() -> Checkpoint {
        let config = Config::toy(2, 8, 2, 11, 20);
        let parameters = config.parameters().into_iter().filter(|parameter| !parameter.optional);
        let weights: Weights = parameters
            .map(|p| (p.name.clone(), init::normal(1, &p.name, &p.shape, 0.5, Device::Cpu)))
            .collect();
        Checkpoint { config, weights, step: 0, extra: json!(null), weights_hash: String::new() }
    }

    #[test]
    fn a_step_down_the_gradient_moves_scores_as_announced() {
        let checkpoint = model();
        let transformer = |checkpoint: &Checkpoint| {
            let weights = checkpoint.weights.shallow_clone();
            Transformer::new(checkpoint.config.clone(), weights).unwrap()
        };
        let model = transformer(&checkpoint);
        let subject = Subject::of(&checkpoint, &model);
        let drawing = Drawing {
            batch: 20,
            seq_len: Some(8),
            n_copies: 2,
            overwrite_bos: false,
            distinct: false,
            seed: 3,
        };
        let rows = TokenRows::draw(&subject, Some(false), drawing).unwrap();
        let tokens = rows.tokens(&subject);
        let mut sink = crate::MemorySink::default();
        let descend = |checkpoint: &Checkpoint, sink: &mut crate::MemorySink| {
            let model = transformer(checkpoint);
            let subject = Subject::of(checkpoint, &model);
            let mut cx = Context::new(CompositionGradient::CARD, 0, sink);
            let found = Descent::of(&subject, &tokens, rows.layout.unwrap(), &mut cx).unwrap();
            found.emit(&subject, &mut cx).unwrap();
            found
        };
        let found = descend(&checkpoint, &mut sink);
        let before = found.scores(&subject, 0.0).unwrap().k;
        // The loss falls at the rate of the squared norm of its gradient.
        let lr = 1e-7;
        let mut moved = checkpoint.weights.copy().to_kind(Kind::Double);
        for (name, direction) in &found.direction {
            let weight = moved.require(name).unwrap() + direction * lr;
            moved.insert(name.as_str(), weight);
        }
        let later = Checkpoint { weights: moved, ..self::model() };
        let after = descend(&later, &mut crate::MemorySink::default());
        let squared: f64 = found
            .direction
            .iter()
            .map(|(_, d)| d.square().sum(Kind::Double).double_value(&[]))
            .sum();
        let fall = (found.loss - after.loss) / lr;
        assert!((fall - squared).abs() < 0.02 * squared, "{fall} {squared}");
        // And scores move as announced.
        let moved = (after.scores(&subject, 0.0).unwrap().k - before) / lr;
        let announced = &sink.metrics["k_composition_gradient"][&0];
        let moved = Value::from_tensor(&moved);
        assert_eq!(announced.shape, [2, 2, 2, 2]);
        for (announced, moved) in announced.data.iter().zip(&moved.data) {
            assert!((announced - moved).abs() < 0.02 * moved.abs() + 1e-4, "{announced} {moved}");
        }
        assert!(announced.data.iter().any(|x| x.abs() > 1e-3), "something moves");
    }
}
