//! Listing, choosing and fetching from a hub that works.

use std::{fs, time::Duration};

use sweep_proto::id::FailureClass;
use sweep_source::{Error, Location, Source, Unit};

use crate::{
    access,
    hub_server::{HubServer, sha256},
    names, noise, says, steps,
};

const PATIENCE: Duration = Duration::from_secs(5);
const REPO: &str = "lab/model";

/// Two revisions with config and weights.
async fn two_steps() -> (HubServer, Vec<u8>) {
    let server = HubServer::start().await;
    let weights = noise(1, 300_000);
    for (revision, weights) in [("step2", &weights), ("step10", &noise(2, 1000))] {
        server.file(REPO, revision, "model.safetensors", weights, true);
        server.file(REPO, revision, "config.json", b"{\"model_type\": \"gpt2\"}", false);
        server.file(REPO, revision, "training_args.bin", b"a program", true);
        server.file(REPO, revision, "optimizer.pt", &noise(3, 5000), true);
        server.file(REPO, revision, "vocab.json", b"{}", false);
        server.file(REPO, revision, "merges.txt", b"a b", false);
    }
    server.file(REPO, "main", "README.md", b"hello", false);
    (server, weights)
}

fn hub(revision: Option<&str>) -> Source {
    Source::Hub { repo: REPO.to_owned(), revision: revision.map(str::to_owned) }
}

#[tokio::test]
async fn revisions_named_by_steps_are_a_trajectory_whose_files_are_known_before_any_download() {
    let (server, weights) = two_steps().await;
    server.page(2);
    let folder = tempfile::tempdir().unwrap();
    let access = access(folder.path(), &[("HF_ENDPOINT", &server.url)], PATIENCE);
    let listing = access.list(&hub(None)).await.unwrap();
    assert_eq!((listing.at.as_str(), steps(&listing)), ("hub:lab/model@{}", vec![2, 10]));
    assert_eq!(listing.notes, ["ignored revisions that name no step: main"]);

    let place = listing.location(&listing.checkpoints[0]).unwrap();
    let files = access.files(&place).await.unwrap();
    let found: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(found, ["model.safetensors", "config.json", "vocab.json", "merges.txt"]);
    assert_eq!(files[0].sha256, Some(sha256(&weights)));
    assert_eq!((files[0].size, files[1].sha256.as_deref()), (300_000, None));
    assert_eq!(server.seen("/resolve/").len(), 0, "nothing was downloaded for that");
    assert!(server.seen("cursor=").len() >= 3, "all pages were read");
}

#[tokio::test]
async fn files_are_fetched_once_verified_and_kept_while_they_are_used() {
    let (server, weights) = two_steps().await;
    // The same weights under another label: known by their hash.
    server.file(REPO, "step3", "model.safetensors", &weights, true);
    server.file(REPO, "step3", "config.json", b"{\"model_type\": \"gpt2\"}", false);
    let folder = tempfile::tempdir().unwrap();
    let arrived = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = std::sync::Arc::clone(&arrived);
    let access = access(folder.path(), &[("HF_ENDPOINT", &server.url)], PATIENCE).with_report(
        move |bytes| {
            counter.fetch_add(bytes, std::sync::atomic::Ordering::SeqCst);
        },
    );
    let place: Location = "hub:lab/model@step2".parse().unwrap();
    let files = access.files(&place).await.unwrap();
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(names(&fetched), ["config.json", "merges.txt", "model.safetensors", "vocab.json"]);
    assert_eq!(fs::read(&fetched.files["model.safetensors"]).unwrap(), weights);
    assert_eq!(fetched.hashes["model.safetensors"], sha256(&weights));
    assert_eq!(fetched.hashes["config.json"], sha256(b"{\"model_type\": \"gpt2\"}"));
    let total: u64 = files.iter().map(|file| file.size).sum();
    assert_eq!(arrived.load(std::sync::atomic::Ordering::SeqCst), total);
    assert_eq!(fetched.held(), 4);

    let before = server.seen("/resolve/").len();
    let again = access.fetch(&place, &files).await.unwrap();
    assert_eq!(again.files, fetched.files);
    let alias: Location = "hub:lab/model@step3".parse().unwrap();
    let files = access.files(&alias).await.unwrap();
    let alias = access.fetch(&alias, &files).await.unwrap();
    assert_eq!(alias.files["model.safetensors"], fetched.files["model.safetensors"]);
    assert_eq!(alias.files["config.json"], fetched.files["config.json"], "known by its git id");
    assert_eq!(server.seen("/resolve/").len(), before, "nothing is fetched twice");

    // A file that was damaged on this disk is fetched again.
    drop((fetched, again, alias));
    let path = folder.path().join(sha256(&weights));
    fs::write(&path, b"damaged").unwrap();
    let files = access.files(&place).await.unwrap();
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(fs::read(&fetched.files["model.safetensors"]).unwrap(), weights);
}

