//! The axes of a sweep and the arithmetic on them. Main type: [`Plan`].
//!
//! A sweep is a product, not a table: a plan holds its axes (grid values, seeds, checkpoint steps,
//! experiments) and computes from an index which model, parameters, label or task it means. Its
//! size depends on what was written in the sweep file, never on the number of tasks.
//!
//! Experiment and recipe versions are pinned here, at submission: a plan is rebuilt after a
//! restart from the sweep file and the pinned part of the catalogue, and is equal to the first one.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Map, Value};
use sweep_proto::{
    catalog,
    id::{TaskKey, TaskKind},
    pb,
    spec::{CheckpointSelection, ModelSource, ModelSpec, SweepSpec, canonical, expand},
};

use super::label;

/// Checkpoints of one training; a schedule is held in memory and sent with every lease.
pub const MAX_CHECKPOINTS: u64 = 1_000_000;

/// A sweep with everything that its tasks mean.
#[derive(Debug)]
pub struct Plan {
    id: String,
    spec: SweepSpec,
    document: String,
    pinned: pb::Catalog,
    entries: Vec<Entry>,
    experiments: Vec<Pinned>,
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
    /// Reductions over the checkpoints of a model.
    pub trajectory: u64,
    /// Checkpoints that the trainings publish.
    pub checkpoints: u64,
}

impl Totals {
    /// All tasks.
    pub fn tasks(self) -> u64 {
        self.train.saturating_add(self.analyse).saturating_add(self.trajectory)
    }
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
}

/// Word for the task that makes published checkpoints known.
pub const IMPORT: &str = "import";

/// What a worker needs to find the checkpoints of an imported model.
#[derive(Debug)]
pub struct Import {
    /// Template of the locations.
    pub at: String,
    /// Selected checkpoints, by rising step.
    pub checkpoints: Vec<pb::Found>,
    /// How they are read.
    pub options: pb::ImportOptions,
}

/// One entry of `models:`: grid points × seeds, models numbered from `first_model`; or a single
/// imported model, which has neither.
#[derive(Debug)]
pub struct Entry {
    first_model: u32,
    index: usize,
    /// What trains them; without parameters and metrics for an imported model.
    recipe: pb::Recipe,
    /// Locations of an imported model's checkpoints.
    import: Option<Import>,
    params: Map<String, Value>,
    /// `params` with nothing in the place of grid axes: what a grid point is made from. Long axes
    /// are not copied for every lease.
    base: Map<String, Value>,
    axes: Vec<(String, Vec<Value>)>,
    label_axes: Vec<(String, Vec<Value>)>,
    seeds: Vec<u64>,
    points: u64,
    /// Checkpoint steps, one list per value of the `steps` axis (a single one without that axis).
    schedules: Vec<Arc<[u64]>>,
}

