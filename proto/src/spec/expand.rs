//! Grids and checkpoint selections as lists: what a sweep's axes really hold.
//!
//! A grid is never materialised beyond its own axes: [`point`] computes one combination from its
//! index, so that a sweep of millions of models costs nothing until they run.

use serde_json::{Map, Value};

use super::{CheckpointSelection, ModelSource, ModelSpec, label::plain};
use crate::pb;

/// Checkpoints of a training whose sweep file does not select any.
const DEFAULT_CHECKPOINTS: u64 = 40;

/// The values of a grid axis, if `value` is one: a list, given for a parameter that is none itself
/// (or a list of lists for one that is, and so on).
pub fn axis_of<'v>(param: &pb::Param, value: &'v Value) -> Option<&'v [Value]> {
    let list = value.as_array()?;
    let own_depth = match param.kind.as_str() {
        kind if kind.ends_with("-lists") => 2,
        kind if kind.ends_with("-list") => 1,
        _ => 0,
    };
    (depth(value) > own_depth).then_some(list.as_slice())
}

/// How many lists deep the first number or text lies.
fn depth(value: &Value) -> usize {
    value.as_array().map_or(0, |list| 1 + list.first().map_or(0, depth))
}

/// A parameter's default value.
pub fn default_of(param: &pb::Param) -> Value {
    serde_json::from_str(&param.default).unwrap_or(Value::Null)
}

/// The axes of a parameter mapping, in the order in which they were written.
pub fn axes(recipe: &pb::Recipe, params: &Map<String, Value>) -> Vec<(String, Vec<Value>)> {
    let axis = |(key, value): (&String, &Value)| {
        let param = recipe.params.iter().find(|param| param.name == *key)?;
        Some((key.clone(), axis_of(param, value)?.to_vec()))
    };
    params.iter().filter_map(axis).collect()
}

/// How many combinations the axes have.
pub fn grid_size(axes: &[(String, Vec<Value>)]) -> u64 {
    axes.iter().fold(1u64, |size, (_, values)| size.saturating_mul(values.len() as u64))
}

/// Combination number `index` (the last axis runs fastest): the given parameters with every axis
/// replaced by one of its values.
pub fn point(
    params: &Map<String, Value>,
    axes: &[(String, Vec<Value>)],
    mut index: u64,
) -> Map<String, Value> {
    let mut point = params.clone();
    for (name, values) in axes.iter().rev() {
        let length = values.len() as u64;
        point.insert(name.clone(), values[(index % length) as usize].clone());
        index /= length;
    }
    point
}

/// Every combination of a recipe's grid. For checks and small grids.
pub fn grid<'a>(
    recipe: &'a pb::Recipe,
    params: &'a Map<String, Value>,
) -> impl Iterator<Item = Map<String, Value>> + 'a {
    let axes = axes(recipe, params);
    (0..grid_size(&axes)).map(move |index| point(params, &axes, index))
}

/// Parameters with every default filled in, in the recipe's or experiment's order.
pub fn with_defaults(known: &[pb::Param], given: &Map<String, Value>) -> Map<String, Value> {
    let value = |param: &pb::Param| given.get(&param.name).cloned();
    known
        .iter()
        .map(|param| (param.name.clone(), value(param).unwrap_or_else(|| default_of(param))))
        .collect()
}

/// Steps of a training: its parameter `steps`, which every recipe has.
pub fn total_steps(recipe: &pb::Recipe, point: &Map<String, Value>) -> u64 {
    let given = point.get("steps").and_then(Value::as_u64);
    let default = || {
        let param = recipe.params.iter().find(|param| param.name == "steps")?;
        default_of(param).as_u64()
    };
    given.or_else(default).unwrap_or(0)
}

/// The steps at which a training of `total` steps publishes a checkpoint, rising. Step 0 is the
/// initialisation and `total` the end of training.
pub fn training_steps(selection: Option<&CheckpointSelection>, total: u64) -> Vec<u64> {
    let every = |n: u64| {
        let mut steps: Vec<u64> = (0..=total).step_by(n.max(1) as usize).collect();
        if steps.last() != Some(&total) {
            steps.push(total);
        }
        steps
    };
    match selection {
        None | Some(CheckpointSelection::All) => every(total.div_ceil(DEFAULT_CHECKPOINTS).max(1)),
        Some(CheckpointSelection::Every(n)) => every(*n),
        Some(CheckpointSelection::Final) => vec![total],
        Some(CheckpointSelection::Steps(steps)) => steps.clone(),
        Some(CheckpointSelection::Log2(a, b)) => {
            let powers = (*a..=*b).map(|exponent| 1u64 << exponent).filter(|step| *step < total);
            std::iter::once(0).chain(powers).chain([total]).collect::<Vec<u64>>()
        }
        Some(CheckpointSelection::Last(n)) => {
            let all = every(total.div_ceil(DEFAULT_CHECKPOINTS).max(1));
            all[all.len().saturating_sub(*n as usize)..].to_vec()
        }
    }
}

/// The label of a model that this system did not train: its `name`, or else the last part of
/// where it comes from.
pub fn import_label(model: &ModelSpec) -> String {
    let text = match (&model.import.name, &model.source) {
        (Some(name), _) | (None, ModelSource::Named(name)) => name.as_str(),
        (None, ModelSource::Hub(repo)) => repo.rsplit('/').next().unwrap_or(repo),
        (None, ModelSource::Path(url)) => {
            let url = url.trim_end_matches('/');
            url.rsplit('/').next().unwrap_or(url)
        }
        (None, ModelSource::Train { recipe, .. }) => recipe.as_str(),
    };
    plain(&Value::String(text.to_owned()))
}
