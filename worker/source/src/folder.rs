//! Checkpoints in folders of this machine. They are used where they lie.
//!
//! Listings go a few levels down, follow links, pass by hidden names and are bounded. A file's
//! version is made of everything that changes when somebody writes to it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Levels below a listed folder that may matter: `checkpoints/step1/model.safetensors`.
const DEPTH_MAX: usize = 3;
/// A listing with more files is another folder by mistake.
const FILES_MAX: usize = 200_000;

/// A file below a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Path relative to the listed folder, with `/`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Changes with every write.
    pub version: String,
}

/// The files below `folder`; only its own ones unless `deep`.
///
/// # Errors
/// [`Error::Missing`] when there is no such folder, [`Error::Io`], and [`Error::Layout`] for too many
/// files.
pub fn list(folder: &Path, deep: bool) -> Result<Vec<LocalFile>> {
    if !folder.is_dir() {
        let what = format!("folder {}", folder.display());
        let hint = "a folder is looked up on the machine that reads it".to_owned();
        return Err(Error::Missing { what, hint });
    }
    let mut files = Vec::new();
    let mut rest = vec![(folder.to_owned(), String::new(), 1)];
    while let Some((folder, prefix, depth)) = rest.pop() {
        let failed = |source| Error::Io { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is not text cannot be part of a location.
            let Ok(name) = entry.file_name().into_string() else { continue };
            // A link that leads nowhere is no file.
            let Ok(data) = fs::metadata(entry.path()) else { continue };
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{prefix}{name}");
            if data.is_dir() {
                if deep && depth < DEPTH_MAX {
                    rest.push((entry.path(), format!("{path}/"), depth + 1));
                }
            } else if data.is_file() {
                let version = version(&data);
                files.push(LocalFile { path, size: data.len(), version });
            }
            if files.len() + rest.len() > FILES_MAX {
                let problem = format!("more than {FILES_MAX} files");
                return Err(Error::Layout { at: folder.display().to_string(), problem });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// The version of a file as it is now.
///
/// # Errors
/// [`Error::Io`].
pub fn version_of(path: &Path) -> Result<String> {
    let data = fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Ok(version(&data))
}

/// The bytes of a small file.
///
/// # Errors
/// [`Error::Io`], and [`Error::Answer`] for a larger one.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::Io { path: PathBuf::from(path), source };
    if fs::metadata(path).map_err(failed)?.len() > max {
        let what = path.display().to_string();
        return Err(Error::Answer { what, problem: format!("more than {max} bytes") });
    }
    fs::read(path).map_err(failed)
}

fn version(data: &fs::Metadata) -> String {
    let (size, device, inode) = (data.len(), data.dev(), data.ino());
    let written = (data.mtime(), data.mtime_nsec());
    // The change time cannot be set back, as copying tools do with the modification time.
    let changed = (data.ctime(), data.ctime_nsec());
    format!("{device}:{inode}:{size}:{}.{}:{}.{}", written.0, written.1, changed.0, changed.1)
}
