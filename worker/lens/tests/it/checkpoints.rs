//! Files of tensors: round trips, and damage of every kind at every place.

use std::{collections::BTreeMap, fs};

use serde_json::json;
use sweep_lens::{
    Class, Config, Device, Error, Kind, Problem, Run, Tensor, Transformer, Weights,
    checkpoint::{self, Checkpoint},
    init, tensor_file,
};

use crate::models::tokens;

fn small() -> (Config, Weights) {
    let config = Config { attn_scale: 3f64.sqrt(), ..Config::toy(1, 6, 2, 5, 3) };
    let weights = init::weights(&config, 7, |_| 0.3, Device::Cpu);
    (config, weights)
}

fn encoded() -> Vec<u8> {
    let (config, weights) = small();
    checkpoint::encode(&config, &weights, 1200, &json!({ "recipe": "toy", "seed": 7 })).unwrap()
}

#[test]
fn a_checkpoint_opens_as_it_was_written() {
    let (config, weights) = small();
    let extra = json!({ "recipe": "toy", "seed": 7, "lr": 0.1 + 0.2, "name": "Größe \"\\\n" });
    let bytes = checkpoint::encode(&config, &weights, 1200, &extra).unwrap();
    assert_eq!(bytes, checkpoint::encode(&config, &weights, 1200, &extra).unwrap());
    let folder = std::env::temp_dir().join(format!("sweep-lens-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("step1200.safetensors");
    fs::write(&path, &bytes).unwrap();
    for opened in [checkpoint::decode("memory", &bytes).unwrap(), checkpoint::open(&path).unwrap()]
    {
        let Checkpoint { config: read, weights: tensors, step, extra: said, weights_hash } = opened;
        assert_eq!((&read, step, &said), (&config, 1200, &extra));
        assert_eq!(weights_hash, checkpoint::weights_hash(&weights).unwrap());
        assert_eq!(tensors.names().collect::<Vec<_>>(), weights.names().collect::<Vec<_>>());
        for (name, tensor) in weights.iter() {
            assert_eq!(tensors.get(name).unwrap(), tensor, "{name}");
        }
        let model = Transformer::new(read, tensors).unwrap();
        let logits = model.forward(&tokens(&config, 2, 3), &Run::FULL, &mut ());
        let original = Transformer::new(config.clone(), weights.shallow_clone()).unwrap();
        assert_eq!(logits, original.forward(&tokens(&config, 2, 3), &Run::FULL, &mut ()));
    }
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let error = checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("step1200.safetensors") && error.contains("truncated"), "{error}");
    fs::remove_dir_all(&folder).unwrap();
    let error = checkpoint::open(&path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.class() == Class::Runtime, "{error}");
    // Other readers take it for what it is: plain safetensors.
    let plain = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(plain.len(), weights.len());
    assert_eq!(plain.tensor("embed.W_E").unwrap().shape(), [5, 6]);
}

#[test]
fn identity_of_weights_depends_on_names_types_shapes_and_values() {
    let (_, weights) = small();
    let hash = |weights: &Weights| checkpoint::weights_hash(weights).unwrap();
    let original = hash(&weights);
    assert_eq!(original.len(), 64);
    assert_eq!(original, hash(&weights.copy()));
    let changed = |change: &dyn Fn(&mut Weights)| {
        let mut weights = weights.copy();
        change(&mut weights);
        hash(&weights)
    };
    let w_e = || weights.get("embed.W_E").unwrap().copy();
    let renamed = changed(&|w| drop(w.remove("embed.W_E").map(|t| w.insert("embed.W_F", t))));
    let reshaped = changed(&|w| drop(w.insert("embed.W_E", w_e().view([6, 5]))));
    let widened = changed(&|w| drop(w.insert("embed.W_E", w_e().to_kind(Kind::Double))));
    let moved = changed(&|w| drop(w.insert("embed.W_E", w_e() + 1e-6)));
    // A view with other strides holds the same values.
    let strided = w_e().transpose(0, 1).contiguous().transpose(0, 1);
    assert!(!strided.is_contiguous());
    assert_eq!(original, changed(&|w| drop(w.insert("embed.W_E", strided.shallow_clone()))));
    let all = [&original, &renamed, &reshaped, &widened, &moved];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    // Pinned: the identity of stored results must not change with a new version of this code.
    let constant = Weights::from_iter([
        ("a".to_owned(), Tensor::from_slice(&[1.0f32, 2.0])),
        ("b".to_owned(), Tensor::from_slice(&[3i64]).view([1, 1])),
    ]);
    assert_eq!(hash(&constant), PINNED_HASH);
}

/// `sha256("a\0" + sha256("F32 [2]\n" + bytes) + "\0b\0" + sha256("I64 [1,1]\n" + bytes) + "\0")`,
/// computed with Python's hashlib.
const PINNED_HASH: &str = "45b8dbc8cb6f5c8725edc45413b8d45fad27a990a7d2e95c37570de007d95c86";

#[test]
fn every_element_type_and_shape_round_trips() {
    let values =
        Tensor::from_slice(&[-2.5f64, 0.0, -0.0, 1.0, 3.25, 100.0, f64::NAN, f64::INFINITY]);
    let kinds = [
        Kind::Double,
        Kind::Float,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    let mut tensors = BTreeMap::new();
    for kind in kinds {
        let is_integer = !matches!(kind, Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16);
        let values = if is_integer { values.narrow(0, 3, 3) } else { values.shallow_clone() };
        tensors.insert(format!("{kind:?}"), values.to_kind(kind));
        tensors.insert(format!("{kind:?} empty"), Tensor::zeros([2, 0, 3], (kind, Device::Cpu)));
        tensors.insert(format!("{kind:?} scalar"), Tensor::ones([0; 0], (kind, Device::Cpu)));
    }
    let matrix = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]).transpose(0, 1);
    tensors.insert("strided".to_owned(), matrix);
    let metadata = BTreeMap::from([("note".to_owned(), "ä\"\n".to_owned())]);
    let pairs = || tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let bytes = tensor_file::encode_tensors(pairs(), &metadata).unwrap();
    let read = tensor_file::decode_tensors("all", &bytes).unwrap();
    assert_eq!(read.metadata, metadata);
    assert_eq!(read.tensors.len(), tensors.len());
    for (name, tensor) in &tensors {
        let back = &read.tensors[name];
        assert_eq!((back.kind(), back.size()), (tensor.kind(), tensor.size()), "{name}");
        let hash = tensor_file::tensor_hash(name, tensor).unwrap();
        // Bitwise, so that NaN and the sign of zero count.
        assert_eq!(hash, tensor_file::tensor_hash(name, back).unwrap(), "{name}");
        assert_eq!(hash, read.hashes[name]);
    }
    // Order of writing does not matter, and the data of each tensor is aligned to its element size.
    let reversed: Vec<_> = pairs().rev().collect();
    assert_eq!(bytes, tensor_file::encode_tensors(reversed, &metadata).unwrap());
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    assert_eq!(header % 8, 0);

    let complex = Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu));
    let error = tensor_file::encode_tensors([("z", &complex)], &metadata).unwrap_err().to_string();
    assert!(error.contains("`z`") && error.contains("ComplexFloat"), "{error}");
    let one = Tensor::from(1.0f32);
    let twice = [("a", &one), ("a", &one)];
    assert!(tensor_file::encode_tensors(twice, &metadata).unwrap_err().to_string().contains("`a`"));
    let reserved = BTreeMap::from([("digest".to_owned(), String::new())]);
    assert!(tensor_file::encode_tensors([("a", &one)], &reserved).is_err());
}

