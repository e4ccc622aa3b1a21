//! The local socket and the status files: their tasks, from start to end.

use crate::{backend::Local, board::Board, exec};
use anyhow::Context as _;
use berth_api::files;
use berth_core::error::Chain;
use berth_pods::DesiredSet;
use berth_server::{Backend as _, Server, bind, status_files};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

/// How long each of the tasks may take to end.
const GOODBYE: Duration = Duration::from_secs(2);

/// A burst of changed manifests is written once.
const SETTLE: Duration = Duration::from_millis(200);

/// Between two looks whether the node has come up.
const COMING_UP: Duration = Duration::from_millis(500);

/// Pods that were met at the start have their workers this much later.
const MET: Duration = Duration::from_secs(5);

/// The running tasks.
pub(crate) struct Serving {
    local: Local,
    files: (oneshot::Sender<()>, JoinHandle<()>),
    socket: (oneshot::Sender<()>, JoinHandle<()>),
    others: Vec<JoinHandle<()>>,
}

/// Opens the socket and starts everything that shows the node's state.
pub(crate) async fn start(
    local: Local,
    board: &Arc<Board>,
    desired: &watch::Receiver<Arc<DesiredSet>>,
) -> anyhow::Result<Serving> {
    status_files::prepare(&local.roots).context("make the directory of status files")?;
    exec::clear(&local.roots);
    remember_events(&local).await;
    let listener = bind(&local.roots.agent_socket()).context("open the local socket")?;
    let (stop_files, stopped) = oneshot::channel();
    let files = tokio::spawn(status_files::keep(local.cache.clone(), local.roots.clone(), stopped));
    let (stop_socket, stopped) = oneshot::channel();
    let server = Server { cache: local.cache.clone(), backend: Arc::new(local.clone()) };
    let socket = tokio::spawn(server.run(listener, stopped));
    let others = vec![
        tokio::spawn(Arc::clone(board).follow(desired.clone())),
        tokio::spawn(Arc::clone(board).follow_host()),
        tokio::spawn(keep_node_file(local.clone(), desired.clone())),
        tokio::spawn(sweep(local.clone(), desired.clone())),
    ];
    Ok(Serving { local, files: (stop_files, files), socket: (stop_socket, socket), others })
}

impl Serving {
    /// Ends the tasks; the last state is written.
    pub(crate) async fn shutdown(self) {
        for task in self.others {
            task.abort();
        }
        write_node(&self.local).await;
        for (what, (stop, task)) in [("socket", self.socket), ("status files", self.files)] {
            // One that has ended by itself does not listen.
            stop.send(()).ok();
            if tokio::time::timeout(GOODBYE, task).await.is_err() {
                tracing::warn!(what, "did not end in time");
            }
        }
    }
}

/// What happened to the pods under an earlier agent of this boot.
async fn remember_events(local: &Local) {
    let roots = local.roots.clone();
    let files = match spawn_blocking(move || files::read_pods(&roots)).await {
        Ok(Ok((files, _unread))) => files,
        Ok(Err(error)) => {
            tracing::warn!(error = %Chain(&error), "earlier events are not read");
            return;
        }
        Err(_panicked) => return,
    };
    let mut events: Vec<_> = files.into_iter().flat_map(|f| f.events).collect();
    events.sort_by_key(|e| e.last);
    events.into_iter().for_each(|e| local.cache.event(e));
}

/// The node's page on disk: written when the node has come up and when the manifests change; touched now and then, so
/// that after the agent's death it is known when that was.
async fn keep_node_file(local: Local, mut desired: watch::Receiver<Arc<DesiredSet>>) {
    write_node(&local).await;
    let mut up = local.executor.runtime().is_ok();
    loop {
        tokio::select! {
            changed = desired.changed() => match changed {
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(_ended) => return,
            },
            () = tokio::time::sleep(files::ALIVE), if up => {
                // It is written anew below where it cannot be touched.
                if files::touch(&local.roots).is_ok() {
                    continue;
                }
            }
            () = tokio::time::sleep(COMING_UP), if !up => {
                up = local.executor.runtime().is_ok();
                if !up {
                    continue;
                }
            }
        }
        desired.mark_unchanged();
        write_node(&local).await;
    }
}

async fn write_node(local: &Local) {
    let (view, roots) = (local.status().await, local.roots.clone());
    match spawn_blocking(move || status_files::write_node(&roots, &view)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the node's status file is not kept"),
        Err(error) => tracing::error!(%error, "writing the node's status file ended early"),
    }
}

/// Once everything has listed: files of pods that nobody knows any more are removed.
async fn sweep(local: Local, desired: watch::Receiver<Arc<DesiredSet>>) {
    while !desired.borrow().listed || local.executor.runtime().is_err() {
        if desired.has_changed().is_err() {
            return;
        }
        tokio::time::sleep(COMING_UP).await;
    }
    tokio::time::sleep(MET).await;
    let swept = spawn_blocking(move || status_files::cleanup(&local.cache, &local.roots)).await;
    if let Ok(Err(error)) = swept {
        tracing::warn!(%error, "status files of pods that are gone are left behind");
    }
}
