//! The axes of a sweep and the arithmetic on them. Main type: [`Plan`].
//!
//! A sweep is a product, not a table: a plan holds its axes (models, checkpoint steps, experiments,
//! pairings) and computes from an index which model, parameters, label or task it means. Its
//! size depends on what was written in the sweep file, never on the number of tasks.
//!
//! Experiment and recipe versions are pinned here, at submission: a plan is rebuilt after a
//! restart from the sweep file and the pinned part of the catalogue, and is equal to the first one.

use std::{collections::BTreeSet, ops::Range};

use serde_json::{Map, Value, json};
use sweep_proto::{
    catalog,
    id::{TaskKey, TaskKind},
    pb,
    spec::{
        CheckpointRef, CompareSpec, ExperimentSpec, MetricName, ModelRef, ModelSource, Models,
        Pairing, SweepSpec, canonical, expand, label,
    },
};

/// A sweep with everything that its tasks mean.
#[derive(Debug)]
pub struct Plan {
    id: String,
    spec: SweepSpec,
    document: String,
    pinned: pb::Catalog,
    models: Models,
    experiments: Vec<Pinned>,
    compare: Vec<Pinned>,
    pairings: Vec<Pairing>,
    trajectory: Vec<Pinned>,
    totals: Totals,
}

/// How many tasks a sweep has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Training and import tasks, one per model.
    pub train: u64,
    /// Experiments on checkpoints.
    pub analyse: u64,
    /// Experiments on pairs of checkpoints.
    pub compare: u64,
    /// Reductions over the checkpoints of a model, or over several models.
    pub trajectory: u64,
    /// Checkpoints that the trainings publish.
    pub checkpoints: u64,
}

impl Totals {
    /// All tasks.
    pub fn tasks(self) -> u64 {
        let kinds = [self.train, self.analyse, self.compare, self.trajectory];
        kinds.into_iter().fold(0, u64::saturating_add)
    }
}

/// Which models a trajectory experiment looks at in one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A single one.
    Model,
    /// All of one entry of `models:`.
    Entry,
    /// All of the sweep.
    Sweep,
}

/// An experiment as it was resolved at submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Name in the catalogue.
    pub name: String,
    /// Version in the catalogue at submission.
    pub version: u32,
    /// Parameters with every default filled in, as JSON.
    pub params: String,
    /// Parameters as written in the sweep file, as JSON.
    pub written: String,
    /// `name`, or `name[k=v]` where the sweep lists the experiment more than once.
    pub label: String,
    /// The same as a folder name: `name-k=v`.
    pub folder: String,
    /// Which models one task looks at.
    pub scope: Scope,
    /// Whether it reads checkpoints, if it looks at several models.
    pub reads_checkpoints: bool,
    /// Whether it reads metrics of comparisons.
    pub reads_pairs: bool,
}

/// Checkpoints that a task on several models may be sent with its lease: some 15 MB.
const MAX_JOINT_CHECKPOINTS: u64 = 50_000;

/// Models that a task on several models may be sent with its lease.
const MAX_MEMBERS: u64 = 20_000;

impl Plan {
    /// Decodes and checks a sweep file and pins what it names.
    ///
    /// # Errors
    /// Every problem found, one line each.
    pub fn resolve(
        document: &Value,
        known: &pb::Catalog,
        max_tasks: u64,
    ) -> Result<Self, Vec<String>> {
        let lines = |problems: Vec<sweep_proto::spec::Problem>| -> Vec<String> {
            problems.iter().map(sweep_proto::spec::Problem::one_line).collect()
        };
        let spec = SweepSpec::decode(document).map_err(lines)?;
        // Before anything walks the grid: `check` visits its points.
        let models = spec.models.iter().fold(0u64, |sum, m| sum.saturating_add(size(m, known)));
        if models > max_tasks {
            return Err(vec![too_large(models, "models", max_tasks)]);
        }
        spec.check(document, known).map_err(lines)?;
        let pinned = pin(&spec, known);
        let plan = Self::new(spec, pinned)?;
        let tasks = plan.totals.tasks();
        if tasks > max_tasks {
            return Err(vec![too_large(tasks, "tasks", max_tasks)]);
        }
        Ok(plan)
    }

