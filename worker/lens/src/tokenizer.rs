//! Turns text into token ids and back as Hugging Face's tokenizers do.
//!
//! [`Tokenizer`] is read from `tokenizer.json`, or from `vocab.json` and `merges.txt`, the only files that
//! GPT-2 and the Stanford CRFM models publish (byte-level BPE; special tokens from `added_tokens.json`,
//! `special_tokens_map.json` and `tokenizer_config.json` where they are there).
//!
//! # Invariants
//! - Post-processors add nothing: a beginning-of-sequence token is there exactly if the caller asked for
//!   one, because it changes every attention metric. Truncation and padding are off.
//! - [`Tokenizer::hash`] names the files that decide, so equal hashes mean equal ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    panic::catch_unwind,
    path::PathBuf,
};

use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest, Sha256};
use tokenizers::{
    AddedToken,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

use crate::{
    error::{Error, Result},
    tensor_file::combined_hash,
};

const TOKENIZER: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const ADDED: &str = "added_tokens.json";
const SPECIAL: &str = "special_tokens_map.json";
const CONFIG: &str = "tokenizer_config.json";
/// The files that matter; others of a repository are ignored.
pub const FILES: [&str; 6] = [TOKENIZER, VOCAB, MERGES, ADDED, SPECIAL, CONFIG];

/// What models call the token in front of everything when no file says so.
const CONVENTIONAL_BOS: [&str; 4] = ["<|endoftext|>", "<|BOS|>", "<|begin_of_text|>", "<s>"];
/// Longest file that is read; the largest vocabularies in use have 20 MB.
const FILE_BYTES_MAX: u64 = 128 << 20;

/// Text to ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    hash: String,
}

impl Tokenizer {
    /// Reads a tokenizer from files on disk; `files` has local paths by the names in the repository.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Tokenizer`] when files are missing or damaged.
    pub fn open(files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let mut contents = BTreeMap::new();
        for (name, path) in files {
            let io = |source| Error::Io { path: path.clone(), source };
            if let Some(known) = known(name) {
                let file = File::open(path).map_err(io)?;
                let mut bytes = Vec::new();
                file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
                contents.insert(known.to_owned(), bytes);
            }
        }
        Self::from_bytes(&contents)
    }

    /// The same from the files' contents.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when files are missing or damaged.
    pub fn from_bytes(files: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let files: Files<'_> = files
            .iter()
            .filter_map(|(name, bytes)| Some((known(name)?, bytes.as_slice())))
            .collect();
        if let Some((name, _)) = files.iter().find(|file| file.1.len() as u64 > FILE_BYTES_MAX) {
            return Err(fail(name, format!("more than {FILE_BYTES_MAX} bytes")));
        }
        let config: TokenizerConfig = optional(&files, CONFIG)?;
        let special: SpecialTokens = optional(&files, SPECIAL)?;
        let (mut inner, used) = match (files.get(TOKENIZER), files.get(VOCAB), files.get(MERGES)) {
            (Some(bytes), _, _) => (whole(bytes)?, &[TOKENIZER, SPECIAL, CONFIG][..]),
            (None, Some(vocab), Some(merges)) => {
                let inner = byte_level_bpe(vocab, merges, &files, &config, &special)?;
                (inner, &FILES[1..])
            }
            _ => {
                let text = format!("neither `{TOKENIZER}` nor `{VOCAB}` with `{MERGES}`");
                return Err(Error::Tokenizer(text));
            }
        };
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let bos = bos(&inner, &config, &special)?;
        let hash = hash(&files, used);
        Ok(Tokenizer { inner, bos, hash })
    }

