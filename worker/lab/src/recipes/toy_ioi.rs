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
    params::ParamSet,
    recipe::{Objective, Plan, Recipe},
    sequence::{self, Sampling, first_rows, mean, next_token_nll, per_model, sequence_params},
    vocabulary::Vocabulary,
};

/// See the module documentation.
pub struct ToyIoi;

sequence_params! {
    variant = "attn-only", normalization = "none", batch = 64, eval_sequences = 256,
    lr = 1e-3, warmup = 0, steps = 3000, eval_every = 50;
    /// Names; fewer make the task easier.
    n_names: i64 = 20, min = 4.0, max = 40.0;
}

impl Params {
    fn size(&self) -> [i64; 2] {
        [toy_ioi::vocabulary(self.n_names).words.len() as i64, N_CTX]
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
        let data_seeds = params.data_seeds(seeds);
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
