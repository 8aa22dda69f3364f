//! `WorkerService`: what workers say. Acquire is a long poll; everything else answers at once, after
//! what it changed is durable.

use std::{sync::Arc, time::Duration};

use sweep_proto::pb::{self, worker_service_server::WorkerService};
use tonic::{Request, Response, Status};

use crate::{
    core::event::{Answer, Event, Wish},
    error::Error,
};

use super::{Shared, decode};

/// Checkpoint hashes that a worker may name.
const MAX_RESIDENT: usize = 10_000;
/// Reports above this size are decoded off the network threads.
const LARGE_REPORT_BYTES: usize = 64 << 10;

/// The service.
pub(super) struct Workers(pub(super) Shared);

/// The core answers every event with the answer of its kind.
fn unexpected(answer: &Answer) -> Error {
    Error::Internal(format!("unexpected answer {answer:?}"))
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let hello = decode::hello(request.into_inner())?;
        let call = self.0.handle.call(0, move |request| Event::Register { request, hello });
        let worker = match call.await? {
            Answer::Registered(worker) => worker,
            answer => return Err(unexpected(&answer).into()),
        };
        let milliseconds = |duration: Duration| duration.as_millis() as u32;
        Ok(Response::new(pb::RegisterResponse {
            worker,
            heartbeat_ms: milliseconds(self.0.timing.heartbeat()),
            lease_ttl_ms: milliseconds(self.0.timing.ttl()),
            artifact_root: self.0.artifacts.clone(),
        }))
    }

    async fn acquire(
        &self,
        request: Request<pb::AcquireRequest>,
    ) -> Result<Response<pb::AcquireResponse>, Status> {
        let request = request.into_inner();
        if request.resident.len() > MAX_RESIDENT {
            let problem = format!("more than {MAX_RESIDENT} resident checkpoints");
            return Err(Error::InvalidRequest(problem).into());
        }
        let wait = Duration::from_millis(u64::from(request.wait_ms));
        let resident = Arc::new(request.resident.into_iter().collect());
        let wish = Wish { worker: request.worker, training: request.training, resident };
        let call = self.0.handle.call(0, move |request| Event::Acquire { request, wish, wait });
        let answer = tokio::select! {
            answer = call => answer?,
            () = self.0.token.cancelled() => return Err(Error::Stopping.into()),
        };
        match answer {
            Answer::Lease(lease) => {
                Ok(Response::new(pb::AcquireResponse { lease: lease.map(|lease| *lease) }))
            }
            answer => Err(unexpected(&answer).into()),
        }
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let pb::HeartbeatRequest { worker, leases, spool_bytes, draining } = request.into_inner();
        let held = decode::held(leases)?;
        let call = self.0.handle.call(0, move |request| Event::Heartbeat {
            request,
            worker,
            held,
            spool_bytes,
            draining,
        });
        match call.await? {
            Answer::Revoked(revoked) => Ok(Response::new(pb::HeartbeatResponse { revoked })),
            answer => Err(unexpected(&answer).into()),
        }
    }

    async fn report(
        &self,
        request: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::ReportResponse>, Status> {
        let request = request.into_inner();
        let bytes = prost::Message::encoded_len(&request);
        let pb::ReportRequest { worker, records } = request;
        if records.len() > decode::MAX_RECORDS {
            let problem = format!("more than {} records in one report", decode::MAX_RECORDS);
            return Err(Error::InvalidRequest(problem).into());
        }
        let decode = move || records.into_iter().map(decode::record).collect::<Vec<_>>();
        let records =
            if bytes < LARGE_REPORT_BYTES { decode() } else { self.0.blocking(decode).await? };
        let event = move |request| Event::Report { request, worker, records };
        match self.0.handle.call(bytes, event).await? {
            Answer::Verdicts(verdicts) => {
                let verdicts = verdicts.into_iter().map(i32::from).collect();
                Ok(Response::new(pb::ReportResponse { verdicts }))
            }
            answer => Err(unexpected(&answer).into()),
        }
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        let worker = request.into_inner().worker;
        match self.0.handle.call(0, move |request| Event::Leave { request, worker }).await? {
            Answer::Left => Ok(Response::new(pb::LeaveResponse {})),
            answer => Err(unexpected(&answer).into()),
        }
    }
}
