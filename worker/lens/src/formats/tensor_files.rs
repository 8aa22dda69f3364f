//! The files of one checkpoint as one set of named tensors.
//!
//! [`TensorFiles::open`] picks the file of the weights by name, tells its format by its bytes, follows
//! an index to its shards, and reads headers. Tensors are made when they are asked for: without a copy
//! where they lie aligned in a mapped file, which is the rule.

use std::{cell::RefCell, collections::BTreeMap, collections::BTreeSet, path::PathBuf};

use tch::Tensor;

use super::{
    TensorInfo, TensorSource, archive, index,
    layout::Contents,
    safetensors,
    selection::{file_name, folder, weight_file},
    stored_file::{Access, StoredFile},
    torch_legacy, torch_zip,
};
use crate::{
    error::{Error, Problem, Result},
    tensor_file,
};

/// How much of a file is looked at to tell its format.
const START_BYTES: u64 = 512;

/// The tensors of one checkpoint on disk.
#[derive(Debug)]
pub struct TensorFiles {
    files: Vec<OpenFile>,
    /// With the index of the file.
    tensors: BTreeMap<String, (TensorInfo, usize)>,
}

#[derive(Debug)]
struct OpenFile {
    file: StoredFile,
    contents: Contents,
    /// Storages whose checksums were found right.
    checked: RefCell<BTreeSet<usize>>,
}

impl TensorFiles {
    /// Opens a checkpoint whose files nobody writes to while it is in use, such as those of a
    /// content-addressed cache: tensors are views of memory maps. Unlinking a file does no harm.
    ///
    /// `files` has local paths by the names in the repository; files that are not needed are ignored.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] with the file, the tensor and the damage;
    /// [`Error::Unsupported`] when there is no file of weights or more than one.
    pub fn open(files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        Self::open_with(files, Access::Mapped)
    }

    /// Opens a checkpoint in a folder where others write (a training run's own): the bytes of a tensor
    /// are read when it is asked for, and a file that has changed since it was opened is an error, where
    /// a memory map of a file that is cut would end the process.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_unmapped(files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        Self::open_with(files, Access::Read)
    }

    fn open_with(files: &BTreeMap<String, PathBuf>, access: Access) -> Result<Self> {
        let names = || files.keys().map(String::as_str);
        let chosen = match (weight_file(names())?, files.len()) {
            (Some(name), _) => name,
            // One file without a telling name: its bytes will tell.
            (None, 1) => names().next().expect("there is one"),
            (None, _) => {
                let listed: Vec<&str> = names().take(8).collect();
                let text = format!("no file of weights among [{}]", listed.join(", "));
                return Err(Error::Unsupported(text));
            }
        };
        let path = &files[chosen];
        if file_name(chosen).ends_with(".index.json") {
            return Self::open_shards(files, chosen, access);
        }
        let mut opened = TensorFiles { files: Vec::new(), tensors: BTreeMap::new() };
        let file = OpenFile::open(StoredFile::open(chosen, path, access)?)?;
        let names: Vec<String> = file.contents.tensors.keys().cloned().collect();
        opened.add(file, names.iter().map(String::as_str))?;
        Ok(opened)
    }

    fn open_shards(
        files: &BTreeMap<String, PathBuf>,
        index_name: &str,
        access: Access,
    ) -> Result<Self> {
        let file = StoredFile::open(index_name, &files[index_name], Access::Read)?;
        if file.n_bytes > index::INDEX_BYTES_MAX {
            let limit = index::INDEX_BYTES_MAX;
            return Err(file.fail(None, Problem::TooLarge { actual: file.n_bytes, limit }));
        }
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, shard) in index::read(index_name, &file.read(0, file.n_bytes)?)? {
            shards.entry(shard).or_default().push(tensor);
        }
        let mut opened = TensorFiles { files: Vec::new(), tensors: BTreeMap::new() };
        for (shard, tensors) in shards {
            let name = format!("{}{shard}", folder(index_name));
            let path = files.get(&name).ok_or_else(|| {
                let problem = Problem::Index(format!("shard `{name}` is missing"));
                file.fail(None, problem)
            })?;
            let shard = OpenFile::open(StoredFile::open(&name, path, access)?)?;
            opened.add(shard, tensors.iter().map(String::as_str))?;
        }
        Ok(opened)
    }

    /// Takes these tensors of a file in.
    fn add<'a>(&mut self, file: OpenFile, names: impl Iterator<Item = &'a str>) -> Result<()> {
        for name in names {
            let layout = file.contents.tensors.get(name);
            let layout = layout.ok_or_else(|| file.file.fail(Some(name), Problem::NotInShard))?;
            let (kind, shape) = (layout.kind, layout.shape.clone());
            let info = TensorInfo { kind, shape, file: file.file.name.clone() };
            self.tensors.insert(name.to_owned(), (info, self.files.len()));
        }
        self.files.push(file);
        Ok(())
    }

    /// The names of the files that hold the tensors.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.file.name.as_str())
    }

    /// Returns the SHA-256, in hexadecimal, of a tensor's element type, shape and bytes
    /// ([`tensor_file::tensor_hash`]); the file's format and layout do not enter.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    pub fn sha256(&self, name: &str) -> Result<String> {
        tensor_file::tensor_hash(name, &self.tensor(name)?)
    }

    /// Returns the identity of all tensors together: [`tensor_file::combined_hash`] of their hashes.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`].
    pub fn weights_hash(&self) -> Result<String> {
        let mut hashes = BTreeMap::new();
        for name in self.names() {
            hashes.insert(name, self.sha256(name)?);
        }
        Ok(tensor_file::combined_hash(hashes.iter().map(|(name, hash)| (*name, hash.as_str()))))
    }
}

