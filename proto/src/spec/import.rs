//! Models that this system did not train: where they are, which checkpoints they have, how they are
//! read. Main types: [`Import`], [`Listing`].
//!
//! What a folder, bucket or hub holds is found out where the sweep is submitted; the [`Listing`] then
//! is part of the sweep, so that its tasks are known from the beginning and never change.

use serde_json::{Map, Value, json};

use super::CheckpointSelection;
use crate::pb;

/// Weights in these element types.
pub const DTYPES: [&str; 4] = ["float32", "bfloat16", "float16", "float64"];

/// Steps of weight processing that can be asked for one by one.
pub const PROCESSING: [&str; 4] =
    ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"];

/// Settings of an imported model as written; what is absent is as the catalogue or the files say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// Label instead of the name of folder, repository or catalogue entry.
    pub name: Option<String>,
    /// Model family; read from the files when absent.
    pub family: Option<String>,
    /// Element type to compute in, one of [`DTYPES`]; float32 when absent.
    pub dtype: Option<String>,
    /// `raw`, `folded`, or names out of [`PROCESSING`] joined by `+`; raw when absent.
    pub processing: Option<String>,
    /// Whether analyses put the beginning-of-sequence token in front.
    pub prepend_bos: Option<bool>,
    /// Folder, bucket prefix or hub repository of the tokenizer.
    pub tokenizer: Option<String>,
    /// What was found there.
    pub found: Option<Listing>,
}

/// The checkpoints that a source holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Template of their locations; `{}` stands for a checkpoint's name.
    pub at: String,
    /// Step and name, by rising step, no step twice.
    pub checkpoints: Vec<(u64, String)>,
}

impl Import {
    /// The keys of a sweep file that this is read from, besides the source.
    pub const KEYS: [&str; 7] =
        ["name", "family", "dtype", "processing", "prepend_bos", "tokenizer", "found"];

    /// Adds the keys that are set to the model's canonical form.
    pub(super) fn add_to(&self, object: &mut Map<String, Value>) {
        let mut add = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        let text = |value: &Option<String>| value.clone().map(Value::String);
        add("name", text(&self.name));
        add("family", text(&self.family));
        add("dtype", text(&self.dtype));
        add("processing", text(&self.processing));
        add("prepend_bos", self.prepend_bos.map(Value::Bool));
        add("tokenizer", text(&self.tokenizer));
        add("found", self.found.as_ref().map(Listing::to_json));
    }

    /// What a worker is told.
    pub fn options(&self) -> pb::ImportOptions {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        pb::ImportOptions {
            family: text(&self.family),
            dtype: text(&self.dtype),
            processing: text(&self.processing),
            prepend_bos: self.prepend_bos,
            tokenizer: text(&self.tokenizer),
        }
    }
}

impl Listing {
    /// The listing as part of a sweep file.
    pub fn to_json(&self) -> Value {
        json!({ "at": self.at, "checkpoints": self.checkpoints })
    }

