//! Named tensors as bytes: safetensors with a hash of everything.
//!
//! The file is plain safetensors (any reader opens it) whose metadata holds, besides the writer's own
//! entries, `sha256`, a JSON object from tensor name to the SHA-256 of its element type, shape and bytes,
//! and `digest`, the SHA-256 of all other metadata entries, `sha256` included. A reader of this module
//! accepts nothing else, so a truncated file or a flipped bit anywhere is an error that names the file
//! and, where it is one tensor that is hurt, the tensor. Bytes are a function of the contents: tensors
//! are ordered by falling element size (for alignment), then by name; metadata by key.

use std::{collections::BTreeMap, io::Read};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Problem, Result};

/// Metadata entry with the hash of each tensor.
const HASHES: &str = "sha256";
/// Metadata entry with the hash of the other entries.
const DIGEST: &str = "digest";
/// Bytes of the length in front of the header.
pub(crate) const PREFIX_BYTES: u64 = 8;
/// Longest header that is read; the format's own limit.
pub(crate) const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The contents of a file of tensors.
#[derive(Debug)]
pub struct TensorFile {
    /// The tensors by name, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// The writer's metadata entries.
    pub metadata: BTreeMap<String, String>,
    /// SHA-256 of each tensor's element type, shape and bytes, in hexadecimal.
    pub hashes: BTreeMap<String, String>,
}

/// Returns the bytes of a file that holds these tensors and metadata entries.
///
/// # Errors
/// An element type without counterpart, a repeated name, or a metadata key that this format uses itself.
pub fn encode_tensors<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for (name, tensor) in tensors {
        let dtype = dtype_of(name, tensor.kind())?;
        parts.push(Part { name, dtype, shape: tensor.size(), data: data_of(tensor)? });
    }
    parts.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then(a.name.cmp(b.name)));
    let header = header(&parts, metadata)?;
    let n_bytes = parts.iter().map(|part| part.data.len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(PREFIX_BYTES as usize + header.len() + n_bytes);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    for part in parts {
        bytes.extend(part.data);
    }
    Ok(bytes)
}

/// Reads what [`encode_tensors`] wrote and verifies it; `file` is what errors call it.
///
/// # Errors
/// [`Error::Checkpoint`] naming the file, the tensor where one is damaged, and the damage.
pub fn decode_tensors(file: &str, bytes: &[u8]) -> Result<TensorFile> {
    read_tensors(file, bytes)
}

/// Reads the same from a stream, holding no more than one tensor's bytes beside the tensors.
///
/// # Errors
/// As [`decode_tensors`]; a failure to read is [`Error::Checkpoint`] too, with the system's words.
pub fn read_tensors(file: &str, mut source: impl Read) -> Result<TensorFile> {
    let fail = |tensor: Option<&str>, problem| Error::checkpoint(file, tensor, problem);
    let header = read_header(&mut source).map_err(|problem| fail(None, problem))?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| fail(None, Problem::NotSafetensors(error.to_string())))?;
    let (metadata, expected) = verify_metadata(&header).map_err(|problem| fail(None, problem))?;
    let mut contents = TensorFile { tensors: BTreeMap::new(), metadata, hashes: BTreeMap::new() };
    for name in header.offset_keys() {
        let info = header.info(&name).expect("the header lists its own names");
        let problem = |problem| fail(Some(&name), problem);
        let n_bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
        let data = read_exactly(&mut source, n_bytes).map_err(problem)?;
        let hash = hash_of(info.dtype, &info.shape, &data);
        match expected.get(&name) {
            None => return Err(problem(Problem::HashMissing)),
            Some(expected) if *expected != hash => {
                let expected = expected.clone();
                return Err(problem(Problem::HashMismatch { expected, actual: hash }));
            }
            Some(_) => {}
        }
        let tensor = tensor_of(info, &data).map_err(problem)?;
        contents.hashes.insert(name.clone(), hash);
        contents.tensors.insert(name, tensor);
    }
    if let Some(name) = expected.keys().find(|name| !contents.tensors.contains_key(*name)) {
        return Err(fail(Some(name), Problem::HashMissing));
    }
    match source.read(&mut [0]) {
        Ok(0) => Ok(contents),
        Ok(_) => Err(fail(None, Problem::TrailingBytes)),
        Err(error) => Err(fail(None, Problem::NotSafetensors(error.to_string()))),
    }
}

/// Reads the metadata of any safetensors file, unverified; `None` when it has none.
///
/// # Errors
/// [`Error::Checkpoint`] when the file does not begin with a header.
pub(crate) fn read_metadata(
    file: &str,
    mut source: impl Read,
) -> Result<Option<BTreeMap<String, String>>> {
    let fail = |problem| Error::checkpoint(file, None, problem);
    let header = read_header(&mut source).map_err(fail)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| fail(Problem::NotSafetensors(error.to_string())))?;
    Ok(header.metadata().as_ref().map(|entries| entries.iter().map(clone_pair).collect()))
}

/// Returns the SHA-256, in hexadecimal, of a tensor's element type, shape and bytes.
///
/// # Errors
/// An element type that cannot be written.
pub fn tensor_hash(name: &str, tensor: &Tensor) -> Result<String> {
    let dtype = dtype_of(name, tensor.kind())?;
    Ok(hash_of(dtype, &tensor.size(), &data_of(tensor)?))
}

