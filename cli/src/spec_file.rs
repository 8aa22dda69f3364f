//! Sweep files: YAML (or JSON) text to a [`SweepSpec`], with every problem shown at its line and
//! column. Main type: [`SweepFile`].
//!
//! The text becomes one JSON document plus the place of every key and value; decoding and checking
//! are `sweep_proto`'s, whose problems carry a path into the document. Invariant: the file is read
//! once and bounded in size, depth and alias expansion, whatever it holds.

use std::{collections::HashMap, fs, io::Read, path::Path};

use saphyr::{LoadableYamlNode, MarkedYaml, Marker, Scalar, YamlData};
use serde_json::{Map, Number, Value};
use sweep_proto::{
    pb,
    spec::{Problem, Segment, SweepSpec},
};

use crate::error::{CommandError, FileProblem, Result, file_error};

/// Sweep files are written by hand; something larger is another file by mistake.
const SIZE_MAX_BYTES: u64 = 1 << 20;

/// `- - - …` nests once per two characters; real files nest less than ten deep.
const DEPTH_MAX: usize = 32;

/// Source lines are shown up to this length around the place of a problem.
const EXCERPT_MAX_CHARS: usize = 110;

/// A sweep file, read and parsed, with the place of everything in it.
#[derive(Debug)]
pub struct SweepFile {
    name: String,
    lines: Vec<String>,
    document: Value,
    places: HashMap<Vec<Segment>, Place>,
}

/// Where a key and its value start; 1-based line, 0-based column.
#[derive(Debug, Clone, Copy)]
struct Place {
    key: Option<Span>,
    value: Span,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    line: usize,
    column: usize,
    /// Characters on that line; 0 when the thing goes on over several lines.
    length: usize,
}

impl SweepFile {
    /// Reads a file, `-` for standard input.
    ///
    /// # Errors
    /// When it cannot be read, is too large or is no YAML.
    pub fn read(path: &Path) -> Result<Self> {
        let (name, text) = if path.as_os_str() == "-" {
            let mut text = Vec::new();
            std::io::stdin().lock().take(SIZE_MAX_BYTES + 1).read_to_end(&mut text)?;
            ("<stdin>".to_owned(), text)
        } else {
            let opened = fs::File::open(path);
            let file = opened.map_err(|error| file_error("read", path, error))?;
            let mut text = Vec::new();
            file.take(SIZE_MAX_BYTES + 1)
                .read_to_end(&mut text)
                .map_err(|error| file_error("read", path, error))?;
            (path.display().to_string(), text)
        };
        if text.len() as u64 > SIZE_MAX_BYTES {
            return Err(CommandError::usage(format!(
                "{name} is larger than {} KiB; that is no sweep file",
                SIZE_MAX_BYTES / 1024
            )));
        }
        let text = String::from_utf8(text)
            .map_err(|_| CommandError::usage(format!("{name} is not UTF-8 text")))?;
        Self::parse(name, &text)
    }

    /// Parses the text of a sweep file; `name` is used in messages.
    ///
    /// # Errors
    /// [`CommandError`] with the place of the first thing that is no YAML.
    pub fn parse(name: String, text: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut file = Self {
            name,
            lines: text.lines().map(str::to_owned).collect(),
            document: Value::Null,
            places: HashMap::new(),
        };
        if let Some(line) = file.lines.iter().position(|line| indicators(line) > DEPTH_MAX) {
            let span = Span { line: line + 1, column: 0, length: 0 };
            return Err(file.fail(span, "lists are nested too deeply".to_owned(), None));
        }
        let documents = MarkedYaml::load_from_str(text).map_err(|error| {
            let mut span = point(error.marker());
            let message = format!("invalid YAML: {}", error.info());
            let mut hint = yaml_hint(error.info());
            if let Some(line) = file.tab_near(span.line) {
                span = Span { line, column: 0, length: 1 };
                hint = Some("indent with spaces, YAML does not allow tabs".to_owned());
            }
            let mut problem = file.problem_at(span, message, hint);
            // The scanner notices a slip one line too late as a rule.
            if let Some(before) = problem.line.checked_sub(2).and_then(|n| file.lines.get(n)) {
                let before = excerpt_line(before, problem.line - 1, 0);
                problem.excerpt = format!("{before}\n{}", problem.excerpt);
            }
            CommandError::sweep_file(vec![problem])
        })?;
        let [root] = documents.as_slice() else {
            let message = match documents.len() {
                0 => "the file is empty".to_owned(),
                n => format!("a sweep file holds one document, found {n}"),
            };
            return Err(file.fail(Span { line: 1, column: 0, length: 0 }, message, None));
        };
        let mut reader = Reader { places: HashMap::new(), path: Vec::new() };
        let result = reader.value(root, None);
        file.document = result.map_err(|(span, message)| file.fail(span, message, None))?;
        file.places = reader.places;
        Ok(file)
    }

