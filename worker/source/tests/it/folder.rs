//! Checkpoints in folders of this machine.

use std::{fs, path::Path, time::Duration};

use sweep_source::{Error, Source, cache::sha256};

use crate::{access, names, says, steps};

const PATIENCE: Duration = Duration::from_secs(1);

fn write(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn folders_of_steps_are_used_in_place_and_hashed_once() {
    let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for step in [100, 20, 3] {
        write(root.path(), &format!("my run/step{step}/model.safetensors"), &[step; 1000]);
        write(root.path(), &format!("my run/step{step}/optimizer.pt"), b"x");
    }
    write(root.path(), "my run/config.json", b"{}");
    write(root.path(), "my run/tokenizer.json", b"{\"model\": 1}");
    write(root.path(), "my run/step7/notes.txt", b"nothing");
    write(root.path(), "my run/.hidden/model.safetensors", b"x");
    let access = access(cache.path(), &[], PATIENCE);
    let run = root.path().join("my run");
    for text in [run.display().to_string(), format!("file://{}", run.display())] {
        let listing = access.list(&Source::Path(text)).await.unwrap();
        assert_eq!(listing.at, format!("file://{}/{{}}", run.display()));
        assert_eq!(steps(&listing), [3, 20, 100]);
        assert_eq!(listing.notes, ["ignored folders without weights: step7"]);
    }
    let listing = access.list(&Source::Path(run.display().to_string())).await.unwrap();
    let place = listing.location(&listing.checkpoints[1]).unwrap();
    let files = access.files(&place).await.unwrap();
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(names(&fetched), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fetched.files["model.safetensors"], run.join("step20/model.safetensors"));
    assert_eq!(fetched.files["config.json"], run.join("config.json"));
    assert_eq!(fetched.hashes["model.safetensors"], sha256(&[20; 1000]));
    assert_eq!(fetched.held(), 0, "nothing is copied");

    // Hashed once: a hash that is remembered for this version is believed.
    let version =
        format!("file:{}:{}", run.join("step20/model.safetensors").display(), files[0].version);
    let remembered = sweep_source::Cache::open(cache.path(), 1).unwrap();
    assert_eq!(remembered.known(&version), Some(sha256(&[20; 1000])));
    remembered.learn(&version, &sha256(b"remembered"));
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(fetched.hashes["model.safetensors"], sha256(b"remembered"));

    // Protection: a file that was written to is another version, whatever its times say.
    let path = run.join("step20/model.safetensors");
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, [21; 1000]).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(times)).unwrap();
    let files = access.files(&place).await.unwrap();
    let fetched = access.fetch(&place, &files).await.unwrap();
    assert_eq!(fetched.hashes["model.safetensors"], sha256(&[21; 1000]));
}

#[tokio::test]
async fn a_file_that_changes_under_the_hand_is_noticed() {
    let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(root.path(), "m/model.safetensors", &[1; 10]);
    let access = access(cache.path(), &[], PATIENCE);
    let listing =
        access.list(&Source::Path(root.path().join("m").display().to_string())).await.unwrap();
    let place = listing.location(&listing.checkpoints[0]).unwrap();
    let files = access.files(&place).await.unwrap();
    write(root.path(), "m/model.safetensors", &[2; 11]);
    assert!(matches!(access.fetch(&place, &files).await, Err(Error::Changed { .. })));
}

#[tokio::test]
async fn a_single_checkpoint_has_the_step_of_its_trainer() {
    let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(root.path(), "m/pytorch_model.bin", b"x");
    let access = access(cache.path(), &[], PATIENCE);
    let source = Source::Path(root.path().join("m").display().to_string());
    assert_eq!(steps(&access.list(&source).await.unwrap()), [0]);
    write(root.path(), "m/trainer_state.json", b"{\"global_step\": 1250}");
    let listing = access.list(&source).await.unwrap();
    assert_eq!((steps(&listing), listing.checkpoints[0].name.as_str()), (vec![1250], "m"));
    write(root.path(), "m/trainer_state.json", b"not json");
    assert_eq!(steps(&access.list(&source).await.unwrap()), [0]);
    let source = Source::Path(root.path().join("m/model_000300.pth").display().to_string());
    assert_eq!(steps(&access.list(&source).await.unwrap()), [300]);
}

#[tokio::test]
async fn what_is_no_run_is_said() {
    let (cache, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(root.path(), "notes/readme.txt", b"x");
    let access = access(cache.path(), &[], PATIENCE);
    let list = async |path: &str| {
        let path = root.path().join(path).display().to_string();
        access.list(&Source::Path(path)).await.unwrap_err()
    };
    says(&list("nothing").await, &["nothing", "does not exist"]);
    says(&list("notes").await, &["readme.txt", "step<N>", "pytorch_model.bin"]);
    write(root.path(), "a{}b/step1/model.safetensors", b"x");
    says(&list("a{}b").await, &["`{}`"]);
}
