//! Which checkpoints a listing of relative file paths (or of branches) holds. Main type: [`Listing`].
//!
//! Recognised are folders named by their step that hold weights, files `NAME_<N>.pth` (also in a
//! folder `checkpoints/`), and the weights of one checkpoint alone. Pure: paths in, names out.
//! Invariant: two readings of one listing are an error, never a choice; whatever is left aside is
//! said in a note.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use crate::{error, location::Location, select};

/// What the labels of checkpoints count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Optimizer steps.
    Step,
    /// Training tokens.
    Token,
}

impl Unit {
    /// Labels above a thousand million count tokens: no published training has that many steps.
    pub fn of_last_label(label: u64) -> Self {
        if label > 1_000_000_000 { Self::Token } else { Self::Step }
    }

    /// The word in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Token => "token",
        }
    }
}

/// One checkpoint of a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its label: the step, or the number of tokens.
    pub step: u64,
    /// What stands for `{}` in [`Listing::at`].
    pub name: String,
}

/// The checkpoints of one model, by rising label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Location of a checkpoint, with `{}` for its name.
    pub at: String,
    /// The checkpoints; labels differ.
    pub checkpoints: Vec<Found>,
    /// What the labels count.
    pub unit: Unit,
    /// What was left aside, and why.
    pub notes: Vec<String>,
}

impl Listing {
    /// Where a checkpoint is.
    ///
    /// # Errors
    /// [`error::Error::Location`] when template and name do not make a location.
    pub fn location(&self, found: &Found) -> error::Result<Location> {
        self.at.replacen("{}", &found.name, 1).parse()
    }
}

/// What a listing of file paths was recognised as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recognised {
    /// Folders or files named by their step, in `folder` (empty for the listed folder itself).
    Labelled {
        /// `checkpoints` or nothing.
        folder: &'static str,
        /// By rising label.
        checkpoints: Vec<Found>,
        /// What the labels count.
        unit: Unit,
    },
    /// The files of one checkpoint.
    Single {
        /// Whether `trainer_state.json` may tell its step.
        trainer_state: bool,
    },
}

/// How a checkpoint's folder, branch or file states its step. Two spellings in one place are two
/// trajectories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Spelling(String);

/// Spellings of steps in folders and branches, as they are said to people.
pub const FOLDERS: &str = "step<N>, step-<N>, global_step<N> or checkpoint-<N>";

/// Prefixes before the number, longest first.
const PREFIXES: [&str; 9] = [
    "stage1-step",
    "global_step_",
    "global_step",
    "checkpoint-",
    "checkpoint_",
    "step-",
    "step_",
    "stage1-step-",
    "step",
];

/// The step that a folder or branch is named by.
pub fn label(name: &str) -> Option<u64> {
    labelled(name).map(|(_, step)| step)
}

fn labelled(name: &str) -> Option<(Spelling, u64)> {
    for prefix in PREFIXES {
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Ok(step) = rest[..digits].parse() else { continue };
        // OLMo's branches say the tokens too: step1000-tokens4B.
        let tokens = rest[digits..].strip_prefix("-tokens").and_then(|rest| rest.strip_suffix('B'));
        let counted = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        return match (&rest[digits..], tokens) {
            ("", _) => Some((Spelling(format!("{prefix}<N>")), step)),
            (_, Some(tokens)) if counted(tokens) => {
                Some((Spelling(format!("{prefix}<N>-tokens<M>B")), step))
            }
            _ => None,
        };
    }
    None
}

/// `stem` and number of `stem_<N>.pth`; the number is the whole group of digits.
fn labelled_file(name: &str) -> Option<(&str, u64)> {
    let stem = name.strip_suffix(".pth").filter(|_| select::is_pickle(name))?;
    let (stem, digits) = stem.rsplit_once('_')?;
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    number.then(|| digits.parse().ok()).flatten().map(|step| (stem, step))
}

/// The label of one file `stem_<N>.pth`.
pub fn file_label(name: &str) -> Option<u64> {
    labelled_file(name).map(|(_, step)| step)
}

