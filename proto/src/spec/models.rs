//! The model axis of a sweep: which models it has, what they are called, which checkpoints they
//! publish. Main types: [`Models`], [`Entry`], [`ModelRef`].
//!
//! A sweep is a product, not a table: entries hold their grid axes, seeds and checkpoint schedules,
//! and a model is computed from its index. The size of it all follows from what was written in the
//! sweep file, never from the number of models.

use std::{ops::Range, sync::Arc};

use serde_json::{Map, Value};

use super::{CheckpointSelection, ModelSource, ModelSpec, SweepSpec, canonical, expand, label};
use crate::{catalog, pb};

/// Checkpoints of one training; a schedule is held in memory and sent with every lease.
pub const MAX_CHECKPOINTS: u64 = 1_000_000;

/// Word for the task that makes published checkpoints known.
pub const IMPORT: &str = "import";

/// All models of a sweep, numbered through.
#[derive(Debug)]
pub struct Models {
    entries: Vec<Entry>,
    count: u32,
}

/// What a worker needs to find the checkpoints of an imported model.
#[derive(Debug)]
pub struct ImportPlan {
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
    /// What labels begin with.
    stem: String,
    /// What trains them; without parameters and metrics for an imported model.
    recipe: pb::Recipe,
    /// Locations of an imported model's checkpoints.
    import: Option<ImportPlan>,
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

impl Models {
    /// The models of a checked sweep; `known` has the recipes that it names.
    ///
    /// # Errors
    /// When a recipe is unknown, or a list would be too large to hold.
    pub fn new(spec: &SweepSpec, known: &pb::Catalog) -> Result<Self, Vec<String>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first_model = 0u64;
        for (index, model) in spec.models.iter().enumerate() {
            let entry = Entry::new(index, model, known, first_model)?;
            first_model += entry.points.saturating_mul(entry.seeds.len() as u64);
            if first_model > u64::from(u32::MAX) {
                return Err(vec![format!("{first_model} models are more than can be numbered")]);
            }
            entries.push(entry);
        }
        label::distinguish(&mut entries);
        Ok(Self { entries, count: first_model as u32 })
    }

    /// Number of models.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entries of `models:`.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The model with that index.
    pub fn get(&self, index: u32) -> Option<ModelRef<'_>> {
        if index >= self.count {
            return None;
        }
        let entry = &self.entries[self.entry_of(index)?];
        let local = u64::from(index - entry.first_model);
        let seeds = entry.seeds.len() as u64;
        let seed = entry.seeds[(local % seeds) as usize];
        let seed = entry.import.is_none().then_some(seed);
        Some(ModelRef { entry, point: local / seeds, seed })
    }

    /// Index of the entry that a model belongs to.
    pub fn entry_of(&self, index: u32) -> Option<usize> {
        if index >= self.count {
            return None;
        }
        self.entries.partition_point(|entry| entry.first_model <= index).checked_sub(1)
    }

    /// Indices of the models that differ from `index` in nothing but the seed, itself included.
    pub fn siblings(&self, index: u32) -> Range<u32> {
        let Some(model) = self.get(index) else { return 0..0 };
        let seeds = model.entry.seeds.len() as u32;
        let first = model.entry.first_model + model.point as u32 * seeds;
        first..first + seeds
    }

    /// The first model of the entry after that of `index`.
    pub fn next_entry(&self, index: u32) -> u32 {
        let after = self.entries.partition_point(|entry| entry.first_model <= index);
        self.entries.get(after).map_or(self.count, |entry| entry.first_model)
    }

    /// The steps at which model `index` publishes checkpoints, rising.
    pub fn steps(&self, index: u32) -> &[u64] {
        self.get(index).map_or(&[], ModelRef::steps)
    }

    /// Checkpoints of all models.
    pub fn n_checkpoints(&self) -> u64 {
        self.entries.iter().fold(0, |n: u64, entry| n.saturating_add(entry.n_checkpoints()))
    }

    /// Label of a model: recipe, grid values, seed.
    pub fn label(&self, index: u32) -> String {
        self.get(index).map_or_else(|| format!("m{index}"), label::model)
    }
}

