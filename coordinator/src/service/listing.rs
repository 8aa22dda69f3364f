//! Streams about tasks: listings, logs, artifacts. States come from the core, page by page, details
//! from the store; nothing is collected as a whole.

use std::sync::Arc;

use sweep_proto::{
    id::{TaskKey, TaskKind},
    pb,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    core::{
        model::State,
        plan::Plan,
        status::{TaskFilter, TaskView},
    },
    error::Error,
    store::{
        self, Store,
        key::{Key, Kind},
        record,
    },
};

use super::{Shared, Stream};

/// Tasks of one page.
const PAGE: usize = 1_000;

/// Tasks of a sweep, lazily, in the order of model, kind, step, experiment.
pub(super) fn tasks(
    shared: &Shared,
    number: u32,
    plan: Arc<Plan>,
    filter: TaskFilter,
    limit: u64,
) -> Stream<pb::TaskInfo> {
    let (sender, receiver) = mpsc::channel(PAGE);
    let tracked = shared.clone();
    let shared = shared.clone();
    tracked.tracker.spawn(async move {
        let (mut after, mut left) = (None, limit);
        while left > 0 && !shared.token.is_cancelled() {
            let filter = filter.clone();
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE);
            let page = shared.handle.read(move |core, _| {
                let sweep = core.sweep(number);
                sweep.map(|sweep| core.tasks(sweep, &filter, after, wanted)).unwrap_or_default()
            });
            let result = match page.await {
                Ok((views, next)) => {
                    left -= views.len() as u64;
                    after = next;
                    details(&shared, number, &plan, views).await
                }
                Err(error) => Err(error),
            };
            let infos = match result {
                Ok(infos) => infos,
                Err(error) => {
                    // A reader that went away needs no error.
                    let _ = sender.send(Err(error.into())).await;
                    return;
                }
            };
            for info in infos {
                if sender.send(Ok(info)).await.is_err() {
                    return;
                }
            }
            if after.is_none() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn details(
    shared: &Shared,
    number: u32,
    plan: &Arc<Plan>,
    views: Vec<TaskView>,
) -> Result<Vec<pb::TaskInfo>, Error> {
    let (store, plan) = (shared.store.clone(), Arc::clone(plan));
    let infos = move || views.iter().map(|view| info(&store, number, &plan, view)).collect();
    let infos: Result<Vec<_>, store::Error> = shared.blocking(infos).await?;
    Ok(infos?)
}

fn info(store: &Store, number: u32, plan: &Plan, view: &TaskView) -> store::Result<pb::TaskInfo> {
    let record = store.task(number, view.task)?;
    let attempt = match view.state {
        State::Running(attempt) | State::Done(attempt) | State::Failed(attempt) => attempt.0,
        State::Waiting | State::Ready | State::Skipped | State::Cancelled => {
            record.as_ref().map_or(0, |record| record.attempt.0)
        }
    };
    let ended = matches!(view.state, State::Done(_) | State::Failed(_));
    let ended = record.as_ref().filter(|_| ended);
    let worker = ended.map_or_else(|| view.worker.clone(), |record| record.worker.clone());
    let failures = record.iter().flat_map(|record| record.failures.iter().map(|f| f.1.clone()));
    Ok(pb::TaskInfo {
        task: Some(view.task.to_pb(plan.id())),
        label: plan.task_label(view.task),
        model: plan.subject(view.task),
        seed: plan.seed(view.task),
        experiment: plan.producer(view.task).unwrap_or_default().to_owned(),
        state: view.state.word().to_owned(),
        attempt,
        worker,
        failures: failures.collect(),
        elapsed_ms: ended.map_or(0, |record| record.elapsed_ms),
        finished_at: ended.map_or(0, |record| record.finished_at),
    })
}

/// Log lines of tasks whose label contains `part`, by task, attempt, order of writing.
pub(super) fn logs(
    shared: &Shared,
    number: u32,
    plan: Arc<Plan>,
    part: String,
) -> Stream<pb::LogLine> {
    shared.stream(move |store, sink| {
        let mut last: Option<(TaskKey, String)> = None;
        each_until(store, &Key::of(Kind::Log).u32(number), |key, value| {
            let (task, attempt, worker, entry) = record::log(key, value)?;
            let label = match last.take() {
                Some((known, label)) if known == task => label,
                _ => plan.task_label(task),
            };
            let line = pb::LogLine {
                label: label.clone(),
                attempt: attempt.0,
                time: entry.time,
                level: entry.level,
                text: entry.text,
                worker,
            };
            let fits = label.contains(&part);
            last = Some((task, label));
            Ok(!fits || sink.send(line))
        })
    })
}

/// Files of done tasks, then published checkpoints.
pub(super) fn artifacts(shared: &Shared, number: u32, plan: Arc<Plan>) -> Stream<pb::ArtifactInfo> {
    let artifact_root = shared.artifacts.clone();
    shared.stream(move |store, sink| {
        let mut go_on = true;
        each_until(store, &Key::of(Kind::Manifest).u32(number), |key, value| {
            let (task, attempt, manifest) = record::manifest(key, value)?;
            let (checkpoint, experiment) = place(&plan, task);
            let info = |file| pb::ArtifactInfo {
                model: plan.subject(task),
                checkpoint: checkpoint.clone(),
                experiment: experiment.clone(),
                file: Some(file),
                artifact_root: artifact_root.clone(),
                attempt: attempt.0,
            };
            go_on = manifest.artifacts.into_iter().all(|file| sink.send(info(file)));
            Ok(go_on)
        })?;
        if !go_on {
            return Ok(());
        }
        each_until(store, &Key::of(Kind::Checkpoint).u32(number), |key, value| {
            let (model, (attempt, checkpoint)) = record::checkpoint(key, value)?;
            // An imported checkpoint lies where it was published, not among the artifacts.
            let Some(file) = checkpoint.file else { return Ok(true) };
            let name = "model.safetensors".to_owned();
            Ok(sink.send(pb::ArtifactInfo {
                model: plan.model_label(model),
                checkpoint: format!("step{}", checkpoint.step),
                experiment: "train".to_owned(),
                file: Some(pb::Blob { name, ..file }),
                artifact_root: artifact_root.clone(),
                attempt: attempt.0,
            }))
        })
    })
}

/// Folder names of a task's files: checkpoint and experiment.
fn place(plan: &Plan, task: TaskKey) -> (String, String) {
    let experiment = plan.experiment(task.kind).map(|pinned| pinned.folder.clone());
    match task.kind {
        TaskKind::Source => {
            let word = plan.source_word(task.model).to_owned();
            (word, plan.producer(task).unwrap_or_default().to_owned())
        }
        TaskKind::Analyse { step, .. } => (format!("step{step}"), experiment.unwrap_or_default()),
        TaskKind::Trajectory { .. } => ("trajectory".to_owned(), experiment.unwrap_or_default()),
        TaskKind::Compare { step, .. } => {
            let partner = plan.partner_label(task).unwrap_or_default();
            (format!("step{step}"), format!("{}-{partner}", experiment.unwrap_or_default()))
        }
    }
}

/// Visits documents until `visit` returns false.
fn each_until(
    store: &Store,
    prefix: &Key,
    mut visit: impl FnMut(&[u8], &[u8]) -> store::Result<bool>,
) -> store::Result<()> {
    let mut from = prefix.bytes().to_vec();
    loop {
        let (documents, next) = store.page(prefix.bytes(), &from, 1 << 20)?;
        for (key, value) in &documents {
            if !visit(key, value)? {
                return Ok(());
            }
        }
        match next {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}
