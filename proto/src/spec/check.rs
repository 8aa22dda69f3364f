//! A decoded sweep against a catalogue: names, parameters, ranges, metrics, models.

use serde_json::{Map, Value};

use super::{
    CheckpointSelection, ExperimentSpec, MetricName, ModelSource, ModelSpec, Models, Problem,
    Segment, SweepSpec, expand, metric_name,
};
use crate::{
    catalog::{self, did_you_mean},
    pb,
};

impl SweepSpec {
    /// Compares the sweep with what workers can run. `document` is what was decoded; it tells in
    /// which form an experiment was written, so that paths lead to the right place.
    ///
    /// # Errors
    /// Every problem found.
    pub fn check(&self, document: &Value, known: &pb::Catalog) -> Result<(), Vec<Problem>> {
        let mut checker = Checker { spec: self, document, catalog: known, problems: Vec::new() };
        checker.models();
        let listed: Vec<&ExperimentSpec> = self.experiments.iter().collect();
        checker.experiments("experiments", "analyse", &listed);
        let listed: Vec<&ExperimentSpec> = self.compare.iter().map(|c| &c.experiment).collect();
        checker.experiments("compare", "compare", &listed);
        let listed: Vec<&ExperimentSpec> = self.trajectory.iter().collect();
        checker.experiments("trajectory", "trajectory", &listed);
        checker.pairs();
        if checker.problems.is_empty() { Ok(()) } else { Err(checker.problems) }
    }
}

struct Checker<'a> {
    spec: &'a SweepSpec,
    document: &'a Value,
    catalog: &'a pb::Catalog,
    problems: Vec<Problem>,
}

/// Whether two numbers stand in a relation.
type Holds = fn(f64, f64) -> bool;

/// Whether a value of a group's parameter counts as not given.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

fn path(parts: &[&dyn ToSegment]) -> Vec<Segment> {
    parts.iter().map(|part| part.to_segment()).collect()
}

trait ToSegment {
    fn to_segment(&self) -> Segment;
}

impl ToSegment for &str {
    fn to_segment(&self) -> Segment {
        Segment::Key((*self).to_owned())
    }
}

impl ToSegment for usize {
    fn to_segment(&self) -> Segment {
        Segment::Index(*self)
    }
}

impl<'a> Checker<'a> {
    fn add(&mut self, path: Vec<Segment>, message: String, hint: Option<String>) {
        self.problems.push(Problem { path, at_key: false, message, hint });
    }

    fn models(&mut self) {
        let spec = self.spec;
        for (index, model) in spec.models.iter().enumerate() {
            let here = path(&[&"models", &index]);
            match &model.source {
                ModelSource::Train { recipe, params, .. } => {
                    let at = path(&[&"models", &index, &"train"]);
                    self.train(&at, recipe, params, model.checkpoints.as_ref());
                }
                ModelSource::Named(_) | ModelSource::Hub(_) | ModelSource::Path(_) => {
                    self.import(here, model);
                }
            }
        }
    }

    fn import(&mut self, here: Vec<Segment>, model: &ModelSpec) {
        let Some(found) = &model.import.found else {
            let hint = "submit the file with `sweep submit` or `sweep local`".to_owned();
            return self.add(here, "its checkpoints were not listed".to_owned(), Some(hint));
        };
        if let Err(message) = found.select(model.checkpoints.as_ref()) {
            let mut path = here;
            if model.checkpoints.is_some() {
                path.push(Segment::Key("checkpoints".to_owned()));
            }
            self.add(path, message, None);
        }
    }

