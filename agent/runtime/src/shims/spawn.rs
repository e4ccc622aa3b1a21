//! Start, discovery and end of shim processes.
//!
//! Protocol of the runc shim: descriptor 3 is its listening socket. `log` in its working directory is a FIFO
//! that it opens for writing, so a reader must exist. `address` names the socket that it removes at its end.
//! `TTRPC_ADDRESS` is where it sends events.

use super::Shim;
use crate::error::Error;
use berth_core::{error::Chain, resources::OOM_AGENT};
use berth_sys::{clock, process::PidFd, service::protect_from_oom, spawn::Spawn};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::{
        fd::AsFd,
        unix::{fs::DirBuilderExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{
        UnixStream,
        unix::pipe::{OpenOptions, Receiver},
    },
    sync::Notify,
};

/// The longest path of a unix socket, without the terminating zero.
const SOCKET_PATH: usize = 107;
/// Longest wait for a shim to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Settings for starting shims.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    /// The shim's binary.
    pub(crate) binary: PathBuf,
    /// Parent of the shims' directories.
    pub(crate) dir: PathBuf,
    /// containerd's gRPC socket.
    pub(crate) containerd: PathBuf,
    /// The containerd namespace.
    pub(crate) namespace: String,
    /// The cgroup for shims.
    pub(crate) group: Option<PathBuf>,
}

/// A shim with the resources of its watcher.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shim: Arc<Shim>,
    pub(super) log: Receiver,
    pub(super) end: End,
}

/// A shim's process: a child of this process, or of an earlier agent.
#[derive(Debug)]
pub(super) struct End(AsyncFd<PidFd>);

impl End {
    fn new(process: PidFd) -> io::Result<End> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; PidFd keeps its descriptor open as long as it lives"
        )]
        AsyncFd::with_interest(process, Interest::READABLE).map(End)
    }

    /// Waits until the shim has ended and is reaped. A dropped wait can be repeated.
    pub(super) async fn wait(&self) {
        // The descriptor is readable once the process has ended. An error also counts as the end.
        drop(self.0.readable().await);
        // If reaping fails, init reaps the zombie after this process's end.
        drop(self.0.get_ref().reap());
    }
}

impl Handle {
    pub(super) async fn answers(&self) -> bool {
        answers(&self.shim).await
    }
}

/// Path of containerd's shim for runc: as configured, in `PATH`, or in the usual package directories.
pub(crate) fn locate(configured: Option<&Path>) -> Option<PathBuf> {
    const NAME: &str = "containerd-shim-runc-v2";
    if let Some(path) = configured {
        return Some(path.to_path_buf());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/opt/containerd/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(NAME)).find(|p| p.is_file())
}

fn address(dir: &Path) -> String {
    format!("ttrpc+unix://{}", dir.join("s").display())
}

fn fresh_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}", clock::wall().0, COUNTER.fetch_add(1, Ordering::Relaxed))
}

fn open_log(path: &Path) -> Result<Receiver, Error> {
    // Opened for reading and writing, so the FIFO never reports an end and the shim's open does not block.
    OpenOptions::new().read_write(true).open_receiver(path).map_err(Error::file("open", path))
}

impl Spawner {
    /// Starts one shim. Its socket accepts connections at once: they wait in the backlog until the shim
    /// serves.
    pub(crate) async fn spawn(&self) -> Result<Handle, Error> {
        let this = self.clone();
        let joined = tokio::task::spawn_blocking(move || this.spawn_blocking()).await;
        let failed = |source: io::Error| Error::Shim { binary: self.binary.clone(), source };
        let (shim, log, process) = joined.map_err(|e| failed(io::Error::other(e)))??;
        // A shim that cannot be watched is not used; the next agent finds it and ends it.
        Ok(Handle { shim, log, end: End::new(process).map_err(failed)? })
    }

    fn spawn_blocking(&self) -> Result<(Arc<Shim>, Receiver, PidFd), Error> {
        let id = fresh_id();
        let dir = self.dir.join(&id);
        let made = self.start(&id, &dir);
        if made.is_err() {
            clear(&dir);
        }
        made
    }

