//! Files on local disk, by content: a file's name is its sha256. Main type: [`Cache`].
//!
//! Several workers of one machine may share a folder. A file is written as a [`Part`] that one
//! process holds locked, and appears under its name only when its hash was right, so a name that
//! exists is complete. Whoever uses a file holds a shared lock on it ([`Held`]); eviction, least
//! recently used first, passes by what is locked. Locks are the kernel's: they end with the process,
//! and what a dead process left behind is taken up again or evicted.
//!
//! A file that was verified gets a modification time that follows from its hash and size. As long as
//! it has that, it was not written to since; otherwise it is hashed again before it is used. The
//! access time is when it was last used.

mod part;

use std::{
    fs::{self, File, FileTimes, TryLockError},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};
use sweep_proto::id::FailureClass;

pub use part::{Begun, Expected, Part};

/// Unfinished files that nobody has gone on with for this long are removed at start.
const PART_KEPT: Duration = Duration::from_hours(48);
/// Notes of known hashes beyond this many are forgotten at start, oldest first.
const KNOWN_MAX: usize = 1 << 16;
/// Bytes that are read at once for hashing.
const READ_BYTES: usize = 1 << 20;

/// Why the cache cannot take a file.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It would not fit if it were alone.
    #[error("{} bytes do not fit into the checkpoint cache {} of {limit} bytes", needed, folder.display())]
    TooLarge {
        /// The cache.
        folder: PathBuf,
        /// Bytes that are needed at once.
        needed: u64,
        /// Bound of the cache.
        limit: u64,
    },
    /// Everything that could make room is in use.
    #[error(
        "the checkpoint cache {} has no room for {needed} bytes: {in_use} of {limit} are in use",
        folder.display()
    )]
    Full {
        /// The cache.
        folder: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are used by running work.
        in_use: u64,
        /// Bound of the cache.
        limit: u64,
    },
    /// The disk is full, and nothing in the cache can be evicted.
    #[error("the disk of the checkpoint cache {} is full", folder.display())]
    DiskFull {
        /// The cache.
        folder: PathBuf,
    },
    /// The bytes that were written are not the expected ones.
    #[error("expected {expected}, received {actual}")]
    Mismatch {
        /// Size or hash that was expected.
        expected: String,
        /// Size or hash that was received.
        actual: String,
        /// sha256 of what was received, when its size was right.
        received: Option<String>,
    },
    /// The folder cannot be used.
    #[error("the checkpoint cache cannot use {}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CacheError {
    /// What the scheduler does about it.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::TooLarge { .. } | Self::Mismatch { .. } => FailureClass::Permanent,
            Self::Full { .. } | Self::DiskFull { .. } | Self::Io { .. } => FailureClass::Transient,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::TooLarge { .. } | Self::Full { .. } => {
                Some("give the worker a larger cache with --cache-bytes".to_owned())
            }
            Self::DiskFull { .. } => {
                Some("make room on that disk, or put the cache elsewhere with --cache".to_owned())
            }
            Self::Mismatch { .. } | Self::Io { .. } => None,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Content-addressed folder with a byte bound.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
}

/// A verified file of the cache that is not evicted while this exists.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    hash: String,
    size: u64,
    /// Open with a shared lock.
    file: File,
}

