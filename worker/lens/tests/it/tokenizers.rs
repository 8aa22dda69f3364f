//! Tokenizers against the Python package, in both layouts of files, and damaged.
//!
//! `fixtures/make_tokenizers.py` wrote the files and the expected ids.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;
use sweep_lens::{Class, Error, tokenizer::Tokenizer};

#[derive(Deserialize)]
struct Expected {
    gpt2: Family,
    neox: Family,
}

#[derive(Deserialize)]
struct Family {
    vocab_size: usize,
    texts: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    text: String,
    ids: Vec<i64>,
    decoded: String,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn files(name: &str) -> BTreeMap<String, PathBuf> {
    let folder = fs::read_dir(fixtures().join("tokenizers").join(name)).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let in_repository = |path: &PathBuf| format!("x/{}", path.file_name().unwrap().display());
    paths.map(|path| (in_repository(&path), path)).collect()
}

pub(crate) fn contents(name: &str) -> BTreeMap<String, Vec<u8>> {
    let files = files(name).into_iter();
    files.map(|(name, path)| (name[2..].to_owned(), fs::read(path).unwrap())).collect()
}

#[test]
fn ids_are_those_of_the_reference() {
    let expected = fs::read_to_string(fixtures().join("tokenizers.json")).unwrap();
    let Expected { gpt2, neox } = serde_json::from_str(&expected).unwrap();
    for (name, family) in [("gpt2", gpt2), ("neox", neox)] {
        let tokenizer = Tokenizer::open(&files(name)).unwrap();
        assert_eq!(tokenizer.vocab_size(), family.vocab_size);
        let bos = tokenizer.bos_id().unwrap();
        assert_eq!(
            tokenizer.token_str(bos).unwrap(),
            ["<|endoftext|>", "<|BOS|>"][usize::from(name == "neox")]
        );
        assert!(family.texts.len() > 15);
        for Sample { text, ids, decoded } in family.texts {
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{name} {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{name} {text:?}");
            let with_bos = [vec![bos], ids].concat();
            assert_eq!(tokenizer.encode(&text, true).unwrap(), with_bos, "{name} {text:?}");
        }
        let the = tokenizer.id(" the").unwrap();
        assert_eq!(tokenizer.token_str(the).unwrap(), " the");
        assert_eq!(tokenizer.encode(" the", false).unwrap(), [the]);
        assert_eq!(tokenizer.id("When Mary and John"), None);
        assert_eq!(tokenizer.id(""), None);
        assert_eq!(tokenizer.token_str(family.vocab_size as i64), None);
        assert_eq!(tokenizer.token_str(-1), None);
        let error = tokenizer.decode(&[0, 1 << 40]).unwrap_err();
        assert_eq!(error.class(), Class::Input);
    }
}

#[test]
fn the_hash_names_the_files_that_decide() {
    let hash = |files| Tokenizer::from_bytes(&files).unwrap().hash().to_owned();
    let gpt2 = hash(contents("gpt2"));
    assert_eq!(gpt2.len(), 64);
    assert_eq!(gpt2, Tokenizer::open(&files("gpt2")).unwrap().hash());
    let with = |name: &str, bytes: &[u8]| {
        let mut files = contents("gpt2");
        files.insert(name.to_owned(), bytes.to_vec());
        hash(files)
    };
    assert_eq!(gpt2, with("README.md", b"hello"));
    assert_ne!(gpt2, with("added_tokens.json", b"{}"));
    assert_ne!(gpt2, hash(contents("neox")));
    // tokenizer.json decides alone.
    let mut both = contents("neox");
    let neox = hash(both.clone());
    both.insert("vocab.json".to_owned(), b"{}".to_vec());
    assert_eq!(neox, hash(both));
}

#[test]
fn special_tokens_come_from_every_file_that_lists_them() {
    let with = |edits: &[(&str, &str)], dropped: &[&str]| {
        let mut files = contents("gpt2");
        for name in dropped {
            files.remove(*name);
        }
        for (name, text) in edits {
            files.insert((*name).to_owned(), text.as_bytes().to_vec());
        }
        Tokenizer::from_bytes(&files)
    };
    let maps = ["special_tokens_map.json", "tokenizer_config.json"];
    // Nothing is said: the conventional token.
    let bare = with(&[], &maps).unwrap();
    assert_eq!(bare.token_str(bare.bos_id().unwrap()).unwrap(), "<|endoftext|>");
    assert_eq!(bare.encode("a<|endoftext|>", false).unwrap().len(), 2);
    let n = bare.vocab_size() as i64;
    // New tokens get the next ids, or the ids that a file fixes.
    let added =
        with(&[("added_tokens.json", &format!(r#"{{"<a>":{n},"<b>":{}}}"#, n + 1))], &[]).unwrap();
    assert_eq!((added.id("<a>"), added.id("<b>")), (Some(n), Some(n + 1)));
    let config = format!(
        r#"{{"bos_token":{{"content":"<s>"}},"add_prefix_space":true,
            "added_tokens_decoder":{{"{n}":{{"content":"<s>","special":true,"rstrip":true}}}}}}"#
    );
    let configured = with(&[("tokenizer_config.json", &config)], &[]).unwrap();
    assert_eq!(configured.bos_id(), Some(n));
    assert_eq!(configured.encode("Mary", false).unwrap(), bare.encode(" Mary", false).unwrap());
    assert_eq!(
        configured.encode("<s>   a", false).unwrap(),
        [vec![n], bare.encode(" a", false).unwrap()].concat()
    );
    for (edits, dropped, expected) in [
        (vec![("added_tokens.json", r#"{"<a>":9999}"#.to_owned())], vec![], "expected"),
        (
            vec![("special_tokens_map.json", r#"{"bos_token":3}"#.to_owned())],
            vec![],
            "special_tokens_map",
        ),
        (
            vec![("vocab.json", r#"{"a":0,"b":0}"#.to_owned())],
            vec![],
            "file `vocab.json`: 2 tokens with 1 ids",
        ),
        (vec![("vocab.json", r#"{"a":0,"b":2}"#.to_owned())], vec![], "file `vocab.json`"),
        (vec![("vocab.json", "[".to_owned())], vec![], "file `vocab.json`"),
        (vec![("merges.txt", "#version: 0.2\na bc d\n".to_owned())], vec![], "line 2"),
        (vec![("merges.txt", "ab\n".to_owned())], vec![], "line 1"),
        (vec![], vec!["merges.txt"], "neither"),
    ] {
        let edits: Vec<(&str, &str)> =
            edits.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let error = with(&edits, &dropped).unwrap_err();
        assert!(error.to_string().contains(expected), "{edits:?}: {error}");
        assert_eq!(error.class(), Class::Input);
    }
    // A declared token that no file has: transformers would add a row that the model does not have.
    let mut neox = contents("neox");
    neox.insert("tokenizer_config.json".to_owned(), br#"{"bos_token":"<none>"}"#.to_vec());
    assert!(matches!(Tokenizer::from_bytes(&neox), Err(Error::Tokenizer(_))));
    neox.insert("tokenizer.json".to_owned(), b"{}".to_vec());
    assert!(matches!(Tokenizer::from_bytes(&neox), Err(Error::Tokenizer(_))));
}

#[test]
fn without_a_token_for_the_beginning_none_can_be_asked_for() {
    let vocab = r#"{"a":0,"b":1,"ab":2}"#;
    let files = [("vocab.json", vocab), ("merges.txt", "a b\n")];
    let files = files.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
    let tokenizer = Tokenizer::from_bytes(&files.into()).unwrap();
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenizer.encode("aba", false).unwrap(), [2, 0]);
    let error = tokenizer.encode("ab", true).unwrap_err();
    assert!(error.to_string().contains("no beginning-of-sequence token"), "{error}");
}
