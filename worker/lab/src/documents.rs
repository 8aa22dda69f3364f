//! Texts that an experiment reads a batch of rows at a time: token lists and texts of the sweep file, a file of any
//! length, or the inputs that a model's recipe names as telling.
//!
//! Main types: [`Wanted`], what a user asked for, and [`Documents`], which gives [`Batch`]es. A `.jsonl` file has one
//! document per line, `{"text": …}` or `{"tokens": […]}`; any other file is one long text. Documents longer than a row
//! are cut. Invariants: row `r` is the same however it is batched; no more than one batch of a file is in memory; what is
//! wrong with a file is said with its line.

use std::{
    fs::File,
    io::{BufRead, BufReader},
};

use serde_json::Value as Json;
use sweep_lens::{Config, Device, Hooks, Positional, Run, Tensor, Transformer};

use crate::{
    error::{Error, Result},
    experiment::TokenSet,
    prompts::{self, bos_in_front},
    readout::Readout,
    recipes::RECIPES,
    subject::Subject,
    token_rows::bytes_per_row,
};

/// What a user asked for; at most one of the three sources is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub tokens: &'a [Vec<i64>],
    pub text: &'a [String],
    /// Path of a file on the worker; empty for none.
    pub file: &'a str,
    /// Tokens in a row, the BOS token included; `None` for what the context holds, at most [`ROW_LEN`].
    pub row_len: Option<u64>,
    /// `None`: the model's default for texts, no for tokens.
    pub prepend_bos: Option<bool>,
}

/// Longest row unless asked for.
const ROW_LEN: i64 = 1024;
/// A long text is encoded in pieces of about this many bytes.
const PIECE_BYTES: usize = 64 << 10;
/// Activations of a batch stay within this.
const PASS_BYTES: u64 = 256 << 20;

/// Rows of tokens that come a batch at a time.
#[derive(Debug)]
pub(crate) struct Documents {
    source: Source,
    /// Tokens in a row, the BOS token left aside.
    row_len: usize,
    bos: Option<i64>,
    rows_per_batch: usize,
    /// Only the last position of a row means anything.
    pub last_position_only: bool,
}

#[derive(Debug)]
enum Source {
    /// Documents that are in memory already.
    Lists(Vec<Vec<i64>>),
    /// A file with one document per line, or one text.
    File { path: String, is_lines: bool },
}

/// Some rows.
#[derive(Debug)]
pub(crate) struct Batch {
    /// i64 `[batch, pos]`, shorter rows filled up with their last token.
    pub tokens: Tensor,
    /// The rows themselves, a BOS token in front included.
    pub rows: Vec<Vec<i64>>,
    /// Index of the first one.
    pub first_row: u64,
    /// Positions that count, bool `[batch, pos]`: not those behind a row's end, nor a BOS token put in front.
    pub counted: Tensor,
    /// Part of the work that is done with this batch, and all of it.
    pub progress: (u64, u64),
}

impl Documents {
    pub(crate) fn new(subject: &Subject<'_>, wanted: &Wanted<'_>) -> Result<Self> {
        let Wanted { tokens, text, file, row_len, prepend_bos } = *wanted;
        let given = [!tokens.is_empty(), !text.is_empty(), !file.is_empty()];
        if given.iter().filter(|is_given| **is_given).count() > 1 {
            let problem = "expected one of them or none, found several";
            return Err(Error::params("tokens, text or file", problem));
        }
        let config = subject.model.config();
        let is_text = given[1] || given[2];
        let bos = match prepend_bos {
            None if !is_text => None,
            wanted => bos_in_front(subject, wanted)?,
        };
        let row_len = content_len(config, row_len, bos.is_some())?;
        let (source, last_position_only) = if given[0] {
            (Source::Lists(tokens.to_vec()), false)
        } else if given[1] {
            (Source::Lists(prompts::encode(subject, text, false)?), false)
        } else if given[2] {
            let is_lines = file.to_ascii_lowercase().ends_with(".jsonl");
            (Source::File { path: file.to_owned(), is_lines }, false)
        } else {
            let TokenSet { tokens, last_position_only, .. } = probe(subject)?;
            (Source::Lists(rows_of(&tokens)?), last_position_only)
        };
        let pos = (row_len + usize::from(bos.is_some())) as u64;
        let per_row = bytes_per_row(config, pos, 0).max(1);
        let rows_per_batch = (PASS_BYTES / per_row).clamp(1, 64) as usize;
        let documents = Self { source, row_len, bos, rows_per_batch, last_position_only };
        if let Source::Lists(lists) = &documents.source {
            let param = if given[1] { "text" } else { "tokens" };
            for (index, ids) in lists.iter().enumerate() {
                check_ids(ids, config).map_err(|problem| {
                    Error::params(param, format!("document {index} {problem}"))
                })?;
            }
        }
        Ok(documents)
    }

