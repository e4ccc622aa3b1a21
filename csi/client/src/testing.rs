//! A driver for tests: a node service, and one that makes volumes, in this process on a Unix socket, with faults by the
//! call and a journal of what was asked and done.
//!
//! Owns: the driver's directory (`csi.sock` and the volumes' data), one thread while it runs, and with
//! [`Options::mounts`] the mounts that it made. A fault may end the driver as a kill would: all its connections break,
//! the socket file stays, and nothing answers until [`TestDriver::restart`]. What was staged and published lives on.
//! Dropped, the driver ends and takes its mounts with it.
//!
//! The tests that read the journal find calls of one volume at the same time ([`Outcome::AtOnce`]) and stages of a
//! staged volume ([`Outcome::Repeated`]).

mod controller;
mod fault;
mod mounts;
mod node;
mod registration;
mod thread;

pub use fault::{Answer, Fault};
pub use registration::{Notified, TestRegistration};

use crate::{Call, Driver, DriverName, NodeCapabilities, NodeInfo};
use berth_csi_proto::csi::controller_server::ControllerServer;
use fault::FaultLayer;
use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use thread::ServerThread;

/// What a test driver says and does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its answer to NodeGetInfo.
    pub info: NodeInfo,
    /// Its answer to NodeGetCapabilities.
    pub capabilities: NodeCapabilities,
    /// Whether it mounts: a directory of its own at the staging path and the target, or a file for a block volume.
    /// Needs root. Without, it makes the target and no mount.
    pub mounts: bool,
    /// Whether it has a controller service, which makes and deletes volumes.
    pub controller: bool,
}

impl Default for Options {
    /// A driver that stages, expands and has statistics, and mounts nothing.
    fn default() -> Options {
        let info = NodeInfo { node_id: "node-1".into(), max_volumes: None, topology: BTreeMap::new() };
        let capabilities = NodeCapabilities {
            stage_unstage: true,
            get_volume_stats: true,
            expand: true,
            volume_condition: true,
            single_node_multi_writer: true,
            volume_mount_group: false,
        };
        Options { name: "test.csi.example".into(), info, capabilities, mounts: false, controller: true }
    }
}

/// One call as the driver saw it, written when it took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The call.
    pub call: Call,
    /// The volume; empty for calls about none.
    pub volume: String,
    /// The staging path or the target.
    pub path: PathBuf,
    /// What it did.
    pub outcome: Outcome,
    /// The volume's and the controller's context, and whether it is read only.
    pub request: Request,
}

/// What a call carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Attributes of the volume.
    pub volume_context: BTreeMap<String, String>,
    /// Of the controller's publication.
    pub publish_context: BTreeMap<String, String>,
    /// The secrets that the call carried.
    pub secrets: BTreeMap<String, String>,
    /// Whether the pod may only read.
    pub readonly: bool,
    /// The type of the file system; "block" for a block device.
    pub fs_type: String,
    /// Options of the mount.
    pub mount_flags: Vec<String>,
    /// The group that shall be able to write.
    pub volume_mount_group: String,
    /// The access mode as the specification spells it.
    pub access_mode: String,
    /// The staging path of a publish call.
    pub staging_target_path: PathBuf,
    /// The size of a call that makes or expands a volume.
    pub required_bytes: i64,
    /// Parameters of a call that makes a volume.
    pub parameters: BTreeMap<String, String>,
}

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Done,
    /// Nothing was left to do.
    Repeated,
    /// Another call of the volume was running: refused.
    AtOnce,
    /// Refused for another reason, for example a publish of what is not staged.
    Refused,
}

/// What outlives the driver's death.
#[derive(Debug, Default)]
struct State {
    options: Options,
    journal: Vec<Entry>,
    faults: BTreeMap<Call, VecDeque<Fault>>,
    /// Volumes with a call that runs.
    running: Vec<String>,
    /// Staged volumes with their paths.
    staged: BTreeMap<(String, PathBuf), ()>,
    /// The ids of the volumes that were made, by their names.
    made: BTreeMap<String, String>,
    /// Targets with their volumes.
    published: BTreeMap<PathBuf, String>,
}

