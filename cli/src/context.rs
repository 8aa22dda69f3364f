//! What every command gets: [`Context`] with the output, the way to the coordinator, and the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use sweep_proto::{catalog, pb};

use crate::{
    connect::{Connection, ConnectionOptions},
    error::Result,
    output::Output,
};

/// Everything around a command.
#[derive(Debug)]
pub struct Context {
    /// Standard output and standard error.
    pub output: Output,
    /// How to find the coordinator.
    pub connection: ConnectionOptions,
}

impl Context {
    /// Connects to the command's coordinator.
    pub async fn connect(&self) -> Result<Connection> {
        let connection = self.connection.connect().await?;
        self.output.detail(|| {
            let how = match (connection.dir(), connection.is_borrowed()) {
                (None, _) => String::new(),
                (Some(dir), true) => format!(" (running on {})", dir.display()),
                (Some(dir), false) => format!(" (started on {} for this command)", dir.display()),
            };
            format!("coordinator {}{how}", connection.url())
        });
        Ok(connection)
    }

    /// What workers can run: the coordinator's word, which includes this build's own catalogue.
    pub async fn catalog(&self, connection: &Connection) -> Result<pb::Catalog> {
        let answer = connection.catalog().get(pb::CatalogRequest {}).await?;
        let mut known = catalog::embedded();
        catalog::merge(&mut known, &answer.into_inner());
        Ok(known)
    }

    /// Now, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |elapsed| elapsed.as_millis() as u64)
    }
}