    /// A plan from a checked sweep and the part of the catalogue that it uses.
    ///
    /// # Errors
    /// When `pinned` lacks something, or a list would be too large to hold.
    pub fn new(mut spec: SweepSpec, pinned: pb::Catalog) -> Result<Self, Vec<String>> {
        sort_keys(&mut spec);
        let models = Models::new(&spec, &pinned)?;
        let experiments = pin_experiments(&spec.experiments, &pinned)?;
        let trajectory = pin_experiments(&spec.trajectory, &pinned)?;
        let compare = pin_comparisons(&spec.compare, &pinned)?;
        let pairings = pairings(&spec.compare, &models)?;
        for experiment in &trajectory {
            check_members(experiment, &models)?;
        }
        let checkpoints = models.n_checkpoints();
        let groups = |experiment: &Pinned| match experiment.scope {
            Scope::Model => u64::from(models.len()),
            Scope::Entry => models.entries().len() as u64,
            Scope::Sweep => 1,
        };
        let sum = |counts: &mut dyn Iterator<Item = u64>| counts.fold(0, u64::saturating_add);
        let totals = Totals {
            train: u64::from(models.len()),
            analyse: checkpoints.saturating_mul(experiments.len() as u64),
            compare: sum(&mut pairings.iter().map(|pairing| pairing.count(&models))),
            trajectory: sum(&mut trajectory.iter().map(groups)),
            checkpoints,
        };
        let (id, document) = (spec.id(), spec.to_json().to_string());
        Ok(Self {
            id,
            spec,
            document,
            pinned,
            models,
            experiments,
            compare,
            pairings,
            trajectory,
            totals,
        })
    }

    /// `<name>-<hash of the sweep file>`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The sweep as it was written.
    pub fn spec(&self) -> &SweepSpec {
        &self.spec
    }

    /// The sweep file as canonical JSON.
    pub fn document(&self) -> &str {
        &self.document
    }

    /// The recipes and experiments that the sweep uses, as they were at submission.
    pub fn pinned(&self) -> &pb::Catalog {
        &self.pinned
    }

    /// Task counts.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Per-checkpoint experiments.
    pub fn experiments(&self) -> &[Pinned] {
        &self.experiments
    }

    /// Experiments on pairs.
    pub fn compare(&self) -> &[Pinned] {
        &self.compare
    }

    /// The pairs that each experiment of [`compare`](Self::compare) looks at.
    pub fn pairings(&self) -> &[Pairing] {
        &self.pairings
    }

    /// Reductions over a model or several.
    pub fn trajectory(&self) -> &[Pinned] {
        &self.trajectory
    }

    /// The model axis.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Number of models.
    pub fn n_models(&self) -> u32 {
        self.models.len()
    }

