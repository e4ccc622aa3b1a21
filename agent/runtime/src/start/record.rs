//! The container's record in containerd: created before the container's other parts, and adopted where an
//! earlier call created it.

use super::StartRequest;
use crate::{
    NODE_SANDBOX, Runtime,
    client::{QUERY, RECORD, call},
    error::{Error, absent, present},
    record::{self, ExitRecord, Mark},
    shims::ShimAssignment,
    wire,
};
use berth_core::ids::ContainerId;
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, GetRequest, container,
    },
    types::v1::Process,
};

/// State of a container whose record exists already.
pub(super) enum ExistingContainer {
    /// The container's task exists too.
    Task(Box<Process>),
    /// The container's exit is stored.
    Finished(Box<ExitRecord>),
    /// Neither task nor stored exit exists: the start begins again with a new record.
    Nothing,
}

impl Runtime {
    /// Writes the container's record and, where allowed, the sandbox record that keeps its exit. `Some` means
    /// that a record existed already.
    pub(super) async fn make_record(
        &self,
        request: &StartRequest,
        assignment: Option<&ShimAssignment>,
    ) -> Result<Option<ExistingContainer>, Error> {
        let container = self.container(request, assignment)?;
        let existing = match present(self.create_container(container.clone()).await)? {
            Some(()) => None,
            None => Some(self.existing(&request.id).await?),
        };
        if let Some(ExistingContainer::Nothing) = existing {
            // The record's shim and spec may be outdated, and no process uses them yet.
            self.delete_container(&request.id).await?;
            self.create_container(container).await?;
        }
        if self.records_allowed() && !matches!(existing, Some(ExistingContainer::Finished(_))) {
            self.sandbox_record(request.id.as_str()).await?;
        }
        Ok(existing)
    }

    async fn create_container(&self, container: Container) -> Result<(), Error> {
        let client = self.client();
        let id = container.id.clone();
        let message = CreateContainerRequest { container: Some(container) };
        let mut service = client.containers();
        call("make container", id, RECORD, service.create(client.request(message, RECORD))).await?;
        Ok(())
    }

    /// Deletes a container's record; succeeds where there is none.
    pub(crate) async fn delete_container(&self, id: &ContainerId) -> Result<(), Error> {
        let client = self.client();
        let message = DeleteContainerRequest { id: id.to_string() };
        let mut service = client.containers();
        absent(call("delete container", id, RECORD, service.delete(client.request(message, RECORD))).await)?;
        Ok(())
    }

    /// The container's record.
    pub(crate) async fn get_container(&self, id: &ContainerId) -> Result<Option<Container>, Error> {
        let client = self.client();
        let message = GetContainerRequest { id: id.to_string() };
        let mut service = client.containers();
        let found = absent(
            call("look up container", id, RECORD, service.get(client.request(message, RECORD))).await,
        )?;
        Ok(found.and_then(|r| r.container))
    }

    /// The state of the container's task; `None` where it has none.
    pub(crate) async fn task(&self, id: &ContainerId) -> Result<Option<Box<Process>>, Error> {
        let client = self.client();
        let message = GetRequest { container_id: id.to_string(), exec_id: String::new() };
        let mut service = client.tasks();
        let found =
            absent(call("look up task", id, QUERY, service.get(client.request(message, QUERY))).await)?;
        Ok(found.and_then(|r| r.process).map(Box::new))
    }

    async fn existing(&self, id: &ContainerId) -> Result<ExistingContainer, Error> {
        let Some(container) = self.get_container(id).await? else { return Ok(ExistingContainer::Nothing) };
        let exit = record::read(&container.id, &container.extensions)?.and_then(|found| found.exit);
        if let Some(exit) = exit {
            return Ok(ExistingContainer::Finished(Box::new(exit)));
        }
        Ok(self.task(id).await?.map_or(ExistingContainer::Nothing, ExistingContainer::Task))
    }

    fn container(
        &self,
        request: &StartRequest,
        assignment: Option<&ShimAssignment>,
    ) -> Result<Container, Error> {
        let mark = Mark {
            pod: request.pod.clone(),
            key: request.key.clone(),
            container: request.container.clone(),
            attempt: request.attempt,
            sandbox_attempt: request.sandbox_attempt,
            boot: self.config().boot.clone(),
            image_id: request.image.image_id.clone(),
            extension: request.extension.clone(),
        };
        let spec = wire::json_any(wire::SPEC_TYPE, &request.spec).map_err(|source| Error::Encode {
            what: "spec",
            subject: request.id.to_string(),
            source,
        })?;
        Ok(Container {
            id: request.id.to_string(),
            labels: record::labels(&mark),
            image: request.image.name.clone(),
            runtime: Some(container::Runtime {
                name: self.roots().containerd_runtime.clone(),
                options: Some(self.runc_options(None).to_any()),
            }),
            spec: Some(spec),
            snapshotter: self.roots().snapshotter.clone(),
            snapshot_key: request.id.to_string(),
            extensions: record::extensions(&request.id, &mark, assignment)?,
            sandbox: assignment.map(|_| NODE_SANDBOX.to_owned()).unwrap_or_default(),
            ..Container::default()
        })
    }
}