/// A model by what it is: entry, grid point, seed.
#[derive(Debug, Clone, Copy)]
pub struct ModelRef<'p> {
    /// The entry that it comes from.
    pub entry: &'p Entry,
    /// Index of the grid point.
    pub point: u64,
    /// Random seed; none for a model that this system did not train.
    pub seed: Option<u64>,
}

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
        if !spec.compare.is_empty() {
            return Err(vec!["compare: pairs of checkpoints are not supported yet".to_owned()]);
        }
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
        let mut entries: Vec<Entry> = Vec::new();
        let mut first_model = 0u64;
        for (index, model) in spec.models.iter().enumerate() {
            let entry = Entry::new(index, model, &pinned, first_model)?;
            first_model += entry.points.saturating_mul(entry.seeds.len() as u64);
            if first_model > u64::from(u32::MAX) {
                return Err(vec![too_large(first_model, "models", u64::from(u32::MAX))]);
            }
            entries.push(entry);
        }
        label::distinguish(&mut entries, &spec.models);
        let experiments = pin_experiments(&spec.experiments, &pinned)?;
        let trajectory = pin_experiments(&spec.trajectory, &pinned)?;
        let checkpoints = entries.iter().fold(0, |n: u64, e| n.saturating_add(e.n_checkpoints()));
        let totals = Totals {
            train: first_model,
            analyse: checkpoints.saturating_mul(experiments.len() as u64),
            trajectory: first_model.saturating_mul(trajectory.len() as u64),
            checkpoints,
        };
        let document = spec.to_json().to_string();
        Ok(Self { id: spec.id(), spec, document, pinned, entries, experiments, trajectory, totals })
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

    /// Per-model reductions.
    pub fn trajectory(&self) -> &[Pinned] {
        &self.trajectory
    }

    /// Number of models.
    pub fn n_models(&self) -> u32 {
        self.totals.train as u32
    }

    /// The model with that index.
    pub fn model(&self, index: u32) -> Option<ModelRef<'_>> {
        if index >= self.n_models() {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.first_model <= index);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let local = u64::from(index - entry.first_model);
        let seeds = entry.seeds.len() as u64;
        let seed = entry.seeds[(local % seeds) as usize];
        let seed = entry.import.is_none().then_some(seed);
        Some(ModelRef { entry, point: local / seeds, seed })
    }

    /// Indices of the models that differ from `index` in nothing but the seed, itself included.
    pub fn siblings(&self, index: u32) -> std::ops::Range<u32> {
        let Some(model) = self.model(index) else { return 0..0 };
        let seeds = model.entry.seeds.len() as u32;
        let first = model.entry.first_model + model.point as u32 * seeds;
        first..first + seeds
    }

    /// The first model of the entry after that of `index`.
    pub fn next_entry(&self, index: u32) -> u32 {
        let after = self.entries.partition_point(|entry| entry.first_model <= index);
        self.entries.get(after).map_or(self.n_models(), |entry| entry.first_model)
    }

    /// The steps at which model `index` publishes checkpoints, rising.
    pub fn steps(&self, index: u32) -> &[u64] {
        self.model(index).map_or(&[], |model| model.steps())
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
            TaskKind::Trajectory { index } => (index as usize) < self.trajectory.len(),
        }
    }

    /// The experiment that a task runs; absent for trainings.
    pub fn experiment(&self, kind: TaskKind) -> Option<&Pinned> {
        match kind {
            TaskKind::Source => None,
            TaskKind::Analyse { experiment, .. } => self.experiments.get(experiment as usize),
            TaskKind::Trajectory { index } => self.trajectory.get(index as usize),
        }
    }

    /// Name of the recipe or experiment that a task runs, what its metrics are prefixed with;
    /// [`IMPORT`] for the import of a model.
    pub fn producer(&self, task: TaskKey) -> Option<&str> {
        match task.kind {
            TaskKind::Source => {
                self.model(task.model).map(|model| model.entry.recipe.name.as_str())
            }
            TaskKind::Analyse { .. } | TaskKind::Trajectory { .. } => {
                self.experiment(task.kind).map(|pinned| pinned.name.as_str())
            }
        }
    }

    /// Label of a model: recipe, grid values, seed.
    pub fn model_label(&self, index: u32) -> String {
        self.model(index).map_or_else(|| format!("m{index}"), |model| label::model(self, model))
    }

    /// What a model's first task does: `train` or `import`.
    pub fn source_word(&self, model: u32) -> &'static str {
        let imported = self.model(model).is_some_and(|model| model.entry.import.is_some());
        if imported { IMPORT } else { "train" }
    }

    /// Label of a task: `<model>/train`, `<model>/import`, `<model>/step100/<experiment>`,
    /// `<model>/trajectory/<experiment>`.
    pub fn task_label(&self, task: TaskKey) -> String {
        let model = self.model_label(task.model);
        let name = self.experiment(task.kind).map_or("?", |pinned| pinned.label.as_str());
        match task.kind {
            TaskKind::Source => format!("{model}/{}", self.source_word(task.model)),
            TaskKind::Analyse { step, .. } => format!("{model}/step{step}/{name}"),
            TaskKind::Trajectory { .. } => format!("{model}/trajectory/{name}"),
        }
    }
}

