//! Paired synonyms: soft induction, the toy of translation in context.
//!
//! # What it trains
//! A small transformer on random concepts that repeat with a random period, every copy in the other one of two
//! languages (D41); a share of the sequences repeats word by word. Loss on every next token.
//!
//! # Interpretation
//! On translated copies `soft_prefix_matching` is attention to the translation of what comes next: a head finds
//! the current concept's other word and looks at what followed it. `translation_gain` is what the first copy is
//! worth in nats, against a control whose second copy is unrelated. Compare the onset with that of literal
//! induction (`loss_literal`): with the default settings and random embeddings both form in the same few hundred
//! updates (measured: 1200 to 1500 for seed 0), other than in language models, where translation comes later.
//!
//! # Source
//! Olsson et al. 2022, arXiv 2209.11895, argument 4 (translation); toy with paired tokens.

use sweep_lens::{Config, Device, Run, Tensor, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::{
        repeats::{self, RepeatedRows},
        synonyms::{Repetition, Synonyms},
    },
    error::{Error, Result},
    experiment::TokenSet,
    interventions::UnitKind,
    params::ParamSet,
    recipe::{Objective, Plan, Recipe},
    sequence::{
        self, HeadScores, Sampling, best_head, first_rows, masked_mean, mean, next_token_nll,
        per_model, sequence_params, with_patterns,
    },
};

/// See the module documentation.
pub struct PairedSynonyms;

sequence_params! {
    variant = "attn-only", normalization = "none", batch = 32, eval_sequences = 128,
    lr = 3e-3, warmup = 0, steps = 3000, eval_every = 50;
    /// Concepts; there are two words for each.
    n_pairs: i64 = 32, min = 2.0, max = 32768.0;
    /// Length of a sequence.
    n_ctx: i64 = 48, min = 4.0, max = 4096.0;
    /// Shortest period.
    period_min: i64 = 8, min = 2.0, max = 4095.0, at_most = period_max;
    /// Longest period.
    period_max: i64 = 24, min = 2.0, max = 4095.0;
    /// Share of the training sequences that repeats word by word.
    frac_literal: f64 = 0.5, min = 0.0, max = 1.0;
}

impl Params {
    fn size(&self) -> [i64; 2] {
        [2 * self.n_pairs, self.n_ctx]
    }

    fn synonyms(&self, seeds: &[u64], purpose: &str, device: Device) -> Synonyms {
        let period = [self.period_min, self.period_max];
        Synonyms::new(period, self.n_pairs, self.n_ctx, seeds, purpose, device)
    }

    /// Held-out sequences, the same for every seed.
    fn evaluation(&self, n: u64, repetition: Repetition, device: Device) -> RepeatedRows {
        self.synonyms(&[0], "evaluation", device).rows(&first_rows(n, device), repetition)
    }
}

