//! The table of plugins: who has which name. The one place where it changes.

use super::{Plugins, RegisteredDriver, Version};
use crate::{DriverName, NodeInfo};
use std::{path::Path, sync::Arc};
use tokio::sync::watch;

/// The table. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Table(Arc<watch::Sender<Arc<Plugins>>>);

/// Another driver has the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another driver with the name {name} is registered with version {version} by {socket}")]
pub(super) struct Taken {
    name: DriverName,
    version: Version,
    socket: String,
}

impl Table {
    /// An empty table.
    pub(super) fn new() -> (Table, watch::Receiver<Arc<Plugins>>) {
        let (sender, receiver) = watch::channel(Arc::default());
        (Table(Arc::new(sender)), receiver)
    }

    /// Whether a driver of this version may have the name for this socket: nobody else has it, or an older version.
    pub(super) fn check(&self, name: &DriverName, version: &Version, socket: &Path) -> Result<(), Taken> {
        check(&self.0.borrow(), name, version, socket)
    }

    /// Gives the driver its name.
    pub(super) fn claim(&self, driver: RegisteredDriver) -> Result<(), Taken> {
        let mut result = Ok(());
        self.0.send_if_modified(|plugins| {
            let name = driver.driver.name().clone();
            result = check(plugins, &name, &driver.version, &driver.socket);
            if result.is_ok() {
                let plugins = Arc::make_mut(plugins);
                plugins.problems.remove(&driver.socket);
                plugins.drivers.insert(name, Arc::new(driver));
            }
            result.is_ok()
        });
        result
    }

    /// Takes what a driver says of the node by now. One that was replaced meanwhile says nothing any more.
    pub(super) fn update(&self, asked: &RegisteredDriver, info: NodeInfo) {
        self.0.send_if_modified(|plugins| {
            let name = asked.driver.name();
            let same = |now: &Arc<RegisteredDriver>| now.socket == asked.socket && now.driver == asked.driver;
            if !plugins.drivers.get(name).is_some_and(|now| same(now) && now.info != info) {
                return false;
            }
            let updated = RegisteredDriver { info, ..asked.clone() };
            Arc::make_mut(plugins).drivers.insert(name.clone(), Arc::new(updated));
            true
        });
    }

    /// The driver of that name.
    pub(super) fn get(&self, name: &DriverName) -> Option<Arc<RegisteredDriver>> {
        self.0.borrow().drivers.get(name).cloned()
    }

    /// Takes back what the socket has.
    pub(super) fn withdraw(&self, socket: &Path) {
        self.0.send_if_modified(|plugins| {
            let known =
                plugins.drivers.values().any(|d| d.socket == socket) || plugins.problems.contains_key(socket);
            if known {
                let plugins = Arc::make_mut(plugins);
                plugins.drivers.retain(|_, driver| driver.socket != socket);
                plugins.problems.remove(socket);
            }
            known
        });
    }

    /// Notes why the socket's plugin is not registered. Returns whether that is new.
    pub(super) fn problem(&self, socket: &Path, problem: &str) -> bool {
        self.0.send_if_modified(|plugins| {
            let new = plugins.problems.get(socket).is_none_or(|known| known != problem);
            if new {
                let plugins = Arc::make_mut(plugins);
                plugins.drivers.retain(|_, driver| driver.socket != socket);
                plugins.problems.insert(socket.to_owned(), problem.to_owned());
            }
            new
        })
    }

    /// Waits until the name is free for a driver of this version and socket.
    pub(super) async fn free(&self, name: &DriverName, version: &Version, socket: &Path) {
        let free = |plugins: &Arc<Plugins>| {
            plugins.drivers.get(name).is_none_or(|d| d.socket != socket)
                && check(plugins, name, version, socket).is_ok()
        };
        // This table has a sender, so the wait does not end before.
        self.0.subscribe().wait_for(free).await.map(drop).unwrap_or_default();
    }
}

/// The rule of the kubelet: a name goes to a newer version alone. The socket that has it may change its driver.
fn check(plugins: &Plugins, name: &DriverName, version: &Version, socket: &Path) -> Result<(), Taken> {
    match plugins.drivers.get(name) {
        Some(other) if other.socket != socket && other.version >= *version => Err(Taken {
            name: name.clone(),
            version: other.version.clone(),
            socket: other.socket.display().to_string(),
        }),
        _ => Ok(()),
    }
}
