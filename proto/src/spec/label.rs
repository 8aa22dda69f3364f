//! Names that people read: of models, entries and experiments. Labels are unique within a sweep and
//! safe as folder names, so that results and exported artifacts of two tasks never collide.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    canonical, expand,
    models::{Entry, ModelRef},
};

/// Above this many entries of one recipe the pairwise search for collisions is skipped, and every
/// label carries its entry.
const MAX_PAIRWISE: usize = 64;

/// What is said of all models of a sweep together.
pub const ALL: &str = "all";

/// Label of a model: recipe, grid values, what tells its entry from others, seed.
pub(super) fn model(model: ModelRef<'_>) -> String {
    let entry = model.entry;
    let point = model.written();
    let value = |(name, values): &(String, Vec<Value>)| {
        format!("-{name}={}", plain(point.get(name).unwrap_or(&values[0])))
    };
    let axes: String = entry.label_axes().iter().map(value).collect();
    let seed = model.seed.map(|seed| format!("-seed{seed}")).unwrap_or_default();
    format!("{}{axes}{seed}", entry.stem())
}

/// Label of an entry: its models' label without grid values and seed.
pub(super) fn entry(entry: &Entry) -> String {
    let grid: Vec<&str> = entry.axes().collect();
    let fixed = entry.label_axes().iter().filter(|(name, _)| !grid.contains(&name.as_str()));
    fixed.fold(entry.stem().to_owned(), |label, (name, values)| {
        format!("{label}-{name}={}", plain(&values[0]))
    })
}

/// Label and folder name of an experiment; with its parameters when the sweep lists it repeatedly.
pub fn experiment(name: &str, params: &Map<String, Value>, repeated: bool) -> (String, String) {
    if !repeated || params.is_empty() {
        return (name.to_owned(), name.to_owned());
    }
    let pairs: Vec<String> = params.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect();
    (format!("{name}[{}]", pairs.join(",")), format!("{name}-{}", pairs.join("-")))
}

/// Makes the labels of entries that would begin alike distinct (the same recipe, or imported models
/// of the same name): first by the parameters in which they differ, then, where that is not enough,
/// by the entry's index.
pub(super) fn distinguish(entries: &mut [Entry]) {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        groups.entry(entry.stem().to_owned()).or_default().push(index);
    }
    for group in groups.values().filter(|group| group.len() > 1) {
        qualify(entries, group);
    }
}

fn qualify(entries: &mut [Entry], group: &[usize]) {
    let value = |entry: &Entry, name: &str| {
        let full = expand::with_defaults(&entry.recipe().params, entry.params());
        full.get(name).map(canonical).unwrap_or_default()
    };
    let names: Vec<String> =
        entries[group[0]].recipe().params.iter().map(|param| param.name.clone()).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| {
            let first = value(&entries[group[0]], name);
            group[1..].iter().any(|other| value(&entries[*other], name) != first)
        })
        .collect();
    for &index in group {
        let mut axes = entries[index].label_axes().to_vec();
        for name in differing.iter().rev() {
            if !axes.iter().any(|(axis, _)| axis == name) {
                axes.insert(0, (name.clone(), vec![value(&entries[index], name)]));
            }
        }
        entries[index].set_label_axes(axes);
    }
    let collide = |index: usize| {
        group.len() > MAX_PAIRWISE
            || group
                .iter()
                .any(|&other| other != index && may_share_a_label(&entries[index], &entries[other]))
    };
    let colliding: Vec<usize> = group.iter().copied().filter(|&index| collide(index)).collect();
    for index in colliding {
        let mut axes = entries[index].label_axes().to_vec();
        axes.push(("entry".to_owned(), vec![Value::from(entries[index].index())]));
        entries[index].set_label_axes(axes);
    }
}

/// Whether some model of `a` has the label of some model of `b`.
fn may_share_a_label(a: &Entry, b: &Entry) -> bool {
    let same_names =
        a.label_axes().iter().map(|axis| &axis.0).eq(b.label_axes().iter().map(|axis| &axis.0));
    let overlap =
        |x: &[Value], y: &[Value]| x.iter().any(|x| y.iter().any(|y| plain(x) == plain(y)));
    same_names
        && a.label_axes().iter().zip(b.label_axes()).all(|(x, y)| overlap(&x.1, &y.1))
        && a.seeds().iter().any(|seed| b.seeds().contains(seed))
}

/// A value as part of a file name.
pub(super) fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let keep = |c: char| c.is_ascii_alphanumeric() || "._-+=".contains(c);
    text.chars().map(|c| if keep(c) { c } else { '_' }).collect()
}