/// Protection: the token is for the hub, not for where it redirects to.
#[tokio::test]
async fn the_token_goes_to_the_hub_alone() {
    let (server, _) = two_steps().await;
    server.require_token("hf_secret");
    let folder = tempfile::tempdir().unwrap();
    let endpoint = format!("{}/", server.url);
    let settings = [("HF_ENDPOINT", endpoint.as_str()), ("HF_TOKEN", " hf_secret\n")];
    let access = access(folder.path(), &settings, PATIENCE);
    let place: Location = "hub:lab/model@step10".parse().unwrap();
    let files = access.files(&place).await.unwrap();
    access.fetch(&place, &files).await.unwrap();
    let stored = server.seen("/stored/");
    assert_eq!(stored.len(), 1);
    assert!(stored.iter().all(|seen| seen.host == "store"));
    assert!(stored.iter().all(|seen| !seen.headers.contains_key("authorization")), "{stored:?}");
    let own = server.seen("/resolve/");
    assert!(own.iter().all(|seen| seen.headers.contains_key("authorization")), "{own:?}");
    assert!(!format!("{access:?}").contains("hf_secret"));
}

#[tokio::test]
async fn what_is_missing_or_closed_is_said_with_the_way_out() {
    let (server, _) = two_steps().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = [("HF_ENDPOINT", server.url.as_str())];
    let access = access(folder.path(), &settings, Duration::from_mins(1));
    let listing = Source::Hub { repo: "lab/modle".into(), revision: None };
    let error = access.list(&listing).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }) && error.class() == FailureClass::InputMissing);
    says(&error, &["`lab/modle`", "private", "HF_TOKEN"]);

    let error = access.list(&hub(Some("step3"))).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }));
    says(&error, &["`lab/model`", "`step3`", &format!("{}/lab/model/tree/main", server.url)]);

    let place: Location = "hub:lab/model@main".parse().unwrap();
    says(&access.files(&place).await.unwrap_err(), &["hub:lab/model@main", "no weights"]);
    says(&access.list(&hub(Some("main"))).await.unwrap_err(), &["README.md", "step<N>"]);

    let place: Location = "hub:lab/model@step2".parse().unwrap();
    let mut files = access.files(&place).await.unwrap();
    files.truncate(1);
    files[0].location = "hub:lab/model@step2/gone.safetensors".parse().unwrap();
    let error = access.fetch(&place, &files).await.unwrap_err();
    says(&error, &["`gone.safetensors`", "`lab/model`", "`step2`", "does not exist"]);

    server.require_token("hf_other");
    let error = access.files(&place).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    says(&error, &["`lab/model`", "`step2`", "gated", "accept its terms", "HF_TOKEN"]);
    assert!(access.list(&Source::Hub { repo: "a b".into(), revision: None }).await.is_err());
}

#[tokio::test]
async fn transformer_lens_files_take_their_configuration_from_above() {
    let server = HubServer::start().await;
    let repo = "NeelNanda/GELU_1L512W_C4_Code";
    server.file(repo, "main", "config.json", b"{\"n_layers\": 1}", false);
    server.file(repo, "main", "GELU_final.pth", &noise(5, 400), true);
    server.file(repo, "main", "optimizer_state_dict.pth", &noise(6, 400), true);
    for (label, seed) in [("000000022000000", 7), ("000022000000000", 8)] {
        let path = format!("checkpoints/GELU_1L512W_{label}.pth");
        server.file(repo, "main", &path, &noise(seed, 300), true);
    }
    let folder = tempfile::tempdir().unwrap();
    let access = access(folder.path(), &[("HF_ENDPOINT", &server.url)], PATIENCE);
    let listing = access.list(&Source::Published("gelu-1l".into())).await.unwrap();
    assert_eq!(listing.at, "hub:NeelNanda/GELU_1L512W_C4_Code@main/checkpoints/{}");
    assert_eq!((steps(&listing), listing.unit), (vec![22_000_000, 22_000_000_000], Unit::Token));
    let place = listing.location(&listing.checkpoints[1]).unwrap();
    let files = access.files(&place).await.unwrap();
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(names(&fetched), ["GELU_1L512W_000022000000000.pth", "config.json"]);
    assert_eq!(fetched.hashes["GELU_1L512W_000022000000000.pth"], sha256(&noise(8, 300)));

    // The final model is the repository itself.
    let place: Location = format!("hub:{repo}@main").parse().unwrap();
    let files = access.files(&place).await.unwrap();
    let found: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(found, ["GELU_final.pth", "config.json"]);
}

