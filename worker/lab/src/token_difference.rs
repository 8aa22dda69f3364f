//! Token by token: what two models give the tokens of a text, and what kind of tokens these are.
//!
//! Main items: [`for_each_token`], [`Classes`], [`Ranking`]. Invariant: the text streams, so that memory does not grow with it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use crate::{compare::Couple, documents::Documents, error::Result, prompts::Names};

/// One predicted token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    pub row: u64,
    /// Its index in the row.
    pub place: usize,
    /// Log-probability that the first model gives it, in nats.
    pub first: f64,
    /// That of the second.
    pub second: f64,
    /// Bit `i`: it is of class `i` of [`CLASSES`].
    pub classes: u32,
}

impl Token {
    /// How much better the first model is.
    pub(crate) fn difference(&self) -> f64 {
        self.first - self.second
    }

    pub(crate) fn is_of(&self, class: usize) -> bool {
        self.classes >> class & 1 == 1
    }
}

/// Classes of tokens; one token may be of several.
pub(crate) const CLASSES: [&str; 11] = [
    "word start",
    "word inside",
    "digit",
    "punctuation",
    "space",
    "newline",
    "without text",
    "seen in the row",
    "follows as before",
    "first quarter",
    "last quarter",
];

/// Tells classes of tokens.
pub(crate) struct Classes<'a> {
    names: &'a Names<'a>,
    has_text: bool,
    texts: BTreeMap<i64, String>,
}

impl<'a> Classes<'a> {
    pub(crate) fn new(names: &'a Names<'a>) -> Self {
        Self { names, has_text: names.has_text(), texts: BTreeMap::new() }
    }

    /// Classes of every token of a row.
    fn of(&mut self, row: &[i64]) -> Vec<u32> {
        for &id in row {
            self.texts.entry(id).or_insert_with(|| self.names.text(&[id]));
        }
        let mut seen = BTreeSet::new();
        let mut follows = BTreeSet::new();
        let mut found = Vec::with_capacity(row.len());
        for (place, &id) in row.iter().enumerate() {
            let before = place.checked_sub(1).map(|place| row[place]);
            let form = if self.has_text {
                form(before.map(|id| self.texts[&id].as_str()), &self.texts[&id])
            } else {
                6
            };
            let quarter = 4 * place / row.len();
            let pair = before.map(|before| (before, id));
            let flags = [
                (7, !seen.insert(id)),
                (8, pair.is_some_and(|pair| !follows.insert(pair))),
                (9, quarter == 0),
                (10, quarter == 3),
            ];
            let flags = flags.iter().filter(|(_, holds)| *holds).map(|(class, _)| 1u32 << class);
            found.push(flags.fold(1 << form, |all, flag| all | flag));
        }
        found
    }
}

/// Class of a token by its text and that of the token before it.
fn form(before: Option<&str>, text: &str) -> usize {
    let is_word = |c: char| c.is_alphabetic() || c == '\'';
    let body = text.trim();
    if text.contains('\n') {
        5
    } else if body.is_empty() {
        4
    } else if body.chars().any(|c| c.is_ascii_digit()) {
        2
    } else if !body.chars().any(char::is_alphabetic) {
        3
    } else {
        let goes_on = before.is_some_and(|before| before.ends_with(is_word));
        usize::from(goes_on && !text.starts_with(char::is_whitespace))
    }
}

/// Gives every token that both models predict, with its row, and the progress behind every batch.
pub(crate) fn for_each_token(
    couple: &Couple<'_>,
    documents: &Documents,
    classes: &mut Classes<'_>,
    mut see: impl FnMut(&Token, &[i64]),
    mut progress: impl FnMut((u64, u64)) -> Result<()>,
) -> Result<()> {
    documents.for_each(&couple.first, |batch| {
        let first = batch.losses(couple.first.model)?;
        let second = batch.losses(couple.second.model)?;
        let rows = (batch.first_row..).zip(&batch.rows);
        for ((row, ids), (first, second)) in rows.zip(first.iter().zip(&second)) {
            let found = classes.of(ids);
            for (index, (a, b)) in first.iter().zip(second).enumerate() {
                let place = index + 1;
                let token = Token { row, place, first: -a, second: -b, classes: found[place] };
                see(&token, ids);
            }
        }
        progress(batch.progress)
    })
}

/// The tokens with the largest scores, with their contexts; equal ones in the order of the text.
pub(crate) struct Ranking {
    k: usize,
    width: usize,
    found: Vec<(f64, Json)>,
}

