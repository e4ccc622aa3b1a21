//! End and removal of containers. Order at an exit: the exit is observed, then stored on the record, then the
//! task is deleted.

use crate::{
    Runtime,
    client::{QUERY, RECORD, WORK, call},
    error::{Error, Kind, absent},
    process::{self, Sent},
    record::{self, ExitRecord},
    wire,
};
use berth_core::ids::ContainerId;
use berth_sys::clock;
use containerd_client::services::v1::{
    Container, DeleteResponse, DeleteTaskRequest, KillRequest, ListPidsRequest, ResizePtyRequest,
    UpdateContainerRequest, WaitRequest, sandbox::StoreDeleteRequest, snapshots::RemoveSnapshotRequest,
};
use prost_types::FieldMask;
use std::time::Duration;

/// Longest wait for a killed container before its removal fails.
const DYING: Duration = Duration::from_secs(20);

/// Number of and pause between repeated deletes where a delete met a closing shim.
const AGAIN: (u32, Duration) = (3, Duration::from_millis(100));

impl Runtime {
    /// Stores an exit on the container's record; a later exit replaces it. The caller must store the exit
    /// before the task is deleted.
    pub async fn record_exit(&self, id: &ContainerId, exit: &ExitRecord) -> Result<(), Error> {
        let client = self.client();
        let container = Container {
            id: id.to_string(),
            extensions: record::exit_extension(id, exit)?,
            ..Container::default()
        };
        let request = UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(FieldMask { paths: vec![record::PATH_EXIT.to_owned()] }),
        };
        let mut service = client.containers();
        call("store exit of container", id, RECORD, service.update(client.request(request, RECORD))).await?;
        tracing::info!(container = id.short(), code = exit.code, oom = exit.oom, "exit stored");
        Ok(())
    }

    /// Deletes the task of an ended container and returns its exit; `None` where there is no task. A running
    /// task is refused ([`Kind::Precondition`]). Costs two runc processes, so it belongs off critical paths.
    pub async fn delete_task(&self, id: &ContainerId) -> Result<Option<ExitRecord>, Error> {
        // The shim ends with its last task. It is released before that, or a parallel start would meet its
        // end.
        let home = self.known_shims().and_then(|s| s.release(id));
        let mut deleted = self.delete_task_once(id).await;
        for _ in 0..AGAIN.0 {
            // A closing shim may hang up before its answer; the next call finds the outcome.
            if !matches!(&deleted, Err(e) if e.kind() == Kind::Unavailable) {
                break;
            }
            tokio::time::sleep(AGAIN.1).await;
            deleted = self.delete_task_once(id).await;
        }
        if deleted.is_err()
            && let (Some(shims), Some(home)) = (self.known_shims(), home)
        {
            shims.restore(id, home);
        }
        Ok(deleted?.map(|reply| ExitRecord {
            code: wire::exit_code(reply.exit_status),
            at: wire::wall(reply.exited_at.as_ref()).unwrap_or_else(clock::wall),
            oom: false,
            reason: None,
            message: None,
            started_at: None,
        }))
    }

    async fn delete_task_once(&self, id: &ContainerId) -> Result<Option<DeleteResponse>, Error> {
        let client = self.client();
        let request = DeleteTaskRequest { container_id: id.to_string() };
        let mut service = client.tasks();
        absent(call("delete task", id, WORK, service.delete(client.request(request, WORK))).await)
    }

    /// Removes all parts of a container: task (killed if it runs), sandbox record, snapshot, record. The
    /// record goes last, so that an interrupted removal is found and repeated. The FIFOs belong to logd.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        match self.delete_task(id).await {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::Precondition => {
                self.kill_and_wait(id).await?;
                self.delete_task(id).await?;
            }
            Err(e) => return Err(e),
        }
        let client = self.client();
        // Deleted even where no sandbox record may be created now: this one may date from a time when it was
        // allowed.
        let request = StoreDeleteRequest { sandbox_id: id.to_string() };
        let mut service = client.sandboxes();
        let deleted = service.delete(client.request(request, RECORD));
        absent(call("delete sandbox record", id, RECORD, deleted).await)?;
        let request =
            RemoveSnapshotRequest { snapshotter: self.roots().snapshotter.clone(), key: id.to_string() };
        let mut service = client.snapshots();
        absent(call("remove snapshot", id, WORK, service.remove(client.request(request, WORK))).await)?;
        self.delete_container(id).await?;
        tracing::info!(container = id.short(), "container removed");
        Ok(())
    }

    async fn kill_and_wait(&self, id: &ContainerId) -> Result<(), Error> {
        self.task_kill(id, "", 9, true).await?;
        let client = self.client();
        let request = WaitRequest { container_id: id.to_string(), exec_id: String::new() };
        let mut service = client.tasks();
        absent(call("wait for", id, DYING, service.wait(client.request(request, DYING))).await)?;
        Ok(())
    }

    /// Sends a signal to a container's first process, through a descriptor of exactly that process. Where the
    /// process is not identified, the runtime sends the signal. A process that is gone needs no signal.
    pub async fn signal(
        &self,
        id: &ContainerId,
        pid: u32,
        start_time: u64,
        signal: i32,
    ) -> Result<(), Error> {
        match process::signal(id, pid, start_time, signal) {
            Ok(Sent::Delivered | Sent::Gone) => Ok(()),
            Ok(Sent::Unknown) => {
                let number = u32::try_from(signal).unwrap_or_default();
                self.task_kill(id, "", number, false).await
            }
            Err(e) => Err(e),
        }
    }

    /// Signals a task, or one of its execs, through the runtime. An ended process is no error.
    pub(crate) async fn task_kill(
        &self,
        id: &ContainerId,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        let client = self.client();
        let request = KillRequest { container_id: id.to_string(), exec_id: exec_id.to_owned(), signal, all };
        let mut service = client.tasks();
        absent(call("signal", id, WORK, service.kill(client.request(request, WORK))).await)?;
        Ok(())
    }

    /// Sets the size of a container's terminal.
    pub async fn resize(&self, id: &ContainerId, width: u32, height: u32) -> Result<(), Error> {
        self.resize_pty(id, "", width, height).await
    }

    pub(crate) async fn resize_pty(
        &self,
        id: &ContainerId,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), Error> {
        let client = self.client();
        let request =
            ResizePtyRequest { container_id: id.to_string(), exec_id: exec_id.to_owned(), width, height };
        let mut service = client.tasks();
        call("resize terminal of", id, QUERY, service.resize_pty(client.request(request, QUERY))).await?;
        Ok(())
    }

    /// The processes of a container, in the host's PID namespace; none where it has no task.
    pub async fn pids(&self, id: &ContainerId) -> Result<Vec<u32>, Error> {
        let client = self.client();
        let request = ListPidsRequest { container_id: id.to_string() };
        let mut service = client.tasks();
        let reply = absent(
            call("list processes of", id, QUERY, service.list_pids(client.request(request, QUERY))).await,
        )?;
        Ok(reply.map(|r| r.processes.iter().map(|p| p.pid).collect()).unwrap_or_default())
    }

    /// The extension that the start's caller stored on a container's record; `None` where there is no such
    /// container.
    pub async fn extension(&self, id: &ContainerId) -> Result<Option<serde_json::Value>, Error> {
        let Some(container) = self.get_container(id).await? else { return Ok(None) };
        Ok(record::read(&container.id, &container.extensions)?.map(|found| found.mark.extension))
    }

    /// The OCI spec that a container was created with; `None` where there is no such container.
    pub async fn spec(&self, id: &ContainerId) -> Result<Option<serde_json::Value>, Error> {
        let Some(spec) = self.get_container(id).await?.and_then(|c| c.spec) else { return Ok(None) };
        serde_json::from_slice(&spec.value).map(Some).map_err(|e| Error::Decode {
            what: "spec",
            subject: format!("container {id}"),
            source: Box::new(e),
        })
    }
}
