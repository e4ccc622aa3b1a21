//! An attachment to a container's own process: its output by logd, its input by the FIFO that the container reads.
//!
//! The output's FIFOs are made here, in the container's directory of FIFOs, and have no name any more once logd has
//! opened them. The container never waits for a client: one that is too slow loses its place at logd.

use super::super::super::local_api::LocalApi;
use berth_api::logd::attach_fifo;
use berth_core::{error::Chain, ids::ContainerId, roots::Roots};
use berth_logd::client::Client;
use berth_nodeapi::{Boxed, Process, ProcessControl, RunningContainer, TerminalSize, WantedStreams};
use berth_runtime::Runtime;
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// A FIFO that is unlinked when dropped.
struct Named(PathBuf);

impl Named {
    fn make(path: PathBuf) -> io::Result<(Named, Receiver)> {
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let named = Named(path);
        let receiver = OpenOptions::new().open_receiver(&named.0)?;
        Ok((named, receiver))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // The directory goes with the container.
        std::fs::remove_file(&self.0).ok();
    }
}

/// Attaches to the container.
pub(super) async fn start(
    roots: &Roots,
    api: &LocalApi,
    container: RunningContainer,
    wanted: WantedStreams,
) -> Result<Process, String> {
    let runtime = api.executor.runtime().map_err(|failure| failure.message)?;
    let dir = roots.fifo_dir(&container.id);
    let session = format!("{}x{}", std::process::id(), SESSIONS.fetch_add(1, Ordering::Relaxed));
    let fifo = |stream| {
        let path = dir.join(attach_fifo(&session, stream));
        Named::make(path).map_err(|e| format!("cannot make a FIFO for the output: {e}"))
    };
    let (_named, stdout) = fifo("stdout")?;
    let (_named_too, stderr) = match container.tty {
        true => (None, None),
        false => fifo("stderr").map(|(named, receiver)| (Some(named), Some(receiver)))?,
    };
    api.logd.attach(&container.id, &session).await.map_err(|e| Chain(&e).to_string())?;
    let writes = wanted.stdin && container.stdin;
    let stdin = if writes { Some(open_input(&dir)?) } else { None };
    let input_ends = writes && container.stdin_once && !container.tty;
    let id = container.id;
    let control = Attachment { runtime, logd: Arc::clone(&api.logd), id, input_ends };
    let (stdout, ends_with_output) = (Some(stdout), true);
    Ok(Process { stdin, stdout, stderr, ends_with_output, control: Box::new(control) })
}

fn open_input(dir: &Path) -> Result<Sender, String> {
    let opened = OpenOptions::new().open_sender(dir.join("stdin"));
    opened.map_err(|e| format!("cannot open the container's input: {e}"))
}

/// The attachment. The container's input ends with it, where it ends with the first client.
struct Attachment {
    runtime: Runtime,
    logd: Arc<Client>,
    id: ContainerId,
    /// The input is to be ended, and has not been.
    input_ends: bool,
}

/// Drops every other writer of the container's input.
async fn end_input(runtime: &Runtime, logd: &Client, id: &ContainerId) -> Result<(), String> {
    logd.close_stdin(id).await.map_err(|e| Chain(&e).to_string())?;
    runtime.close_stdin(id).await.map_err(|e| Chain(&e).to_string())
}

impl ProcessControl for Attachment {
    fn wait(&mut self) -> Boxed<'_, Result<i32, String>> {
        Box::pin(async {
            self.runtime.wait_for_end(&self.id).await.map_err(|e| Chain(&e).to_string())?;
            self.input_ends = false;
            Ok(0)
        })
    }

    fn resize(&mut self, size: TerminalSize) -> Boxed<'_, Result<(), String>> {
        let (width, height) = (u32::from(size.width), u32::from(size.height));
        Box::pin(async move {
            self.runtime.resize(&self.id, width, height).await.map_err(|e| Chain(&e).to_string())
        })
    }

    fn close_stdin(&mut self) -> Boxed<'_, Result<(), String>> {
        Box::pin(async {
            if std::mem::take(&mut self.input_ends) {
                end_input(&self.runtime, &self.logd, &self.id).await?;
            }
            Ok(())
        })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if !self.input_ends {
            return;
        }
        let (runtime, logd, id) = (self.runtime.clone(), Arc::clone(&self.logd), self.id.clone());
        if let Ok(tokio) = tokio::runtime::Handle::try_current() {
            // The deadlines of its two calls bound this task.
            tokio.spawn(async move {
                if let Err(error) = end_input(&runtime, &logd, &id).await {
                    tracing::warn!(container = id.short(), error, "the input of a container is not ended");
                }
            });
        }
    }
}