/// Returns the SHA-256, in hexadecimal, of named hashes in name order: the identity of a set of tensors.
pub fn combined_hash<'a>(hashes: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let sorted: BTreeMap<&str, &str> = hashes.into_iter().collect();
    let mut hasher = Sha256::new();
    for (name, hash) in sorted {
        hasher.update(name);
        hasher.update([0]);
        hasher.update(hash);
        hasher.update([0]);
    }
    hex(hasher)
}

struct Part<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: Vec<i64>,
    data: Vec<u8>,
}

/// Writes the header, padded with blanks so that the data is aligned.
fn header(parts: &[Part<'_>], metadata: &BTreeMap<String, String>) -> Result<String> {
    let mut hashes = BTreeMap::new();
    for part in parts {
        let hash = hash_of(part.dtype, &part.shape, &part.data);
        if hashes.insert(part.name, hash).is_some() {
            return Err(Error::Unsupported(format!("two tensors named `{}`", part.name)));
        }
    }
    let mut entries = metadata.clone();
    for reserved in [HASHES, DIGEST] {
        if entries.contains_key(reserved) {
            return Err(Error::Unsupported(format!("metadata key `{reserved}` is reserved")));
        }
    }
    entries.insert(HASHES.to_owned(), json(&hashes));
    entries.insert(DIGEST.to_owned(), digest(&entries));
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), serde_json::json!(entries));
    let mut start = 0;
    for part in parts {
        let end = start + part.data.len();
        let info = serde_json::json!({
            "dtype": part.dtype, "shape": part.shape, "data_offsets": [start, end],
        });
        header.insert(part.name.to_owned(), info);
        start = end;
    }
    let mut header = json(&header);
    let padding = header.len().next_multiple_of(PREFIX_BYTES as usize) - header.len();
    header.extend(std::iter::repeat_n(' ', padding));
    Ok(header)
}

fn read_header(source: &mut impl Read) -> Result<Vec<u8>, Problem> {
    let prefix = read_exactly(source, PREFIX_BYTES)?;
    let prefix = prefix.try_into().expect("as many bytes as were asked for");
    let n_bytes = u64::from_le_bytes(prefix);
    if n_bytes > HEADER_BYTES_MAX {
        return Err(Problem::NotSafetensors(format!(
            "header of {n_bytes} bytes, at most {HEADER_BYTES_MAX} are allowed"
        )));
    }
    read_exactly(source, n_bytes)
}

/// Reads so many bytes. Memory grows with what arrives, so a lying length cannot exhaust it.
fn read_exactly(source: &mut impl Read, n_bytes: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    source
        .take(n_bytes)
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::NotSafetensors(error.to_string()))?;
    let actual = bytes.len() as u64;
    if actual < n_bytes {
        return Err(Problem::Truncated { expected: n_bytes, actual });
    }
    Ok(bytes)
}

type Entries = BTreeMap<String, String>;

/// Splits verified metadata into the writer's entries and the hash of each tensor.
fn verify_metadata(header: &Metadata) -> Result<(Entries, Entries), Problem> {
    let missing = |key: &str| Problem::Metadata(format!("no entry `{key}`"));
    let mut entries: Entries = header.metadata().iter().flatten().map(clone_pair).collect();
    let expected = entries.remove(DIGEST).ok_or_else(|| missing(DIGEST))?;
    let actual = digest(&entries);
    if actual != expected {
        return Err(Problem::HashMismatch { expected, actual });
    }
    let hashes = entries.remove(HASHES).ok_or_else(|| missing(HASHES))?;
    let hashes = serde_json::from_str(&hashes)
        .map_err(|error| Problem::Metadata(format!("entry `{HASHES}`: {error}")))?;
    Ok((entries, hashes))
}

fn clone_pair((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

fn digest(entries: &Entries) -> String {
    combined_hash(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

fn hash_of<S: ToString>(dtype: Dtype, shape: &[S], data: &[u8]) -> String {
    let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let mut hasher = Sha256::new();
    hasher.update(format!("{dtype} [{}]\n", shape.join(",")));
    hasher.update(data);
    hex(hasher)
}

fn hex(hasher: Sha256) -> String {
    format!("{:x}", hasher.finalize())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("strings and integers always have a JSON form")
}

/// Element types of libtorch and of the file format. (tch's own table is for another version of the
/// safetensors crate.)
const ELEMENT_TYPES: [(Kind, Dtype); 10] = [
    (Kind::Double, Dtype::F64),
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

/// The element type that the file format calls so.
pub(crate) fn kind_named(dtype: &str) -> Option<Kind> {
    let found = ELEMENT_TYPES.iter().find(|pair| pair.1.to_string() == dtype);
    found.map(|pair| pair.0)
}

fn dtype_of(name: &str, kind: Kind) -> Result<Dtype> {
    let found = ELEMENT_TYPES.iter().find(|pair| pair.0 == kind);
    found.map(|pair| pair.1).ok_or_else(|| Error::element_type(name, kind))
}

fn data_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let mut data = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut data, tensor.numel())?;
    Ok(data)
}

fn tensor_of(info: &TensorInfo, data: &[u8]) -> Result<Tensor, Problem> {
    let found = ELEMENT_TYPES.iter().find(|pair| pair.1 == info.dtype);
    let kind = found.ok_or_else(|| Problem::ElementType(info.dtype.to_string()))?.0;
    let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
    Tensor::f_from_data_size(data, &shape, kind)
        .map_err(|error| Problem::NotSafetensors(error.to_string()))
}
