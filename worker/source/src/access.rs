//! The way to checkpoints wherever they are. Main type: [`Access`].
//!
//! Three steps: [`Access::list`] says which checkpoints a [`Source`] has, [`Access::files`] which
//! files make up one of them (with sizes and hashes, without downloads), [`Access::fetch`] brings
//! these files here, verified. Local files are used where they lie and hashed once; everything else
//! goes through the cache and stays there while the returned [`Fetched`] exists.

mod places;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};

use crate::{
    Settings,
    cache::{Cache, CacheError, Expected, Held, sha256_of},
    error::{Error, Result},
    folder,
    hub::{Hub, Subject},
    layout::{self, Found, Listing, Recognised, Unit},
    location::{Location, is_repo},
    published::{self, Places},
    select::{self, Weights},
    store::Bucket,
    transfer::{self, Remote, Report, Wanted},
};
use places::{above, label_of, parent_template, remote_file, single_file, split_file, template};

/// Files of one checkpoint that are downloaded side by side.
const PARALLEL: usize = 4;

/// Where checkpoints are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A model of the catalogue, by any of its names.
    Published(String),
    /// A repository of the hub; all its checkpoints, or those of one revision.
    Hub {
        /// `OWNER/NAME`.
        repo: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
    /// A folder, `file://` or `s3://` URL, or any [`Location`].
    Path(String),
}

impl Source {
    /// What a person means by `text`: a repository of the hub (`hub:OWNER/NAME`), a location, a
    /// folder that exists, or else a name of the catalogue.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("hub:") {
            Some(repo) if !repo.contains('@') => {
                Self::Hub { repo: repo.to_owned(), revision: None }
            }
            Some(_) => Self::Path(text.to_owned()),
            None if text.contains("://") || text.starts_with(['.', '/']) => {
                Self::Path(text.to_owned())
            }
            None if published::find(text).is_none() && Path::new(text).is_dir() => {
                Self::Path(text.to_owned())
            }
            None => Self::Published(text.to_owned()),
        }
    }
}

/// One file of a checkpoint at its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name within the checkpoint.
    pub name: String,
    /// Where it is.
    pub location: Location,
    /// Its size in bytes.
    pub size: u64,
    /// Its sha256 in hex, where the source states it.
    pub sha256: Option<String>,
    /// What the source calls this version of it: a git id, an entity tag, the times of a local file.
    pub version: String,
}

/// The files of one checkpoint on this machine. Cached ones are not evicted while this exists.
#[derive(Debug)]
pub struct Fetched {
    /// Path by name.
    pub files: BTreeMap<String, PathBuf>,
    /// sha256 in hex by name.
    pub hashes: BTreeMap<String, String>,
    guards: Vec<Held>,
}

impl Fetched {
    /// Number of files that the cache holds for this checkpoint.
    pub fn held(&self) -> usize {
        self.guards.len()
    }
}

/// A file in a folder, prefix or revision.
#[derive(Debug, Clone)]
struct Entry {
    path: String,
    size: u64,
    sha256: Option<String>,
    version: String,
}

/// The way to checkpoints, with credentials, cache and patience.
pub struct Access {
    settings: Settings,
    cache: Option<Arc<Cache>>,
    patience: Duration,
    hub: Hub,
    /// Opened buckets; held only to look one up.
    buckets: Mutex<BTreeMap<String, Bucket>>,
    report: Report,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Settings hold secrets.
        f.debug_struct("Access").field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// The checkpoints of a source; see [`Access::list`].
///
/// # Errors
/// See [`Error`].
pub async fn resolve(source: &Source, access: &Access) -> Result<Listing> {
    access.list(source).await
}

/// What is known to be wrong with the checkpoints of `listing` at `steps`, one sentence each.
pub fn warnings(listing: &Listing, steps: &[u64]) -> Vec<String> {
    let at = listing.at.replace("{}", "x");
    match at.parse() {
        Ok(Location::Hub { repo, .. }) => {
            published::find(&repo).map(|model| model.warnings(steps)).unwrap_or_default()
        }
        Ok(Location::Folder(_) | Location::Bucket { .. }) | Err(_) => Vec::new(),
    }
}

impl Access {
    /// Access with `settings` (see [`Settings`]). Without a cache only local files can be fetched,
    /// but everything can be listed. `patience` is how long a failing source is tried again.
    ///
    /// # Errors
    /// [`Error::Location`] when `HF_ENDPOINT` is no URL.
    pub fn new(settings: Settings, cache: Option<Arc<Cache>>, patience: Duration) -> Result<Self> {
        let hub = Hub::new(&settings, patience)?;
        let buckets = Mutex::default();
        Ok(Self { settings, cache, patience, hub, buckets, report: Arc::new(|_| {}) })
    }

