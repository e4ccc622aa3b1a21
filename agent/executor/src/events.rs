//! containerd's connection and events. Events go to the manager, each with the pod that it concerns.
//!
//! One task, [`pump`], connects to containerd and retries until that succeeds. The task then relists and
//! passes events on until the event stream is lost. It reports the loss to the manager and relists once the
//! stream is back. It also relists after [`RECONCILE`] without an event.

use crate::NodeExecutor;
use berth_core::{error::Chain, plan::Exit, sync::lock};
use berth_pods::{NodeEvent, WorkerMessage};
use berth_runtime::{Runtime, RuntimeConfig, RuntimeEvent};
use std::{sync::Arc, time::Duration};
use tokio::sync::broadcast::error::RecvError;

/// Pause between two tries to reach containerd.
const RECONNECT: Duration = Duration::from_millis(200);

/// The time without an event after which a relist corrects what missed events left wrong.
const RECONCILE: Duration = Duration::from_secs(300);

/// Keeps the executor connected to containerd and the manager informed. Ends when the manager ends.
pub async fn pump(executor: Arc<NodeExecutor>, config: RuntimeConfig) {
    let mut logged = false;
    let runtime = loop {
        match Runtime::connect(config.clone()).await {
            Ok(runtime) => break runtime,
            Err(error) => {
                if !logged {
                    logged = true;
                    tracing::warn!(error = %Chain(&error), "cannot connect to containerd: is it running? The agent keeps trying");
                }
                tokio::time::sleep(RECONNECT).await;
            }
        }
        if executor.incoming.is_closed() {
            return;
        }
    };
    check_version(&runtime).await;
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
                tracing::warn!(
                    "the connection to containerd is lost: pods keep running, and nothing is started until it is back"
                );
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
                tracing::warn!(missed, "events of containerd were missed: all pods are observed again");
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

/// Logs an error where containerd is older than 2.0. The agent still tries to use that containerd.
async fn check_version(runtime: &Runtime) {
    let Ok(version) = runtime.version().await else { return };
    let major = version.trim_start_matches('v').split('.').next().and_then(|m| m.parse::<u32>().ok());
    if major.is_some_and(|m| m < 2) {
        tracing::error!(version, "containerd is too old: 2.0 or newer is needed");
    }
}

/// Relists, with retries until that succeeds, and sends the result to the manager. Returns false where the
/// manager has ended.
async fn list(executor: &Arc<NodeExecutor>) -> bool {
    loop {
        match executor.relist().await {
            Ok(back) => return executor.incoming.send(back).await.is_ok(),
            Err(failure) => {
                tracing::warn!(why = failure.message, "cannot list the containers: the agent keeps trying");
                tokio::time::sleep(RECONNECT).await;
            }
        }
        if executor.incoming.is_closed() {
            return false;
        }
    }
}