    /// Returns the ids of a text. Special tokens that are written out in it (`<|endoftext|>`) become
    /// their one id.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when `prepend_bos` is asked of a tokenizer without such a token, or the text
    /// has a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|error| Error::Tokenizer(error.to_string()))?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id));
        if !prepend_bos {
            return Ok(ids.collect());
        }
        let bos = self.bos_id().ok_or_else(|| {
            Error::Tokenizer("has no beginning-of-sequence token to prepend".to_owned())
        })?;
        Ok([bos].into_iter().chain(ids).collect())
    }

    /// Returns the text of ids, special tokens included.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let known = |&id: &i64| {
            let id = u32::try_from(id).ok().filter(|&id| self.inner.id_to_token(id).is_some());
            id.ok_or_else(|| Error::Tokenizer("id outside the vocabulary".to_owned()))
        };
        let ids: Vec<u32> = ids.iter().map(known).collect::<Result<_>>()?;
        self.inner.decode(&ids, false).map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// Returns the text of one token (` Mary` with its blank); `None` outside the vocabulary.
    ///
    /// A token that is part of a character only has no text of its own: it gives `�`.
    pub fn token_str(&self, id: i64) -> Option<String> {
        self.decode(&[id]).ok()
    }

    /// Returns the id of a text that is exactly one token; `None` when it takes several.
    pub fn id(&self, text: &str) -> Option<i64> {
        match self.encode(text, false).ok()?.as_slice() {
            &[id] => Some(id),
            _ => None,
        }
    }

    /// The token in front of every sequence: what the files say, else the conventional one.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos.map(i64::from)
    }

    /// Number of tokens, added ones included. Models may have more rows (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// SHA-256, in hexadecimal, over the names and contents of the files that decide.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// Reads `tokenizer.json`, in which everything is said.
fn whole(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| fail(TOKENIZER, error))?;
    // The library panics on some files that are JSON but make no sense; nothing of it survives that.
    match catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes)) {
        Ok(read) => read.map_err(|error| fail(TOKENIZER, error)),
        Err(_) => Err(fail(TOKENIZER, "makes no sense to the library that reads it")),
    }
}

type Files<'a> = BTreeMap<&'static str, &'a [u8]>;

/// The known file of this name, whatever folder it is in.
fn known(name: &str) -> Option<&'static str> {
    let name = name.rsplit('/').next().unwrap_or(name);
    FILES.into_iter().find(|file| *file == name)
}

fn fail(file: &str, problem: impl ToString) -> Error {
    Error::Tokenizer(format!("file `{file}`: {}", problem.to_string()))
}

fn optional<'a, T: Deserialize<'a> + Default>(files: &Files<'a>, name: &str) -> Result<T> {
    match files.get(name) {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| fail(name, error)),
        None => Ok(T::default()),
    }
}

/// The parts of `special_tokens_map.json` that decide.
#[derive(Default, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names in the file")]
struct SpecialTokens {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
    #[serde(default)]
    additional_special_tokens: Vec<Token>,
}

impl SpecialTokens {
    fn all(&self) -> impl Iterator<Item = &str> {
        let named = [&self.bos_token, &self.eos_token, &self.unk_token, &self.pad_token];
        named.into_iter().flatten().chain(&self.additional_special_tokens).map(Token::content)
    }
}

/// The parts of `tokenizer_config.json` that decide.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    add_prefix_space: bool,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, TokenSpec>,
    #[serde(flatten)]
    special: SpecialTokens,
}

/// A special token, as text or with its options.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Spec(TokenSpec),
}

impl Token {
    fn content(&self) -> &str {
        match self {
            Token::Text(content) | Token::Spec(TokenSpec { content, .. }) => content,
        }
    }
}

/// A token with its options, as files write it.
#[derive(Clone, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the options that the file format has")]
struct TokenSpec {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl TokenSpec {
    fn special(content: String) -> Self {
        let (lstrip, rstrip, single_word, normalized) = (false, false, false, false);
        TokenSpec { content, lstrip, rstrip, single_word, normalized, special: true }
    }

    fn added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized)
    }
}

/// Builds GPT-2's tokenizer.
fn byte_level_bpe(
    vocab: &[u8],
    merges: &[u8],
    files: &Files<'_>,
    config: &TokenizerConfig,
    special: &SpecialTokens,
) -> Result<tokenizers::Tokenizer> {
    let vocab: BTreeMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|error| fail(VOCAB, error))?;
    check_ids(&vocab)?;
    let merges = merge_rules(merges, &vocab)?;
    let added = added_tokens(&vocab, files, config, special)?;
    let model = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges);
    let model = model.build().map_err(|error| fail(MERGES, error))?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(ByteLevel::new(config.add_prefix_space, true, true)));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    for (id, token) in added {
        let add = if token.special {
            inner.add_special_tokens([token.added()])
        } else {
            inner.add_tokens([token.added()])
        };
        add.map_err(|error| Error::Tokenizer(error.to_string()))?;
        let actual = inner.token_to_id(&token.content);
        if id.is_some() && actual != id {
            let text = format!("token `{}` has id {id:?}, expected {actual:?}", token.content);
            return Err(Error::Tokenizer(text));
        }
    }
    Ok(inner)
}

