//! The Hugging Face hub, or a mirror that speaks its protocol. Main type: [`Hub`].
//!
//! Three endpoints: the revisions of a repository (`refs`), the files of a revision with size and
//! hash (`tree`), and the bytes of a file (`resolve`), which redirects to other hosts.
//! The token goes to the hub's own origin only.
//!
//! The `hf-hub` crate is not used: its downloads neither resume nor verify, follow the Xet protocol
//! whenever a file has it (which pulls in a storage engine of its own, and which mirrors do not
//! speak), and end in a cache without a bound. What is left of it, three GET requests, is here.

use std::{collections::BTreeSet, fmt, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderMap},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Settings,
    error::{Error, Result},
    patience::Patience,
    transfer::{Body, Bytestream, Fault, Remote, chain},
};

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The beginning of an answer comes within this.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
const REDIRECTS_MAX: usize = 10;
/// Bound of one answer of the API, and of all pages of a listing.
const PAGE_BYTES_MAX: usize = 64 << 20;
const PAGES_MAX: usize = 1000;
/// Everything but what a path segment may hold as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Path below the repository's root.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// sha256, for files in large file storage.
    pub sha256: Option<String>,
    /// Id of the git object: of the content, or of the pointer to it.
    pub oid: String,
}

/// What a request is about, for messages.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Repository.
    pub repo: String,
    /// Revision.
    pub revision: Option<String>,
    /// Path of a file.
    pub file: Option<String>,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "file `{file}` of ")?;
        }
        write!(f, "hub repository `{}`", self.repo)?;
        match &self.revision {
            Some(revision) => write!(f, " at revision `{revision}`"),
            None => Ok(()),
        }
    }
}

/// A client of one hub.
#[derive(Debug, Clone)]
pub struct Hub {
    client: reqwest::Client,
    endpoint: Url,
    token: Option<String>,
    patience: Duration,
}

#[derive(Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(default)]
    tags: Vec<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    name: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: Option<u64>,
}

