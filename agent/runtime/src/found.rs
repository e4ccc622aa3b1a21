//! Containers on the node: the records with Berth's mark, joined with the states of their tasks.
//!
//! Two calls serve the whole node. containerd leaves a task out of its list if the task's shim does not
//! answer within 2 s. A missing task is therefore queried on its own before it counts as gone.

use crate::{
    Runtime,
    client::{LIST, RECORD, call, from_status},
    error::Error,
    process,
    record::{self, ExitRecord, Found, LABEL_POD_UID},
    shims::ShimAssignment,
    wire,
};
use berth_core::{
    error::Chain,
    ids::{Attempt, BootId, ContainerId, ContainerName, PodKey, PodUid, SandboxAttempt},
    time::Wall,
};
use containerd_client::{
    services::v1::{Container, ListContainersRequest, ListTasksRequest},
    types::v1::{Process, Status},
};
use std::collections::HashMap;
use tokio::task::JoinSet;

#[cfg(test)]
mod mutations;

/// A container of Berth, as containerd has it.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundContainer {
    /// The container's id.
    pub id: ContainerId,
    /// The UID of its pod.
    pub pod: PodUid,
    /// Namespace and name of its pod.
    pub key: PodKey,
    /// The container's name in the pod.
    pub container: ContainerName,
    /// The container's attempt.
    pub attempt: Attempt,
    /// The sandbox attempt of the pod.
    pub sandbox_attempt: SandboxAttempt,
    /// The boot in which the container was created: after another boot only the record remains.
    pub boot: BootId,
    /// Data that the agent stored with the container.
    pub extension: serde_json::Value,
    /// The name of the image.
    pub image: String,
    /// The id of the image.
    pub image_id: String,
    /// Creation time of the record.
    pub created_at: Option<Wall>,
    /// State of the container's task.
    pub state: FoundState,
    /// The stored exit.
    pub exit: Option<ExitRecord>,
}

/// The state of a container's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundState {
    /// No task: never created, deleted, or lost with its shim. Without a stored exit, the container's end is
    /// unknown.
    NoTask,
    /// Created, not started.
    Created {
        /// The process that waits for the start.
        pid: u32,
    },
    /// Running (or paused).
    Running {
        /// The first process.
        pid: u32,
        /// The first process's start time; 0 where the process ended just now.
        start_time: u64,
        /// Wall-clock time of the start, as far as `/proc` shows it.
        started_at: Option<Wall>,
    },
    /// Ended, not deleted.
    Stopped {
        /// The exit code.
        code: i32,
        /// The time of the end.
        at: Wall,
    },
    /// The task's shim does not answer: the container may be running.
    Unknown,
}

/// Converts a task's state. `unnoticed` checks whether the process of a task that is reported as created
/// already runs its program.
fn state_of(process: &Process, unnoticed: impl FnOnce(u32) -> bool) -> FoundState {
    match Status::try_from(process.status).unwrap_or(Status::Unknown) {
        Status::Created if !unnoticed(process.pid) => FoundState::Created { pid: process.pid },
        Status::Created | Status::Running | Status::Paused | Status::Pausing => {
            let start_time = process::started(process.pid);
            let started_at = (start_time != 0).then(|| process::wall_of(start_time));
            FoundState::Running { pid: process.pid, start_time, started_at }
        }
        Status::Stopped => FoundState::Stopped {
            code: wire::exit_code(process.exit_status),
            at: wire::wall(process.exited_at.as_ref()).unwrap_or_else(berth_sys::clock::wall),
        },
        Status::Unknown => FoundState::Unknown,
    }
}

/// A record of Berth before its task's state is known.
struct Candidate {
    id: ContainerId,
    image: String,
    created_at: Option<Wall>,
    found: Found,
}

fn candidate(container: Container) -> Result<Option<Candidate>, Error> {
    let Some(found) = record::read(&container.id, &container.extensions)? else { return Ok(None) };
    let id = ContainerId::new(container.id.clone())
        .map_err(|source| Error::Identity { id: container.id, source })?;
    let created_at = wire::wall(container.created_at.as_ref());
    Ok(Some(Candidate { id, image: container.image, created_at, found }))
}

