//! Locations of checkpoints and of what lies around them.

use super::{Entry, RemoteFile};
use crate::{
    error::{Error, Result},
    layout::{self, Found, Listing, Unit},
    location::{Location, encode_revision},
    select,
};

/// The text as a template, unless it has another `{}` already.
pub(super) fn template(text: &str) -> Result<String> {
    if text.matches("{}").count() == 1 {
        return Ok(text.to_owned());
    }
    let problem = "`{}` stands for the names of checkpoints; rename the folder".to_owned();
    Err(Error::Location { text: text.to_owned(), problem })
}

/// Template and name that make up a single place.
pub(super) fn parent_template(place: &Location) -> Result<(String, String)> {
    if let Location::Hub { repo, revision, path } = place
        && path.is_empty()
    {
        return Ok((template(&format!("hub:{repo}@{{}}"))?, encode_revision(revision)));
    }
    let text = place.to_string();
    match text.rsplit_once('/') {
        Some((parent, name)) if !name.is_empty() => {
            Ok((template(&format!("{parent}/{{}}"))?, name.to_owned()))
        }
        _ => {
            let problem = "a checkpoint needs a folder of its own".to_owned();
            Err(Error::Location { text, problem })
        }
    }
}

/// The listing of a location that is one `.pth` file.
pub(super) fn single_file(place: &Location) -> Option<Result<Listing>> {
    let (_, file) = split_file(place);
    let step = layout::file_label(&file?).unwrap_or(0);
    Some(parent_template(place).map(|(at, name)| Listing {
        at,
        checkpoints: vec![Found { step, name }],
        unit: Unit::of_last_label(step),
        notes: Vec::new(),
    }))
}

/// Folder and file of a location that names a `.pth` file; otherwise the location itself.
pub(super) fn split_file(place: &Location) -> (Location, Option<String>) {
    match (last(place), parent(place)) {
        (Some(name), Some(folder)) if select::is_pickle(&name) => (folder, Some(name)),
        _ => (place.clone(), None),
    }
}

/// The folder above one that is a checkpoint among others.
pub(super) fn above(folder: &Location) -> Option<Location> {
    let name = last(folder)?;
    let among_others = name == "checkpoints" || layout::label(&name).is_some();
    among_others.then(|| parent(folder)).flatten()
}

/// The step in the name of a place.
pub(super) fn label_of(place: &Location) -> Option<u64> {
    match place {
        Location::Hub { revision, path, .. } if path.is_empty() => layout::label(revision),
        place => layout::label(&last(place)?),
    }
}

pub(super) fn remote_file(folder: &Location, entry: &Entry) -> RemoteFile {
    RemoteFile {
        name: entry.path.clone(),
        location: folder.join(&entry.path),
        size: entry.size,
        sha256: entry.sha256.clone(),
        version: entry.version.clone(),
    }
}

/// Last part of the path within repository, bucket or machine.
fn last(place: &Location) -> Option<String> {
    let path = match place {
        Location::Hub { path, .. } => path.as_str(),
        Location::Bucket { prefix, .. } => prefix.as_str(),
        Location::Folder(path) => path.file_name()?.to_str()?,
    };
    path.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

fn parent(place: &Location) -> Option<Location> {
    let above = |path: &str| path.rsplit_once('/').map_or("", |(above, _)| above).to_owned();
    match place {
        Location::Hub { path, .. } if path.is_empty() => None,
        Location::Hub { repo, revision, path } => Some(Location::Hub {
            repo: repo.clone(),
            revision: revision.clone(),
            path: above(path),
        }),
        Location::Bucket { prefix, .. } if prefix.is_empty() => None,
        Location::Bucket { bucket, prefix } => {
            Some(Location::Bucket { bucket: bucket.clone(), prefix: above(prefix) })
        }
        Location::Folder(path) => Some(Location::Folder(path.parent()?.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(place: &str, at: &str, name: &str, over: Option<&str>) {
        let place: Location = place.parse().unwrap();
        let (template, found) = parent_template(&place).unwrap();
        assert_eq!((template.as_str(), found.as_str()), (at, name));
        assert_eq!(template.replacen("{}", &found, 1).parse::<Location>().unwrap(), place);
        assert_eq!(above(&place).map(|above| above.to_string()).as_deref(), over);
    }

    #[test]
    fn a_single_place_is_template_and_name() {
        check("hub:a/b@main", "hub:a/b@{}", "main", None);
        check("hub:a/b@refs%2Fpr%2F1", "hub:a/b@{}", "refs%2Fpr%2F1", None);
        check("hub:a/b@main/x/step5", "hub:a/b@main/x/{}", "step5", Some("hub:a/b@main/x"));
        check("file:///data/my lm", "file:///data/{}", "my lm", None);
        check("file:///data/step7", "file:///data/{}", "step7", Some("file:///data"));
        check("s3://lab", "s3://{}", "lab", None);
        check("s3://lab/checkpoints", "s3://lab/{}", "checkpoints", Some("s3://lab"));
        assert!(parent_template(&"file:///".parse().unwrap()).is_err());
    }

    #[test]
    fn a_pickle_may_be_named_itself() {
        let place: Location = "hub:a/b@main/checkpoints/m_000500.pth".parse().unwrap();
        let (folder, file) = split_file(&place);
        assert_eq!(folder.to_string(), "hub:a/b@main/checkpoints");
        assert_eq!(file.as_deref(), Some("m_000500.pth"));
        assert_eq!(above(&folder).unwrap().to_string(), "hub:a/b@main");
        let listing = single_file(&place).unwrap().unwrap();
        assert_eq!(listing.at, "hub:a/b@main/checkpoints/{}");
        assert_eq!(listing.checkpoints, [Found { step: 500, name: "m_000500.pth".into() }]);
    }
}