impl Hub {
    /// A client with `HF_ENDPOINT` and `HF_TOKEN` of `settings`.
    ///
    /// # Errors
    /// [`Error::Location`] when the endpoint is no URL.
    pub fn new(settings: &Settings, patience: Duration) -> Result<Self> {
        let setting = |name: &str| {
            settings.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
        };
        let endpoint = setting("HF_ENDPOINT").unwrap_or(ENDPOINT).trim_end_matches('/');
        let wrong = |problem: String| Error::Location { text: endpoint.to_owned(), problem };
        let url = Url::parse(endpoint)
            .map_err(|error| wrong(format!("HF_ENDPOINT is no URL ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("HF_ENDPOINT is no http or https URL".to_owned()));
        }
        // The binaries choose ring at start; a test or another program may not have chosen yet.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = reqwest::Client::builder()
            // Redirects are followed here, where it is known who may see the token.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("sweep/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| wrong(format!("no HTTP client: {}", chain(&error))))?;
        let token = setting("HF_TOKEN").or_else(|| setting("HUGGING_FACE_HUB_TOKEN"));
        Ok(Self { client, endpoint: url, token: token.map(str::to_owned), patience })
    }

    /// Names of the branches and tags of a repository.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revisions(&self, repo: &str) -> Result<Vec<String>> {
        let subject = Subject { repo: repo.to_owned(), revision: None, file: None };
        let url = self.url(&format!("api/models/{repo}/refs"));
        let (refs, _): (Refs, _) = self.json(url, &subject).await?;
        let names = refs.branches.into_iter().chain(refs.tags).map(|reference| reference.name);
        Ok(names.collect::<BTreeSet<String>>().into_iter().collect())
    }

    /// All files of a revision, with sizes and hashes; nothing is downloaded for that.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tree(&self, repo: &str, revision: &str) -> Result<Vec<HubFile>> {
        let subject =
            Subject { repo: repo.to_owned(), revision: Some(revision.to_owned()), file: None };
        let path = format!("api/models/{repo}/tree/{}?recursive=true", encode(revision));
        let mut next = Some(self.url(&path));
        let mut files = Vec::new();
        for _ in 0..PAGES_MAX {
            let Some(url) = next else { return Ok(files) };
            let (entries, headers): (Vec<TreeEntry>, _) = self.json(url.clone(), &subject).await?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                files.push(hub_file(entry, &subject)?);
            }
            next = next_page(&url, &headers);
        }
        let problem = format!("more than {PAGES_MAX} pages of files");
        Err(Error::Answer { what: subject.to_string(), problem })
    }

    /// The whole of a small file.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read(&self, repo: &str, revision: &str, path: &str, max: u64) -> Result<Vec<u8>> {
        let subject = Subject {
            repo: repo.to_owned(),
            revision: Some(revision.to_owned()),
            file: Some(path.to_owned()),
        };
        let url = self.file_url(&subject);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        self.retrying(&subject, async || {
            let response = self.get(url.clone(), &subject, &[], None).await?;
            read_all(response, max).await
        })
        .await
    }

    /// A file that can be opened at any offset; `size` and `sha256` as listed.
    pub fn remote(&self, subject: Subject, size: u64, sha256: Option<String>) -> RemoteHubFile {
        RemoteHubFile { hub: self.clone(), subject, size, sha256, etag: None }
    }

    fn url(&self, path: &str) -> Url {
        let base = self.endpoint.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/{path}")).expect("a valid base with an encoded path is valid")
    }

    fn file_url(&self, subject: &Subject) -> Url {
        let revision = encode(subject.revision.as_deref().unwrap_or("main"));
        let file = subject.file.as_deref().unwrap_or_default();
        let file: Vec<String> = file.split('/').map(encode).collect();
        self.url(&format!("{}/resolve/{revision}/{}", subject.repo, file.join("/")))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        url: Url,
        subject: &Subject,
    ) -> Result<(T, HeaderMap)> {
        self.retrying(subject, async || {
            let response = self.get(url.clone(), subject, &[], None).await?;
            let headers = response.headers().clone();
            let body = read_all(response, PAGE_BYTES_MAX).await?;
            let value = serde_json::from_slice(&body).map_err(|error| {
                let problem = format!("{url}: {error}");
                Fault::Final(Error::Answer { what: subject.to_string(), problem })
            })?;
            Ok((value, headers))
        })
        .await
    }

    /// Repeats what may work the next time, until the patience is over.
    async fn retrying<T>(
        &self,
        subject: &Subject,
        mut request: impl AsyncFnMut() -> Result<T, Fault>,
    ) -> Result<T> {
        let mut patience = Patience::new(self.patience);
        loop {
            let (problem, asked) = match request().await {
                Ok(value) => return Ok(value),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Again { problem, asked }) => (problem, asked),
                Err(Fault::Restart(problem)) => (problem, None),
            };
            tracing::warn!(what = %subject, problem, "hub failed, trying again");
            if !patience.wait(asked).await {
                return Err(Error::Unavailable { what: subject.to_string(), problem });
            }
        }
    }

    /// One GET through all redirects. `listed` is the sha256 that the file should have: a redirect to
    /// large file storage tells which one it leads to.
    async fn get(
        &self,
        mut url: Url,
        subject: &Subject,
        headers: &[(header::HeaderName, String)],
        listed: Option<&str>,
    ) -> Result<Response, Fault> {
        for _ in 0..=REDIRECTS_MAX {
            // Compressed bytes would have neither the listed size nor ranges of it.
            let mut request =
                self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| self.is_own(&url)) {
                request = request.bearer_auth(token);
            }
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let sent = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await;
            let response = match sent {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(Fault::again(chain(&error.without_url()))),
                Err(_) => {
                    let seconds = ANSWER_TIMEOUT.as_secs();
                    return Err(Fault::again(format!("no answer within {seconds} s")));
                }
            };
            if !response.status().is_redirection() {
                return self.checked(response, subject);
            }
            if let (Some(listed), Some(now)) = (listed, linked_hash(&response))
                && now != listed
            {
                let what = subject.to_string();
                let error = Error::Changed { what, expected: listed.to_owned(), actual: now };
                return Err(Fault::Final(error));
            }
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = to.and_then(|to| url.join(to).ok());
            let safe = |next: &Url| next.scheme() == "https" || url.scheme() == "http";
            let Some(next) = next.filter(safe) else {
                let problem = format!("{url} redirects to {}", to.unwrap_or("nowhere"));
                return Err(Fault::Final(Error::Answer { what: subject.to_string(), problem }));
            };
            url = next;
        }
        let problem = format!("more than {REDIRECTS_MAX} redirects");
        Err(Fault::Final(Error::Answer { what: subject.to_string(), problem }))
    }

    /// Whether a URL is the hub's own, so that it may see the token.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// The response, unless its status says no.
    fn checked(&self, response: Response, subject: &Subject) -> Result<Response, Fault> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let (code, message) = (text("x-error-code"), text("x-error-message"));
        let problem = match message {
            "" => format!("HTTP {status}"),
            message => format!("HTTP {status}: {message}"),
        };
        if is_passing(status) || (status == StatusCode::FORBIDDEN && !self.is_own(response.url())) {
            // A signed link that was refused may have been too old; the next one is new.
            return Err(Fault::Again { problem, asked: asked_pause(response.headers()) });
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(Fault::Restart(problem));
        }
        Err(Fault::Final(self.refusal(status, code, problem, subject)))
    }

    fn refusal(&self, status: StatusCode, code: &str, problem: String, subject: &Subject) -> Error {
        let repo = &subject.repo;
        let whole = Subject { repo: repo.clone(), revision: None, file: None };
        let home = format!("{}/{repo}", self.endpoint.as_str().trim_end_matches('/'));
        let credentials = match self.token {
            Some(_) => {
                "the token in HF_TOKEN is not allowed to; is it valid, and of the right account?"
            }
            None => "set HF_TOKEN to a token that may read it",
        };
        let spelling = format!("check the name; for a private repository: {credentials}");
        match (status, code) {
            (_, "GatedRepo") => Error::Denied {
                what: subject.to_string(),
                problem,
                hint: format!(
                    "it is gated: accept its terms at {home}, then set HF_TOKEN to a token of that \
                     account"
                ),
            },
            // The hub answers 401 for what does not exist, so as not to tell what is private.
            (_, "RepoNotFound") => Error::Missing { what: whole.to_string(), hint: spelling },
            (_, "RevisionNotFound") => Error::Missing {
                what: Subject { file: None, ..subject.clone() }.to_string(),
                hint: format!("its revisions are listed at {home}/tree/main"),
            },
            (StatusCode::UNAUTHORIZED, _) => Error::Denied {
                what: subject.to_string(),
                problem,
                hint: format!("{credentials} (and check the name)"),
            },
            (StatusCode::FORBIDDEN, _) => {
                Error::Denied { what: subject.to_string(), problem, hint: credentials.to_owned() }
            }
            (StatusCode::NOT_FOUND | StatusCode::GONE, _) => Error::Missing {
                what: subject.to_string(),
                hint: match (&subject.revision, &subject.file) {
                    (None, _) => spelling,
                    (Some(_), None) => format!("its revisions are listed at {home}/tree/main"),
                    (Some(revision), Some(_)) => {
                        format!("its files are listed at {home}/tree/{}", encode(revision))
                    }
                },
            },
            _ => Error::Answer { what: subject.to_string(), problem },
        }
    }
}

