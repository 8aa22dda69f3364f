//! From a document to a [`SweepSpec`]: every unknown key, wrong type and empty list is a
//! [`Problem`] with its path; decoding goes on after a problem, so that one run reports them all.
//! `compare:` is decoded in [`pairs`].

mod pairs;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{
    CheckpointSelection, DEFAULT_MAX_ATTEMPTS, DTYPES, ExperimentSpec, Import, Listing,
    ModelSource, ModelSpec, PROCESSING, Problem, Segment, SweepSpec,
};
use crate::catalog::did_you_mean;

/// Seeds per `train:` entry; a larger population is a typing error.
const MAX_SEEDS: u64 = 1_000_000;

impl SweepSpec {
    /// Decodes a sweep file.
    ///
    /// # Errors
    /// Every problem found, in the order of the document.
    pub fn decode(document: &Value) -> Result<Self, Vec<Problem>> {
        let mut decoder = Decoder { problems: Vec::new() };
        let spec = decoder.sweep(document);
        match spec {
            Some(spec) if decoder.problems.is_empty() => Ok(spec),
            _ => Err(decoder.problems),
        }
    }
}

struct Decoder {
    problems: Vec<Problem>,
}

/// A value with the path that leads to it.
#[derive(Clone)]
struct At<'v> {
    value: &'v Value,
    path: Vec<Segment>,
}

impl<'v> At<'v> {
    /// The value under `key`; an explicit null counts as absent.
    fn key(&self, key: &str) -> Option<At<'v>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        let mut path = self.path.clone();
        path.push(Segment::Key(key.to_owned()));
        Some(At { value, path })
    }

    fn items(&self) -> Vec<At<'v>> {
        let list = self.value.as_array().map_or(&[][..], Vec::as_slice);
        let item = |(index, value)| {
            let mut path = self.path.clone();
            path.push(Segment::Index(index));
            At { value, path }
        };
        list.iter().enumerate().map(item).collect()
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

impl Decoder {
    fn problem(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.problems.push(Problem {
            path: at.path.clone(),
            at_key: false,
            message: message.into(),
            hint: None,
        });
    }

    fn expected(&mut self, at: &At<'_>, what: &str) {
        self.problem(at, format!("expected {what}, found {}", type_name(at.value)));
    }

