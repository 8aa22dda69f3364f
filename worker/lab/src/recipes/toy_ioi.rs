//! Toy indirect-object identification: a model small enough to be understood whole that does what the IOI
//! circuit of GPT-2 does.
//!
//! # What it trains
//! A small transformer on sentences of single-token words that end in an indirect object: "… Ann and Tom went to
//! the park , Max was at the school . then Tom gave a book to" → "Ann". Loss on every next token. Third
//! names, some of them twice or beside "and", rule out "the name that came once" and fixed positions.
//!
//! # Interpretation
//! `logit_diff` (indirect object minus subject) tells the pair apart and needs the second subject to be noticed;
//! `third_logit_diff` (indirect object minus a third name) needs the pair to be found. Both positive in
//! every sentence is `accuracy`. Checkpoints record words and roles (`vocabulary`), from which analyses
//! build prompts of their own.
//!
//! # Source
//! Wang et al. 2023, arXiv 2211.00593 (task and metrics); toy sentences of our own.

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights};

use crate::{
    card::{Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::toy_ioi::{self, END, N_CTX, SentenceRows, Sentences},
    error::Result,
    experiment::TokenSet,
    optimizer::AdamWConfig,
    params::{ParamSet, params},
    recipe::{Objective, Plan, Recipe},
    sequence::{
        self, Architecture, NORMALIZATIONS, Sampling, VARIANTS, first_rows, mean, next_token_nll,
        per_model,
    },
    vocabulary::Vocabulary,
};

/// See the module documentation.
pub struct ToyIoi;

params! {
    /// Task, architecture and optimizer.
    pub struct Params {
        /// Names; fewer make the task easier.
        n_names: i64 = 20, min = 4.0, max = 40.0;
        /// Kind of blocks.
        variant: String = "attn-only".to_owned(), choices = VARIANTS;
        /// Blocks.
        n_layers: i64 = 2, min = 1.0, max = 16.0;
        /// Width of the residual stream.
        d_model: i64 = 64, min = 1.0, max = 4096.0;
        /// Attention heads; they share d_model.
        n_heads: i64 = 4, min = 1.0, max = 64.0;
        /// Neurons per block, if it has any.
        d_mlp: i64 = 256, min = 1.0, max = 16384.0;
        /// Norm in front of every component, without parameters.
        normalization: String = "none".to_owned(), choices = NORMALIZATIONS;
        /// Sequences per update.
        batch: u64 = 64, min = 1.0, max = 65536.0;
        /// Sequences that metrics are measured on, the same for every seed.
        eval_sequences: u64 = 256, min = 1.0, max = 65536.0;
        /// Learning rate after the warm-up.
        lr: f64 = 1e-3, min = 0.0;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0, min = 0.0;
        /// Decay of the first moment.
        beta1: f64 = 0.9, min = 0.0, max = 0.999_999;
        /// Decay of the second moment.
        beta2: f64 = 0.98, min = 0.0, max = 0.999_999;
        /// Updates over which the learning rate rises.
        warmup: u64 = 0, min = 0.0;
        /// Updates in all.
        steps: u64 = 3000, min = 0.0, max = 10_000_000.0;
        /// Metrics are streamed at multiples of this.
        eval_every: u64 = 50, min = 1.0;
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
            d_vocab: toy_ioi::vocabulary(self.n_names).words.len() as i64,
            n_ctx: N_CTX,
        }
    }

    /// Held-out sentences, the same for every seed.
    fn evaluation(&self, n: u64, device: Device) -> SentenceRows {
        let sentences = Sentences::new(self.n_names, &[0], "evaluation", device);
        sentences.rows(&first_rows(n, device))
    }
}