fn found(joined: Vec<(Candidate, FoundState)>) -> Vec<FoundContainer> {
    joined
        .into_iter()
        .map(|(c, state)| FoundContainer {
            id: c.id,
            pod: c.found.mark.pod,
            key: c.found.mark.key,
            container: c.found.mark.container,
            attempt: c.found.mark.attempt,
            sandbox_attempt: c.found.mark.sandbox_attempt,
            boot: c.found.mark.boot,
            extension: c.found.mark.extension,
            image: c.image,
            image_id: c.found.mark.image_id,
            created_at: c.created_at,
            state,
            exit: c.found.exit,
        })
        .collect()
}

impl Runtime {
    /// All containers with Berth's mark, with their tasks' states. Unreadable records are logged, left out
    /// and never changed.
    pub async fn list(&self) -> Result<Vec<FoundContainer>, Error> {
        Ok(found(self.join_tasks(None).await?))
    }

    /// The containers of one pod, as in [`Runtime::list`]; queries no task of other pods.
    pub async fn list_of(&self, pod: &PodUid) -> Result<Vec<FoundContainer>, Error> {
        Ok(found(self.join_tasks(Some(pod)).await?))
    }

    /// The containers whose tasks live, or may live, on this agent's shims.
    pub(crate) async fn shim_users(&self) -> Result<Vec<(ContainerId, ShimAssignment)>, Error> {
        let joined = self.join_tasks(None).await?;
        Ok(joined
            .into_iter()
            .filter(|(_, state)| *state != FoundState::NoTask)
            .filter_map(|(c, _)| Some((c.id, c.found.shim?)))
            .collect())
    }

    async fn join_tasks(&self, of: Option<&PodUid>) -> Result<Vec<(Candidate, FoundState)>, Error> {
        // Records are read before tasks: a task created later is then merely not queried.
        let candidates = self.candidates(of).await?;
        // For one pod, each task is queried by its id.
        let mut states = if of.is_none() { self.task_states().await? } else { HashMap::new() };
        let mut missing = JoinSet::new();
        for c in &candidates {
            if states.contains_key(c.id.as_str()) {
                continue;
            }
            // A stored exit means that the task's deletion was due, so its absence from the list is expected.
            if c.found.exit.is_some() && of.is_none() {
                states.insert(c.id.to_string(), FoundState::NoTask);
                continue;
            }
            let (runtime, id) = (self.clone(), c.id.clone());
            missing.spawn(async move {
                let state = match runtime.task(&id).await {
                    Ok(Some(process)) => state_of(&process, |pid| runtime.runs_unnoticed(pid)),
                    Ok(None) => FoundState::NoTask,
                    Err(_unanswered) => FoundState::Unknown,
                };
                (id, state)
            });
        }
        while let Some(asked) = missing.join_next().await {
            if let Ok((id, state)) = asked {
                states.insert(id.to_string(), state);
            }
        }
        Ok(candidates
            .into_iter()
            .map(|c| {
                let state = states.get(c.id.as_str()).copied().unwrap_or(FoundState::Unknown);
                (c, state)
            })
            .collect())
    }

    async fn candidates(&self, of: Option<&PodUid>) -> Result<Vec<Candidate>, Error> {
        let client = self.client();
        let value = of.map(|uid| format!("=={:?}", uid.as_str())).unwrap_or_default();
        let request = ListContainersRequest { filters: vec![format!("labels.\"{LABEL_POD_UID}\"{value}")] };
        let mut service = client.containers();
        let mut stream =
            call("list", "containers", RECORD, service.list_stream(client.request(request, LIST))).await?;
        let mut all = Vec::new();
        loop {
            let message = stream.message().await.map_err(|s| from_status("list", &"containers", LIST, s))?;
            let Some(message) = message else { return Ok(all) };
            let Some(container) = message.container else { continue };
            let id = container.id.clone();
            match candidate(container) {
                Ok(Some(c)) => all.push(c),
                Ok(None) => tracing::warn!(container = id, "container is labelled as ours but has no mark"),
                Err(e) => tracing::warn!(container = id, error = %Chain(&e), "container record set aside"),
            }
        }
    }

    async fn task_states(&self) -> Result<HashMap<String, FoundState>, Error> {
        let client = self.client();
        let request = ListTasksRequest { filter: String::new() };
        let mut service = client.tasks();
        let reply = call("list", "tasks", LIST, service.list(client.request(request, LIST))).await?;
        Ok(reply.tasks.iter().map(|p| (p.id.clone(), state_of(p, |pid| self.runs_unnoticed(pid)))).collect())
    }
}
