//! The registration of plugins: each socket below the registration directory (`plugins_registry`) is a plugin that
//! introduces itself. A CSI driver among them is asked for what the node needs to know and becomes one of the node's
//! drivers until its socket goes.
//!
//! Owns: one task that follows the directory, and one for each socket, which a plugin that hangs holds up alone. All
//! end with the [`Registration`]. At most 128 sockets count.
//!
//! The result is a watch of [`Plugins`]: the drivers by name, and why a socket's plugin is none of them. A name has one
//! driver: with two sockets the newer version wins, and with the same version the first; the other waits and follows
//! once the name is free.
//!
//! On failure: a plugin that does not answer, or whose driver does not, is told so and tried again after 0.1 s to 30 s.
//! What cannot become right by waiting (another type of plugin, versions that the node cannot speak) is tried again when
//! the socket is replaced. Changes of the directory come by inotify; every ten seconds it is read again, for events that
//! were lost.

mod introduction;
mod session;
mod sockets;
mod table;
mod version;

pub use version::Version;

use crate::{Driver, DriverName, Error, NodeCapabilities, NodeInfo, Observer};
use sockets::{SocketId, Sockets};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use table::Table;
use tokio::{sync::watch, task::JoinHandle};

/// The plugins of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plugins {
    /// The registered drivers.
    pub drivers: BTreeMap<DriverName, Arc<RegisteredDriver>>,
    /// Registration sockets whose plugin is not registered, with the reason.
    pub problems: BTreeMap<PathBuf, String>,
}

/// A registered driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredDriver {
    /// Its client.
    pub driver: Driver,
    /// The newest version of the specification that it speaks.
    pub version: Version,
    /// The node as it knows it.
    pub info: NodeInfo,
    /// What its node service can do.
    pub capabilities: NodeCapabilities,
    /// The socket that registered it.
    pub socket: PathBuf,
}

/// The times of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Deadline of a plugin's introduction: 1 second, the kubelet's.
    pub get_info: Duration,
    /// Deadline of telling a plugin whether it is registered: 5 seconds, the kubelet's.
    pub notify: Duration,
    /// The directory is read again after this time: 10 seconds.
    pub rescan: Duration,
    /// First and longest wait between two tries: 0.1 and 30 seconds.
    pub backoff: (Duration, Duration),
}

impl Default for Times {
    fn default() -> Times {
        let (seconds, first) = (Duration::from_secs, Duration::from_millis(100));
        Times { get_info: seconds(1), notify: seconds(5), rescan: seconds(10), backoff: (first, seconds(30)) }
    }
}

/// The running registration. It ends when this value is dropped.
#[derive(Debug)]
pub struct Registration {
    plugins: watch::Receiver<Arc<Plugins>>,
    refresher: Refresher,
    _task: AbortOnDrop,
}

/// Asks drivers again for what they say of the node.
#[derive(Debug, Clone)]
pub struct Refresher(Table);

impl Refresher {
    /// Asks the driver of that name, if it is registered. The plugins change if it says something new.
    ///
    /// # Errors
    /// As of the call. What the driver said before stays.
    pub async fn refresh(&self, name: &DriverName) -> Result<(), Error> {
        let Some(asked) = self.0.get(name) else { return Ok(()) };
        let info = asked.driver.node_info().await?;
        self.0.update(&asked, info);
        Ok(())
    }
}

impl Registration {
    /// Follows the sockets below `dir`, which is made if it is missing. Needs a tokio runtime.
    /// The observer hears of all calls of the drivers.
    pub fn start(dir: &Path, observer: Observer) -> Registration {
        Registration::start_with(dir, observer, Times::default())
    }

    /// As [`Registration::start`], with other times.
    pub fn start_with(dir: &Path, observer: Observer, times: Times) -> Registration {
        let (table, plugins) = Table::new();
        let refresher = Refresher(table.clone());
        let task = tokio::spawn(run(dir.to_owned(), Context { table, observer, times }));
        Registration { plugins, refresher, _task: AbortOnDrop(task) }
    }

    /// Who asks drivers again.
    pub fn refresher(&self) -> Refresher {
        self.refresher.clone()
    }

    /// The plugins, now and after each change.
    pub fn plugins(&self) -> watch::Receiver<Arc<Plugins>> {
        self.plugins.clone()
    }
}

/// A task that ends with this value.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What all sockets share.
#[derive(Debug, Clone)]
struct Context {
    table: Table,
    observer: Observer,
    times: Times,
}

/// A socket with the task that registers its plugin.
struct Session {
    id: SocketId,
    task: AbortOnDrop,
}

/// Follows the directory.
async fn run(dir: PathBuf, context: Context) {
    let sockets = Arc::new(Sockets::new(dir));
    let mut sessions = BTreeMap::<PathBuf, Session>::new();
    let mut unread: Option<String> = None;
    loop {
        match sockets.scan().await {
            Ok(found) => {
                if unread.take().is_some() {
                    tracing::info!(dir = %sockets.dir().display(), "the plugin directory is read again");
                }
                follow(found, &mut sessions, &context).await;
            }
            // Unknown is not empty: the drivers stay.
            Err(error) => {
                let error = error.to_string();
                if unread.as_ref() != Some(&error) {
                    tracing::warn!(dir = %sockets.dir().display(), error, "cannot read the plugin directory");
                    unread = Some(error);
                }
            }
        }
        sockets.changed(context.times.rescan).await;
    }
}

/// Ends the sessions of sockets that are gone or replaced, and begins those of new ones.
async fn follow(
    found: BTreeMap<PathBuf, SocketId>,
    sessions: &mut BTreeMap<PathBuf, Session>,
    context: &Context,
) {
    let over: BTreeSet<PathBuf> = sessions
        .iter()
        .filter(|(path, session)| found.get(*path) != Some(&session.id))
        .map(|(path, _)| path.clone())
        .collect();
    for path in over {
        if let Some(Session { mut task, .. }) = sessions.remove(&path) {
            task.0.abort();
            // Once the task is over it claims nothing more. It ends at its next await.
            if let Err(error) = (&mut task.0).await
                && error.is_panic()
            {
                tracing::error!(socket = %path.display(), "the registration of a plugin panicked");
            }
            context.table.withdraw(&path);
        }
    }
    for (path, id) in found {
        sessions.entry(path).or_insert_with_key(|path| {
            let work = session::run(path.clone(), context.clone());
            Session { id, task: AbortOnDrop(tokio::spawn(work)) }
        });
    }
}