/// Recognises the branches and tags of a repository; none when none is named by a step.
///
/// # Errors
/// The problem as text, when two trajectories are mixed.
pub fn branches<'a>(
    names: impl IntoIterator<Item = &'a str>,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<Found>>, String> {
    let mut groups: BTreeMap<Spelling, Vec<Found>> = BTreeMap::new();
    let mut others = Vec::new();
    for name in names {
        match labelled(name) {
            Some((spelling, step)) => {
                groups.entry(spelling).or_default().push(Found { step, name: name.to_owned() });
            }
            None => others.push(name),
        }
    }
    if groups.is_empty() {
        return Ok(None);
    }
    note_ignored(notes, "revisions that name no step", others);
    one_group(groups).map(Some)
}

/// Recognises the files below a folder, prefix or revision.
///
/// # Errors
/// The problem as text: nothing is recognised, or more than one thing.
pub fn recognise<'a>(
    files: impl IntoIterator<Item = &'a str>,
    notes: &mut Vec<String>,
) -> Result<Recognised, String> {
    let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        folders.entry(folder).or_default().push(name);
    }
    let mut groups: BTreeMap<Spelling, Vec<Found>> = BTreeMap::new();
    let mut empty = Vec::new();
    for top in tops(&folders) {
        let Some((spelling, step)) = labelled(top) else { continue };
        let complete = folders.get(top).is_some_and(|names| select::has_weights(names));
        if complete {
            groups.entry(spelling).or_default().push(Found { step, name: top.to_owned() });
        } else {
            empty.push(top);
        }
    }
    note_ignored(notes, "folders without weights", empty);
    let mut readings = Vec::new();
    if !groups.is_empty() {
        let checkpoints = one_group(groups)?;
        let unit = last_unit(&checkpoints);
        readings.push(Recognised::Labelled { folder: "", checkpoints, unit });
    }
    for folder in ["", "checkpoints"] {
        let names = folders.get(folder).map_or(&[][..], Vec::as_slice);
        if let Some(checkpoints) = numbered(folder, names)? {
            let unit = last_unit(&checkpoints);
            readings.push(Recognised::Labelled { folder, checkpoints, unit });
        }
    }
    let root = folders.get("").map_or(&[][..], Vec::as_slice);
    let unnumbered: Vec<&str> =
        root.iter().copied().filter(|name| labelled_file(name).is_none()).collect();
    let single = select::has_weights(&unnumbered);
    match (readings.len(), single) {
        (0, true) => {
            Ok(Recognised::Single { trainer_state: root.contains(&select::TRAINER_STATE) })
        }
        (0, false) => Err(nothing(&folders)),
        (1, _) => {
            if single {
                notes.push(
                    "the weights beside the checkpoints (the final model) are not one of them"
                        .to_owned(),
                );
            }
            Ok(readings.remove(0))
        }
        _ => Err(format!(
            "it is ambiguous which are the checkpoints: {}; point at one of them",
            readings.iter().map(describe).collect::<Vec<_>>().join(" or ")
        )),
    }
}

/// First components of all folders, each once.
fn tops<'a>(folders: &BTreeMap<&'a str, Vec<&'a str>>) -> Vec<&'a str> {
    let tops: BTreeSet<&str> = folders
        .keys()
        .map(|folder| folder.split_once('/').map_or(*folder, |(top, _)| top))
        .filter(|top| !top.is_empty())
        .collect();
    tops.into_iter().collect()
}

/// The files `stem_<N>.pth` of one folder.
fn numbered(folder: &str, names: &[&str]) -> Result<Option<Vec<Found>>, String> {
    let mut stems: BTreeMap<Spelling, Vec<Found>> = BTreeMap::new();
    for name in names {
        if let Some((stem, step)) = labelled_file(name) {
            let path = if folder.is_empty() { stem.to_owned() } else { format!("{folder}/{stem}") };
            let spelling = Spelling(format!("{path}_<N>.pth"));
            stems.entry(spelling).or_default().push(Found { step, name: (*name).to_owned() });
        }
    }
    if stems.is_empty() { Ok(None) } else { one_group(stems).map(Some) }
}

/// The checkpoints of the only group, by rising label.
fn one_group(groups: BTreeMap<Spelling, Vec<Found>>) -> Result<Vec<Found>, String> {
    if groups.len() > 1 {
        let spellings: Vec<String> = groups
            .iter()
            .map(|(spelling, found)| format!("{} {}", found.len(), spelling.0))
            .collect();
        return Err(format!(
            "it is ambiguous which are the checkpoints: {}; keep one of them there",
            spellings.join(" or ")
        ));
    }
    let mut found: Vec<Found> = groups.into_values().flatten().collect();
    found.sort();
    if let Some(pair) = found.windows(2).find(|pair| pair[0].step == pair[1].step) {
        return Err(format!(
            "`{}` and `{}` are both step {}; keep one of them there",
            pair[0].name, pair[1].name, pair[0].step
        ));
    }
    Ok(found)
}

