//! What can be done to any training: other seeds, an auxiliary loss term, a branch, an edit of the weights.
//!
//! Main type: [`Interventions`], parameters that every recipe has besides its own (a recipe declares
//! nothing; the training loop carries them out). Invariant: a setting without interventions has the same
//! canonical parameters, and therefore the same identity, as if they did not exist.

mod edit;
mod units;

use serde_json::{Map, Value as Json};
use sweep_lens::{Config, Tensor, Transformer};

use crate::{
    error::{Error, Result},
    params::{self, ParamSet, params},
};

pub(crate) use edit::{Reference, apply, circuit_of, needs_reference};
pub(crate) use units::Unit;
pub use units::UnitKind;

params! {
    /// Interventions, each off by default.
    pub struct Interventions {
        /// Seed of the initial weights; -1 is the seed of the run.
        init_seed: i64 = -1, min = -1.0;
        /// Checkpoint of an equal architecture whose weights stand in for initial ones: a folder, or a place
        /// like hub:OWNER/NAME@REVISION or s3://BUCKET/PREFIX; empty draws them.
        init_from: String = String::new();
        /// Update from which on the data come in another order; -1 is never.
        branch_step: i64 = -1, min = -1.0, at_most = steps;
        /// Seed of that order.
        branch_seed: i64 = 0, min = 0.0;
        /// Auxiliary loss term, added aux_weight times.
        aux: String = "none".to_owned(),
            choices = ["none", "excluded", "restricted", "gini", "fourier-l1", "norm"];
        /// Factor of the auxiliary term; a negative one rewards it.
        aux_weight: f64 = 0.1;
        /// Frequencies of the excluded and the restricted loss; empty means all.
        aux_frequencies: Vec<i64> = Vec::new(), min = 1.0;
        /// Instead of these, as many random frequencies, the same for all seeds of a sweep; 0 is off.
        aux_random: u64 = 0;
        /// Seed of the random frequencies.
        aux_seed: u64 = 0;
        /// Control: waves over a - b where the task asks for a + b, and the reverse.
        aux_control: bool = false;
        /// What is done to the initial weights.
        edit: String = "none".to_owned(),
            choices = ["none", "zero", "reinitialise", "scale", "copy", "freeze"];
        /// What is edited: single weights, whole neurons or whole heads.
        edit_of: String = "weights".to_owned(), choices = ["weights", "neurons", "heads"];
        /// How they are chosen: as listed, the most or least important of a reference run, those that its
        /// circuit consists of, or at random (anywhere, or as many in each tensor or layer as the others).
        edit_select: String = "listed".to_owned(),
            choices = [
                "listed", "magnitude", "gradient", "least-magnitude", "circuit", "random", "random-matched",
            ];
        /// Heads (L0H1), neurons (L0N17) or tensors; restricts the choice of weights if it is not listed.
        edit_list: Vec<String> = Vec::new();
        /// Heads or neurons whose initial weights edit: copy puts in the place of those listed.
        edit_source: Vec<String> = Vec::new();
        /// Fraction that is chosen, of each tensor or of the units of each layer.
        edit_fraction: f64 = 0.1, min = 0.0, max = 1.0;
        /// Edits everything but what was chosen.
        edit_complement: bool = false;
        /// Factor of edit: scale.
        edit_factor: f64 = 0.0;
        /// Holds the edited weights at their values during the whole training.
        edit_hold: bool = false;
        /// Updates of the reference run, the same training without edit; -1 is all, 0 its initial weights.
        edit_reference_steps: i64 = -1, min = -1.0;
        /// Seed of random choices and of new initial weights; -1 derives it from the seed of the run.
        edit_seed: i64 = -1, min = -1.0;
    }
}

/// What makes a seed that is asked for another one than the seed of any run.
pub(crate) const UNUSED_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// An auxiliary loss term of each model, in its own unit: a scalar, or `[n_models]` for a population.
pub type Penalty = Box<dyn Fn(&Transformer) -> Tensor>;

/// Which auxiliary term a recipe is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Auxiliary {
    /// Measure that the term is.
    pub measure: Measure,
    /// Frequencies of the losses, ascending; empty means all.
    pub frequencies: Vec<i64>,
    /// This many random frequencies instead, if not 0.
    pub n_random: u64,
    /// Seed of the random frequencies.
    pub seed: u64,
    /// Waves over the difference where the task asks for the sum, and the reverse.
    pub control: bool,
}

/// Progress measures that can be trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Training loss without the frequencies (D3), at most ln p + 2.
    Excluded,
    /// Loss on all pairs of the frequencies alone (D2).
    Restricted,
    /// Gini coefficient of the embedding's norms per frequency (D4).
    Gini,
    /// Sum of the embedding's norms per frequency.
    FourierL1,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Excluded => "excluded",
            Self::Restricted => "restricted",
            Self::Gini => "gini",
            Self::FourierL1 => "fourier-l1",
        })
    }
}

