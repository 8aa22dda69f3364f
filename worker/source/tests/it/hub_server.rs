//! A hub on real sockets: refs, tree, resolve, and a second listener that stores large files, with
//! faults on demand.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What happens to one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes of the body.
    Stall(usize),
    /// So many bytes at a time, with pauses.
    Slow(usize),
    /// Other bytes of the same length.
    Wrong,
    /// The whole file although a part was asked for.
    Whole,
    /// The wrong part, honestly labelled.
    Shifted,
    /// A redirect to this.
    Redirect(String),
    /// The redirect to the stored file announces another hash.
    Moved,
}

/// One request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// `hub` or `store`.
    pub(crate) host: &'static str,
    /// Path and query.
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct File {
    bytes: Vec<u8>,
    large: bool,
    oid: String,
}

#[derive(Debug, Default)]
struct State {
    /// repository → revision → path → file
    repos: BTreeMap<String, BTreeMap<String, BTreeMap<String, File>>>,
    /// Part of a path, fault, how often still.
    faults: Vec<(String, Fault, usize)>,
    seen: Vec<Seen>,
    token: Option<String>,
    store: String,
    /// Files on one page of a listing.
    page: usize,
}

/// The running server.
#[derive(Clone)]
pub(crate) struct HubServer {
    /// Its URL, for `HF_ENDPOINT`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    sweep_proto::id::hex(bytes)
}

