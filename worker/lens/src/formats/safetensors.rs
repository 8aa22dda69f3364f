//! Reads the header of a safetensors file that anybody may have written.
//!
//! The `safetensors` crate supplies the element types; its header type is not used because it keeps
//! the last of two tensors with one name silently and names no tensor in most of its errors. The rules
//! are its own: tensors lie one after the other without gaps, and the last ends with the file.

use serde::Deserialize;
use tch::Kind;

use super::{
    entries::Entries,
    layout::{Contents, Extent, Layout},
    stored_file::StoredFile,
};
use crate::{
    error::{Error, Problem, Result},
    tensor_file::{HEADER_BYTES_MAX, PREFIX_BYTES, kind_named},
};

#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Whether a file that begins like this is safetensors: a header's length, then its first brace.
pub(super) fn recognise(start: &[u8]) -> bool {
    start.get(PREFIX_BYTES as usize) == Some(&b'{') && start[4..8] == [0; 4]
}

/// Reads what the file holds.
///
/// # Errors
/// [`Error::Checkpoint`] with file and tensor; [`Error::Io`].
pub(super) fn read(file: &StoredFile) -> Result<Contents> {
    let fail = |problem| file.fail(None, problem);
    if file.n_bytes < PREFIX_BYTES {
        return Err(fail(Problem::Truncated { expected: PREFIX_BYTES, actual: file.n_bytes }));
    }
    let prefix = file.read(0, PREFIX_BYTES)?;
    let prefix = prefix.try_into().expect("as many bytes as were asked for");
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > HEADER_BYTES_MAX {
        let problem = format!("header of {header_bytes} bytes, at most {HEADER_BYTES_MAX}");
        return Err(fail(Problem::NotSafetensors(problem)));
    }
    let header = file.read(PREFIX_BYTES, header_bytes)?;
    let entries: Entries<Entry> = Entries::parse(&header)
        .map_err(|error| fail(Problem::NotSafetensors(error.to_string())))?;
    entries.check_names().map_err(|(name, problem)| file.fail(Some(&name), problem))?;
    let data = PREFIX_BYTES + header_bytes;
    lay_out(file, entries.0, data)
}

/// Checks that the tensors cover the bytes from `data` to the end of the file without gap or overlap.
fn lay_out(file: &StoredFile, mut entries: Vec<(String, Entry)>, data: u64) -> Result<Contents> {
    let available = file.n_bytes - data;
    entries.sort_by(|a, b| a.1.data_offsets.cmp(&b.1.data_offsets).then_with(|| a.0.cmp(&b.0)));
    let mut contents = Contents::default();
    let mut end = 0;
    for (name, Entry { dtype, shape, data_offsets: (begin, stop) }) in entries {
        let fail = |problem| -> Error { file.fail(Some(&name), problem) };
        if begin != end || stop < begin {
            let problem = format!("[{begin}, {stop}] after a tensor that ends at {end}");
            return Err(fail(Problem::Offsets(problem)));
        }
        if stop > available {
            let (expected, actual) = (data.saturating_add(stop), file.n_bytes);
            return Err(fail(Problem::Truncated { expected, actual }));
        }
        let kind: Kind = kind_named(&dtype).ok_or_else(|| fail(Problem::ElementType(dtype)))?;
        let shape: Result<Vec<i64>, _> = shape.iter().map(|&size| i64::try_from(size)).collect();
        let shape = shape.map_err(|_| fail(Problem::View("an axis is too long".to_owned())))?;
        let n_bytes = stop - begin;
        let layout = Layout::contiguous(kind, shape, (contents.extents.len(), n_bytes));
        let layout = layout.map_err(fail)?;
        if layout.n_bytes() != n_bytes {
            let problem = format!("[{begin}, {stop}] for {} bytes of elements", layout.n_bytes());
            return Err(fail(Problem::Offsets(problem)));
        }
        let offset = data + begin;
        contents.extents.push(Extent { offset, n_bytes, inflated: None, crc32: None });
        contents.tensors.insert(name, layout);
        end = stop;
    }
    if end < available {
        return Err(file.fail(None, Problem::TrailingBytes));
    }
    Ok(contents)
}
