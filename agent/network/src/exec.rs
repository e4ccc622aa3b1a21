//! One run of one plugin: a child in its own process group, with a deadline and bounded output.

use crate::{Error, result::PluginFailure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{Instant, sleep, timeout, timeout_at},
};

/// The most bytes of a plugin's standard output.
const LARGEST_OUTPUT: usize = 4 << 20;
/// Bytes that are kept of the end of standard error.
const KEPT_STDERR: usize = 4 << 10;
/// How long a plugin that has ended may leave its output open (a grandchild may hold it).
const DRAIN: Duration = Duration::from_millis(500);
/// Directories of tools that plugins start by name: `bridge` with `ipMasq`, `portmap` and
/// `firewall` look up `iptables` or `nft` in `PATH`. The list is the default of Debian and of
/// systemd for services.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The parameters of one call of a plugin, besides its configuration.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    /// The plugin's `type`.
    pub(crate) plugin: &'a str,
    /// `CNI_COMMAND`.
    pub(crate) verb: &'static str,
    /// The other `CNI_*` variables.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The deadline.
    pub(crate) timeout: Duration,
}

/// Runs the plugin of that name in `bin_dir` and returns its standard output.
pub(crate) async fn run(bin_dir: &Path, call: &Call<'_>, input: &[u8]) -> Result<Vec<u8>, Error> {
    let (plugin, verb) = (call.plugin.to_owned(), call.verb);
    let deadline = Instant::now() + call.timeout;
    let child = match spawn(&mut command(bin_dir, call), deadline).await {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoPlugin { plugin, dir: bin_dir.to_owned() });
        }
        Err(source) => return Err(Error::Run { plugin, verb, source }),
    };
    let (mut out, mut err) = (Collected::default(), Collected::default());
    let Some(status) = finish(child, input, deadline, &mut out, &mut err).await else {
        return Err(Error::Timeout { plugin, verb, timeout: call.timeout });
    };
    let status = match status {
        Ok(status) => status,
        Err(source) => return Err(Error::Run { plugin, verb, source }),
    };
    if out.overflowed {
        return Err(Error::TooMuchOutput { plugin, verb, limit: LARGEST_OUTPUT });
    }
    if status.success() {
        return Ok(out.bytes);
    }
    let stderr = String::from_utf8_lossy(&err.bytes);
    let source = PluginFailure::parse(&out.bytes, &stderr, &status.to_string());
    Err(Error::Plugin { plugin, verb, source })
}

/// The command of a call, with a clean environment.
fn command(bin_dir: &Path, call: &Call<'_>) -> Command {
    let mut command = Command::new(bin_dir.join(call.plugin));
    command
        .env_clear()
        .env("PATH", search_path(bin_dir))
        .env("CNI_PATH", bin_dir)
        .env("CNI_COMMAND", call.verb)
        .envs(call.environment.iter().map(|(k, v)| (k, v)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Writes the input to the plugin, collects its output and waits for its end. None if the deadline
/// passed: then the plugin's whole process group is killed.
async fn finish(
    mut child: Child,
    input: &[u8],
    deadline: Instant,
    out: &mut Collected,
    err: &mut Collected,
) -> Option<io::Result<ExitStatus>> {
    // Dropped before the child: as long as the child is not reaped, the process group's id cannot
    // be reused.
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let mut stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin.take() {
            // A plugin that does not read its whole configuration reports that by its exit code.
            drop(stdin.write_all(input).await);
        }
    };
    let mut ended = None;
    let work = async {
        let read = async { tokio::join!(out.fill(stdout, Keep::Head), err.fill(stderr, Keep::Tail)) };
        tokio::pin!(read);
        let end = async {
            feed.await;
            child.wait().await
        };
        tokio::pin!(end);
        tokio::select! {
            status = &mut end => {
                ended = Some(status);
                // The plugin itself has ended; the rest of the pipes is read.
                drop(timeout(DRAIN, &mut read).await);
            }
            _ = &mut read => ended = Some(end.await),
        }
    };
    // A timeout shows as a missing exit status.
    drop(timeout_at(deadline, work).await);
    if ended.is_none() {
        drop(group);
        // A process that even SIGKILL does not end is left to the runtime's reaper.
        drop(timeout(Duration::from_secs(1), child.wait()).await);
        return None;
    }
    group.0 = None;
    ended
}

/// `PATH` of a plugin: the plugin directory before the system's directories, because a plugin may
/// start another by name.
fn search_path(bin_dir: &Path) -> OsString {
    let mut path = bin_dir.as_os_str().to_owned();
    path.push(":");
    path.push(SYSTEM_PATH);
    path
}

/// Starts the child. Retries while an installer is still writing the binary.
async fn spawn(command: &mut Command, deadline: Instant) -> io::Result<Child> {
    loop {
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                sleep(Duration::from_millis(2)).await;
            }
            other => return other,
        }
    }
}

/// Guard that kills the rest of a process group.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.take() {
            // ESRCH: the group has ended by itself.
            killpg(Pid::from_raw(id), Signal::SIGKILL).unwrap_or_default();
        }
    }
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    overflowed: bool,
}

/// Which part of overlong output is kept.
#[derive(Debug, Clone, Copy)]
enum Keep {
    Head,
    Tail,
}

impl Collected {
    /// Reads to the end and keeps at most the limit, because a plugin must never block on a full
    /// pipe.
    async fn fill(&mut self, from: Option<impl AsyncRead + Unpin>, keep: Keep) {
        let Some(mut from) = from else { return };
        let mut chunk = vec![0; 16 << 10];
        // An error of the pipe counts as its end.
        while let Ok(n @ 1..) = from.read(&mut chunk).await {
            let new = chunk.get(..n).unwrap_or_default();
            match keep {
                Keep::Head if self.bytes.len() + n > LARGEST_OUTPUT => self.overflowed = true,
                Keep::Head => self.bytes.extend_from_slice(new),
                Keep::Tail => {
                    self.bytes.extend_from_slice(new);
                    let excess = self.bytes.len().saturating_sub(KEPT_STDERR);
                    self.bytes.drain(..excess);
                }
            }
        }
    }
}
