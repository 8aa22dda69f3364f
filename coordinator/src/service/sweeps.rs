//! `SweepService`: what the command line asks for. The streams are in [`listing`](super::listing).

use std::{sync::Arc, time::Duration};

use sweep_proto::{
    pb::{self, sweep_service_server::SweepService},
    spec::SweepSpec,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    core::{
        Core,
        event::{Answer, Event, RequestId},
        plan::Plan,
        status::{KINDS, STATES, TaskFilter},
    },
    error::Error,
};

use super::{Shared, Stream, listing};

/// Least time between two statuses of one watcher.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of a sweep file; the largest sensible ones are a few kilobytes.
const MAX_SPEC_BYTES: usize = 1 << 20;

/// The service.
pub(super) struct Sweeps(pub(super) Shared);

impl Sweeps {
    /// The plan of a sweep file: of the sweep that is there already, or a new one.
    async fn plan(&self, request: pb::SubmitRequest) -> Result<Arc<Plan>, Error> {
        if request.spec.len() > MAX_SPEC_BYTES {
            let problem = format!("the sweep file has more than {MAX_SPEC_BYTES} bytes");
            return Err(Error::InvalidSweep(vec![problem]));
        }
        let limit = self.0.max_tasks;
        let limit = if request.max_tasks == 0 { limit } else { request.max_tasks.min(limit) };
        let decode = move || {
            let document: serde_json::Value = serde_json::from_str(&request.spec)
                .map_err(|error| vec![format!("the sweep file is not JSON: {error}")])?;
            let id = SweepSpec::decode(&document).ok().map(|spec| spec.id());
            Ok((document, id))
        };
        let (document, id) = self.0.blocking(decode).await?.map_err(Error::InvalidSweep)?;
        let (catalog, existing) = self
            .0
            .handle
            .read(move |core, _| {
                // What is there already keeps the versions that it was pinned to.
                let number = id.and_then(|id| core.find(&id).ok());
                let sweep = number.and_then(|number| core.sweep(number));
                (core.catalog().clone(), sweep.map(|sweep| Arc::clone(&sweep.plan)))
            })
            .await?;
        if let Some(plan) = existing {
            return Ok(plan);
        }
        let resolve = move || Plan::resolve(&document, &catalog, limit);
        Ok(Arc::new(self.0.blocking(resolve).await?.map_err(Error::InvalidSweep)?))
    }

    async fn plan_response(&self, plan: Arc<Plan>) -> Result<pb::PlanResponse, Error> {
        self.0.handle.read(move |core, _| core.plan_response(&plan)).await
    }

    async fn status(&self, sweep: String) -> Result<pb::SweepStatus, Error> {
        status(&self.0, sweep).await
    }

    /// Asks for a change of a sweep and answers with its status.
    async fn change(
        &self,
        event: impl FnOnce(RequestId) -> Event + Send + 'static,
    ) -> Result<Response<pb::SweepStatus>, Status> {
        match self.0.handle.call(0, event).await? {
            Answer::Status(status) => Ok(Response::new(*status)),
            answer => Err(Error::Internal(format!("unexpected answer {answer:?}")).into()),
        }
    }
}

async fn status(shared: &Shared, sweep: String) -> Result<pb::SweepStatus, Error> {
    let read = shared.handle.read(move |core, now| {
        let number = core.find(&sweep)?;
        let sweep = core.sweep(number).ok_or(crate::core::event::Refusal::NoSuchSweep(sweep))?;
        Ok(core.status(sweep, now))
    });
    read.await?
}

/// Sends a status now and after changes, until the sweep has ended or nobody listens.
async fn watch(
    shared: Shared,
    sweep: String,
    sender: mpsc::Sender<Result<pb::SweepStatus, Status>>,
) {
    let mut changes = shared.handle.changes();
    let mut last: Option<pb::SweepStatus> = None;
    loop {
        changes.mark_unchanged();
        let status = match status(&shared, sweep.clone()).await {
            Ok(status) => status,
            Err(error) => {
                // A watcher that went away needs no error.
                let _ = sender.send(Err(error.into())).await;
                return;
            }
        };
        let is_over = status.ended_at != 0;
        if last.as_ref() != Some(&status) {
            last = Some(status.clone());
            if sender.send(Ok(status)).await.is_err() {
                return;
            }
        }
        if is_over {
            return;
        }
        let pause = async {
            tokio::time::sleep(WATCH_INTERVAL).await;
            changes.changed().await
        };
        let go_on = tokio::select! {
            changed = pause => changed.is_ok(),
            () = shared.token.cancelled() => false,
            () = sender.closed() => return,
        };
        if !go_on {
            let _ = sender.send(Err(Error::Stopping.into())).await;
            return;
        }
    }
}

