//! Reads the directory of a zip archive, as far as PyTorch's files use the format.
//!
//! Not the `zip` crate: it reserves memory for as many entries as the end record claims, and it reads
//! entries as streams, where a storage of gigabytes is wanted as a place in the file. Here an entry is
//! an [`Extent`], and everything is checked against the bytes that exist. Supported is what
//! `torch.save` writes (stored entries, any size) and what re-packing tools make of it (DEFLATE).

use std::collections::BTreeMap;

use super::{layout::Extent, stored_file::StoredFile};
use crate::error::{Problem, Result};

const END: [u8; 4] = *b"PK\x05\x06";
const END_BYTES: usize = 22;
const END64: [u8; 4] = *b"PK\x06\x06";
const END64_BYTES: u64 = 56;
const LOCATOR: [u8; 4] = *b"PK\x06\x07";
const LOCATOR_BYTES: usize = 20;
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const CENTRAL_BYTES: usize = 46;
const LOCAL: [u8; 4] = *b"PK\x03\x04";
const LOCAL_BYTES: u64 = 30;
/// Longest comment behind the end record.
const COMMENT_BYTES_MAX: usize = 0xffff;
/// Longest directory that is read: about 700 000 entries.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// The entries of an archive by name.
#[derive(Debug)]
pub(super) struct Archive(BTreeMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    header: u64,
    compressed: u64,
    size: u64,
    crc32: u32,
    deflated: bool,
}

/// Whether a file that begins like this is a zip archive.
pub(super) fn recognise(start: &[u8]) -> bool {
    start.starts_with(&LOCAL)
}

fn bad(text: impl Into<String>) -> Problem {
    Problem::NotTorch(format!("zip archive: {}", text.into()))
}

impl Archive {
    /// Reads the directory of a file.
    ///
    /// # Errors
    /// A directory that is missing, damaged, larger than the file or of a kind that is not supported.
    pub(super) fn read(file: &StoredFile) -> Result<Self> {
        let fail = |problem| file.fail(None, problem);
        let (offset, n_bytes, count) = locate(file)?;
        if n_bytes > DIRECTORY_BYTES_MAX {
            let limit = DIRECTORY_BYTES_MAX;
            return Err(fail(Problem::TooLarge { actual: n_bytes, limit }));
        }
        let directory = file.read(offset, n_bytes)?;
        let mut entries = BTreeMap::new();
        let mut rest = directory.as_slice();
        for _ in 0..count {
            let (name, entry) = central(&mut rest).map_err(fail)?;
            if entries.contains_key(&name) {
                return Err(fail(bad(format!("two entries named `{}`", name.escape_debug()))));
            }
            entries.insert(name, entry);
        }
        Ok(Archive(entries))
    }

    /// The names of all entries, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether any entry has a checksum: `torch.save` can be told to write none, which it does by zeros.
    pub(super) fn has_checksums(&self) -> bool {
        self.0.values().any(|entry| entry.crc32 != 0)
    }

    /// Returns where the bytes of an entry lie; `None` when there is no such entry.
    ///
    /// # Errors
    /// An entry whose own header contradicts the directory or that reaches beyond the file.
    pub(super) fn extent(&self, file: &StoredFile, name: &str) -> Result<Option<Extent>> {
        let Some(entry) = self.0.get(name) else { return Ok(None) };
        let fail = |problem| file.fail(None, problem);
        let header = file.read(entry.header, LOCAL_BYTES)?;
        if header[..4] != LOCAL {
            return Err(fail(bad(format!("no entry where `{name}` should be"))));
        }
        let name_bytes = u64::from(u16_at(&header, 26));
        let extra_bytes = u64::from(u16_at(&header, 28));
        if file.read(entry.header + LOCAL_BYTES, name_bytes)? != name.as_bytes() {
            return Err(fail(bad(format!("another entry where `{name}` should be"))));
        }
        let offset = entry.header + LOCAL_BYTES + name_bytes + extra_bytes;
        let end = offset.checked_add(entry.compressed);
        if end.is_none_or(|end| end > file.n_bytes) {
            let expected = offset.saturating_add(entry.compressed);
            return Err(fail(Problem::Truncated { expected, actual: file.n_bytes }));
        }
        Ok(Some(Extent {
            offset,
            n_bytes: entry.compressed,
            inflated: entry.deflated.then_some(entry.size),
            crc32: self.has_checksums().then_some(entry.crc32),
        }))
    }
}

