//! Every mistake in a sweep file is shown at its line and column.

use serde_json::json;

use super::*;

const GOOD: &str = "\
name: typo
models:
  - train:
      recipe: modular-addition
      params: { p: 13, steps: 40 }
      seeds: [0, 1]
    checkpoints: { every: 20 }
experiments:
  - grokking-progress
  - weight-norms: {}
";

fn catalog() -> pb::Catalog {
    let param = |name: &str| pb::Param {
        name: name.into(),
        kind: "int".into(),
        default: "100".into(),
        min: Some(1.0),
        ..Default::default()
    };
    let experiment = |name: &str| pb::Experiment {
        name: name.into(),
        stage: "analyse".into(),
        params: vec![param("width")],
        ..Default::default()
    };
    pb::Catalog {
        recipes: vec![pb::Recipe {
            name: "modular-addition".into(),
            params: vec![param("p"), param("steps")],
            ..Default::default()
        }],
        experiments: vec![experiment("grokking-progress"), experiment("weight-norms")],
    }
}

fn problems(text: &str) -> Vec<FileProblem> {
    let result = SweepFile::parse("typo.yaml".to_owned(), text).and_then(|file| {
        let spec = file.decode()?;
        file.check(&spec, &catalog())
    });
    result.err().map_or_else(Vec::new, |error| error.problems().to_vec())
}

/// Replaces `good` by `bad` and expects one problem at line and column with these words.
#[track_caller]
fn check(good: &str, bad: &str, line: usize, column: usize, words: &[&str]) {
    assert!(GOOD.contains(good), "{good}");
    let found = problems(&GOOD.replacen(good, bad, 1));
    let [problem] = found.as_slice() else { panic!("expected one problem, found {found:#?}") };
    assert_eq!((problem.line, problem.column), (line, column), "{problem}");
    for word in words {
        assert!(problem.to_string().contains(word), "`{word}` is not in\n{problem}");
    }
}

#[test]
fn a_good_file_is_read() {
    assert_eq!(problems(GOOD), []);
    let file = SweepFile::parse("x".into(), GOOD).unwrap();
    assert_eq!(file.document()["models"][0]["train"]["params"], json!({ "p": 13, "steps": 40 }));
}

#[test]
fn every_mistake_is_shown_where_it_is() {
    check("experiments:", "experimets:", 8, 1, &["unknown key", "did you mean `experiments`?"]);
    check("p: 13", "p: thirteen", 5, 20, &["whole number"]);
    check("p: 13", "p: []", 5, 20, &["empty"]);
    check("p: 13", "p: [3, 0]", 5, 24, &["at least 1"]);
    check("p: 13", "q: 13", 5, 17, &["no parameter `q`"]);
    check("modular-addition", "modular-adition", 4, 15, &["did you mean `modular-addition`?"]);
    check(
        "- grokking-progress",
        "- groking-progress",
        9,
        5,
        &["did you mean `grokking-progress`?"],
    );
    check("every: 20", "every: 0", 7, 27, &["above 0"]);
    check("seeds: [0, 1]", "seeds: 0", 6, 14, &["`seeds` must be"]);
    check("name: typo\n", "", 1, 1, &["name"]);
    check("      recipe: modular-addition\n", "", 3, 5, &["`recipe` is missing"]);
    check("weight-norms: {}", "weight-norms: { width: x }", 10, 28, &["whole number"]);
    check("name: typo", "name: .nan", 1, 7, &["no usable number"]);
}

#[test]
fn all_problems_are_listed_from_the_top() {
    let text =
        GOOD.replace("p: 13", "q: 13").replace("grokking-progress", "x").replace("every", "evry");
    let lines: Vec<usize> = problems(&text).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [7], "decoding stops before the catalogue is looked at");
    let text = GOOD.replace("p: 13", "q: 13").replace("- grokking-progress", "- x");
    let lines: Vec<usize> = problems(&text).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [5, 9]);
}

#[test]
fn what_is_no_yaml_has_a_place_too() {
    check("models:", "models: [", 3, 3, &["invalid YAML", "2 | models: [", "missing?"]);
    check("      seeds", "\tseeds", 6, 1, &["spaces", "tabs"]);
    check("name: typo", "name: typo\nname: again", 2, 1, &["duplicated key", "once"]);
    check("p: 13", "p: 13, p: 14", 5, 24, &["duplicated key"]);
    // Two keys for YAML, but one for us.
    check("steps: 40", "1: 40, \"1\": 50", 5, 31, &["the key `1` stands here twice"]);
    check("p: 13", "p: &a 13, steps: *b", 5, 34, &["invalid YAML"]);
    check("p: 13", "p: !special 13", 5, 20, &["tags"]);
}

#[test]
fn anchors_work_and_bombs_do_not() {
    let text = GOOD.replace("p: 13, steps: 40", "p: &n 13, steps: *n");
    assert_eq!(problems(&text), []);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb = format!("{bomb}a{level}: &a{level} [{refs}]\n");
    }
    let found = problems(&bomb);
    assert!(found[0].message.contains("budget"), "{found:?}");
    let deep = format!("a: {}x", "- ".repeat(300_000));
    assert!(!problems(&deep).is_empty());
    let deep = format!("a:\n  {}x", "- ".repeat(300_000));
    assert!(problems(&deep)[0].message.contains("nested too deeply"));
    assert!(!problems(&"[".repeat(100_000)).is_empty());
    assert!(!problems(&"{a: ".repeat(100_000)).is_empty());
}

#[test]
fn json_is_accepted() {
    let text = json!({
        "name": "typo",
        "models": [{ "train": { "recipe": "modular-addition", "params": { "p": 13.5 } } }],
        "experiments": ["weight-norms"],
    });
    let pretty = serde_json::to_string_pretty(&text).unwrap();
    let found = problems(&pretty);
    assert_eq!((found.len(), found[0].line, found[0].column), (1, 8, 16), "{found:#?}");
    assert_eq!(problems(&text.to_string()).len(), 1);
    let tabs = pretty.replace("  ", "\t").replace("13.5", "13");
    assert_eq!(problems(&tabs), []);
}

#[test]
fn files_that_are_no_sweep_files() {
    assert!(problems("")[0].message.contains("empty"));
    assert!(problems("a: 1\n---\nb: 2\n")[0].message.contains("one document"));
    assert!(!problems("just words").is_empty());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yaml");
    let kind = |path: &Path| SweepFile::read(path).unwrap_err().kind().code();
    assert_eq!(kind(&path), "not-found");
    fs::write(&path, vec![b'a'; 2 << 20]).unwrap();
    assert_eq!(kind(&path), "usage");
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert_eq!(kind(&path), "usage");
    fs::write(&path, "\u{feff}name: [").unwrap();
    assert_eq!(kind(&path), "sweep-file");
}

#[test]
fn the_report_reads_like_a_compilers() {
    let text = GOOD.replace("experiments:", "experimets:").replace("every", "evry");
    let report: Vec<String> = problems(&text).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(report.join("\n\n"));
}

#[test]
fn long_lines_are_cut_around_the_place() {
    let long = format!("name: typo\nmodels: [{}{{ train: 3 }}]\n", "a, ".repeat(100));
    let found = problems(&long);
    let problem = found.last().unwrap();
    let lines: Vec<&str> = problem.excerpt.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() < 130), "{problem}");
    let at = lines[1].find('^').unwrap();
    assert!(lines[0][at..].starts_with('3'), "{problem}");
}
