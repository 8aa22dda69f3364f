//! Bringing artifacts home: [`ArtifactStore`] opens the root that the coordinator names (`file://` or
//! `s3://`), [`download`] fetches one file and verifies it, [`Pattern`] chooses files.
//!
//! Invariants: a file appears under its name only when its size and hash are those that the
//! coordinator recorded; a different file under that name is never overwritten silently; names from
//! the coordinator cannot lead out of the target folder.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath};
use sha2::{Digest, Sha256};
use sweep_proto::{id::hex, pb};
use sweep_source::store::open_bucket;

use crate::{
    error::{CommandError, ErrorKind, Result, file_error},
    export::AtomicFile,
};

/// A pattern with `*` (any characters) and `?` (one character).
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Vec<char>,
}

impl Pattern {
    /// A pattern fits a file's name, or its whole place `model/checkpoint/experiment/name`.
    pub fn new(text: &str) -> Self {
        Self { text: text.chars().collect() }
    }

    /// Whether an artifact is meant.
    pub fn matches(&self, artifact: &pb::ArtifactInfo) -> bool {
        let fits = |text: &str| matches(&self.text, &text.chars().collect::<Vec<_>>());
        fits(name_of(artifact)) || fits(&place(artifact))
    }
}

/// Glob matching in linear space, without recursion: on a mismatch the last `*` takes one more.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn name_of(artifact: &pb::ArtifactInfo) -> &str {
    artifact.file.as_ref().map_or("", |file| file.name.as_str())
}

/// `model/checkpoint/experiment/name`: what patterns see and where files go.
pub fn place(artifact: &pb::ArtifactInfo) -> String {
    let pb::ArtifactInfo { model, checkpoint, experiment, .. } = artifact;
    format!("{model}/{checkpoint}/{experiment}/{}", name_of(artifact))
}

/// The path of an artifact below `folder`.
///
/// # Errors
/// When a name would lead elsewhere.
pub fn target(folder: &Path, artifact: &pb::ArtifactInfo) -> Result<PathBuf> {
    let place = place(artifact);
    let relative = Path::new(&place);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let complete = place.split('/').all(|part| !part.is_empty()) && place.split('/').count() >= 4;
    if plain && complete && !place.contains(['\\', '\0']) {
        Ok(folder.join(relative))
    } else {
        Err(CommandError::unexpected(format!("`{place}` is not a usable path for an artifact")))
    }
}

/// An opened artifact root.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    root: String,
}

impl ArtifactStore {
    /// Opens a root URL; `settings` are the `AWS_*` variables (keys, endpoint, region, path style).
    ///
    /// # Errors
    /// For an unknown scheme or unusable settings, and for a folder that is not on this machine.
    pub fn open(root: &str, settings: &BTreeMap<String, String>) -> Result<Self> {
        let fail = |error: object_store::Error| {
            CommandError::unexpected(format!("cannot open the artifact root {root}"))
                .caused_by(error)
        };
        if let Some(folder) = root.strip_prefix("file://") {
            if !Path::new(folder).is_dir() {
                return Err(CommandError::not_found(format!("there is no folder {folder}"))
                    .hint("a file:// artifact root is on the coordinator's machine: run there"));
            }
            let store = LocalFileSystem::new_with_prefix(folder).map_err(fail)?;
            return Ok(Self::new(Arc::new(store), "", root));
        }
        let Some(rest) = root.strip_prefix("s3://") else {
            return Err(CommandError::usage(format!(
                "cannot read artifacts from `{root}` (only file:// and s3:// can be read from here)"
            )));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let retry = object_store::RetryConfig::default();
        let store = open_bucket(bucket, settings, retry).map_err(fail)?;
        Ok(Self::new(Arc::new(store), prefix, root))
    }

    /// A root over any object store.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, root: &str) -> Self {
        Self { store, prefix: ObjectPath::from(prefix), root: root.to_owned() }
    }

    fn path(&self, key: &str) -> Result<ObjectPath> {
        let wrong = |error| {
            CommandError::unexpected(format!("`{key}` is not a usable artifact key"))
                .caused_by(error)
        };
        let key = ObjectPath::parse(key).map_err(wrong)?;
        Ok(self.prefix.parts().chain(key.parts()).collect())
    }
}

/// The `AWS_*` variables of the environment.
pub fn aws_settings() -> BTreeMap<String, String> {
    std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect()
}

/// What became of one artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It was written.
    Written,
    /// The same file was there already.
    Unchanged,
}