impl Entry {
    fn new(
        index: usize,
        model: &sweep_proto::spec::ModelSpec,
        pinned: &pb::Catalog,
        first_model: u64,
    ) -> Result<Self, Vec<String>> {
        let ModelSource::Train { recipe: name, params, seeds } = &model.source else {
            return Self::imported(index, model, first_model);
        };
        let recipe = catalog::recipe(pinned, name)
            .ok_or_else(|| vec![format!("models[{index}]: unknown recipe `{name}`")])?;
        let axes = expand::axes(recipe, params);
        let mut base = params.clone();
        for (name, _) in &axes {
            base.insert(name.clone(), Value::Null);
        }
        let schedules = schedules(recipe, params, &axes, model.checkpoints.as_ref())
            .map_err(|problem| vec![format!("models[{index}].checkpoints: {problem}")])?;
        Ok(Self {
            first_model: u32::try_from(first_model).unwrap_or(u32::MAX),
            index,
            recipe: recipe.clone(),
            import: None,
            params: params.clone(),
            base,
            points: expand::grid_size(&axes),
            label_axes: axes.clone(),
            axes,
            seeds: seeds.clone(),
            schedules,
        })
    }

    fn imported(index: usize, model: &ModelSpec, first_model: u64) -> Result<Self, Vec<String>> {
        let listing = model.import.found.as_ref();
        let listing = listing
            .ok_or_else(|| vec![format!("models[{index}]: its checkpoints were not listed")])?;
        let steps = listing
            .select(model.checkpoints.as_ref())
            .map_err(|problem| vec![format!("models[{index}].checkpoints: {problem}")])?;
        if steps.len() as u64 > MAX_CHECKPOINTS {
            return Err(vec![too_large(steps.len() as u64, "checkpoints", MAX_CHECKPOINTS)]);
        }
        let import = Import {
            at: listing.at.clone(),
            checkpoints: listing.wire(&steps),
            options: model.import.options(),
        };
        Ok(Self {
            first_model: u32::try_from(first_model).unwrap_or(u32::MAX),
            index,
            recipe: pb::Recipe { name: IMPORT.to_owned(), version: 1, ..Default::default() },
            import: Some(import),
            params: Map::new(),
            base: Map::new(),
            points: 1,
            label_axes: Vec::new(),
            axes: Vec::new(),
            seeds: vec![0],
            schedules: vec![steps.into()],
        })
    }

    /// Where the model's checkpoints are, if this system did not train it.
    pub fn import(&self) -> Option<&Import> {
        self.import.as_ref()
    }

    /// The recipe that trains these models; [`IMPORT`] by name for an imported one.
    pub fn recipe(&self) -> &pb::Recipe {
        &self.recipe
    }

    /// Index in the sweep file's `models`.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Seeds of each grid point.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }

    /// Parameters as written, axes included.
    pub fn params(&self) -> &Map<String, Value> {
        &self.params
    }

    /// Grid axes, and fixed parameters that tell this entry from others in labels.
    pub fn label_axes(&self) -> &[(String, Vec<Value>)] {
        &self.label_axes
    }

    /// Replaces what labels show.
    pub(super) fn set_label_axes(&mut self, axes: Vec<(String, Vec<Value>)>) {
        self.label_axes = axes;
    }

    fn schedule(&self, point: u64) -> &Arc<[u64]> {
        // A point's index is a mixed-radix number, the last axis running fastest.
        let at = self.axes.iter().position(|(name, _)| name == "steps");
        let digit = at.map_or(0, |at| {
            let stride = expand::grid_size(&self.axes[at + 1..]);
            (point / stride) % self.axes[at].1.len() as u64
        });
        &self.schedules[digit as usize]
    }