    /// Gives every row, in order. Fails if there is none.
    pub(crate) fn for_each(
        &self,
        subject: &Subject<'_>,
        mut see: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        let mut packer =
            Packer { documents: self, device: subject.device, rows: Vec::new(), seen: 0 };
        match &self.source {
            Source::Lists(lists) => {
                let total = lists.len() as u64;
                for (index, ids) in (1..).zip(lists) {
                    packer.add(ids, (index, total), &mut see)?;
                }
                packer.flush((total, total), &mut see)?;
            }
            Source::File { path, is_lines } => {
                let total = LineReader::open(path)?.1;
                let mut done = 0;
                read_documents(subject, path, *is_lines, |ids, bytes| {
                    done = bytes;
                    packer.add(&ids, (bytes, total), &mut see)
                })?;
                packer.flush((done, total), &mut see)?;
            }
        }
        if packer.seen == 0 {
            let problem = "expected a document of two or more tokens, found none";
            let param = if matches!(self.source, Source::Lists(_)) { "tokens" } else { "file" };
            return Err(Error::params(param, problem));
        }
        Ok(())
    }
}

/// Gathers rows into batches.
struct Packer<'a> {
    documents: &'a Documents,
    device: Device,
    rows: Vec<Vec<i64>>,
    seen: u64,
}

impl Packer<'_> {
    /// Cuts a document; a rest of one token predicts nothing and is dropped.
    fn add(
        &mut self,
        ids: &[i64],
        progress: (u64, u64),
        see: &mut impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        let bos = self.documents.bos;
        for piece in ids.chunks(self.documents.row_len) {
            if piece.len() + usize::from(bos.is_some()) < 2 {
                continue;
            }
            self.rows.push(bos.into_iter().chain(piece.iter().copied()).collect());
            if self.rows.len() == self.documents.rows_per_batch {
                self.flush(progress, see)?;
            }
        }
        Ok(())
    }

    fn flush(
        &mut self,
        progress: (u64, u64),
        see: &mut impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let length = rows.iter().map(Vec::len).max().unwrap_or(0);
        let is_counted = |row: &Vec<i64>, place: usize| {
            let is_inside = place < row.len() && (place > 0 || self.documents.bos.is_none());
            is_inside && (!self.documents.last_position_only || place + 1 == row.len())
        };
        let (mut flat, mut counted) = (Vec::new(), Vec::new());
        for row in &rows {
            let filler = row.last().copied().unwrap_or(0);
            flat.extend(row.iter().copied().chain(std::iter::repeat(filler)).take(length));
            counted.extend((0..length).map(|place| is_counted(row, place)));
        }
        let shape = [rows.len() as i64, length as i64];
        let first_row = self.seen;
        self.seen += rows.len() as u64;
        see(&Batch {
            tokens: Tensor::from_slice(&flat).view(shape).to_device(self.device),
            counted: Tensor::from_slice(&counted).view(shape).to_device(self.device),
            rows,
            first_row,
            progress,
        })
    }
}

impl Batch {
    /// Cross-entropy of every token but the first of each row, in nats; entry `i` is about token `i + 1`.
    ///
    /// # Errors
    /// A next token that the model cannot predict.
    pub(crate) fn losses(&self, model: &Transformer) -> Result<Vec<Vec<f64>>> {
        self.losses_with(model, &mut ())
    }

