//! Presets of the open problems on training dynamics: `deploy/problems/*.yaml`, embedded. Main types:
//! [`Preset`], [`Setting`], [`FileArgs`] (what `plan`, `submit` and `local` take).
//!
//! The numbering is that of Neel Nanda's "200 Concrete Open Problems in Mechanistic Interpretability:
//! Analysing Training Dynamics" (2022). One file is one problem; it holds a sweep for each [`Setting`]
//! that ships, so that a problem that has none yet says so. Adding one is adding its file.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use include_dir::{Dir, include_dir};
use serde_json::Value;
use sweep_proto::catalog::did_you_mean;

use crate::{
    error::{CommandError, Result},
    spec_file::SweepFile,
};

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../deploy/problems");

/// How much of a problem is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Setting {
    /// Small models that are trained here: minutes on two CPU cores
    Cpu,
    /// Published models or the papers' sizes: for GPUs
    Full,
}

impl Setting {
    /// All of them, smallest first.
    pub const ALL: [Setting; 2] = [Setting::Cpu, Setting::Full];

    /// As on the command line and in the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Full => "full",
        }
    }
}

/// A problem with its sweeps.
#[derive(Debug)]
pub struct Preset {
    file: SweepFile,
    text: &'static str,
}

impl Preset {
    /// All problems, in order of their numbers.
    pub fn all() -> Vec<Preset> {
        let mut presets: Vec<(Vec<u32>, Preset)> = FILES
            .files()
            .filter(|file| file.path().extension().is_some_and(|end| end == "yaml"))
            .map(|file| {
                let name = format!("deploy/problems/{}", file.path().display());
                let text = file.contents_utf8().expect("a test reads all of them");
                let file = SweepFile::parse(name, text).expect("a test reads all of them");
                let preset = Preset { file, text };
                let number = preset.id().split('.').filter_map(|part| part.parse().ok()).collect();
                (number, preset)
            })
            .collect();
        presets.sort_by(|(a, _), (b, _)| a.cmp(b));
        presets.into_iter().map(|(_, preset)| preset).collect()
    }

    /// One problem by its number.
    ///
    /// # Errors
    /// There is no such problem.
    pub fn find(id: &str) -> Result<Preset> {
        let mut all = Preset::all();
        let Some(at) = all.iter().position(|preset| preset.id() == id) else {
            let error = CommandError::not_found(format!("no problem `{id}`"));
            return Err(match did_you_mean(id, all.iter().map(Preset::id)) {
                Some(hint) => error.hint(hint),
                None => error.hint("`sweep catalog problems` lists all"),
            });
        };
        Ok(all.swap_remove(at))
    }

    /// Number, as `5.22`.
    pub fn id(&self) -> &str {
        self.words("problem")
    }

    /// A few words.
    pub fn title(&self) -> &str {
        self.words("title")
    }

    /// Our estimate, from A (a first project) to D (a research programme).
    pub fn difficulty(&self) -> &str {
        self.words("difficulty")
    }

    /// What is asked.
    pub fn question(&self) -> &str {
        self.words("question")
    }

    /// What a correct run of a setting shows; `None` when the setting does not ship.
    pub fn shows(&self, setting: Setting) -> Option<&str> {
        self.file.document()[setting.name()]["shows"].as_str()
    }

    /// The whole file, to start one's own sweep from.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// The sweep of a setting.
    ///
    /// # Errors
    /// The setting does not ship.
    pub fn sweep(self, setting: Setting) -> Result<SweepFile> {
        of_setting(self.file, setting)
    }

    fn words(&self, key: &str) -> &str {
        self.file.document()[key].as_str().unwrap_or_default()
    }
}