    fn start(&self, id: &str, dir: &Path) -> Result<(Arc<Shim>, Receiver, PidFd), Error> {
        let socket = dir.join("s");
        if socket.as_os_str().len() > SOCKET_PATH {
            return Err(Error::SocketPath { path: socket, limit: SOCKET_PATH });
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(Error::file("make directory", dir))?;
        let log_path = dir.join("log");
        mknodat(CWD, &log_path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .map_err(|e| Error::file("make FIFO", &log_path)(e.into()))?;
        let log = open_log(&log_path)?;
        let address_path = dir.join("address");
        fs::write(&address_path, format!("unix://{}", socket.display()))
            .map_err(Error::file("write", &address_path))?;
        let listener = UnixListener::bind(&socket).map_err(Error::file("listen on", &socket))?;

        let failed = |source: io::Error| Error::Shim { binary: self.binary.clone(), source };
        let mut ttrpc = self.containerd.clone().into_os_string();
        ttrpc.push(".ttrpc");
        // The runtime is usually installed in the shim's directory.
        let mut path = self.binary.parent().unwrap_or(Path::new("/usr/bin")).as_os_str().to_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        let (containerd, namespace) = (self.containerd.as_os_str(), OsStr::new(&self.namespace));
        let [of_namespace, of_id, of_address] = ["-namespace", "-id", "-address"].map(OsStr::new);
        let process = Spawn {
            program: &self.binary,
            args: &[of_namespace, namespace, of_id, OsStr::new(id), of_address, containerd],
            env: &[("PATH", path), ("TTRPC_ADDRESS", ttrpc), ("GOMAXPROCS", "1".into())],
            dir,
            fd: listener.as_fd(),
            number: 3,
        };
        let process = process.spawn().map_err(failed)?;
        let pid = process.pid();
        self.settle(pid);
        tracing::debug!(shim = id, pid, "shim started");
        Ok((shim(id, dir, pid), log, process))
    }

    /// Moves a shim out of its starter's cgroup, and protects it from the kernel's OOM killer: the shim's end
    /// is its pod's end.
    fn settle(&self, pid: u32) {
        if let Some(group) = &self.group
            && let Err(error) = fs::write(group.join("cgroup.procs"), pid.to_string())
        {
            tracing::warn!(pid, group = %group.display(), %error, "a shim stays in its starter's cgroup");
        }
        if let Err(error) = protect_from_oom(pid, OOM_AGENT) {
            // Same cause as for the agent's own score, which the agent has logged already.
            tracing::debug!(pid, %error, "a shim's score for the OOM killer is left as it is");
        }
    }

    /// Finds the shims of an earlier agent. Directories without a process are removed.
    pub(crate) async fn find(&self) -> Vec<Handle> {
        let this = self.clone();
        // On a panic an empty result is right: the shims stay and the next start looks for them again.
        let live = tokio::task::spawn_blocking(move || this.live()).await.unwrap_or_default();
        let mut found = Vec::new();
        for (dir, id, pid) in live {
            match attach(&id, &dir, pid).await {
                Ok(handle) => {
                    self.settle(pid);
                    found.push(handle);
                }
                Err(e) => tracing::warn!(shim = id, pid, error = %Chain(&e), "cannot adopt shim"),
            }
        }
        found
    }

    /// Directory, id and process of each live shim.
    fn live(&self) -> Vec<(PathBuf, String, u32)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let dirs: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
        if dirs.is_empty() {
            return Vec::new();
        }
        let processes = processes(&self.dir);
        let mut live = Vec::new();
        for dir in dirs {
            let Some(id) = dir.file_name().and_then(|n| n.to_str()).map(ToOwned::to_owned) else { continue };
            match processes.get(&id) {
                None => clear(&dir),
                Some(pid) => live.push((dir, id, *pid)),
            }
        }
        live
    }
}

fn shim(id: &str, dir: &Path, pid: u32) -> Arc<Shim> {
    Arc::new(Shim {
        id: id.to_owned(),
        dir: dir.to_path_buf(),
        pid,
        address: address(dir),
        unwanted: Notify::new(),
    })
}

async fn attach(id: &str, dir: &Path, pid: u32) -> Result<Handle, Error> {
    let socket = dir.join("s");
    let dialled = tokio::time::timeout(CONNECT, UnixStream::connect(&socket)).await;
    dialled
        .unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Error::file("dial", &socket))?;
    let shim = shim(id, dir, pid);
    let process =
        process_of(&shim).ok_or_else(|| Error::file("dial", &socket)(io::ErrorKind::NotFound.into()))?;
    let end = End::new(process).map_err(Error::file("watch", &socket))?;
    Ok(Handle { shim, log: open_log(&dir.join("log"))?, end })
}