/// Ids are 0, 1, 2, …; two tokens with one id would be decoded as one of them.
fn check_ids(vocab: &BTreeMap<String, u32>) -> Result<()> {
    let ids: BTreeSet<u32> = vocab.values().copied().collect();
    let last = ids.last().map_or(0, |&id| id as usize + 1);
    if vocab.is_empty() || ids.len() != vocab.len() || last != vocab.len() {
        let text = format!("{} tokens with {} ids up to {last}", vocab.len(), ids.len());
        return Err(fail(VOCAB, text));
    }
    Ok(())
}

/// Reads `merges.txt`: a line with the version, then one pair a line, most important first.
fn merge_rules(merges: &[u8], vocab: &BTreeMap<String, u32>) -> Result<Vec<(String, String)>> {
    let merges = std::str::from_utf8(merges).map_err(|error| fail(MERGES, error))?;
    let mut rules = Vec::new();
    for (index, line) in merges.lines().enumerate() {
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        let wrong = |what: &str| fail(MERGES, format!("line {}: {what}", index + 1));
        let (left, right) = line.split_once(' ').ok_or_else(|| wrong("is no pair"))?;
        let joined = format!("{left}{right}");
        if [left, right, joined.as_str()].iter().any(|token| !vocab.contains_key(*token)) {
            return Err(wrong("merges what the vocabulary does not have"));
        }
        rules.push((left.to_owned(), right.to_owned()));
    }
    Ok(rules)
}

/// The tokens that are recognised as a whole in text, with their ids where a file fixes them.
fn added_tokens(
    vocab: &BTreeMap<String, u32>,
    files: &Files<'_>,
    config: &TokenizerConfig,
    special: &SpecialTokens,
) -> Result<Vec<(Option<u32>, TokenSpec)>> {
    let mut fixed: BTreeMap<u32, TokenSpec> = BTreeMap::new();
    let listed: BTreeMap<String, u32> = optional(files, ADDED)?;
    for (content, id) in listed {
        fixed.insert(id, TokenSpec::special(content));
    }
    for (id, token) in &config.added_tokens_decoder {
        let id = id.parse().map_err(|_| fail(CONFIG, format!("`{id}` is no token id")))?;
        fixed.insert(id, token.clone());
    }
    let mut known: BTreeSet<String> = fixed.values().map(|token| token.content.clone()).collect();
    let mut added: Vec<_> = fixed.into_iter().map(|(id, token)| (Some(id), token)).collect();
    let conventional = CONVENTIONAL_BOS.into_iter().filter(|token| vocab.contains_key(*token));
    for content in config.special.all().chain(special.all()).chain(conventional) {
        if known.insert(content.to_owned()) {
            added.push((None, TokenSpec::special(content.to_owned())));
        }
    }
    Ok(added)
}

/// Finds the beginning-of-sequence token.
fn bos(
    inner: &tokenizers::Tokenizer,
    config: &TokenizerConfig,
    special: &SpecialTokens,
) -> Result<Option<u32>> {
    if let Some(token) = config.special.bos_token.as_ref().or(special.bos_token.as_ref()) {
        let id = inner.token_to_id(token.content());
        return id.map(Some).ok_or_else(|| {
            let content = token.content();
            Error::Tokenizer(format!("bos_token `{content}` is not in the vocabulary"))
        });
    }
    Ok(CONVENTIONAL_BOS.iter().find_map(|token| inner.token_to_id(token)))
}

fn hash(files: &Files<'_>, used: &[&str]) -> String {
    let digest = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    let used = files.iter().filter(|(name, _)| used.contains(name));
    let hashes: Vec<(&str, String)> = used.map(|(name, bytes)| (*name, digest(bytes))).collect();
    combined_hash(hashes.iter().map(|(name, hash)| (*name, hash.as_str())))
}
