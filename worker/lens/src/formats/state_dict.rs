//! Finds the model's parameters in the value of a pickle.
//!
//! `torch.save` takes anything. What people save is a state dict, or a dict with the state dict beside
//! the optimizer's, the epoch and so on. A dict under one of the usual names ([`SUBTREES`]) is the state
//! dict; otherwise the outermost dict is. Entries that are no tensors (counters, hyper-parameters) are
//! passed over.

use std::collections::BTreeMap;

use super::{
    layout::{Contents, Extent, Layout},
    pickle_value::{Id, Node, Pickle, StorageRef},
};
use crate::error::Problem;

/// Keys under which training scripts keep the model's parameters, the first found wins.
const SUBTREES: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];
/// Subtrees within subtrees that are followed.
const DEPTH_MAX: usize = 4;
/// Most tensors of one file; the largest models have a few thousand.
const TENSORS_MAX: usize = 1 << 16;

/// Lays the tensors of a state dict out over a file.
///
/// `find` returns the extent of a storage; it is asked once for each storage that a wanted tensor uses.
///
/// # Errors
/// The problem and, where it is one tensor's, its name.
pub(super) fn contents(
    pickle: &Pickle<'_>,
    root: Id,
    mut find: impl FnMut(&StorageRef) -> Result<Extent, Problem>,
) -> Result<Contents, (Option<String>, Problem)> {
    let mut contents = Contents::default();
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, tensor) in tensors(pickle, root).map_err(|problem| (None, problem))? {
        let fail = |problem| (Some(name.to_owned()), problem);
        let tensor = &pickle.tensors[tensor];
        let storage = &pickle.storages[tensor.storage];
        let extent = if let Some(&extent) = known.get(storage.key.as_str()) {
            extent
        } else {
            contents.extents.push(find(storage).map_err(fail)?);
            known.insert(&storage.key, contents.extents.len() - 1);
            contents.extents.len() - 1
        };
        let layout = layout(storage, tensor.start, (tensor.shape.clone(), tensor.strides.clone()))
            .and_then(|view| view(extent, contents.extents[extent].storage_bytes()))
            .map_err(fail)?;
        contents.tensors.insert(name.to_owned(), layout);
    }
    Ok(contents)
}

/// Checks a tensor against the storage as the pickle describes it; what comes back does so against the
/// storage that the file has.
fn layout(
    storage: &StorageRef,
    start: i64,
    (shape, strides): (Vec<i64>, Vec<i64>),
) -> Result<impl FnOnce(usize, u64) -> Result<Layout, Problem>, Problem> {
    let kind = storage.kind;
    let width = kind.elt_size_in_bytes() as u64;
    let too_large = || Problem::View(format!("storage of {} elements", storage.numel));
    let claimed = storage.numel.unsigned_abs().checked_mul(width).ok_or_else(too_large)?;
    Layout::strided(kind, shape.clone(), strides.clone(), start, (0, claimed))?;
    let base = storage.base;
    Ok(move |extent, n_bytes| {
        let whole = base.unsigned_abs().saturating_mul(width).saturating_add(claimed);
        if whole > n_bytes {
            return Err(Problem::Truncated { expected: whole, actual: n_bytes });
        }
        Layout::strided(kind, shape, strides, start.saturating_add(base), (extent, n_bytes))
    })
}

/// Returns names and indices of the tensors of the state dict.
fn tensors<'a>(pickle: &'a Pickle<'_>, root: Id) -> Result<BTreeMap<&'a str, usize>, Problem> {
    let mut dict = root;
    for _ in 0..DEPTH_MAX {
        let mut subtrees = SUBTREES.iter().filter_map(|key| pickle.entry(dict, key));
        match subtrees.find(|&entry| pickle.dict(entry).is_some()) {
            Some(subtree) => dict = subtree,
            None => break,
        }
    }
    let Some(entries) = pickle.dict(dict) else {
        let what = pickle.get(dict).describe();
        return Err(Problem::NoTensors(format!("{what} was saved, expected a dict of tensors")));
    };
    let mut tensors = BTreeMap::new();
    for &(name, value) in entries {
        let Some(name) = pickle.text(name) else { continue };
        match *pickle.get(value) {
            Node::Tensor(tensor) => tensors.insert(name, tensor),
            // Of equal keys the last counts, also when it is no tensor.
            _ => tensors.remove(name),
        };
    }
    if tensors.len() > TENSORS_MAX {
        let (actual, limit) = (tensors.len() as u64, TENSORS_MAX as u64);
        return Err(Problem::TooLarge { actual, limit });
    }
    if tensors.is_empty() {
        let keys: Vec<&str> = entries.iter().filter_map(|entry| pickle.text(entry.0)).collect();
        let shown = keys.iter().take(8).map(|key| key.chars().take(40).collect::<String>());
        let shown = shown.collect::<Vec<_>>().join(", ");
        return Err(Problem::NoTensors(format!("the keys of the saved dict are [{shown}]")));
    }
    Ok(tensors)
}