/// The sweep of one setting out of a preset's file.
fn of_setting(file: SweepFile, setting: Setting) -> Result<SweepFile> {
    let ships = |setting: &Setting| file.document()[setting.name()]["sweep"].is_object();
    if ships(&setting) {
        return Ok(file.within(&[setting.name(), "sweep"]));
    }
    let error =
        CommandError::not_found(format!("{} ships no setting `{}`", file.name(), setting.name()));
    Err(match Setting::ALL.iter().find(|&other| ships(other)) {
        Some(other) => error.hint(format!("there is --setting {}", other.name())),
        None => error.hint("`sweep catalog problems` tells which problems can be run"),
    })
}

/// Which sweep is meant.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// Sweep file (YAML or JSON), - for standard input
    #[arg(required_unless_present = "problem", conflicts_with = "problem")]
    file: Option<PathBuf>,
    /// An open problem instead of a file, as 5.22; `sweep catalog problems` lists them
    #[arg(long, value_name = "ID")]
    problem: Option<String>,
    /// How much of the problem to run
    #[arg(long, value_enum, default_value_t = Setting::Cpu)]
    setting: Setting,
}

impl FileArgs {
    /// Reads it.
    ///
    /// # Errors
    /// As [`SweepFile::read`] and [`Preset::find`]; a setting that does not ship.
    pub fn read(&self) -> Result<SweepFile> {
        if let Some(id) = &self.problem {
            return Preset::find(id)?.sweep(self.setting);
        }
        let file = self.file.as_deref().unwrap_or(std::path::Path::new("-"));
        let file = SweepFile::read(file)?;
        // Somebody's copy of a preset.
        let is_preset = matches!(file.document().get("problem"), Some(Value::String(_)));
        if is_preset { of_setting(file, self.setting) } else { Ok(file) }
    }

    /// What to type to name the same again.
    pub fn again(&self) -> String {
        let setting = match self.setting {
            Setting::Cpu => "",
            Setting::Full => " --setting full",
        };
        match (&self.problem, &self.file) {
            (Some(id), _) => format!("--problem {id}{setting}"),
            (None, Some(file)) => format!("{}{setting}", file.display()),
            (None, None) => "-".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use sweep_proto::{catalog, spec::ModelSource};

    use super::*;

    #[test]
    fn every_problem_has_a_file_that_says_what_it_is() {
        let all = Preset::all();
        let ids: Vec<String> = all.iter().map(|preset| preset.id().to_owned()).collect();
        let expected: Vec<String> = (1..=38).map(|n| format!("5.{n}")).collect();
        assert_eq!(ids, expected);
        for preset in &all {
            assert!(!preset.title().is_empty() && preset.question().ends_with(['?', '.']));
            assert!(["A", "B", "C", "D"].contains(&preset.difficulty()), "{}", preset.id());
            let keys = preset.file.document().as_object().unwrap().keys();
            let known = ["problem", "title", "difficulty", "question", "cpu", "full"];
            assert!(keys.clone().all(|key| known.contains(&key.as_str())), "{}", preset.id());
        }
    }

    #[test]
    fn every_sweep_can_be_run_by_this_build() {
        let known = catalog::embedded();
        for preset in Preset::all() {
            let id = preset.id().to_owned();
            for setting in Setting::ALL {
                let Some(shows) = preset.shows(setting) else { continue };
                assert!(shows.len() > 20, "{id} {}", setting.name());
                let file = Preset::find(&id).unwrap().sweep(setting).unwrap();
                let spec = file.decode().unwrap_or_else(|error| panic!("{id}: {error:?}"));
                // Published models are listed when the command is typed; the rest is checked here.
                let trained =
                    spec.models.iter().all(|m| matches!(m.source, ModelSource::Train { .. }));
                assert!(trained || setting == Setting::Full, "{id}: cpu settings need no network");
                if trained {
                    file.check(&spec, &known).unwrap_or_else(|error| panic!("{id}: {error:?}"));
                }
            }
        }
    }

    #[test]
    fn unknown_ones_are_explained() {
        let error = Preset::find("5.222").unwrap_err();
        assert!(format!("{error:?}").contains("5.22"), "{error:?}");
    }
}
