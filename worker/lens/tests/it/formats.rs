//! Files that PyTorch and safetensors wrote, in every layout, damaged and hostile ones included.
//!
//! `fixtures/make_formats.py` wrote them and says what is in them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;
use sweep_lens::{
    Class, Device, Error, Kind, Problem, Tensor, checkpoint,
    formats::{TensorFiles, TensorSet, TensorSource, shards_of, weight_file},
};

#[derive(Deserialize)]
struct Listing {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    /// Fixture by name in the repository.
    files: BTreeMap<String, String>,
    #[serde(default)]
    tensors: BTreeMap<String, Expected>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Expected {
    dtype: String,
    shape: Vec<i64>,
    sum: f64,
    sha256: String,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub(crate) fn cases() -> BTreeMap<String, Case> {
    let text = fs::read_to_string(fixtures().join("formats.json")).unwrap();
    serde_json::from_str::<Listing>(&text).unwrap().cases
}

impl Case {
    pub(crate) fn paths(&self) -> BTreeMap<String, PathBuf> {
        let path = |file: &String| fixtures().join("formats").join(file);
        self.files.iter().map(|(name, file)| (name.clone(), path(file))).collect()
    }
}

fn kind(dtype: &str) -> Kind {
    match dtype {
        "F64" => Kind::Double,
        "F32" => Kind::Float,
        "F16" => Kind::Half,
        "BF16" => Kind::BFloat16,
        "I64" => Kind::Int64,
        "I32" => Kind::Int,
        "I16" => Kind::Int16,
        "I8" => Kind::Int8,
        "U8" => Kind::Uint8,
        "BOOL" => Kind::Bool,
        other => panic!("{other}"),
    }
}

fn read_all(files: &TensorFiles) -> Result<(), Error> {
    files.names().iter().try_for_each(|name| files.sha256(name).map(drop))
}

type Open = fn(&BTreeMap<String, PathBuf>) -> Result<TensorFiles, Error>;
const WAYS: [Open; 2] = [TensorFiles::open, TensorFiles::open_unmapped];

#[test]
fn every_layout_gives_the_tensors_that_were_saved() {
    let mut n_cases = 0;
    for (case_name, case) in cases().iter().filter(|case| case.1.error.is_none()) {
        for open in WAYS {
            let files = open(&case.paths()).unwrap_or_else(|error| panic!("{case_name}: {error}"));
            assert_eq!(files.names(), case.tensors.keys().collect::<Vec<_>>(), "{case_name}");
            for (name, expected) in &case.tensors {
                let info = files.info(name).unwrap();
                assert_eq!(info.kind, kind(&expected.dtype), "{case_name} {name}");
                assert_eq!(info.shape, expected.shape, "{case_name} {name}");
                assert!(case.files.contains_key(&info.file));
                let tensor = files.tensor(name).unwrap();
                assert_eq!((tensor.kind(), tensor.size()), (info.kind, info.shape.clone()));
                assert_eq!(tensor.device(), Device::Cpu);
                assert_eq!(files.sha256(name).unwrap(), expected.sha256, "{case_name} {name}");
                let sum = tensor.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
                assert!((sum - expected.sum).abs() <= 1e-9, "{case_name} {name}: {sum}");
            }
        }
        n_cases += 1;
    }
    assert!(n_cases >= 25, "{n_cases}");
}

#[test]
fn damaged_and_hostile_files_are_named_and_never_loaded() {
    let mut n_cases = 0;
    for (case_name, case) in &cases() {
        let Some(expected) = &case.error else { continue };
        for open in WAYS {
            let error = open(&case.paths()).and_then(|files| read_all(&files)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected), "{case_name}: {text}");
            assert!(
                case.files.keys().any(|name| text.contains(&format!("file `{name}`"))),
                "{text}"
            );
            assert_eq!(error.class(), Class::Input, "{case_name}: {text}");
        }
        n_cases += 1;
    }
    assert!(n_cases >= 35, "{n_cases}");
}

fn only(name: &str) -> (BTreeMap<String, PathBuf>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (_, from) = cases()[name].paths().pop_first().unwrap();
    // Content-addressed: the path says nothing about the format.
    let blob = folder.path().join("5f70bf18a086");
    fs::copy(from, &blob).unwrap();
    (BTreeMap::from([("snapshot/model.pth".to_owned(), blob)]), folder)
}

/// A checkpoint is opened on one thread (prefetching) and used on another.
const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<TensorFiles>();
    sendable::<TensorSet>();
};

#[test]
fn tensors_are_private_views_that_outlive_their_file() {
    let (paths, folder) = only("pt-plain");
    let before = fs::read(&paths["snapshot/model.pth"]).unwrap();
    let files = TensorFiles::open(&paths).unwrap();
    let (first, second) = (files.tensor("w").unwrap(), files.tensor("w").unwrap());
    assert_eq!(first.data_ptr(), second.data_ptr());
    drop(files);
    // A write in place is seen by the other views of this map and by nobody else.
    let _same = first.get(0).fill_(9.0);
    assert_eq!(second.double_value(&[0, 2]), 9.0);
    assert_eq!(fs::read(&paths["snapshot/model.pth"]).unwrap(), before);
    let fresh = TensorFiles::open(&paths).unwrap();
    assert_eq!(fresh.tensor("w").unwrap().double_value(&[0, 2]), 2.0);
    drop(folder);
    assert!(!paths["snapshot/model.pth"].exists());
    assert_eq!(fresh.tensor("w").unwrap().sum(Kind::Float).double_value(&[]), 15.0);
    let copied = TensorFiles::open(&paths).unwrap_err();
    assert!(matches!(copied, Error::Io { .. }) && copied.class() == Class::Runtime, "{copied}");
}

