//! The object store that artifacts and checkpoints live in. Main type: [`ArtifactStore`].
//!
//! `file://` folders and `s3://` buckets; for the latter, keys, region, endpoint and path style come
//! from the usual `AWS_*` variables. A store that refuses, stalls or breaks off is tried again with
//! backoff until the patience is over; an upload is complete or absent, never half.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use sweep_proto::pb;
use sweep_source::{cache::sha256, store};
use tokio::time::Instant;

/// First pause after a failure; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// One request that hangs this long is given up and tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Why the object store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL or its settings are no good.
    #[error("artifact store `{url}` cannot be opened: {problem}")]
    Open {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// Nothing is stored under that key.
    #[error("`{key}` is not in the artifact store")]
    Missing {
        /// The key.
        key: String,
    },
    /// The store failed until the patience was over.
    #[error("artifact store failed for `{key}`: {problem}")]
    Failed {
        /// The key.
        key: String,
        /// The last failure.
        problem: String,
    },
    /// The stored bytes are not the ones that were recorded.
    #[error("`{key}` is corrupt: {problem}")]
    Corrupt {
        /// The key.
        key: String,
        /// Which hash or tensor differs.
        problem: String,
    },
}

/// Artifacts under one root URL.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    patience: Duration,
}

impl ArtifactStore {
    /// Opens `url`; `settings` are `AWS_*` variables (names in any case).
    ///
    /// # Errors
    /// [`StoreError::Open`] for an unknown scheme or unusable settings.
    pub fn open(
        url: &str,
        settings: &BTreeMap<String, String>,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        let fail = |problem: String| StoreError::Open { url: url.to_owned(), problem };
        if let Some(folder) = url.strip_prefix("file://") {
            let folder = PathBuf::from(folder);
            std::fs::create_dir_all(&folder).map_err(|error| fail(error.to_string()))?;
            let store = object_store::local::LocalFileSystem::new_with_prefix(folder)
                .map_err(|error| fail(error.to_string()))?;
            return Ok(Self { store: Arc::new(store), prefix: Path::default(), patience });
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(fail("expected a file:// or s3:// URL".to_owned()));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // Long outages are ridden out here, where the patience is known.
        let store = store::open_bucket(bucket, settings, store::short_retries())
            .map_err(|error| fail(error.to_string()))?;
        Ok(Self { store: Arc::new(store), prefix: Path::from(prefix), patience })
    }

    /// Stores `bytes` under `key` and returns what a manifest says about them.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when the store does not take them for the whole patience.
    pub async fn put(&self, key: &str, name: &str, bytes: Bytes) -> Result<pb::Blob, StoreError> {
        let path = self.path(key);
        let blob = pb::Blob {
            name: name.to_owned(),
            key: key.to_owned(),
            size: bytes.len() as u64,
            sha256: sha256(&bytes),
        };
        self.retrying(key, || self.store.put(&path, PutPayload::from(bytes.clone()))).await?;
        Ok(blob)
    }

    /// The bytes of `blob`, checked against its hash.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Corrupt`], or [`StoreError::Failed`].
    pub async fn get(&self, blob: &pb::Blob) -> Result<Bytes, StoreError> {
        let path = self.path(&blob.key);
        let fetch = async || self.store.get(&path).await?.bytes().await;
        // A broken transfer differs from broken storage: the second download tells.
        let mut bytes = self.retrying(&blob.key, fetch).await?;
        if sha256(&bytes) != blob.sha256 {
            bytes = self.retrying(&blob.key, fetch).await?;
        }
        let found = sha256(&bytes);
        if found == blob.sha256 {
            return Ok(bytes);
        }
        // The file's own checksums tell which tensor it is.
        let problem = match sweep_lens::checkpoint::decode_tensors(&blob.name, &bytes) {
            Err(error) => error.to_string(),
            Ok(_) => format!("its sha256 is {found}, expected {}", blob.sha256),
        };
        Err(StoreError::Corrupt { key: blob.key.clone(), problem })
    }

    /// Removes a blob that nobody needs any more. A failure only leaves it behind.
    pub async fn remove(&self, key: &str) {
        let _ = self.store.delete(&self.path(key)).await;
    }

    fn path(&self, key: &str) -> Path {
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }

    async fn retrying<T>(
        &self,
        key: &str,
        mut request: impl AsyncFnMut() -> object_store::Result<T>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let mut pause = PAUSE;
        loop {
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, request()).await;
            let problem = match answer {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(object_store::Error::NotFound { .. })) => {
                    return Err(StoreError::Missing { key: key.to_owned() });
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
            };
            if begun.elapsed() + pause > self.patience {
                return Err(StoreError::Failed { key: key.to_owned(), problem });
            }
            tracing::warn!(key, problem, "object store failed, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &std::path::Path, patience: u64) -> ArtifactStore {
        let url = format!("file://{}", folder.display());
        ArtifactStore::open(&url, &BTreeMap::new(), Duration::from_secs(patience)).unwrap()
    }

    fn refused() -> object_store::Error {
        object_store::Error::NotImplemented { operation: "a".into(), implementer: "b".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_store_is_asked_ever_more_rarely_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 600);
        let mut times = Vec::new();
        let answer: Result<(), _> = store
            .retrying("key", async || {
                times.push(Instant::now());
                Err(refused())
            })
            .await;
        let error = answer.unwrap_err();
        assert!(matches!(&error, StoreError::Failed { key, .. } if key == "key"), "{error}");
        let pauses: Vec<Duration> =
            times.windows(2).map(|pair| pair[1].duration_since(pair[0])).collect();
        let doubling = |pair: &[Duration]| pair[1] == (pair[0] * 2).min(PAUSE_MAX);
        assert!(pauses[0] == PAUSE && pauses.windows(2).all(doubling), "{pauses:?}");
        let took = times[0].elapsed();
        assert!(took <= store.patience && took + PAUSE_MAX > store.patience, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), 600);
        let mut tries = 0;
        let answer = store
            .retrying("key", async || {
                tries += 1;
                if tries < 3 { std::future::pending().await } else { Ok(tries) }
            })
            .await;
        assert_eq!(answer.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_is_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let blob = pb::Blob { key: "v1/none".into(), ..Default::default() };
        let begun = Instant::now();
        let error = store(folder.path(), 600).get(&blob).await.unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }), "{error}");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
