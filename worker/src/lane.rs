//! A slot of the worker: one OS thread that runs one lease at a time. The agent talks; lanes compute.
//! Main type: [`Lane`].

use std::{io, sync::Arc, thread};

use sweep_lens::Device;
use sweep_proto::pb;
use tokio::sync::{mpsc, oneshot};

use crate::{
    analyse, compare,
    deliver::{Outlet, Provenance},
    import,
    leases::HeldLease,
    train, trajectory,
};

/// A lease on its way into a lane.
struct Assignment {
    lease: Arc<HeldLease>,
    work: pb::lease::Work,
    finished: oneshot::Sender<()>,
}

/// Handle of a lane's thread.
#[derive(Debug)]
pub struct Lane {
    assignments: mpsc::Sender<Assignment>,
}

impl Lane {
    /// Starts the thread; `threads` is how many CPU threads libtorch uses in it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(
        index: u32,
        outlet: Outlet,
        device: Device,
        threads: i32,
        provenance: Provenance,
    ) -> io::Result<Self> {
        let (assignments, mut waiting) = mpsc::channel::<Assignment>(1);
        thread::Builder::new().name(format!("lane-{index}")).spawn(move || {
            // libtorch counts threads per calling thread.
            tch::set_num_threads(threads);
            while let Some(Assignment { lease, work, finished }) = waiting.blocking_recv() {
                match &work {
                    pb::lease::Work::Train(work) => {
                        train::run(&outlet, &lease, work, device, &provenance);
                    }
                    pb::lease::Work::Analyse(work) => {
                        analyse::run(&outlet, &lease, work, device, &provenance);
                    }
                    pb::lease::Work::Compare(work) => {
                        compare::run(&outlet, &lease, work, device, &provenance);
                    }
                    pb::lease::Work::Import(work) => {
                        import::run(&outlet, &lease, work, &provenance);
                    }
                    pb::lease::Work::Trajectory(work) => {
                        trajectory::run(&outlet, &lease, work, device, &provenance);
                    }
                }
                if lease.is_revoked() {
                    outlet.session.leases.forget(lease.attempt);
                }
                let _ = finished.send(());
            }
        })?;
        Ok(Self { assignments })
    }

    /// Runs a lease to its end. False when the thread is gone.
    pub async fn run(&self, lease: Arc<HeldLease>, work: pb::lease::Work) -> bool {
        let (finished, done) = oneshot::channel();
        let assignment = Assignment { lease, work, finished };
        self.assignments.send(assignment).await.is_ok() && done.await.is_ok()
    }
}