    fn train(
        &mut self,
        at: &[Segment],
        name: &str,
        params: &Map<String, Value>,
        checkpoints: Option<&CheckpointSelection>,
    ) {
        let Some(recipe) = catalog::recipe(self.catalog, name) else {
            let names = self.catalog.recipes.iter().map(|recipe| recipe.name.as_str());
            let hint = did_you_mean(name, names.clone()).unwrap_or_else(|| {
                format!("known recipes: {}", names.collect::<Vec<_>>().join(", "))
            });
            let mut path = at.to_vec();
            path.push(Segment::Key("recipe".to_owned()));
            self.add(path, format!("unknown recipe `{name}`"), Some(hint));
            return;
        };
        let mut params_at = at.to_vec();
        params_at.push(Segment::Key("params".to_owned()));
        let owner = format!("recipe `{name}`");
        self.params(&params_at, &owner, &recipe.params, params, None);
        let Some(CheckpointSelection::Steps(steps)) = checkpoints else { return };
        // A step that the training never reaches would wait forever.
        for point in expand::grid(recipe, params) {
            let total = expand::total_steps(recipe, &point);
            if let Some(step) = steps.iter().find(|step| **step > total) {
                let mut path = at[..at.len() - 1].to_vec();
                path.push(Segment::Key("checkpoints".to_owned()));
                let message = format!("step {step} lies beyond the training's {total} steps");
                self.add(path, message, None);
                return;
            }
        }
    }

    fn experiments(&mut self, key: &str, stage: &str, list: &[&ExperimentSpec]) {
        for (index, experiment) in list.iter().enumerate() {
            let here = path(&[&key, &index]);
            let Some(known) = catalog::experiment(self.catalog, &experiment.name) else {
                let of_stage = self.catalog.experiments.iter().filter(|e| e.stage == stage);
                let names: Vec<&str> = of_stage.map(|e| e.name.as_str()).collect();
                let hint = did_you_mean(&experiment.name, names.iter().copied()).or_else(|| {
                    (!names.is_empty()).then(|| format!("known here: {}", names.join(", ")))
                });
                self.add(here, format!("unknown experiment `{}`", experiment.name), hint);
                continue;
            };
            if known.stage != stage {
                let section = match known.stage.as_str() {
                    "analyse" => "experiments",
                    other => other,
                };
                self.add(
                    here,
                    format!("`{}` is not an experiment for `{key}`", experiment.name),
                    Some(format!("move it to `{section}`")),
                );
                continue;
            }
            let repeated = match key {
                "compare" => self.spec.compare[..index].contains(&self.spec.compare[index]),
                _ => list[..index].contains(experiment),
            };
            if repeated {
                self.add(here, format!("`{}` is listed twice", experiment.name), None);
                continue;
            }
            let at = self.params_path(key, index, &experiment.name);
            let owner = format!("experiment `{}`", experiment.name);
            let here = at[..at.len() - 1].to_vec();
            let produced = self.produced(!known.scope.is_empty());
            self.params(&at, &owner, &known.params, &experiment.params, Some(&produced));
            self.reads(here, known, &produced);
        }
    }

    /// Where the parameters of an experiment are written.
    fn params_path(&self, key: &str, index: usize, name: &str) -> Vec<Segment> {
        let written = &self.document[key][index];
        let canonical = written.get("name").is_some() && written.get("params").is_some();
        let inner = if canonical { "params" } else { name };
        path(&[&key, &index, &inner])
    }

    /// Checks that the pairs to compare exist. Needs models without problems.
    fn pairs(&mut self) {
        let spec = self.spec;
        if spec.compare.is_empty() || !self.problems.is_empty() {
            return;
        }
        let models = match Models::new(spec, self.catalog) {
            Ok(models) => models,
            Err(problems) => {
                for message in problems {
                    self.add(path(&[&"models"]), message, None);
                }
                return;
            }
        };
        for (index, compare) in spec.compare.iter().enumerate() {
            let Err(problems) = compare.pairs.resolve(&models) else { continue };
            for (below, message, hint) in problems {
                let mut path = self.params_path("compare", index, &compare.experiment.name);
                path.extend(below);
                self.add(path, message, hint);
            }
        }
    }

