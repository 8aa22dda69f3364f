//! Where text goes: [`Output`] is the only place that writes to standard output (results) and to
//! standard error (progress, notes, hints, errors).
//!
//! Invariant: standard output carries nothing but the result of the command, in the format that was
//! asked for; every JSON document there has a `schema` field whose version changes when a field
//! changes its meaning (fields are only ever added).

use std::{
    io::{self, BufWriter, IsTerminal, StdoutLock, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::ValueEnum;
use comfy_table::Table;
use owo_colors::{OwoColorize, Style};
use serde_json::Value;

use crate::{
    error::{CommandError, ErrorKind, Result},
    table,
};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and text for people.
    Table,
    /// Versioned JSON documents for scripts.
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Standard output and standard error of one command.
#[derive(Debug, Clone)]
pub struct Output {
    format: Format,
    verbose: bool,
    stdout_color: bool,
    stderr_color: bool,
    has_results: Arc<AtomicBool>,
}

impl Output {
    /// Colours follow `choice`; `no_color` is whether the environment forbids them.
    pub fn new(format: Format, choice: ColorChoice, no_color: bool, verbose: bool) -> Self {
        let color = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !no_color,
        };
        Self {
            format,
            verbose,
            stdout_color: color(io::stdout().is_terminal()),
            stderr_color: color(io::stderr().is_terminal()),
            has_results: Arc::default(),
        }
    }

    /// Whether results are JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether live displays make sense.
    pub fn is_live(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Whether standard error takes colours.
    pub fn stderr_color(&self) -> bool {
        self.stderr_color
    }

    /// Whether any result was written.
    pub fn has_results(&self) -> bool {
        self.has_results.load(Ordering::Relaxed)
    }

    /// One line of result.
    pub fn line(&self, text: &str) -> Result<()> {
        self.has_results.store(true, Ordering::Relaxed);
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()?;
        Ok(())
    }

    /// One JSON document as a result; `fields` is a mapping that gets the schema in front.
    pub fn json(&self, schema: &str, fields: Value) -> Result<()> {
        let document = with_schema(schema, fields);
        self.line(&pretty(&document)?)
    }

    /// One JSON document on a line of its own, for streams of documents.
    pub fn json_line(&self, schema: &str, fields: Value) -> Result<()> {
        self.line(&with_schema(schema, fields).to_string())
    }

    /// A table as a result.
    pub fn table(&self, mut table: Table) -> Result<()> {
        table::finish(&mut table, io::stdout().is_terminal(), self.stdout_color);
        self.line(&table.trim_fmt())
    }

    /// A table as information beside the result.
    pub fn note_table(&self, mut table: Table) {
        table::finish(&mut table, io::stderr().is_terminal(), self.stderr_color);
        self.note(&table.trim_fmt());
    }

    /// Result text that is too long to build in memory.
    pub fn stream(&self) -> ResultStream {
        self.has_results.store(true, Ordering::Relaxed);
        ResultStream { writer: BufWriter::with_capacity(1 << 16, io::stdout().lock()) }
    }

    /// A line beside the result.
    pub fn note(&self, text: &str) {
        to_stderr(text);
    }

    /// A line that is worth showing only with `-v`.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            to_stderr(&self.paint(&text(), Style::new().dimmed()));
        }
    }

    /// What to do next.
    pub fn hint(&self, text: &str) {
        to_stderr(&format!("{} {text}", self.paint("hint:", Style::new().cyan())));
    }

    /// Something is odd, and the command goes on.
    pub fn warn(&self, text: &str) {
        to_stderr(&format!("{} {text}", self.paint("warning:", Style::new().yellow().bold())));
    }

    /// The last words of a command that failed.
    pub fn error(&self, error: &CommandError) {
        if error.kind() == ErrorKind::OutputClosed {
            return;
        }
        if self.is_json() {
            to_stderr(&error.to_json().to_string());
            return;
        }
        let mut text = String::new();
        for problem in error.problems() {
            text.push_str(&problem.to_string());
            text.push_str("\n\n");
        }
        text.push_str(&self.paint("error:", Style::new().red().bold()));
        text.push(' ');
        text.push_str(error.message());
        for cause in error.causes() {
            text.push_str("\n  caused by: ");
            text.push_str(&cause);
        }
        for hint in error.hints() {
            text.push('\n');
            text.push_str(&self.paint("hint:", Style::new().cyan()));
            text.push(' ');
            text.push_str(hint);
        }
        to_stderr(&text);
    }

    /// `text` in a style, where standard error takes colours.
    pub fn paint(&self, text: &str, style: Style) -> String {
        if self.stderr_color { text.style(style).to_string() } else { text.to_owned() }
    }
}

/// Buffered result text; [`finish`](Self::finish) must be called.
pub struct ResultStream {
    writer: BufWriter<StdoutLock<'static>>,
}

impl ResultStream {
    /// Writes what is still buffered.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush()?;
        Ok(())
    }
}

impl Write for ResultStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// `fields` with `schema` as its first field.
pub fn with_schema(schema: &str, fields: Value) -> Value {
    let mut document = serde_json::Map::new();
    document.insert("schema".to_owned(), Value::String(schema.to_owned()));
    if let Value::Object(fields) = fields {
        document.extend(fields);
    }
    Value::Object(document)
}

fn pretty(document: &Value) -> Result<String> {
    serde_json::to_string_pretty(document)
        .map_err(|error| CommandError::unexpected("cannot write JSON").caused_by(error))
}

fn to_stderr(text: &str) {
    // Nobody is left to tell when standard error itself is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}
