//! A file of the cache that is still being written. Main type: [`Part`].
//!
//! Its name is its key and final size; whoever writes it holds an exclusive lock. What is there
//! already is hashed and counted, so that a transfer goes on where a killed process stopped. It
//! becomes a file of the cache only with the expected size and hash.

use std::{
    fs::{self, File, FileTimes, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use sweep_proto::id::hex;

use super::{Cache, CacheError, Held, READ_BYTES, is_hash, now, sha256, stamp};

/// What is known in advance about a file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its sha256 in hex.
    pub sha256: Option<String>,
    /// Its git blob id in hex: the sha1 over a header and the content.
    pub git: Option<String>,
}

/// Answer to [`Cache::begin`].
#[derive(Debug)]
pub enum Begun {
    /// The file is in the cache.
    Here(Held),
    /// It is this process's to write.
    Part(Box<Part>),
    /// Another process or task is writing it.
    Busy,
}

/// A file that is being written.
#[derive(Debug)]
pub struct Part {
    folder: PathBuf,
    limit: u64,
    path: PathBuf,
    file: File,
    size: u64,
    written: u64,
    sha256: Sha256,
    git: Option<Sha1>,
    expected: Expected,
}

impl Cache {
    /// Begins to write the file called `key` (its sha256, or any name of this version of it) of
    /// `size` bytes, and makes room for it. What an earlier process wrote of it is kept.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`], [`CacheError::Full`], or [`CacheError::Io`].
    pub fn begin(&self, key: &str, size: u64, expected: &Expected) -> Result<Begun, CacheError> {
        if size > self.limit {
            let folder = self.folder.clone();
            return Err(CacheError::TooLarge { folder, needed: size, limit: self.limit });
        }
        let key = if is_hash(key) { key.to_owned() } else { sha256(key.as_bytes()) };
        let path = self.folder.join(format!("{key}.{size}.part"));
        let lock = self.exclusive()?;
        if let Some(held) = expected.sha256.as_deref().and_then(|hash| self.get(hash)) {
            return Ok(Begun::Here(held));
        }
        let options =
            File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(CacheError::io(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Begun::Busy),
            // Without locks two processes might write one file; then nobody shares it.
            Err(TryLockError::Error(source)) => return Err(CacheError::Io { path, source }),
            Ok(()) => {}
        }
        if let Err(error) = self.make_room(&path, size) {
            // What was received before stays for a quieter moment.
            if file.metadata().is_ok_and(|data| data.len() == 0) {
                let _ = fs::remove_file(&path);
            }
            return Err(error);
        }
        let _ = file.set_times(FileTimes::new().set_accessed(now()));
        drop(lock);
        let mut part = Box::new(Part {
            folder: self.folder.clone(),
            limit: self.limit,
            path,
            file,
            size,
            written: 0,
            sha256: Sha256::new(),
            git: None,
            expected: expected.clone(),
        });
        part.take_up()?;
        Ok(Begun::Part(part))
    }
}

impl Part {
    /// Bytes that are there.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that will be there at the end.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Hashes what an earlier process wrote.
    fn take_up(&mut self) -> Result<(), CacheError> {
        let found = self.file.metadata().map_err(CacheError::io(&self.path))?.len();
        if found > self.size {
            return self.restart();
        }
        self.reset();
        self.file.rewind().map_err(CacheError::io(&self.path))?;
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(found).unwrap_or(READ_BYTES))];
        while self.written < found {
            let count = self.file.read(&mut buffer).map_err(CacheError::io(&self.path))?;
            if count == 0 {
                break;
            }
            self.count(&buffer[..count]);
        }
        Ok(())
    }

    /// Forgets everything that was written.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn restart(&mut self) -> Result<(), CacheError> {
        self.reset();
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.map_err(CacheError::io(&self.path))
    }

    fn reset(&mut self) {
        self.written = 0;
        self.sha256 = Sha256::new();
        self.git = self
            .expected
            .git
            .is_some()
            .then(|| Sha1::new().chain_update(format!("blob {}\0", self.size)));
    }

    fn count(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
        self.written += bytes.len() as u64;
    }

    /// Appends `bytes`. A full disk is answered by evicting what nobody uses.
    ///
    /// # Errors
    /// [`CacheError::Mismatch`] for more bytes than the file has, [`CacheError::DiskFull`],
    /// [`CacheError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        if self.written + bytes.len() as u64 > self.size {
            return Err(CacheError::Mismatch {
                expected: format!("{} bytes", self.size),
                actual: "more".to_owned(),
                received: None,
            });
        }
        loop {
            match self.file.write_all(bytes) {
                Ok(()) => break,
                Err(error) if is_full(&error) => {
                    let cache = Cache { folder: self.folder.clone(), limit: self.limit };
                    if !cache.free_disk(&self.path, self.size - self.written)? {
                        return Err(CacheError::DiskFull { folder: self.folder.clone() });
                    }
                    // Some of the bytes may have been written.
                    let back = self.file.seek(SeekFrom::Start(self.written));
                    back.map_err(CacheError::io(&self.path))?;
                }
                Err(source) => return Err(CacheError::Io { path: self.path.clone(), source }),
            }
        }
        self.count(bytes);
        Ok(())
    }

    /// Verifies the file and gives it its name.
    ///
    /// # Errors
    /// [`CacheError::Mismatch`] when size or hash are not the expected ones: the file is emptied
    /// then. [`CacheError::DiskFull`], [`CacheError::Io`].
    pub fn finish(mut self) -> Result<Held, CacheError> {
        let hash = hex(&self.sha256.clone().finalize());
        let git = self.git.clone().map(|git| hex(&git.finalize()));
        let sizes = (format!("{} bytes", self.size), format!("{} bytes", self.written));
        let wrong = if self.written == self.size {
            let pairs = [
                ("sha256", self.expected.sha256.clone(), Some(hash.clone())),
                ("git blob", self.expected.git.clone(), git),
            ];
            pairs.into_iter().find_map(|(kind, expected, found)| {
                let (expected, found) = (expected?, found?);
                let differs = !expected.eq_ignore_ascii_case(&found);
                differs.then(|| (format!("{kind} {expected}"), format!("{kind} {found}")))
            })
        } else {
            Some(sizes.clone())
        };
        if let Some((expected, actual)) = wrong {
            self.restart()?;
            let received = (self.size > 0 && actual != sizes.1).then_some(hash);
            return Err(CacheError::Mismatch { expected, actual, received });
        }
        // Before the name exists the bytes are on disk: a power cut leaves no file of zeros.
        if let Err(source) = self.file.sync_data() {
            return Err(if is_full(&source) {
                CacheError::DiskFull { folder: self.folder.clone() }
            } else {
                CacheError::Io { path: self.path.clone(), source }
            });
        }
        self.publish(hash)
    }

    /// Renames, and turns the exclusive lock into a shared one; nobody can evict in between.
    fn publish(self, hash: String) -> Result<Held, CacheError> {
        let cache = Cache { folder: self.folder.clone(), limit: self.limit };
        let _lock = cache.exclusive()?;
        let path = self.folder.join(&hash);
        if let Some(held) = cache.get(&hash) {
            // The same content came under another name in the meantime.
            let _ = fs::remove_file(&self.path);
            return Ok(held);
        }
        let times = FileTimes::new().set_modified(stamp(&hash, self.size)).set_accessed(now());
        let _ = self.file.set_times(times);
        fs::rename(&self.path, &path).map_err(CacheError::io(&path))?;
        let file = File::open(&path).map_err(CacheError::io(&path))?;
        drop(self.file);
        let _ = file.lock_shared();
        sync_folder(&self.folder);
        Ok(Held { path, hash, size: self.size, file })
    }
}

#[cfg(test)]
impl Part {
    /// The same part over another file.
    pub(super) fn on(self, file: File) -> Self {
        Self { file, ..self }
    }
}

/// Makes a rename survive a power cut; without it the file is only fetched again.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