impl Held {
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its sha256 in hex.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// sha256 of `bytes` in hex.
pub fn sha256(bytes: &[u8]) -> String {
    sweep_proto::id::hex(&Sha256::digest(bytes))
}

/// sha256 in hex of everything from here to the end.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(mut reader: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(sweep_proto::id::hex(&hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Cache {
    /// A cache in `folder` of at most `limit` bytes.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder.join("known"))?;
        let cache = Self { folder: folder.to_owned(), limit };
        cache.tidy();
        Ok(cache)
    }

    /// The bound in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file with that hash, if it is here and intact. A damaged file is removed.
    pub fn get(&self, hash: &str) -> Option<Held> {
        self.open_verified(hash, false)
    }

    /// As [`Cache::get`], but reads and hashes the whole file, whatever its times say.
    pub fn get_checked(&self, hash: &str) -> Option<Held> {
        self.open_verified(hash, true)
    }

    /// The bytes with that hash, if they are here and intact.
    pub fn read(&self, hash: &str) -> Option<Vec<u8>> {
        let held = self.get(hash)?;
        let mut bytes = Vec::with_capacity(held.size as usize);
        (&held.file).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Stores `bytes` under their hash. The cache is an optimisation here: what it cannot take is
    /// fetched again.
    pub fn put(&self, hash: &str, bytes: &[u8]) {
        let expected = Expected { sha256: Some(hash.to_owned()), git: None };
        let stored = match self.begin(hash, bytes.len() as u64, &expected) {
            // Somebody else has it or is writing it.
            Ok(Begun::Here(_) | Begun::Busy) => return,
            Ok(Begun::Part(mut part)) => part
                .restart()
                .and_then(|()| part.write(bytes))
                .and_then(|()| part.finish())
                .map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, folder = %self.folder.display(), "checkpoint not cached");
        }
    }

    /// Hashes of everything here, most recently used first, at most `count`.
    pub fn resident(&self, count: usize) -> Vec<String> {
        let mut files = self.files();
        files.retain(|file| file.reserved.is_none());
        files.reverse();
        files.into_iter().take(count).map(|file| file.key).collect()
    }

    /// The hash that was learnt for `name`: a version of a file at its source, or of a local file.
    pub fn known(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.known_path(name)).ok()?;
        let hash = text.trim_end();
        is_hash(hash).then(|| hash.to_owned())
    }

    /// Remembers that the content called `name` has `hash`. A failure only costs time later.
    pub fn learn(&self, name: &str, hash: &str) {
        let path = self.known_path(name);
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let stored = fs::write(&part, hash).and_then(|()| fs::rename(&part, &path));
        if let Err(error) = stored {
            tracing::debug!(%error, "hash not remembered");
        }
    }

    fn known_path(&self, name: &str) -> PathBuf {
        self.folder.join("known").join(sha256(name.as_bytes()))
    }

    /// The path of a hash; none for text that is no hash, so that a peer cannot name other files.
    fn path(&self, hash: &str) -> Option<PathBuf> {
        is_hash(hash).then(|| self.folder.join(hash))
    }

    fn open_verified(&self, hash: &str, thoroughly: bool) -> Option<Held> {
        let path = self.path(hash)?;
        let file = File::open(&path).ok()?;
        // Without locks (some network disks) the file stays readable for who has it open.
        let _ = file.lock_shared();
        let data = file.metadata().ok()?;
        // It may have been evicted between opening and locking.
        let there = fs::metadata(&path).ok()?;
        if (there.dev(), there.ino()) != (data.dev(), data.ino()) {
            return None;
        }
        let size = data.len();
        let written = data.modified().ok()?;
        if thoroughly || written != stamp(hash, size) {
            if sha256_of(&file).ok()? != hash {
                tracing::warn!(file = %path.display(), "damaged file in the checkpoint cache");
                let _ = fs::remove_file(&path);
                return None;
            }
            io::Seek::rewind(&mut &file).ok()?;
            let _ = file.set_times(FileTimes::new().set_modified(stamp(hash, size)));
        }
        // Marks the file as used; a failure only ages it.
        let _ = file.set_times(FileTimes::new().set_accessed(now()));
        Some(Held { path, hash: hash.to_owned(), size, file })
    }

    /// Held for the short time in which files appear and disappear, by one process at a time.
    fn exclusive(&self) -> Result<File, CacheError> {
        let path = self.folder.join(".lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(CacheError::io(&path))?;
        let _ = file.lock();
        Ok(file)
    }

    /// Evicts until `room` bytes fit beside everything but `own`. Called under the lock.
    fn make_room(&self, own: &Path, room: u64) -> Result<(), CacheError> {
        let files = self.files();
        let others = files.iter().filter(|file| self.folder.join(&file.name) != own);
        let mut total: u64 = others.clone().map(CachedFile::bytes).sum();
        let mut in_use = 0;
        for file in others {
            if total + room <= self.limit {
                return Ok(());
            }
            if self.evict(file) {
                total -= file.bytes();
            } else {
                in_use += file.bytes();
            }
        }
        if total + room <= self.limit {
            return Ok(());
        }
        Err(CacheError::Full {
            folder: self.folder.clone(),
            needed: room,
            in_use,
            limit: self.limit,
        })
    }

    /// Evicts at least `bytes` when the disk is full. Returns false when nothing was evicted.
    fn free_disk(&self, own: &Path, bytes: u64) -> Result<bool, CacheError> {
        let _lock = self.exclusive()?;
        let mut freed = 0;
        for file in self.files() {
            if freed >= bytes {
                break;
            }
            if self.folder.join(&file.name) != own && self.evict(&file) {
                freed += file.size;
            }
        }
        Ok(freed > 0)
    }

    /// Removes a file that nobody uses. Called under the lock.
    fn evict(&self, file: &CachedFile) -> bool {
        let path = self.folder.join(&file.name);
        let Ok(open) = File::open(&path) else { return false };
        if matches!(open.try_lock(), Err(TryLockError::WouldBlock)) {
            return false;
        }
        fs::remove_file(&path).is_ok()
    }

    /// Complete and unfinished files, least recently used first.
    fn files(&self) -> Vec<CachedFile> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut files: Vec<CachedFile> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                let data = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                let (key, reserved) = match name.strip_suffix(".part") {
                    Some(part) => {
                        let (key, rest) = part.split_once('.')?;
                        // An unfinished file of an older version has no size in its name.
                        (key, Some(rest.parse().unwrap_or(data.len())))
                    }
                    None => (name.as_str(), None),
                };
                let key = Some(key.to_owned()).filter(|key| is_hash(key))?;
                Some(CachedFile {
                    used: data.accessed().ok()?,
                    name,
                    key,
                    size: data.len(),
                    reserved,
                })
            })
            .collect();
        files.sort();
        files
    }

    /// Removes what dead processes left behind long ago.
    fn tidy(&self) {
        let Ok(_lock) = self.exclusive() else { return };
        let old = now().checked_sub(PART_KEPT);
        for file in self.files().iter().filter(|file| file.reserved.is_some()) {
            let written = fs::metadata(self.folder.join(&file.name)).and_then(|d| d.modified());
            if written.ok() < old {
                self.evict(file);
            }
        }
        let Ok(entries) = fs::read_dir(self.folder.join("known")) else { return };
        let mut notes: Vec<(Option<SystemTime>, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok(), entry.path()))
            })
            .collect();
        if notes.len() > KNOWN_MAX {
            notes.sort();
            for (_, path) in &notes[..notes.len() - KNOWN_MAX / 2] {
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CachedFile {
    used: SystemTime,
    name: String,
    key: String,
    size: u64,
    /// Final size of an unfinished file.
    reserved: Option<u64>,
}

impl CachedFile {
    /// Bytes that count against the bound. Unfinished files count as what they will become.
    fn bytes(&self) -> u64 {
        self.reserved.map_or(self.size, |reserved| reserved.max(self.size))
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The modification time of a verified file: before 2004, so that no write ends up at it.
fn stamp(hash: &str, size: u64) -> SystemTime {
    let digits = |range| u64::from_str_radix(hash.get(range).unwrap_or("0"), 16).unwrap_or(0);
    let seconds = digits(0..7) << 2;
    let nanoseconds = (digits(7..15) ^ size) % 1_000_000_000;
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// Ages are compared between processes of this machine, so they are wall-clock times.
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests;
