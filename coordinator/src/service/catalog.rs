//! `CatalogService`: the union of what workers can run.

use sweep_proto::pb::{self, catalog_service_server::CatalogService};
use tonic::{Request, Response, Status};

use super::Shared;

/// The service.
pub(super) struct Catalog(pub(super) Shared);

#[tonic::async_trait]
impl CatalogService for Catalog {
    async fn get(
        &self,
        _request: Request<pb::CatalogRequest>,
    ) -> Result<Response<pb::Catalog>, Status> {
        let catalog = self.0.handle.read(|core, _| core.catalog().clone()).await?;
        Ok(Response::new(catalog))
    }
}
