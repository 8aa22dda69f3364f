//! Arbitrary and mutated files: an error or tensors, never a panic, never much memory.

use std::{collections::BTreeMap, fs};

use proptest::{prelude::*, sample::Index};
use sweep_lens::{
    formats::{TensorFiles, TensorSource, shards_of},
    tokenizer::Tokenizer,
};

use crate::{HEAP, formats::cases, tokenizers};

/// More than any reader needs for files of a few kilobytes, less than one believed length costs.
const HEAP_BYTES_MAX: usize = 4 << 20;

/// Opens a file under a name and asks for everything in it.
fn read(name: &str, contents: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    fs::write(&path, contents).unwrap();
    let files = BTreeMap::from([(name.to_owned(), path)]);
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    for open in [TensorFiles::open, TensorFiles::open_unmapped] {
        let Ok(opened) = open(&files) else { continue };
        for name in opened.names() {
            let Ok(tensor) = opened.tensor(name) else { continue };
            assert_eq!(tensor.size(), opened.info(name).unwrap().shape);
            assert!(tensor.numel() * tensor.kind().elt_size_in_bytes() <= 1 << 28);
        }
    }
    let used = HEAP.peak_usage().saturating_sub(before);
    assert!(used < HEAP_BYTES_MAX, "{used} bytes for a file of {}", contents.len());
}

#[derive(Debug, Clone)]
enum Mutation {
    Set(Index, u8),
    Flip(Index, u8),
    /// A length that lies.
    Number(Index, u64, usize),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let number = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(1 << 62),
        0..2000u64,
        any::<u64>()
    ];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<Index>(), number, width).prop_map(|(at, n, w)| Mutation::Number(at, n, w)),
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), 1..20usize).prop_map(|(at, n)| Mutation::Remove(at, n)),
        (any::<Index>(), 1..200usize).prop_map(|(at, n)| Mutation::Repeat(at, n)),
    ]
}

fn mutated(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let n_bytes = bytes.len();
        match mutation {
            Mutation::Set(at, byte) => bytes[at.index(n_bytes)] = *byte,
            Mutation::Flip(at, bit) => bytes[at.index(n_bytes)] ^= 1 << bit,
            Mutation::Number(at, number, width) => {
                let at = at.index(n_bytes);
                let end = n_bytes.min(at + width);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            Mutation::Cut(at) => bytes.truncate(at.index(n_bytes)),
            Mutation::Insert(at, inserted) => {
                let at = at.index(n_bytes);
                bytes.splice(at..at, inserted.iter().copied());
            }
            Mutation::Remove(at, n) => {
                let at = at.index(n_bytes);
                bytes.drain(at..n_bytes.min(at + n));
            }
            Mutation::Repeat(at, n) => {
                let at = at.index(n_bytes);
                let part = bytes[at..n_bytes.min(at + n)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// The single files among the fixtures, by name in their repository.
fn originals(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let cases = cases().into_iter().filter(|case| case.0.starts_with(prefix));
    let files = cases.filter_map(|(name, case)| {
        let mut paths = case.paths();
        let (file, path) = paths.pop_first()?;
        let small = fs::metadata(&path).unwrap().len() < 8000;
        (paths.is_empty() && small && name != "neel-attn").then(|| (file, fs::read(path).unwrap()))
    });
    let files: Vec<_> = files.collect();
    assert!(files.len() >= 4);
    files
}

fn check_mutated(prefix: &str) {
    let files = originals(prefix);
    let strategy = (any::<Index>(), proptest::collection::vec(mutation(), 1..4));
    proptest!(ProptestConfig::with_cases(1500), |((file, mutations) in strategy)| {
        let (name, bytes) = &files[file.index(files.len())];
        read(name, &mutated(bytes.clone(), &mutations));
    });
}

#[test]
fn mutated_safetensors() {
    check_mutated("st-");
}

#[test]
fn mutated_pickles() {
    check_mutated("pt-");
}

/// Checksums stop most mutations of an archive; here the pickle and the entries are what is mutated.
#[test]
fn mutated_pickles_without_checksums() {
    let contents = fs::read(&cases()["pt-no-checksums"].paths()["m.pth"]).unwrap();
    proptest!(ProptestConfig::with_cases(1500), |(mutations in proptest::collection::vec(mutation(), 1..4))| {
        read("m.pth", &mutated(contents.clone(), &mutations));
    });
}

/// Files of a tokenizer, too: what opens can be used.
#[test]
fn mutated_tokenizers() {
    let families = ["gpt2", "neox"].map(tokenizers::contents);
    let strategy = (0..2usize, any::<Index>(), proptest::collection::vec(mutation(), 1..3));
    proptest!(ProptestConfig::with_cases(300), |((family, file, mutations) in strategy)| {
        let mut files = families[family].clone();
        let at = file.index(files.len());
        let contents = files.values_mut().nth(at).unwrap();
        *contents = mutated(std::mem::take(contents), &mutations);
        if let Ok(tokenizer) = Tokenizer::from_bytes(&files) {
            for text in ["Mary  went 12\u{e9}<|endoftext|>", " the\n\n"] {
                if let Ok(ids) = tokenizer.encode(text, false) {
                    tokenizer.decode(&ids).unwrap();
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn arbitrary_bytes(
        start in proptest::sample::select(vec![
            &b""[..], b"PK\x03\x04", b"\x80\x02", b"\x80\x04\x95", b"\x40\0\0\0\0\0\0\0{",
        ]),
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let contents = [start, &bytes].concat();
        read("model.safetensors", &contents);
        read("pytorch_model.bin", &contents);
    }

    #[test]
    fn arbitrary_headers(
        header in r#"(\{|\[|"|:|,|[0-9]{1,20}|"dtype":"F32"|"shape":\[[0-9, ]{0,30}\]|"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]|\}|\]){0,30}"#,
        data in 0..100usize,
    ) {
        let contents =
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
        read("model.safetensors", &contents);
    }

    #[test]
    fn arbitrary_shapes_and_offsets(
        tensors in proptest::collection::vec(
            ("[a-c]", proptest::sample::select(vec!["F32", "BOOL", "I8", "F64", "F4", "X"]),
             proptest::collection::vec(prop_oneof![0..4u64, any::<u64>()], 0..4), 0..60u64, 0..60u64),
            0..5,
        ),
        data in 0..60usize,
    ) {
        let mut entries = tensors.iter().map(|(name, dtype, shape, begin, end)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        });
        let header = format!("{{{}}}", entries.by_ref().collect::<Vec<_>>().join(","));
        let contents =
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![1; data]].concat();
        read("model.safetensors", &contents);
    }

    #[test]
    fn arbitrary_indices(
        text in r#"\{("metadata":\{\},)?"weight_map":\{("[a-z]":"([a-z./\\]{0,6}|model-1\.bin)",?){0,5}\}\}"#,
        cut in any::<Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        for bytes in [text.as_bytes(), &text.as_bytes()[..cut.index(text.len())], &noise] {
            if let Ok(shards) = shards_of("x.index.json", bytes) {
                prop_assert!(shards.iter().all(|name| !name.contains('/') && name != ".."));
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("blob");
            fs::write(&path, bytes).unwrap();
            let files = [("model.safetensors.index.json".to_owned(), path)];
            prop_assert!(TensorFiles::open(&files.into()).is_err());
        }
        prop_assert!(HEAP.peak_usage().saturating_sub(before) < HEAP_BYTES_MAX);
    }
}
