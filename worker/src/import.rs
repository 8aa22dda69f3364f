//! An import lease: finds out which files the checkpoints of a published model consist of, and makes
//! them known one by one. Nothing is downloaded; hashes are those that the source states.

use std::{sync::Arc, time::Instant};

use futures::StreamExt;
use sweep_proto::{
    id::{FailureClass, failure},
    pb::{self, record::Body},
};
use sweep_source::{Location, RemoteFile, published};

use crate::{
    deliver::{Outlet, Provenance, Task},
    failure::of_source,
    leases::HeldLease,
};

/// Checkpoints that are asked about side by side; a hub answers each in a tenth of a second or so.
const PARALLEL: usize = 8;
/// Missing checkpoints that a failure names.
const NAMED: usize = 5;

/// Runs an import lease to its end; the task ends with a record.
pub fn run(
    outlet: &Outlet,
    lease: &Arc<HeldLease>,
    work: &pb::ImportWork,
    provenance: &Provenance,
) {
    let Some(Ok(task)) = work.task.as_ref().map(|key| outlet.task(lease, key)) else {
        tracing::error!(attempt = lease.attempt, "lease with a malformed task, dropped");
        lease.revoke();
        return;
    };
    let begun = Instant::now();
    match import(outlet, &task, work) {
        Ok(true) => task.end(Body::Done(pb::Manifest {
            artifacts: Vec::new(),
            provenance: provenance.clone().into_iter().collect(),
            elapsed_ms: begun.elapsed().as_millis() as u64,
        })),
        // Revoked: the records of this attempt count no more.
        Ok(false) => {}
        Err(failure) => task.end(Body::Failed(failure)),
    }
}

/// False when the lease was lost on the way.
fn import(outlet: &Outlet, task: &Task, work: &pb::ImportWork) -> Result<bool, pb::Failure> {
    let record = |body| task.record(body).map_err(|error| error.failure());
    record(Body::Started(pb::Started { resumed_from: None }))?;
    let total = work.checkpoints.len() as u64;
    let access = &outlet.access;
    let asked = work.checkpoints.iter().map(|found| async move {
        let at = work.at.replacen("{}", &found.name, 1);
        let place: Result<Location, _> = at.parse();
        let files = match place {
            Ok(place) => access.files(&place).await,
            Err(error) => Err(error),
        };
        (found.step, at, files)
    });
    let mut answers = futures::stream::iter(asked).buffered(PARALLEL);
    let mut missing: Vec<String> = Vec::new();
    let mut done = 0;
    // One at a time: a checkpoint is made known after all before it.
    while let Some((step, at, files)) = outlet.runtime.block_on(answers.next()) {
        if task.lease().is_revoked() {
            return Ok(false);
        }
        match files {
            Ok(files) => {
                record(Body::Checkpoint(checkpoint(work, step, at, &files)))?;
            }
            // What is wrong with one checkpoint does not hold up the others.
            Err(error) if is_about_one(error.class()) => {
                let line = format!("step {step}: {}", of_source(&error).message);
                task.log("warn", line.clone()).map_err(|error| error.failure())?;
                missing.push(line);
            }
            Err(error) => return Err(of_source(&error)),
        }
        done += 1;
        task.lease().set_progress(done, total);
    }
    if missing.is_empty() {
        return Ok(true);
    }
    let mut message = missing[..missing.len().min(NAMED)].join("; ");
    if missing.len() > NAMED {
        message = format!("{message}; and {} more", missing.len() - NAMED);
    }
    Err(failure(FailureClass::InputMissing, message))
}

fn is_about_one(class: FailureClass) -> bool {
    matches!(class, FailureClass::InputMissing | FailureClass::Permanent)
}

fn checkpoint(
    work: &pb::ImportWork,
    step: u64,
    location: String,
    files: &[RemoteFile],
) -> pb::Checkpoint {
    let blob = |file: &RemoteFile| pb::Blob {
        name: file.name.clone(),
        key: file.location.to_string(),
        size: file.size,
        sha256: file.sha256.clone().unwrap_or_default(),
    };
    let options = options(work.options.clone().unwrap_or_default(), &location);
    let hashes: Option<Vec<(&str, &str)>> = files
        .iter()
        .filter(|file| is_weights(&file.name))
        .map(|file| Some((file.name.as_str(), file.sha256.as_deref()?)))
        .collect();
    pb::Checkpoint {
        step,
        file: None,
        weights_hash: hashes.map_or_else(String::new, weights_hash),
        imported: Some(pb::Imported {
            location,
            files: files.iter().map(blob).collect(),
            options: Some(options),
        }),
    }
}

/// Identity of the weights in these files: name and sha256 of each.
pub fn weights_hash<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    sweep_lens::tensor_file::combined_hash(files)
}

/// Whether a file of a checkpoint holds tensors.
pub fn is_weights(name: &str) -> bool {
    let extension = name.rsplit('.').next().unwrap_or_default();
    matches!(extension, "safetensors" | "bin" | "pth" | "pt")
}

/// What the sweep file leaves open is as the catalogue of published models says.
fn options(mut options: pb::ImportOptions, location: &str) -> pb::ImportOptions {
    let known = match location.parse() {
        Ok(Location::Hub { repo, .. }) => published::of_repo(&repo),
        _ => None,
    };
    if let Some(model) = known {
        // The layout of some files shows neither in their configuration nor in their shapes.
        if options.family.is_empty() {
            model.family.clone_into(&mut options.family);
        }
        options.prepend_bos = options.prepend_bos.or(Some(model.prepend_bos));
        if options.tokenizer.is_empty()
            && let Some(repo) = model.tokenizer
        {
            options.tokenizer = format!("hub:{repo}@main");
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(location: &str) -> pb::ImportOptions {
        options(pb::ImportOptions::default(), location)
    }

    #[test]
    fn the_catalogue_says_what_a_sweep_file_leaves_open() {
        // Its positional embedding is square and its norms have no weights: nothing in the files shows that
        // it is stored transposed.
        let old = known("hub:NeelNanda/SoLU_8L_v21_old@main/checkpoints/SoLU_8L_v21_000500.pth");
        assert_eq!((old.family.as_str(), old.prepend_bos), ("neel-solu-old", Some(true)));
        assert_eq!(old.tokenizer, "hub:EleutherAI/gpt-neox-20b@main");
        let seed = known("hub:EleutherAI/pythia-410m-seed3@step1000");
        assert_eq!((seed.family.as_str(), seed.prepend_bos), ("gpt_neox", Some(false)));
        assert_eq!(seed.tokenizer, "hub:EleutherAI/pythia-70m@main");
        assert_eq!(known("hub:somebody/else@main"), pb::ImportOptions::default());
        assert_eq!(known("file:///data/step1"), pb::ImportOptions::default());
        let own = pb::ImportOptions {
            family: "native".to_owned(),
            prepend_bos: Some(true),
            tokenizer: "hub:gpt2@main".to_owned(),
            ..pb::ImportOptions::default()
        };
        assert_eq!(options(own.clone(), "hub:EleutherAI/pythia-70m@step1"), own);
    }

    #[test]
    fn every_family_of_the_catalogue_has_a_converter() {
        for model in published::models() {
            assert!(sweep_lens::families::named(model.family).is_ok(), "{}", model.name);
        }
    }
}