impl Interventions {
    /// Decodes those of `params` that are interventions.
    pub(crate) fn decode(params: &Json) -> Result<Self> {
        let shared = entries(params).filter(|(name, _)| is_shared(name));
        params::decode(&Json::Object(shared.map(|(n, v)| (n.clone(), v.clone())).collect()))
    }

    /// Parameters that differ from their defaults, in the order of declaration.
    pub(crate) fn changed(&self) -> Result<Map<String, Json>> {
        let all = serde_json::to_value(self)
            .map_err(|error| Error::params("(all)", error.to_string()))?;
        let defaults = params::defaults(Self::DEFS);
        Ok(entries(&all)
            .filter(|(name, value)| defaults.get(name.as_str()) != Some(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect())
    }

    /// Whether the weights are edited.
    pub(crate) fn has_edit(&self) -> bool {
        self.edit != "none"
    }

    /// Step and seed of the branch, if there is one.
    pub(crate) fn branch(&self) -> Option<(u64, u64)> {
        // No seed of a run: the order that a run has already would be no branch.
        let seed = self.branch_seed.unsigned_abs() ^ UNUSED_SEED;
        Some((u64::try_from(self.branch_step).ok()?, seed))
    }

    /// Seed of the initial weights of the run `seed`.
    pub(crate) fn seed_of_init(&self, seed: u64) -> u64 {
        u64::try_from(self.init_seed).unwrap_or(seed)
    }

    /// The term that a recipe has to make; `None` if there is none or the loop makes it itself.
    pub(crate) fn auxiliary(&self) -> Option<Auxiliary> {
        let measure = match self.aux.as_str() {
            "excluded" => Measure::Excluded,
            "restricted" => Measure::Restricted,
            "gini" => Measure::Gini,
            "fourier-l1" => Measure::FourierL1,
            _ => return None,
        };
        let mut frequencies = self.aux_frequencies.clone();
        frequencies.sort_unstable();
        frequencies.dedup();
        Some(Auxiliary {
            measure,
            frequencies,
            n_random: self.aux_random,
            seed: self.aux_seed,
            control: self.aux_control,
        })
    }

    /// Whether the sum of squared weights is the auxiliary term.
    pub(crate) fn penalises_norm(&self) -> bool {
        self.aux == "norm"
    }

    /// Checks that the parameters fit together and to the architecture.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        if !self.aux_weight.is_finite() || !self.edit_factor.is_finite() {
            return Err(Error::params("aux_weight", "expected finite factors"));
        }
        if self.has_edit() { edit::check(self, config) } else { Ok(()) }
    }
}

/// Sum of squares of all parameters, `[n_models]`, or a scalar for a plain model (D5).
pub(crate) fn norm_penalty() -> Penalty {
    Box::new(|model| {
        let sums = model.weights().iter().map(|(_, tensor)| {
            let first = i64::from(model.n_models().is_some());
            let axes: Vec<i64> = (first..tensor.dim() as i64).collect();
            tensor.square().sum_dim_intlist(&axes[..], false, sweep_lens::Kind::Double)
        });
        Tensor::stack(&sums.collect::<Vec<_>>(), 0).sum_dim_intlist(
            &[0i64][..],
            false,
            sweep_lens::Kind::Double,
        )
    })
}

/// `params` without interventions: what the recipe itself declares.
pub(crate) fn without(params: &Json) -> Json {
    if !params.is_object() {
        return params.clone();
    }
    let own = entries(params).filter(|(name, _)| !is_shared(name));
    Json::Object(own.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn entries(params: &Json) -> impl Iterator<Item = (&String, &Json)> {
    params.as_object().into_iter().flatten()
}

fn is_shared(name: &str) -> bool {
    Interventions::DEFS.iter().any(|def| def.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn own_and_shared_parameters_are_told_apart() {
        let params = json!({"p": 7, "aux": "gini", "init_seed": -1, "aux_frequencies": [3, 1, 3]});
        assert_eq!(without(&params), json!({"p": 7}));
        let found = Interventions::decode(&params).unwrap();
        let changed = Json::Object(found.changed().unwrap());
        assert_eq!(changed, json!({"aux": "gini", "aux_frequencies": [3, 1, 3]}));
        let term = found.auxiliary().unwrap();
        assert_eq!((term.measure, term.frequencies), (Measure::Gini, vec![1, 3]));
        assert_eq!((found.branch(), found.seed_of_init(4)), (None, 4));
        assert!(Interventions::decode(&Json::Null).unwrap().changed().unwrap().is_empty());
        assert!(Interventions::decode(&json!({"aux": "none", "edit": "burn"})).is_err());
    }
}