    /// The part below some keys as a sweep file of its own; places stay those of the whole file.
    #[must_use]
    pub fn within(mut self, keys: &[&str]) -> Self {
        let prefix: Vec<Segment> = keys.iter().map(|key| Segment::Key((*key).to_owned())).collect();
        let below = |(path, place): (Vec<Segment>, Place)| {
            path.strip_prefix(&prefix[..]).map(|rest| (rest.to_vec(), place))
        };
        self.places = self.places.into_iter().filter_map(below).collect();
        for key in keys {
            self.document = self.document[*key].take();
        }
        self
    }

    /// The file as one JSON document.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The name that messages use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Decodes the sweep.
    ///
    /// # Errors
    /// Every problem, with its place.
    pub fn decode(&self) -> Result<SweepSpec> {
        SweepSpec::decode(&self.document).map_err(|problems| self.report(&problems))
    }

    /// Compares the sweep with what workers can run.
    ///
    /// # Errors
    /// Every problem, with its place.
    pub fn check(&self, spec: &SweepSpec, catalog: &pb::Catalog) -> Result<()> {
        spec.check(&self.document, catalog).map_err(|problems| self.report(&problems))
    }

    /// An error that lists problems of this file.
    pub fn report(&self, problems: &[Problem]) -> CommandError {
        let mut located: Vec<FileProblem> = problems.iter().map(|p| self.locate(p)).collect();
        // As one reads: from the top.
        located.sort_by_key(|problem| (problem.line, problem.column));
        CommandError::sweep_file(located)
    }

    fn locate(&self, problem: &Problem) -> FileProblem {
        let place = (0..=problem.path.len())
            .rev()
            .find_map(|n| self.places.get(&problem.path[..n]).map(|place| (n, *place)));
        let span = match place {
            None => Span { line: 1, column: 0, length: 0 },
            Some((found, place)) => match place.key {
                // A block below its key: the key says more than the block's first line.
                Some(key)
                    if found == problem.path.len()
                        && (problem.at_key || key.line != place.value.line) =>
                {
                    key
                }
                _ => place.value,
            },
        };
        self.problem_at(span, problem.message.clone(), problem.hint.clone())
    }

    /// The number of a line indented by a tab: this one, or the one before.
    fn tab_near(&self, line: usize) -> Option<usize> {
        let starts = |n: &usize| {
            let text = n.checked_sub(1).and_then(|index| self.lines.get(index));
            text.is_some_and(|text| text.starts_with('\t'))
        };
        [line, line.saturating_sub(1)].into_iter().find(starts)
    }

    fn fail(&self, span: Span, message: String, hint: Option<String>) -> CommandError {
        CommandError::sweep_file(vec![self.problem_at(span, message, hint)])
    }

    fn problem_at(&self, span: Span, message: String, hint: Option<String>) -> FileProblem {
        // An error at the very end of the text lies after the last line.
        let line = span.line.clamp(1, self.lines.len().max(1));
        let source = self.lines.get(line - 1).map_or("", String::as_str);
        let column = if span.line > line { source.chars().count() } else { span.column };
        FileProblem {
            file: self.name.clone(),
            line,
            column: column + 1,
            message,
            hint,
            excerpt: excerpt(source, line, column, span.length),
        }
    }
}

/// How many `- ` and `? ` a line starts with.
fn indicators(line: &str) -> usize {
    line.split_whitespace().take_while(|word| matches!(*word, "-" | "?")).count()
}

fn point(marker: &Marker) -> Span {
    Span { line: marker.line(), column: marker.col(), length: 1 }
}

