//! Induction: the setting in which in-context copying forms in a sudden step.
//!
//! # What it trains
//! A small transformer on random tokens that repeat with a period drawn for each sequence (D11r), loss on
//! every next token. Repeats can be predicted only by finding the current token's earlier occurrence and
//! copying what followed it.
//!
//! # Interpretation
//! `loss_repeat` stays near `ln d_vocab`, then drops within a few hundred updates while `previous_token` of a
//! head in an early layer and `prefix_matching` of one in a later layer rise together. With a fixed
//! period (`period_min = period_max`) a head that looks a constant distance back solves the task without
//! any induction circuit: `positional_shortcut` becomes 1, and the run says nothing about induction.
//! One layer cannot do it. Seeds of equal number share attention weights across variants and depths.
//!
//! # Source
//! Elhage et al. 2021; Olsson et al. 2022, arXiv 2209.11895; N. Nanda's toy `induction_head_infinite`.

use std::collections::BTreeMap;

use sweep_lens::{Config, Device, Run, Tensor, Transformer, Weights};

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    data::repeats::{self, RepeatedRows, Repeats},
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
pub struct Induction;

sequence_params! {
    variant = "attn-only", normalization = "none", batch = 32, eval_sequences = 128,
    lr = 3e-3, warmup = 0, steps = 2000, eval_every = 50;
    /// Number of tokens.
    d_vocab: i64 = 64, min = 2.0, max = 65536.0;
    /// Length of a sequence.
    n_ctx: i64 = 48, min = 3.0, max = 4096.0;
    /// Shortest period.
    period_min: i64 = 8, min = 2.0, max = 4095.0, at_most = period_max;
    /// Longest period; equal to the shortest one it gives the control without induction.
    period_max: i64 = 24, min = 2.0, max = 4095.0;
    /// Size of a finite training set; 0 draws new sequences for every update.
    n_sequences: u64 = 0, min = 0.0, max = 100_000_000.0;
}

impl Params {
    fn size(&self) -> [i64; 2] {
        [self.d_vocab, self.n_ctx]
    }

    /// Sequences of the given seeds.
    fn repeats(&self, seeds: &[u64], purpose: &str, device: Device) -> Repeats {
        let period = [self.period_min, self.period_max];
        Repeats::new(period, self.d_vocab, self.n_ctx, seeds, purpose, device)
    }

    /// Held-out sequences, the same for every seed.
    fn evaluation(&self, n: u64, device: Device) -> RepeatedRows {
        self.repeats(&[0], "evaluation", device).rows(&first_rows(n, device))
    }
}

impl Recipe for Induction {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "induction",
        version: 1,
        summary: "Trains a small transformer on repeated random tokens until induction heads form",
        source: "Olsson et al. 2022, arXiv 2209.11895; random periods",
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
        let data = params.repeats(&data_seeds, "train", device);
        let known = (params.n_sequences > 0).then(|| {
            data.rows(&first_rows(params.n_sequences.min(params.eval_sequences), device)).tokens
        });
        Ok(Box::new(Repetition {
            sampling: Sampling::new(params.batch, params.n_sequences, &data_seeds, device),
            data,
            known,
            held: Held::new(params.evaluation(params.eval_sequences, device)),
        }))
    }

    fn probe(&self, params: &Params, device: Device) -> TokenSet {
        let tokens = params.evaluation(16, device).tokens;
        TokenSet { tokens, rows_per_batch: 16, last_position_only: false }
    }

    fn population(&self, _params: &Params, device: Device) -> usize {
        sequence::population(device)
    }
}

/// Loss of the next token on repeated sequences.
struct Repetition {
    data: Repeats,
    sampling: Sampling,
    /// Rows of a finite training set, i64 `[(n_models,) n, n_ctx]`.
    known: Option<Tensor>,
    held: Held,
}

/// Held-out sequences and where to look in them.
struct Held {
    rows: RepeatedRows,
    /// bool `[n_eval, n_ctx - 1]`
    is_repeated_target: Tensor,
    prefix_matching: HeadScores,
    previous: HeadScores,
    stripe: HeadScores,
}

/// The flag is raised if some head attends to the stripe by more than this …
const STRIPE: f64 = 0.8;
/// … while none attends to the previous token by this much.
const PREVIOUS: f64 = 0.2;

