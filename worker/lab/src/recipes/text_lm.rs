//! A small language model on text: bytes in, next byte out.
//!
//! # What it trains
//! A small transformer on random windows of a text, loss on every next byte. The text is the parameter `text`, or
//! 459 kB of Shakespeare that ship with the program. The end of the text is held out.
//!
//! # Interpretation
//! The loss falls smoothly through the frequencies of bytes (about 3.3 nats), pairs (about 2.5 nats) and
//! longer contexts. `loss_position` shows what context is worth: it is flat in position while the model knows
//! pairs only. `test_loss` above `train_loss` is memorisation.
//!
//! # Source
//! Karpathy 2015, "The unreasonable effectiveness of recurrent neural networks" (text); token losses over
//! training as in Olsson et al. 2022, arXiv 2209.11895.

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::text::{D_VOCAB, SHAKESPEARE, Text},
    error::Result,
    experiment::TokenSet,
    optimizer::AdamWConfig,
    params::{ParamSet, params},
    random::counter::Counter,
    recipe::{Objective, Plan, Recipe},
    sequence::{
        self, Architecture, NORMALIZATIONS, Sampling, VARIANTS, mean, next_token_nll, per_model,
    },
};

/// See the module documentation.
pub struct TextLm;

/// Name of the recipe, by which texts are encoded for its models.
pub(crate) const NAME: &str = "text-lm";

params! {
    /// Task, architecture and optimizer.
    pub struct Params {
        /// What to train on, as UTF-8; empty is the text that ships with the program.
        text: String = String::new();
        /// Fraction of the text, from its end, that is held out.
        frac_test: f64 = 0.1, min = 0.001, max = 0.9;
        /// Bytes in a window.
        n_ctx: i64 = 64, min = 2.0, max = 4096.0;
        /// Kind of blocks.
        variant: String = "gelu".to_owned(), choices = VARIANTS;
        /// Blocks.
        n_layers: i64 = 2, min = 1.0, max = 16.0;
        /// Width of the residual stream.
        d_model: i64 = 64, min = 1.0, max = 4096.0;
        /// Attention heads; they share d_model.
        n_heads: i64 = 4, min = 1.0, max = 64.0;
        /// Neurons per block, if it has any.
        d_mlp: i64 = 256, min = 1.0, max = 16384.0;
        /// Norm in front of every component, without parameters.
        normalization: String = "ln".to_owned(), choices = NORMALIZATIONS;
        /// Windows per update.
        batch: u64 = 32, min = 1.0, max = 65536.0;
        /// Windows of each part that metrics are measured on.
        eval_sequences: u64 = 128, min = 1.0, max = 65536.0;
        /// Learning rate after the warm-up.
        lr: f64 = 2e-3, min = 0.0;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0, min = 0.0;
        /// Decay of the first moment.
        beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
        /// Decay of the second moment.
        beta2: f64 = 0.98, min = 0.0, max = 0.999_999;
        /// Updates over which the learning rate rises.
        warmup: u64 = 50, min = 0.0;
        /// Updates in all.
        steps: u64 = 3000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 100, min = 1.0;
        /// Seed of the training data; -1 is the seed of the run.
        data_seed: i64 = -1, min = -1.0;
    }
}

impl Params {
    fn architecture(&self) -> Architecture<'_> {
        Architecture {
            variant: &self.variant,
            normalization: &self.normalization,
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            d_mlp: self.d_mlp,
            d_vocab: D_VOCAB,
            n_ctx: self.n_ctx,
        }
    }

    fn text(&self, device: Device) -> Result<Text> {
        let text = if self.text.is_empty() { SHAKESPEARE.as_slice() } else { self.text.as_bytes() };
        Text::new(text, self.frac_test, self.n_ctx, device)
    }
}

impl Recipe for TextLm {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: NAME,
        version: 1,
        summary: "Trains a small transformer on the bytes of a text",
        source: "Karpathy 2015, char-rnn; Olsson et al. 2022, arXiv 2209.11895",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        params.architecture().check()?;
        params.text(Device::Cpu).map(drop)
    }

    fn config(&self, params: &Params) -> Config {
        params.architecture().config()
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        params.architecture().init(seed)
    }

    fn plan(&self, params: &Params) -> Plan {
        let &Params { lr, weight_decay, beta1, beta2, warmup, steps, eval_every, .. } = params;
        let optimizer = AdamWConfig { lr, beta1, beta2, eps: 1e-8, weight_decay };
        sequence::plan(optimizer, warmup, steps, eval_every)
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        let data_seeds: Vec<u64> =
            seeds.iter().map(|&seed| u64::try_from(params.data_seed).unwrap_or(seed)).collect();
        let text = params.text(device)?;
        Ok(Box::new(NextByte {
            sampling: Sampling::new(params.batch, 0, &data_seeds, device),
            places: Counter::new(&data_seeds, "text-lm/places", device),
            train: text.train_windows(params.eval_sequences),
            test: text.test_windows(params.eval_sequences),
            text,
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let text = params.text(device).expect("`check` has made the same text");
        TokenSet { tokens: text.test_windows(16), rows_per_batch: 16, last_position_only: false }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }
}

/// Loss of the next byte in windows of a text.
struct NextByte {
    text: Text,
    places: Counter,
    sampling: Sampling,
    /// i64 `[n_eval, n_ctx]` each
    train: Tensor,
    test: Tensor,
}

impl Objective for NextByte {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let rows = self.sampling.rows(step);
        let tokens = self.text.random_windows(&self.places, &rows);
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        mean(&next_token_nll(&logits, &tokens))
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        self.sampling.reorder(seeds);
        true
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let train = model.forward(&self.train, &Run::FULL, &mut ());
        let test = model.forward(&self.test, &Run::FULL, &mut ());
        let nll = next_token_nll(&test, &self.test);
        let n = self.test.size()[1] - 1;
        let guesses = test.narrow(-2, 0, n).argmax(-1, false);
        let correct = guesses.eq_tensor(&self.test.narrow(1, 1, n));
        let metrics = vec![
            ("train_loss", mean(&next_token_nll(&train, &self.train))),
            ("test_loss", mean(&nll)),
            ("test_acc", mean(&correct.to_kind(Kind::Double))),
            ("loss_position", nll.mean_dim(&[-2i64][..], false, Kind::Double)),
        ];
        metrics.into_iter().map(|(name, values)| (name, per_model(model, values))).collect()
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss per byte on windows of the training part",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss per byte on windows of the held-out part",
    },
    MetricDef {
        name: "test_acc",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of held-out bytes that are most likely",
    },
    MetricDef {
        name: "loss_position",
        unit: Unit::Nats,
        axes: &[Axis::Position],
        doc: "Mean loss on held-out bytes behind 1, 2, … bytes of context",
    },
    MetricDef {
        name: "weight_norm",
        unit: Unit::SquaredNorm,
        axes: &[],
        doc: "Sum of squares of all parameters",
    },
    MetricDef {
        name: "lr",
        unit: Unit::Dimensionless,
        axes: &[],
        doc: "Learning rate of the next update",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "loss",
    title: "Loss per byte",
    kind: FigureKind::Lines,
    metrics: &["train_loss", "test_loss"],
    log_x: false,
    log_y: false,
}];