    /// Checks that the sweep produces the metric series that an experiment always reads.
    fn reads(&mut self, here: Vec<Segment>, known: &pb::Experiment, produced: &[Produced<'_>]) {
        let is_missing = |name: &&String| !produced.iter().any(|owner| owner.has(name));
        let Some(missing) = known.reads.iter().find(is_missing) else { return };
        let message =
            format!("`{}` reads the metric `{missing}`, which nothing here produces", known.name);
        let owner = missing.split('.').next().unwrap_or(missing);
        let stage =
            catalog::experiment(self.catalog, owner).map_or("analyse", |e| e.stage.as_str());
        let section = if stage == "analyse" { "experiments" } else { stage };
        self.add(here, message, Some(format!("add `{owner}` to `{section}`")));
    }

    /// Checks names, types and ranges of parameters. Those of a recipe may have a list of values each;
    /// those of an experiment may name metrics, out of `metrics`.
    fn params(
        &mut self,
        at: &[Segment],
        owner: &str,
        known: &[pb::Param],
        given: &Map<String, Value>,
        metrics: Option<&[Produced<'_>]>,
    ) {
        let before = self.problems.len();
        for (key, value) in given {
            let mut path = at.to_vec();
            path.push(Segment::Key(key.clone()));
            let Some(param) = known.iter().find(|param| param.name == *key) else {
                let names: Vec<&str> = known.iter().map(|param| param.name.as_str()).collect();
                self.problems.push(Problem {
                    path,
                    at_key: true,
                    message: format!(
                        "{owner} has no parameter `{key}` (it has: {})",
                        names.join(", ")
                    ),
                    hint: did_you_mean(key, names),
                });
                continue;
            };
            let axis = expand::axis_of(param, value).filter(|_| metrics.is_none());
            if axis.is_some_and(<[Value]>::is_empty) {
                self.add(path, format!("the axis `{key}` is empty: nothing would run"), None);
                continue;
            }
            let values = axis.unwrap_or(std::slice::from_ref(value));
            for (index, value) in values.iter().enumerate() {
                let mut path = path.clone();
                if axis.is_some() {
                    path.push(Segment::Index(index));
                }
                if values[..index].contains(value) {
                    self.add(path, format!("`{key}` lists {value} twice"), None);
                } else if let Err((message, hint)) = check_value(param, value, metrics) {
                    self.add(path, message, hint);
                }
            }
        }
        self.groups(at, owner, known, given);
        if self.problems.len() == before {
            self.relations(at, known, given);
        }
        for param in known.iter().filter(|param| names_metrics(param)) {
            let missing = is_empty(&expand::default_of(param));
            if missing && !given.contains_key(&param.name) {
                let mut path = at.to_vec();
                path.pop_if(|last| matches!(last, Segment::Key(_)));
                self.add(
                    path,
                    format!("{owner} needs the parameter `{}`", param.name),
                    Some(match param.kind.as_str() {
                        "metric" => format!("{}: experiment.metric", param.name),
                        _ => format!("{}: [experiment.metric, …]", param.name),
                    }),
                );
            }
        }
    }

    /// Checks that of each group of parameters exactly one is given.
    fn groups(
        &mut self,
        at: &[Segment],
        owner: &str,
        known: &[pb::Param],
        given: &Map<String, Value>,
    ) {
        let mut groups: Vec<&str> = known.iter().map(|param| param.group.as_str()).collect();
        groups.retain(|group| !group.is_empty());
        groups.dedup();
        for group in groups {
            let members = known.iter().filter(|param| param.group == group);
            let members: Vec<&str> = members.map(|param| param.name.as_str()).collect();
            let is_given = |name: &&&str| given.get(**name).is_some_and(|value| !is_empty(value));
            let found: Vec<&str> = members.iter().filter(is_given).copied().collect();
            let names = format!("`{}`", members.join("`, `"));
            let message = match found.len() {
                0 => format!("{owner} needs one of {names}"),
                1 => continue,
                _ => format!("{owner} takes only one of {names}"),
            };
            let mut path = at.to_vec();
            match found.last() {
                Some(name) => path.push(Segment::Key((*name).to_owned())),
                None => drop(path.pop_if(|last| matches!(last, Segment::Key(_)))),
            }
            self.add(path, message, None);
        }
    }

    /// Checks what parameters declare about each other, for every combination that would run.
    fn relations(&mut self, at: &[Segment], known: &[pb::Param], given: &Map<String, Value>) {
        let values = |name: &str| -> Vec<Value> {
            let Some(param) = known.iter().find(|param| param.name == name) else { return vec![] };
            let Some(value) = given.get(name) else { return vec![expand::default_of(param)] };
            expand::axis_of(param, value).map_or_else(|| vec![value.clone()], <[Value]>::to_vec)
        };
        for param in known {
            let relations: [(&str, &str, Holds); 2] = [
                (&param.at_most, "is more than", |own, bound| own <= bound),
                (&param.divides, "does not divide", |own, whole| whole % own == 0.0),
            ];
            for (other, words, holds) in relations {
                let others = values(other);
                let pairs = values(&param.name)
                    .into_iter()
                    .flat_map(|own| others.iter().map(move |bound| (own.clone(), bound.clone())));
                let broken = pairs.into_iter().find(|(own, bound)| {
                    let numbers = own.as_f64().zip(bound.as_f64());
                    numbers.is_some_and(|(own, bound)| !holds(own, bound))
                });
                let Some((own, bound)) = broken else { continue };
                let key = if given.contains_key(&param.name) { &param.name } else { other };
                let mut path = at.to_vec();
                path.push(Segment::Key(key.to_owned()));
                self.add(path, format!("`{}` {own} {words} `{other}` {bound}", param.name), None);
            }
        }
    }

    /// Everything of the sweep that produces metrics: trainings, experiments, and comparisons (for a
    /// reduction over one model those whose results are a series over its steps).
    fn produced(&self, all_pairs: bool) -> Vec<Produced<'a>> {
        let mut produced: Vec<Produced<'a>> = Vec::new();
        for model in &self.spec.models {
            if let ModelSource::Train { recipe, .. } = &model.source
                && let Some(recipe) = catalog::recipe(self.catalog, recipe)
                && !produced.iter().any(|known| known.name == recipe.name)
            {
                let metrics = &recipe.metrics;
                produced.push(Produced { name: &recipe.name, written: Map::new(), metrics });
            }
        }
        let single = self.spec.experiments.iter().map(|e| (e, e.params.clone()));
        let pairs = self.spec.compare.iter().filter(|c| all_pairs || c.pairs.is_series());
        let pairs = pairs.map(|c| (&c.experiment, c.written()));
        for (experiment, written) in single.chain(pairs) {
            if let Some(known) = catalog::experiment(self.catalog, &experiment.name) {
                produced.push(Produced { name: &known.name, written, metrics: &known.metrics });
            }
        }
        produced
    }
}

/// A training, experiment or comparison of the sweep, and what it measures.
struct Produced<'a> {
    name: &'a str,
    written: Map<String, Value>,
    metrics: &'a [pb::Metric],
}