/// Shim processes below `dir`, by directory name: processes with this working directory that were started
/// with that id.
fn processes(dir: &Path) -> HashMap<String, u32> {
    let mut found = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(cwd) = fs::read_link(entry.path().join("cwd")) else { continue };
        if cwd.parent() != Some(dir) {
            continue;
        }
        let Some(id) = cwd.file_name().and_then(|n| n.to_str()) else { continue };
        let Ok(cmdline) = fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = cmdline.split(|b| *b == 0);
        let started_as = words.by_ref().any(|w| w == b"-id") && words.next() == Some(id.as_bytes());
        if started_as {
            found.insert(id.to_owned(), pid);
        }
    }
    found
}

/// Whether the shim accepts connections.
pub(super) async fn answers(shim: &Shim) -> bool {
    let connect = UnixStream::connect(shim.dir.join("s"));
    matches!(tokio::time::timeout(CONNECT, connect).await, Ok(Ok(_)))
}

/// Asks the shim to end with SIGTERM. Only for unused shims: the shim does no more than a spare one needs to
/// end.
pub(super) fn terminate(shim: &Shim) {
    send(shim, Signal::TERM);
}

/// Sends SIGKILL.
pub(super) fn kill(shim: &Shim) {
    send(shim, Signal::KILL);
}

fn send(shim: &Shim, signal: Signal) {
    if let Some(fd) = process_of(shim) {
        // A failure means that the process is gone already.
        drop(fd.signal(signal));
    }
}

/// The shim's process, if the process with its pid still works in the shim's directory.
fn process_of(shim: &Shim) -> Option<PidFd> {
    // The working directory is read after opening, so that descriptor and directory belong to the same
    // process.
    let fd = PidFd::open(shim.pid).ok().flatten()?;
    let cwd = fs::read_link(format!("/proc/{}/cwd", shim.pid)).ok()?;
    (cwd == shim.dir).then_some(fd)
}

/// Waits until the shim's process is gone, at most `limit`.
pub(super) async fn gone(shim: &Shim, limit: Duration) {
    let Some(fd) = process_of(shim) else { return };
    // After the limit, the next start looks for the shim.
    drop(tokio::task::spawn_blocking(move || fd.poll_exited(limit)).await);
}

/// Removes a shim's directory: only the known files of a shim, never a tree.
pub(super) fn clear(dir: &Path) {
    for name in ["s", "log", "address"] {
        // A missing file is fine. A file that cannot be removed keeps the directory, which is logged below.
        drop(fs::remove_file(dir.join(name)));
    }
    match fs::remove_dir(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => tracing::warn!(dir = %dir.display(), error = %e, "cannot clear a shim's directory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn clearing_leaves_what_is_not_a_shims() {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("x");
        fs::create_dir(&shim).unwrap();
        fs::write(shim.join("address"), "a").unwrap();
        fs::write(shim.join("other"), "b").unwrap();
        clear(&shim);
        assert!(!shim.join("address").exists() && shim.join("other").exists());
        fs::remove_file(shim.join("other")).unwrap();
        clear(&shim);
        assert!(!shim.exists());
        clear(&shim);
    }

    #[test]
    fn a_process_that_merely_stands_in_the_directory_is_no_shim() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("abc");
        fs::create_dir(&inside).unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&inside).spawn().unwrap();
        let found = processes(dir.path());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_empty(), "{found:?}");
    }
}
