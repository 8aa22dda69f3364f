//! Where does the smaller of two models predict better?
//!
//! # What it measures
//! Of two models that read the same text, the one with fewer parameters is the small one; a token's difference is its
//! log-probability under the small minus that under the large model. `win_fraction` `[threshold]`: tokens whose difference exceeds
//! a threshold; `win_mass` `[threshold]`: their differences, summed and divided by the number of all tokens, in nats; `class_win`
//! `[class]`: fraction of a class's tokens that the small model wins by more than `margin`. Between models of equal size, which
//! is the noise of the seed, each is the mean of both directions. `wins.jsonl` and `wins.md` hold the `k` largest wins with contexts. The text streams.
//!
//! # Interpretation
//! A large model loses on many tokens by chance. Compare small with large models and two seeds of each size in one
//! sweep (`pairs: models`); `scale-inversion-excess` subtracts the noise.
//!
//! # Source
//! McKenzie et al. 2023, arXiv 2306.09479 (inverse scaling); Michaud et al. 2023, arXiv 2303.13506 (per-token scaling); problem 5.36.

use crate::{
    card::{Axis, Card, Figure, FigureKind, MetricDef, Requires, Stage, Unit},
    compare::Couple,
    documents::{Documents, document_params},
    error::Result,
    experiment::{Experiment, Inputs},
    params::ParamSet,
    prompts::Names,
    sink::Context,
    token_difference::{CLASSES, Classes, Ranking, Token, for_each_token},
    value::Value,
};

/// See the module documentation.
pub struct ScaleInversion;

document_params! {
    /// Examples that are kept.
    k: u64 = 100, max = 100_000.0;
    /// Tokens of context on each side.
    context: u64 = 30, max = 1000.0;
    /// Difference in nats that counts as a win of a class's token.
    margin: f64 = 0.5, min = 0.0;
}

/// Thresholds of wins, in nats.
const THRESHOLDS: [f64; 7] = [0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0];
/// Examples in the readable table.
const SHOWN: usize = 40;

impl Experiment for ScaleInversion {
    type Params = Params;
    const CARD: &'static Card = &Card {
        name: "scale-inversion",
        version: 1,
        summary: "Measures on which tokens the smaller of two models is better",
        source: "McKenzie et al. 2023, arXiv 2306.09479; Michaud et al. 2023, arXiv 2303.13506",
        stage: Stage::Compare,
        requires: Requires { min_layers: 1, ..Requires::ANY },
        params: Params::DEFS,
        metrics: METRICS,
        figures: FIGURES,
    };

    fn inputs(&self, _params: &Params) -> Inputs {
        Inputs::Couple
    }

    fn compare(&self, couple: &Couple<'_>, params: Params, cx: &mut Context<'_>) -> Result<()> {
        couple.check_same_vocabulary()?;
        let size = |subject: &crate::Subject<'_>| subject.model.weights().n_params();
        let (first, second) = (size(&couple.first), size(&couple.second));
        // From the small to the large model; both ways between equals.
        let signs: &[f64] = match first.cmp(&second) {
            std::cmp::Ordering::Less => &[1.0],
            std::cmp::Ordering::Greater => &[-1.0],
            std::cmp::Ordering::Equal => &[1.0, -1.0],
        };
        let documents = Documents::new(&couple.first, &params.wanted())?;
        let names = Names::of(&couple.first)?;
        let mut classes = Classes::new(&names);
        let mut wins = Wins::default();
        let mut ranking = Ranking::new(params.k, params.context);
        let see = |token: &Token, row: &[i64]| {
            for sign in signs {
                let difference = sign * token.difference();
                wins.add(difference, token, params.margin);
                ranking.add(difference, token, row, &names);
            }
        };
        for_each_token(couple, &documents, &mut classes, see, |(done, total)| {
            cx.progress(done, total)
        })?;
        cx.metric("n_parameters_small", first.min(second) as f64)?;
        cx.metric("n_parameters_large", first.max(second) as f64)?;
        wins.emit(cx)?;
        cx.artifact("wins.jsonl", ranking.lines())?;
        cx.artifact("wins.md", ranking.table("The small model is better", SHOWN).into_bytes())
    }
}

