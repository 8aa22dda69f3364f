//! Where checkpoints come from: published models by name, the Hugging Face hub, folders and buckets.
//!
//! # Layout
//! - [`access`]: the way in. [`Access`] lists the checkpoints of a [`Source`], names the files of one
//!   checkpoint, and brings them here.
//! - [`published`]: the catalogue of published models: names, schedules, known defects.
//! - [`location`]: one checkpoint as text, `hub:…`, `file://…`, `s3://…`.
//! - [`layout`]: which checkpoints a listing of files holds. [`select`]: which files make up one.
//! - [`hub`], [`store`], [`folder`]: the three kinds of places. [`transfer`]: one verified download.
//! - [`cache`]: files by content on local disk, shared by the workers of one machine.
//! - [`patience`]: how long what fails is tried again. [`error`]: what callers act on.
//!
//! # Invariants
//! - Nothing is used that was not verified: every file that is fetched has the hash that the source
//!   states, or, where it states none, the size and version that were listed.
//! - A token is sent to the hub's own origin and to no other.
//! - No libtorch here: the command line lists and checks sources where no tensor library is.

pub mod access;
pub mod cache;
pub mod error;
pub mod folder;
pub mod hub;
pub mod layout;
pub mod location;
pub mod patience;
pub mod published;
pub mod select;
pub mod store;
pub mod transfer;

pub use access::{Access, Fetched, RemoteFile, Source, resolve, warnings};
pub use cache::{Cache, CacheError};
pub use error::{Error, Result};
pub use layout::{Found, Listing, Unit};
pub use location::Location;

/// `AWS_*`, `HF_*` and `HUGGING_FACE_HUB_TOKEN` variables, by name.
pub type Settings = std::collections::BTreeMap<String, String>;

/// The settings among the variables of an environment. Where no token is set, the one that
/// `hf auth login` has stored is taken, but only for the hub itself and not for a mirror.
pub fn settings(variables: impl IntoIterator<Item = (String, String)>) -> Settings {
    let variables: Settings = variables.into_iter().collect();
    let get = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let stored = || {
        let home = get("HOME").map(|home| format!("{home}/.cache"));
        let cache = get("XDG_CACHE_HOME").cloned().or(home);
        let hub = cache.map(|cache| format!("{cache}/huggingface"));
        let token = get("HF_HOME").cloned().or(hub).map(|hub| format!("{hub}/token"));
        std::fs::read_to_string(get("HF_TOKEN_PATH").cloned().or(token)?).ok()
    };
    let own =
        ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_DISABLE_IMPLICIT_TOKEN"];
    let stored = if own.iter().any(|name| get(name).is_some()) { None } else { stored() };
    let wanted = |name: &str| {
        name.starts_with("AWS_") || name.starts_with("HF_") || name == "HUGGING_FACE_HUB_TOKEN"
    };
    let mut settings: Settings = variables
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    if let Some(token) = stored {
        settings.insert("HF_TOKEN".to_owned(), token.trim().to_owned());
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_the_variables_of_sources_and_a_stored_token() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
        std::fs::write(home.path().join(".cache/huggingface/token"), "hf_stored\n").unwrap();
        let of = |more: &[(&str, &str)]| {
            let home = home.path().display().to_string();
            let base = [("HOME", home.as_str()), ("AWS_REGION", "r"), ("PATH", "p")];
            let all = base.iter().chain(more).map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            settings(all)
        };
        let token = |settings: Settings| settings.get("HF_TOKEN").cloned();
        assert_eq!(of(&[]).keys().collect::<Vec<_>>(), ["AWS_REGION", "HF_TOKEN"]);
        assert_eq!(token(of(&[])).as_deref(), Some("hf_stored"));
        assert_eq!(token(of(&[("HF_TOKEN", "mine")])).as_deref(), Some("mine"));
        assert_eq!(token(of(&[("HF_ENDPOINT", "http://mirror")])), None);
        assert_eq!(token(of(&[("HF_HOME", "/nowhere")])), None);
    }
}