/// A file on the hub that is being downloaded.
#[derive(Debug)]
pub struct RemoteHubFile {
    hub: Hub,
    subject: Subject,
    size: u64,
    sha256: Option<String>,
    /// Of the first answer: the rest must be of the same version.
    etag: Option<String>,
}

impl Remote for RemoteHubFile {
    async fn open(&mut self, offset: u64) -> Result<Body, Fault> {
        let mut headers = Vec::new();
        if offset > 0 {
            headers.push((header::RANGE, format!("bytes={offset}-")));
            if let Some(etag) = &self.etag {
                headers.push((header::IF_RANGE, etag.clone()));
            }
        }
        let url = self.hub.file_url(&self.subject);
        let response = self.hub.get(url, &self.subject, &headers, self.sha256.as_deref()).await?;
        let text = |name: header::HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok())
        };
        let (start, total) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = text(header::CONTENT_RANGE).and_then(content_range);
            range
                .ok_or_else(|| Fault::Restart("a part of the file without its range".to_owned()))?
        } else {
            (0, response.content_length())
        };
        if let Some(total) = total.filter(|total| *total != self.size) {
            return Err(Fault::Final(Error::Changed {
                what: self.subject.to_string(),
                expected: format!("{} bytes", self.size),
                actual: format!("{total} bytes"),
            }));
        }
        let etag = text(header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned);
        if start > 0 && etag.is_some() && self.etag.is_some() && etag != self.etag {
            return Err(Fault::Restart("the rest is of another version".to_owned()));
        }
        self.etag = etag;
        Ok(Body { start, bytes: Bytestream::Http(response) })
    }
}

fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, SEGMENT).to_string()
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// `Retry-After: 5`, or the time until the quota is renewed: `RateLimit: "api";r=0;t=55`.
fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let after = text("retry-after").and_then(|seconds| seconds.trim().parse().ok());
    let renewed = || {
        let parameters = text("ratelimit")?.split(';').map(str::trim);
        parameters.filter_map(|part| part.strip_prefix("t=")).find_map(|t| t.parse().ok())
    };
    after.or_else(renewed).map(Duration::from_secs)
}

/// The sha256 of the stored file that a redirect leads to.
fn linked_hash(response: &Response) -> Option<String> {
    let etag = response.headers().get("x-linked-etag")?.to_str().ok()?;
    let hash = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    (hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hash)
}

/// First byte and whole size of `bytes 100-199/200`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// The URL of `Link: <URL>; rel="next"`.
fn next_page(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let links = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|links| links.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.replace(' ', "").to_ascii_lowercase().contains("rel=\"next\"");
        is_next.then(|| url.join(target).ok()).flatten()
    })
}

fn hub_file(entry: TreeEntry, subject: &Subject) -> Result<HubFile> {
    let sha256 = match &entry.lfs {
        None => None,
        Some(lfs) => {
            let hash = lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid).to_ascii_lowercase();
            if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
                let problem = format!("`{}` of `{}` is no sha256", lfs.oid, entry.path);
                return Err(Error::Answer { what: subject.to_string(), problem });
            }
            Some(hash)
        }
    };
    let size = entry.lfs.and_then(|lfs| lfs.size).unwrap_or(entry.size);
    Ok(HubFile { path: entry.path, size, sha256, oid: entry.oid })
}

async fn read_all(mut response: Response, max: usize) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    loop {
        match tokio::time::timeout(ANSWER_TIMEOUT, response.chunk()).await {
            Ok(Ok(Some(chunk))) if body.len() + chunk.len() <= max => {
                body.extend_from_slice(&chunk);
            }
            Ok(Ok(Some(_))) => {
                let what = response.url().path().to_owned();
                let problem = format!("more than {max} bytes");
                return Err(Fault::Final(Error::Answer { what, problem }));
            }
            Ok(Ok(None)) => return Ok(body),
            Ok(Err(error)) => return Err(Fault::again(chain(&error.without_url()))),
            Err(_) => return Err(Fault::again("the answer stopped")),
        }
    }
}
