//! One checkpoint, or a place with several, as text. Main type: [`Location`].
//!
//! `hub:OWNER/NAME@REVISION[/path]`, `file:///folder`, `s3://bucket/prefix`. Folders and keys are
//! written as they are, without percent encoding; only a revision has its slashes as `%2F`, because
//! a slash ends it. Whatever parses prints as text that parses to the same place.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use crate::error::{Error, Result};

/// A place in a hub repository, a folder or a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// A revision of a repository on the hub, or a file or folder in it.
    Hub {
        /// `OWNER/NAME`, or `NAME` alone.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path below the repository's root, empty for the root.
        path: String,
    },
    /// An absolute folder or file on this machine.
    Folder(PathBuf),
    /// A prefix, or one object, in an S3 bucket.
    Bucket {
        /// The bucket.
        bucket: String,
        /// Key prefix without slashes at its ends.
        prefix: String,
    },
}

impl Location {
    /// A location, or a folder as a person writes it; a relative folder is seen from the
    /// working directory.
    ///
    /// # Errors
    /// [`Error::Location`] for another scheme and for names that cannot be written as text.
    pub fn from_path(text: &str) -> Result<Self> {
        if ["hub:", "file://", "s3://"].iter().any(|scheme| text.starts_with(scheme)) {
            return text.parse();
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let problem = format!("scheme `{scheme}` (use a folder, file:// or s3://)");
            return Err(wrong(text, &problem));
        }
        if text.is_empty() {
            return Err(wrong(text, "it is empty"));
        }
        let absolute = std::path::absolute(text).map_err(|error| wrong(text, error))?;
        folder(text, &absolute)
    }

    /// The place called `name` inside this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let below = |path: &str| match path {
            "" => name.to_owned(),
            path => format!("{path}/{name}"),
        };
        match self {
            Self::Hub { repo, revision, path } => {
                Self::Hub { repo: repo.clone(), revision: revision.clone(), path: below(path) }
            }
            Self::Folder(path) => Self::Folder(path.join(name)),
            Self::Bucket { bucket, prefix } => {
                Self::Bucket { bucket: bucket.clone(), prefix: below(prefix) }
            }
        }
    }
}

/// `NAME` or `OWNER/NAME` as the hub allows them.
pub(crate) fn is_repo(text: &str) -> bool {
    let part = |part: &str| {
        let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        !part.is_empty() && plain && !part.starts_with(['.', '-']) && !part.contains("..")
    };
    let mut parts = text.split('/');
    let (first, second, rest) = (parts.next(), parts.next(), parts.next());
    rest.is_none() && first.is_some_and(part) && second.is_none_or(part)
}

/// A revision as it is written in a location.
pub(crate) fn encode_revision(revision: &str) -> String {
    revision.replace('%', "%25").replace('/', "%2F")
}

fn decode_revision(text: &str) -> String {
    text.replace("%2F", "/").replace("%2f", "/").replace("%25", "%")
}

fn wrong(text: &str, problem: impl fmt::Display) -> Error {
    Error::Location { text: text.to_owned(), problem: problem.to_string() }
}

/// A path of plain names: nothing that leads elsewhere.
fn is_plain(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(plain) && !path.contains(['\\', '\0'])
}

fn folder(text: &str, path: &Path) -> Result<Location> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => clean.push(part),
        }
    }
    if clean.to_str().is_none() {
        return Err(wrong(text, "the path is not UTF-8"));
    }
    Ok(Location::Folder(clean))
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains("{}") {
            return Err(wrong(text, "`{}` stands for the names of checkpoints"));
        }
        if text.chars().any(char::is_control) {
            return Err(wrong(text, "it holds control characters"));
        }
        if let Some(rest) = text.strip_prefix("hub:") {
            let (repo, rest) = rest.split_once('@').unwrap_or((rest, "main"));
            let (revision, path) = rest.split_once('/').unwrap_or((rest, ""));
            if !is_repo(repo) {
                return Err(wrong(text, format!("`{repo}` is no repository (OWNER/NAME)")));
            }
            let revision = decode_revision(revision);
            if revision.is_empty() || revision.split('/').any(|part| part == "..") {
                return Err(wrong(text, "expected a revision after `@`"));
            }
            if !path.is_empty() && !is_plain(path) {
                return Err(wrong(text, format!("`{path}` is no path in a repository")));
            }
            return Ok(Self::Hub { repo: repo.to_owned(), revision, path: path.to_owned() });
        }
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(wrong(text, "expected an absolute path after file://"));
            }
            return folder(text, Path::new(path));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            let named = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
            if bucket.is_empty() || !bucket.bytes().all(named) {
                return Err(wrong(text, "expected a bucket after s3://"));
            }
            if !prefix.is_empty() && !is_plain(prefix) {
                return Err(wrong(text, format!("`{prefix}` is no prefix in a bucket")));
            }
            return Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        }
        Err(wrong(text, "expected hub:OWNER/NAME@REVISION, file:///FOLDER or s3://BUCKET/PREFIX"))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repo, revision, path } => {
                write!(f, "hub:{repo}@{}", encode_revision(revision))?;
                if path.is_empty() { Ok(()) } else { write!(f, "/{path}") }
            }
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, printed: &str) {
        let location: Location = text.parse().unwrap();
        assert_eq!(location.to_string(), printed);
        assert_eq!(printed.parse::<Location>().unwrap(), location);
    }

    #[test]
    fn places_print_as_they_parse() {
        check("hub:EleutherAI/pythia-70m@step512", "hub:EleutherAI/pythia-70m@step512");
        check("hub:gpt2", "hub:gpt2@main");
        check("hub:a/b@main/checkpoints/m_000123.pth", "hub:a/b@main/checkpoints/m_000123.pth");
        check("hub:a/b@refs%2Fpr%2F1/x", "hub:a/b@refs%2Fpr%2F1/x");
        check("file:///data/my runs/100%/../x", "file:///data/my runs/x");
        check("s3://lab/runs/", "s3://lab/runs");
        check("s3://lab", "s3://lab");
        let revision = "hub:a/b@50%2Foff".parse::<Location>().unwrap();
        assert!(matches!(revision, Location::Hub { revision, .. } if revision == "50/off"));
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for text in [
            "",
            "gpt2",
            "hub:",
            "hub:a/b/c",
            "hub:../b",
            "hub:a/b@",
            "hub:a/b@x/../y",
            "hub:a/b@..%2Fx/y",
            "hub:a b/c",
            "hub:a/b@main/{}",
            "file://relative",
            "s3://",
            "s3:///x",
            "s3://lab/../x",
            "https://example.com/x",
            "hub:a/b@x\ny",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
        assert!(Location::from_path("gs://bucket/x").is_err());
        assert!(Location::from_path("").is_err());
    }

    #[test]
    fn relative_folders_are_seen_from_the_working_directory() {
        let here = std::env::current_dir().unwrap();
        let found = Location::from_path("runs/../models/m").unwrap();
        assert_eq!(found, Location::Folder(here.join("models/m")));
        assert_eq!(found.join("step1"), Location::Folder(here.join("models/m/step1")));
    }

    proptest! {
        #[test]
        fn arbitrary_text_parses_or_not_but_never_changes(text in "(hub:|file://|s3://)?.{0,40}") {
            if let Ok(location) = text.parse::<Location>() {
                prop_assert_eq!(location.to_string().parse::<Location>().unwrap(), location);
            }
        }
    }
}
