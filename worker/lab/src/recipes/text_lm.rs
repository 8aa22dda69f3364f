//! A small language model on text: bytes or byte-pair tokens in, the next one out.
//!
//! # What it trains
//! A small transformer on random windows of a text, loss on every next token. The text is the parameter `text`, or
//! 459 kB of Shakespeare that ship with the program. Tokens are bytes, and with `n_merges` also the byte pairs that are learned
//! from the training part and recorded in every checkpoint; a checkpoint of this recipe that `init_from` names keeps those it
//! has. The end of the text is held out.
//!
//! With `init_from` a checkpoint of any transformer is fine-tuned with all its weights: where its architecture is
//! another one than the parameters describe, it is taken as it is, and the text is read by its own tokenizer (with its
//! beginning-of-sequence token at the start of every window, if it is used to one). Embeddings that were tied are trained apart.
//!
//! # Interpretation
//! The loss falls smoothly through the frequencies of bytes (about 3.3 nats), pairs (about 2.5 nats) and
//! longer contexts. `loss_position` shows what context is worth: it is flat in position while the model knows
//! pairs only. `test_loss` above `train_loss` is memorisation. Losses of other tokens are not comparable: a byte-pair token
//! is worth several bytes.
//!
//! # Source
//! Karpathy 2015, "The unreasonable effectiveness of recurrent neural networks" (text); Sennrich et al. 2016, arXiv
//! 1508.07909 (byte pairs); token losses over training as in Olsson et al. 2022, arXiv 2209.11895.

use sweep_lens::{
    Architecture as Kin, Config, Device, Kind, Run, Tensor, Transformer, Weights, init,
};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::{
        bpe::{Bpe, N_BYTES},
        text::{SHAKESPEARE, Text, split},
    },
    error::{Error, Result},
    experiment::TokenSet,
    params::ParamSet,
    random::counter::Counter,
    recipe::{AnyRecipe, Base, Objective, Plan, Recipe},
    sequence::{self, Sampling, mean, next_token_nll, per_model, sequence_params},
    subject::TextCodec,
};

/// See the module documentation.
pub struct TextLm;

/// Name of the recipe, by which texts are encoded for its models.
pub(crate) const NAME: &str = "text-lm";

sequence_params! {
    variant = "gelu", normalization = "ln", batch = 32, eval_sequences = 128,
    lr = 2e-3, warmup = 50, steps = 3000, eval_every = 100;
    /// What to train on, as UTF-8; empty is the text that ships with the program.
    text: String = String::new();
    /// Fraction of the text, from its end, that is held out.
    frac_test: f64 = 0.1, min = 0.001, max = 0.9;
    /// Byte pairs that are tokens besides the 256 bytes.
    n_merges: u64 = 0, max = 16384.0;
    /// Tokens in a window.
    n_ctx: i64 = 64, min = 2.0, max = 4096.0;
}

impl Params {
    fn size(&self) -> [i64; 2] {
        [N_BYTES + self.n_merges as i64, self.n_ctx]
    }

    fn bytes(&self) -> &[u8] {
        if self.text.is_empty() { SHAKESPEARE.as_slice() } else { self.text.as_bytes() }
    }

    /// The byte pairs of the text's training part.
    fn pairs(&self) -> Bpe {
        Bpe::learn(split(self.bytes(), self.frac_test).0, self.n_merges as usize)
    }

    fn text(&self, pairs: &Bpe, device: Device) -> Result<Text> {
        let (train, test) = split(self.bytes(), self.frac_test);
        Text::new(&pairs.encode(train), &pairs.encode(test), self.n_ctx, None, device)
    }

    fn next_token(&self, text: Text, seeds: &[u64], device: Device) -> NextToken {
        let data_seeds = self.data_seeds(seeds);
        NextToken {
            sampling: Sampling::new(self.batch, 0, &data_seeds, device),
            places: Counter::new(&data_seeds, "text-lm/places", device),
            train: text.train_windows(self.eval_sequences),
            test: text.test_windows(self.eval_sequences),
            text,
        }
    }
}