    /// The model with that index.
    pub fn model(&self, index: u32) -> Option<ModelRef<'_>> {
        self.models.get(index)
    }

    /// Indices of the models that differ from `index` in nothing but the seed, itself included.
    pub fn siblings(&self, index: u32) -> Range<u32> {
        self.models.siblings(index)
    }

    /// The first model of the entry after that of `index`.
    pub fn next_entry(&self, index: u32) -> u32 {
        self.models.next_entry(index)
    }

    /// The steps at which model `index` publishes checkpoints, rising.
    pub fn steps(&self, index: u32) -> &[u64] {
        self.models.steps(index)
    }

    /// The models that trajectory task `index` of `model` looks at; none where `model` has no such
    /// task, because another model stands for its group.
    pub fn members(&self, model: u32, index: u32) -> Option<Range<u32>> {
        let scope = self.trajectory.get(index as usize)?.scope;
        let entry = self.models.entries().get(self.models.entry_of(model)?)?;
        let members = match scope {
            Scope::Model => model..model + 1,
            Scope::Entry => entry.models(),
            Scope::Sweep => 0..self.models.len(),
        };
        (members.start == model).then_some(members)
    }

    /// The second checkpoint of a comparison.
    pub fn partner(&self, task: TaskKey) -> Option<CheckpointRef> {
        let TaskKind::Compare { step, experiment, pair } = task.kind else { return None };
        let pairing = self.pairings.get(experiment as usize)?;
        pairing.second(&self.models, CheckpointRef { model: task.model, step }, pair)
    }

    /// The first comparison of a model, or the one after `after`: step, experiment, pair.
    pub fn next_comparison(&self, model: u32, after: Option<(u64, u32, u32)>) -> Option<TaskKind> {
        let steps = self.models.steps(model);
        let from = after.map_or(0, |(step, ..)| steps.partition_point(|other| *other < step));
        let limits: Vec<u32> =
            self.pairings.iter().map(|pairing| pairing.indices(&self.models, model)).collect();
        for &step in &steps[from..] {
            for (experiment, limit) in (0u32..).zip(&limits) {
                let first = match after {
                    Some((s, e, _)) if s == step && e > experiment => continue,
                    Some((s, e, pair)) if s == step && e == experiment => pair + 1,
                    _ => 0,
                };
                for pair in first..*limit {
                    let kind = TaskKind::Compare { step, experiment, pair };
                    if self.partner(TaskKey { model, kind }).is_some() {
                        return Some(kind);
                    }
                }
            }
        }
        None
    }

    /// Whether the sweep has that task.
    pub fn contains(&self, task: TaskKey) -> bool {
        if task.model >= self.n_models() {
            return false;
        }
        match task.kind {
            TaskKind::Source => true,
            TaskKind::Analyse { step, experiment } => {
                (experiment as usize) < self.experiments.len()
                    && self.steps(task.model).binary_search(&step).is_ok()
            }
            TaskKind::Trajectory { index } => self.members(task.model, index).is_some(),
            TaskKind::Compare { .. } => self.partner(task).is_some(),
        }
    }

    /// The experiment that a task runs; absent for trainings.
    pub fn experiment(&self, kind: TaskKind) -> Option<&Pinned> {
        match kind {
            TaskKind::Source => None,
            TaskKind::Analyse { experiment, .. } => self.experiments.get(experiment as usize),
            TaskKind::Trajectory { index } => self.trajectory.get(index as usize),
            TaskKind::Compare { experiment, .. } => self.compare.get(experiment as usize),
        }
    }

    /// Name of the recipe or experiment that a task runs, what its metrics are prefixed with;
    /// `import` for the import of a model.
    pub fn producer(&self, task: TaskKey) -> Option<&str> {
        match task.kind {
            TaskKind::Source => {
                self.model(task.model).map(|model| model.entry.recipe().name.as_str())
            }
            TaskKind::Analyse { .. } | TaskKind::Trajectory { .. } | TaskKind::Compare { .. } => {
                self.experiment(task.kind).map(|pinned| pinned.name.as_str())
            }
        }
    }

    /// Label of a model: recipe, grid values, seed.
    pub fn model_label(&self, index: u32) -> String {
        self.models.label(index)
    }

    /// What a task is about: the label of a model, of an entry of `models:`, or `all`.
    pub fn subject(&self, task: TaskKey) -> String {
        match self.experiment(task.kind).map(|pinned| pinned.scope) {
            Some(Scope::Sweep) => label::ALL.to_owned(),
            Some(Scope::Entry) => {
                let entry = self.models.get(task.model).map(|model| model.entry.label());
                entry.unwrap_or_default()
            }
            Some(Scope::Model) | None => self.model_label(task.model),
        }
    }

    /// The seed of what a task is about, if that is one trained model.
    pub fn seed(&self, task: TaskKey) -> Option<u64> {
        let scope = self.experiment(task.kind).map_or(Scope::Model, |pinned| pinned.scope);
        self.model(task.model).filter(|_| scope == Scope::Model).and_then(|model| model.seed)
    }

    /// The second checkpoint of a comparison: `MODEL@STEP`.
    pub fn partner_label(&self, task: TaskKey) -> Option<String> {
        let partner = self.partner(task)?;
        Some(format!("{}@{}", self.model_label(partner.model), partner.step))
    }

    /// What a model's first task does: `train` or `import`.
    pub fn source_word(&self, model: u32) -> &'static str {
        let imported = self.model(model).is_some_and(|model| model.entry.import().is_some());
        if imported { sweep_proto::spec::IMPORT } else { "train" }
    }

    /// Label of a task: `<model>/train`, `<model>/import`, `<model>/step100/<experiment>`,
    /// `<model>/trajectory/<experiment>`, `<model>/step100/<experiment>/<second model>@100`.
    pub fn task_label(&self, task: TaskKey) -> String {
        let model = self.subject(task);
        let name = self.experiment(task.kind).map_or("?", |pinned| pinned.label.as_str());
        match task.kind {
            TaskKind::Source => format!("{model}/{}", self.source_word(task.model)),
            TaskKind::Analyse { step, .. } => format!("{model}/step{step}/{name}"),
            TaskKind::Trajectory { .. } => format!("{model}/trajectory/{name}"),
            TaskKind::Compare { step, .. } => {
                let partner = self.partner_label(task).unwrap_or_default();
                format!("{model}/step{step}/{name}/{partner}")
            }
        }
    }
}

