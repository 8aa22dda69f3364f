//! Checkpoints in S3 buckets, and the one place that knows how a bucket is opened.
//! Main type: [`Bucket`].
//!
//! Keys, region, endpoint and path style come from the usual `AWS_*` variables. Reads are bound to
//! the version that was listed.

use std::{fmt, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig, aws::AmazonS3Builder, path::Path,
};

use crate::{
    Settings,
    error::{Error, Result},
    patience::Patience,
    transfer::{Body, Bytestream, Fault, Remote, chain},
};

/// A listing with more objects is another prefix by mistake.
const OBJECTS_MAX: usize = 200_000;
/// One request that hangs this long is given up and tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Opens an S3 bucket; `settings` are `AWS_*` variables (names in any case).
///
/// # Errors
/// When the settings are unusable.
pub fn open_bucket(
    bucket: &str,
    settings: &Settings,
    retry: RetryConfig,
) -> object_store::Result<impl ObjectStore + use<>> {
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
    let own = |name: &&String| name.to_ascii_uppercase().starts_with("AWS_");
    let settings: Vec<_> = settings.iter().filter(|(name, _)| own(name)).collect();
    for (name, value) in &settings {
        let Ok(key) = name.to_ascii_lowercase().parse() else { continue };
        builder = builder.with_config(key, value.as_str());
    }
    let plain_http = settings
        .iter()
        .any(|(name, url)| name.to_uppercase().contains("ENDPOINT") && url.starts_with("http://"));
    if plain_http {
        builder = builder.with_allow_http(true);
    }
    builder.with_retry(retry).build()
}

/// Only short failures are retried inside a request; long outages are ridden out by callers, who
/// know how much patience they have.
pub fn short_retries() -> RetryConfig {
    RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(10), ..RetryConfig::default() }
}

/// An object below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Key relative to the listed prefix.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Changes with every write: its entity tag, or else its time.
    pub version: String,
}

/// Marks versions of objects without an entity tag.
const WRITTEN: &str = "written ";

/// The entity tag, or else the time.
fn version(object: &ObjectMeta) -> String {
    object.e_tag.clone().unwrap_or_else(|| written(object))
}

/// The time of the last write in seconds: answers have no finer one.
fn written(object: &ObjectMeta) -> String {
    format!("{WRITTEN}{}", object.last_modified.timestamp())
}

/// An opened bucket.
#[derive(Clone)]
pub struct Bucket {
    name: String,
    store: Arc<dyn ObjectStore>,
    patience: Duration,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Opens a bucket.
    ///
    /// # Errors
    /// [`Error::Location`] for unusable settings.
    pub fn open(name: &str, settings: &Settings, patience: Duration) -> Result<Self> {
        let store = open_bucket(name, settings, short_retries()).map_err(|error| {
            Error::Location { text: format!("s3://{name}"), problem: chain(&error) }
        })?;
        Ok(Self { name: name.to_owned(), store: Arc::new(store), patience })
    }

