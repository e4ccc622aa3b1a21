//! A client's access to a process of a container, its first one or one of exec: the wait for its end, and the end of
//! its standard input.

use crate::{
    Runtime,
    client::{QUERY, call},
    error::{Error, absent},
    wire,
};
use berth_core::ids::ContainerId;
use containerd_client::services::v1::{CloseIoRequest, WaitRequest};
use std::time::Duration;

/// Duration of one wait for an exit before it is repeated; long, because each wait is a call.
const WAIT: Duration = Duration::from_secs(3600);
/// Pause before the next wait where containerd did not answer.
const AGAIN: Duration = Duration::from_millis(500);

impl Runtime {
    /// Waits until a container's first process has ended. The wait survives a restart of containerd. A dropped wait can
    /// be repeated.
    pub async fn wait_for_end(&self, id: &ContainerId) -> Result<(), Error> {
        self.wait_process(id, "").await.map(|_code| ())
    }

    /// Ends a container's standard input, once no other process writes to its FIFO.
    pub async fn close_stdin(&self, id: &ContainerId) -> Result<(), Error> {
        self.close_input(id, "").await
    }

    /// Waits for a process's end and returns its exit code, 255 where it was lost with its container.
    pub(crate) async fn wait_process(&self, id: &ContainerId, exec_id: &str) -> Result<i32, Error> {
        let client = self.client();
        loop {
            let request = WaitRequest { container_id: id.to_string(), exec_id: exec_id.to_owned() };
            let mut service = client.tasks();
            let waited = call("wait for", id, WAIT, service.wait(client.request(request, WAIT))).await;
            match absent(waited) {
                Ok(Some(reply)) => return Ok(wire::exit_code(reply.exit_status)),
                Ok(None) => return Ok(255),
                Err(e) if e.is_unknown() => tokio::time::sleep(AGAIN).await,
                Err(e) => return Err(e),
            }
        }
    }

    /// Has the shim drop its end of a process's standard input.
    pub(crate) async fn close_input(&self, id: &ContainerId, exec_id: &str) -> Result<(), Error> {
        let client = self.client();
        let request =
            CloseIoRequest { container_id: id.to_string(), exec_id: exec_id.to_owned(), stdin: true };
        let mut service = client.tasks();
        let closed =
            call("close input of", id, QUERY, service.close_io(client.request(request, QUERY))).await;
        absent(closed)?;
        Ok(())
    }
}
