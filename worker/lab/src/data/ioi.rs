//! Sentences with an indirect object for models that read English (D19): templates, names, places, objects.
//!
//! Main items: [`templates`] and the word lists. Template texts, names, places and objects are those of the paper
//! (`ioi_dataset.py` of redwoodresearch/Easy-Transformer, MIT), so that numbers can be compared with it. `{IO}` is
//! the indirect object, `{S}` the subject; both stand in the first clause, `{S}` once more in the second.
//! Invariant: every template ends with ` {IO}`, the token that is predicted.

use super::toy_ioi;

/// Which of the pair stands first, and whether there is a third name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Indirect object first.
    Abba,
    /// Subject first.
    Baba,
    /// Three names, of which two give; indirect object first.
    Abc,
    /// The same with the indirect object second.
    Bac,
}

impl Order {
    /// As the paper writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abba => "ABBA",
            Self::Baba => "BABA",
            Self::Abc => "ABC",
            Self::Bac => "BAC",
        }
    }
}

/// One template, without the answer at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Text with slots `{IO}`, `{S}`, `{C}`, `{D}`, `{PLACE}`, `{OTHER}`, `{OBJECT}`.
    pub text: String,
    /// Order of the pair.
    pub order: Order,
    /// Name in results, for instance `BABA3`.
    pub label: String,
}

impl Template {
    fn new(text: &str, order: Order, number: usize) -> Self {
        let text = text.strip_suffix(" {IO}").expect("a template ends with the indirect object");
        Self { text: text.to_owned(), order, label: format!("{}{number}", order.name()) }
    }
}

/// Templates by the name of a set: `mixed` (15 BABA and 15 ABBA), `baba`, `abba`, `abc`, `bac`.
pub fn templates(set: &str) -> Vec<Template> {
    let of = |texts: &[&str], order: Order| -> Vec<Template> {
        let is_swapped = matches!(order, Order::Abba | Order::Bac);
        let text = |text: &&str| if is_swapped { swapped(text) } else { (*text).to_owned() };
        let numbered = texts.iter().enumerate();
        numbered.map(|(number, raw)| Template::new(&text(raw), order, number)).collect()
    };
    match set {
        "baba" => of(&BABA, Order::Baba),
        "abba" => of(&BABA, Order::Abba),
        "abc" => of(&ABC, Order::Abc),
        "bac" => of(&ABC, Order::Bac),
        _ => [of(&BABA, Order::Baba), of(&BABA, Order::Abba)].concat(),
    }
}

/// Templates of the toy recipe, in words separated by single spaces; there are none with three givers.
pub fn toy_templates(set: &str) -> Vec<Template> {
    let of = |order: Order, [a, b]: [&str; 2]| {
        let texts = toy_ioi::TEMPLATES.iter().enumerate();
        let filled = texts.map(move |(number, text)| {
            Template::new(&text.replace("{A}", a).replace("{B}", b), order, number)
        });
        filled.collect::<Vec<_>>()
    };
    let abba = || of(Order::Abba, ["{IO}", "{S}"]);
    let baba = || of(Order::Baba, ["{S}", "{IO}"]);
    match set {
        "baba" => baba(),
        "abba" => abba(),
        "mixed" => [baba(), abba()].concat(),
        _ => Vec::new(),
    }
}

/// Exchanges the pair in the first clause.
fn swapped(text: &str) -> String {
    text.replacen("{S}", "{first}", 1).replacen("{IO}", "{S}", 1).replace("{first}", "{IO}")
}

const BABA: [&str; 15] = [
    "Then, {S} and {IO} went to the {PLACE}. {S} gave a {OBJECT} to {IO}",
    "Then, {S} and {IO} had a lot of fun at the {PLACE}. {S} gave a {OBJECT} to {IO}",
    "Then, {S} and {IO} were working at the {PLACE}. {S} decided to give a {OBJECT} to {IO}",
    "Then, {S} and {IO} were thinking about going to the {PLACE}. {S} wanted to give a {OBJECT} to {IO}",
    "Then, {S} and {IO} had a long argument, and afterwards {S} said to {IO}",
    "After {S} and {IO} went to the {PLACE}, {S} gave a {OBJECT} to {IO}",
    "When {S} and {IO} got a {OBJECT} at the {PLACE}, {S} decided to give it to {IO}",
    "When {S} and {IO} got a {OBJECT} at the {PLACE}, {S} decided to give the {OBJECT} to {IO}",
    "While {S} and {IO} were working at the {PLACE}, {S} gave a {OBJECT} to {IO}",
    "While {S} and {IO} were commuting to the {PLACE}, {S} gave a {OBJECT} to {IO}",
    "After the lunch, {S} and {IO} went to the {PLACE}. {S} gave a {OBJECT} to {IO}",
    "Afterwards, {S} and {IO} went to the {PLACE}. {S} gave a {OBJECT} to {IO}",
    "Then, {S} and {IO} had a long argument. Afterwards {S} said to {IO}",
    "The {PLACE} {S} and {IO} went to had a {OBJECT}. {S} gave it to {IO}",
    "Friends {S} and {IO} found a {OBJECT} at the {PLACE}. {S} gave it to {IO}",
];

