//! Sentences with an indirect object, in words that are single tokens, for models that are trained on nothing
//! else: "… Ann and Tom went to the park … Tom gave a book to" → "Ann".
//!
//! Main type: [`Sentences`]. All templates have [`N_CTX`] tokens and end with the indirect object. Shortcuts do
//! not work: third names stand in front of, between and behind the pair, once or twice, also beside "and";
//! either of the pair is the subject; names, places and objects are drawn anew for every sentence.

use std::collections::BTreeMap;

use sweep_lens::{Device, Kind, Tensor};

use crate::{random::counter::Counter, vocabulary::Vocabulary};

/// Tokens of a sentence, the indirect object included.
pub const N_CTX: i64 = 23;
/// Position from which the indirect object is predicted.
pub const END: i64 = N_CTX - 2;

/// `{A}` and `{B}` are the pair, one of which is the subject `{S}` and the other the indirect object `{IO}`;
/// `{C}` and `{D}` are others.
pub(super) const TEMPLATES: [&str; 6] = [
    "BOS when {A} and {B} went to the {PLACE} , {C} was at the {OTHER} . then {S} gave a {OBJECT} to {IO}",
    "BOS {C} was at the {OTHER} . when {A} and {B} went to the {PLACE} , then {S} gave a {OBJECT} to {IO}",
    "BOS then , {A} and {B} had a {OBJECT} . {C} met {D} and {C} left . {S} gave the {OBJECT} to {IO}",
    "BOS {C} met {D} and {C} left . then , {A} and {B} had a {OBJECT} . {S} gave the {OBJECT} to {IO}",
    "BOS {A} and {B} were at the {PLACE} . {C} left the {OTHER} . so {S} decided to give a {OBJECT} to {IO}",
    "BOS {C} left the {OTHER} . {A} and {B} were at the {PLACE} . so {S} decided to give a {OBJECT} to {IO}",
];

/// In the order of their columns in the table of fillers.
const SLOTS: [&str; 9] =
    ["{A}", "{B}", "{S}", "{IO}", "{C}", "{D}", "{PLACE}", "{OTHER}", "{OBJECT}"];

const NAMES: [&str; 40] = [
    "Ann", "Tom", "Mary", "John", "Paul", "Kate", "Mark", "Lucy", "Alan", "Rose", "Carl", "Jane",
    "Dean", "Ruth", "Eric", "Lisa", "Fred", "Nina", "Glen", "Olga", "Hugh", "Emma", "Ivan", "Sara",
    "Jack", "Tina", "Kurt", "Vera", "Luke", "Wendy", "Max", "Zoe", "Noah", "Amy", "Oscar", "Beth",
    "Peter", "Cleo", "Rick", "Dora",
];
/// Most names that a vocabulary can have.
pub const MAX_NAMES: i64 = NAMES.len() as i64;
const PLACES: [&str; 8] =
    ["park", "school", "store", "office", "station", "garden", "museum", "hospital"];
const OBJECTS: [&str; 8] = ["book", "ring", "drink", "kiss", "basket", "letter", "ticket", "key"];

/// Endless list of sentences.
#[derive(Debug)]
pub struct Sentences {
    d_vocab: i64,
    names: Vec<i64>,
    places: Vec<i64>,
    objects: Vec<i64>,
    /// i64 `[n_templates, N_CTX]`: token ids; slot `i` is `d_vocab + i`.
    templates: Tensor,
    template: Counter,
    order: Counter,
    name: Counter,
    place: Counter,
    object: Counter,
}

/// Sentences and who is who in them.
#[derive(Debug)]
pub struct SentenceRows {
    /// i64 `[(n_models,) n_rows, N_CTX]`
    pub tokens: Tensor,
    /// i64 `[(n_models,) n_rows, 9]`: the tokens in the slots.
    fillers: Tensor,
}