    /// Calls `report` with the number of newly arrived bytes while files are fetched.
    #[must_use]
    pub fn with_report(mut self, report: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.report = Arc::new(report);
        self
    }

    /// The checkpoints of a source, by rising label.
    ///
    /// Published models with a fixed schedule need no network; everything else is looked up.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], [`Error::Missing`], [`Error::Layout`] and the rest of [`Error`].
    pub async fn list(&self, source: &Source) -> Result<Listing> {
        match source {
            Source::Published(name) => self.list_published(published::get(name)?).await,
            Source::Hub { repo, revision: None } => match published::of_repo(repo) {
                Some(model) => self.list_published(model).await,
                None => self.list_repo(repo).await,
            },
            Source::Hub { repo, revision: Some(revision) } => {
                check_repo(repo)?;
                let (repo, revision) = (repo.clone(), revision.clone());
                let place = Location::Hub { repo, revision, path: String::new() };
                // Printing and parsing refuses what is no revision.
                self.list_place(place.to_string().parse()?).await
            }
            Source::Path(text) => self.list_place(Location::from_path(text)?).await,
        }
    }

    async fn list_published(&self, model: &published::Model) -> Result<Listing> {
        match &model.places {
            Places::Revisions { .. } => Ok(model.listing().expect("revisions have a schedule")),
            Places::Main => {
                let at = format!("hub:{}@{{}}", model.repo);
                let checkpoints = vec![Found { step: 0, name: "main".to_owned() }];
                Ok(Listing { at, checkpoints, unit: Unit::Step, notes: Vec::new() })
            }
            Places::Files => {
                let text = format!("hub:{}@main", model.repo);
                self.list_place(text.parse()?).await
            }
            Places::Listed => self.list_repo(&model.repo).await,
        }
    }

    /// The revisions of a repository that are named by steps, or else what its main branch holds.
    async fn list_repo(&self, repo: &str) -> Result<Listing> {
        check_repo(repo)?;
        let revisions = self.hub.revisions(repo).await?;
        let mut notes = Vec::new();
        let labelled = layout::branches(revisions.iter().map(String::as_str), &mut notes);
        let at = format!("hub:{repo}@{{}}");
        match labelled {
            Ok(Some(checkpoints)) => Ok(Listing { at, checkpoints, unit: Unit::Step, notes }),
            Ok(None) => self.list_place(format!("hub:{repo}@main").parse()?).await,
            Err(problem) => Err(Error::Layout { at: format!("hub:{repo}"), problem }),
        }
    }

    /// The checkpoints in one folder, prefix or revision.
    async fn list_place(&self, place: Location) -> Result<Listing> {
        if let Some(listing) = single_file(&place) {
            return listing;
        }
        let entries = self.entries(&place, true).await?;
        let mut notes = Vec::new();
        let paths = entries.iter().map(|entry| entry.path.as_str());
        let found = layout::recognise(paths, &mut notes)
            .map_err(|problem| Error::Layout { at: place.to_string(), problem })?;
        match found {
            Recognised::Labelled { folder, checkpoints, unit } => {
                let place = if folder.is_empty() { place } else { place.join(folder) };
                let at = template(&format!("{place}/{{}}"))?;
                Ok(Listing { at, checkpoints, unit, notes })
            }
            Recognised::Single { trainer_state } => {
                let step = self.step_of(&place, &entries, trainer_state).await?;
                let (at, name) = parent_template(&place)?;
                let checkpoints = vec![Found { step, name }];
                Ok(Listing { at, checkpoints, unit: Unit::Step, notes })
            }
        }
    }