impl Objective for Repetition {
    fn loss(&self, model: &Transformer, step: u64) -> Tensor {
        let tokens = self.data.rows(&self.sampling.rows(step)).tokens;
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
        let (_, patterns) = with_patterns(model, &self.held.rows.tokens);
        let previous = self.held.previous.of(&patterns);
        Ok(per_model(model, previous.maximum(&self.held.prefix_matching.of(&patterns))))
    }

    fn evaluate(&self, model: &Transformer) -> Vec<(&'static str, Tensor)> {
        let mut metrics = self.held.measure(model);
        if let Some(known) = &self.known {
            let logits = model.forward(known, &Run::FULL, &mut ());
            metrics.insert("train_loss", mean(&next_token_nll(&logits, known)));
        }
        metrics.into_iter().map(|(name, values)| (name, per_model(model, values))).collect()
    }
}

impl Held {
    fn new(rows: RepeatedRows) -> Self {
        Self {
            is_repeated_target: rows.is_repeated_target(),
            prefix_matching: HeadScores::new(&rows.prefix_matches(), &rows.is_repeated()),
            stripe: HeadScores::new(&rows.stripe(), &rows.has_stripe()),
            previous: HeadScores::new(&rows.previous(), &rows.has_previous()),
            rows,
        }
    }

    /// All metrics by name, `[(n_models)]` or `[(n_models,) layer, head]`.
    fn measure(&self, model: &Transformer) -> BTreeMap<&'static str, Tensor> {
        let (logits, patterns) = with_patterns(model, &self.rows.tokens);
        let nll = next_token_nll(&logits, &self.rows.tokens);
        let loss = mean(&nll);
        let prefix_matching = self.prefix_matching.of(&patterns);
        let previous = self.previous.of(&patterns);
        let stripe = self.stripe.of(&patterns);
        let shortcut =
            best_head(&stripe).gt(STRIPE).logical_and(&best_head(&previous).lt(PREVIOUS));
        BTreeMap::from([
            ("train_loss", loss.shallow_clone()),
            ("test_loss", loss),
            ("loss_first", masked_mean(&nll, &self.is_repeated_target.logical_not())),
            ("loss_repeat", masked_mean(&nll, &self.is_repeated_target)),
            ("best_prefix_matching", best_head(&prefix_matching)),
            ("best_previous_token", best_head(&previous)),
            ("best_stripe", best_head(&stripe)),
            ("prefix_matching", prefix_matching),
            ("previous_token", previous),
            ("stripe", stripe),
            ("positional_shortcut", shortcut),
        ])
    }
}

