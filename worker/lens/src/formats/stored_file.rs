//! One file on disk: bounded reads of its bytes, and tensors made of them.
//!
//! A mapped file is mapped by libtorch itself (`from_file`, private): the mapping belongs to the storage
//! that all views of it share, so it lives exactly as long as the last of them, and a write in place
//! would go to a private copy of the page. That needs no unsafe code of ours, which is why neither
//! `memmap2` nor `Tensor::from_blob` (which ties the memory to nothing) is used.
//!
//! What a mapping cannot survive is that somebody cuts the file while it is in use: touching a page that
//! is gone ends the process. Files of a content-addressed cache are written once, so they are mapped
//! ([`Access::Mapped`]); files in a folder where others write are read ([`Access::Read`]), and a file
//! that changed since it was opened is then an error.

use std::{
    fs::{File, Metadata},
    io::{ErrorKind, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use flate2::bufread::DeflateDecoder;
use tch::{Device, Kind, Tensor};

use super::layout::{Extent, Layout};
use crate::error::{Error, Problem, Result};

/// Bytes that are read at a time: they stay in the processor's cache until they are used, and as words
/// of [`WORD_BYTES`] they are too few for libtorch to share the copying among threads, which costs more
/// than it brings.
const CHUNK_BYTES: u64 = 128 << 10;
/// Bytes of an `Int64`.
const WORD_BYTES: u64 = 8;
/// DEFLATE makes nothing smaller than this fraction.
const DEFLATE_RATIO_MAX: u64 = 1032;

/// How the bytes of tensors come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// By views of a private map of the file, which nobody may cut meanwhile.
    Mapped,
    /// By reading into memory of the tensor's own.
    Read,
}

/// An open file.
#[derive(Debug)]
pub(super) struct StoredFile {
    /// Name in the repository: what errors call the file.
    pub(super) name: String,
    /// Length when it was opened.
    pub(super) n_bytes: u64,
    path: PathBuf,
    file: File,
    version: Version,
    /// All bytes, `[n_bytes]` of `Uint8`.
    map: Option<Tensor>,
}

/// What changes when somebody writes to a file.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    n_bytes: u64,
    modified: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Version { n_bytes: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl StoredFile {
    pub(super) fn open(name: &str, path: &Path, access: Access) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(ErrorKind::InvalidInput.into()));
        }
        let version = Version::of(&metadata);
        let n_bytes = version.n_bytes;
        let map = (access == Access::Mapped).then(|| map(&file, n_bytes)).flatten();
        Ok(StoredFile { name: name.to_owned(), n_bytes, path: path.to_owned(), file, version, map })
    }

    /// An error of this file.
    pub(super) fn fail(&self, tensor: Option<&str>, problem: Problem) -> Error {
        Error::checkpoint(&self.name, tensor, problem)
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
    }

    /// Reads so many bytes; a range that the file does not have is an error before memory is taken.
    pub(super) fn read(&self, offset: u64, n_bytes: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(n_bytes).filter(|&end| end <= self.n_bytes);
        if end.is_none() {
            let expected = offset.saturating_add(n_bytes);
            return Err(self.fail(None, Problem::Truncated { expected, actual: self.n_bytes }));
        }
        let mut bytes = vec![0; n_bytes as usize];
        self.read_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.fail(None, Problem::Changed),
            _ => self.io(error),
        })
    }

    /// Calls `use_chunk` with the bytes of a range, piece by piece.
    fn for_chunks(
        &self,
        offset: u64,
        n_bytes: u64,
        mut use_chunk: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES.min(n_bytes) as usize];
        let mut done = 0;
        while done < n_bytes {
            let piece = &mut chunk[..CHUNK_BYTES.min(n_bytes - done) as usize];
            self.read_into(offset + done, piece)?;
            use_chunk(done, piece)?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Whether the file is still what was opened. A mapped file is trusted not to be rewritten, only its
    /// length is looked at: a cache may set the time of a file that it has used.
    fn check_unchanged(&self) -> Result<()> {
        let now = Version::of(&self.file.metadata().map_err(|error| self.io(error))?);
        let same = match self.map {
            Some(_) => now.n_bytes == self.version.n_bytes,
            None => now == self.version,
        };
        if same { Ok(()) } else { Err(self.fail(None, Problem::Changed)) }
    }

    /// Compares the bytes of a storage with the checksum that the file records for them.
    pub(super) fn check_crc32(&self, extent: &Extent) -> Result<(), Error> {
        // The bytes of a compressed extent are checked when they are inflated.
        let (Some(expected), None) = (extent.crc32, extent.inflated) else { return Ok(()) };
        let mut hasher = crc32fast::Hasher::new();
        self.for_chunks(extent.offset, extent.n_bytes, |_, chunk| {
            hasher.update(chunk);
            Ok(())
        })?;
        let actual = hasher.finalize();
        if actual == expected {
            return Ok(());
        }
        Err(self.fail(None, Problem::ChecksumMismatch { expected, actual }))
    }

    /// Returns all bytes of an extent, inflated and checked; `n_bytes_max` bounds them.
    pub(super) fn contents(&self, extent: &Extent, n_bytes_max: u64) -> Result<Vec<u8>> {
        let n_bytes = extent.storage_bytes();
        if n_bytes > n_bytes_max {
            let problem = Problem::TooLarge { actual: n_bytes, limit: n_bytes_max };
            return Err(self.fail(None, problem));
        }
        let stored = self.read(extent.offset, extent.n_bytes)?;
        let bytes = match extent.inflated {
            None => stored,
            Some(n_bytes) => {
                inflate(&stored, n_bytes).map_err(|problem| self.fail(None, problem))?
            }
        };
        match extent.crc32.map(|expected| (expected, crc32fast::hash(&bytes))) {
            Some((expected, actual)) if expected != actual => {
                Err(self.fail(None, Problem::ChecksumMismatch { expected, actual }))
            }
            _ => Ok(bytes),
        }
    }

    /// Makes the tensor of a layout: `[shape]` of its element type, on the CPU.
    pub(super) fn tensor(&self, layout: &Layout, extent: &Extent) -> Result<Tensor> {
        let width = layout.kind.elt_size_in_bytes() as u64;
        if layout.span == 0 {
            return Ok(Tensor::f_zeros(&layout.shape, (layout.kind, Device::Cpu))?);
        }
        self.check_unchanged()?;
        let (first, n_bytes) = (layout.start * width, layout.span * width);
        let bytes = if extent.inflated.is_some() {
            let all = self.contents(extent, u64::MAX)?;
            let part = &all[first as usize..(first + n_bytes) as usize];
            Tensor::f_from_data_size(part, &[n_bytes as i64], Kind::Uint8)?
        } else {
            self.bytes(extent.offset + first, n_bytes, width)?
        };
        let flat = match layout.kind {
            Kind::Uint8 => bytes,
            // Bytes other than 0 and 1 are no values of this type.
            Kind::Bool => bytes.f_ne(0)?,
            kind => bytes.f_view_dtype(kind)?,
        };
        Ok(if layout.is_contiguous() {
            flat.f_view(layout.shape.as_slice())?
        } else {
            flat.f_as_strided(&layout.shape, &layout.strides, None)?
        })
    }

    /// Returns `[n_bytes]` of `Uint8`, aligned for elements of `width` bytes.
    fn bytes(&self, offset: u64, n_bytes: u64, width: u64) -> Result<Tensor> {
        if let Some(map) = &self.map {
            let view = map.f_narrow(0, offset as i64, n_bytes as i64)?;
            // The map begins at a page, so only the offset counts.
            if offset.is_multiple_of(width) {
                return Ok(view);
            }
            let mut copy = Tensor::f_empty_like(&view)?;
            copy.f_copy_(&view)?;
            return Ok(copy);
        }
        let n_words = n_bytes.div_ceil(WORD_BYTES) as i64;
        let words = Tensor::f_empty([n_words], (Kind::Int64, Device::Cpu))?;
        self.for_chunks(offset, n_bytes, |done, chunk| {
            let mut padded = Vec::new();
            let chunk = if chunk.len().is_multiple_of(WORD_BYTES as usize) {
                chunk
            } else {
                // The last piece: a few bytes more than the tensor has, cut off below.
                padded.extend_from_slice(chunk);
                padded.resize(chunk.len().next_multiple_of(WORD_BYTES as usize), 0);
                &padded
            };
            let n_words = (chunk.len() as u64 / WORD_BYTES) as i64;
            let chunk = Tensor::f_from_data_size(chunk, &[n_words], Kind::Int64)?;
            let mut place = words.f_narrow(0, (done / WORD_BYTES) as i64, n_words)?;
            Ok(place.f_copy_(&chunk)?)
        })?;
        let bytes = words.f_view_dtype(Kind::Uint8)?.f_narrow(0, 0, n_bytes as i64)?;
        self.check_unchanged()?;
        Ok(bytes)
    }
}

