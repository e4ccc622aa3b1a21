//! Shims started by the agent: a small pool of spare ones, one shim for each pod, and no leftover.
//!
//! A shim that containerd starts costs an extra process start for every container. The agent starts its shims
//! ahead of use and passes them to containerd by address. The running processes are the source of truth: a
//! process is a shim if its working directory is its directory below `<runtime state>/shims`, and it belongs
//! to the pod whose containers' records name its address. The next agent reads both back after any death of
//! its predecessor; unused shims go into the pool or are ended.
//!
//! Tasks: one for each live shim ([`watch`]: drains the shim's log, observes its end, ends an unused shim),
//! and one that fills the pool. A shim ends by itself when containerd deletes its last container.
//! [`Shims::release`] retires the shim before that delete, so that no container starts on a shim that is
//! about to end.

pub(crate) mod spawn;
mod watch;

use crate::error::Error;
use berth_core::{error::Chain, ids::ContainerId, sync::lock};
use serde::{Deserialize, Serialize};
use spawn::{Handle, Spawner};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::{Notify, OwnedMutexGuard, watch as watched};

/// Pauses between attempts to fill the pool: the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// A live shim process of the agent.
#[derive(Debug)]
pub(crate) struct Shim {
    /// Name of the shim's directory.
    id: String,
    /// The shim's directory: log FIFO, socket, `address`.
    dir: PathBuf,
    /// The process id.
    pid: u32,
    /// Address of the shim's task service, in containerd's notation: `ttrpc+unix://<socket>`.
    pub(crate) address: String,
    /// Notified when the shim is no longer needed.
    unwanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    all: HashMap<String, Arc<Shim>>,
    idle: VecDeque<Arc<Shim>>,
    groups: HashMap<String, Arc<Shim>>,
    /// Containers by the address of the shim they run on.
    users: HashMap<String, HashSet<ContainerId>>,
    assignments: HashMap<ContainerId, ShimAssignment>,
    /// Containers with a created task, by the address of their shim: containerd does not end a shim with a
    /// task.
    tasks: HashMap<String, HashSet<ContainerId>>,
    /// Lock of the create in progress on a shim without a task, by address.
    firsts: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// The shim of a container's task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimAssignment {
    /// The shim's address, in containerd's notation.
    pub(crate) address: String,
    /// The group that the shim belongs to.
    pub(crate) group: String,
}

/// The node's own shims, live and spare.
#[derive(Debug)]
pub(crate) struct Shims {
    spawner: Spawner,
    pool: usize,
    state: Mutex<State>,
    /// Held while a shim is started for a group, so that each group gets only one.
    starting: tokio::sync::Mutex<()>,
    refill: Notify,
    stop: watched::Receiver<bool>,
}

