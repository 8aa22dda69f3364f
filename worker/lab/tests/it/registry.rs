//! The registries are complete, and every card keeps the promises that cards make.

use std::{collections::BTreeSet, fs, path::Path};

use sweep_lab::{Card, EXPERIMENTS, FigureKind, ParamDef, ParamKind, RECIPES, Stage};

/// Modules of `src/<folder>`, with their text.
fn modules(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let mut modules: Vec<(String, String)> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (stem, fs::read_to_string(path).unwrap())
        })
        .filter(|(stem, _)| stem != "mod")
        .collect();
    modules.sort();
    modules
}

#[test]
fn files_equal_registry_and_have_their_sections() {
    for (folder, cards, sections) in [
        (
            "experiments",
            EXPERIMENTS.iter().map(|e| e.card()).collect::<Vec<_>>(),
            ["# What it measures", "# Interpretation", "# Source"],
        ),
        (
            "recipes",
            RECIPES.iter().map(|r| r.card()).collect(),
            ["# What it trains", "# Interpretation", "# Source"],
        ),
    ] {
        let modules = modules(folder);
        let stems: Vec<String> = modules.iter().map(|(stem, _)| stem.replace('_', "-")).collect();
        let names: Vec<&str> = cards.iter().map(|card| card.name).collect();
        assert_eq!(stems, names, "files of {folder} and registry, in order");
        for (stem, text) in &modules {
            for section in sections {
                assert!(text.contains(&format!("//! {section}\n")), "{stem} lacks `{section}`");
            }
        }
    }
}

fn check_card(card: &Card) {
    assert!(card.version >= 1 && !card.source.is_empty(), "{}", card.name);
    assert!(!card.summary.is_empty() && !card.summary.ends_with('.'), "{}", card.name);
    let names: Vec<&str> = card.metrics.iter().map(|metric| metric.name).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{}", card.name);
    let is_plain =
        |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    for metric in card.metrics {
        assert!(is_plain(metric.name) && !metric.doc.is_empty(), "{}", metric.name);
    }
    for figure in card.figures {
        assert!(!figure.metrics.is_empty() && !figure.title.is_empty(), "{}", figure.name);
        assert!(figure.metrics.iter().all(|metric| names.contains(metric)), "{}", figure.name);
        if figure.kind == FigureKind::Intervals {
            assert_eq!(figure.metrics.len() % 3, 0, "{}: estimate, low, high", figure.name);
        }
    }
    for ParamDef { name, doc, min, max, .. } in card.params {
        assert!(is_plain(name) && !doc.is_empty(), "{name}");
        assert!(min.is_none_or(|min| max.is_none_or(|max| min <= max)), "{name}");
    }
}

#[test]
fn cards_are_consistent_and_defaults_round_trip() {
    for experiment in EXPERIMENTS {
        let card = experiment.card();
        check_card(card);
        assert_ne!(card.stage, Stage::Train);
        if card.stage == Stage::Compare {
            let own = ["pairs", "at", "base"];
            let taken = card.params.iter().find(|def| own.contains(&def.name));
            assert!(taken.is_none(), "`{}` selects pairs of {}", taken.unwrap().name, card.name);
        }
        let mut params = experiment.default_params();
        for def in card.params.iter().filter(|def| def.is_required()) {
            assert!(experiment.check_params(&params).is_err(), "{} of {}", def.name, card.name);
            params[def.name] = match def.kind {
                ParamKind::MetricList => serde_json::json!(["some.metric", "another.metric"]),
                _ => "some.metric".into(),
            };
        }
        let mut groups = BTreeSet::new();
        for def in card.params.iter().filter(|def| def.group.is_some()) {
            if groups.insert(def.group) {
                assert!(experiment.check_params(&params).is_err(), "{} of {}", def.name, card.name);
                params[def.name] = match def.kind {
                    ParamKind::IntLists => serde_json::json!([[1, 2]]),
                    ParamKind::TextList => serde_json::json!(["a"]),
                    kind => panic!("no example of {kind:?}"),
                };
            }
        }
        experiment.check_params(&params).unwrap();
        let canonical = experiment.canonical_params(&params).unwrap();
        assert_eq!(canonical.to_string(), params.to_string(), "{}", card.name);
        assert_eq!(experiment.canonical_params(&canonical).unwrap(), canonical);
        params["no_such_parameter"] = 1.into();
        assert!(experiment.check_params(&params).is_err());
    }
    for recipe in RECIPES {
        let card = recipe.card();
        check_card(card);
        assert_eq!(card.stage, Stage::Train);
        for needed in ["train_loss", "weight_norm", "lr"] {
            assert!(card.metric(needed).is_some(), "{} lacks `{needed}`", card.name);
        }
        assert!(card.params.iter().any(|def| def.name == "steps"), "{}", card.name);
        let params = recipe.default_params();
        recipe.check_params(&params).unwrap();
        assert_eq!(recipe.canonical_params(&params).unwrap().to_string(), params.to_string());
        // What a recipe initialises is what its architecture has.
        let config = recipe.config(&params).unwrap();
        let weights = recipe.init(&params, 3).unwrap();
        sweep_lab::lens::Transformer::new(config, weights).unwrap();
    }
}