impl Recipe for ToyIoi {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "toy-ioi",
        version: 1,
        summary: "Trains a small transformer to identify indirect objects in toy sentences",
        source: "Wang et al. 2023, arXiv 2211.00593; toy sentences",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        params.architecture().check()
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
        Ok(Box::new(Story {
            sampling: Sampling::new(params.batch, 0, &data_seeds, device),
            sentences: Sentences::new(params.n_names, &data_seeds, "train", device),
            held: params.evaluation(params.eval_sequences, device),
        }))
    }

    /// Sentences without the indirect object, read where it is predicted.
    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let tokens = params.evaluation(128, device).tokens.narrow(1, 0, END + 1);
        TokenSet { tokens, rows_per_batch: 128, last_position_only: true }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }

    fn vocabulary(&self, params: &Params) -> Option<Vocabulary> {
        Some(toy_ioi::vocabulary(params.n_names))
    }
}

/// Loss of the next word.
struct Story {
    sentences: Sentences,
    sampling: Sampling,
    held: SentenceRows,
}

impl Objective for Story {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let tokens = self.sentences.rows(&self.sampling.rows(step)).tokens;
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        mean(&next_token_nll(&logits, &tokens))
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        self.sampling.reorder(seeds);
        true
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let tokens = &self.held.tokens;
        let logits = model.forward(tokens, &Run::FULL, &mut ());
        let loss = mean(&next_token_nll(&logits, tokens));
        let at_end = logits.select(-2, END).to_kind(Kind::Double); // [(n_models,) batch, d_vocab]
        let of = |values: &Tensor, name: &Tensor| {
            let mut shape = values.size();
            *shape.last_mut().expect("logits have a vocabulary axis") = 1;
            values.gather(-1, &name.expand(shape.as_slice(), false), false).squeeze_dim(-1)
        };
        let over_batch =
            |x: Tensor| x.to_kind(Kind::Double).mean_dim(&[-1i64][..], false, Kind::Double);
        let answer = self.held.indirect_object();
        let logit = of(&at_end, &answer);
        let from_subject = &logit - of(&at_end, &self.held.subject());
        let from_third = &logit - of(&at_end, &self.held.third());
        let log_prob = of(&at_end.log_softmax(-1, Kind::Double), &answer);
        let is_first = at_end.argmax(-1, false).eq_tensor(&answer.squeeze_dim(-1));
        let metrics = vec![
            ("train_loss", loss.shallow_clone()),
            ("test_loss", loss),
            ("answer_loss", over_batch(-&log_prob)),
            ("answer_prob", over_batch(log_prob.exp())),
            ("subject_accuracy", over_batch(from_subject.gt(0.0))),
            ("accuracy", over_batch(is_first)),
            ("logit_diff", over_batch(from_subject)),
            ("third_logit_diff", over_batch(from_third)),
        ];
        metrics.into_iter().map(|(name, values)| (name, per_model(model, values))).collect()
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on held-out sentences; the training never sees one twice either",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on held-out sentences; most names cannot be predicted",
    },
    MetricDef {
        name: "answer_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss of the indirect object",
    },
    MetricDef {
        name: "answer_prob",
        unit: Unit::Probability,
        axes: &[],
        doc: "Mean probability of the indirect object",
    },
    MetricDef {
        name: "subject_accuracy",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of sentences with a positive logit_diff",
    },
    MetricDef {
        name: "accuracy",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of sentences in which the indirect object is most likely of all words",
    },
    MetricDef {
        name: "logit_diff",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit of the indirect object minus that of the subject",
    },
    MetricDef {
        name: "third_logit_diff",
        unit: Unit::Logit,
        axes: &[],
        doc: "Mean logit of the indirect object minus that of a third name",
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

const FIGURES: &[Figure] = &[
    Figure {
        name: "logit-diff",
        title: "Logit of the indirect object against other names",
        kind: FigureKind::Lines,
        metrics: &["logit_diff", "third_logit_diff"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "accuracy",
        title: "Accuracy on the indirect object",
        kind: FigureKind::Lines,
        metrics: &["accuracy", "subject_accuracy"],
        log_x: false,
        log_y: false,
    },
];