impl Shims {
    pub(crate) fn new(spawner: Spawner, pool: usize, stop: watched::Receiver<bool>) -> Arc<Shims> {
        Arc::new(Shims {
            spawner,
            pool,
            state: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            refill: Notify::new(),
            stop,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Adopts the shims of an earlier agent: shims in use by group, spare ones into the pool; the remaining
    /// ones are ended.
    pub(crate) async fn adopt(self: &Arc<Self>, users: Vec<(ContainerId, ShimAssignment)>) {
        let in_use: HashSet<&str> = users.iter().map(|(_, assignment)| assignment.address.as_str()).collect();
        for found in self.spawner.find().await {
            let address = found.shim.address.clone();
            let used = in_use.contains(address.as_str());
            let keep = !used && self.state().idle.len() < self.pool && found.answers().await;
            let shim = self.enter(found);
            match (used, keep) {
                (true, _) => {}
                (false, true) => self.state().idle.push_back(shim),
                (false, false) => spawn::terminate(&shim),
            }
        }
        let mut state = self.state();
        for (id, assignment) in users {
            let Some(shim) = state.all.get(&assignment.address).cloned() else { continue };
            state.users.entry(assignment.address.clone()).or_default().insert(id.clone());
            state.tasks.entry(assignment.address.clone()).or_default().insert(id.clone());
            state.groups.entry(assignment.group.clone()).or_insert(shim);
            state.assignments.insert(id, assignment);
        }
        tracing::info!(shims = state.all.len(), idle = state.idle.len(), "own shims adopted");
    }

    /// Registers a shim and starts its watcher.
    fn enter(self: &Arc<Self>, handle: Handle) -> Arc<Shim> {
        let shim = Arc::clone(&handle.shim);
        self.state().all.insert(shim.address.clone(), Arc::clone(&shim));
        let owner = Arc::downgrade(self);
        tokio::spawn(watch::run(handle, owner, self.stop.clone()));
        shim
    }

    /// The shim for a container of `group`: the group's own, else a spare one, else a new one.
    pub(crate) async fn take(
        self: &Arc<Self>,
        group: &str,
        id: &ContainerId,
    ) -> Result<ShimAssignment, Error> {
        let _one_at_a_time = self.starting.lock().await;
        let ready = {
            let mut state = self.state();
            state.groups.get(group).cloned().or_else(|| state.idle.pop_front())
        };
        let shim = match ready {
            Some(shim) => shim,
            None => {
                let handle = self.spawner.spawn().await?;
                self.enter(handle)
            }
        };
        let mut state = self.state();
        let assignment = ShimAssignment { address: shim.address.clone(), group: group.to_owned() };
        state.groups.insert(group.to_owned(), shim);
        state.users.entry(assignment.address.clone()).or_default().insert(id.clone());
        state.assignments.insert(id.clone(), assignment.clone());
        Ok(assignment)
    }

    /// Removes a container from its shim, before its task is deleted. The last container retires the shim:
    /// later containers of the group get another shim, and a retired shim that does not end by itself is
    /// ended after a while.
    pub(crate) fn release(&self, id: &ContainerId) -> Option<ShimAssignment> {
        let mut state = self.state();
        let assignment = state.assignments.remove(id)?;
        if let Some(tasks) = state.tasks.get_mut(&assignment.address) {
            tasks.remove(id);
        }
        let users = state.users.entry(assignment.address.clone()).or_default();
        users.remove(id);
        if !users.is_empty() {
            return Some(assignment);
        }
        state.users.remove(&assignment.address);
        if state.groups.get(&assignment.group).is_some_and(|s| s.address == assignment.address) {
            state.groups.remove(&assignment.group);
        }
        if let Some(shim) = state.all.get(&assignment.address) {
            shim.unwanted.notify_one();
        }
        Some(assignment)
    }

    /// Reverts [`Shims::release`]: the task may still exist.
    pub(crate) fn restore(&self, id: &ContainerId, assignment: ShimAssignment) {
        let mut state = self.state();
        let Some(shim) = state.all.get(&assignment.address).cloned() else { return };
        state.groups.entry(assignment.group.clone()).or_insert(shim);
        state.users.entry(assignment.address.clone()).or_default().insert(id.clone());
        state.tasks.entry(assignment.address.clone()).or_default().insert(id.clone());
        state.assignments.insert(id.clone(), assignment);
    }

    /// Checks a shim after a failed start. A shim that does not answer is forgotten, so that the group's next
    /// container gets another. Returns whether it was forgotten.
    pub(crate) async fn forget_if_dead(&self, address: &str) -> bool {
        let shim = self.state().all.get(address).cloned();
        let alive = match &shim {
            Some(shim) => spawn::answers(shim).await,
            None => false,
        };
        if !alive {
            self.forget(address);
        }
        !alive
    }

    /// Waits until a shim's process is gone, at most `limit`.
    pub(crate) async fn await_end(&self, address: &str, limit: Duration) {
        let shim = self.state().all.get(address).cloned();
        if let Some(shim) = shim {
            spawn::gone(&shim, limit).await;
        }
    }

    /// Lock for the first task of a shim; `None` once a task lives there. Creates on a shim without a task
    /// must run one at a time.
    pub(crate) async fn alone_until_a_task_lives(&self, address: &str) -> Option<OwnedMutexGuard<()>> {
        let lives = |state: &State| state.tasks.get(address).is_some_and(|tasks| !tasks.is_empty());
        let first = {
            let mut state = self.state();
            if lives(&state) {
                return None;
            }
            Arc::clone(state.firsts.entry(address.to_owned()).or_default())
        };
        let alone = first.lock_owned().await;
        let state = self.state();
        (!lives(&state)).then_some(alone)
    }

    /// Registers the created task of a container.
    pub(crate) fn lives(&self, id: &ContainerId, address: &str) {
        let mut state = self.state();
        if state.all.contains_key(address) {
            state.tasks.entry(address.to_owned()).or_default().insert(id.clone());
        }
    }

    /// Removes an ended shim.
    fn forget(&self, address: &str) {
        let mut state = self.state();
        state.all.remove(address);
        state.idle.retain(|s| s.address != address);
        state.groups.retain(|_, s| s.address != address);
        state.tasks.remove(address);
        state.firsts.remove(address);
        for id in state.users.remove(address).unwrap_or_default() {
            state.assignments.remove(&id);
        }
        drop(state);
        self.refill.notify_one();
    }

    /// Whether no container uses the shim and the pool does not hold it.
    fn is_unused(&self, address: &str) -> bool {
        let state = self.state();
        state.users.get(address).is_none_or(HashSet::is_empty)
            && !state.idle.iter().any(|s| s.address == address)
    }

    /// Wakes the task that fills the pool. Called after a start, so that filling does not slow the start
    /// down.
    pub(crate) fn refill(&self) {
        self.refill.notify_one();
    }

    /// Keeps the pool full until the stop signal.
    pub(crate) async fn keep_filled(self: Arc<Self>) {
        let mut stop = self.stop.clone();
        let mut pause = RETRY.0;
        loop {
            while !*stop.borrow() && self.state().idle.len() < self.pool {
                match self.spawner.spawn().await {
                    Ok(handle) => {
                        pause = RETRY.0;
                        let shim = self.enter(handle);
                        self.state().idle.push_back(shim);
                    }
                    Err(e) => {
                        tracing::warn!(error = %Chain(&e), "cannot fill the shim pool");
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            _stopped = stop.wait_for(|s| *s) => return,
                        }
                        pause = (pause * 2).min(RETRY.1);
                    }
                }
            }
            tokio::select! {
                () = self.refill.notified() => {}
                _stopped = stop.wait_for(|s| *s) => return,
            }
        }
    }

    /// Ends the spare shims and waits briefly for their end; shims in use keep running.
    pub(crate) async fn end_idle(&self) {
        let idle: Vec<Arc<Shim>> = self.state().idle.drain(..).collect();
        for shim in &idle {
            spawn::terminate(shim);
        }
        for shim in idle {
            spawn::gone(&shim, Duration::from_secs(2)).await;
            spawn::clear(&shim.dir);
        }
    }

    /// The process ids of all live shims, and the number of spare ones.
    pub(crate) fn process_ids_and_spares(&self) -> (Vec<u32>, usize) {
        let state = self.state();
        let mut pids: Vec<u32> = state.all.values().map(|s| s.pid).collect();
        pids.sort_unstable();
        (pids, state.idle.len())
    }
}