impl Produced<'_> {
    fn has(&self, full: &str) -> bool {
        let metric = full.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.'));
        metric.is_some_and(|name| self.metrics.iter().any(|metric| metric.name == name))
    }
}

/// Checks that a metric's name means exactly one of the sweep's experiments.
fn check_metric(text: &str, produced: &[Produced<'_>]) -> Result<(), (String, Option<String>)> {
    let name = MetricName::parse(text);
    let full = name.as_ref().map_or_else(|| text.to_owned(), MetricName::full);
    let owners: Vec<&Produced<'_>> = produced.iter().filter(|owner| owner.has(&full)).collect();
    let Some(name) = name.filter(|_| !owners.is_empty()) else {
        let mut known: Vec<String> = produced
            .iter()
            .flat_map(|owner| owner.metrics.iter().map(|m| format!("{}.{}", owner.name, m.name)))
            .collect();
        known.sort();
        known.dedup();
        let hint = did_you_mean(text, known.iter().map(String::as_str))
            .unwrap_or_else(|| format!("there are: {}", known.join(", ")));
        return Err((format!("no metric `{text}` in this sweep"), Some(hint)));
    };
    let n_fitting = owners.iter().filter(|owner| name.fits(&owner.written)).count();
    if n_fitting == 1 {
        return Ok(());
    }
    let metric = full.split_once('.').map_or("", |(_, metric)| metric);
    let example = |index: usize| {
        let rest = owners.iter().enumerate().filter(|(at, _)| *at != index);
        let others: Vec<&Map<String, Value>> = rest.map(|(_, owner)| &owner.written).collect();
        format!("`{}`", metric_name::example(name.owner, metric, &owners[index].written, &others))
    };
    let examples: Vec<String> = (0..owners.len()).map(example).collect();
    let means = if n_fitting == 0 { "none".to_owned() } else { n_fitting.to_string() };
    let message = format!(
        "`{text}` means {means} of the {} experiments `{}` that are listed",
        owners.len(),
        name.owner
    );
    Err((message, Some(format!("name one, in quotes: {}", examples.join(" or ")))))
}

/// Whether the values of a parameter are names of metrics.
fn names_metrics(param: &pb::Param) -> bool {
    matches!(param.kind.as_str(), "metric" | "metric-list")
}

/// Checks the type and range of one value.
fn check_value(
    param: &pb::Param,
    value: &Value,
    metrics: Option<&[Produced<'_>]>,
) -> Result<(), (String, Option<String>)> {
    let name = &param.name;
    if value.is_null() && expand::default_of(param).is_null() {
        return Ok(());
    }
    let wrong = |what: &str| Err((format!("`{name}` must be {what}, found {value}"), None));
    let scalars: Vec<&Value> = match param.kind.as_str() {
        "int-list" | "float-list" | "text-list" | "metric-list" => match value.as_array() {
            Some(list) => list.iter().collect(),
            None => return wrong("a list"),
        },
        "int-lists" => {
            let lists: Option<Vec<&Vec<Value>>> =
                value.as_array().and_then(|list| list.iter().map(Value::as_array).collect());
            match lists {
                Some(lists) => lists.into_iter().flatten().collect(),
                None => return wrong("a list of lists"),
            }
        }
        _ => vec![value],
    };
    for value in scalars {
        match param.kind.as_str() {
            "int" | "int-list" | "int-lists" if !value.is_i64() && !value.is_u64() => {
                return wrong("a whole number");
            }
            "float" | "float-list" if !value.is_number() => return wrong("a number"),
            "bool" if !value.is_boolean() => return wrong("true or false"),
            "text" | "text-list" | "metric" | "metric-list" if !value.is_string() => {
                return wrong("a text");
            }
            _ => {}
        }
        if let Some(number) = value.as_f64() {
            if param.min.is_some_and(|min| number < min) {
                return wrong(&format!("at least {}", param.min.unwrap_or_default()));
            }
            if param.max.is_some_and(|max| number > max) {
                return wrong(&format!("at most {}", param.max.unwrap_or_default()));
            }
        }
        let Some(text) = value.as_str() else { continue };
        if !param.choices.is_empty() && !param.choices.iter().any(|choice| choice == text) {
            let choices = param.choices.iter().map(String::as_str);
            let message = format!("`{name}` must be one of {}", param.choices.join(", "));
            return Err((message, did_you_mean(text, choices)));
        }
        if names_metrics(param) {
            check_metric(text, metrics.unwrap_or_default())?;
        }
    }
    Ok(())
}