/// Brings parameters into the order of their names. The order of grid axes is that of the keys, and
/// the id knows only the canonical order: the same sweep, written in another order or read back
/// from the store, must number its models alike.
fn sort_keys(spec: &mut SweepSpec) {
    let sort = |params: &mut Map<String, Value>| {
        if let Value::Object(sorted) = canonical(&Value::Object(std::mem::take(params))) {
            *params = sorted;
        }
    };
    for model in &mut spec.models {
        if let ModelSource::Train { params, .. } = &mut model.source {
            sort(params);
        }
    }
    let compare = spec.compare.iter_mut().map(|compare| &mut compare.experiment);
    for experiment in spec.experiments.iter_mut().chain(compare).chain(&mut spec.trajectory) {
        sort(&mut experiment.params);
    }
}

/// Number of models of an entry of `models:`; an unknown recipe counts as a single point.
fn size(model: &sweep_proto::spec::ModelSpec, known: &pb::Catalog) -> u64 {
    match &model.source {
        ModelSource::Train { recipe, params, seeds } => {
            let points = catalog::recipe(known, recipe)
                .map_or(1, |recipe| expand::grid_size(&expand::axes(recipe, params)));
            points.saturating_mul(seeds.len() as u64)
        }
        ModelSource::Named(_) | ModelSource::Hub(_) | ModelSource::Path(_) => 1,
    }
}

fn too_large(count: u64, what: &str, limit: u64) -> String {
    format!(
        "the sweep has {count} {what}, more than the limit of {limit}; \
         shrink the grid or raise --max-tasks"
    )
}

/// The recipes and experiments that `spec` names.
fn pin(spec: &SweepSpec, known: &pb::Catalog) -> pb::Catalog {
    let experiments: BTreeSet<&str> =
        spec.all_experiments().map(|experiment| experiment.name.as_str()).collect();
    let recipes: BTreeSet<&str> = spec
        .models
        .iter()
        .filter_map(|model| match &model.source {
            ModelSource::Train { recipe, .. } => Some(recipe.as_str()),
            ModelSource::Named(_) | ModelSource::Hub(_) | ModelSource::Path(_) => None,
        })
        .collect();
    let experiment = |name: &str| catalog::experiment(known, name).cloned();
    let recipe = |name: &str| catalog::recipe(known, name).cloned();
    pb::Catalog {
        experiments: experiments.into_iter().filter_map(experiment).collect(),
        recipes: recipes.into_iter().filter_map(recipe).collect(),
    }
}

fn pin_experiments(
    list: &[ExperimentSpec],
    pinned: &pb::Catalog,
) -> Result<Vec<Pinned>, Vec<String>> {
    let pin = |experiment: &ExperimentSpec| {
        let name = &experiment.name;
        let repeated = list.iter().filter(|other| other.name == *name).count() > 1;
        let (label, folder) = label::experiment(name, &experiment.params, repeated);
        pin_one(experiment, &experiment.params, (label, folder), pinned)
    };
    list.iter().map(pin).collect()
}

