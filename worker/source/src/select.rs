//! Which files make up one checkpoint. Main function: [`choose`].
//!
//! Weights: `model.safetensors`, or its index and shards, else `pytorch_model.bin`, or its index and
//! shards, else the one `.pth`. Beside them: configuration, tokenizer, and a small trainer state.
//! Nothing else is ever taken: optimizer states are large and `training_args.bin` is a program.
//! Pure: names in, names out; the index is read by the caller.

use std::collections::BTreeSet;

/// The name of the Hugging Face trainer's own state.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// A trainer's log beyond this is not worth its transfer.
pub const TRAINER_STATE_BYTES_MAX: u64 = 8 << 20;

/// Index files are lists of names; larger ones are something else.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Names of weights, as they are said to people.
pub const WEIGHTS: &str =
    "model.safetensors or pytorch_model.bin, whole or with its .index.json, or one .pth file";

/// Formats in order of preference: the whole file, else the index.
const FORMATS: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// Small files beside the weights.
const TOKENIZER_WHOLE: &str = "tokenizer.json";
const TOKENIZER_PARTS: [&str; 2] = ["vocab.json", "merges.txt"];
const BESIDE: [&str; 3] = ["config.json", "tokenizer_config.json", "special_tokens_map.json"];

/// The weights of one checkpoint, by name within its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// One file.
    Whole(String),
    /// An index that names the shards.
    Index(String),
}

/// What the names of pickles begin with that trainers leave beside a checkpoint (`rng_state_3.pth` is the
/// random state of the fourth process, not step 3).
const OF_TRAINERS: [&str; 5] = ["optimizer", "scheduler", "scaler", "rng_state", "training_args"];

/// Whether a file of this name is a PyTorch pickle of the kind that may hold a checkpoint alone.
pub fn is_pickle(name: &str) -> bool {
    let of_trainer = OF_TRAINERS.iter().any(|prefix| name.starts_with(prefix));
    name.strip_suffix(".pth").is_some_and(|stem| !stem.is_empty() && !of_trainer)
}

/// Whether files of these names hold weights that can be chosen.
pub fn has_weights(names: &[&str]) -> bool {
    choose(names).is_ok()
}

/// The weights among the files of one folder.
///
/// # Errors
/// The problem as text: none, or several `.pth` files none of which is named `…final.pth`.
pub fn choose(names: &[&str]) -> Result<Weights, String> {
    for (whole, index) in FORMATS {
        if names.contains(&whole) {
            return Ok(Weights::Whole(whole.to_owned()));
        }
        if names.contains(&index) {
            return Ok(Weights::Index(index.to_owned()));
        }
    }
    let pickles: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| is_pickle(name) && !name.contains("optimizer"))
        .collect();
    let last: Vec<&str> =
        pickles.iter().copied().filter(|name| name.ends_with("final.pth")).collect();
    match (&pickles[..], &last[..]) {
        ([one], _) | (_, [one]) => Ok(Weights::Whole((*one).to_owned())),
        ([], _) => Err(format!("no weights (expected {WEIGHTS})")),
        _ => Err(format!("several .pth files ({}), none of them alone", pickles.join(", "))),
    }
}

/// The shards that an index file names, in order and without repetitions.
///
/// # Errors
/// The problem as text: no index, no shards, or names that are not plain file names.
pub fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err("it names no shards".to_owned());
    }
    let plain = |name: &String| !name.contains(['/', '\\', '\0']) && !name.starts_with('.');
    match shards.iter().find(|name| name.is_empty() || !plain(name)) {
        Some(name) => Err(format!("`{name}` is no name of a shard")),
        None => Ok(shards.into_iter().collect()),
    }
}

/// Files beside the weights, among those of one folder.
pub fn beside(names: &[&str]) -> Vec<&'static str> {
    let mut chosen: Vec<&str> = BESIDE.into_iter().filter(|name| names.contains(name)).collect();
    if names.contains(&TOKENIZER_WHOLE) {
        chosen.push(TOKENIZER_WHOLE);
    } else if TOKENIZER_PARTS.iter().all(|part| names.contains(part)) {
        chosen.extend(TOKENIZER_PARTS);
    }
    if names.contains(&TRAINER_STATE) {
        chosen.push(TRAINER_STATE);
    }
    chosen
}

