//! Fetching from a hub that fails: cuts, stalls, wrong bytes, limits, restarts, redirects.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use sweep_proto::id::FailureClass;
use sweep_source::{Access, Error, Fetched, Location, RemoteFile, Result};

use crate::{
    access,
    hub_server::{Fault, HubServer, sha256},
    noise, says,
};

const PATIENCE: Duration = Duration::from_secs(6);
const SIZE: usize = 400_000;

struct Case {
    server: HubServer,
    folder: tempfile::TempDir,
    access: Access,
    place: Location,
    files: Vec<RemoteFile>,
    weights: Vec<u8>,
}

/// One checkpoint on a hub, already listed.
async fn case(patience: Duration) -> Case {
    let server = HubServer::start().await;
    let weights = noise(1, SIZE);
    server.file("lab/m", "main", "model.safetensors", &weights, true);
    server.file("lab/m", "main", "config.json", b"{\"n_layer\": 2}", false);
    let folder = tempfile::tempdir().unwrap();
    let access = access(folder.path(), &[("HF_ENDPOINT", &server.url)], patience);
    let place: Location = "hub:lab/m".parse().unwrap();
    let files = access.files(&place).await.unwrap();
    Case { server, folder, access, place, files, weights }
}

impl Case {
    async fn fetch(&self) -> Result<Fetched> {
        self.access.fetch(&self.place, &self.files).await
    }

    #[track_caller]
    fn arrived(&self, fetched: &Fetched) {
        assert!(fs::read(&fetched.files["model.safetensors"]).unwrap() == self.weights);
        assert!(leftovers(self.folder.path()).is_empty());
    }
}

fn leftovers(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.strip_suffix(".part").is_some()).collect()
}

/// Protection: a download goes on where it was cut, in the version that was begun.
#[tokio::test]
async fn a_cut_download_goes_on_where_it_was_cut() {
    let case = case(PATIENCE).await;
    case.server.fault("/stored/", Fault::Cut(150_000), 1);
    case.server.fault("/stored/", Fault::Cut(100_000), 1);
    let fetched = case.fetch().await.unwrap();
    case.arrived(&fetched);
    let stored = case.server.seen("/stored/");
    let ranges: Vec<_> = stored.iter().map(|seen| seen.headers.get("range").cloned()).collect();
    let expected = [None, Some("bytes=150000-".to_owned()), Some("bytes=250000-".to_owned())];
    assert_eq!(ranges, expected);
    assert!(stored[1].headers["if-range"].contains("store-"), "{stored:?}");
}

#[tokio::test]
async fn a_stalled_and_a_slow_download_arrive() {
    let case = case(Duration::from_secs(3)).await;
    case.server.fault("/stored/", Fault::Stall(200_000), 1);
    case.server.fault("/stored/", Fault::Slow(20_000), 1);
    let begun = Instant::now();
    let fetched = case.fetch().await.unwrap();
    case.arrived(&fetched);
    assert!(begun.elapsed() < Duration::from_secs(30), "the server would stall for a minute");
    assert_eq!(case.server.seen("/stored/").len(), 2);
}

/// Protection: bytes are used only if their hash is the announced one.
#[tokio::test]
async fn wrong_bytes_are_fetched_again_and_then_refused() {
    let case = case(PATIENCE).await;
    case.server.fault("/stored/", Fault::Wrong, 1);
    let fetched = case.fetch().await.unwrap();
    case.arrived(&fetched);
    drop(fetched);
    fs::remove_file(case.folder.path().join(sha256(&case.weights))).unwrap();
    case.server.fault("/stored/", Fault::Wrong, 9);
    let error = case.fetch().await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }) && error.class() == FailureClass::Permanent);
    says(&error, &["`model.safetensors`", "`lab/m`", "`main`", &sha256(&case.weights)]);
    assert!(!case.folder.path().join(sha256(&case.weights)).exists());
}