/// Where the data of each tensor lies in the file.
fn extents(bytes: &[u8]) -> Vec<(String, std::ops::Range<usize>)> {
    let (header, metadata) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    metadata
        .offset_keys()
        .into_iter()
        .map(|name| {
            let (start, end) = metadata.info(&name).unwrap().data_offsets;
            (name, 8 + header + start..8 + header + end)
        })
        .collect()
}

#[test]
fn truncation_anywhere_is_a_typed_error_that_names_the_cut_tensor() {
    let bytes = encoded();
    let extents = extents(&bytes);
    let data_start = extents[0].1.start;
    for length in (0..data_start).step_by(7).chain(data_start - 1..bytes.len()) {
        let error = checkpoint::decode("cut.safetensors", &bytes[..length]).unwrap_err();
        let Error::Checkpoint { file, tensor, problem } = &error else { panic!("{error}") };
        assert_eq!(file, "cut.safetensors");
        assert!(matches!(problem, Problem::Truncated { .. }), "at {length}: {error}");
        let cut = extents.iter().find(|(_, range)| range.contains(&length));
        let expected = if length < data_start { None } else { cut.map(|(name, _)| name.clone()) };
        assert_eq!(*tensor, expected, "at {length}");
        assert_eq!(error.class(), Class::Input);
    }
    let mut longer = bytes.clone();
    longer.push(0);
    let error = checkpoint::decode("long", &longer).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { problem: Problem::TrailingBytes, .. }), "{error}");
}