/// Shared by the driver's handle and its thread.
type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver for tests. See the module's page.
#[derive(Debug)]
pub struct TestDriver {
    dir: PathBuf,
    state: Shared,
    thread: Option<ServerThread>,
}

impl TestDriver {
    /// Starts a driver with its socket and its volumes in `dir`, which exists.
    ///
    /// # Errors
    /// The socket or the thread cannot be made.
    pub fn start(dir: &Path, options: Options) -> io::Result<TestDriver> {
        let state = Arc::new(Mutex::new(State { options, ..State::default() }));
        let mut driver = TestDriver { dir: dir.to_owned(), state, thread: None };
        driver.restart()?;
        Ok(driver)
    }

    /// Starts the driver again on the same socket, with what it had staged and published.
    ///
    /// # Errors
    /// As of [`TestDriver::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        match fs::remove_file(self.endpoint()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(self.endpoint())?;
        let node = node::TestNode { dir: self.dir.clone(), state: Arc::clone(&self.state) };
        let state = Arc::clone(&self.state);
        let controller = lock(&self.state).options.controller;
        self.thread = Some(ServerThread::start(listener, move |die| {
            tonic::transport::Server::builder()
                .layer(FaultLayer { state, die })
                .add_service(berth_csi_proto::csi::node_server::NodeServer::new(node.clone()))
                .add_optional_service(
                    controller.then(|| ControllerServer::new(controller::TestController(node.clone()))),
                )
                .add_service(berth_csi_proto::csi::identity_server::IdentityServer::new(node))
        })?);
        Ok(())
    }

    /// Ends the driver at once: connections break in the middle of calls. The socket file stays.
    pub fn kill(&mut self) {
        self.thread = None;
    }

    /// Its socket.
    pub fn endpoint(&self) -> PathBuf {
        self.dir.join("csi.sock")
    }

    /// A client of it.
    ///
    /// # Errors
    /// Its name is no driver's name.
    pub fn client(&self) -> Result<Driver, crate::InvalidName> {
        let name = DriverName::parse(&lock(&self.state).options.name)?;
        Ok(Driver::new(name, &self.endpoint()))
    }

    /// The next call of this kind that has no fault yet gets this one.
    pub fn fault(&self, call: Call, fault: Fault) {
        lock(&self.state).faults.entry(call).or_default().push_back(fault);
    }

    /// Changes what the driver says and does from now on.
    pub fn change(&self, change: impl FnOnce(&mut Options)) {
        change(&mut lock(&self.state).options);
    }

    /// The calls so far, in the order in which they took effect.
    pub fn journal(&self) -> Vec<Entry> {
        lock(&self.state).journal.clone()
    }

    /// The volumes that are staged, with their paths.
    pub fn staged(&self) -> Vec<(String, PathBuf)> {
        lock(&self.state).staged.keys().cloned().collect()
    }

    /// The ids of the volumes that it made, by their names.
    pub fn made(&self) -> BTreeMap<String, String> {
        lock(&self.state).made.clone()
    }

    /// The targets that are published, with their volumes.
    pub fn published(&self) -> BTreeMap<PathBuf, String> {
        lock(&self.state).published.clone()
    }

    /// The directory with a volume's data, where a test can look. It exists once the volume was staged or published.
    pub fn data(&self, volume: &str) -> PathBuf {
        TestDriver::data_in(&self.dir, volume)
    }

    /// The directory with a volume's data of a driver in `dir`, which outlives the driver.
    pub fn data_in(dir: &Path, volume: &str) -> PathBuf {
        mounts::data(dir, volume)
    }
}

impl Drop for TestDriver {
    fn drop(&mut self) {
        self.kill();
        let state = lock(&self.state);
        if state.options.mounts {
            state.published.keys().for_each(|target| mounts::detach(target));
            state.staged.keys().for_each(|(_, path)| mounts::detach(path));
        }
    }
}