impl Entry {
    fn new(
        index: usize,
        model: &ModelSpec,
        known: &pb::Catalog,
        first_model: u64,
    ) -> Result<Self, Vec<String>> {
        let ModelSource::Train { recipe: name, params, seeds } = &model.source else {
            return Self::imported(index, model, first_model);
        };
        let recipe = catalog::recipe(known, name)
            .ok_or_else(|| vec![format!("models[{index}]: unknown recipe `{name}`")])?;
        // The order of grid axes is that of the keys, and the sweep's id knows only the canonical
        // order: the same sweep, written in another order, must number its models alike.
        let params = match canonical(&Value::Object(params.clone())) {
            Value::Object(sorted) => sorted,
            _ => Map::new(),
        };
        let axes = expand::axes(recipe, &params);
        let mut base = params.clone();
        for (name, _) in &axes {
            base.insert(name.clone(), Value::Null);
        }
        let schedules = schedules(recipe, &params, &axes, model.checkpoints.as_ref())
            .map_err(|problem| vec![format!("models[{index}].checkpoints: {problem}")])?;
        Ok(Self {
            first_model: u32::try_from(first_model).unwrap_or(u32::MAX),
            index,
            stem: expand::import_label(model),
            recipe: recipe.clone(),
            import: None,
            params,
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
            let count = steps.len();
            return Err(vec![format!(
                "models[{index}]: {count} checkpoints are more than the limit of {MAX_CHECKPOINTS}"
            )]);
        }
        let import = ImportPlan {
            at: listing.at.clone(),
            checkpoints: listing.wire(&steps),
            options: model.import.options(),
        };
        Ok(Self {
            first_model: u32::try_from(first_model).unwrap_or(u32::MAX),
            index,
            stem: expand::import_label(model),
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
    pub fn import(&self) -> Option<&ImportPlan> {
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

    /// Number of grid points.
    pub fn points(&self) -> u64 {
        self.points
    }

    /// Indices of its models.
    pub fn models(&self) -> Range<u32> {
        let count = self.points.saturating_mul(self.seeds.len() as u64);
        self.first_model..self.first_model.saturating_add(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Parameters as written, axes included.
    pub fn params(&self) -> &Map<String, Value> {
        &self.params
    }

    /// Names of the parameters that differ between its grid points.
    pub fn axes(&self) -> impl Iterator<Item = &str> {
        self.axes.iter().map(|(name, _)| name.as_str())
    }

    /// Whether every one of its models publishes checkpoints at the same steps; if so, which.
    pub fn schedule_of_all(&self) -> Option<&[u64]> {
        let first = self.schedules.first()?;
        self.schedules.iter().all(|other| other == first).then_some(&**first)
    }

    /// Label of the entry as a whole: a model's label without grid values and seed.
    pub fn label(&self) -> String {
        label::entry(self)
    }

    /// Grid axes, and fixed parameters that tell this entry from others in labels.
    pub(super) fn label_axes(&self) -> &[(String, Vec<Value>)] {
        &self.label_axes
    }

    /// Replaces what labels show.
    pub(super) fn set_label_axes(&mut self, axes: Vec<(String, Vec<Value>)>) {
        self.label_axes = axes;
    }

    /// What labels begin with.
    pub(super) fn stem(&self) -> &str {
        &self.stem
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

    /// A sum over its models of something that follows from the length of a model's schedule.
    pub(super) fn sum_over_points(&self, of: impl Fn(u64) -> u64) -> u64 {
        let per_value = self.points / self.schedules.len() as u64;
        let sum =
            self.schedules.iter().fold(0u64, |n, steps| n.saturating_add(of(steps.len() as u64)));
        sum.saturating_mul(per_value)
    }

    /// Checkpoints of all its models.
    pub fn n_checkpoints(&self) -> u64 {
        self.sum_over_points(|steps| steps).saturating_mul(self.seeds.len() as u64)
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
