//! Sends the spool to the coordinator, in order, and forgets what is durable there.
//!
//! Records of a lease that is not alive wait (see [`crate::leases`]); records of a revoked lease are
//! dropped. A fenced record revokes its lease: the work was given to someone else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sweep_proto::pb::{self, Verdict, record::Body};

use crate::session::Session;

/// Records and bytes per call.
const BATCH_COUNT: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// Pause after a call that got nowhere.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Reports until the task is dropped.
pub async fn run(session: Arc<Session>) {
    let mut pause = PAUSE;
    loop {
        match report(&session).await {
            Progress::Sent => pause = PAUSE,
            Progress::Nothing => {
                // The timeout only guards against a missed wake-up.
                let _ = tokio::time::timeout(PAUSE_MAX, session.spool.filled()).await;
            }
            Progress::Stuck => {
                session.beat.notify_one();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

enum Progress {
    Sent,
    Nothing,
    Stuck,
}

async fn report(session: &Session) -> Progress {
    let records = match session.spool.peek(BATCH_COUNT, BATCH_BYTES) {
        Ok(records) => records,
        Err(error) => {
            tracing::error!(%error, "metric spool cannot be read");
            return Progress::Stuck;
        }
    };
    if records.is_empty() {
        return Progress::Nothing;
    }
    let dropped = |record: &pb::Record| {
        session.leases.get(record.attempt).is_some_and(|lease| lease.is_revoked())
    };
    let leading = records.iter().take_while(|record| dropped(record)).count();
    if leading > 0 {
        settle(session, &records[..leading]);
        return Progress::Sent;
    }
    let registration = session.registration();
    let now = Instant::now();
    let sendable = |record: &&pb::Record| {
        !dropped(record) && session.leases.may_report(record.attempt, now, registration.ttl)
    };
    let records: Vec<pb::Record> = records.iter().take_while(sendable).cloned().collect();
    if records.is_empty() {
        return Progress::Stuck;
    }
    let request = pb::ReportRequest { worker: registration.worker, records: records.clone() };
    let answer = match session.workers().report(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            tracing::warn!(problem = status.message(), "report not answered");
            return Progress::Stuck;
        }
    };
    let mut settled = 0;
    for (record, verdict) in records.iter().zip(answer.verdicts()) {
        match verdict {
            Verdict::Accepted => {}
            Verdict::Fenced => fenced(session, record.attempt),
            Verdict::Invalid => {
                tracing::error!(
                    attempt = record.attempt,
                    sequence = record.sequence,
                    "record refused"
                );
            }
            // Without a lease of this process behind it (records of one that died), nobody will
            // ever confirm it, and its work is done again.
            Verdict::UnknownLease if session.leases.get(record.attempt).is_none() => {}
            Verdict::UnknownLease | Verdict::Unspecified => break,
        }
        settled += 1;
    }
    settle(session, &records[..settled]);
    if settled > 0 { Progress::Sent } else { Progress::Stuck }
}

fn fenced(session: &Session, attempt: u64) {
    if let Some(lease) = session.leases.get(attempt).filter(|lease| !lease.is_revoked()) {
        tracing::info!(attempt, "lease was given away, dropping its work");
        lease.revoke();
    }
}

/// Forgets records, and leases whose tasks have all ended.
fn settle(session: &Session, records: &[pb::Record]) {
    for record in records {
        if let (Some(Body::Done(_) | Body::Failed(_)), Some(task)) = (&record.body, &record.task) {
            session.leases.task_settled(record.attempt, task);
        }
    }
    session.spool.ack(records.len());
}
