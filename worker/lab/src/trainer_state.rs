//! The exact state of one seed's training between two steps, as a file: parameters, both moments and
//! held places, or the record that the seed has failed. Resuming from it continues the same run.
//!
//! Main type: [`TrainerState`]. The format is that of [`sweep_lens::tensor_file`], so a damaged file is an
//! error naming the tensor; a state of another recipe, parameter set or seed is refused.

use std::collections::BTreeMap;

use sweep_lens::{
    Tensor, Weights,
    checkpoint::{decode_tensors, encode_tensors},
};

use crate::error::{Error, Result};

/// Value of the metadata entry `format`.
const FORMAT: &str = "sweep-trainer/1";

/// What identifies a training run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunIdentity {
    /// Recipe name.
    pub recipe: &'static str,
    /// Recipe version.
    pub version: u32,
    /// Canonical parameters.
    pub params: serde_json::Value,
    /// Seed.
    pub seed: u64,
}

impl RunIdentity {
    /// As recorded in checkpoints (`extra`), from which analyses rebuild the data.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "recipe": self.recipe,
            "version": self.version,
            "params": self.params,
            "seed": self.seed,
        })
    }
}

/// State of one seed after `step` updates.
#[derive(Debug)]
pub(crate) struct TrainerState {
    /// Updates done.
    pub step: u64,
    /// Where the run stands.
    pub progress: Progress,
}

/// Where a run stands.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Still training.
    Running {
        /// Parameters.
        weights: Weights,
        /// First moment.
        exp_avg: Weights,
        /// Second moment.
        exp_avg_sq: Weights,
        /// Places that are held, 1 where they are; empty if none is.
        held: Weights,
    },
    /// Failed for good; says why.
    Failed(NonFinite),
}

/// The quantity that left the finite numbers.
#[derive(Debug, Clone)]
pub(crate) struct NonFinite {
    /// Metric name.
    pub what: String,
    /// NaN or an infinity.
    pub value: f64,
}

impl NonFinite {
    /// As an error of step `step`.
    pub(crate) fn error(&self, step: u64) -> Error {
        Error::NonFinite { what: self.what.clone(), value: self.value, step }
    }
}

const PARTS: [&str; 4] = ["weights", "exp_avg", "exp_avg_sq", "held"];

impl TrainerState {
    /// Writes the state of run `identity`.
    pub(crate) fn encode(&self, identity: &RunIdentity) -> Result<Vec<u8>> {
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("run".to_owned(), identity.to_json().to_string()),
            ("step".to_owned(), self.step.to_string()),
        ]);
        let mut named: Vec<(String, &Tensor)> = Vec::new();
        match &self.progress {
            Progress::Running { weights, exp_avg, exp_avg_sq, held } => {
                for (part, tensors) in PARTS.iter().zip([weights, exp_avg, exp_avg_sq, held]) {
                    named.extend(tensors.iter().map(|(name, t)| (format!("{part}/{name}"), t)));
                }
            }
            Progress::Failed(NonFinite { what, value }) => {
                // Text, because JSON has no NaN.
                metadata.insert("failed".to_owned(), format!("{value} {what}"));
            }
        }
        Ok(encode_tensors(named.iter().map(|(name, t)| (name.as_str(), *t)), &metadata)?)
    }

    /// Reads a state and checks that it belongs to run `identity`; `file` is what errors call it.
    pub(crate) fn decode(file: &str, bytes: &[u8], identity: &RunIdentity) -> Result<Self> {
        let contents = decode_tensors(file, bytes)?;
        let entry = |key: &str| {
            contents.metadata.get(key).ok_or_else(|| {
                Error::Input(format!("trainer state `{file}` lacks the entry `{key}`"))
            })
        };
        if entry("format")? != FORMAT {
            return Err(Error::Input(format!(
                "trainer state `{file}` has format `{}`, expected `{FORMAT}`",
                entry("format")?
            )));
        }
        let expected = identity.to_json().to_string();
        if *entry("run")? != expected {
            return Err(Error::Input(format!(
                "trainer state `{file}` is of run {}, expected {expected}",
                entry("run")?
            )));
        }
        let step = entry("step")?.parse().map_err(|error| {
            Error::Input(format!("trainer state `{file}`: entry `step`: {error}"))
        })?;
        if let Some(failed) = contents.metadata.get("failed") {
            let (value, what) = failed.split_once(' ').unwrap_or(("NaN", failed));
            let value = value.parse().unwrap_or(f64::NAN);
            let progress = Progress::Failed(NonFinite { what: what.to_owned(), value });
            return Ok(Self { step, progress });
        }
        let mut parts = PARTS.map(|_| Weights::new());
        for (name, tensor) in contents.tensors {
            let place = name.split_once('/').and_then(|(part, rest)| {
                Some((PARTS.iter().position(|known| *known == part)?, rest))
            });
            let Some((index, rest)) = place else {
                return Err(Error::Input(format!(
                    "trainer state `{file}`: unexpected tensor `{name}`"
                )));
            };
            parts[index].insert(rest, tensor);
        }
        let [weights, exp_avg, exp_avg_sq, held] = parts;
        Ok(Self { step, progress: Progress::Running { weights, exp_avg, exp_avg_sq, held } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: u64) -> RunIdentity {
        RunIdentity { recipe: "r", version: 2, params: serde_json::json!({"steps": 3}), seed }
    }

    #[test]
    fn states_round_trip_and_belong_to_one_run() {
        let weights = |value: f64| -> Weights {
            [("embed.W_E".to_owned(), Tensor::from_slice(&[value, 2.0]))].into_iter().collect()
        };
        let progress = Progress::Running {
            weights: weights(0.1),
            exp_avg: weights(0.2),
            exp_avg_sq: weights(0.3),
            held: weights(1.0),
        };
        let bytes = TrainerState { step: 9, progress }.encode(&identity(1)).unwrap();
        let state = TrainerState::decode("state", &bytes, &identity(1)).unwrap();
        let Progress::Running { exp_avg, held, .. } = &state.progress else {
            panic!("not running")
        };
        assert_eq!((state.step, exp_avg.get("embed.W_E").unwrap().double_value(&[0])), (9, 0.2));
        assert_eq!(held.get("embed.W_E").unwrap().double_value(&[0]), 1.0);
        let other = TrainerState::decode("state", &bytes, &identity(2)).unwrap_err();
        assert!(other.to_string().contains("expected") && other.to_string().contains("state"));
        assert!(TrainerState::decode("state", &bytes[..bytes.len() - 3], &identity(1)).is_err());
        assert!(TrainerState::decode("state", b"junk", &identity(1)).is_err());
    }

    #[test]
    fn failures_are_remembered() {
        let failed = NonFinite { what: "train_loss".to_owned(), value: f64::INFINITY };
        let state = TrainerState { step: 4, progress: Progress::Failed(failed) };
        let bytes = state.encode(&identity(1)).unwrap();
        let state = TrainerState::decode("state", &bytes, &identity(1)).unwrap();
        let Progress::Failed(failed) = state.progress else { panic!("not failed") };
        assert_eq!(failed.error(state.step).to_string(), "train_loss is inf at step 4");
    }
}
