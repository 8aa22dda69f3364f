//! The sweep file as domain types. [`SweepSpec::decode`] turns a YAML/JSON document (as a
//! [`serde_json::Value`]) into a [`SweepSpec`] and reports every problem with its path, so that the
//! command line can point at line and column; [`check`](SweepSpec::check) compares it with a
//! catalogue; [`expand`] turns grids and checkpoint selections into lists.
//!
//! Both the command line and the coordinator run the same code: the coordinator trusts nobody.

mod check;
mod decode;
pub mod expand;
mod import;
pub mod label;
mod metric_name;
mod models;
mod pairs;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

pub use import::{DTYPES, Import, Listing, PROCESSING};
pub use metric_name::MetricName;
pub use models::{Entry, IMPORT, ImportPlan, MAX_CHECKPOINTS, ModelRef, Models};
pub use pairs::{At, CheckpointRef, Endpoint, Pair, PairProblem, PairSelection, Pairing};

/// A researcher's request: models × checkpoints × experiments.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepSpec {
    /// Human name, part of the sweep id.
    pub name: String,
    /// Entries of `models:`.
    pub models: Vec<ModelSpec>,
    /// Per-checkpoint experiments.
    pub experiments: Vec<ExperimentSpec>,
    /// Pairwise experiments.
    pub compare: Vec<CompareSpec>,
    /// Reductions over all checkpoints of a model, or over several models.
    pub trajectory: Vec<ExperimentSpec>,
    /// How often a task that failed for a passing reason is tried.
    pub max_attempts: u32,
    /// Stops the sweep when this many tasks have failed for good.
    pub max_failures: Option<u64>,
    /// Higher runs first.
    pub priority: i64,
}

/// Attempts of a task unless the sweep file says otherwise.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;

/// One entry of `models:`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Where its checkpoints come from.
    pub source: ModelSource,
    /// How they are read, if this system did not train them.
    pub import: Import,
    /// Which of them.
    pub checkpoints: Option<CheckpointSelection>,
}

/// Where a model's checkpoints come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource {
    /// Trained by this sweep.
    Train {
        /// Recipe name.
        recipe: String,
        /// Parameters as written; lists are grid axes (unless the parameter is a list itself).
        params: Map<String, Value>,
        /// Random seeds, one model each.
        seeds: Vec<u64>,
    },
    /// A model of the catalogue, by name.
    Named(String),
    /// A repository on a model hub: `owner/name`, or `owner/name@revision` for a single checkpoint.
    Hub(String),
    /// Local folder, `file://` or `s3://` URL.
    Path(String),
}

/// Which checkpoints of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointSelection {
    /// Every published one.
    All,
    /// The last one only.
    Final,
    /// These steps.
    Steps(Vec<u64>),
    /// 0, N, 2N, … and the last.
    Every(u64),
    /// 2^a … 2^b, and 0 and the last.
    Log2(u32, u32),
    /// The last N.
    Last(u64),
}

/// One experiment with its parameters as written.
#[derive(Debug, Clone, PartialEq)]
pub struct ExperimentSpec {
    /// Experiment name.
    pub name: String,
    /// Parameters; what is absent has the default.
    pub params: Map<String, Value>,
}

/// One experiment on pairs of checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct CompareSpec {
    /// The experiment with its own parameters.
    pub experiment: ExperimentSpec,
    /// Which pairs.
    pub pairs: PairSelection,
}

/// One step of a path into the sweep file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Key of a mapping.
    Key(String),
    /// Index of a sequence.
    Index(usize),
}

/// Something wrong in a sweep file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; the command line turns it into line and column.
    pub path: Vec<Segment>,
    /// Whether the key itself (not its value) is meant.
    pub at_key: bool,
    /// What is wrong.
    pub message: String,
    /// The way out, if there is an obvious one.
    pub hint: Option<String>,
}

impl Problem {
    /// `models[0].train.recipe: unknown recipe …`, for peers that have no line numbers.
    pub fn one_line(&self) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) if text.is_empty() => text.push_str(key),
                Segment::Key(key) => {
                    text.push('.');
                    text.push_str(key);
                }
                Segment::Index(index) => {
                    text.push('[');
                    text.push_str(&index.to_string());
                    text.push(']');
                }
            }
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&self.message);
        if let Some(hint) = &self.hint {
            text.push_str("; ");
            text.push_str(hint);
        }
        text
    }
}

impl SweepSpec {
    /// The sweep as a canonical document: every field present, keys sorted.
    pub fn to_json(&self) -> Value {
        let experiments = |list: &[ExperimentSpec]| -> Value {
            list.iter().map(|e| json!({ "name": e.name, "params": e.params })).collect()
        };
        canonical(&json!({
            "name": self.name,
            "models": self.models.iter().map(ModelSpec::to_json).collect::<Vec<_>>(),
            "experiments": experiments(&self.experiments),
            "compare": self.compare.iter().map(CompareSpec::to_json).collect::<Vec<_>>(),
            "trajectory": experiments(&self.trajectory),
            "retry": { "max_attempts": self.max_attempts },
            "max_failures": self.max_failures,
            "priority": self.priority,
        }))
    }

    /// Every experiment of every stage.
    pub fn all_experiments(&self) -> impl Iterator<Item = &ExperimentSpec> {
        let compare = self.compare.iter().map(|compare| &compare.experiment);
        self.experiments.iter().chain(compare).chain(&self.trajectory)
    }

    /// `<name>-<10 hex digits>`: equal sweeps have equal ids.
    pub fn id(&self) -> String {
        let digest = Sha256::digest(self.to_json().to_string().as_bytes());
        let hex = crate::id::hex(&digest[..5]);
        format!("{}-{hex}", self.name)
    }
}

impl CompareSpec {
    /// Its parameters as written, with those that select pairs.
    pub fn written(&self) -> Map<String, Value> {
        let mut params = self.experiment.params.clone();
        self.pairs.add_to(&mut params);
        params
    }

    fn to_json(&self) -> Value {
        json!({ "name": self.experiment.name, "params": self.written() })
    }
}

impl ModelSpec {
    fn to_json(&self) -> Value {
        let mut object = match &self.source {
            ModelSource::Train { recipe, params, seeds } => {
                json!({ "train": { "recipe": recipe, "params": params, "seeds": seeds } })
            }
            ModelSource::Named(name) => json!({ "model": name }),
            ModelSource::Hub(repo) => json!({ "hub": repo }),
            ModelSource::Path(url) => json!({ "path": url }),
        };
        if let Value::Object(object) = &mut object {
            self.import.add_to(object);
        }
        object["checkpoints"] = match &self.checkpoints {
            None => Value::Null,
            Some(CheckpointSelection::All) => json!("all"),
            Some(CheckpointSelection::Final) => json!("final"),
            Some(CheckpointSelection::Steps(steps)) => json!({ "steps": steps }),
            Some(CheckpointSelection::Every(n)) => json!({ "every": n }),
            Some(CheckpointSelection::Log2(a, b)) => json!({ "log2": [a, b] }),
            Some(CheckpointSelection::Last(n)) => json!({ "last": n }),
        };
        object
    }
}

/// `value` with the keys of every mapping sorted.
pub fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            keys.into_iter().map(|key| (key.clone(), canonical(&map[key]))).collect()
        }
        Value::Array(list) => list.iter().map(canonical).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests;
