//! Checkpoint files on local disk, by content: a file's name is its sha256. Main type: [`Cache`].
//!
//! Several workers of one machine may share a folder: files appear by rename only, so a name that
//! exists is complete, and an evicted file stays readable for whoever has it open. The least
//! recently used files go first when the bound is exceeded.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

/// Content-addressed folder with a byte bound.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: u64,
    /// Distinguishes unfinished files of this process.
    counter: AtomicU64,
}

/// sha256 of `bytes` in hex.
pub fn sha256(bytes: &[u8]) -> String {
    sweep_proto::id::hex(&Sha256::digest(bytes))
}

impl Cache {
    /// A cache in `folder` of at most `limit` bytes.
    ///
    /// # Errors
    /// When the folder cannot be created.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), limit, counter: AtomicU64::new(0) })
    }

    /// The bytes with that hash, if they are here and intact. A damaged file is removed.
    pub fn get(&self, hash: &str) -> Option<Vec<u8>> {
        let path = self.path(hash)?;
        let bytes = fs::read(&path).ok()?;
        if sha256(&bytes) != hash {
            let _ = fs::remove_file(&path);
            return None;
        }
        // Marks the file as used; a failure only ages it.
        let _ = File::open(&path).and_then(|file| file.set_modified(now()));
        Some(bytes)
    }

    /// Stores `bytes` under their hash. The cache is an optimisation: a disk that is full only
    /// means that the file is fetched again.
    pub fn put(&self, hash: &str, bytes: &[u8]) {
        let Some(path) = self.path(hash) else { return };
        if path.exists() || bytes.len() as u64 > self.limit {
            return;
        }
        self.evict(bytes.len() as u64);
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let part = self.folder.join(format!("{hash}.{}-{number}.part", std::process::id()));
        let stored = fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path));
        if let Err(error) = stored {
            tracing::warn!(%error, folder = %self.folder.display(), "checkpoint not cached");
            let _ = fs::remove_file(&part);
        }
    }

    /// Hashes of everything here, most recently used first, at most `count`.
    pub fn resident(&self, count: usize) -> Vec<String> {
        let mut files = self.files();
        files.reverse();
        files.into_iter().take(count).map(|file| file.hash).collect()
    }

    /// The path of a hash; none for text that is no hash, so that a peer cannot name other files.
    fn path(&self, hash: &str) -> Option<PathBuf> {
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then(|| self.folder.join(hash))
    }

    fn evict(&self, room: u64) {
        let files = self.files();
        let mut total: u64 = files.iter().map(|file| file.size).sum();
        for file in files {
            if total + room <= self.limit {
                break;
            }
            if fs::remove_file(self.folder.join(&file.hash)).is_ok() {
                total -= file.size;
            }
        }
    }

    /// Complete files, least recently used first.
    fn files(&self) -> Vec<CachedFile> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut files: Vec<CachedFile> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let hash = entry.file_name().into_string().ok().filter(|name| name.len() == 64)?;
                let data = entry.metadata().ok()?;
                Some(CachedFile { used: data.modified().ok()?, hash, size: data.len() })
            })
            .collect();
        files.sort();
        files
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CachedFile {
    used: SystemTime,
    hash: String,
    size: u64,
}

fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_file_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 250).unwrap();
        let blobs: Vec<Vec<u8>> = (0..3u8).map(|byte| vec![byte; 100]).collect();
        let hashes: Vec<String> = blobs.iter().map(|blob| sha256(blob)).collect();
        cache.put(&hashes[0], &blobs[0]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        cache.put(&hashes[1], &blobs[1]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(cache.get(&hashes[0]).as_ref(), Some(&blobs[0]));
        cache.put(&hashes[2], &blobs[2]);
        assert_eq!(cache.get(&hashes[1]), None);
        assert!(cache.get(&hashes[0]).is_some() && cache.get(&hashes[2]).is_some());
    }

    #[test]
    fn damaged_files_are_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1000).unwrap();
        let hash = sha256(b"weights");
        cache.put(&hash, b"weights");
        fs::write(folder.path().join(&hash), b"weightz").unwrap();
        assert_eq!(cache.get(&hash), None);
        assert!(!folder.path().join(&hash).exists());
        assert_eq!(cache.get("../../etc/passwd"), None);
    }
}