/// Maps a file, or returns `None` where that is impossible (no `/proc`, a file system without maps);
/// its bytes are read then.
fn map(file: &File, n_bytes: u64) -> Option<Tensor> {
    // By descriptor: the path may have got another file since it was opened.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let n_bytes = i64::try_from(n_bytes).ok().filter(|&n_bytes| n_bytes > 0)?;
    Tensor::f_from_file(&path, false, n_bytes, (Kind::Uint8, Device::Cpu)).ok()
}

/// Inflates to exactly so many bytes.
fn inflate(stored: &[u8], n_bytes: u64) -> Result<Vec<u8>, Problem> {
    let possible = (stored.len() as u64).saturating_mul(DEFLATE_RATIO_MAX);
    if n_bytes > possible {
        return Err(Problem::TooLarge { actual: n_bytes, limit: possible });
    }
    let mut bytes = Vec::new();
    // One byte more than expected, to notice when there are more.
    let mut decoder = DeflateDecoder::new(stored).take(n_bytes.saturating_add(1));
    decoder.read_to_end(&mut bytes).map_err(|error| Problem::NotTorch(error.to_string()))?;
    let actual = bytes.len() as u64;
    if actual == n_bytes {
        return Ok(bytes);
    }
    Err(Problem::Truncated { expected: n_bytes, actual })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::DeflateEncoder};

    use super::*;

    #[test]
    fn inflating_is_exact_and_bounded() {
        let data = vec![7u8; 5000];
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&data).unwrap();
        let stored = encoder.finish().unwrap();
        assert_eq!(inflate(&stored, 5000), Ok(data));
        assert!(matches!(inflate(&stored, 4999), Err(Problem::Truncated { .. })));
        assert!(matches!(inflate(&stored, 5001), Err(Problem::Truncated { .. })));
        assert!(matches!(inflate(&stored, 1 << 40), Err(Problem::TooLarge { .. })));
        assert!(inflate(&stored[..4], 5000).is_err());
    }
}
