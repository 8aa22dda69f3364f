//! Reads `*.index.json`, which says in which shard each tensor of a large checkpoint lies.

use serde::Deserialize;

use super::entries::Entries;
use crate::error::{Error, Problem, Result};

/// Longest index that is read; one of 10 000 tensors has about 1 MB.
pub(super) const INDEX_BYTES_MAX: u64 = 16 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: Entries<String>,
}

/// Returns the names of the shards that an index refers to, each once, in order.
///
/// `file` is what errors call the index. The names are plain file names: the shards lie beside it.
///
/// # Errors
/// [`Error::Checkpoint`] when the bytes are no index or name a path.
pub fn shards_of(file: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let mut shards: Vec<String> = read(file, bytes)?.into_iter().map(|(_, shard)| shard).collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}

/// Returns each tensor with its shard.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let fail = |tensor: Option<&str>, problem| Error::checkpoint(file, tensor, problem);
    let actual = bytes.len() as u64;
    if actual > INDEX_BYTES_MAX {
        return Err(fail(None, Problem::TooLarge { actual, limit: INDEX_BYTES_MAX }));
    }
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|error| fail(None, Problem::Index(error.to_string())))?;
    let map = index.weight_map;
    map.check_names().map_err(|(name, problem)| fail(Some(&name), problem))?;
    for (tensor, shard) in &map.0 {
        if !is_file_name(shard) {
            let text = format!("`{}` is not a plain file name", shard.escape_debug());
            return Err(fail(Some(tensor), Problem::Index(text)));
        }
    }
    if map.0.is_empty() {
        return Err(fail(None, Problem::NoTensors("the index lists none".to_owned())));
    }
    Ok(map.0)
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(text: &str) -> Result<Vec<String>, String> {
        shards_of("x.index.json", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_index_lists_its_shards_once() {
        let text =
            r#"{"metadata":{"total_size":3},"weight_map":{"b":"2.bin","a":"1.bin","c":"2.bin"}}"#;
        assert_eq!(shards(text), Ok(vec!["1.bin".to_owned(), "2.bin".to_owned()]));
    }

    #[test]
    fn damage_and_paths_are_refused() {
        for name in ["", ".", "..", "../a", "a/b", "/etc/passwd", "a\\\\b", "c:x", "a\\u0000"] {
            let error = shards(&format!(r#"{{"weight_map":{{"w":"{name}"}}}}"#)).unwrap_err();
            assert!(error.starts_with("file `x.index.json`, tensor `w`"), "{name}: {error}");
        }
        let error = shards(r#"{"weight_map":{"a":"1","a":"2"}}"#).unwrap_err();
        assert_eq!(error, "file `x.index.json`, tensor `a`: appears twice");
        for text in ["", "[]", "{}", r#"{"weight_map":3}"#, r#"{"weight_map":{}}"#] {
            assert!(shards(text).is_err(), "{text}");
        }
        let long = format!(r#"{{"weight_map":{{"a":"{}"}}}}"#, "x".repeat(17 << 20));
        assert!(shards(&long).unwrap_err().contains("at most"));
    }
}