impl Recipe for TextLm {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: NAME,
        version: 1,
        summary: "Trains a small transformer, or fine-tunes any, on a text",
        source: "Karpathy 2015, char-rnn; Sennrich et al. 2016, arXiv 1508.07909 (byte pairs)",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        params.text(&params.pairs(), Device::Cpu).map(drop)
    }

    fn config(&self, params: &Params) -> Config {
        params.architecture().config()
    }

    fn init(&self, params: &Params, seed: u64) -> Weights {
        params.architecture().init(seed)
    }

    fn plan(&self, params: &Params) -> Plan {
        params.plan()
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        Ok(Box::new(params.next_token(params.text(&params.pairs(), device)?, seeds, device)))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let text = params.text(&params.pairs(), device);
        probe(&text.expect("`check` has made the same text"))
    }

    fn byte_pairs(&self, params: &Params) -> Option<Bpe> {
        (params.n_merges > 0).then(|| params.pairs())
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }

    fn adapt(&self, params: &Params, base: Base<'_>) -> Result<Option<Box<dyn AnyRecipe>>> {
        let pairs = Bpe::of_checkpoint(base.record)?;
        if *base.config == Recipe::config(self, params) {
            match &pairs {
                None if params.n_merges > 0 => {
                    let problem = "the checkpoint records no byte pairs, so that nobody knows what its tokens mean";
                    return Err(Error::params("n_merges", problem));
                }
                None => return Ok(None),
                Some(pairs) if *pairs == params.pairs() => return Ok(None),
                // Tokens must go on meaning what the base learned.
                Some(_) => {}
            }
        }
        if base.config.architecture == Kin::Mlp {
            let problem = "a perceptron reads no text: expected a transformer in `init_from`";
            return Err(Error::Unsupported(problem.to_owned()));
        }
        let own = pairs.as_ref().map(|pairs| pairs as &dyn TextCodec);
        let Some(codec) = base.text.or(own) else {
            let problem = "the checkpoint has another architecture than the parameters describe, \
                           and no tokenizer to read the text with";
            return Err(Error::params("init_from", problem));
        };
        if params.n_merges > 0 && own.is_none() {
            let problem = "expected 0: the checkpoint's own tokenizer reads the text";
            return Err(Error::params("n_merges", problem));
        }
        if params.n_ctx > base.config.n_ctx {
            let problem =
                format!("{} is more than the checkpoint's {}", params.n_ctx, base.config.n_ctx);
            return Err(Error::params("n_ctx", problem));
        }
        let text = std::str::from_utf8(params.bytes())
            .expect("parameters and the text that ships are UTF-8");
        let adapted = Adapted {
            config: base.config.clone(),
            tokens: codec.encode(text, false)?,
            bos: codec.bos().filter(|_| base.config.default_prepend_bos),
            pairs: pairs.clone().filter(|_| base.text.is_none()),
        };
        adapted.text(params, Device::Cpu)?;
        Ok(Some(Box::new(adapted)))
    }
}

fn probe(text: &Text) -> TokenSet {
    TokenSet { tokens: text.test_windows(16), rows_per_batch: 16, last_position_only: false }
}

/// The same training for a model that is there already.
struct Adapted {
    config: Config,
    /// The text, by the model's own tokenizer.
    tokens: Vec<i64>,
    bos: Option<i64>,
    /// The byte pairs that are its tokenizer, if they are.
    pairs: Option<Bpe>,
}

impl Adapted {
    fn text(&self, params: &Params, device: Device) -> Result<Text> {
        let (train, test) = split(&self.tokens, params.frac_test);
        Text::new(train, test, params.n_ctx, self.bos, device)
    }
}

impl Recipe for Adapted {
    type Params = Params;
    // Another name, so that nobody takes the text's bytes for what this model reads.
    const CARD: &'static Card = &Card { name: "text-lm from a checkpoint", ..*TextLm::CARD };

    fn config(&self, _params: &Params) -> Config {
        self.config.clone()
    }

    /// What an edit puts in the place of weights; everything else comes from the checkpoint.
    fn init(&self, _params: &Params, seed: u64) -> Weights {
        const STD: f64 = 0.02;
        let parameters = self.config.parameters().into_iter();
        parameters
            .map(|parameter| {
                let (shape, options) = (parameter.shape.as_slice(), (Kind::Float, Device::Cpu));
                let tensor = if parameter.is_norm_weight {
                    Tensor::ones(shape, options)
                } else if parameter.optional {
                    Tensor::zeros(shape, options)
                } else {
                    init::normal(seed, &parameter.name, shape, STD, Device::Cpu)
                };
                (parameter.name, tensor)
            })
            .collect()
    }

    fn plan(&self, params: &Params) -> Plan {
        params.plan()
    }

    fn objective(
        &self,
        params: &Params,
        seeds: &[u64],
        device: Device,
    ) -> Result<Box<dyn Objective>> {
        Ok(Box::new(params.next_token(self.text(params, device)?, seeds, device)))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        probe(&self.text(params, device).expect("`adapt` has made the same text"))
    }

    fn population(&self, _params: &Params, _device: Device) -> usize {
        1
    }

    fn byte_pairs(&self, _params: &Params) -> Option<Bpe> {
        self.pairs.clone()
    }
}

/// Loss of the next token in windows of a text.
struct NextToken {
    text: Text,
    places: Counter,
    sampling: Sampling,
    /// i64 `[n_eval, n_ctx]` each
    train: Tensor,
    test: Tensor,
}

impl Objective for NextToken {
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
        doc: "Mean loss per token on windows of the training part",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss per token on windows of the held-out part",
    },
    MetricDef {
        name: "test_acc",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of held-out tokens that are most likely",
    },
    MetricDef {
        name: "loss_position",
        unit: Unit::Nats,
        axes: &[Axis::Position],
        doc: "Mean loss on held-out tokens behind 1, 2, … tokens of context",
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
    title: "Loss per token",
    kind: FigureKind::Lines,
    metrics: &["train_loss", "test_loss"],
    log_x: false,
    log_y: false,
}];