const HEADS: &[Axis] = &[Axis::Layer, Axis::Head];

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "train_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on training sequences; on held-out ones if no sequence comes twice",
    },
    MetricDef {
        name: "test_loss",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on held-out sequences",
    },
    MetricDef {
        name: "loss_first",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on tokens that nothing predicts: the first copy and the token behind it",
    },
    MetricDef {
        name: "loss_repeat",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean loss on tokens whose predecessor stood one period before",
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
        name: "best_stripe",
        unit: Unit::Probability,
        axes: &[],
        doc: "Largest stripe of any head",
    },
    MetricDef {
        name: "prefix_matching",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "Mean attention of repeated tokens to what followed their earlier occurrences",
    },
    MetricDef {
        name: "previous_token",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "Mean attention to the token in front",
    },
    MetricDef {
        name: "stripe",
        unit: Unit::Probability,
        axes: HEADS,
        doc: "Mean attention to the token one period minus one before, from the end of the first copy on",
    },
    MetricDef {
        name: "positional_shortcut",
        unit: Unit::Truth,
        axes: &[],
        doc: "1 if best_stripe is above 0.8 with best_previous_token below 0.2: positions, not induction",
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
        title: "Loss on first and repeated tokens",
        kind: FigureKind::Lines,
        metrics: &["loss_first", "loss_repeat"],
        log_x: false,
        log_y: false,
    },
    Figure {
        name: "heads",
        title: "Best head scores",
        kind: FigureKind::Lines,
        metrics: &["best_prefix_matching", "best_previous_token", "best_stripe"],
        log_x: false,
        log_y: false,
    },
];

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::value::to_vec;

    fn numbers(json: &Json) -> Vec<f64> {
        match json.as_array() {
            Some(items) => items.iter().flat_map(numbers).collect(),
            None => vec![json.as_f64().unwrap()],
        }
    }

    /// `make_induction.py` computes the same by loops over rows, heads and positions.
    #[test]
    fn metrics_equal_the_definitions() {
        let golden: Json =
            serde_json::from_str(include_str!("../../tests/fixtures/induction.json")).unwrap();
        let integers = |json: &Json| -> Vec<i64> {
            numbers(json).iter().map(|&number| number as i64).collect()
        };
        let weights: Weights = golden["weights"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, tensor)| {
                let shape = integers(&tensor["shape"]);
                (name.clone(), Tensor::from_slice(&numbers(&tensor["data"])).view(shape.as_slice()))
            })
            .collect();
        let params = Params {
            d_model: 8,
            n_heads: 2,
            d_vocab: 6,
            n_ctx: 10,
            period_min: 3,
            period_max: 5,
            ..Params::default()
        };
        let config = params.architecture().config();
        let rows = RepeatedRows {
            tokens: Tensor::from_slice(&integers(&golden["tokens"])).view([-1, 10]),
            period: Tensor::from_slice(&integers(&golden["periods"])).view([-1, 1]),
        };
        let alone = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
        let twice = Weights::stack(&[&weights, &weights]).unwrap();
        let population = Transformer::population(config, twice).unwrap();
        let held = Held::new(rows);
        let (one, two) = (held.measure(&alone), held.measure(&population));
        for (name, expected) in golden["expected"].as_object().unwrap() {
            let expected = numbers(expected);
            for found in [to_vec(&one[name.as_str()]), to_vec(&two[name.as_str()].get(1))] {
                assert_eq!(found.len(), expected.len(), "{name}");
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 2e-6,
                        "{name}: {found}, expected {expected}"
                    );
                }
            }
        }
        assert_eq!(to_vec(&one["positional_shortcut"]), [0.0]);
    }

    #[test]
    fn attention_by_distance_alone_is_a_shortcut() {
        // One layer, keys and queries of positions: query i looks at key i - 3, whatever the tokens are.
        let params = Params {
            n_layers: 1,
            d_model: 24,
            n_heads: 1,
            d_vocab: 6,
            n_ctx: 12,
            period_min: 4,
            period_max: 4,
            ..Params::default()
        };
        let cpu = (sweep_lens::Kind::Float, Device::Cpu);
        let mut weights = params.architecture().init(0);
        let positions = Tensor::cat(&[Tensor::eye(12, cpu), Tensor::zeros([12, 12], cpu)], 1);
        weights.insert("pos_embed.W_pos", positions);
        weights.insert("embed.W_E", Tensor::zeros([6, 24], cpu));
        weights.insert("blocks.0.attn.W_K", Tensor::eye(24, cpu).unsqueeze(0) * 100.0);
        let set = |weights: &mut Weights, distance: i64| {
            let shift = Tensor::eye(24, cpu).roll([-distance], [1]);
            weights.insert("blocks.0.attn.W_Q", shift.unsqueeze(0));
        };
        let held = Held::new(params.evaluation(16, Device::Cpu));
        let measure = |weights: &Weights| {
            let model = Transformer::new(params.architecture().config(), weights.copy()).unwrap();
            held.measure(&model)
        };
        set(&mut weights, 3);
        let found = measure(&weights);
        assert!(to_vec(&found["stripe"])[0] > 0.99 && to_vec(&found["previous_token"])[0] < 0.2);
        assert_eq!(to_vec(&found["positional_shortcut"]), [1.0]);
        set(&mut weights, 1);
        let found = measure(&weights);
        assert!(to_vec(&found["previous_token"])[0] > 0.99 && to_vec(&found["stripe"])[0] < 0.2);
        assert_eq!(to_vec(&found["positional_shortcut"]), [0.0]);
        let model = Transformer::new(params.architecture().config(), weights.copy()).unwrap();
        let task = Induction.objective(&params, &[0], Device::Cpu).unwrap();
        let circuit = task.circuit(&model, UnitKind::Head).unwrap();
        assert_eq!(circuit.size(), [1, 1, 1]);
        assert!(
            to_vec(&circuit)[0] > 0.99,
            "a head that looks at the previous token belongs to it"
        );
        assert!(task.circuit(&model, UnitKind::Neuron).is_err());
    }
}
