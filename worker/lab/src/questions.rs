//! Questions of a test, one JSON object a line, and what a model thinks of continuations of a text.
//!
//! Main items: [`lines`], which reads them from the sweep file or from a file, and [`Scorer`]. Invariant: what is wrong
//! with a question is said with its line.
//!
//! A continuation's tokens are those of context and continuation together behind as many tokens as the context
//! alone has (as lm-evaluation-harness cuts them), so that a tokenizer may see both sides of the seam.

use serde_json::Value as Json;
use sweep_lens::{Device, Kind, Run, Tensor, Transformer};

use crate::{
    documents::LineReader,
    error::{Error, Result},
    prompts::{bos_in_front, encode},
    subject::Subject,
    value::to_vec,
};

/// Parses every line of `given`, or of the file of this name; says where a line is broken.
pub(crate) fn lines<T>(
    given: &[String],
    file: &str,
    parse: impl Fn(&Json) -> Result<T, String>,
) -> Result<Vec<T>> {
    let read = |line: &str| {
        let json = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
        parse(&json)
    };
    let mut found = Vec::new();
    if file.is_empty() {
        for (number, line) in (1..).zip(given) {
            let wrong = |problem| Error::params("questions", format!("line {number}: {problem}"));
            found.push(read(line).map_err(wrong)?);
        }
    } else {
        let (mut lines, _) = LineReader::open(file)?;
        while let Some(line) = lines.next_line()? {
            if !line.trim().is_empty() {
                found.push(read(&line).map_err(|problem| lines.wrong(&problem))?);
            }
        }
    }
    if found.is_empty() {
        return Err(Error::params("questions or file", "expected a question, found none"));
    }
    Ok(found)
}

/// A part of a question: a text for the model's tokenizer, or token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Words {
    Text(String),
    Tokens(Vec<i64>),
}

impl Words {
    /// From JSON: a text or a list of integers.
    pub(crate) fn of(json: Option<&Json>) -> Option<Self> {
        match json? {
            Json::String(text) => Some(Self::Text(text.clone())),
            Json::Array(ids) => {
                ids.iter().map(Json::as_i64).collect::<Option<_>>().map(Self::Tokens)
            }
            _ => None,
        }
    }

    /// Bytes of a text, tokens of a list.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(ids) => ids.len(),
        }
    }
}

/// A part of a question that has to be there.
pub(crate) fn words(json: &Json, name: &str) -> Result<Words, String> {
    Words::of(json.get(name)).ok_or_else(|| format!("expected a text or token ids as `{name}`"))
}

/// What a model gives a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Score {
    /// Sum of the log-probabilities of its tokens, in nats.
    pub log_prob: f64,
    /// Whether each of them is the most likely one.
    pub is_greedy: bool,
    pub n_tokens: usize,
}

/// Scores continuations.
pub(crate) struct Scorer<'a> {
    subject: Subject<'a>,
    bos: Option<i64>,
}

impl<'a> Scorer<'a> {
    pub(crate) fn new(subject: &Subject<'a>, prepend_bos: Option<bool>) -> Result<Self> {
        let config = subject.model.config();
        if config.d_vocab != config.d_vocab_out {
            return Err(Error::Unsupported(format!(
                "questions need a model that predicts what it reads, this one reads {} tokens and predicts {}",
                config.d_vocab, config.d_vocab_out
            )));
        }
        Ok(Self { subject: *subject, bos: bos_in_front(subject, prepend_bos)? })
    }