/// Returns offset, bytes and number of entries of the directory.
fn locate(file: &StoredFile) -> Result<(u64, u64, u64)> {
    let fail = |problem| file.fail(None, problem);
    let tail_bytes = file.n_bytes.min((COMMENT_BYTES_MAX + END_BYTES + LOCATOR_BYTES) as u64);
    let tail_start = file.n_bytes - tail_bytes;
    let tail = file.read(tail_start, tail_bytes)?;
    let is_end = |&at: &usize| {
        tail[at..at + 4] == END
            && at + END_BYTES + usize::from(u16_at(&tail, at + 20)) == tail.len()
    };
    let last = tail.len().checked_sub(END_BYTES);
    let Some(at) = last.and_then(|last| (0..=last).rev().find(is_end)) else {
        return Err(fail(bad("no end record, the file may be cut off")));
    };
    let end = &tail[at..];
    if u16_at(end, 4) != u16_at(end, 6) {
        return Err(fail(bad("spread over several disks")));
    }
    let short = (u32_at(end, 16), u32_at(end, 12), u16_at(end, 10));
    let (offset, n_bytes, count) =
        if short.0 == u32::MAX || short.1 == u32::MAX || short.2 == u16::MAX {
            locate64(file, tail[..at].last_chunk())?
        } else {
            (u64::from(short.0), u64::from(short.1), u64::from(short.2))
        };
    let limit = tail_start + at as u64;
    if offset.checked_add(n_bytes).is_none_or(|end| end > limit) {
        let text = format!("directory of {n_bytes} bytes at {offset}, the file has {limit}");
        return Err(fail(bad(text)));
    }
    if count > n_bytes / CENTRAL_BYTES as u64 {
        return Err(fail(bad(format!("{count} entries in a directory of {n_bytes} bytes"))));
    }
    Ok((offset, n_bytes, count))
}

/// The same from the records for archives above 4 GiB, found by the locator in front of the end record.
fn locate64(file: &StoredFile, locator: Option<&[u8; LOCATOR_BYTES]>) -> Result<(u64, u64, u64)> {
    let fail = |problem| file.fail(None, problem);
    let locator = locator.filter(|bytes| bytes[..4] == LOCATOR);
    let locator = locator.ok_or_else(|| fail(bad("no locator of the 64-bit end record")))?;
    let record = file.read(u64_at(locator, 8), END64_BYTES)?;
    if record[..4] != END64 {
        return Err(fail(bad("no 64-bit end record")));
    }
    Ok((u64_at(&record, 48), u64_at(&record, 40), u64_at(&record, 32)))
}

/// Takes one entry from the front of the directory.
fn central(rest: &mut &[u8]) -> Result<(String, Entry), Problem> {
    let cut = || bad("the directory ends within an entry");
    let (fixed, after) = rest.split_at_checked(CENTRAL_BYTES).ok_or_else(cut)?;
    if fixed[..4] != CENTRAL {
        return Err(bad("no entry where the directory should have one"));
    }
    let lengths = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
    let (name, after) = after.split_at_checked(lengths[0]).ok_or_else(cut)?;
    let (extra, after) = after.split_at_checked(lengths[1]).ok_or_else(cut)?;
    let (_comment, after) = after.split_at_checked(lengths[2]).ok_or_else(cut)?;
    *rest = after;
    let name = String::from_utf8(name.to_vec()).map_err(|_| bad("a name that is no UTF-8"))?;
    let flags = u16_at(fixed, 8);
    let method = u16_at(fixed, 10);
    if flags & 1 != 0 || !matches!(method, 0 | 8) {
        let text =
            format!("entry `{}`: encrypted or compression method {method}", name.escape_debug());
        return Err(bad(text));
    }
    let [compressed, size, header] = wide_fields(fixed, extra)?;
    let deflated = method == 8;
    if !deflated && compressed != size {
        return Err(bad(format!("entry `{}`: {compressed} of {size} bytes", name.escape_debug())));
    }
    let crc32 = u32_at(fixed, 16);
    // An offset that wraps would point to the wrong place; no file is that long.
    if header > u64::MAX / 2 {
        return Err(bad(format!("entry `{}` at {header}", name.escape_debug())));
    }
    Ok((name, Entry { header, compressed, size, crc32, deflated }))
}

/// Returns compressed size, size and offset, from the 64-bit extra field where the short ones are full.
fn wide_fields(fixed: &[u8], mut extra: &[u8]) -> Result<[u64; 3], Problem> {
    /// Tag of the extra field.
    const ZIP64: u16 = 1;
    let short = [20, 24, 42].map(|at| u32_at(fixed, at));
    let mut fields = short.map(u64::from);
    if !short.contains(&u32::MAX) {
        return Ok(fields);
    }
    let missing = || bad("an entry without its 64-bit sizes");
    let mut wide = loop {
        let (head, rest) = extra.split_at_checked(4).ok_or_else(missing)?;
        let (field, rest) =
            rest.split_at_checked(usize::from(u16_at(head, 2))).ok_or_else(missing)?;
        if u16_at(head, 0) == ZIP64 {
            break field;
        }
        extra = rest;
    };
    // In the order size, compressed size, offset; only those that did not fit.
    for index in [1, 0, 2] {
        if short[index] == u32::MAX {
            let (number, rest) = wide.split_at_checked(8).ok_or_else(missing)?;
            fields[index] = u64_at(number, 0);
            wide = rest;
        }
    }
    Ok(fields)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