    fn n_checkpoints(&self) -> u64 {
        let per_value = self.points / self.schedules.len() as u64;
        let steps = self.schedules.iter().fold(0u64, |n, s| n.saturating_add(s.len() as u64));
        steps.saturating_mul(per_value).saturating_mul(self.seeds.len() as u64)
    }
}

impl<'p> ModelRef<'p> {
    /// Checkpoint steps, rising.
    pub fn steps(self) -> &'p [u64] {
        self.entry.schedule(self.point)
    }

    /// Parameters as written, each axis replaced by its value at this point.
    pub fn written(self) -> Map<String, Value> {
        expand::point(&self.entry.base, &self.entry.axes, self.point)
    }

    /// Parameters with every default filled in, as JSON.
    pub fn params(self) -> String {
        Value::Object(expand::with_defaults(&self.entry.recipe.params, &self.written())).to_string()
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
    for experiment in spec.experiments.iter_mut().chain(&mut spec.trajectory) {
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
        spec.experiments.iter().chain(&spec.trajectory).map(|e| e.name.as_str()).collect();
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
    list: &[sweep_proto::spec::ExperimentSpec],
    pinned: &pb::Catalog,
) -> Result<Vec<Pinned>, Vec<String>> {
    let pin = |experiment: &sweep_proto::spec::ExperimentSpec| {
        let name = &experiment.name;
        let known = catalog::experiment(pinned, name)
            .ok_or_else(|| vec![format!("unknown experiment `{name}`")])?;
        let repeated = list.iter().filter(|other| other.name == *name).count() > 1;
        let (label, folder) = label::experiment(name, &experiment.params, repeated);
        let params = expand::with_defaults(&known.params, &experiment.params);
        Ok(Pinned {
            name: name.clone(),
            version: known.version,
            params: Value::Object(params).to_string(),
            written: Value::Object(experiment.params.clone()).to_string(),
            label,
            folder,
        })
    };
    list.iter().map(pin).collect()
}

/// One list of checkpoint steps per value of the `steps` axis.
fn schedules(
    recipe: &pb::Recipe,
    params: &Map<String, Value>,
    axes: &[(String, Vec<Value>)],
    selection: Option<&CheckpointSelection>,
) -> Result<Vec<Arc<[u64]>>, String> {
    let axis = axes.iter().find(|(name, _)| name == "steps");
    let values: Vec<Value> = match axis {
        Some((_, values)) => values.clone(),
        None => params.get("steps").cloned().into_iter().collect(),
    };
    let points: Vec<Map<String, Value>> = if values.is_empty() {
        vec![Map::new()]
    } else {
        values.into_iter().map(|v| Map::from_iter([("steps".to_owned(), v)])).collect()
    };
    let schedule = |point: &Map<String, Value>| {
        let total = expand::total_steps(recipe, point);
        let count = schedule_len(selection, total);
        if count > MAX_CHECKPOINTS {
            return Err(format!(
                "{count} checkpoints of one training are more than the limit of {MAX_CHECKPOINTS}"
            ));
        }
        let mut steps = expand::training_steps(selection, total);
        steps.dedup();
        Ok(steps.into())
    };
    points.iter().map(schedule).collect()
}

/// An upper bound of the length of `expand::training_steps`, without building the list.
fn schedule_len(selection: Option<&CheckpointSelection>, total: u64) -> u64 {
    match selection {
        None | Some(CheckpointSelection::All | CheckpointSelection::Last(_)) => 64,
        Some(CheckpointSelection::Every(n)) => total / (*n).max(1) + 2,
        Some(CheckpointSelection::Final) => 1,
        Some(CheckpointSelection::Steps(steps)) => steps.len() as u64,
        Some(CheckpointSelection::Log2(a, b)) => u64::from(b.saturating_sub(*a)) + 3,
    }
}