fn last_unit(found: &[Found]) -> Unit {
    Unit::of_last_label(found.last().map_or(0, |last| last.step))
}

fn describe(reading: &Recognised) -> String {
    match reading {
        Recognised::Labelled { folder, checkpoints, .. } => {
            let first = checkpoints.first().map_or("", |found| found.name.as_str());
            let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
            format!("{} like `{folder}{first}`", checkpoints.len())
        }
        Recognised::Single { .. } => "the weights in the folder itself".to_owned(),
    }
}

fn nothing(folders: &BTreeMap<&str, Vec<&str>>) -> String {
    let files = folders.get("").into_iter().flatten().map(|name| (*name).to_owned());
    let found: Vec<String> =
        tops(folders).into_iter().map(|top| format!("{top}/")).chain(files).collect();
    let found = match found.len() {
        0 => "it is empty".to_owned(),
        _ => format!("it holds {}", abridged(&found)),
    };
    format!(
        "no checkpoints are recognised here: {found}; expected folders {FOLDERS} that hold \
         weights, files NAME_<N>.pth (also in checkpoints/), or the weights of one checkpoint \
         ({})",
        select::WEIGHTS
    )
}

fn note_ignored(notes: &mut Vec<String>, what: &str, mut names: Vec<&str>) {
    if !names.is_empty() {
        names.sort_unstable();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        notes.push(format!("ignored {what}: {}", abridged(&names)));
    }
}

