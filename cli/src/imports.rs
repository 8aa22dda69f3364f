//! Models that a sweep does not train: finds out, where the command is typed, which checkpoints they
//! have, and writes that into the sweep. What was left aside and what is known to be wrong with a
//! published model is said before anything runs.

use sweep_proto::spec::{Listing, ModelSource, ModelSpec, Problem, Segment, SweepSpec};
use sweep_source::{Error, Source};

use crate::{context::Context, error::Result, sources, spec_file::SweepFile};

/// Lists the checkpoints of every imported model that has no list yet.
///
/// # Errors
/// Every place that cannot be listed, with its line in the sweep file.
pub async fn list(cx: &Context, file: &SweepFile, spec: &mut SweepSpec) -> Result<()> {
    let wants = |model: &ModelSpec| source(model).is_some() && model.import.found.is_none();
    if !spec.models.iter().any(wants) {
        return Ok(());
    }
    let access = sources::access()?;
    let mut problems = Vec::new();
    for (index, model) in spec.models.iter_mut().enumerate() {
        let Some(source) = source(model).filter(|_| model.import.found.is_none()) else { continue };
        match sources::resolve(cx, &access, &source).await {
            Ok(listing) => {
                let checkpoints = listing.checkpoints.iter();
                let found = Listing {
                    at: listing.at.clone(),
                    checkpoints: checkpoints
                        .map(|found| (found.step, found.name.clone()))
                        .collect(),
                };
                // A selection that is not there is reported by the check that follows.
                let steps = found.select(model.checkpoints.as_ref()).unwrap_or_default();
                sources::warn(cx, &listing, &steps);
                model.import.found = Some(found);
            }
            // Nothing is wrong with the file.
            Err(error @ (Error::Unavailable { .. } | Error::Denied { .. })) => {
                return Err(error.into());
            }
            Err(error) => problems.push(Problem {
                path: vec![Segment::Key("models".to_owned()), Segment::Index(index)],
                at_key: false,
                message: error.to_string(),
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