#[tokio::test]
async fn shards_are_those_that_the_index_names() {
    let server = HubServer::start().await;
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    server.file(REPO, "main", "model.safetensors.index.json", index, false);
    server.file(REPO, "main", "model-1.safetensors", &noise(1, 50), true);
    server.file(REPO, "main", "model-old.safetensors", &noise(9, 50), true);
    let folder = tempfile::tempdir().unwrap();
    let access = access(folder.path(), &[("HF_ENDPOINT", &server.url)], PATIENCE);
    let place: Location = "hub:lab/model".parse().unwrap();
    says(&access.files(&place).await.unwrap_err(), &["shard `model-2.safetensors`"]);
    server.file(REPO, "main", "model-2.safetensors", &noise(2, 50), true);
    let files = access.files(&place).await.unwrap();
    let fetched = access.fetch(&place, &files).await.unwrap();
    let expected = ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"];
    assert_eq!(names(&fetched), expected);
}

#[tokio::test]
async fn one_revision_is_one_checkpoint_with_the_step_that_it_states() {
    let (server, _) = two_steps().await;
    let state = br#"{"global_step": 750, "log_history": []}"#;
    server.file(REPO, "refs/pr/1", "pytorch_model.bin", &noise(1, 10), true);
    server.file(REPO, "refs/pr/1", "trainer_state.json", state, false);
    let folder = tempfile::tempdir().unwrap();
    let access = access(folder.path(), &[("HF_ENDPOINT", &server.url)], PATIENCE);
    assert_eq!(steps(&access.list(&hub(Some("step10"))).await.unwrap()), [10]);
    let listing = access.list(&hub(Some("refs/pr/1"))).await.unwrap();
    assert_eq!(steps(&listing), [750]);
    let place = listing.location(&listing.checkpoints[0]).unwrap();
    assert_eq!(place.to_string(), "hub:lab/model@refs%2Fpr%2F1");
    assert_eq!(access.files(&place).await.unwrap().len(), 2);
    // A mirror that speaks the protocol below a path of its own.
    let mirror = format!("{}/mirror/hub/", server.url);
    let access = crate::access(folder.path(), &[("HF_ENDPOINT", &mirror)], PATIENCE);
    let listing = access.list(&Source::parse("hub:lab/model@step2")).await.unwrap();
    assert_eq!((listing.at.as_str(), steps(&listing)), ("hub:lab/model@{}", vec![2]));
    let place = listing.location(&listing.checkpoints[0]).unwrap();
    let files = access.files(&place).await.unwrap();
    access.fetch(&place, &files).await.unwrap();
}

#[tokio::test]
async fn published_models_with_a_schedule_are_listed_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    let access = access(folder.path(), &nowhere, Duration::from_millis(300));
    let listing = access.list(&Source::Published("pythia-2.8b".into())).await.unwrap();
    assert_eq!((steps(&listing).len(), listing.unit), (154, Unit::Step));
    assert_eq!(listing.at, "hub:EleutherAI/pythia-2.8b@{}");
    assert_eq!(listing.checkpoints[2].name, "step2");
    let warned = sweep_source::warnings(&listing, &steps(&listing));
    assert!(warned[0].contains("86 of 154"), "{warned:?}");
    let repo = Source::Hub { repo: "EleutherAI/pythia-70m".into(), revision: None };
    assert_eq!(steps(&access.list(&repo).await.unwrap()).len(), 154);
    let gpt2 = access.list(&Source::Published("gpt2".into())).await.unwrap();
    assert_eq!((gpt2.at.as_str(), steps(&gpt2)), ("hub:openai-community/gpt2@{}", vec![0]));
    let error = access.list(&Source::Published("olmo-1b".into())).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Transient, "{error}");
    let error = access.list(&Source::Published("pythia-71m".into())).await.unwrap_err();
    says(&error, &["`pythia-71m`", "did you mean"]);
}
