//! containerd's events, handed to the pods they are about; and the connection itself.
//!
//! One task, [`pump`]: connects (and goes on trying), lists, then passes events on until the stream is lost, which it
//! tells the manager, and lists again when it is back, and now and then where nothing happens.

use super::{NodeExecutor, lock};
use crate::{manager::NodeEvent, worker::WorkerMessage};
use berth_core::{error::Chain, plan::Exit};
use berth_runtime::{Runtime, RuntimeConfig, RuntimeEvent};
use std::{sync::Arc, time::Duration};
use tokio::sync::broadcast::error::RecvError;

/// Between two tries to reach containerd.
const REDIAL: Duration = Duration::from_millis(200);

/// The slow reconcile beneath the events: one list of everything after this much silence.
const RECONCILE: Duration = Duration::from_secs(300);

/// Keeps the node connected to containerd and the manager told. Ends when the manager does.
pub async fn pump(executor: Arc<NodeExecutor>, config: RuntimeConfig) {
    let mut told = false;
    let runtime = loop {
        match Runtime::connect(config.clone()).await {
            Ok(runtime) => break runtime,
            Err(error) => {
                if !told {
                    told = true;
                    tracing::warn!(error = %Chain(&error), "containerd does not answer; trying on");
                }
                tokio::time::sleep(REDIAL).await;
            }
        }
        if executor.incoming.is_closed() {
            return;
        }
    };
    tell_version(&runtime).await;
    let mut events = runtime.events();
    *lock(&executor.runtime) = Some(runtime.clone());
    if !list(&executor).await {
        return;
    }
    loop {
        let Ok(event) = tokio::time::timeout(RECONCILE, events.recv()).await else {
            if !list(&executor).await {
                return;
            }
            continue;
        };
        let sent = match event {
            Ok(RuntimeEvent::Exit { id, exec_id: None, code, at, .. }) => {
                let owner = executor.claims.owner(&id);
                match owner {
                    Some(uid) => {
                        let exit =
                            Exit { code, at, oom: false, reason: None, message: None, started_at: None };
                        executor.incoming.send(NodeEvent::One(uid, WorkerMessage::Exit(id, exit))).await
                    }
                    None => Ok(()),
                }
            }
            Ok(RuntimeEvent::Oom { id }) => {
                let owner = executor.claims.owner(&id);
                match owner {
                    Some(uid) => executor.incoming.send(NodeEvent::One(uid, WorkerMessage::Oom(id))).await,
                    None => Ok(()),
                }
            }
            Ok(RuntimeEvent::Exit { .. }) => Ok(()),
            Ok(RuntimeEvent::Lost) => {
                tracing::warn!("containerd is gone; pods run on");
                executor.incoming.send(NodeEvent::RuntimeLost).await
            }
            Ok(RuntimeEvent::Reestablished) => {
                tracing::info!("containerd is back");
                if !list(&executor).await {
                    return;
                }
                Ok(())
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "events missed; listing instead");
                if !list(&executor).await {
                    return;
                }
                Ok(())
            }
            Err(RecvError::Closed) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Says so where containerd is older than what this was made for; it is tried all the same.
async fn tell_version(runtime: &Runtime) {
    let Ok(version) = runtime.version().await else { return };
    let major = version.trim_start_matches('v').split('.').next().and_then(|m| m.parse::<u32>().ok());
    if major.is_some_and(|m| m < 2) {
        tracing::error!(version, "containerd is too old: 2.0 or newer is needed");
    }
}

/// Lists until it works and tells the manager; false where the manager is gone.
async fn list(executor: &Arc<NodeExecutor>) -> bool {
    loop {
        match executor.relist().await {
            Ok(back) => return executor.incoming.send(back).await.is_ok(),
            Err(failure) => {
                tracing::warn!(why = failure.message, "containers could not be listed; trying on");
                tokio::time::sleep(REDIAL).await;
            }
        }
        if executor.incoming.is_closed() {
            return false;
        }
    }
}
