//! Reads what `torch.save` writes today: a zip archive with a pickle and one entry per storage.
//!
//! ```text
//! <prefix>/data.pkl    the pickle; storages are references with a key
//! <prefix>/data/<key>  the bytes of a storage, aligned to 64 bytes
//! <prefix>/byteorder   `little`
//! ```

use super::{
    archive::Archive,
    layout::{Contents, Extent},
    pickle,
    pickle_value::StorageRef,
    state_dict,
    stored_file::StoredFile,
};
use crate::error::{Problem, Result};

/// Longest pickle that is read; that of a model with 10 000 tensors has about 1 MB.
pub(super) const PICKLE_BYTES_MAX: u64 = 64 << 20;
/// Weights hardly compress: a storage that inflates beyond this many times the file is no weight.
const INFLATED_RATIO_MAX: u64 = 16;
/// Compressed storages up to this size are never too large.
const INFLATED_BYTES: u64 = 256 << 20;

const PICKLE: &str = "data.pkl";

/// Reads what the file holds.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) with file and tensor.
pub(super) fn read(file: &StoredFile) -> Result<Contents> {
    let archive = Archive::read(file)?;
    let prefix = prefix(&archive).map_err(|problem| file.fail(None, problem))?;
    if let Some(extent) = archive.extent(file, &format!("{prefix}byteorder"))? {
        let order = file.contents(&extent, 16)?;
        if order != b"little" {
            let order = String::from_utf8_lossy(&order).into_owned();
            return Err(file.fail(None, Problem::ByteOrder(order)));
        }
    }
    let pickle = archive.extent(file, &format!("{prefix}{PICKLE}"))?;
    let pickle = pickle.expect("the prefix was taken from this entry");
    let bytes = file.contents(&pickle, PICKLE_BYTES_MAX)?;
    let (pickle, root, _) = pickle::load(&bytes).map_err(|problem| file.fail(None, problem))?;
    // The archive's errors carry the file already, those of the pickle get it here.
    let mut archive_error = None;
    let contents = state_dict::contents(&pickle, root, |storage| {
        find(file, &archive, &prefix, storage).unwrap_or_else(|error| {
            archive_error = Some(error);
            Err(Problem::Changed)
        })
    });
    match (contents, archive_error) {
        (_, Some(error)) => Err(error),
        (Ok(contents), None) => Ok(contents),
        (Err((tensor, problem)), None) => Err(file.fail(tensor.as_deref(), problem)),
    }
}

/// Returns the folder of the one pickle in the archive, with its slash.
fn prefix(archive: &Archive) -> Result<String, Problem> {
    let mut prefixes = archive.names().filter_map(|name| {
        let prefix = name.strip_suffix(PICKLE)?;
        (prefix.is_empty() || prefix.ends_with('/')).then_some(prefix)
    });
    match (prefixes.next(), prefixes.next()) {
        (Some(prefix), None) => Ok(prefix.to_owned()),
        (None, _) => Err(Problem::NotTorch(format!("a zip archive without `{PICKLE}`"))),
        (Some(_), Some(_)) => {
            Err(Problem::NotTorch(format!("a zip archive with several `{PICKLE}`")))
        }
    }
}

/// Finds the entry of a storage: an error of the archive, or a problem of the tensor that wants it.
fn find(
    file: &StoredFile,
    archive: &Archive,
    prefix: &str,
    storage: &StorageRef,
) -> Result<Result<Extent, Problem>> {
    let name = format!("{prefix}data/{}", storage.key);
    let Some(extent) = archive.extent(file, &name)? else {
        let text = format!("the archive has no entry `{}`", name.escape_debug());
        return Ok(Err(Problem::NotTorch(text)));
    };
    let limit = file.n_bytes.saturating_mul(INFLATED_RATIO_MAX).max(INFLATED_BYTES);
    let actual = extent.storage_bytes();
    Ok(if actual > limit { Err(Problem::TooLarge { actual, limit }) } else { Ok(extent) })
}
