//! The form of every stored value: version, checksum, compression, parts.
//!
//! A document is packed into `version ‖ flags ‖ crc32 ‖ raw length ‖ body length ‖ body` and cut
//! into parts of at most [`PART_BYTES`]; the keys of its parts differ in their last two bytes. The
//! length lies in the first part, so that leftovers of a longer predecessor are ignored.
//! Reading never trusts a length, and never panics, whatever the bytes are.

use sweep_proto::id::hex;

use super::{Document, Error, Result};

/// The format of this version.
pub const VERSION: u8 = 1;
/// Largest value given to the back end.
pub const PART_BYTES: usize = 16 << 10;
/// Largest document.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 20;

const HEADER_BYTES: usize = 14;
const FLAG_ZSTD: u8 = 1;
/// Shorter bodies do not get smaller.
const COMPRESS_FROM: usize = 128;
const LEVEL: i32 = 3;

/// Compresses and frames a document.
pub fn pack(raw: &[u8]) -> Vec<u8> {
    let compressed = (raw.len() >= COMPRESS_FROM)
        .then(|| zstd::bulk::compress(raw, LEVEL).ok())
        .flatten()
        .filter(|compressed| compressed.len() < raw.len());
    let flags = if compressed.is_some() { FLAG_ZSTD } else { 0 };
    let body = compressed.as_deref().unwrap_or(raw);
    let mut packed = Vec::with_capacity(HEADER_BYTES + body.len());
    packed.extend([VERSION, flags]);
    packed.extend([0; 4]);
    packed.extend((raw.len() as u32).to_be_bytes());
    packed.extend((body.len() as u32).to_be_bytes());
    packed.extend(body);
    let crc = checksum(&packed);
    packed[2..6].copy_from_slice(&crc.to_be_bytes());
    packed
}

/// The parts of a packed document.
pub fn split(packed: &[u8]) -> impl Iterator<Item = &[u8]> {
    packed.chunks(PART_BYTES)
}

/// The contents of a packed document; `key` is for errors.
///
/// # Errors
/// When the bytes are not what [`pack`] made.
pub fn unpack(key: &[u8], packed: &[u8]) -> Result<Vec<u8>> {
    let damaged = |problem: &str| damaged(key, problem);
    let header = Header::read(key, packed)?;
    let body = &packed[HEADER_BYTES..];
    if body.len() != header.body_len {
        return Err(damaged("its length is wrong"));
    }
    if checksum(packed) != header.crc {
        return Err(damaged("its checksum is wrong"));
    }
    if header.flags & !FLAG_ZSTD != 0 {
        return Err(damaged("it has unknown flags"));
    }
    if header.flags & FLAG_ZSTD == 0 {
        return Ok(body.to_vec());
    }
    let raw = zstd::bulk::decompress(body, header.raw_len);
    let raw = raw.map_err(|_| damaged("it cannot be decompressed"))?;
    if raw.len() == header.raw_len { Ok(raw) } else { Err(damaged("its size is wrong")) }
}

/// Covers everything but the checksum itself.
fn checksum(packed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&packed[..2]);
    hasher.update(&packed[6..]);
    hasher.finalize()
}

pub(super) fn damaged(key: &[u8], problem: &str) -> Error {
    Error::Damaged { key: hex(key), problem: problem.to_owned() }
}

struct Header {
    flags: u8,
    crc: u32,
    raw_len: usize,
    body_len: usize,
}

impl Header {
    fn read(key: &[u8], packed: &[u8]) -> Result<Self> {
        let Some((&[version, flags, ref rest @ ..], _)) =
            packed.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(damaged(key, "it is too short"));
        };
        if version > VERSION {
            return Err(Error::Newer { key: hex(key), found: version, known: VERSION });
        }
        let number =
            |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let (crc, raw_len, body_len) = (number(0), number(4) as usize, number(8) as usize);
        if version == 0 || raw_len > MAX_DOCUMENT_BYTES || body_len > MAX_DOCUMENT_BYTES {
            return Err(damaged(key, "its header makes no sense"));
        }
        Ok(Self { flags, crc, raw_len, body_len })
    }
}

/// Puts the parts of scanned documents together and ends a page between two documents.
pub(super) struct Collector {
    page_bytes: usize,
    bytes: usize,
    done: Vec<Document>,
    current: Option<(Document, usize)>,
    next: Option<Vec<u8>>,
    error: Option<Error>,
}

impl Collector {
    pub(super) fn new(page_bytes: usize) -> Self {
        let (done, current, next, error) = (Vec::new(), None, None, None);
        Self { page_bytes, bytes: 0, done, current, next, error }
    }

    /// Takes one key and value of a scan; returns whether it wants more.
    pub(super) fn feed(&mut self, key: &[u8], value: &[u8]) -> bool {
        match self.take(key, value) {
            Ok(more) => more,
            Err(error) => {
                self.error = Some(error);
                false
            }
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<bool> {
        let Some((base, part)) = key.split_last_chunk::<2>() else {
            return Err(damaged(key, "its key is too short"));
        };
        let part = u16::from_be_bytes(*part);
        if let Some(((current, packed), length)) = &mut self.current
            && current.as_slice() == base
        {
            let is_next = usize::from(part) * PART_BYTES == packed.len();
            if packed.len() < *length && is_next {
                packed.extend_from_slice(value);
                self.bytes += value.len();
            } else if packed.len() < *length {
                return Err(damaged(key, "a part of it is missing"));
            }
            return Ok(true);
        }
        self.close()?;
        if part != 0 {
            // What is left of a longer document that was removed.
            return Ok(true);
        }
        if self.bytes >= self.page_bytes {
            self.next = Some(base.to_vec());
            return Ok(false);
        }
        let header = Header::read(key, value)?;
        self.bytes += value.len();
        self.current = Some(((base.to_vec(), value.to_vec()), HEADER_BYTES + header.body_len));
        Ok(true)
    }

    fn close(&mut self) -> Result<()> {
        if let Some((document, length)) = self.current.take() {
            if document.1.len() < length {
                return Err(damaged(&document.0, "its last part is missing"));
            }
            self.done.push(document);
        }
        Ok(())
    }

    /// The packed documents, and the key of the next one.
    pub(super) fn finish(mut self) -> Result<(Vec<Document>, Option<Vec<u8>>)> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.close()?;
        Ok((self.done, self.next))
    }
}