    /// Reads [`Listing::to_json`]'s form.
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let at = value.get("at")?.as_str()?.to_owned();
        let checkpoint = |item: &Value| match item.as_array()?.as_slice() {
            [step, name] => Some((step.as_u64()?, name.as_str()?.to_owned())),
            _ => None,
        };
        let checkpoints: Option<Vec<_>> =
            value.get("checkpoints")?.as_array()?.iter().map(checkpoint).collect();
        let checkpoints = checkpoints?;
        let rising = checkpoints.windows(2).all(|pair| pair[0].0 < pair[1].0);
        (at.contains("{}") && !checkpoints.is_empty() && rising).then_some(Self { at, checkpoints })
    }

    /// The steps that `selection` means, rising.
    ///
    /// # Errors
    /// When a step that is asked for is not there, or nothing is selected; the nearest steps are named.
    pub fn select(&self, selection: Option<&CheckpointSelection>) -> Result<Vec<u64>, String> {
        let all: Vec<u64> = self.checkpoints.iter().map(|checkpoint| checkpoint.0).collect();
        let last = *all.last().ok_or_else(|| "there are no checkpoints".to_owned())?;
        let keep = |wanted: &dyn Fn(u64) -> bool| -> Vec<u64> {
            all.iter().copied().filter(|step| wanted(*step) || *step == last).collect()
        };
        Ok(match selection {
            None | Some(CheckpointSelection::All) => all,
            Some(CheckpointSelection::Final) => vec![last],
            Some(CheckpointSelection::Every(n)) => keep(&|step| step % (*n).max(1) == 0),
            Some(CheckpointSelection::Last(n)) => {
                all[all.len().saturating_sub(usize::try_from(*n).unwrap_or(usize::MAX))..].to_vec()
            }
            Some(CheckpointSelection::Log2(a, b)) => keep(&|step| {
                step == 0 || step.is_power_of_two() && (*a..=*b).contains(&step.ilog2())
            }),
            Some(CheckpointSelection::Steps(steps)) => {
                if let Some(missing) = steps.iter().find(|step| all.binary_search(step).is_err()) {
                    return Err(self.no_such_step(*missing));
                }
                steps.clone()
            }
        })
    }

    fn no_such_step(&self, step: u64) -> String {
        let after = self.checkpoints.partition_point(|checkpoint| checkpoint.0 < step);
        let near = &self.checkpoints[after.saturating_sub(1)..];
        let near: Vec<String> = near.iter().take(2).map(|found| found.0.to_string()).collect();
        format!("there is no checkpoint of step {step} (nearest: {})", near.join(", "))
    }

    /// The selected checkpoints as a worker is told.
    pub fn wire(&self, steps: &[u64]) -> Vec<pb::Found> {
        let found = |step: &u64| {
            let index = self.checkpoints.binary_search_by_key(step, |checkpoint| checkpoint.0);
            let (step, name) = &self.checkpoints[index.ok()?];
            Some(pb::Found { step: *step, name: name.clone() })
        };
        steps.iter().filter_map(found).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(steps: &[u64]) -> Listing {
        let checkpoints = steps.iter().map(|step| (*step, format!("step{step}"))).collect();
        Listing { at: "hub:a/b@{}".to_owned(), checkpoints }
    }

    #[test]
    fn selections_pick_from_what_is_there() {
        let found = listing(&[0, 1, 2, 4, 8, 1000, 2000, 3000]);
        let select = |selection| found.select(Some(&selection)).unwrap();
        assert_eq!(found.select(None).unwrap().len(), 8);
        assert_eq!(select(CheckpointSelection::Final), [3000]);
        assert_eq!(select(CheckpointSelection::Every(2000)), [0, 2000, 3000]);
        assert_eq!(select(CheckpointSelection::Log2(1, 2)), [0, 2, 4, 3000]);
        assert_eq!(select(CheckpointSelection::Last(2)), [2000, 3000]);
        assert_eq!(select(CheckpointSelection::Steps(vec![1, 1000])), [1, 1000]);
        let error = found.select(Some(&CheckpointSelection::Steps(vec![512]))).unwrap_err();
        assert_eq!(error, "there is no checkpoint of step 512 (nearest: 8, 1000)");
    }

    #[test]
    fn a_listing_survives_the_sweep_file() {
        let found = listing(&[0, 10]);
        assert_eq!(Listing::from_json(&found.to_json()), Some(found.clone()));
        for broken in [
            json!({}),
            json!({ "at": "x", "checkpoints": [[0, "a"]] }),
            json!({ "at": "{}", "checkpoints": [] }),
            json!({ "at": "{}", "checkpoints": [[1, "a"], [1, "b"]] }),
            json!({ "at": "{}", "checkpoints": [[1]] }),
        ] {
            assert_eq!(Listing::from_json(&broken), None, "{broken}");
        }
        let wire = found.wire(&[10]);
        assert_eq!((wire[0].step, wire[0].name.as_str()), (10, "step10"));
    }
}