impl Ranking {
    pub(crate) fn new(k: u64, width: u64) -> Self {
        Self { k: k as usize, width: width as usize, found: Vec::new() }
    }

    pub(crate) fn add(&mut self, score: f64, token: &Token, row: &[i64], names: &Names<'_>) {
        let is_full = self.found.len() == self.k;
        if self.k == 0 || (is_full && self.found.last().is_some_and(|last| score <= last.0)) {
            return;
        }
        let place = self.found.partition_point(|(other, _)| *other >= score);
        let around = |from: usize, to: usize| names.text(&row[from..to.min(row.len())]);
        let classes: Vec<&str> =
            (0..CLASSES.len()).filter(|&class| token.is_of(class)).map(|c| CLASSES[c]).collect();
        let line = json!({
            "difference": token.difference(), "first": token.first, "second": token.second,
            "row": token.row, "position": token.place, "id": row[token.place],
            "before": around(token.place.saturating_sub(self.width), token.place),
            "token": names.text(&row[token.place..=token.place]),
            "behind": around(token.place + 1, token.place + 1 + self.width),
            "classes": classes,
        });
        self.found.insert(place, (score, line));
        self.found.truncate(self.k);
    }

    /// One line of JSON each, best first.
    pub(crate) fn lines(&self) -> Vec<u8> {
        let lines: Vec<String> = self.found.iter().map(|(_, line)| line.to_string()).collect();
        (lines.join("\n") + "\n").into_bytes()
    }

    /// A readable table of the best `n`.
    pub(crate) fn table(&self, title: &str, n: usize) -> String {
        let head = "| difference | first | second | before | token | behind |\n|---:|---:|---:|---:|:-:|:---|";
        let mut lines = vec![format!("## {title}\n\n{head}")];
        for (_, line) in self.found.iter().take(n) {
            let number = |name: &str| line[name].as_f64().unwrap_or(f64::NAN);
            let cell = |name: &str| shown(line[name].as_str().unwrap_or_default());
            let [difference, first, second] = ["difference", "first", "second"].map(number);
            let [before, token, behind] = ["before", "token", "behind"].map(cell);
            lines.push(format!(
                "| {difference:+.2} | {first:.2} | {second:.2} | {before} | **{token}** | {behind} |"
            ));
        }
        lines.join("\n") + "\n\n"
    }
}

/// A text in a cell of a table.
pub(crate) fn shown(text: &str) -> String {
    let visible = |c: char| match c {
        '\n' => '⏎',
        '|' => '¦',
        '\t' => '⇥',
        c if c.is_control() => '·',
        c => c,
    };
    text.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_tokens() {
        let of = |before: &str, text: &str| CLASSES[form(Some(before), text)];
        assert_eq!(of("the", " cat"), "word start");
        assert_eq!(of(" ", "c"), "word start");
        assert_eq!(of("c", "a"), "word inside");
        assert_eq!(of("don", "'t"), "word inside");
        assert_eq!(of("in", " 1998"), "digit");
        assert_eq!(of("a", "!?"), "punctuation");
        assert_eq!(of("a", "  "), "space");
        assert_eq!(of(".", "\n\n"), "newline");
    }

    #[test]
    fn the_best_are_kept_in_order() {
        let names = Names::none();
        let mut ranking = Ranking::new(3, 2);
        let row = [1, 2, 3, 4, 5, 6];
        for (place, score) in [(1, 0.5), (2, 2.0), (3, 2.0), (4, 0.1), (5, 3.0)] {
            let token = Token { row: 0, place, first: score, second: 0.0, classes: 1 };
            ranking.add(score, &token, &row, &names);
        }
        let places: Vec<i64> =
            ranking.found.iter().map(|(_, line)| line["position"].as_i64().unwrap()).collect();
        assert_eq!(places, [5, 2, 3]);
        assert_eq!(ranking.found[1].1["before"], "1 2");
        assert_eq!(ranking.found[1].1["behind"], "4 5");
    }

    #[test]
    fn classes_know_what_stood_before() {
        let names = Names::none();
        let found = Classes::new(&names).of(&[7, 8, 9, 7, 8, 5, 5, 5]);
        let of = |class: usize| -> Vec<usize> {
            (0..8).filter(|&place| found[place] >> class & 1 == 1).collect()
        };
        assert_eq!(of(7), [3, 4, 6, 7]);
        assert_eq!(of(8), [4, 7]);
        assert_eq!((of(9), of(10), of(6).len()), (vec![0, 1], vec![6, 7], 8));
    }
}