    /// The step of a single checkpoint: from its revision's or folder's name, from the trainer's
    /// state, or 0.
    async fn step_of(&self, place: &Location, entries: &[Entry], state: bool) -> Result<u64> {
        if let Some(step) = label_of(place) {
            return Ok(step);
        }
        let state = entries.iter().find(|entry| state && entry.path == select::TRAINER_STATE);
        match state.filter(|entry| entry.size <= select::TRAINER_STATE_BYTES_MAX) {
            Some(entry) => {
                let state = self.read(&place.join(&entry.path), entry.size).await?;
                Ok(select::global_step(&state).unwrap_or(0))
            }
            None => Ok(0),
        }
    }

    /// The files that make up the checkpoint at `place`, without downloading weights.
    ///
    /// Weights and what lies beside them are chosen as [`select`] says; configuration and tokenizer
    /// may also lie in the folder above.
    ///
    /// # Errors
    /// [`Error::Missing`] when there are no weights, and the rest of [`Error`].
    pub async fn files(&self, place: &Location) -> Result<Vec<RemoteFile>> {
        let (folder, weights) = split_file(place);
        let own = self.children(&folder).await?;
        let names: Vec<&str> = own.iter().map(|entry| entry.path.as_str()).collect();
        let missing = |problem: String| Error::Missing {
            what: format!("the checkpoint {place} ({problem})"),
            hint: String::new(),
        };
        let weights = match weights {
            Some(file) if names.contains(&file.as_str()) => Weights::Whole(file),
            Some(file) => return Err(missing(format!("no file `{file}`"))),
            None => select::choose(&names).map_err(missing)?,
        };
        let mut chosen: Vec<String> = match weights {
            Weights::Whole(file) => vec![file],
            Weights::Index(index) => {
                let bytes = self.read(&folder.join(&index), select::INDEX_BYTES_MAX).await?;
                let shards = select::shards(&bytes).map_err(|problem| Error::Answer {
                    what: folder.join(&index).to_string(),
                    problem,
                })?;
                if let Some(shard) = shards.iter().find(|shard| !names.contains(&shard.as_str())) {
                    return Err(missing(format!("shard `{shard}` of `{index}` is not there")));
                }
                std::iter::once(index).chain(shards).collect()
            }
        };
        let beside = select::beside(&names);
        chosen.extend(beside.iter().map(|name| (*name).to_owned()));
        let mut files: Vec<RemoteFile> = chosen
            .iter()
            .filter_map(|name| own.iter().find(|entry| entry.path == *name))
            .filter(|entry| {
                entry.path != select::TRAINER_STATE || entry.size <= select::TRAINER_STATE_BYTES_MAX
            })
            .map(|entry| remote_file(&folder, entry))
            .collect();
        self.add_from_above(&folder, &beside, &mut files).await?;
        Ok(files)
    }

    /// The files of the tokenizer at `place`, a folder, prefix or revision.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none, and the rest of [`Error`].
    pub async fn tokenizer(&self, place: &Location) -> Result<Vec<RemoteFile>> {
        let own = self.children(place).await?;
        let names: Vec<&str> = own.iter().map(|entry| entry.path.as_str()).collect();
        let chosen = select::tokenizer(&names).ok_or_else(|| Error::Missing {
            what: format!("the tokenizer {place}"),
            hint: "expected tokenizer.json, or vocab.json and merges.txt".to_owned(),
        })?;
        let chosen = own.iter().filter(|entry| chosen.contains(&entry.path.as_str()));
        Ok(chosen.map(|entry| remote_file(place, entry)).collect())
    }