/// Protection: what is here is only gone on with by bytes from just behind it.
#[tokio::test]
async fn a_part_that_does_not_fit_is_not_appended() {
    for fault in [Fault::Shifted, Fault::Whole, Fault::Status(416, vec![])] {
        let case = case(PATIENCE).await;
        case.server.fault("/stored/", Fault::Cut(100_000), 1);
        case.server.fault("/stored/", fault.clone(), 1);
        let fetched = case.fetch().await.unwrap();
        case.arrived(&fetched);
        assert!(case.server.seen("/stored/").len() <= 3, "{fault:?}");
    }
}

/// A wrong beginning, left by a process that is gone, spoils only one attempt.
#[tokio::test]
async fn a_foreign_beginning_is_thrown_away() {
    let case = case(PATIENCE).await;
    let part = format!("{}.{SIZE}.part", sha256(&case.weights));
    fs::write(case.folder.path().join(part), vec![0; 300_000]).unwrap();
    let fetched = case.fetch().await.unwrap();
    case.arrived(&fetched);
    let ranges: Vec<_> = case
        .server
        .seen("/stored/")
        .iter()
        .map(|seen| seen.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [Some("bytes=300000-".to_owned()), None]);
}

#[tokio::test]
async fn limits_and_server_errors_are_waited_out() {
    let case = case(PATIENCE).await;
    let asked = vec![("Retry-After", "1".to_owned())];
    case.server.fault("/resolve/main/model", Fault::Status(429, asked), 1);
    case.server.fault("/stored/", Fault::Status(503, vec![]), 2);
    case.server.fault("/stored/", Fault::Status(403, vec![]), 1);
    let begun = Instant::now();
    let fetched = case.fetch().await.unwrap();
    case.arrived(&fetched);
    assert!(begun.elapsed() >= Duration::from_secs(1), "the hub asked for a second");
    // Listings are repeated as well.
    case.server.fault("/tree/", Fault::Status(500, vec![]), 1);
    case.server.fault("/tree/", Fault::Cut(10), 1);
    assert_eq!(case.access.files(&case.place).await.unwrap(), case.files);
}

#[tokio::test]
async fn patience_ends() {
    let case = case(Duration::from_secs(1)).await;
    case.server.fault("/stored/", Fault::Status(502, vec![]), 99);
    let begun = Instant::now();
    let error = case.fetch().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.class() == FailureClass::Transient);
    says(&error, &["`model.safetensors`", "`lab/m`", "502"]);
    assert!(begun.elapsed() < Duration::from_secs(3));
    // A pause longer than the patience is not begun.
    let asked = vec![("Retry-After", "3600".to_owned())];
    case.server.fault("/tree/", Fault::Status(429, asked), 1);
    let begun = Instant::now();
    says(&case.access.files(&case.place).await.unwrap_err(), &["429"]);
    assert!(begun.elapsed() < Duration::from_secs(1));
}

/// Cuts at the same place without ranges are no progress.
#[tokio::test]
async fn endless_restarts_are_not_progress() {
    let case = case(Duration::from_secs(1)).await;
    // Every whole answer is cut at the same place.
    for _ in 0..50 {
        case.server.fault("/stored/", Fault::Cut(1000), 1);
        case.server.fault("/stored/", Fault::Shifted, 1);
    }
    let begun = Instant::now();
    assert!(matches!(case.fetch().await.unwrap_err(), Error::Unavailable { .. }));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_file_that_was_replaced_is_not_taken_for_the_listed_one() {
    let case = case(PATIENCE).await;
    let (weights, config) = (&case.files[..1], &case.files[1..]);
    case.server.fault("/resolve/main/model", Fault::Moved, 1);
    let error = case.access.fetch(&case.place, weights).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }) && error.class() == FailureClass::Transient);
    assert_eq!(case.server.seen("/stored/").len(), 0, "it is known before it is downloaded");
    case.server.file("lab/m", "main", "config.json", b"{\"n_layer\": 24}", false);
    let error = case.access.fetch(&case.place, config).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