fn pin_comparisons(list: &[CompareSpec], pinned: &pb::Catalog) -> Result<Vec<Pinned>, Vec<String>> {
    let pin = |(index, compare): (usize, &CompareSpec)| {
        let name = &compare.experiment.name;
        let repeated = list.iter().filter(|other| other.experiment.name == *name).count() > 1;
        let written = compare.written();
        let mut shown = written.clone();
        if shown.get("pairs").is_some_and(Value::is_array) {
            // A list is too long for a name; its place in the file tells it from others.
            shown.insert("pairs".to_owned(), json!(format!("listed{index}")));
        }
        let names = label::experiment(name, &shown, repeated);
        pin_one(&compare.experiment, &written, names, pinned)
    };
    list.iter().enumerate().map(pin).collect()
}

fn pin_one(
    experiment: &ExperimentSpec,
    written: &Map<String, Value>,
    (label, folder): (String, String),
    pinned: &pb::Catalog,
) -> Result<Pinned, Vec<String>> {
    let name = &experiment.name;
    let known = catalog::experiment(pinned, name)
        .ok_or_else(|| vec![format!("unknown experiment `{name}`")])?;
    let params = expand::with_defaults(&known.params, &experiment.params);
    Ok(Pinned {
        name: name.clone(),
        version: known.version,
        written: Value::Object(written.clone()).to_string(),
        label,
        folder,
        scope: match known.scope.as_str() {
            "entry" => Scope::Entry,
            "sweep" => Scope::Sweep,
            _ => Scope::Model,
        },
        reads_checkpoints: known.reads_checkpoints,
        reads_pairs: reads_pairs(known, &params, pinned),
        params: Value::Object(params).to_string(),
    })
}

/// Whether one of the metrics that an experiment reads is one of pairs.
fn reads_pairs(known: &pb::Experiment, params: &Map<String, Value>, pinned: &pb::Catalog) -> bool {
    let named = known.params.iter().filter(|param| param.kind.starts_with("metric"));
    let named = named.filter_map(|param| params.get(&param.name)).flat_map(|value| match value {
        Value::Array(list) => list.iter().collect(),
        other => vec![other],
    });
    let names = named.filter_map(Value::as_str).chain(known.reads.iter().map(String::as_str));
    names.filter_map(MetricName::parse).any(|name| {
        catalog::experiment(pinned, name.owner).is_some_and(|owner| owner.stage == "compare")
    })
}

/// Resolves the pairs of every comparison.
fn pairings(list: &[CompareSpec], models: &Models) -> Result<Vec<Pairing>, Vec<String>> {
    let resolve = |compare: &CompareSpec| {
        compare.pairs.resolve(models).map_err(|problems| {
            let name = &compare.experiment.name;
            let line = |problem: sweep_proto::spec::PairProblem| format!("{name}: {}", problem.1);
            problems.into_iter().map(line).collect::<Vec<String>>()
        })
    };
    list.iter().map(resolve).collect()
}

/// What a task on several models is told of them has to fit into a message.
fn check_members(experiment: &Pinned, models: &Models) -> Result<(), Vec<String>> {
    let name = &experiment.name;
    let largest = |of: &dyn Fn(&sweep_proto::spec::Entry) -> u64| {
        let entries = models.entries().iter().map(of);
        if experiment.scope == Scope::Entry {
            entries.max().unwrap_or(0)
        } else {
            entries.fold(0, u64::saturating_add)
        }
    };
    if experiment.scope == Scope::Model {
        return Ok(());
    }
    let members = largest(&|entry| entry.models().len() as u64);
    if members > MAX_MEMBERS {
        return Err(vec![format!(
            "trajectory: `{name}` would look at {members} models at once, {MAX_MEMBERS} are possible"
        )]);
    }
    let checkpoints = largest(&sweep_proto::spec::Entry::n_checkpoints);
    if experiment.reads_checkpoints && checkpoints > MAX_JOINT_CHECKPOINTS {
        return Err(vec![format!(
            "trajectory: `{name}` would read {checkpoints} checkpoints in one task, \
             {MAX_JOINT_CHECKPOINTS} are possible"
        )]);
    }
    Ok(())
}