/// Fetches one file to `path` and verifies it. `overwrite` allows to replace a different file.
///
/// # Errors
/// When it is missing, does not have the recorded hash, or would replace another file.
pub async fn download(
    store: &ArtifactStore,
    blob: &pb::Blob,
    path: &Path,
    overwrite: bool,
) -> Result<Fetched> {
    if path.exists() {
        if hash_of(path)? == blob.sha256 {
            return Ok(Fetched::Unchanged);
        }
        if !overwrite {
            return Err(CommandError::usage(format!(
                "{} exists and is a different file",
                path.display()
            ))
            .hint("choose another --to, or replace it with --overwrite"));
        }
    }
    let failed = |error: object_store::Error| {
        let kind = match error {
            object_store::Error::NotFound { .. } => ErrorKind::NotFound,
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => ErrorKind::NotAllowed,
            _ => ErrorKind::Unexpected,
        };
        let message = format!("cannot read `{}` from {}", blob.key, store.root);
        CommandError::new(kind, message).caused_by(error)
    };
    let object = store.store.get(&store.path(&blob.key)?).await.map_err(failed)?;
    let mut stream = object.into_stream();
    let file = AtomicFile::create(path)?;
    let mut writer = file.writer()?;
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(failed)?;
        hash.update(&chunk);
        size += chunk.len() as u64;
        writer.write_all(&chunk).map_err(|error| file_error("write", path, error))?;
    }
    let found = hex(&hash.finalize());
    if size != blob.size || found != blob.sha256 {
        return Err(CommandError::unexpected(format!(
            "`{}` is corrupt: expected {} bytes with sha256 {}, found {size} bytes with {found}",
            blob.key, blob.size, blob.sha256
        )));
    }
    file.commit()?;
    Ok(Fetched::Written)
}

fn hash_of(path: &Path) -> Result<String> {
    let failed = |error| file_error("read", path, error);
    let mut file = fs::File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn artifact(model: &str, name: &str) -> pb::ArtifactInfo {
        pb::ArtifactInfo {
            model: model.into(),
            checkpoint: "step100".into(),
            experiment: "pca".into(),
            file: Some(pb::Blob { name: name.into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(pattern: &str, expected: bool) {
        let found = Pattern::new(pattern).matches(&artifact("m-seed0", "basis.safetensors"));
        assert_eq!(found, expected, "{pattern}");
    }

    #[test]
    fn patterns_see_names_or_whole_paths() {
        check("*", true);
        check("basis.*", true);
        check("*.json", false);
        check("b?sis.safe*s", true);
        check("m-seed0/*", true);
        check("m-seed0/*/pca/*", true);
        check("*/step200/*", false);
        check("*step100*", true);
        check("*step200*", false);
        check("*a*a*a*a*a*a*a*a*a*b", false);
    }

    #[test]
    fn names_cannot_lead_out_of_the_folder() {
        let folder = Path::new("out");
        let good = target(folder, &artifact("m", "a.json")).unwrap();
        assert_eq!(good, Path::new("out/m/step100/pca/a.json"));
        for (model, name) in [
            ("..", "a"),
            ("m", "../../../a"),
            ("/etc", "a"),
            ("", "a"),
            ("m", ""),
            ("m", "a\\..\\b"),
        ] {
            assert!(target(folder, &artifact(model, name)).is_err(), "{model} {name}");
        }
    }

    async fn memory(key: &str, bytes: &'static [u8]) -> ArtifactStore {
        let store = InMemory::new();
        store.put(&ObjectPath::from(format!("root/{key}")), bytes.into()).await.unwrap();
        ArtifactStore::new(Arc::new(store), "root", "memory")
    }

    fn blob(key: &str, bytes: &[u8]) -> pb::Blob {
        pb::Blob {
            name: "a".into(),
            key: key.into(),
            size: bytes.len() as u64,
            sha256: hex(&Sha256::digest(bytes)),
        }
    }

    #[tokio::test]
    async fn downloads_are_verified_and_never_replace_silently() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/a");
        let store = memory("v1/s/a", b"hello").await;
        let good = blob("v1/s/a", b"hello");
        assert_eq!(download(&store, &good, &path, false).await.unwrap(), Fetched::Written);
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(download(&store, &good, &path, false).await.unwrap(), Fetched::Unchanged);
        fs::write(&path, "mine").unwrap();
        let error = download(&store, &good, &path, false).await.unwrap_err();
        assert_eq!((error.kind(), fs::read(&path).unwrap()), (ErrorKind::Usage, b"mine".to_vec()));
        assert_eq!(download(&store, &good, &path, true).await.unwrap(), Fetched::Written);

        let wrong = blob("v1/s/a", b"other");
        let other = folder.path().join("b");
        let error = download(&store, &wrong, &other, false).await.unwrap_err();
        assert!(error.message().contains("corrupt"), "{error}");
        assert!(!other.exists());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "a partial file stayed: {left:?}");
        let missing = blob("v1/s/b", b"");
        let error = download(&store, &missing, &other, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