    /// The same of a pass with hooks.
    pub(crate) fn losses_with(
        &self,
        model: &Transformer,
        hooks: &mut dyn Hooks,
    ) -> Result<Vec<Vec<f64>>> {
        let config = model.config();
        let d_vocab = config.d_vocab_out;
        let mut targets = self.rows.iter().flat_map(|row| row.iter().skip(1));
        if config.d_vocab != d_vocab || targets.any(|&token| token >= d_vocab) {
            return Err(Error::Unsupported(format!(
                "losses need next tokens, and this model reads {} tokens and predicts {d_vocab}",
                config.d_vocab
            )));
        }
        let run = Run { skip_unembed: true, ..Run::FULL };
        let normalized = model.forward(&self.tokens, &run, hooks);
        let readout = Readout { model, wants_logits: false, widths: [d_vocab].into() };
        let losses = readout.read(&normalized, &self.tokens).losses.remove(&d_vocab);
        let losses = losses.expect("the readout gives what is wanted");
        let flat = crate::value::to_vec(&losses);
        let width = losses.size()[1] as usize;
        let rows = self.rows.iter().enumerate();
        Ok(rows.map(|(i, row)| flat[i * width..i * width + row.len() - 1].to_vec()).collect())
    }

    /// A batch of its first rows, at most `n`; none if there is none.
    pub(crate) fn first_rows(&self, n: u64) -> Option<Self> {
        let n = (n as usize).min(self.rows.len());
        let part = |x: &Tensor| x.narrow(0, 0, n as i64);
        (n > 0).then(|| Self {
            tokens: part(&self.tokens),
            rows: self.rows[..n].to_vec(),
            first_row: self.first_row,
            counted: part(&self.counted),
            progress: self.progress,
        })
    }
}

/// Inputs that the recipe of a model names as telling.
pub(crate) fn probe(subject: &Subject<'_>) -> Result<TokenSet> {
    let extra = &subject.checkpoint.extra;
    let (recipe, params) = (extra["recipe"].as_str(), &extra["params"]);
    let recipe = RECIPES.iter().find(|known| Some(known.card().name) == recipe);
    let recipe = recipe.ok_or_else(|| {
        Error::Unsupported(
            "a model that no recipe trained needs `tokens` or `text` to be shown".to_owned(),
        )
    })?;
    recipe.probe(params, subject.device)
}

fn rows_of(tokens: &Tensor) -> Result<Vec<Vec<i64>>> {
    let length = tokens.size()[1] as usize;
    let flat = Vec::<i64>::try_from(tokens.to_device(Device::Cpu).contiguous().view([-1]))
        .map_err(|error| Error::Input(error.to_string()))?;
    Ok(flat.chunks(length).map(<[i64]>::to_vec).collect())
}

/// Tokens of a document in a row.
fn content_len(config: &Config, wanted: Option<u64>, has_bos: bool) -> Result<usize> {
    let is_bounded = config.positional != Positional::None
        || config.architecture == sweep_lens::Architecture::Mlp;
    let n_ctx = if is_bounded { config.n_ctx } else { i64::MAX };
    let row_len = match wanted.map(|wanted| i64::try_from(wanted).unwrap_or(i64::MAX)) {
        Some(wanted) if wanted > n_ctx => {
            return Err(Error::params("row_len", format!("is {wanted}, n_ctx is {n_ctx}")));
        }
        Some(wanted) => wanted,
        None => n_ctx.min(ROW_LEN),
    };
    Ok((row_len - i64::from(has_bos)).max(1) as usize)
}

fn check_ids(ids: &[i64], config: &Config) -> Result<(), String> {
    match ids.iter().find(|id| !(0..config.d_vocab).contains(*id)) {
        None => Ok(()),
        Some(id) => Err(format!("has token {id}, the vocabulary is 0 to {}", config.d_vocab - 1)),
    }
}

/// Lines of a file, with their numbers.
pub(crate) struct LineReader {
    path: String,
    reader: BufReader<File>,
    /// Number of the line that was read last, from 1.
    pub number: u64,
    /// Bytes read so far.
    pub bytes: u64,
}

impl LineReader {
    /// Opens a file; returns its length too.
    pub(crate) fn open(path: &str) -> Result<(Self, u64)> {
        let fail = |error: std::io::Error| {
            Error::params("file", format!("expected a file that can be read, `{path}`: {error}"))
        };
        let file = File::open(path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        if length == 0 {
            return Err(Error::params("file", format!("`{path}` is empty")));
        }
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok((Self { path: path.to_owned(), reader, number: 0, bytes: 0 }, length))
    }

    /// What is wrong with the line that was read last.
    pub(crate) fn wrong(&self, problem: &str) -> Error {
        Error::params("file", format!("line {} of `{}`: {problem}", self.number, self.path))
    }

    /// The next line with its end; nothing behind the last one.
    pub(crate) fn next_line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        self.number += 1;
        let read = self.reader.read_line(&mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.contains('\0') => Err(self.wrong("expected text, found binary data")),
            Ok(count) => {
                self.bytes += count as u64;
                Ok(Some(line))
            }
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(self.wrong("expected UTF-8 text, found binary data"))
            }
            Err(error) => Err(self.wrong(&error.to_string())),
        }
    }
}