pub(crate) fn git_oid(bytes: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

impl HubServer {
    pub(crate) async fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let store = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", hub.local_addr().unwrap());
        let state = State {
            store: format!("http://{}", store.local_addr().unwrap()),
            page: 1000,
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        for (listener, host) in [(hub, "hub"), (store, "store")] {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let state = Arc::clone(&state);
                    tokio::spawn(async move {
                        // A client that goes away is no problem of the server.
                        let _ = serve(stream, host, &state).await;
                    });
                }
            });
        }
        Self { url, state }
    }

    /// Publishes a file; large ones are stored elsewhere under their sha256.
    pub(crate) fn file(&self, repo: &str, revision: &str, path: &str, bytes: &[u8], large: bool) {
        let file = File { bytes: bytes.to_vec(), large, oid: git_oid(bytes) };
        let mut state = self.state.lock().unwrap();
        let revisions = state.repos.entry(repo.to_owned()).or_default();
        revisions.entry(revision.to_owned()).or_default().insert(path.to_owned(), file);
    }

    /// Numbers a file otherwise than git does.
    pub(crate) fn renumber(&self, repo: &str, revision: &str, path: &str, oid: &str) {
        let mut state = self.state.lock().unwrap();
        let files = state.repos.get_mut(repo).unwrap().get_mut(revision).unwrap();
        oid.clone_into(&mut files.get_mut(path).unwrap().oid);
    }

    /// The next `times` requests whose path contains `path` meet `fault`.
    pub(crate) fn fault(&self, path: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().faults.push((path.to_owned(), fault, times));
    }

    pub(crate) fn require_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.to_owned());
    }

    pub(crate) fn page(&self, files: usize) {
        self.state.lock().unwrap().page = files;
    }

    /// Requests whose path contains `part`, in order.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let state = self.state.lock().unwrap();
        state.seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn answer(status: u16, headers: Vec<(&'static str, String)>, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers, body: body.into() }
}

fn refused(status: u16, code: &str) -> Answer {
    answer(status, vec![("X-Error-Code", code.to_owned())], "")
}

async fn serve(
    mut stream: TcpStream,
    host: &'static str,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let (answer, fault) = {
        let mut state = state.lock().unwrap();
        let seen = Seen { host, path: path.clone(), headers: headers.clone() };
        state.seen.push(seen);
        let fault =
            state.faults.iter_mut().find(|(part, _, times)| *times > 0 && path.contains(part));
        let fault = fault.map(|(_, fault, times)| {
            *times -= 1;
            fault.clone()
        });
        (respond(&state, host, &path, &headers, fault.as_ref()), fault)
    };
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", answer.status);
    write!(text, "Content-Length: {}\r\n", answer.body.len()).unwrap();
    for (name, value) in &answer.headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await?;
    match fault {
        Some(Fault::Cut(bytes)) => {
            stream.write_all(&answer.body[..bytes.min(answer.body.len())]).await?;
        }
        Some(Fault::Stall(bytes)) => {
            stream.write_all(&answer.body[..bytes.min(answer.body.len())]).await?;
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        Some(Fault::Slow(bytes)) => {
            for chunk in answer.body.chunks(bytes) {
                stream.write_all(chunk).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        _ => stream.write_all(&answer.body).await?,
    }
    stream.flush().await?;
    stream.shutdown().await
}

fn respond(
    state: &State,
    host: &str,
    path: &str,
    headers: &BTreeMap<String, String>,
    fault: Option<&Fault>,
) -> Answer {
    match fault {
        Some(Fault::Status(status, headers)) => return answer(*status, headers.clone(), ""),
        Some(Fault::Redirect(to)) => return answer(307, vec![("Location", to.clone())], ""),
        _ => {}
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    // A mirror may live below a path of its own.
    let path = path.strip_prefix("/mirror/hub").unwrap_or(path);
    if host == "store" {
        let hash = path.trim_start_matches("/stored/");
        let all = state.repos.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
        let mut files = all.filter(|file| file.large);
        let Some(file) = files.find(|file| sha256(&file.bytes) == hash) else {
            return answer(404, vec![], "");
        };
        return bytes_of(&file.bytes, &format!("\"store-{}\"", &hash[..8]), headers, fault);
    }
    if let Some(token) = &state.token
        && headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return refused(401, "GatedRepo");
    }
    let parts: Vec<String> = path
        .trim_start_matches('/')
        .split('/')
        .map(|part| percent_decode_str(part).decode_utf8().unwrap().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match &parts[..] {
        ["api", "models", owner, name, "refs"] => {
            let Some(revisions) = state.repos.get(&format!("{owner}/{name}")) else {
                return refused(401, "RepoNotFound");
            };
            let branches: Vec<_> = revisions
                .keys()
                .map(|name| serde_json::json!({"name": name, "ref": format!("refs/heads/{name}")}))
                .collect();
            let refs = serde_json::json!({"branches": branches, "tags": [], "converts": []});
            answer(200, vec![], refs.to_string())
        }
        ["api", "models", owner, name, "tree", revision] => {
            let Some(revisions) = state.repos.get(&format!("{owner}/{name}")) else {
                return refused(401, "RepoNotFound");
            };
            let Some(files) = revisions.get(*revision) else {
                return refused(404, "RevisionNotFound");
            };
            tree(state, files, path, query)
        }
        [owner, name, "resolve", revision, file @ ..] => {
            let Some(revisions) = state.repos.get(&format!("{owner}/{name}")) else {
                return refused(401, "RepoNotFound");
            };
            let Some(files) = revisions.get(*revision) else {
                return refused(404, "RevisionNotFound");
            };
            let Some(file) = files.get(&file.join("/")) else {
                return refused(404, "EntryNotFound");
            };
            if !file.large {
                return bytes_of(&file.bytes, &format!("\"{}\"", file.oid), headers, fault);
            }
            let hash = sha256(&file.bytes);
            let linked = match fault {
                Some(Fault::Moved) => sha256(b"another file"),
                _ => hash.clone(),
            };
            let to = format!("{}/stored/{hash}?signature=x", state.store);
            let headers = vec![
                ("Location", to),
                ("X-Linked-Etag", format!("\"{linked}\"")),
                ("X-Linked-Size", file.bytes.len().to_string()),
            ];
            answer(302, headers, "")
        }
        _ => answer(404, vec![], ""),
    }
}

fn tree(state: &State, files: &BTreeMap<String, File>, path: &str, query: &str) -> Answer {
    assert!(query.contains("recursive=true"), "{query}");
    let from: usize = query
        .split('&')
        .find_map(|part| part.strip_prefix("cursor="))
        .map_or(0, |cursor| cursor.parse().unwrap());
    let entries = files.iter().map(|(path, file)| {
        let size = file.bytes.len();
        if file.large {
            let lfs = serde_json::json!({
                "oid": sha256(&file.bytes), "size": size, "pointerSize": 134
            });
            let oid = git_oid(b"pointer");
            serde_json::json!({"type": "file", "oid": oid, "size": size, "path": path, "lfs": lfs})
        } else {
            serde_json::json!({"type": "file", "oid": file.oid, "size": size, "path": path})
        }
    });
    let folder = serde_json::json!({"type": "directory", "oid": "0", "size": 0, "path": "folder"});
    let all: Vec<_> = std::iter::once(folder).chain(entries).collect();
    let page: Vec<_> = all.iter().skip(from).take(state.page).collect();
    let next = from + state.page;
    let mut headers = vec![("Content-Type", "application/json".to_owned())];
    if next < all.len() {
        headers.push(("Link", format!("<{path}?recursive=true&cursor={next}>; rel=\"next\"")));
    }
    answer(200, headers, serde_json::to_string(&page).unwrap())
}

fn bytes_of(
    bytes: &[u8],
    etag: &str,
    headers: &BTreeMap<String, String>,
    fault: Option<&Fault>,
) -> Answer {
    let mut bytes = bytes.to_vec();
    if matches!(fault, Some(Fault::Wrong)) {
        for byte in &mut bytes {
            *byte ^= 1;
        }
    }
    let answer_headers = vec![("ETag", etag.to_owned())];
    let wanted = headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let wanted = wanted.filter(|_| headers.get("if-range").is_none_or(|known| known == etag));
    let Some(start) = wanted.filter(|_| !matches!(fault, Some(Fault::Whole))) else {
        return answer(200, answer_headers, bytes);
    };
    let mut start: usize = start.trim_end_matches('-').parse().unwrap();
    if matches!(fault, Some(Fault::Shifted)) {
        start -= 1;
    }
    let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
    let headers = [answer_headers, vec![("Content-Range", range)]].concat();
    answer(206, headers, &bytes[start..])
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    sweep_source::cache::sha256(bytes)
}
