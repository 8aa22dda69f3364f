//! Models that a sweep does not train: finds out, where the command is typed, which checkpoints they
//! have, and writes that into the sweep. What was left aside and what is known to be wrong with a
//! published model is said before anything runs.

use std::time::Duration;

use sweep_proto::spec::{Listing, ModelSource, ModelSpec, Problem, Segment, SweepSpec};
use sweep_source::{Access, Source};

use crate::{
    context::Context,
    error::{CommandError, Result},
    spec_file::SweepFile,
};

/// A person waits for the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lists the checkpoints of every imported model that has no list yet.
///
/// # Errors
/// Every place that cannot be listed, with its line in the sweep file.
pub async fn list(cx: &Context, file: &SweepFile, spec: &mut SweepSpec) -> Result<()> {
    let wants = |model: &ModelSpec| source(model).is_some() && model.import.found.is_none();
    if !spec.models.iter().any(wants) {
        return Ok(());
    }
    let settings = std::env::vars().filter(|(name, _)| sweep_source::is_setting(name)).collect();
    let access = Access::new(settings, None, PATIENCE)
        .map_err(|error| CommandError::usage(error.to_string()))?;
    let mut problems = Vec::new();
    for (index, model) in spec.models.iter_mut().enumerate() {
        let Some(source) = source(model).filter(|_| model.import.found.is_none()) else { continue };
        match sweep_source::resolve(&source, &access).await {
            Ok(listing) => {
                for note in &listing.notes {
                    cx.output.note(note);
                }
                let found = Listing {
                    at: listing.at.clone(),
                    checkpoints: listing
                        .checkpoints
                        .iter()
                        .map(|found| (found.step, found.name.clone()))
                        .collect(),
                };
                // A selection that is not there is reported by the check that follows.
                let steps = found.select(model.checkpoints.as_ref()).unwrap_or_default();
                for warning in sweep_source::warnings(&listing, &steps) {
                    cx.output.warn(&warning);
                }
                model.import.found = Some(found);
            }
            Err(error) => problems.push(Problem {
                path: vec![Segment::Key("models".to_owned()), Segment::Index(index)],
                at_key: false,
                message: chain(&error),
                hint: error.hint(),
            }),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(file.report(&problems)) }
}

/// Where the checkpoints of an imported model are asked for.
fn source(model: &ModelSpec) -> Option<Source> {
    Some(match &model.source {
        ModelSource::Train { .. } => return None,
        ModelSource::Named(name) => Source::Published(name.clone()),
        ModelSource::Hub(repo) => match repo.split_once('@') {
            Some((repo, revision)) => {
                Source::Hub { repo: repo.to_owned(), revision: Some(revision.to_owned()) }
            }
            None => Source::Hub { repo: repo.clone(), revision: None },
        },
        ModelSource::Path(url) => Source::Path(url.clone()),
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