    /// The objects below `prefix`; only those without a further slash unless `deep`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, prefix: &str, deep: bool) -> Result<Vec<Object>> {
        let path = self.key(prefix)?;
        let wanted = (!prefix.is_empty()).then_some(&path);
        let what = self.what(prefix);
        let found = self
            .retrying(&what, async || {
                if deep {
                    let stream = self.store.list(wanted).take(OBJECTS_MAX + 1);
                    stream.try_collect::<Vec<ObjectMeta>>().await
                } else {
                    self.store.list_with_delimiter(wanted).await.map(|result| result.objects)
                }
            })
            .await?;
        if found.len() > OBJECTS_MAX {
            let problem = format!("more than {OBJECTS_MAX} objects");
            return Err(Error::Layout { at: what, problem });
        }
        let mut objects: Vec<Object> = found
            .into_iter()
            .filter_map(|object| {
                let key = object.location.to_string();
                let path = match prefix {
                    "" => key.as_str(),
                    prefix => key.strip_prefix(prefix)?.strip_prefix('/')?,
                };
                Some(Object { path: path.to_owned(), size: object.size, version: version(&object) })
            })
            .collect();
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(objects)
    }

    /// The whole of a small object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read(&self, key: &str, max: u64) -> Result<Vec<u8>> {
        let (path, what) = (self.key(key)?, self.what(key));
        let bytes = self
            .retrying(&what, async || {
                let options =
                    GetOptions { range: Some(GetRange::Bounded(0..max)), ..Default::default() };
                self.store.get_opts(&path, options).await?.bytes().await
            })
            .await?;
        Ok(bytes.to_vec())
    }

    /// An object that can be opened at any offset, in the version that was listed.
    ///
    /// # Errors
    /// [`Error::Location`] for a key that cannot be named.
    pub fn remote(&self, key: &str, size: u64, version: &str) -> Result<RemoteObject> {
        let (path, what) = (self.key(key)?, self.what(key));
        let (written, tag) = if version.starts_with(WRITTEN) {
            (Some(version.to_owned()), None)
        } else {
            (None, Some(version.to_owned()))
        };
        Ok(RemoteObject { bucket: self.clone(), path, what, size, tag, written })
    }

    fn what(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.name)
    }

    fn key(&self, key: &str) -> Result<Path> {
        let wrong = |error: object_store::path::Error| Error::Location {
            text: self.what(key),
            problem: error.to_string(),
        };
        Path::parse(key).map_err(wrong)
    }

    async fn retrying<T>(
        &self,
        what: &str,
        mut request: impl AsyncFnMut() -> object_store::Result<T>,
    ) -> Result<T> {
        let mut patience = Patience::new(self.patience);
        loop {
            let problem = match tokio::time::timeout(REQUEST_TIMEOUT, request()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => match fault(what, error) {
                    Fault::Final(error) => return Err(error),
                    Fault::Again { problem, .. } | Fault::Restart(problem) => problem,
                },
                Err(_) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
            };
            tracing::warn!(what, problem, "object store failed, trying again");
            if !patience.wait(None).await {
                return Err(Error::Unavailable { what: what.to_owned(), problem });
            }
        }
    }
}

/// An object that is being downloaded.
#[derive(Debug)]
pub struct RemoteObject {
    bucket: Bucket,
    path: Path,
    what: String,
    size: u64,
    /// Entity tag: the listed one, or else that of the first answer.
    tag: Option<String>,
    /// Time of the last write, where no tag was listed.
    written: Option<String>,
}

impl Remote for RemoteObject {
    async fn open(&mut self, offset: u64) -> Result<Body, Fault> {
        let options = GetOptions {
            if_match: self.tag.clone(),
            range: (offset > 0).then_some(GetRange::Offset(offset)),
            ..Default::default()
        };
        let answer = self.bucket.store.get_opts(&self.path, options);
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let answer = answer.map_err(|_| Fault::again("no answer"))?;
        let object = answer.map_err(|error| fault(&self.what, error))?;
        let changed = |expected: String, actual: String| {
            Fault::Final(Error::Changed { what: self.what.clone(), expected, actual })
        };
        // Not every server heeds the condition, and some list no tags.
        if let (Some(known), Some(now)) = (&self.tag, &object.meta.e_tag)
            && known != now
        {
            return Err(changed(known.clone(), now.clone()));
        }
        if let Some(listed) = self.written.as_ref().filter(|at| **at != written(&object.meta)) {
            return Err(changed(listed.clone(), written(&object.meta)));
        }
        if object.meta.size != self.size {
            let (listed, now) = (self.size, object.meta.size);
            return Err(changed(format!("{listed} bytes"), format!("{now} bytes")));
        }
        self.tag = self.tag.take().or_else(|| object.meta.e_tag.clone());
        let start = object.range.start;
        Ok(Body { start, bytes: Bytestream::Object(object.into_stream()) })
    }
}

fn fault(what: &str, error: object_store::Error) -> Fault {
    use object_store::Error::{NotFound, PermissionDenied, Precondition, Unauthenticated};
    let (what, problem) = (what.to_owned(), chain(&error));
    // The errors of listings carry the status in their text only.
    let status = |code: &str| problem.contains(&format!("status code: {code} "));
    let missing = matches!(error, NotFound { .. }) || status("404");
    let refused = matches!(error, PermissionDenied { .. } | Unauthenticated { .. })
        || status("401")
        || status("403");
    if missing {
        let hint = "check bucket, prefix and AWS_ENDPOINT".to_owned();
        Fault::Final(Error::Missing { what, hint })
    } else if refused {
        let hint =
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION; a public bucket \
                    takes AWS_SKIP_SIGNATURE=true"
                .to_owned();
        Fault::Final(Error::Denied { what, problem, hint })
    } else if matches!(error, Precondition { .. }) {
        let (expected, actual) = ("the listed version".to_owned(), "another one".to_owned());
        Fault::Final(Error::Changed { what, expected, actual })
    } else {
        Fault::again(problem)
    }
}
