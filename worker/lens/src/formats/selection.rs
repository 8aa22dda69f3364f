//! Decides which of a repository's files holds the weights.
//!
//! safetensors before pickles, the names that Hugging Face uses before others, whole files before an
//! index. Where two files have equal rank nobody can know which is meant, and it is an error.

use crate::error::{Error, Result};

/// Pickles that training leaves beside a checkpoint and that are no weights.
const TRAINER_FILES: [&str; 5] = ["training_args", "optimizer", "scheduler", "rng_state", "scaler"];

/// Returns the name of the file to open, a file of tensors or an index of shards.
///
/// `None` when no name looks like one; [`shards_of`](super::shards_of) tells which further files an
/// index needs.
///
/// # Errors
/// [`Error::Unsupported`] when several files could be meant.
pub fn weight_file<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Option<&'a str>> {
    let ranked = names.into_iter().filter_map(|name| Some((rank(name)?, name)));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_unstable();
    ranked.dedup();
    match ranked.as_slice() {
        [(rank, first), (next_rank, second), ..] if rank == next_rank => {
            let text = format!("`{first}` and `{second}` could both be the weights, name one file");
            Err(Error::Unsupported(text))
        }
        ranked => Ok(ranked.first().map(|(_, name)| *name)),
    }
}

/// Place in the order of preference; `None` for what is no file of weights.
fn rank(name: &str) -> Option<u32> {
    let name = file_name(name);
    if name == "model.safetensors" {
        return Some(0);
    }
    if name.ends_with(".safetensors.index.json") {
        return Some(1);
    }
    if name == "pytorch_model.bin" {
        return Some(3);
    }
    if name.ends_with(".bin.index.json") {
        return Some(4);
    }
    let (stem, extension) = name.rsplit_once('.')?;
    let of_trainer = TRAINER_FILES.iter().any(|prefix| stem.starts_with(prefix));
    match extension {
        _ if is_shard(stem) => None,
        "safetensors" => Some(2),
        "bin" | "pt" | "pth" if !of_trainer => Some(5),
        _ => None,
    }
}

/// The part of a name behind its last folder.
pub(super) fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// The folder of a name with its slash, or nothing.
pub(super) fn folder(name: &str) -> &str {
    &name[..name.len() - file_name(name).len()]
}

/// Whether a name ends in `-00001-of-00003`: such a file is opened by way of its index.
fn is_shard(stem: &str) -> bool {
    let Some((rest, total)) = stem.rsplit_once("-of-") else { return false };
    let number = rest.rsplit_once('-').map_or("", |(_, number)| number);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(total) && digits(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_before_pickles_and_known_names_before_others() {
        let choose = |names: &[&'static str]| weight_file(names.iter().copied()).unwrap();
        let all = [
            "step1/model.safetensors",
            "model.safetensors.index.json",
            "my-model.safetensors",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "checkpoints/x_tokens_000001000.pth",
        ];
        for start in 0..all.len() {
            let mut names = all[start..].to_vec();
            names.reverse();
            names.extend(["training_args.bin", "optimizer.pt", "config.json", "rng_state_0.pth"]);
            names.extend(["model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin"]);
            assert_eq!(choose(&names), Some(all[start]));
        }
        assert_eq!(choose(&["config.json", "optimizer_state_dict.pth", "README"]), None);
        assert_eq!(choose(&["model.safetensors", "model.safetensors"]), Some("model.safetensors"));
        let error = weight_file(["a.pth", "b.pth", "config.json"]).unwrap_err().to_string();
        assert!(error.contains("`a.pth` and `b.pth`"), "{error}");
        assert_eq!((file_name("a/b/c"), folder("a/b/c"), folder("c")), ("c", "a/b/", ""));
    }
}
