//! Sorting: an algorithmic task whose sub-skills come one after the other.
//!
//! # What it trains
//! A small transformer on `BOS x₁ … xₙ SEP y₁ … yₙ` with `y` the numbers of `x` in ascending order; the loss is
//! that of the answer alone, each number given the right ones before it. `answer` asks for a copy or the
//! reverse instead.
//!
//! # Interpretation
//! `loss_position` says which places of the answer are solved: the first one (the smallest number) needs a
//! minimum over the question, every other one the smallest number above the one before it. Graded metrics
//! (losses) move before the thresholded ones (`accuracy`, and `exact` most of all) do.
//!
//! # Source
//! Algorithmic probe of in-context computation; graded against thresholded metrics as in Schaeffer et al.
//! 2023, arXiv 2304.15004.

use sweep_lens::{Config, Device, Kind, Run, Tensor, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::sorting::{ANSWERS, Answer, Lists},
    error::{Error, Result},
    experiment::TokenSet,
    params::ParamSet,
    recipe::{Objective, Plan, Recipe},
    sequence::{self, Sampling, first_rows, mean, next_token_nll, per_model, sequence_params},
};

/// See the module documentation.
pub struct Sorting;

sequence_params! {
    variant = "attn-only", normalization = "none", batch = 128, eval_sequences = 256,
    lr = 1e-3, warmup = 0, steps = 1500, eval_every = 50;
    /// Numbers to sort.
    length: i64 = 4, min = 1.0, max = 64.0;
    /// Numbers are below this.
    n_values: i64 = 32, min = 2.0, max = 4096.0;
    /// Whether no number comes twice in a question.
    distinct: bool = true;
    /// Order of the numbers in the answer: ascending, as asked, or backwards.
    answer: String = "sorted".to_owned(), choices = ANSWERS;
}

impl Params {
    fn size(&self) -> [i64; 2] {
        [self.n_values + 2, 2 * self.length + 2]
    }

    fn lists(&self, seeds: &[u64], purpose: &str, device: Device) -> Lists {
        let answer = Answer::parse(&self.answer);
        Lists::new([self.length, self.n_values], self.distinct, answer, seeds, purpose, device)
    }

    /// Held-out sequences, the same for every seed.
    fn evaluation(&self, n: u64, device: Device) -> Tensor {
        self.lists(&[0], "evaluation", device).rows(&first_rows(n, device))
    }
}

impl Recipe for Sorting {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "sorting",
        version: 1,
        summary: "Trains a small transformer to sort short lists of numbers",
        source: "Schaeffer et al. 2023, arXiv 2304.15004; algorithmic probe",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        if params.distinct && params.length > params.n_values {
            let problem = format!(
                "{} distinct numbers do not exist below n_values {}",
                params.length, params.n_values
            );
            return Err(Error::params("length", problem));
        }
        Ok(())
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
        let data_seeds = params.data_seeds(seeds);
        Ok(Box::new(Answers {
            sampling: Sampling::new(params.batch, 0, &data_seeds, device),
            lists: params.lists(&data_seeds, "train", device),
            tokens: params.evaluation(params.eval_sequences, device),
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let tokens = params.evaluation(64, device);
        TokenSet { tokens, rows_per_batch: 64, last_position_only: false }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }
}

/// Loss of the answers.
struct Answers {
    lists: Lists,
    sampling: Sampling,
    /// Held-out rows, i64 `[n_eval, 2·length + 2]`.
    tokens: Tensor,
}

impl Answers {
    /// The part of `[(n_models,) batch, 2·length + 1]` that is about the answer, `[(n_models,) batch, length]`.
    fn answer(&self, of_next_tokens: &Tensor) -> Tensor {
        of_next_tokens.narrow(-1, self.lists.length + 1, self.lists.length)
    }
}

impl Objective for Answers {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let tokens = self.lists.rows(&self.sampling.rows(step));
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        mean(&self.answer(&next_token_nll(&logits, &tokens)))
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        self.sampling.reorder(seeds);
        true
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let logits = model.forward(&self.tokens, &Run::FULL, &mut ());
        let nll = self.answer(&next_token_nll(&logits, &self.tokens));
        let n = self.tokens.size()[1] - 1;
        let guesses = logits.narrow(-2, 0, n).argmax(-1, false);
        let correct = self.answer(&guesses.eq_tensor(&self.tokens.narrow(1, 1, n)));
        let over_batch = |x: &Tensor| x.mean_dim(&[-2i64][..], false, Kind::Double);
        let accuracy = over_batch(&correct.to_kind(Kind::Double));
        let exact = correct.all_dim(-1, false).to_kind(Kind::Double);
        let loss = mean(&nll);
        let metrics = vec![
            ("train_loss", loss.shallow_clone()),
            ("test_loss", loss),
            ("accuracy", accuracy.mean_dim(&[-1i64][..], false, Kind::Double)),
            ("exact", exact.mean_dim(&[-1i64][..], false, Kind::Double)),
            ("loss_position", over_batch(&nll)),
            ("accuracy_position", accuracy),
        ];
        metrics.into_iter().map(|(name, values)| (name, per_model(model, values))).collect()
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss of the answer on held-out sequences; the training never sees one twice either",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss of the answer on held-out sequences",
    },
    MetricDef {
        name: "accuracy",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of numbers that are most likely, given the right ones before",
    },
    MetricDef {
        name: "exact",
        unit: Unit::Probability,
        axes: &[],
        doc: "Fraction of lists with every number most likely",
    },
    MetricDef {
        name: "loss_position",
        unit: Unit::Nats,
        axes: &[Axis::Position],
        doc: "Mean loss of each place of the answer",
    },
    MetricDef {
        name: "accuracy_position",
        unit: Unit::Probability,
        axes: &[Axis::Position],
        doc: "Fraction of lists in which this place of the answer is most likely",
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
        name: "loss",
        title: "Loss of each place of the answer",
        kind: FigureKind::Lines,
        metrics: &["test_loss", "loss_position"],
        log_x: false,
        log_y: true,
    },
    Figure {
        name: "accuracy",
        title: "Graded and exact accuracy",
        kind: FigureKind::Lines,
        metrics: &["accuracy", "exact"],
        log_x: false,
        log_y: false,
    },
];