const ABC: [&str; 4] = [
    "Then, {IO}, {S} and {C} went to the {PLACE}. {S} and {C} gave a {OBJECT} to {IO}",
    "Afterwards {IO}, {S} and {C} went to the {PLACE}. {S} and {C} gave a {OBJECT} to {IO}",
    "When {IO}, {S} and {C} arrived at the {PLACE}, {S} and {C} gave a {OBJECT} to {IO}",
    "Friends {IO}, {S} and {C} went to the {PLACE}. {S} and {C} gave a {OBJECT} to {IO}",
];

/// Places.
pub const PLACES: [&str; 8] =
    ["store", "garden", "restaurant", "school", "hospital", "office", "house", "station"];

/// Objects.
pub const OBJECTS: [&str; 8] =
    ["ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack"];

/// First names, each one token for GPT-2.
pub const NAMES: [&str; 99] = [
    "Michael",
    "Christopher",
    "Jessica",
    "Matthew",
    "Ashley",
    "Jennifer",
    "Joshua",
    "Amanda",
    "Daniel",
    "David",
    "James",
    "Robert",
    "John",
    "Joseph",
    "Andrew",
    "Ryan",
    "Brandon",
    "Jason",
    "Justin",
    "Sarah",
    "William",
    "Jonathan",
    "Stephanie",
    "Brian",
    "Nicole",
    "Nicholas",
    "Anthony",
    "Heather",
    "Eric",
    "Elizabeth",
    "Adam",
    "Megan",
    "Melissa",
    "Kevin",
    "Steven",
    "Thomas",
    "Timothy",
    "Christina",
    "Kyle",
    "Rachel",
    "Laura",
    "Lauren",
    "Amber",
    "Brittany",
    "Danielle",
    "Richard",
    "Kimberly",
    "Jeffrey",
    "Amy",
    "Crystal",
    "Michelle",
    "Tiffany",
    "Jeremy",
    "Benjamin",
    "Mark",
    "Emily",
    "Aaron",
    "Charles",
    "Rebecca",
    "Jacob",
    "Stephen",
    "Patrick",
    "Sean",
    "Erin",
    "Jamie",
    "Kelly",
    "Samantha",
    "Nathan",
    "Sara",
    "Dustin",
    "Paul",
    "Angela",
    "Tyler",
    "Scott",
    "Katherine",
    "Andrea",
    "Gregory",
    "Erica",
    "Mary",
    "Travis",
    "Lisa",
    "Kenneth",
    "Bryan",
    "Lindsey",
    "Kristen",
    "Jose",
    "Alexander",
    "Jesse",
    "Katie",
    "Lindsay",
    "Shannon",
    "Vanessa",
    "Courtney",
    "Christine",
    "Alicia",
    "Cody",
    "Allison",
    "Bradley",
    "Samuel",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn templates_are_those_of_the_paper() {
        let mixed = templates("mixed");
        let count = |order| mixed.iter().filter(|template| template.order == order).count();
        assert_eq!((count(Order::Baba), count(Order::Abba)), (15, 15));
        assert_eq!(mixed[0].text, "Then, {S} and {IO} went to the {PLACE}. {S} gave a {OBJECT} to");
        assert_eq!(
            mixed[15].text,
            "Then, {IO} and {S} went to the {PLACE}. {S} gave a {OBJECT} to"
        );
        assert_eq!(
            mixed[28].text,
            "The {PLACE} {IO} and {S} went to had a {OBJECT}. {S} gave it to"
        );
        assert_eq!((templates("abc").len(), templates("bac").len()), (4, 4));
        assert_eq!(
            templates("bac")[0].text,
            "Then, {S}, {IO} and {C} went to the {PLACE}. {S} and {C} gave a {OBJECT} to"
        );
        assert_eq!(toy_templates("mixed").len(), 12);
        let all = ["mixed", "abc", "bac"].into_iter().flat_map(templates);
        for template in all.chain(toy_templates("mixed")) {
            let n_io = template.text.matches("{IO}").count();
            assert_eq!((n_io, template.text.matches("{S}").count()), (1, 2), "{}", template.text);
            let (io, s) = (template.text.find("{IO}"), template.text.find("{S}"));
            assert_eq!(io < s, matches!(template.order, Order::Abba | Order::Abc));
        }
        let labels: BTreeSet<String> = mixed.into_iter().map(|template| template.label).collect();
        assert_eq!(labels.len(), 30);
    }

    #[test]
    fn words_come_once() {
        let all: Vec<&str> = NAMES.iter().chain(&PLACES).chain(&OBJECTS).copied().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 99 + 8 + 8);
    }
}
