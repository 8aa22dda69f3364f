//! `sweep artifacts`: the files that tasks left behind.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use comfy_table::Cell;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use sweep_proto::{id::Attempt, pb};

use super::{SweepArg, with_connection};
use crate::{
    artifacts::{ArtifactStore, Fetched, Pattern, aws_settings, download, place, target},
    connect::Connection,
    context::Context,
    error::{CommandError, Outcome, Result},
    format,
    table::{self, Align},
};

/// Files that are fetched at the same time.
const AT_ONCE: usize = 4;

/// Arguments of `sweep artifacts`.
#[derive(Debug, Args)]
pub struct ArtifactsArgs {
    #[command(subcommand)]
    command: ArtifactsCommand,
}

#[derive(Debug, Subcommand)]
enum ArtifactsCommand {
    /// List files with their sizes
    #[command(after_help = "Example:\n  sweep artifacts list last '*.json'")]
    List {
        #[command(flatten)]
        sweep: SweepArg,
        /// File name, or model/checkpoint/experiment/name; * and ? stand for other characters
        #[arg(value_name = "PATTERN", default_value = "*")]
        pattern: String,
    },
    /// Fetch files and verify them
    #[command(after_help = "Example:\n  sweep artifacts get last 'fits.json' --to files\n\n\
        Files go to DIR/<model>/<checkpoint>/<experiment>/<name>. For s3:// roots, keys, region and\n\
        endpoint come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT and\n\
        AWS_VIRTUAL_HOSTED_STYLE_REQUEST.")]
    Get {
        /// Sweep id, a unique beginning of one, or `last`
        #[arg(value_name = "SWEEP")]
        sweep: String,
        /// File name, or model/checkpoint/experiment/name; * and ? stand for other characters
        #[arg(value_name = "PATTERN")]
        pattern: String,
        /// Folder to write to
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Replace files that are there and differ
        #[arg(long)]
        overwrite: bool,
    },
}

pub(super) async fn run(cx: &Context, args: ArtifactsArgs) -> Result<Outcome> {
    match args.command {
        ArtifactsCommand::List { sweep, pattern } => list(cx, &sweep, &pattern).await,
        ArtifactsCommand::Get { sweep, pattern, to, overwrite } => {
            let request = Get { pattern, to, overwrite };
            get(cx, &SweepArg { sweep }, &request).await
        }
    }
}

async fn find(connection: &Connection, sweep: &str, text: &str) -> Result<Vec<pb::ArtifactInfo>> {
    let pattern = Pattern::new(text);
    let request = pb::GetSweepRequest { sweep: sweep.to_owned() };
    let mut stream = connection.sweeps().artifacts(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(artifact) = stream.message().await? {
        if pattern.matches(&artifact) {
            found.push(artifact);
        }
    }
    Ok(found)
}

async fn list(cx: &Context, sweep: &SweepArg, pattern: &str) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let sweep = sweep.resolve(connection).await?.sweep;
        let found = find(connection, &sweep, pattern).await?;
        if cx.output.is_json() {
            let list: Vec<Value> = found.iter().map(to_json).collect();
            let fields = json!({ "sweep": sweep, "artifacts": list });
            cx.output.json("sweep.artifacts/v1", fields)?;
            return Ok(Outcome::Success);
        }
        if found.is_empty() {
            cx.output.note("no artifacts");
            return Ok(Outcome::Success);
        }
        let mut table = table::new(&[("artifact", Align::Left), ("size", Align::Right)]);
        for artifact in &found {
            let size = artifact.file.as_ref().map_or(0, |file| file.size);
            table.add_row(vec![Cell::new(place(artifact)), Cell::new(format::bytes(size))]);
        }
        cx.output.table(table)?;
        Ok(Outcome::Success)
    })
    .await
}

fn to_json(artifact: &pb::ArtifactInfo) -> Value {
    let file = artifact.file.clone().unwrap_or_default();
    json!({
        "model": artifact.model,
        "checkpoint": artifact.checkpoint,
        "experiment": artifact.experiment,
        "name": file.name,
        "size": file.size,
        "sha256": file.sha256,
        "key": file.key,
        "artifact_root": artifact.artifact_root,
        "attempt": Attempt(artifact.attempt).to_string(),
    })
}

struct Get {
    pattern: String,
    to: PathBuf,
    overwrite: bool,
}

async fn get(cx: &Context, sweep: &SweepArg, request: &Get) -> Result<Outcome> {
    with_connection(cx, async |connection| {
        let sweep = sweep.resolve(connection).await?.sweep;
        let found = find(connection, &sweep, &request.pattern).await?;
        if found.is_empty() {
            let message = format!("no artifact of {sweep} fits `{}`", request.pattern);
            return Err(CommandError::not_found(message).hint("sweep artifacts list"));
        }
        let settings = aws_settings();
        let mut jobs = Vec::new();
        let mut stores: Vec<(String, ArtifactStore)> = Vec::new();
        for artifact in &found {
            let root = &artifact.artifact_root;
            let known = stores.iter().find(|(known, _)| known == root);
            let store = if let Some((_, store)) = known {
                store.clone()
            } else {
                let store = ArtifactStore::open(root, &settings)?;
                stores.push((root.clone(), store.clone()));
                store
            };
            let blob = artifact.file.clone().unwrap_or_default();
            jobs.push((store, blob, target(&request.to, artifact)?));
        }
        let fetch = |(store, blob, path): (ArtifactStore, pb::Blob, PathBuf)| async move {
            let fetched = download(&store, &blob, &path, request.overwrite).await?;
            Ok::<_, CommandError>((fetched, blob.size, path))
        };
        let done: Vec<(Fetched, u64, PathBuf)> =
            stream::iter(jobs).map(fetch).buffered(AT_ONCE).try_collect().await?;
        report(cx, &sweep, &done)
    })
    .await
}

fn report(cx: &Context, sweep: &str, done: &[(Fetched, u64, PathBuf)]) -> Result<Outcome> {
    if cx.output.is_json() {
        let file = |(fetched, size, path): &(Fetched, u64, PathBuf)| {
            json!({
                "path": path.display().to_string(),
                "size": size,
                "written": *fetched == Fetched::Written,
            })
        };
        let files: Vec<Value> = done.iter().map(file).collect();
        let fields = json!({ "sweep": sweep, "files": files });
        cx.output.json("sweep.artifacts-get/v1", fields)?;
        return Ok(Outcome::Success);
    }
    for (_, _, path) in done {
        cx.output.line(&path.display().to_string())?;
    }
    let written = done.iter().filter(|(fetched, ..)| *fetched == Fetched::Written);
    let (count, size) = written.fold((0, 0), |(n, sum), (_, size, _)| (n + 1, sum + size));
    cx.output.note(&format!(
        "{} written ({}), {} there already",
        format::plural(count, "file", "files"),
        format::bytes(size),
        done.len() as u64 - count
    ));
    Ok(Outcome::Success)
}