/// What is usually behind a scanner's message.
fn yaml_hint(info: &str) -> Option<String> {
    if info.contains("duplicated key") {
        return Some("each key may stand once in a mapping".to_owned());
    }
    let unclosed = ["flow", "',' or", "only valid inside a block"];
    if unclosed.iter().any(|words| info.contains(words)) {
        return Some("is a closing `]` or `}` missing?".to_owned());
    }
    None
}

fn excerpt(source: &str, line: usize, column: usize, length: usize) -> String {
    let from = if column + 20 < EXCERPT_MAX_CHARS { 0 } else { column.saturating_sub(40) };
    let shown = source.chars().count().saturating_sub(from).min(EXCERPT_MAX_CHARS);
    let room = shown.saturating_sub(column - from).max(1);
    let marker = "^".repeat(length.clamp(1, room));
    let indent = " ".repeat(column - from);
    format!("{}\n      | {indent}{marker}", excerpt_line(source, line, from))
}

fn excerpt_line(source: &str, line: usize, from: usize) -> String {
    // A tab is one column for the marker below.
    let chars = source.chars().map(|c| if c == '\t' { ' ' } else { c });
    let shown: String = chars.skip(from).take(EXCERPT_MAX_CHARS).collect();
    format!("{line:>5} | {}", shown.trim_end())
}

/// Turns YAML nodes into JSON and notes where they stand.
struct Reader {
    places: HashMap<Vec<Segment>, Place>,
    path: Vec<Segment>,
}

type Unreadable = (Span, String);

impl Reader {
    fn value(&mut self, node: &MarkedYaml<'_>, key: Option<Span>) -> Result<Value, Unreadable> {
        let span = span_of(node);
        self.places.insert(self.path.clone(), Place { key, value: span });
        match &node.data {
            YamlData::Value(scalar) => scalar_value(scalar, span),
            YamlData::Sequence(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    self.path.push(Segment::Index(index));
                    list.push(self.value(item, None)?);
                    self.path.pop();
                }
                Ok(Value::Array(list))
            }
            YamlData::Mapping(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    let at = span_of(key);
                    let name =
                        key_text(key).ok_or_else(|| (at, "keys must be plain words".to_owned()))?;
                    if map.contains_key(&name) {
                        return Err((at, format!("the key `{name}` stands here twice")));
                    }
                    self.path.push(Segment::Key(name.clone()));
                    let value = self.value(value, Some(at))?;
                    self.path.pop();
                    map.insert(name, value);
                }
                Ok(Value::Object(map))
            }
            YamlData::Tagged(tag, _) => Err((span, format!("tags (`{tag}`) mean nothing here"))),
            YamlData::Representation(text, ..) => Err((span, format!("cannot read `{text}`"))),
            YamlData::BadValue => Err((span, "this value does not fit its tag".to_owned())),
            YamlData::Alias(_) => Err((span, "this alias refers to nothing".to_owned())),
        }
    }
}

fn scalar_value(scalar: &Scalar<'_>, span: Span) -> Result<Value, Unreadable> {
    Ok(match scalar {
        Scalar::Null => Value::Null,
        Scalar::Boolean(value) => Value::Bool(*value),
        Scalar::Integer(value) => Value::from(*value),
        Scalar::FloatingPoint(value) => {
            let number = Number::from_f64(value.into_inner());
            Value::Number(number.ok_or_else(|| (span, format!("{value} is no usable number")))?)
        }
        Scalar::String(text) => Value::String(text.clone().into_owned()),
    })
}

/// Keys are strings; a number or truth value as a key is taken as it would be written.
fn key_text(key: &MarkedYaml<'_>) -> Option<String> {
    let YamlData::Value(scalar) = &key.data else { return None };
    match scalar {
        Scalar::String(text) => Some(text.clone().into_owned()),
        Scalar::Integer(value) => Some(value.to_string()),
        Scalar::Boolean(value) => Some(value.to_string()),
        Scalar::FloatingPoint(value) => Some(value.to_string()),
        Scalar::Null => None,
    }
}

fn span_of(node: &MarkedYaml<'_>) -> Span {
    let (start, end) = (node.span.start, node.span.end);
    let scalar = matches!(node.data, YamlData::Value(_));
    let length = if start.line() == end.line() && scalar {
        end.col().saturating_sub(start.col())
    } else {
        0
    };
    Span { line: start.line(), column: start.col(), length }
}

#[cfg(test)]
mod tests;
