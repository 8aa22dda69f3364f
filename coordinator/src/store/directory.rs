//! The coordinator's data folder: one coordinator at a time, and what happens when its store does
//! not open. Main type: [`Directory`].
//!
//! ```text
//! DIR/lock              held while a coordinator lives
//! DIR/store/            the database
//! DIR/store.broken-N/   one that did not open; never deleted
//! DIR/address           URL of the live coordinator
//! DIR/artifacts/        files of tasks, unless --artifacts says otherwise
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use super::{Error as StoreError, Store, sled::sync_folder};

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another coordinator lives there.
    #[error("{} is in use by another coordinator; stop it first, or use another --data folder", .0.display())]
    InUse(PathBuf),
    /// The file system failed.
    #[error("{action} failed")]
    Io {
        /// What was tried.
        action: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The store did not open and was moved aside.
    #[error(
        "the store could not be opened; it was moved to {} and nothing was deleted. Put a backup \
         into {}, or start once with --fresh-store to begin with an empty one", moved.display(), store.display()
    )]
    Broken {
        /// Where it belongs.
        store: PathBuf,
        /// Where it is now.
        moved: PathBuf,
        /// The reason.
        #[source]
        source: StoreError,
    },
    /// The store is fine, but this version cannot use it.
    #[error("the store in {} cannot be used", store.display())]
    Unusable {
        /// Where it is.
        store: PathBuf,
        /// The reason.
        #[source]
        source: StoreError,
    },
    /// There is no store, but one that was moved aside.
    #[error(
        "there is no store in {}, but {} was moved aside earlier. Put a backup in place, or start \
         once with --fresh-store to begin with an empty one", store.display(), moved.display()
    )]
    Missing {
        /// Where it belongs.
        store: PathBuf,
        /// What is left of the last one.
        moved: PathBuf,
    },
}

/// A data folder that this process has for itself.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Unlocked by the kernel when the process ends, however it ends.
    _lock: File,
}

impl Directory {
    /// Creates the folder if it is missing and locks it.
    ///
    /// # Errors
    /// [`DirectoryError::InUse`] when another coordinator has it.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        fs::create_dir_all(path).map_err(|source| io("creating", path, source))?;
        let name = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&name);
        let lock = lock.map_err(|source| io("opening", &name, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DirectoryError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(io("locking", &name, source)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the store. One that does not open is moved aside, named after `unix_ms`; `fresh`
    /// allows to begin with an empty one after that.
    ///
    /// # Errors
    /// What to do about it.
    pub fn open_store(
        &self,
        fresh: bool,
        unix_ms: u64,
    ) -> Result<(Store, crate::core::restore::Image), DirectoryError> {
        let path = self.path.join("store");
        let broken = self.broken()?;
        if !path.exists()
            && !fresh
            && let Some(moved) = broken
        {
            return Err(DirectoryError::Missing { store: path, moved });
        }
        let opened = Store::open(&path).and_then(|store| Ok((store.begin()?, store)));
        match opened {
            Ok((image, store)) => {
                sync_folder(&self.path)
                    .map_err(|source| DirectoryError::Unusable { store: path, source })?;
                Ok((store, image))
            }
            Err(source @ (StoreError::Newer { .. } | StoreError::Io { .. })) => {
                Err(DirectoryError::Unusable { store: path, source })
            }
            Err(source) => {
                let moved = self.path.join(format!("store.broken-{unix_ms}"));
                fs::rename(&path, &moved).map_err(|source| io("moving aside", &path, source))?;
                Err(DirectoryError::Broken { store: path, moved, source })
            }
        }
    }

    /// The newest store that was moved aside.
    fn broken(&self) -> Result<Option<PathBuf>, DirectoryError> {
        let entries = fs::read_dir(&self.path).map_err(|e| io("reading", &self.path, e))?;
        let is_broken = |path: &PathBuf| {
            path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("store.broken-"))
        };
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_broken).max())
    }

    /// Publishes the address, all of it or nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_address(&self, url: &str) -> Result<(), DirectoryError> {
        let path = self.path.join("address");
        let temporary = self.path.join("address.new");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(format!("{url}\n").as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| io("writing", &path, source))
    }

    /// Takes the address back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_address(&self) -> Result<(), DirectoryError> {
        let path = self.path.join("address");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io("removing", &path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn io(action: &str, path: &Path, source: std::io::Error) -> DirectoryError {
    DirectoryError::Io { action: format!("{action} {}", path.display()), source }
}
