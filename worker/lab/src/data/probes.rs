//! Short questions with answers of one token, as texts: what language models may learn to do in context.
//!
//! Main items: [`PROBES`], [`question`]. A question may have several right answers (any later year); the wrong ones are
//! those that a model would choose that knows the kind of answer only. Invariant: a question is a pure function of the
//! random stream.

use rand::Rng;

use super::ioi::{OBJECTS, PLACES};
use crate::random::{below, permutation};

/// Names of the probes.
pub const PROBES: [&str; 6] =
    ["labels", "addition", "sorting", "greater_than", "successor", "brackets"];

/// A question and the answers that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What the model reads; an answer follows immediately.
    pub text: String,
    /// Right answers.
    pub right: Vec<String>,
    /// Wrong ones.
    pub wrong: Vec<String>,
}

impl Question {
    fn new(text: String, right: &str, wrong: impl IntoIterator<Item = String>) -> Self {
        let wrong = wrong.into_iter().filter(|answer| answer != right).collect();
        Self { text, right: vec![right.to_owned()], wrong }
    }
}

const LABELS: [&str; 4] = ["red", "blue", "green", "black"];

/// Lists that have an order, each without repetition.
const ORDERED: [&[&str]; 3] = [
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    &[
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ],
    &["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
];

const BRACKETS: [[&str; 2]; 3] = [["(", ")"], ["[", "]"], ["{", "}"]];

/// A question of one of [`PROBES`] behind `n_shots` solved examples.
///
/// - `labels`: a word that stands among the examples has the label that it has there; without examples nobody knows
/// - `addition`: the sum of two numbers of `n_digits` digits
/// - `sorting`: which of three words comes first in the alphabet
/// - `greater_than`: the end of a period, whose start is given, as the last two digits of a year (Hanna et al. 2023)
/// - `successor`: the next day, month or number
/// - `brackets`: what closes the innermost open bracket
pub fn question(probe: &str, n_shots: usize, n_digits: u32, rng: &mut impl Rng) -> Question {
    if probe == "labels" {
        return labelled(n_shots, rng);
    }
    let mut one = || match probe {
        "addition" => addition(n_digits, rng),
        "sorting" => sorting(rng),
        "greater_than" => greater_than(rng),
        "successor" => successor(rng),
        _ => brackets(rng),
    };
    let mut front = String::new();
    for _ in 0..n_shots {
        let Question { text, right, .. } = one();
        // Of several right answers the middle one: the last years of a century are no good examples.
        let answer = right.get(right.len() / 2).map_or("", String::as_str);
        front += &text;
        front += answer;
        front.push('\n');
    }
    let last = one();
    Question { text: front + &last.text, ..last }
}

/// Words that are labelled at random.
fn labelled(n_shots: usize, rng: &mut impl Rng) -> Question {
    let words: Vec<&str> = PLACES.iter().chain(&OBJECTS).copied().collect();
    let order = permutation(rng, words.len());
    let word = |at: usize| words[order[at % words.len()] as usize];
    let examples: Vec<(&str, &str)> = (0..n_shots.min(words.len()))
        .map(|at| (word(at), LABELS[below(rng, LABELS.len() as u64) as usize]))
        .collect();
    let (asked, label) = if examples.is_empty() {
        (word(0), LABELS[below(rng, LABELS.len() as u64) as usize])
    } else {
        examples[below(rng, examples.len() as u64) as usize]
    };
    let lines: Vec<String> =
        examples.iter().map(|(word, label)| format!("{word}: {label}\n")).collect();
    let wrong = LABELS.map(|label| format!(" {label}"));
    Question::new(format!("{}{asked}:", lines.concat()), &format!(" {label}"), wrong)
}

fn addition(n_digits: u32, rng: &mut impl Rng) -> Question {
    let (low, high) = (10u64.pow(n_digits.saturating_sub(1)), 10u64.pow(n_digits));
    let low = if n_digits == 1 { 0 } else { low };
    let (a, b) = (low + below(rng, high - low), low + below(rng, high - low));
    let sum = a + b;
    // Off by one, by a carry, by two carries.
    let near = [
        sum + 1,
        sum.wrapping_sub(1),
        sum + 10,
        sum.wrapping_sub(10),
        sum + 2,
        sum.wrapping_sub(2),
    ];
    let wrong = near.into_iter().filter(|&value| value < 4 * high).map(|value| format!(" {value}"));
    Question::new(format!("{a} + {b} ="), &format!(" {sum}"), wrong)
}

fn sorting(rng: &mut impl Rng) -> Question {
    let words: Vec<&str> = PLACES.iter().chain(&OBJECTS).copied().collect();
    let order = permutation(rng, words.len());
    let chosen: Vec<&str> = order[..3].iter().map(|&at| words[at as usize]).collect();
    let first = chosen.iter().min().copied().unwrap_or_default();
    let wrong = chosen.iter().map(|word| format!(" {word}"));
    Question::new(
        format!("Unsorted: {}. Sorted by alphabet:", chosen.join(", ")),
        &format!(" {first}"),
        wrong,
    )
}

fn greater_than(rng: &mut impl Rng) -> Question {
    const NOUNS: [&str; 6] = ["war", "trial", "voyage", "project", "reign", "study"];
    let noun = NOUNS[below(rng, NOUNS.len() as u64) as usize];
    let century = 11 + below(rng, 7);
    let start = 2 + below(rng, 97); // 2 to 98: there are years before and behind it in the century
    let years = |range: std::ops::Range<u64>| range.map(|year| format!("{year:02}")).collect();
    Question {
        text: format!("The {noun} lasted from the year {century}{start:02} to the year {century}"),
        right: years(start + 1..100),
        wrong: years(0..start + 1),
    }
}

fn successor(rng: &mut impl Rng) -> Question {
    let list = ORDERED[below(rng, ORDERED.len() as u64) as usize];
    let first = below(rng, list.len() as u64 - 3) as usize;
    let shown = list[first..first + 3].join(", ");
    let wrong = list.iter().map(|item| format!(" {item}"));
    Question::new(format!("{shown},"), &format!(" {}", list[first + 3]), wrong)
}

fn brackets(rng: &mut impl Rng) -> Question {
    let mut open: Vec<usize> = Vec::new();
    let mut shown = Vec::new();
    let length = 5 + below(rng, 6);
    // Closes at even odds, and never the last one.
    while (shown.len() as u64) < length {
        if open.len() > 1 && below(rng, 2) == 0 {
            let closed = open.pop().unwrap_or(0);
            shown.push(BRACKETS[closed][1]);
        } else {
            let kind = below(rng, BRACKETS.len() as u64) as usize;
            open.push(kind);
            shown.push(BRACKETS[kind][0]);
        }
    }
    let innermost = open.last().copied().unwrap_or(0);
    let wrong = BRACKETS.iter().map(|[_, close]| format!(" {close}"));
    Question::new(shown.join(" "), &format!(" {}", BRACKETS[innermost][1]), wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    fn all(probe: &str, n_shots: usize) -> Vec<Question> {
        let mut rng = stream(3, "test");
        (0..300).map(|_| question(probe, n_shots, 2, &mut rng)).collect()
    }

    #[test]
    fn questions_have_the_answers_that_they_say() {
        for probe in PROBES {
            for question in all(probe, 0).into_iter().chain(all(probe, 3)) {
                assert!(!question.right.is_empty() && !question.wrong.is_empty(), "{question:?}");
                assert!(question.wrong.iter().all(|wrong| !question.right.contains(wrong)));
                assert!(!question.text.ends_with(' '), "{question:?}");
            }
        }
        for Question { text, right, .. } in all("addition", 2) {
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 3);
            for line in [&format!("{}{}", lines[2], right[0]), lines[0]] {
                let numbers: Vec<u64> =
                    line.split([' ', '+', '=']).filter_map(|part| part.parse().ok()).collect();
                assert_eq!((numbers.len(), numbers[0] + numbers[1]), (3, numbers[2]), "{line}");
                assert!((10..100).contains(&numbers[0]));
            }
        }
        for Question { text, right, wrong } in all("sorting", 0) {
            assert!(wrong.len() == 2 && wrong.iter().all(|word| right[0] < *word), "{text}");
        }
        for Question { text, right, wrong } in all("greater_than", 0) {
            let start: usize = text[text.find("year ").unwrap() + 7..][..2].parse().unwrap();
            assert_eq!((wrong.len(), right.len()), (start + 1, 99 - start));
        }
        for Question { text, right, wrong } in all("labels", 4) {
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[..4].contains(&format!("{}{}", lines[4], right[0]).as_str()), "{text}");
            assert_eq!(wrong.len(), 3);
        }
    }

    /// Appending closing brackets innermost first balances what is shown.
    #[test]
    fn brackets_close_the_innermost() {
        for Question { text, right, .. } in all("brackets", 0) {
            let mut open = Vec::new();
            for symbol in text.split(' ').chain([right[0].trim()]) {
                match BRACKETS.iter().find(|pair| pair[1] == symbol) {
                    Some(pair) => assert_eq!(open.pop(), Some(pair[0]), "{text} then {}", right[0]),
                    None => open.push(symbol),
                }
            }
        }
    }

    #[test]
    fn successors_follow() {
        for Question { text, right, .. } in all("successor", 0) {
            let line = format!("{text}{}", right[0]);
            assert!(ORDERED.iter().any(|list| list.join(", ").contains(&line)), "{line}");
        }
    }
}
