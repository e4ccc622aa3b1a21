//! A node below a temporary directory, real logd processes, and a writer in place of a shim.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared by several test programs, each using a part"
)]

use berth_core::{ids::*, roots::Roots};
use berth_logd::{StreamPaths, StreamSpec, client::Client, format, server};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const ROLE: &str = "BERTH_LOGD_TEST_ROLE";

#[derive(Clone, Serialize, Deserialize)]
pub struct Role {
    pub roots: Roots,
    pub max_size: u64,
    pub max_files: u32,
}

/// Whether this process is to run as a logd.
pub fn is_role() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Body of the test that is re-executed as `berth logd`. Run as an ordinary test, it starts a logd
/// with a limit that must be rejected.
pub fn act_or_check() {
    let Ok(role) = std::env::var(ROLE) else {
        let node = Node::new();
        let mut refused = node.spawn_with(Role { max_files: 1, ..node.role() });
        assert!(!refused.0.wait().unwrap().success(), "a limit of one file must be refused");
        return;
    };
    // A killed test leaves no logd behind.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let Role { roots, max_size, max_files } = serde_json::from_str(&role).unwrap();
    server::run(server::Config { roots, max_size, max_files }).unwrap();
}

/// A logd process, killed with its guard.
pub struct Logd(pub Child);

impl Logd {
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Stops all threads of the process.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        let tasks = format!("/proc/{}/task", self.0.id());
        wait_for("logd to stop", || std::fs::read_dir(&tasks).unwrap().all(stopped));
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until the process has ended in order.
    pub fn ended(&mut self) {
        wait_for("logd to end", || self.0.try_wait().unwrap().is_some());
        assert!(self.0.wait().unwrap().success());
    }

    /// User and system time of all threads.
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let nanos = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        Duration::from_nanos(tasks.map(nanos).sum())
    }

    /// Resident memory in kB.
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Logd {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.kill();
        }
    }
}

pub struct Node {
    pub dir: tempfile::TempDir,
    pub roots: Roots,
    pub max_size: u64,
}

impl Node {
    pub fn new() -> Node {
        let dir = tempfile::Builder::new().prefix("berth-logd-").tempdir().unwrap();
        let roots = Roots::below(dir.path(), NodeName::new("n").unwrap(), "berth-logd");
        Node { dir, roots, max_size: 10 << 20 }
    }

    pub fn role(&self) -> Role {
        Role { roots: self.roots.clone(), max_size: self.max_size, max_files: 5 }
    }

    pub fn spawn_with(&self, role: Role) -> Logd {
        std::fs::create_dir_all(&self.roots.runtime_state).unwrap();
        let out = OpenOptions::new().create(true).append(true).open(self.dir.path().join("out")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["role", "--exact", "--nocapture"])
            .env(ROLE, serde_json::to_string(&role).unwrap())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Logd(child)
    }

    /// Starts a logd and waits until this logd answers.
    pub async fn start(&self) -> Logd {
        let logd = self.spawn_with(self.role());
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            // A new client: a connected one would stay with the old logd until that ends.
            let hello = Client::new(self.roots.logd_socket()).ping_within(Duration::from_secs(1)).await;
            if hello.is_ok_and(|h| h.pid == logd.0.id()) {
                return logd;
            }
            assert!(Instant::now() < until, "logd does not start: {}", self.messages());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub fn messages(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out")).unwrap_or_default()
    }

    pub fn client(&self) -> Client {
        Client::new(self.roots.logd_socket())
    }

    pub fn spec(&self, name: &str) -> StreamSpec {
        let uid = PodUid::new(format!("uid-{name}")).unwrap();
        let container = ContainerName::new("app").unwrap();
        StreamSpec {
            id: ContainerId::derive(&uid, SandboxAttempt(0), &container, Attempt(0)),
            uid,
            key: PodKey { namespace: Namespace::new("ns").unwrap(), name: PodName::new(name).unwrap() },
            container,
            attempt: Attempt(0),
            tty: false,
            stdin: false,
            stdin_once: false,
        }
    }

    /// The log files of a container, oldest first.
    pub fn files(&self, spec: &StreamSpec) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(spec.log_dir(&self.roots)).unwrap().map(|e| e.unwrap().path()).collect();
        let key = |p: &PathBuf| {
            let name = p.file_name().unwrap().to_str().unwrap().trim_end_matches(".gz").to_owned();
            (name.ends_with(".log"), name)
        };
        files.retain(|p| !p.to_str().unwrap().ends_with(".tmp"));
        files.sort_by_key(key);
        files
    }