/// The files of a tokenizer, among those of one folder; none when its vocabulary is not there.
pub fn tokenizer(names: &[&str]) -> Option<Vec<&'static str>> {
    let mut chosen = beside(names);
    chosen.retain(|name| *name != "config.json" && *name != TRAINER_STATE);
    let has_vocabulary = chosen.contains(&TOKENIZER_WHOLE) || chosen.contains(&TOKENIZER_PARTS[0]);
    has_vocabulary.then_some(chosen)
}

/// The step in a trainer's state.
pub fn global_step(trainer_state: &[u8]) -> Option<u64> {
    let state: serde_json::Value = serde_json::from_slice(trainer_state).ok()?;
    state.get("global_step")?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &str, expected: Result<Weights, &str>) {
        let names: Vec<&str> = names.split_whitespace().collect();
        let found = choose(&names);
        match (found, expected) {
            (Err(problem), Err(words)) => assert!(problem.contains(words), "{problem}"),
            (found, expected) => assert_eq!(found.ok(), expected.ok(), "{names:?}"),
        }
    }

    #[test]
    fn safetensors_come_before_pickles_and_whole_files_before_shards() {
        let whole = |name: &str| Ok(Weights::Whole(name.to_owned()));
        let index = |name: &str| Ok(Weights::Index(name.to_owned()));
        check("pytorch_model.bin model.safetensors", whole("model.safetensors"));
        check(
            "model.safetensors model.safetensors.index.json model-00001-of-00002.safetensors",
            whole("model.safetensors"),
        );
        check(
            "model.safetensors.index.json model-00001-of-00001.safetensors pytorch_model.bin",
            index("model.safetensors.index.json"),
        );
        check("pytorch_model.bin.index.json", index("pytorch_model.bin.index.json"));
        check("training_args.bin optimizer.pt", Err("no weights"));
        check("m_final.pth optimizer_state_dict.pth", whole("m_final.pth"));
        check("m_final.pth m_best.pth", whole("m_final.pth"));
        check("a.pth b.pth", Err("several"));
        check("m.pth rng_state.pth scheduler.pth scaler.pth", whole("m.pth"));
        check("rng_state_0.pth rng_state_1.pth", Err("no weights"));
    }

    #[test]
    fn only_tokenizer_configuration_and_trainer_state_lie_beside() {
        let names = [
            "config.json",
            "vocab.json",
            "merges.txt",
            "tokenizer_config.json",
            "optimizer.pt",
            "special_tokens_map.json",
            "trainer_state.json",
            "training_args.bin",
            "README.md",
        ];
        assert_eq!(
            beside(&names),
            [
                "config.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.json",
                "merges.txt",
                "trainer_state.json"
            ]
        );
        assert_eq!(beside(&["vocab.json", "tokenizer.json"]), ["tokenizer.json"]);
        let own = ["tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"];
        assert_eq!(tokenizer(&names).unwrap(), own);
        assert_eq!(tokenizer(&["config.json", "tokenizer_config.json", "vocab.json"]), None);
        assert_eq!(beside(&["vocab.json"]), [""; 0]);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_no_index_or_one_of_plain_names(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
            name in ".{0,12}",
        ) {
            let _ = shards(&bytes);
            let index = serde_json::json!({ "weight_map": { "w": name } }).to_string();
            if let Ok(names) = shards(index.as_bytes()) {
                proptest::prop_assert!(!names[0].contains('/') && names[0] != ".." && !names[0].is_empty());
            }
        }
    }

    #[test]
    fn an_index_names_its_shards_and_nothing_elsewhere() {
        let index = br#"{"metadata": {}, "weight_map": {"a": "m-2", "b": "m-1", "c": "m-2"}}"#;
        assert_eq!(shards(index).unwrap(), ["m-1", "m-2"]);
        for bad in [
            &b"{}"[..],
            b"x",
            br#"{"weight_map": {}}"#,
            br#"{"weight_map": {"a": "../secret"}}"#,
            br#"{"weight_map": {"a": "/etc/passwd"}}"#,
            br#"{"weight_map": {"a": ""}}"#,
        ] {
            assert!(shards(bad).is_err());
        }
    }
}
