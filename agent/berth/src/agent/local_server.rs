//! The tasks of the local socket and of the status files.

use super::{exec_session, local_api::LocalApi, status_manager::StatusManager};
use anyhow::Context as _;
use berth_api::files;
use berth_core::{error::Chain, roots::Roots};
use berth_pods::DesiredSet;
use berth_server::{Backend, Server, WatchCache, bind, status_files};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

/// Deadline for each task to end.
const GOODBYE: Duration = Duration::from_secs(2);

/// Time for which a burst of changed manifests is gathered into one write.
const SETTLE: Duration = Duration::from_millis(200);

/// Interval of the check whether containerd answers.
const COMING_UP: Duration = Duration::from_millis(500);

/// Delay until every pod found at start has a worker.
const WORKERS_STARTED: Duration = Duration::from_secs(5);

/// The running tasks.
pub(crate) struct LocalServer {
    api: LocalApi,
    published: Published,
    others: Vec<JoinHandle<()>>,
}

/// The tasks that serve the local socket and write the status files of pods.
pub(super) struct Published {
    files: (oneshot::Sender<()>, JoinHandle<()>),
    socket: (oneshot::Sender<()>, JoinHandle<()>),
}

impl Published {
    /// Takes the socket and starts the tasks.
    pub(super) fn start(
        roots: &Roots,
        cache: WatchCache,
        backend: impl Backend,
    ) -> anyhow::Result<Published> {
        let listener = bind(&roots.agent_socket()).context("open the local socket")?;
        let (stop_files, stopped) = oneshot::channel();
        let files = tokio::spawn(status_files::keep(cache.clone(), roots.clone(), stopped));
        let (stop_socket, stopped) = oneshot::channel();
        let server = Server { cache, backend: Arc::new(backend) };
        let socket = tokio::spawn(server.run(listener, stopped));
        Ok(Published { files: (stop_files, files), socket: (stop_socket, socket) })
    }

    /// Ends the tasks; the last state is written to the status files.
    pub(super) async fn end(self) {
        for (what, (stop, task)) in [("socket", self.socket), ("status files", self.files)] {
            // The receiver is gone where the task has ended by itself.
            stop.send(()).ok();
            if tokio::time::timeout(GOODBYE, task).await.is_err() {
                tracing::warn!(what, "task has not ended in time");
            }
        }
    }
}

/// Opens the socket and starts the tasks that publish the node's state.
pub(crate) async fn start(
    api: LocalApi,
    status: &Arc<StatusManager>,
    desired: &watch::Receiver<Arc<DesiredSet>>,
) -> anyhow::Result<LocalServer> {
    status_files::prepare(&api.roots).context("make the directory of status files")?;
    let left = exec_session::clear(&api.roots);
    restore_events(&api, status).await;
    let published = Published::start(&api.roots, api.cache.clone(), api.clone())?;
    let others = vec![
        tokio::spawn(Arc::clone(status).follow(desired.clone())),
        tokio::spawn(Arc::clone(status).follow_node()),
        tokio::spawn(keep_node_file(api.clone(), desired.clone())),
        tokio::spawn(cleanup(api.clone(), desired.clone())),
        tokio::spawn(exec_session::end_left(Arc::clone(&api.executor), left)),
    ];
    Ok(LocalServer { api, published, others })
}

impl LocalServer {
    /// Ends the tasks; the last state is written to the status files.
    pub(crate) async fn shutdown(self) {
        for task in self.others {
            task.abort();
        }
        write_node(&self.api.roots, &self.api).await;
        self.published.end().await;
    }
}

/// Takes over the events of an earlier agent of this boot.
async fn restore_events(api: &LocalApi, status: &StatusManager) {
    let roots = api.roots.clone();
    let files = match spawn_blocking(move || files::read_pods(&roots)).await {
        Ok(Ok((files, _unread))) => files,
        Ok(Err(error)) => {
            tracing::warn!(error = %Chain(&error), "cannot read the events of an earlier agent");
            return;
        }
        Err(_panicked) => return,
    };
    let mut events: Vec<_> = files.into_iter().flat_map(|f| f.events).collect();
    events.sort_by_key(|e| e.last);
    events.into_iter().for_each(|event| status.remember(event));
}

/// Keeps the node's status file: written once containerd answers and when manifests change, and
/// touched every [`files::ALIVE`], so that its time tells when the agent died.
async fn keep_node_file(api: LocalApi, mut desired: watch::Receiver<Arc<DesiredSet>>) {
    write_node(&api.roots, &api).await;
    let mut up = api.executor.runtime().is_ok();
    loop {
        tokio::select! {
            changed = desired.changed() => match changed {
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(_ended) => return,
            },
            () = tokio::time::sleep(files::ALIVE), if up => {
                // A file that cannot be touched is written again below.
                if files::touch(&api.roots).is_ok() {
                    continue;
                }
            }
            () = tokio::time::sleep(COMING_UP), if !up => {
                up = api.executor.runtime().is_ok();
                if !up {
                    continue;
                }
            }
        }
        desired.mark_unchanged();
        write_node(&api.roots, &api).await;
    }
}

/// Writes the node's status file.
pub(super) async fn write_node(roots: &Roots, backend: &impl Backend) {
    let (view, roots) = (backend.status().await, roots.clone());
    match spawn_blocking(move || status_files::write_node(&roots, &view)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot write the node's status file"),
        Err(error) => tracing::error!(%error, "cannot write the node's status file: the writer panicked"),
    }
}

/// Removes status files of pods that no longer exist, once every source has listed and containerd
/// answers.
async fn cleanup(api: LocalApi, desired: watch::Receiver<Arc<DesiredSet>>) {
    while !desired.borrow().all_listed() || api.executor.runtime().is_err() {
        if desired.has_changed().is_err() {
            return;
        }
        tokio::time::sleep(COMING_UP).await;
    }
    tokio::time::sleep(WORKERS_STARTED).await;
    let cleaned = spawn_blocking(move || status_files::cleanup(&api.cache, &api.roots)).await;
    if let Ok(Err(error)) = cleaned {
        tracing::warn!(%error, "cannot remove status files of pods that no longer exist");
    }
}