    /// The raw bytes of one stream, decoded from the records of all files. Torn lines are left out.
    pub fn raw(&self, spec: &StreamSpec, stream: format::Stream) -> Vec<u8> {
        loop {
            let files = self.files(spec);
            let contents: Option<Vec<_>> = files.iter().map(|f| content(f)).collect();
            // Otherwise a file was compressed or rotated meanwhile.
            if let Some(contents) = contents
                && files == self.files(spec)
            {
                return decode(&contents.concat(), stream);
            }
        }
    }
}

/// The raw bytes of one stream in the text of a file.
pub fn decode(text: &[u8], stream: format::Stream) -> Vec<u8> {
    let mut raw = Vec::new();
    for record in text.split_inclusive(|b| *b == b'\n').filter_map(format::parse) {
        if record.stream == stream {
            raw.extend_from_slice(record.text);
            if !record.partial {
                raw.push(b'\n');
            }
        }
    }
    raw
}

/// Content of a file, decompressed; empty if the file does not exist any more.
pub fn content(file: &Path) -> Option<Vec<u8>> {
    let bytes = match std::fs::read(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        read => read.unwrap(),
    };
    Some(if file.extension().is_some_and(|e| e == "gz") {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        plain
    } else {
        bytes
    })
}

/// Writer in place of a shim: both ends of each FIFO open, writes of at most 32 KiB.
pub struct Shim {
    pub out: File,
    pub err: Option<File>,
}

impl Shim {
    pub fn open(paths: &StreamPaths) -> Shim {
        let open = |p: &PathBuf| OpenOptions::new().read(true).write(true).open(p).unwrap();
        Shim { out: open(&paths.stdout), err: paths.stderr.as_ref().map(open) }
    }

    /// Writes at a rate in bytes a second. Returns the duration of the slowest write.
    pub fn write_at(&mut self, bytes: &[u8], rate: usize) -> Duration {
        let (start, mut slowest, mut done) = (Instant::now(), Duration::ZERO, 0);
        for chunk in bytes.chunks(4000) {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            if let Some(early) = due.checked_sub(start.elapsed()) {
                std::thread::sleep(early);
            }
            let before = Instant::now();
            self.out.write_all(chunk).unwrap();
            slowest = slowest.max(before.elapsed());
            done += chunk.len();
        }
        slowest
    }
}

/// Numbered lines of 12 to 211 bytes, now and then one of 20 kB.
pub fn numbered(bytes: usize, end: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 300);
    let mut n = 0_usize;
    while out.len() < bytes {
        let fill = if n % 5000 == 4999 { 20_000 } else { n * 7919 % 200 };
        write!(out, "{n:010} {}{end}", "x".repeat(fill)).unwrap();
        n += 1;
    }
    out
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Checks that nothing is lost and all is in order. Where logd was killed, at most `repeats` bytes
/// may be repeated.
pub fn assert_bound(written: &[u8], read: &[u8], repeats: usize) {
    if written == read {
        return;
    }
    let extra = read.len().checked_sub(written.len()).expect("output was lost");
    assert!(extra <= repeats, "{extra} bytes were repeated, {repeats} are allowed");
    let mut lines = read.split(|b| *b == b'\n');
    for line in written.split(|b| *b == b'\n') {
        let found = lines.any(|l| l == line);
        assert!(found, "lost or out of order: {:?}", String::from_utf8_lossy(&line[..line.len().min(40)]));
    }
}

/// A small file system for the test.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    pub fn mount(at: PathBuf, bytes: usize) -> Tmpfs {
        std::fs::create_dir_all(&at).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        rustix::mount::mount(
            "berth-logd",
            &at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Tmpfs(at)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