    /// Checks that `at` is a mapping with no other keys than `known`.
    fn mapping(&mut self, at: &At<'_>, what: &str, known: &[&str]) -> bool {
        let Some(map) = at.value.as_object() else {
            self.expected(at, what);
            return false;
        };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let mut path = at.path.clone();
            path.push(Segment::Key(key.clone()));
            self.problems.push(Problem {
                path,
                at_key: true,
                message: format!("unknown key `{key}` (known here: {})", known.join(", ")),
                hint: did_you_mean(key, known.iter().copied()),
            });
        }
        true
    }

    fn sweep(&mut self, document: &Value) -> Option<SweepSpec> {
        let root = At { value: document, path: Vec::new() };
        let known = [
            "name",
            "models",
            "experiments",
            "compare",
            "trajectory",
            "retry",
            "priority",
            "max_failures",
            "budget",
        ];
        if !self.mapping(&root, "a sweep file: a mapping with `name`, `models`, …", &known) {
            return None;
        }
        let name = self.name(&root);
        let models = if let Some(at) = root.key("models") {
            self.models(&at)
        } else {
            self.problem(&root, "`models` is missing");
            Vec::new()
        };
        let experiments = self.experiments(&root, "experiments");
        let compare = self.compare(&root);
        let trajectory = self.experiments(&root, "trajectory");
        let max_attempts = match root.key("retry") {
            Some(at) if self.mapping(&at, "a mapping", &["max_attempts"]) => {
                let number = self.positive(&at, "max_attempts");
                number.map_or(DEFAULT_MAX_ATTEMPTS, |n| u32::try_from(n).unwrap_or(u32::MAX))
            }
            _ => DEFAULT_MAX_ATTEMPTS,
        };
        let priority = root.key("priority").map_or(0, |at| {
            at.value.as_i64().unwrap_or_else(|| {
                self.expected(&at, "a whole number");
                0
            })
        });
        if let Some(at) = root.key("budget") {
            self.problem(&at, "budgets are not supported by this version");
        }
        let max_failures = self.positive(&root, "max_failures");
        Some(SweepSpec {
            name: name?,
            models,
            experiments,
            compare,
            trajectory,
            max_attempts,
            max_failures,
            priority,
        })
    }

    fn name(&mut self, root: &At<'_>) -> Option<String> {
        let Some(at) = root.key("name") else {
            self.problem(root, "`name` is missing");
            return None;
        };
        let Some(name) = at.value.as_str() else {
            self.expected(&at, "a text");
            return None;
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if name.len() > 64 || !starts || !name.chars().all(fits) {
            self.problem(
                &at,
                format!(
                    "`{name}` cannot be a sweep name: up to 64 letters, digits, `-`, `_`, `.`, \
                     beginning with a letter or digit"
                ),
            );
            return None;
        }
        Some(name.to_owned())
    }

    /// An optional whole number above zero.
    fn positive(&mut self, at: &At<'_>, key: &str) -> Option<u64> {
        let at = at.key(key)?;
        match at.value.as_u64() {
            Some(number) if number > 0 => Some(number),
            _ => {
                self.problem(&at, format!("expected a whole number above 0, found {}", at.value));
                None
            }
        }
    }

    fn models(&mut self, at: &At<'_>) -> Vec<ModelSpec> {
        if !at.value.is_array() {
            self.expected(at, "a list of models");
            return Vec::new();
        }
        let items = at.items();
        if items.is_empty() {
            self.problem(at, "`models` is empty: nothing would run");
        }
        items.iter().filter_map(|item| self.model(item)).collect()
    }

    fn model(&mut self, at: &At<'_>) -> Option<ModelSpec> {
        if let Some(name) = at.value.as_str() {
            return Some(ModelSpec {
                source: ModelSource::Named(name.to_owned()),
                import: Import::default(),
                checkpoints: None,
            });
        }
        let sources = ["train", "model", "hub", "path"];
        let known: Vec<&str> =
            sources.into_iter().chain(["checkpoints"]).chain(Import::KEYS).collect();
        if !self.mapping(at, "a model name or a mapping with `train`, `hub` or `path`", &known) {
            return None;
        }
        let checkpoints = at.key("checkpoints").and_then(|at| self.checkpoints(&at));
        let mut import = self.import(at);
        let (hub, path, model) =
            (self.text(at, "hub"), self.text(at, "path"), self.text(at, "model"));
        let source = match (at.key("train"), model, hub, path) {
            (Some(train), None, None, None) => {
                let mut others = Import::KEYS.into_iter().filter(|key| *key != "name");
                if let Some(key) = others.find(|key| at.key(key).is_some()) {
                    let at = at.key(key)?;
                    self.problem(&at, format!("`{key}` is not for a model that is trained here"));
                }
                self.train(&train)?
            }
            (None, Some(name), None, None) => ModelSource::Named(name),
            (None, None, Some(repo), None) => ModelSource::Hub(repo),
            (None, None, None, Some(url)) => ModelSource::Path(url),
            // `name: pythia-160m` alone reads like the catalogue name that it is.
            (None, None, None, None) if import.name.is_some() => {
                ModelSource::Named(import.name.take()?)
            }
            _ => {
                self.problem(at, "a model needs exactly one of `train`, `model`, `hub`, `path`");
                return None;
            }
        };
        Some(ModelSpec { source, import, checkpoints })
    }

    /// An optional text that is not empty.
    fn text(&mut self, at: &At<'_>, key: &str) -> Option<String> {
        let at = at.key(key)?;
        let text = at.value.as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned);
        if text.is_none() {
            self.expected(&at, "a text");
        }
        text
    }

    fn import(&mut self, at: &At<'_>) -> Import {
        let dtype = self.text(at, "dtype").filter(|dtype| {
            let known = DTYPES.contains(&dtype.as_str());
            if !known && let Some(at) = at.key("dtype") {
                let hint = did_you_mean(dtype, DTYPES);
                self.problem(&at, format!("`dtype` must be one of {}", DTYPES.join(", ")));
                if let Some(problem) = self.problems.last_mut() {
                    problem.hint = hint;
                }
            }
            known
        });
        let prepend_bos = at.key("prepend_bos").and_then(|at| {
            let given = at.value.as_bool();
            if given.is_none() {
                self.expected(&at, "true or false");
            }
            given
        });
        let found = at.key("found").and_then(|at| {
            let found = Listing::from_json(at.value);
            if found.is_none() {
                self.expected(&at, "a listing `{ at: …{}…, checkpoints: [[step, name], …] }`");
            }
            found
        });
        Import {
            name: self.text(at, "name"),
            family: self.text(at, "family"),
            dtype,
            processing: self.processing(at),
            prepend_bos,
            tokenizer: self.text(at, "tokenizer"),
            found,
        }
    }

    /// `raw`, `folded`, or steps: joined by `+`, or as a list.
    fn processing(&mut self, at: &At<'_>) -> Option<String> {
        let at = at.key("processing")?;
        let steps: Option<Vec<&str>> = match at.value {
            Value::String(text) => Some(text.split('+').map(str::trim).collect()),
            Value::Array(list) => list.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let Some(steps) = steps.filter(|steps| !steps.is_empty()) else {
            self.expected(&at, "`raw`, `folded` or a list of steps");
            return None;
        };
        if steps == ["raw"] || steps == ["folded"] {
            return Some(steps[0].to_owned());
        }
        if let Some(unknown) = steps.iter().find(|step| !PROCESSING.contains(step)) {
            let hint = did_you_mean(unknown, PROCESSING);
            let all = PROCESSING.join(", ");
            self.problem(&at, format!("unknown processing `{unknown}` (raw, folded, or {all})"));
            if let Some(problem) = self.problems.last_mut() {
                problem.hint = hint;
            }
            return None;
        }
        let chosen: Vec<&str> = PROCESSING.into_iter().filter(|p| steps.contains(p)).collect();
        Some(chosen.join("+"))
    }

    fn train(&mut self, at: &At<'_>) -> Option<ModelSource> {
        if !self.mapping(at, "a mapping with `recipe`", &["recipe", "params", "seeds"]) {
            return None;
        }
        let recipe = match at.key("recipe") {
            None => {
                self.problem(at, "`recipe` is missing");
                None
            }
            Some(at) => {
                let name = at.value.as_str().map(str::to_owned);
                if name.is_none() {
                    self.expected(&at, "a recipe name");
                }
                name
            }
        };
        let params = self.params(at);
        let seeds = match at.key("seeds") {
            None => vec![0],
            Some(at) => self.seeds(&at),
        };
        Some(ModelSource::Train { recipe: recipe?, params, seeds })
    }

    fn params(&mut self, at: &At<'_>) -> Map<String, Value> {
        let Some(at) = at.key("params") else { return Map::new() };
        let Value::Object(map) = at.value else {
            self.expected(&at, "a mapping of parameters");
            return Map::new();
        };
        map.clone()
    }

    fn seeds(&mut self, at: &At<'_>) -> Vec<u64> {
        if let Some(count) = at.value.as_u64() {
            if count == 0 || count > MAX_SEEDS {
                self.problem(at, format!("`seeds` must be 1 to {MAX_SEEDS}, found {count}"));
                return Vec::new();
            }
            return (0..count).collect();
        }
        if !at.value.is_array() {
            self.expected(at, "a number of seeds or a list of seeds");
            return Vec::new();
        }
        let (mut seeds, mut seen) = (Vec::new(), HashSet::new());
        for item in at.items() {
            match item.value.as_u64() {
                Some(seed) if !seen.insert(seed) => {
                    self.problem(&item, format!("seed {seed} is listed twice"));
                }
                Some(seed) => seeds.push(seed),
                None => self.expected(&item, "a whole number"),
            }
        }
        if at.items().is_empty() {
            self.problem(at, "`seeds` is empty: nothing would run");
        }
        seeds
    }

    fn checkpoints(&mut self, at: &At<'_>) -> Option<CheckpointSelection> {
        match at.value.as_str() {
            Some("all") => return Some(CheckpointSelection::All),
            Some("final") => return Some(CheckpointSelection::Final),
            Some(word) => {
                let hint = did_you_mean(word, ["all", "final"]);
                self.problem(at, format!("`{word}` is not a checkpoint selection"));
                if let Some(problem) = self.problems.last_mut() {
                    problem.hint = hint.or(Some("use all, final, or a mapping".to_owned()));
                }
                return None;
            }
            None => {}
        }
        let known = ["steps", "every", "log2", "last", "refine"];
        if !self.mapping(
            at,
            "all, final, or a mapping with one of steps, every, log2, last",
            &known,
        ) {
            return None;
        }
        if at.key("refine").is_some() {
            self.problem(at, "adaptive checkpoints (`refine`) are not supported by this version");
            return None;
        }
        if at.value.as_object().is_some_and(|map| map.len() != 1) {
            self.problem(at, "a checkpoint selection has exactly one of steps, every, log2, last");
            return None;
        }
        if at.key("every").is_some() {
            return self.positive(at, "every").map(CheckpointSelection::Every);
        }
        if at.key("last").is_some() {
            return self.positive(at, "last").map(CheckpointSelection::Last);
        }
        if let Some(at) = at.key("log2") {
            let numbers: Vec<u64> = at.items().iter().filter_map(|i| i.value.as_u64()).collect();
            return match numbers[..] {
                [a, b] if a <= b && b < 63 => Some(CheckpointSelection::Log2(a as u32, b as u32)),
                _ => {
                    self.problem(&at, "`log2` takes two exponents, as in `log2: [0, 12]`");
                    None
                }
            };
        }
        let at = at.key("steps")?;
        let mut steps = Vec::new();
        for item in at.items() {
            match item.value.as_u64() {
                Some(step) => steps.push(step),
                None => self.expected(&item, "a step (a whole number)"),
            }
        }
        steps.sort_unstable();
        steps.dedup();
        if !at.value.is_array() {
            self.expected(&at, "a list of steps");
        } else if at.items().is_empty() {
            self.problem(&at, "`steps` is empty: nothing would run");
        }
        Some(CheckpointSelection::Steps(steps))
    }

    /// A list of `name` or `name: { params }`; the canonical form `{ name, params }` too.
    fn experiments(&mut self, root: &At<'_>, key: &str) -> Vec<ExperimentSpec> {
        let Some(at) = root.key(key) else { return Vec::new() };
        if !at.value.is_array() {
            self.expected(&at, "a list of experiments");
            return Vec::new();
        }
        at.items().iter().filter_map(|item| self.experiment(item)).collect()
    }

    fn experiment(&mut self, at: &At<'_>) -> Option<ExperimentSpec> {
        if let Some(name) = at.value.as_str() {
            return Some(ExperimentSpec { name: name.to_owned(), params: Map::new() });
        }
        let Some(map) = at.value.as_object() else {
            self.expected(at, "an experiment name or `name: { parameters }`");
            return None;
        };
        if map.len() == 2
            && let (Some(Value::String(name)), Some(_)) = (map.get("name"), map.get("params"))
        {
            return Some(ExperimentSpec { name: name.clone(), params: self.params(at) });
        }
        if map.len() != 1 {
            self.problem(at, "one list entry holds one experiment: `- name: { parameters }`");
            return None;
        }
        let (name, _) = map.iter().next()?;
        let params = match at.key(name).as_ref().map(|inner| (inner, inner.value)) {
            None => Map::new(),
            Some((_, Value::Object(params))) => params.clone(),
            Some((inner, _)) => {
                self.expected(inner, "a mapping of parameters");
                Map::new()
            }
        };
        Some(ExperimentSpec { name: name.clone(), params })
    }
}
