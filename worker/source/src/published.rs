//! The catalogue of published models with checkpoints: names, places, schedules, known defects.
//! Main type: [`Model`].
//!
//! One file per family, each a table. A schedule is exact where the publisher fixed it; where only
//! the hub knows the labels, [`Schedule::Hub`] says so and the hub is asked. Defects are data with
//! their source; they are shown before anything runs.

mod crfm;
mod gpt2;
mod neel;
mod olmo;
mod pythia;
mod schedule;
mod tiny_stories;

use std::sync::OnceLock;

use sweep_proto::catalog::did_you_mean;

pub use schedule::Schedule;

use crate::{
    error::{Error, Result},
    layout::{Found, Listing, Unit},
};

/// Where the checkpoints of a model are in its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// One revision each, named by this prefix and the label.
    Revisions {
        /// `step` or `checkpoint-`.
        prefix: &'static str,
    },
    /// Files `checkpoints/*_<label>.pth` of the main revision.
    Files,
    /// Revisions whose names only the hub knows.
    Listed,
    /// The final model alone, in the main revision.
    Main,
}

/// Size of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub n_layers: u32,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Attention heads per layer.
    pub n_heads: u32,
}

/// What is wrong with checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefectKind {
    /// Their weights are not those of the step.
    Wrong,
    /// They are equal to each other, although the labels differ.
    Equal,
    /// They are not there.
    Missing,
    /// They were wrong or missing once; old copies may still be.
    Mended,
}

impl DefectKind {
    /// The word in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Equal => "equal",
            Self::Missing => "missing",
            Self::Mended => "mended",
        }
    }
}

/// A known defect of published checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// What is wrong.
    pub kind: DefectKind,
    /// Labels of the checkpoints concerned.
    pub steps: Vec<u64>,
    /// What is known, as a phrase about the model.
    pub text: String,
    /// Who reported it.
    pub source: &'static str,
}

/// A published model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Name in the catalogue.
    pub name: String,
    /// Other names, among them TransformerLens'.
    pub aliases: Vec<String>,
    /// Repository on the hub.
    pub repo: String,
    /// Family of converters: `gpt2`, `gpt_neox`, `olmo`, `olmo2`, `gpt_neo`, `neel`,
    /// `neel-solu-old`, `mingpt`.
    pub family: &'static str,
    /// Who published it.
    pub collection: &'static str,
    /// Its size, where that is part of its name or documentation.
    pub shape: Option<Shape>,
    /// Which checkpoints there are.
    pub schedule: Schedule,
    /// Where they are.
    pub places: Places,
    /// Whether a beginning-of-sequence token goes in front, as in its training or, where training
    /// had none, as in TransformerLens.
    pub prepend_bos: bool,
    /// Repository of the tokenizer, where it is not the model's own.
    pub tokenizer: Option<&'static str>,
    /// Rows of the embedding that training has seen; all, if unset.
    pub trained_vocab: Option<u32>,
    /// Training tokens per unit of a step label.
    pub tokens_per_step: Option<u64>,
    /// What a user should know.
    pub notes: Vec<&'static str>,
    /// What is known to be wrong.
    pub defects: Vec<Defect>,
}

/// Every published model, family by family.
pub fn models() -> &'static [Model] {
    static MODELS: OnceLock<Vec<Model>> = OnceLock::new();
    MODELS.get_or_init(|| {
        [
            crfm::models(),
            gpt2::models(),
            neel::models(),
            olmo::models(),
            pythia::models(),
            tiny_stories::models(),
        ]
        .concat()
    })
}

/// The model that is called `name`: in the catalogue, on the hub, or elsewhere. Case does not
/// matter.
pub fn find(name: &str) -> Option<&'static Model> {
    let is = |known: &str| known.eq_ignore_ascii_case(name);
    models().iter().find(|model| {
        is(&model.name) || is(&model.repo) || model.aliases.iter().any(|alias| is(alias))
    })
}

/// The model of a repository.
pub fn of_repo(repo: &str) -> Option<&'static Model> {
    find(repo).filter(|model| {
        let same = |name: &str| name.eq_ignore_ascii_case(repo);
        same(&model.repo) || model.aliases.iter().any(|alias| alias.contains('/') && same(alias))
    })
}

/// As [`find`].
///
/// # Errors
/// [`Error::UnknownModel`] with a name that is close.
pub fn get(name: &str) -> Result<&'static Model> {
    find(name).ok_or_else(|| {
        let names = models().iter().flat_map(|model| {
            let aliases = model.aliases.iter().map(String::as_str);
            [model.name.as_str(), model.repo.as_str()].into_iter().chain(aliases)
        });
        Error::UnknownModel { name: name.to_owned(), hint: did_you_mean(name, names) }
    })
}

impl Model {
    /// What the labels count.
    pub fn unit(&self) -> Unit {
        self.schedule.unit()
    }

    /// The checkpoints that the schedule names, without asking the hub; those that are known to be
    /// missing are left out with a note. None where only the hub knows their names.
    pub fn listing(&self) -> Option<Listing> {
        let Places::Revisions { prefix } = self.places else { return None };
        let mut notes = Vec::new();
        let mut missing = Vec::new();
        for defect in self.defects.iter().filter(|defect| defect.kind == DefectKind::Missing) {
            notes.push(format!("left out: {}", self.describe(defect, &defect.steps)));
            missing.extend(&defect.steps);
        }
        let labels = self.schedule.labels()?.into_iter().filter(|step| !missing.contains(step));
        let found = labels.map(|step| Found { step, name: format!("{prefix}{step}") });
        let at = format!("hub:{}@{{}}", self.repo);
        Some(Listing { at, checkpoints: found.collect(), unit: self.unit(), notes })
    }

    /// What is known to be wrong at `steps`, one sentence each.
    pub fn warnings(&self, steps: &[u64]) -> Vec<String> {
        let concerned = self.defects.iter().filter_map(|defect| {
            let among: Vec<u64> =
                defect.steps.iter().copied().filter(|step| steps.contains(step)).collect();
            let harmful = match defect.kind {
                DefectKind::Wrong | DefectKind::Missing => !among.is_empty(),
                // One of equal checkpoints alone is as good as the other.
                DefectKind::Equal => among.len() > 1,
                DefectKind::Mended => false,
            };
            harmful.then(|| self.describe(defect, &among))
        });
        concerned.collect()
    }

    /// `pythia-2.8b: 86 of 154 revisions … (EleutherAI/pythia#205); here: 0, 1, 2 and 83 more`.
    fn describe(&self, defect: &Defect, among: &[u64]) -> String {
        let steps: Vec<String> = among.iter().map(u64::to_string).collect();
        let steps = crate::layout::abridged(&steps);
        format!("{}: {} ({}); here: {steps}", self.name, defect.text, defect.source)
    }
}

#[cfg(test)]
mod tests;
