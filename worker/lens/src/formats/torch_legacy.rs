//! Reads what `torch.save` wrote before version 1.6 (and still does on request): pickles one after the
//! other (a magic number, the protocol, the machine, the saved value, the keys of its storages), then
//! each storage as its number of elements (8 bytes, little endian) and its bytes.

use std::collections::{BTreeMap, btree_map::Entry};

use tch::Kind;

use super::{
    layout::{Contents, Extent},
    pickle,
    pickle_value::{Id, Node, Pickle},
    state_dict,
    stored_file::StoredFile,
    torch_zip::PICKLE_BYTES_MAX,
};
use crate::error::{Problem, Result};

/// `0x1950a86a20f9469cfc6c`, little endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The only version of the layout that was ever written.
const PROTOCOL: i64 = 1001;
/// How much of the file is read for the pickles: most have far less, and what follows is large.
const WINDOWS: [u64; 2] = [1 << 20, PICKLE_BYTES_MAX];
/// Bytes in front of each storage.
const COUNT_BYTES: u64 = 8;

/// Whether a file that begins like this is a pickle.
pub(super) fn recognise(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..])
}

/// Reads what the file holds.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) with file and tensor.
pub(super) fn read(file: &StoredFile) -> Result<Contents> {
    let mut windows = WINDOWS.into_iter();
    loop {
        let window = windows.next().unwrap_or(PICKLE_BYTES_MAX).min(file.n_bytes);
        let bytes = file.read(0, window)?;
        match Pickles::read(&bytes) {
            Err(Problem::Truncated { .. }) if window < file.n_bytes && windows.len() > 0 => {}
            Err(Problem::Truncated { .. }) if window < file.n_bytes => {
                let problem = Problem::TooLarge { actual: file.n_bytes, limit: window };
                return Err(file.fail(None, problem));
            }
            Err(problem) => return Err(file.fail(None, problem)),
            Ok(pickles) => return pickles.contents(file),
        }
    }
}

/// The pickles in front of the storages.
struct Pickles<'a> {
    value: Pickle<'a>,
    root: Id,
    /// Keys of the storages, in the order in which they lie in the file.
    keys: Vec<&'a str>,
    /// Where the storages begin.
    end: u64,
}

impl<'a> Pickles<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Problem> {
        let wrong = |what: &str| Problem::NotTorch(format!("a pickle without {what}"));
        let mut position = 0;
        let mut next = || {
            let loaded = pickle::load(&bytes[position..]).map_err(|problem| match problem {
                // Positions count from the start of the file.
                Problem::Truncated { expected, .. } => Problem::Truncated {
                    expected: expected.saturating_add(position as u64),
                    actual: bytes.len() as u64,
                },
                other => other,
            });
            let (pickle, root, n_bytes) = loaded?;
            position += n_bytes;
            Ok::<_, Problem>((pickle, root))
        };
        let (magic, root) = next()?;
        if !matches!(magic.get(root), Node::Long(bytes) if *bytes == MAGIC) {
            return Err(wrong("PyTorch's magic number"));
        }
        let (protocol, root) = next()?;
        if protocol.int(root) != Some(PROTOCOL) {
            return Err(wrong("a known protocol version"));
        }
        let (machine, root) = next()?;
        let little = machine.entry(root, "little_endian");
        match little.map(|little| machine.get(little)) {
            Some(Node::Bool(true)) => {}
            Some(Node::Bool(false)) => return Err(Problem::ByteOrder("big".to_owned())),
            _ => return Err(wrong("a byte order")),
        }
        let (value, root) = next()?;
        let (list, keys) = next()?;
        let keys: Option<Vec<&str>> =
            list.sequence(keys).and_then(|keys| keys.iter().map(|&key| list.text(key)).collect());
        let keys = keys.ok_or_else(|| wrong("a list of storages"))?;
        Ok(Pickles { value, root, keys, end: position as u64 })
    }

    fn contents(self, file: &StoredFile) -> Result<Contents> {
        let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
        for storage in &self.value.storages {
            kinds.insert(&storage.key, storage.kind);
        }
        let mut extents = BTreeMap::new();
        let mut position = self.end;
        for key in self.keys {
            let count = file.read(position, COUNT_BYTES)?;
            let count = count.try_into().expect("as many bytes as were asked for");
            let count = u64::from_le_bytes(count);
            let name = key.escape_debug();
            let fail = |text: String| file.fail(None, Problem::NotTorch(text));
            let Some(kind) = kinds.get(key) else {
                return Err(fail(format!("storage `{name}` belongs to no tensor")));
            };
            let offset = position + COUNT_BYTES;
            let n_bytes = count.saturating_mul(kind.elt_size_in_bytes() as u64);
            position = offset.saturating_add(n_bytes);
            if position > file.n_bytes {
                let problem = Problem::Truncated { expected: position, actual: file.n_bytes };
                return Err(file.fail(None, problem));
            }
            let extent = Extent { offset, n_bytes, inflated: None, crc32: None };
            match extents.entry(key) {
                Entry::Vacant(entry) => entry.insert(extent),
                Entry::Occupied(_) => return Err(fail(format!("two storages `{name}`"))),
            };
        }
        let contents = state_dict::contents(&self.value, self.root, |storage| {
            let found = extents.get(storage.key.as_str()).cloned();
            found.ok_or_else(|| {
                let key = storage.key.escape_debug();
                Problem::NotTorch(format!("storage `{key}` is not in the file"))
            })
        });
        contents.map_err(|(tensor, problem)| file.fail(tensor.as_deref(), problem))
    }
}