#[test]
fn a_flipped_bit_anywhere_is_a_typed_error_that_names_the_hurt_tensor() {
    let bytes = encoded();
    let extents = extents(&bytes);
    let data_start = extents[0].1.start;
    // Every bit of the header and of one byte in three of the data.
    let places = (0..data_start).chain((data_start..bytes.len()).step_by(3));
    for place in places {
        for bit in 0..8 {
            let mut hurt = bytes.clone();
            hurt[place] ^= 1 << bit;
            let Err(error) = checkpoint::decode("hurt", &hurt) else {
                // A blank of the padding may become another blank of JSON.
                assert!(hurt[place].is_ascii_whitespace() && bytes[place] == b' ', "{place}");
                continue;
            };
            let Error::Checkpoint { tensor, problem, .. } = &error else { panic!("{error}") };
            if place >= data_start {
                let (name, _) = extents.iter().find(|(_, range)| range.contains(&place)).unwrap();
                assert_eq!(tensor.as_deref(), Some(name.as_str()), "at {place}.{bit}");
                assert!(matches!(problem, Problem::HashMismatch { .. }), "{error}");
            }
        }
    }
}

#[test]
fn files_of_others_and_lying_headers_are_refused() {
    #[track_caller]
    fn check(bytes: &[u8], message: &str) {
        let error = checkpoint::decode("other", bytes).unwrap_err().to_string();
        assert!(error.starts_with("file `other`") && error.contains(message), "{error}");
    }
    check(b"", "truncated, 0 of 8 bytes");
    check(b"PK\x03\x04 a zip archive", "not a safetensors file: header of");
    check(&[0xff; 64], "not a safetensors file: header of");
    // A length within bounds, but of bytes that are not there.
    check(&[&90_000_000u64.to_le_bytes()[..], b"{}"].concat(), "truncated, 2 of 90000000 bytes");
    let file =
        |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    check(&file("not json"), "not a safetensors file");
    check(&file("{}"), "no entry `digest`");
    let vast = r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,64]}}"#;
    check(&file(vast), "not a safetensors file");
    let tensor = Tensor::from_slice(&[1.0f32]);
    let plain = tensor_file::encode_tensors([("a", &tensor)], &BTreeMap::new()).unwrap();
    check(&plain, "metadata: no entry `format`");
    let future = BTreeMap::from([("format".to_owned(), "sweep-checkpoint/2".to_owned())]);
    let future = tensor_file::encode_tensors([("a", &tensor)], &future).unwrap();
    check(&future, "is `sweep-checkpoint/2`, expected `sweep-checkpoint/1`");
}

#[test]
fn initial_values_are_pinned_and_independent() {
    let draw = |seed, name| init::normal(seed, name, &[2, 2], 0.5, Device::Cpu);
    assert_eq!(draw(1, "a"), draw(1, "a"));
    assert_ne!(draw(1, "a"), draw(2, "a"));
    assert_ne!(draw(1, "a"), draw(1, "b"));
    // Pinned: a recipe's runs must be reproducible with later versions.
    let values = Vec::<f32>::try_from(draw(1, "embed.W_E").flatten(0, -1)).unwrap();
    assert_eq!(values, [0.558_877_94, 2.137_339_6, 0.401_866_53, -0.628_114_5]);
    let many = init::normal(3, "many", &[100_000], 0.5, Device::Cpu);
    assert!(many.mean(Kind::Double).double_value(&[]).abs() < 0.01);
    assert!((many.std(true).double_value(&[]) - 0.5).abs() < 0.01);
    let many = init::uniform(3, "many", &[100_000], 0.5, Device::Cpu);
    assert!(many.abs().max().double_value(&[]) <= 0.5);
    assert!((many.var(true).double_value(&[]) - 0.25 / 3.0).abs() < 0.002);
    let config =
        Config { normalization: sweep_lens::Normalization::Ln, ..Config::toy(1, 6, 2, 5, 3) };
    let weights =
        init::weights(&config, 0, |name| if name == "embed.W_E" { 0.0 } else { 1.0 }, Device::Cpu);
    assert_eq!(weights.get("embed.W_E").unwrap().abs().max().double_value(&[]), 0.0);
    assert_eq!(weights.get("blocks.0.ln1.w").unwrap().min().double_value(&[]), 1.0);
    assert!(weights.get("blocks.0.ln1.b").is_none());
    Transformer::new(config, weights).unwrap();
}