/// Running sums over tokens.
#[derive(Default)]
struct Wins {
    n: f64,
    sum: f64,
    count: [f64; THRESHOLDS.len()],
    mass: [f64; THRESHOLDS.len()],
    /// By class: tokens and wins.
    classes: [[f64; 2]; CLASSES.len()],
}

impl Wins {
    fn add(&mut self, difference: f64, token: &Token, margin: f64) {
        self.n += 1.0;
        self.sum += difference;
        for (index, threshold) in THRESHOLDS.iter().enumerate() {
            if difference > *threshold {
                self.count[index] += 1.0;
                self.mass[index] += difference;
            }
        }
        let of_token = self.classes.iter_mut().enumerate().filter(|(class, _)| token.is_of(*class));
        for (_, sums) in of_token {
            sums[0] += 1.0;
            sums[1] += f64::from(u8::from(difference > margin));
        }
    }

    fn emit(&self, cx: &mut Context<'_>) -> Result<()> {
        let over = |sums: &[f64]| {
            Value::labelled(THRESHOLDS, sums.iter().map(|sum| sum / self.n).collect())
        };
        cx.metric("win_fraction", over(&self.count))?;
        cx.metric("win_mass", over(&self.mass))?;
        let share = self.classes.iter().map(|[all, wins]| wins / all).collect();
        cx.metric("class_win", Value::labelled(CLASSES, share))?;
        cx.metric("mean_difference", self.sum / self.n)
    }
}

const METRICS: &[MetricDef] = &[
    MetricDef {
        name: "n_parameters_small",
        unit: Unit::Count,
        axes: &[],
        doc: "Parameters of the small model",
    },
    MetricDef {
        name: "n_parameters_large",
        unit: Unit::Count,
        axes: &[],
        doc: "Parameters of the large model",
    },
    MetricDef {
        name: "mean_difference",
        unit: Unit::Nats,
        axes: &[],
        doc: "Mean log-probability of the small minus the large model; 0 between equal sizes",
    },
    MetricDef {
        name: "win_fraction",
        unit: Unit::Probability,
        axes: &[Axis::Threshold],
        doc: "Tokens that the small model gives more than a threshold more",
    },
    MetricDef {
        name: "win_mass",
        unit: Unit::Nats,
        axes: &[Axis::Threshold],
        doc: "What it gains there, per token of the text",
    },
    MetricDef {
        name: "class_win",
        unit: Unit::Probability,
        axes: &[Axis::TokenClass],
        doc: "Wins of the small model within a class; NaN for a class without tokens",
    },
];

const FIGURES: &[Figure] = &[Figure {
    name: "wins",
    title: "Tokens on which the smaller model is better",
    kind: FigureKind::Pairs,
    metrics: &["win_fraction"],
    log_x: false,
    log_y: false,
}];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemorySink;

    #[test]
    fn fractions_and_masses_by_hand() {
        let mut wins = Wins::default();
        for difference in [0.3, -2.0, 1.5, 0.0] {
            let token = Token { row: 0, place: 1, first: difference, second: 0.0, classes: 1 };
            wins.add(difference, &token, 0.5);
        }
        let mut sink = MemorySink::default();
        wins.emit(&mut Context::new(ScaleInversion::CARD, 0, &mut sink)).unwrap();
        assert_eq!(sink.metrics["win_fraction"][&0].data, [0.5, 0.5, 0.5, 0.25, 0.25, 0.0, 0.0]);
        assert_eq!(sink.metrics["win_mass"][&0].data[3], 1.5 / 4.0);
        assert_eq!(sink.metrics["class_win"][&0].data[0], 0.25);
        assert!((sink.scalar("mean_difference", 0).unwrap() + 0.05).abs() < 1e-12);
    }
}