/// The words of a model with `n_names` names, and their roles `bos`, `name`, `place`, `object`.
pub fn vocabulary(n_names: i64) -> Vocabulary {
    let mut words = Vec::new();
    let all = TEMPLATES.iter().flat_map(|template| template.split(' '));
    for word in all.filter(|word| !word.starts_with('{')) {
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    let mut roles = BTreeMap::from([("bos".to_owned(), vec![0])]);
    let n_names = n_names.clamp(0, MAX_NAMES) as usize;
    for (role, members) in [("name", &NAMES[..n_names]), ("place", &PLACES), ("object", &OBJECTS)] {
        let first = words.len() as i64;
        roles.insert(role.to_owned(), (first..first + members.len() as i64).collect());
        words.extend(members.iter().map(|&word| word.to_owned()));
    }
    Vocabulary { words, roles }
}

impl Sentences {
    /// Sentences of each of `seeds` with `n_names` names, at least 4; `purpose` keeps sets apart.
    pub fn new(n_names: i64, seeds: &[u64], purpose: &str, device: Device) -> Self {
        let counter = |part| Counter::new(seeds, &format!("toy-ioi/{purpose}/{part}"), device);
        let vocabulary = vocabulary(n_names);
        let d_vocab = vocabulary.words.len() as i64;
        let code = |word: &str| match SLOTS.iter().position(|&slot| slot == word) {
            Some(slot) => d_vocab + slot as i64,
            None => vocabulary.id(word).expect("words outside of slots are in the vocabulary"),
        };
        let codes: Vec<i64> =
            TEMPLATES.iter().flat_map(|template| template.split(' ').map(code)).collect();
        let role = |name: &str| vocabulary.roles[name].clone();
        Self {
            d_vocab,
            names: role("name"),
            places: role("place"),
            objects: role("object"),
            templates: Tensor::from_slice(&codes).view([-1, N_CTX]).to_device(device),
            template: counter("template"),
            order: counter("order"),
            name: counter("name"),
            place: counter("place"),
            object: counter("object"),
        }
    }

    /// Number of tokens.
    pub fn d_vocab(&self) -> i64 {
        self.d_vocab
    }

    /// The sentences with these numbers. `rows`: i64 `[n_rows]`.
    pub fn rows(&self, rows: &Tensor) -> SentenceRows {
        // Words of a role have consecutive ids, ascending from the first.
        let names = self.name.distinct(rows, 4, self.names.len() as i64) + self.names[0];
        let pair = names.narrow(-1, 0, 2);
        let is_swapped = self.order.below(rows, 1, 2).to_kind(Kind::Bool);
        let roles = pair.flip([-1]).where_self(&is_swapped, &pair); // subject, indirect object
        let places = self.place.distinct(rows, 2, self.places.len() as i64) + self.places[0];
        let object = self.object.below(rows, 1, self.objects.len() as i64) + self.objects[0];
        let others = names.narrow(-1, 2, 2);
        let fillers = Tensor::cat(&[pair, roles, others, places, object], -1);
        // A table per row from codes to tokens: words stand for themselves, slots for their fillers.
        let mut shape = fillers.size();
        *shape.last_mut().expect("fillers have a slot axis") = self.d_vocab;
        let words = Tensor::arange(self.d_vocab, (Kind::Int64, rows.device()));
        let table = Tensor::cat(&[&words.expand(shape.as_slice(), false), &fillers], -1);
        let template = self.template.below(rows, 1, TEMPLATES.len() as i64);
        *shape.last_mut().expect("fillers have a slot axis") = N_CTX;
        let codes = self.templates.index_select(0, &template.reshape([-1])).view(shape.as_slice());
        SentenceRows { tokens: table.gather(-1, &codes, false), fillers }
    }
}

impl SentenceRows {
    /// The subject, i64 `[(n_models,) n_rows, 1]`.
    pub fn subject(&self) -> Tensor {
        self.fillers.narrow(-1, 2, 1)
    }

    /// The indirect object, i64 `[(n_models,) n_rows, 1]`.
    pub fn indirect_object(&self) -> Tensor {
        self.fillers.narrow(-1, 3, 1)
    }

    /// A third name that is in every sentence, i64 `[(n_models,) n_rows, 1]`.
    pub fn third(&self) -> Tensor {
        self.fillers.narrow(-1, 4, 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sequence::first_rows;

    #[test]
    fn sentences_are_what_the_templates_say() {
        assert!(TEMPLATES.iter().all(|template| template.split(' ').count() == N_CTX as usize));
        let vocabulary = vocabulary(12);
        assert_eq!(vocabulary.words[0], "BOS");
        let is_distinct = vocabulary.words.iter().collect::<BTreeSet<_>>().len();
        assert_eq!(is_distinct, vocabulary.words.len());
        assert_eq!(vocabulary.roles["name"].len(), 12);
        let sentences = Sentences::new(12, &[1, 2], "test", Device::Cpu);
        assert_eq!(sentences.d_vocab(), vocabulary.words.len() as i64);
        let rows = sentences.rows(&first_rows(300, Device::Cpu));
        assert_eq!(rows.tokens.size(), [2, 300, N_CTX]);
        let mut seen = BTreeSet::new();
        let mut n_second = 0;
        for row in 0..300 {
            let tokens = Vec::<i64>::try_from(rows.tokens.get(1).get(row)).unwrap();
            let at = |part: &Tensor| part.int64_value(&[1, row, 0]);
            let (subject, object) = (at(&rows.subject()), at(&rows.indirect_object()));
            let text = vocabulary.decode(&tokens);
            let count = |token| tokens.iter().filter(|&&other| other == token).count();
            assert_eq!((count(subject), count(object)), (2, 2), "{text}");
            assert_eq!(tokens[N_CTX as usize - 1], object, "{text}");
            assert!((1..=2).contains(&count(at(&rows.third()))), "{text}");
            let names = tokens.iter().filter(|token| vocabulary.roles["name"].contains(token));
            assert!(names.collect::<BTreeSet<_>>().len() >= 3, "{text}");
            let first = tokens.iter().position(|&token| token == object);
            n_second += i32::from(first > tokens.iter().position(|&token| token == subject));
            seen.insert(tokens);
        }
        assert!((110..190).contains(&n_second), "the order of the pair is even: {n_second}");
        assert_eq!(seen.len(), 300);
    }
}
