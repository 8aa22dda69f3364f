//! Catalogues: what workers can run. This build's own catalogue is embedded (`catalog.json`, written
//! by `make catalog`), so that a sweep can be checked before any worker has registered; a
//! coordinator adds what its workers advertise.

use crate::pb;

/// The catalogue of the workers built from the same source.
///
/// # Panics
/// Never: a test parses the embedded document.
pub fn embedded() -> pb::Catalog {
    serde_json::from_str(include_str!("../catalog.json")).expect("the embedded catalogue parses")
}

/// Adds what is new in `more` to `catalog`. Of one name, the highest version wins.
/// Returns whether anything changed.
pub fn merge(catalog: &mut pb::Catalog, more: &pb::Catalog) -> bool {
    let mut changed = false;
    for experiment in &more.experiments {
        match catalog.experiments.iter_mut().find(|known| known.name == experiment.name) {
            Some(known) if known.version >= experiment.version => {}
            Some(known) => {
                *known = experiment.clone();
                changed = true;
            }
            None => {
                catalog.experiments.push(experiment.clone());
                changed = true;
            }
        }
    }
    for recipe in &more.recipes {
        match catalog.recipes.iter_mut().find(|known| known.name == recipe.name) {
            Some(known) if known.version >= recipe.version => {}
            Some(known) => {
                *known = recipe.clone();
                changed = true;
            }
            None => {
                catalog.recipes.push(recipe.clone());
                changed = true;
            }
        }
    }
    catalog.experiments.sort_by(|a, b| a.name.cmp(&b.name));
    catalog.recipes.sort_by(|a, b| a.name.cmp(&b.name));
    changed
}

/// The experiment of that name.
pub fn experiment<'a>(catalog: &'a pb::Catalog, name: &str) -> Option<&'a pb::Experiment> {
    catalog.experiments.iter().find(|experiment| experiment.name == name)
}

/// The recipe of that name.
pub fn recipe<'a>(catalog: &'a pb::Catalog, name: &str) -> Option<&'a pb::Recipe> {
    catalog.recipes.iter().find(|recipe| recipe.name == name)
}

/// "did you mean …" for a misspelt word, when one of `known` is close.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(word.len()) / 4)
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, version: u32) -> pb::Catalog {
        let experiment = pb::Experiment { name: name.into(), version, ..Default::default() };
        pb::Catalog { experiments: vec![experiment], recipes: vec![] }
    }

    #[test]
    fn the_highest_version_of_a_name_wins() {
        let mut catalog = embedded();
        assert!(merge(&mut catalog, &of("zz", 2)));
        assert!(!merge(&mut catalog, &of("zz", 1)));
        assert_eq!(experiment(&catalog, "zz").map(|e| e.version), Some(2));
        assert!(merge(&mut catalog, &of("zz", 3)));
        assert_eq!(experiment(&catalog, "zz").map(|e| e.version), Some(3));
    }

    #[test]
    fn hints_are_close_or_absent() {
        let known = ["modular-addition", "induction"];
        assert_eq!(
            did_you_mean("modular-adition", known).as_deref(),
            Some("did you mean `modular-addition`?")
        );
        assert_eq!(did_you_mean("something-else", known), None);
    }
}