#[tonic::async_trait]
impl SweepService for Sweeps {
    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        let plan = self.plan(request.into_inner()).await?;
        let submitted = Arc::clone(&plan);
        let event = move |request| Event::Submit { request, plan: submitted };
        let created = match self.0.handle.call(0, event).await? {
            Answer::Submitted { created, .. } => created,
            answer => return Err(Error::Internal(format!("unexpected answer {answer:?}")).into()),
        };
        let sweep = plan.id().to_owned();
        let plan = Some(self.plan_response(plan).await?);
        Ok(Response::new(pb::SubmitResponse { sweep, created, plan }))
    }

    async fn plan(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::PlanResponse>, Status> {
        let plan = self.plan(request.into_inner()).await?;
        Ok(Response::new(self.plan_response(plan).await?))
    }

    async fn list(
        &self,
        _request: Request<pb::ListSweepsRequest>,
    ) -> Result<Response<pb::ListSweepsResponse>, Status> {
        let sweeps = self
            .0
            .handle
            .read(|core, now| {
                let brief = |sweep| {
                    // A list of thousands of sweeps must fit into one message.
                    let status = core.status(sweep, now);
                    let (running, failures) = (Vec::new(), Vec::new());
                    pb::SweepStatus { spec: String::new(), running, failures, ..status }
                };
                core.sweeps().map(brief).collect()
            })
            .await?;
        Ok(Response::new(pb::ListSweepsResponse { sweeps }))
    }

    async fn get(
        &self,
        request: Request<pb::GetSweepRequest>,
    ) -> Result<Response<pb::SweepStatus>, Status> {
        Ok(Response::new(self.status(request.into_inner().sweep).await?))
    }

    type WatchStream = Stream<pb::SweepStatus>;

    async fn watch(
        &self,
        request: Request<pb::GetSweepRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // `last` must go on to mean the same sweep.
        let (_, plan) = self.0.find(&request.into_inner().sweep).await?;
        let (sender, receiver) = mpsc::channel(1);
        self.0.tracker.spawn(watch(self.0.clone(), plan.id().to_owned(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type TasksStream = Stream<pb::TaskInfo>;

    async fn tasks(
        &self,
        request: Request<pb::TasksRequest>,
    ) -> Result<Response<Self::TasksStream>, Status> {
        let pb::TasksRequest { sweep, state, kind, limit } = request.into_inner();
        for (name, word, known) in [("state", &state, &STATES[..]), ("kind", &kind, &KINDS[..])] {
            if !word.is_empty() && !known.contains(&word.as_str()) {
                let problem = format!("unknown {name} `{word}`; known: {}", known.join(", "));
                return Err(Error::InvalidRequest(problem).into());
            }
        }
        let (number, plan) = self.0.find(&sweep).await?;
        let limit = if limit == 0 { u64::MAX } else { limit };
        let stream = listing::tasks(&self.0, number, plan, TaskFilter { state, kind }, limit);
        Ok(Response::new(stream))
    }

    type LogsStream = Stream<pb::LogLine>;

    async fn logs(
        &self,
        request: Request<pb::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let pb::LogsRequest { sweep, task } = request.into_inner();
        let (number, plan) = self.0.find(&sweep).await?;
        Ok(Response::new(listing::logs(&self.0, number, plan, task)))
    }

    type ArtifactsStream = Stream<pb::ArtifactInfo>;

    async fn artifacts(
        &self,
        request: Request<pb::GetSweepRequest>,
    ) -> Result<Response<Self::ArtifactsStream>, Status> {
        let (number, plan) = self.0.find(&request.into_inner().sweep).await?;
        Ok(Response::new(listing::artifacts(&self.0, number, plan)))
    }

    async fn cancel(
        &self,
        request: Request<pb::GetSweepRequest>,
    ) -> Result<Response<pb::SweepStatus>, Status> {
        let sweep = request.into_inner().sweep;
        self.change(move |request| Event::Cancel { request, sweep }).await
    }

    async fn retry(
        &self,
        request: Request<pb::GetSweepRequest>,
    ) -> Result<Response<pb::SweepStatus>, Status> {
        let sweep = request.into_inner().sweep;
        self.change(move |request| Event::Retry { request, sweep }).await
    }

    async fn workers(
        &self,
        _request: Request<pb::WorkersRequest>,
    ) -> Result<Response<pb::WorkersResponse>, Status> {
        let workers = self.0.handle.read(Core::worker_infos).await?;
        Ok(Response::new(pb::WorkersResponse { workers }))
    }
}
