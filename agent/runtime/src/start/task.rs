//! The container's file system, and the task that uses it.

use super::StartRequest;
use crate::{
    Runtime,
    client::{RECORD, WORK, call},
    error::{Error, Kind, present},
    lease,
    shims::ShimAssignment,
    wire::{self, RuncOptions},
};
use containerd_client::{
    services::v1::{
        CreateTaskRequest,
        snapshots::{MountsRequest, PrepareSnapshotRequest},
    },
    types::Mount,
};
use std::path::PathBuf;

impl Runtime {
    /// Prepares the container's file system on its image, or finds the existing one.
    pub(super) async fn prepare(&self, request: &StartRequest) -> Result<Vec<Mount>, Error> {
        let lease = lease::name(&request.pod);
        match self.prepare_once(request, &lease).await {
            Err(e) if e.kind() == Kind::NotFound => {
                self.unpack(&request.image, &lease).await?;
                self.prepare_once(request, &lease).await
            }
            other => other,
        }
    }

    async fn prepare_once(&self, request: &StartRequest, lease: &str) -> Result<Vec<Mount>, Error> {
        let client = self.client();
        let message = PrepareSnapshotRequest {
            snapshotter: self.roots().snapshotter.clone(),
            key: request.id.to_string(),
            parent: request.image.chain_id.clone(),
            ..PrepareSnapshotRequest::default()
        };
        let mut service = client.snapshots();
        let prepared = call(
            "prepare snapshot",
            &request.id,
            RECORD,
            service.prepare(client.leased(message, RECORD, lease)),
        )
        .await;
        if let Some(reply) = present(prepared)? {
            return Ok(reply.mounts);
        }
        let message =
            MountsRequest { snapshotter: self.roots().snapshotter.clone(), key: request.id.to_string() };
        let mut service = client.snapshots();
        let reply =
            call("look up snapshot", &request.id, RECORD, service.mounts(client.request(message, RECORD)))
                .await?;
        Ok(reply.mounts)
    }

    pub(super) fn runc_options(&self, assignment: Option<&ShimAssignment>) -> RuncOptions {
        let text =
            |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        RuncOptions {
            binary_name: text(&self.config().runc_binary),
            root: text(&self.config().runc_root),
            systemd_cgroup: false,
            task_api_address: assignment.map(|h| h.address.clone()).unwrap_or_default(),
            task_api_version: assignment.map(|_| wire::TASK_API_VERSION).unwrap_or_default(),
        }
    }

    pub(super) async fn create_task(
        &self,
        request: &StartRequest,
        assignment: Option<&ShimAssignment>,
        rootfs: Vec<Mount>,
    ) -> Result<(), Error> {
        let client = self.client();
        let stdio = &request.stdio;
        let message = CreateTaskRequest {
            container_id: request.id.to_string(),
            rootfs,
            stdin: stdio.stdin.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
            stdout: stdio.stdout.display().to_string(),
            stderr: if stdio.terminal { String::new() } else { stdio.stderr.display().to_string() },
            terminal: stdio.terminal,
            options: Some(self.runc_options(assignment).to_any()),
            ..CreateTaskRequest::default()
        };
        let mut service = client.tasks();
        call("create task", &request.id, WORK, service.create(client.request(message, WORK))).await?;
        Ok(())
    }
}