impl TensorSource for TensorFiles {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.tensors.get(name) {
            Some((_, file)) => self.files[*file].tensor(name),
            None => Err(Error::MissingTensor { name: name.to_owned() }),
        }
    }
}

impl OpenFile {
    fn open(file: StoredFile) -> Result<Self> {
        let start = file.read(0, file.n_bytes.min(START_BYTES))?;
        // A name that promises safetensors is held to it: that format can hold nothing dangerous.
        let contents = if file_name(&file.name).ends_with(".safetensors") {
            safetensors::read(&file)
        } else if archive::recognise(&start) {
            torch_zip::read(&file)
        } else if torch_legacy::recognise(&start) {
            torch_legacy::read(&file)
        } else if safetensors::recognise(&start) {
            safetensors::read(&file)
        } else {
            Err(file.fail(None, Problem::Unrecognised(describe(&start).to_owned())))
        };
        let contents = contents.map_err(|error| match describe_known(&start) {
            Some(what) => file.fail(None, Problem::Unrecognised(what.to_owned())),
            None => error,
        })?;
        Ok(OpenFile { file, contents, checked: RefCell::default() })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let layout = &self.contents.tensors[name];
        let extent = &self.contents.extents[layout.extent];
        if !self.checked.borrow().contains(&layout.extent) {
            self.file.check_crc32(extent).map_err(|error| in_tensor(error, name))?;
            self.checked.borrow_mut().insert(layout.extent);
        }
        self.file.tensor(layout, extent).map_err(|error| in_tensor(error, name))
    }
}

/// Adds the name of the tensor to an error of its file.
fn in_tensor(error: Error, name: &str) -> Error {
    match error {
        Error::Checkpoint { file, problem, .. } => Error::checkpoint(&file, Some(name), problem),
        other => other,
    }
}

/// What else than weights a file is known to be, by its first bytes.
fn describe_known(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(b"version https://git-lfs") {
        return Some("a Git LFS pointer, the file itself was not downloaded");
    }
    let text = start.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") {
        return Some("an HTML or XML page");
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some("a tar archive, as PyTorch wrote before version 0.2");
    }
    None
}

fn describe(start: &[u8]) -> &'static str {
    let other = if start.is_empty() { "an empty file" } else { "unknown bytes" };
    describe_known(start).unwrap_or(other)
}