    /// Scores of continuations behind their contexts, in order. Rows of about equal length share a pass; `done` hears how many
    /// are done.
    ///
    /// # Errors
    /// A text that the tokenizer cannot read, a continuation without tokens, an empty context where there is no BOS token: before
    /// anything is computed.
    pub(crate) fn score_all<'w>(
        &self,
        pairs: impl IntoIterator<Item = (&'w Words, &'w Words)>,
        mut done: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<Vec<Score>> {
        let rows = pairs.into_iter().map(|(context, continuation)| self.row(context, continuation));
        let rows = rows.collect::<Result<Vec<Row>>>()?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&index| rows[index].ids.len());
        let mut scores = vec![None; rows.len()];
        let mut first = 0;
        while first < order.len() {
            // Rising lengths: the last row of a pass is its longest.
            let fits = |n: &usize| n * rows[order[first + n - 1]].ids.len() <= PASS_TOKENS;
            let n = (1..=order.len() - first).take_while(fits).last().unwrap_or(1);
            let chosen = &order[first..first + n];
            let of_pass: Vec<&Row> = chosen.iter().map(|&index| &rows[index]).collect();
            for (index, score) in chosen.iter().zip(scores_of(self.subject.model, &of_pass)) {
                scores[*index] = Some(score);
            }
            first += n;
            done(first as u64, rows.len() as u64)?;
        }
        Ok(scores.into_iter().flatten().collect())
    }

    /// Tokens of a context with its continuation.
    fn row(&self, context: &Words, continuation: &Words) -> Result<Row> {
        let ids = |text: &str| -> Result<Vec<i64>> {
            if text.is_empty() {
                return Ok(Vec::new());
            }
            Ok(encode(&self.subject, &[text.to_owned()], false)?.pop().unwrap_or_default())
        };
        let (n_context, all) = match (context, continuation) {
            (Words::Text(a), Words::Text(b)) => (ids(a)?.len(), ids(&format!("{a}{b}"))?),
            (Words::Tokens(a), Words::Tokens(b)) => (a.len(), [a.as_slice(), b].concat()),
            _ => {
                let problem =
                    "expected context and continuation both as texts or both as token ids";
                return Err(Error::params("questions", problem));
            }
        };
        let last = self.subject.model.config().d_vocab - 1;
        if let Some(id) = all.iter().find(|id| !(0..=last).contains(*id)) {
            let problem = format!("has token {id}, the vocabulary is 0 to {last}");
            return Err(Error::params("questions", problem));
        }
        let n_context = n_context + usize::from(self.bos.is_some());
        let all: Vec<i64> = self.bos.into_iter().chain(all).collect();
        if n_context == 0 {
            let problem =
                "expected a context of one or more tokens where no BOS token stands in front";
            return Err(Error::params("questions", problem));
        }
        if all.len() <= n_context {
            let problem = format!("{continuation:?} adds no token to its context");
            return Err(Error::params("questions", problem));
        }
        let config = self.subject.model.config();
        // What does not fit is cut off in front, as lm-evaluation-harness does.
        let n_ctx = if config.positional == sweep_lens::Positional::None {
            usize::MAX
        } else {
            config.n_ctx as usize + 1
        };
        let first = all.len().saturating_sub(n_ctx);
        if first >= n_context {
            let problem = format!("{continuation:?} is longer than n_ctx {}", config.n_ctx);
            return Err(Error::params("questions", problem));
        }
        Ok(Row { ids: all[first..].to_vec(), n_context: n_context - first })
    }
}

/// Tokens of one pass, filling included.
const PASS_TOKENS: usize = 2048;

/// A context and its continuation.
struct Row {
    ids: Vec<i64>,
    /// Tokens in front of the continuation.
    n_context: usize,
}

/// Scores of the continuations of a pass. Shorter rows are filled up behind their end, where no token of theirs looks.
fn scores_of(model: &Transformer, rows: &[&Row]) -> Vec<Score> {
    let device = model.weights().iter().next().map_or(Device::Cpu, |(_, first)| first.device());
    let length = rows.iter().map(|row| row.ids.len() - 1).max().unwrap_or(0);
    let mut flat = Vec::with_capacity(rows.len() * length);
    let (mut places, mut targets) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        let inputs = &row.ids[..row.ids.len() - 1];
        flat.extend(inputs.iter().copied().chain(std::iter::repeat(row.ids[0])).take(length));
        places.extend((row.n_context - 1..inputs.len()).map(|at| (index * length + at) as i64));
        targets.extend_from_slice(&row.ids[row.n_context..]);
    }
    let tokens = Tensor::from_slice(&flat).view([rows.len() as i64, length as i64]);
    let run = Run { skip_unembed: true, ..Run::FULL };
    let normalized = model.forward(&tokens.to_device(device), &run, &mut ());
    let places = Tensor::from_slice(&places).to_device(device);
    let read = normalized.flatten(0, 1).index_select(0, &places).unsqueeze(0);
    let logits = model.unembed(&read).unwrap_or(read).squeeze_dim(0);
    let log_probs = logits.log_softmax(-1, Kind::Double); // [token, d_vocab]
    let targets = Tensor::from_slice(&targets).unsqueeze(-1).to_device(device);
    let chosen = to_vec(&log_probs.gather(-1, &targets, false));
    let hits = to_vec(&log_probs.argmax(-1, true).eq_tensor(&targets));
    let mut first = 0;
    let score = |row: &&Row| {
        let of_row = first..first + row.ids.len() - row.n_context;
        first = of_row.end;
        Score {
            log_prob: chosen[of_row.clone()].iter().sum(),
            is_greedy: hits[of_row.clone()].iter().all(|hit| *hit == 1.0),
            n_tokens: of_row.len(),
        }
    };
    rows.iter().map(score).collect()
}