impl Recipe for PairedSynonyms {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "paired-synonyms",
        version: 1,
        summary: "Trains a small transformer on repeats in two languages (soft induction)",
        source: "Olsson et al. 2022, arXiv 2209.11895, argument 4",
        stage: Stage::Train,
        requires: Requires::ANY,
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn check(&self, params: &Params) -> Result<()> {
        repeats::check(params.period_max, params.n_ctx)
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
        let evaluation = |kind| Held::new(params.evaluation(params.eval_sequences, kind, device));
        let repetition = Repetition::Mixed { literal: params.frac_literal };
        Ok(Box::new(Translation {
            sampling: Sampling::new(params.batch, 0, &data_seeds, device),
            data: params.synonyms(&data_seeds, "train", device),
            repetition,
            mixed: params.evaluation(params.eval_sequences, repetition, device).tokens,
            translated: evaluation(Repetition::Translated),
            literal: evaluation(Repetition::Literal),
            unrelated: evaluation(Repetition::Unrelated),
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let tokens = params.evaluation(16, Repetition::Translated, device).tokens;
        TokenSet { tokens, rows_per_batch: 16, last_position_only: false }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }
}

/// Loss of the next token on repeats in two languages.
struct Translation {
    data: Synonyms,
    repetition: Repetition,
    sampling: Sampling,
    /// Held-out rows as trained on, i64 `[n_eval, n_ctx]`.
    mixed: Tensor,
    translated: Held,
    literal: Held,
    unrelated: Held,
}

/// Held-out rows of one kind.
struct Held {
    rows: RepeatedRows,
    /// Attention from the second copy to what followed the same concept in the first.
    aligned: HeadScores,
    previous: HeadScores,
}

/// What a model does on them.
struct Seen {
    /// f64 `[(n_models)]`: mean loss inside the second copy.
    second: Tensor,
    /// f64 `[(n_models)]`: mean loss on the first copy.
    first: Tensor,
    /// f32 `[(n_models,) layer, head]` each
    aligned: Tensor,
    previous: Tensor,
}

impl Held {
    fn new(rows: RepeatedRows) -> Self {
        let aligned = HeadScores::new(&rows.stripe(), &rows.is_second_copy());
        let previous = HeadScores::new(&rows.previous(), &rows.has_previous());
        Self { rows, aligned, previous }
    }

    fn measure(&self, model: &Transformer) -> Seen {
        let (logits, patterns) = with_patterns(model, &self.rows.tokens);
        let nll = next_token_nll(&logits, &self.rows.tokens);
        Seen {
            second: masked_mean(&nll, &self.rows.is_second_target()),
            first: masked_mean(&nll, &self.rows.is_repeated_target().logical_not()),
            aligned: self.aligned.of(&patterns),
            previous: self.previous.of(&patterns),
        }
    }
}

impl Objective for Translation {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let rows = self.sampling.rows(step);
        let tokens = self.data.rows(&rows, self.repetition).tokens;
        let logits = model.forward(&tokens, &Run::FULL, &mut ());
        mean(&next_token_nll(&logits, &tokens))
    }

    fn reorder(&mut self, seeds: &[u64]) -> bool {
        self.sampling.reorder(seeds);
        true
    }

    fn circuit(&self, model: &Transformer, kind: UnitKind) -> Result<Tensor> {
        if kind == UnitKind::Neuron {
            let problem = "expected heads, of which induction circuits consist, found neurons";
            return Err(Error::params("edit_of", problem));
        }
        let [translated, literal] =
            [&self.translated, &self.literal].map(|held| held.measure(model));
        let matching = translated.aligned.maximum(&literal.aligned);
        Ok(per_model(model, translated.previous.maximum(&matching)))
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let mixed = model.forward(&self.mixed, &Run::FULL, &mut ());
        let loss = mean(&next_token_nll(&mixed, &self.mixed));
        let translated = self.translated.measure(model);
        let literal = self.literal.measure(model);
        let unrelated = self.unrelated.measure(model);
        let metrics = vec![
            ("train_loss", loss.shallow_clone()),
            ("test_loss", loss),
            ("loss_first", translated.first),
            ("translation_gain", &unrelated.second - &translated.second),
            ("loss_translated", translated.second),
            ("loss_literal", literal.second),
            ("loss_unrelated", unrelated.second),
            ("best_soft_prefix_matching", best_head(&translated.aligned)),
            ("best_prefix_matching", best_head(&literal.aligned)),
            ("best_previous_token", best_head(&translated.previous)),
            ("soft_prefix_matching", translated.aligned),
            ("prefix_matching", literal.aligned),
            ("previous_token", translated.previous),
        ];
        metrics.into_iter().map(|(name, values)| (name, per_model(model, values))).collect()
    }
}

const HEADS: &[Axis] = &[Axis::Layer, Axis::Head];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on held-out sequences; the training never sees one twice either",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on held-out sequences, literal and translated as in training",
    },
    MetricDef {
        name: "loss_first",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on the first copy",
    },
    MetricDef {
        name: "translation_gain",
        unit: Unit::Nats,
        axes: &[],
        doc: "loss_unrelated minus loss_translated: what the first copy is worth",
    },
    MetricDef {
        name: "loss_translated",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss inside the second copy, in the other language",
    },
    MetricDef {
        name: "loss_literal",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss inside the second copy, word by word the first",
    },
    MetricDef {
        name: "loss_unrelated",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss inside a second copy, in the other language, that is not one",
    },
    MetricDef {
        name: "best_soft_prefix_matching",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest soft_prefix_matching of any head",
    },
    MetricDef {
        name: "best_prefix_matching",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest prefix_matching of any head",
    },
    MetricDef {
        name: "best_previous_token",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest previous_token of any head",
    },
    MetricDef {
        name: "soft_prefix_matching",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "Mean attention from a translated second copy to what followed the same concept in the first",
    },
    MetricDef {
        name: "prefix_matching",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "The same on second copies that repeat word by word",
    },
    MetricDef {
        name: "previous_token",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "Mean attention to the token in front",
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
        title: "Loss inside the second copy",
        kind: FigureKind::Lines,
        metrics: &["loss_literal", "loss_translated", "loss_unrelated"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "heads",
        title: "Best head scores",
        kind: FigureKind::Lines,
        metrics: &["best_soft_prefix_matching", "best_prefix_matching", "best_previous_token"],
        log_x: false,
        log_y: false,
    },
];