#[test]
fn a_file_that_changes_under_a_reader_is_an_error() {
    let (paths, _folder) = only("pt-plain");
    let path = &paths["snapshot/model.pth"];
    let contents = fs::read(path).unwrap();
    let changed =
        |error: Error| matches!(error, Error::Checkpoint { problem: Problem::Changed, .. });
    for open in WAYS {
        fs::write(path, &contents).unwrap();
        let files = open(&paths).unwrap();
        drop(files.tensor("b").unwrap());
        fs::write(path, &contents[..contents.len() / 2]).unwrap();
        assert!(changed(files.tensor("w").unwrap_err()));
    }
    fs::write(path, &contents).unwrap();
    let files = TensorFiles::open_unmapped(&paths).unwrap();
    // Same length, other bytes, and a time that differs however coarse the clock is.
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(changed(files.tensor("w").unwrap_err()));
}

#[test]
fn safetensors_are_preferred_and_ambiguity_is_an_error() {
    let cases = cases();
    let mut paths = cases["pt-ordered"].paths();
    paths.extend(cases["st-f32"].paths());
    let files = TensorFiles::open(&paths).unwrap();
    assert_eq!(files.file_names().collect::<Vec<_>>(), ["model.safetensors"]);
    assert!(files.info("lm_head.weight").is_none());
    assert!(matches!(files.tensor("lm_head.weight"), Err(Error::MissingTensor { .. })));
    let plain = cases["pt-plain"].paths().into_values().next().unwrap();
    let named = |names: [&str; 2]| names.map(|name| (name.to_owned(), plain.clone())).into();
    let error = TensorFiles::open(&named(["a.pth", "b.pth"])).unwrap_err().to_string();
    assert!(error.contains("`a.pth` and `b.pth`"), "{error}");
    assert!(TensorFiles::open(&named(["a.pth", "optimizer.pt"])).is_ok());
    let error = TensorFiles::open(&named(["a.txt", "README.md"])).unwrap_err().to_string();
    assert!(error.contains("no file of weights among"), "{error}");
    assert!(TensorFiles::open(&BTreeMap::new()).is_err());
    assert!(TensorFiles::open(&[("blob".to_owned(), plain)].into()).is_ok());
    // What a downloader asks: which files are needed?
    let sharded = cases["pt-sharded"].paths();
    let index = weight_file(sharded.keys().map(String::as_str)).unwrap().unwrap();
    let shards = shards_of(index, &fs::read(&sharded[index]).unwrap()).unwrap();
    assert_eq!(shards.len(), 2);
    assert!(shards.iter().all(|shard| sharded.contains_key(shard)));
}

#[test]
fn a_set_in_memory_is_a_source_like_files() {
    let case = &cases()["pt-ordered"];
    let files = TensorFiles::open(&case.paths()).unwrap();
    let copy = |name: &&str| ((*name).to_owned(), files.tensor(name).unwrap());
    let tensors: BTreeMap<String, Tensor> = files.names().iter().map(copy).collect();
    let weights = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
    assert_eq!(files.weights_hash().unwrap(), checkpoint::weights_hash(&weights).unwrap());
    let mut set = TensorSet::from(tensors);
    let sources: [&dyn TensorSource; 2] = [&files, &set];
    assert_eq!(sources[0].names(), sources[1].names());
    for name in sources[0].names() {
        let [file, memory] = sources.map(|source| source.info(name).unwrap());
        assert_eq!((file.kind, &file.shape), (memory.kind, &memory.shape));
        assert_eq!(sources[0].tensor(name).unwrap(), sources[1].tensor(name).unwrap());
    }
    assert!(set.remove("ln_f.bias").is_some());
    assert!(matches!(set.tensor("ln_f.bias"), Err(Error::MissingTensor { .. })));
}

/// A pickle that is longer than the part of a legacy file that is looked at first.
#[test]
fn a_long_pickle_in_a_legacy_file_is_read_to_its_end() {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let pickle = |body: &[&[u8]]| [&[0x80, 2], body.concat().as_slice(), b"."].concat();
    let magic = pickle(&[b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"]);
    let machine = pickle(&[b"}", &text("little_endian"), b"\x88s"]);
    let storage = [
        &b"("[..],
        &text("storage"),
        b"ctorch\nShortStorage\n",
        &text("7"),
        &text("cpu"),
        b"K\x03NtQ",
    ];
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &storage.concat()[..],
        b"K\x01K\x02\x85K\x01\x85\x89)tR",
    ];
    let body = [
        b"}(",
        &text("notes")[..],
        &text(&"x".repeat(3 << 20)),
        &text("w"),
        &tensor.concat(),
        b"u",
    ];
    let keys = pickle(&[b"](", &text("7"), b"e"]);
    let data = [&3u64.to_le_bytes()[..], &[5, 0, 6, 0, 7, 0]].concat();
    let contents = [magic, pickle(&[b"M\xe9\x03"]), machine, pickle(&body), keys, data].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    fs::write(&path, &contents).unwrap();
    let paths = BTreeMap::from([("m.bin".to_owned(), path.clone())]);
    let files = TensorFiles::open(&paths).unwrap();
    assert_eq!(files.names(), ["w"]);
    assert_eq!(files.tensor("w").unwrap(), Tensor::from_slice(&[6i16, 7]));
    fs::write(&path, &contents[..2 << 20]).unwrap();
    let error = TensorFiles::open(&paths).unwrap_err();
    assert!(
        matches!(error, Error::Checkpoint { problem: Problem::Truncated { .. }, .. }),
        "{error}"
    );
}