/// The first few names, and how many more there are.
pub(crate) fn abridged(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &str) -> (Result<Recognised, String>, Vec<String>) {
        let mut notes = Vec::new();
        (recognise(files.split_whitespace(), &mut notes), notes)
    }

    #[track_caller]
    fn check(files: &str, expected: &str) {
        let (found, _) = read(files);
        let text = match found.unwrap() {
            Recognised::Single { trainer_state } => format!("single {trainer_state}"),
            Recognised::Labelled { folder, checkpoints, unit } => {
                let names: Vec<String> =
                    checkpoints.iter().map(|f| format!("{}={}", f.name, f.step)).collect();
                format!("{folder}[{}] {}", names.join(" "), unit.word())
            }
        };
        assert_eq!(text, expected, "{files}");
    }

    #[track_caller]
    fn refused(files: &str, words: &[&str]) {
        let problem = read(files).0.unwrap_err();
        for word in words {
            assert!(problem.contains(word), "{files}: {problem}");
        }
    }

    #[test]
    fn layouts() {
        check(
            "step10/model.safetensors step9/model.safetensors step100/pytorch_model.bin",
            "[step9=9 step10=10 step100=100] step",
        );
        check(
            "checkpoint-500/pytorch_model.bin.index.json checkpoint-500/optimizer.pt \
             checkpoint-1000/model.safetensors.index.json",
            "[checkpoint-500=500 checkpoint-1000=1000] step",
        );
        check("step-7/m.pth step-3/m.pth", "[step-3=3 step-7=7] step");
        check("global_step20/model.safetensors", "[global_step20=20] step");
        check("step_5/model.safetensors", "[step_5=5] step");
        check("step1/x step1-a/y step1/z/w step1/model.safetensors", "[step1=1] step");
        check("step000012/model.safetensors", "[step000012=12] step");
        check(
            "config.json m_final.pth checkpoints/m_000500.pth checkpoints/m_2000.pth",
            "checkpoints[m_000500.pth=500 m_2000.pth=2000] step",
        );
        check("a_b_3.pth a_b_21.pth config.json", "[a_b_3.pth=3 a_b_21.pth=21] step");
        check(
            "checkpoints/s_22000000.pth checkpoints/s_22000000000.pth config.json",
            "checkpoints[s_22000000.pth=22000000 s_22000000000.pth=22000000000] token",
        );
        check("config.json model.safetensors", "single false");
        check("config.json pytorch_model.bin trainer_state.json", "single true");
        check("config.json SoLU_final.pth optimizer_state_dict.pth", "single false");
        // One checkpoint of a trainer with several processes.
        check(
            "config.json model.safetensors optimizer.pt rng_state_0.pth rng_state_1.pth scheduler.pt \
             trainer_state.json",
            "single true",
        );
        // The output folder of a Hugging Face trainer: the checkpoints, not the final model.
        check(
            "config.json model.safetensors checkpoint-1/model.safetensors runs/events",
            "[checkpoint-1=1] step",
        );
        // A DeepSpeed folder without readable weights does not hide the model beside it.
        check("pytorch_model.bin global_step400000/mp_rank_00_model_states.pt", "single false");
    }

    #[test]
    fn the_whole_group_of_digits_is_the_label() {
        assert_eq!(labelled_file("m_100.pth"), Some(("m", 100)));
        assert_eq!(labelled_file("m_final.pth"), None);
        assert_eq!(labelled_file("m_1x00.pth"), None);
        assert_eq!(labelled_file("m_.pth"), None);
        assert_eq!(labelled_file("rng_state_0.pth"), None);
        assert_eq!(labelled_file("optimizer_500.pth"), None);
        assert_eq!(labelled_file("m_99999999999999999999999.pth"), None);
        assert_eq!(label("step512"), Some(512));
        assert_eq!(label("stage1-step101000-tokens424B"), Some(101_000));
        assert_eq!(label("step1000-tokens4B"), Some(1000));
        for other in ["step", "step12b", "steps5", "main", "stage2-ingredient1-step5-tokens1B"] {
            assert_eq!(label(other), None, "{other}");
        }
    }

    proptest::proptest! {
        /// Whatever is listed: no panic, and labels that rise.
        #[test]
        fn arbitrary_listings_are_read_or_refused(
            files in proptest::collection::vec(
                "(step|checkpoint-|checkpoints/|a/)?[0-9]{0,3}(_[0-9]{0,21})?(/model.safetensors|.pth|/x|)",
                0..12,
            )
        ) {
            let mut notes = Vec::new();
            let found = recognise(files.iter().map(String::as_str), &mut notes);
            if let Ok(Recognised::Labelled { checkpoints, .. }) = found {
                proptest::prop_assert!(!checkpoints.is_empty());
                proptest::prop_assert!(checkpoints.is_sorted_by(|a, b| a.step < b.step));
            }
        }
    }

    #[test]
    fn two_readings_or_none_are_errors_that_say_what_is_recognised() {
        refused("", &["it is empty", "step<N>", "checkpoint-<N>", "_<N>.pth", "model.safetensors"]);
        refused("notes.txt data/x.bin", &["data/, notes.txt", "step<N>"]);
        refused("step1/notes.txt", &["step1/"]);
        refused("step1/model.safetensors checkpoint-1/model.safetensors", &["ambiguous"]);
        refused("step1/model.safetensors step01/model.safetensors", &["both step 1"]);
        refused("a_1.pth b_1.pth", &["ambiguous", "1 a_<N>.pth", "1 b_<N>.pth"]);
        refused("a_1.pth checkpoints/a_1.pth", &["ambiguous", "checkpoints/a_1.pth"]);
        refused("step1/model.safetensors m_1.pth", &["ambiguous"]);
    }

    #[test]
    fn what_is_left_aside_is_noted() {
        let (found, notes) = read("step1/model.safetensors step2/notes.txt step3/config.json");
        assert!(
            matches!(found, Ok(Recognised::Labelled { checkpoints, .. }) if checkpoints.len() == 1)
        );
        assert_eq!(notes, ["ignored folders without weights: step2, step3"]);
        let (_, notes) = read("model.safetensors step1/model.safetensors");
        assert!(notes[0].contains("final model"), "{notes:?}");
    }

    #[test]
    fn branches_named_by_steps_are_a_trajectory() {
        let mut notes = Vec::new();
        let found = branches(["main", "step2", "step10", "step1"], &mut notes).unwrap().unwrap();
        assert_eq!(found.iter().map(|f| f.step).collect::<Vec<_>>(), [1, 2, 10]);
        assert_eq!(notes, ["ignored revisions that name no step: main"]);
        assert_eq!(branches(["main", "v1.0"], &mut notes), Ok(None));
        assert!(branches(["step1", "checkpoint-1"], &mut notes).is_err());
        let olmo = ["stage1-step1000-tokens5B", "stage2-ingredient1-step1000-tokens3B"];
        let found = branches(olmo, &mut notes).unwrap().unwrap();
        assert_eq!(found.len(), 1);
    }
}