/// Small files have no sha256 in the listing; their git id is as good.
#[tokio::test]
async fn small_files_are_verified_by_their_git_id() {
    let case = case(PATIENCE).await;
    case.server.fault("/resolve/main/config.json", Fault::Wrong, 1);
    let fetched = case.fetch().await.unwrap();
    assert_eq!(fs::read(&fetched.files["config.json"]).unwrap(), b"{\"n_layer\": 2}");
    assert_eq!(case.server.seen("config.json").len(), 2);
    drop(fetched);
    // A mirror that numbers files otherwise is believed when it sends the same bytes twice, but its
    // number is not taken for a name of the content.
    let number = "0123456789012345678901234567890123456789";
    case.server.file("lab/m", "main", "config.json", b"{\"n_layer\": 3}", false);
    case.server.renumber("lab/m", "main", "config.json", number);
    let files = case.access.files(&case.place).await.unwrap();
    let fetched = case.access.fetch(&case.place, &files).await.unwrap();
    assert_eq!(fs::read(&fetched.files["config.json"]).unwrap(), b"{\"n_layer\": 3}");
    case.server.file("lab/m", "main", "config.json", b"{\"n_layer\": 4}", false);
    case.server.renumber("lab/m", "main", "config.json", number);
    let fetched = case.access.fetch(&case.place, &files).await.unwrap();
    assert_eq!(fs::read(&fetched.files["config.json"]).unwrap(), b"{\"n_layer\": 4}");
}

#[tokio::test]
async fn redirects_are_followed_within_reason() {
    let case = case(Duration::from_secs(1)).await;
    // A renamed repository: the hub redirects to itself.
    let tree = "/api/models/lab/m/tree/main?recursive=true";
    case.server.fault("/tree/", Fault::Redirect(tree.to_owned()), 1);
    assert_eq!(case.access.files(&case.place).await.unwrap(), case.files);
    case.server.fault("/tree/", Fault::Redirect(tree.to_owned()), 99);
    says(&case.access.files(&case.place).await.unwrap_err(), &["more than 10 redirects"]);
}

/// Two workers of one machine want the same checkpoint: it is downloaded once.
#[tokio::test]
async fn workers_that_share_a_cache_share_a_download() {
    let case = case(PATIENCE).await;
    case.server.fault("/stored/", Fault::Slow(20_000), 1);
    let second = access(case.folder.path(), &[("HF_ENDPOINT", &case.server.url)], PATIENCE);
    let (a, b) = tokio::join!(case.fetch(), second.fetch(&case.place, &case.files));
    let (a, b) = (a.unwrap(), b.unwrap());
    case.arrived(&a);
    assert_eq!(a.files["model.safetensors"], b.files["model.safetensors"]);
    assert_eq!(case.server.seen("/stored/").len(), 1);
}

/// A worker that is stopped in the middle leaves what it has to the next.
#[tokio::test]
async fn an_abandoned_download_is_gone_on_with() {
    let case = case(PATIENCE).await;
    case.server.fault("/stored/", Fault::Stall(250_000), 1);
    let abandoned = tokio::time::timeout(Duration::from_millis(700), case.fetch()).await;
    assert!(abandoned.is_err());
    let fetched = case.fetch().await.unwrap();
    case.arrived(&fetched);
    let stored = case.server.seen("/stored/");
    assert_eq!(stored[1].headers.get("range").map(String::as_str), Some("bytes=250000-"));
}

#[tokio::test]
async fn a_checkpoint_that_the_cache_cannot_hold_is_an_error_before_any_download() {
    let case = case(PATIENCE).await;
    let tight = tempfile::tempdir().unwrap();
    let cache = sweep_source::Cache::open(tight.path(), 100_000).unwrap();
    let settings = [("HF_ENDPOINT".to_owned(), case.server.url.clone())].into();
    let access = Access::new(settings, Some(cache.into()), PATIENCE).unwrap();
    let error = access.fetch(&case.place, &case.files).await.unwrap_err();
    says(&error, &["400014 bytes", "100000 bytes", "--cache-bytes"]);
    assert_eq!(error.class(), FailureClass::Permanent);
    assert_eq!(case.server.seen("/resolve/").len(), 0);
}