/// Reads the documents of a file one after the other, with the bytes read so far.
fn read_documents(
    subject: &Subject<'_>,
    path: &str,
    is_lines: bool,
    mut see: impl FnMut(Vec<i64>, u64) -> Result<()>,
) -> Result<()> {
    let (mut lines, _) = LineReader::open(path)?;
    let config = subject.model.config();
    let encode = |text: &str, lines: &LineReader| {
        let encoded = prompts::encode(subject, &[text.to_owned()], false);
        let mut rows = encoded.map_err(|error| match error {
            Error::Params { problem, .. } => lines.wrong(&problem),
            other => other,
        })?;
        let ids = rows.pop().unwrap_or_default();
        check_ids(&ids, config).map_err(|problem| lines.wrong(&problem))?;
        Ok::<_, Error>(ids)
    };
    let mut text = String::new();
    while let Some(line) = lines.next_line()? {
        if is_lines {
            if line.trim().is_empty() {
                continue;
            }
            let ids = match document(&line).map_err(|problem| lines.wrong(&problem))? {
                Document::Text(text) => encode(&text, &lines)?,
                Document::Tokens(ids) => {
                    check_ids(&ids, config).map_err(|problem| lines.wrong(&problem))?;
                    ids
                }
            };
            see(ids, lines.bytes)?;
            continue;
        }
        text.push_str(&line);
        if text.len() >= PIECE_BYTES {
            see(encode(&text, &lines)?, lines.bytes)?;
            text.clear();
        }
    }
    if text.is_empty() { Ok(()) } else { see(encode(&text, &lines)?, lines.bytes) }
}

/// One line of a file of documents.
enum Document {
    Text(String),
    Tokens(Vec<i64>),
}

fn document(line: &str) -> Result<Document, String> {
    let json: Json = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    match (json.get("text"), json.get("tokens")) {
        (Some(Json::String(text)), None) => Ok(Document::Text(text.clone())),
        (None, Some(Json::Array(ids))) => {
            let ids: Option<Vec<i64>> = ids.iter().map(Json::as_i64).collect();
            ids.map(Document::Tokens).ok_or_else(|| "`tokens` are not all integers".to_owned())
        }
        _ => Err("expected an object with `text` or with `tokens`".to_owned()),
    }
}

/// Adds the parameters of [`Wanted`] to those of an experiment.
macro_rules! document_params {
    ($(#[doc = $doc:literal] $name:ident : $ty:ty = $default:expr $(, min = $min:expr)? $(, max = $max:expr)? $(, choices = $choices:expr)? ;)*) => {
        $crate::params::params! {
            /// What the model is shown, and how it is looked at.
            pub struct Params {
                /// Documents as lists of token ids.
                tokens: Vec<Vec<i64>> = Vec::new(), min = 0.0;
                /// Documents as texts for the model's tokenizer.
                text: Vec<String> = Vec::new();
                /// File on the worker: `.jsonl` with `text` or `tokens` per line, or plain text. Without any of the three, what the recipe names.
                file: String = String::new();
                /// Tokens in a row; longer documents are cut. null: the context, at most 1024.
                row_len: Option<u64> = None, min = 2.0, max = 65536.0;
                /// Whether the BOS token goes in front; null: the model's default for texts, no for tokens.
                prepend_bos: Option<bool> = None;
                $(#[doc = $doc] $name : $ty = $default $(, min = $min)? $(, max = $max)? $(, choices = $choices)? ;)*
            }
        }
        impl Params {
            fn wanted(&self) -> $crate::documents::Wanted<'_> {
                $crate::documents::Wanted {
                    tokens: &self.tokens,
                    text: &self.text,
                    file: &self.file,
                    row_len: self.row_len,
                    prepend_bos: self.prepend_bos,
                }
            }
        }
    };
}
pub(crate) use document_params;