    /// Configuration and tokenizer of a run often lie once, above its checkpoints.
    async fn add_from_above(
        &self,
        folder: &Location,
        beside: &[&str],
        files: &mut Vec<RemoteFile>,
    ) -> Result<()> {
        let has = |name: &str| beside.contains(&name);
        let tokenizer = |name: &str| name != "config.json" && name != select::TRAINER_STATE;
        let has_tokenizer = has("tokenizer.json") || has("vocab.json");
        let Some(above) = above(folder).filter(|_| !has("config.json") || !has_tokenizer) else {
            return Ok(());
        };
        // The checkpoint is whole without it; the folder above may not even be readable.
        let entries = match self.children(&above).await {
            Ok(entries) => entries,
            Err(Error::Missing { .. } | Error::Denied { .. } | Error::Io { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let names: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        for name in select::beside(&names) {
            let wanted = (name == "config.json" && !has("config.json"))
                || (tokenizer(name) && !has_tokenizer && !has(name));
            let entry = entries.iter().find(|entry| entry.path == name).filter(|_| wanted);
            files.extend(entry.map(|entry| remote_file(&above, entry)));
        }
        Ok(())
    }

    /// Brings files here that [`Access::files`] named.
    ///
    /// # Errors
    /// [`Error::Cache`] when they cannot all be cached at once, [`Error::Corrupt`],
    /// [`Error::Changed`], [`Error::Unavailable`] and the rest of [`Error`].
    pub async fn fetch(&self, place: &Location, files: &[RemoteFile]) -> Result<Fetched> {
        let remote = files.iter().filter(|file| !matches!(file.location, Location::Folder(_)));
        let needed: u64 = remote.map(|file| file.size).sum();
        if let Some(cache) = self.cache.as_ref().filter(|cache| needed > cache.limit()) {
            let (folder, limit) = (cache.folder().to_owned(), cache.limit());
            return Err(CacheError::TooLarge { folder, needed, limit }.into());
        }
        tracing::debug!(checkpoint = %place, files = files.len(), bytes = needed, "fetching");
        let fetches = files.iter().map(|file| async move {
            let (path, hash, guard) = self.fetch_file(file).await?;
            Ok::<_, Error>((file, path, hash, guard))
        });
        let fetched: Vec<_> =
            futures::stream::iter(fetches).buffer_unordered(PARALLEL).try_collect().await?;
        let mut result =
            Fetched { files: BTreeMap::new(), hashes: BTreeMap::new(), guards: Vec::new() };
        for (file, path, hash, guard) in fetched {
            result.files.insert(file.name.clone(), path);
            result.hashes.insert(file.name.clone(), hash);
            result.guards.extend(guard);
        }
        Ok(result)
    }

    async fn fetch_file(&self, file: &RemoteFile) -> Result<(PathBuf, String, Option<Held>)> {
        let held = match &file.location {
            Location::Folder(path) => {
                let hash = self.hash_in_place(path, file).await?;
                return Ok((path.clone(), hash, None));
            }
            Location::Hub { repo, revision, path } => {
                let subject = Subject {
                    repo: repo.clone(),
                    revision: Some(revision.clone()),
                    file: Some(path.clone()),
                };
                let what = subject.to_string();
                let remote = self.hub.remote(subject, file.size, file.sha256.clone());
                // A git id names content wherever it lies.
                let git = Some(file.version.clone())
                    .filter(|id| id.len() == 40 && id.bytes().all(|b| b.is_ascii_hexdigit()))
                    .filter(|_| file.sha256.is_none());
                let version = format!("git:{}:{}", file.version, file.size);
                self.download(file, what, version, git, remote).await?
            }
            Location::Bucket { bucket, prefix } => {
                let remote = self.bucket(bucket)?.remote(prefix, file.size, &file.version)?;
                // An entity tag names content only at its place.
                let endpoints = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL"];
                let endpoint = endpoints.iter().find_map(|name| self.settings.get(*name));
                let endpoint = endpoint.map_or("", String::as_str);
                let what = file.location.to_string();
                let version = format!("{endpoint} {what} {} {}", file.version, file.size);
                self.download(file, what, version, None, remote).await?
            }
        };
        Ok((held.path().to_owned(), held.hash().to_owned(), Some(held)))
    }

    /// A file from the cache, or else from `remote`. `version` names its content, `git` is its git
    /// id where that is all that is known about it.
    async fn download(
        &self,
        file: &RemoteFile,
        what: String,
        version: String,
        git: Option<String>,
        mut remote: impl Remote,
    ) -> Result<Held> {
        let Some(cache) = &self.cache else {
            let problem = "there is no cache to download it to".to_owned();
            return Err(Error::Unavailable { what, problem });
        };
        if let Some(hash) = file.sha256.clone().or_else(|| cache.known(&version)) {
            let cache = Arc::clone(cache);
            if let Some(held) = blocking(move || cache.get(&hash)).await {
                return Ok(held);
            }
        }
        let key = match &file.sha256 {
            Some(hash) => hash.clone(),
            // Unfinished files are not shared between places: only here is this version known.
            None => format!("{} {version}", file.location),
        };
        let expected = Expected { sha256: file.sha256.clone(), git };
        let wanted = Wanted { what, key, size: file.size, expected };
        let fetched = transfer::fetch(cache, wanted, &mut remote, self.patience, &self.report);
        let (held, as_listed) = fetched.await?;
        if file.sha256.is_none() && as_listed {
            cache.learn(&version, held.hash());
        }
        Ok(held)
    }

    /// The hash of a local file, read once per version.
    async fn hash_in_place(&self, path: &Path, file: &RemoteFile) -> Result<String> {
        let version = format!("file:{}:{}", path.display(), file.version);
        if let Some(hash) = self.cache.as_ref().and_then(|cache| cache.known(&version)) {
            return Ok(hash);
        }
        let (path, listed) = (path.to_owned(), file.version.clone());
        let hash = blocking(move || {
            let failed = |source| Error::Io { path: path.clone(), source };
            let hash = sha256_of(std::fs::File::open(&path).map_err(failed)?).map_err(failed)?;
            let now = folder::version_of(&path)?;
            if now != listed {
                let what = path.display().to_string();
                return Err(Error::Changed { what, expected: listed, actual: now });
            }
            Ok(hash)
        })
        .await?;
        if let Some(cache) = &self.cache {
            cache.learn(&version, &hash);
        }
        Ok(hash)
    }

    async fn children(&self, folder: &Location) -> Result<Vec<Entry>> {
        self.entries(folder, false).await
    }

    /// The files below `folder`; only its own ones unless `deep`.
    async fn entries(&self, folder: &Location, deep: bool) -> Result<Vec<Entry>> {
        match folder {
            Location::Hub { repo, revision, path } => {
                let files = self.hub.tree(repo, revision).await?;
                let below = |file: &str| match path.as_str() {
                    "" => Some(file.to_owned()),
                    path => Some(file.strip_prefix(path)?.strip_prefix('/')?.to_owned()),
                };
                let entries = files.into_iter().filter_map(|file| {
                    let path = below(&file.path).filter(|path| deep || !path.contains('/'))?;
                    let (size, sha256, version) = (file.size, file.sha256, file.oid);
                    Some(Entry { path, size, sha256, version })
                });
                Ok(entries.collect())
            }
            Location::Folder(path) => {
                let path = path.clone();
                let files = blocking(move || folder::list(&path, deep)).await?;
                let entries = files.into_iter().map(|file| {
                    let (path, size, version) = (file.path, file.size, file.version);
                    Entry { path, size, sha256: None, version }
                });
                Ok(entries.collect())
            }
            Location::Bucket { bucket, prefix } => {
                let objects = self.bucket(bucket)?.list(prefix, deep).await?;
                let entries = objects.into_iter().map(|object| {
                    let (path, size, version) = (object.path, object.size, object.version);
                    Entry { path, size, sha256: None, version }
                });
                Ok(entries.collect())
            }
        }
    }

    /// The whole of a small file.
    async fn read(&self, file: &Location, max: u64) -> Result<Vec<u8>> {
        match file {
            Location::Hub { repo, revision, path } => {
                self.hub.read(repo, revision, path, max).await
            }
            Location::Folder(path) => {
                let path = path.clone();
                blocking(move || folder::read(&path, max)).await
            }
            Location::Bucket { bucket, prefix } => self.bucket(bucket)?.read(prefix, max).await,
        }
    }

    fn bucket(&self, name: &str) -> Result<Bucket> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get(name) {
            return Ok(bucket.clone());
        }
        let bucket = Bucket::open(name, &self.settings, self.patience)?;
        buckets.insert(name.to_owned(), bucket.clone());
        Ok(bucket)
    }
}

fn check_repo(repo: &str) -> Result<()> {
    if is_repo(repo) {
        return Ok(());
    }
    let problem = "expected OWNER/NAME".to_owned();
    Err(Error::Location { text: repo.to_owned(), problem })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file operations do not panic")
}
