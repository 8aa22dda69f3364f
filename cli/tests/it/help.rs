//! Every verb explains itself, and the help texts change only on purpose.

use clap::{Command, CommandFactory};
use sweep_cli::app::App;

/// The command line at a fixed width, whatever the terminal.
fn app() -> Command {
    let mut app = App::command().term_width(100);
    app.build();
    app
}

fn verbs(command: &Command, path: &str, visit: &mut dyn FnMut(&str, &Command)) {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let path = format!("{path} {}", verb.get_name());
        visit(&path, verb);
        verbs(verb, &path, visit);
    }
}

#[test]
fn every_verb_has_a_summary_and_an_example() {
    verbs(&app(), "sweep", &mut |path, verb| {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty() && about.len() < 75 && !about.contains('\n'), "{path}: {about}");
        let example = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        let leaf = !verb.has_subcommands();
        assert!(
            !leaf || example.contains(&format!("  {path}")) || example.contains(path),
            "{path}"
        );
        for argument in verb.get_arguments() {
            assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
        }
    });
}

#[test]
fn help_texts() {
    let mut text = app().render_long_help().to_string();
    // The global options are the same everywhere; once is enough to look at.
    let own = |help: &str| help.split("Global options:").next().unwrap().trim_end().to_owned();
    verbs(&app(), "sweep", &mut |path, verb| {
        let mut verb = verb.clone().term_width(100);
        let help = verb.render_help().to_string();
        let after = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
        text = format!("{text}\n\n=== {path} ===\n{}\n\n{after}", own(&help));
    });
    insta::assert_snapshot!(text);
}

#[test]
fn the_command_line_is_well_formed() {
    app().debug_assert();
}
