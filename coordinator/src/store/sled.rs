//! The durable key-value store: sled 0.34, used in the one way that is safe. Main type: [`SledKv`].
//!
//! # Durability recipe
//! - sled's `flush` hands its log to the kernel with `sync_file_range`, which does not reach stable
//!   storage and does not cover the file's length. So a commit is: one atomic batch, `flush`, then
//!   `fdatasync` on our own descriptor of the database file. The descriptor is opened once, before
//!   any write of ours, so that the kernel reports every write error on it.
//! - A sync that failed is never tried again: the kernel may have dropped the pages. The error goes
//!   up and the process ends; the restart reads what is really there.
//! - sled does not sync the folders in which it creates files; we do, after opening.
//! - Values stay at or below 16 KiB (see [`frame`](super::frame)): sled writes larger pages into
//!   unsynced files of their own. `checksum` and `export` are not called on a live store.
//! - sled applies a batch key by key in memory; a lock keeps readers out meanwhile, so that a scan
//!   sees whole batches.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use super::{
    Error, Result,
    kv::{Batch, Kv, Visit},
};

/// Pages kept in memory; sled's own default is 1 GiB.
const CACHE_BYTES: u64 = 128 << 20;
/// How often, and with which pauses, a lock is asked for that is still held.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A sled database.
pub struct SledKv {
    db: sled::Db,
    /// Our own descriptor of the database file, for `fdatasync`.
    file: File,
    /// Held for writing while a batch is applied. Never across a sync.
    view: RwLock<()>,
}

impl SledKv {
    /// Opens or creates a database in a folder.
    ///
    /// # Errors
    /// When sled cannot open it, or the file system fails.
    pub fn open(path: &Path) -> Result<Self> {
        let config = sled::Config::new()
            .path(path)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(500));
        let db = open_patiently(&config)?;
        let name = path.join("db");
        let file = File::options().read(true).write(true).open(&name);
        let file = file.map_err(|source| io(format!("opening {}", name.display()), source))?;
        let kv = Self { db, file, view: RwLock::new(()) };
        kv.sync()?;
        for folder in [Some(path), Some(&path.join("blobs")), path.parent()].into_iter().flatten() {
            sync_folder(folder)?;
        }
        Ok(kv)
    }

    fn sync(&self) -> Result<()> {
        self.db.flush().map_err(|error| backend(&error))?;
        self.file.sync_data().map_err(|source| io("syncing the database file".to_owned(), source))
    }
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.db.get(key).map_err(|error| backend(&error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let _view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        for pair in self.db.range(from.max(prefix)..) {
            let (key, value) = pair.map_err(|error| backend(&error))?;
            if !key.starts_with(prefix) || !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        let mut changes = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => changes.insert(key, value),
                None => changes.remove(key),
            }
        }
        {
            let _view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            self.db.apply_batch(changes).map_err(|error| backend(&error))?;
        }
        self.sync()
    }
}

/// Opens the database. sled lets go of its lock a moment after its last handle was dropped, from a
/// thread of its own; since the data folder is ours alone, it is worth to wait for that.
fn open_patiently(config: &sled::Config) -> Result<sled::Db> {
    let mut tries = 0;
    loop {
        // A damaged log makes sled panic in places; either way it did not open.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
            .map_err(|_| Error::Backend("opening the database panicked".to_owned()))?;
        match opened {
            Ok(db) => return Ok(db),
            Err(error) if is_locked(&error) && tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            // The disk or the permissions are to blame, not what is stored.
            Err(sled::Error::Io(source)) if !is_about_content(&source) => {
                return Err(io("opening the database".to_owned(), source));
            }
            Err(error) => return Err(backend(&error)),
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(source) if source.to_string().contains("acquire lock"))
}

/// Whether an error of opening says that the files hold nonsense.
fn is_about_content(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    let is_lock = error.to_string().contains("acquire lock");
    !is_lock && matches!(error.kind(), InvalidData | InvalidInput | Other | UnexpectedEof)
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| io(format!("syncing the folder {}", path.display()), source))
}

fn backend(error: &sled::Error) -> Error {
    Error::Backend(error.to_string())
}

fn io(action: String, source: std::io::Error) -> Error {
    Error::Io { action, source }
}
