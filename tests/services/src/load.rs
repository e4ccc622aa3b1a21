//! Runs the program `berth-load`: servers that answer, clients that measure.

use anyhow::{Context, Result, bail, ensure};
use berth_harness::netns::Netns;
use serde::Deserialize;
use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Time limit for a program's start, and for its end after its own run time.
const PATIENCE: Duration = Duration::from_secs(20);

/// The built program.
#[derive(Debug, Clone)]
pub struct Load {
    program: PathBuf,
}

/// Results of `client`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Counted {
    /// Number of answers.
    pub n: u32,
    /// Answers per second.
    pub rate: f64,
    /// Median time of an answer in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the answers' times in microseconds.
    pub p99_us: f64,
}

/// What `client` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// New connections.
    New,
    /// Requests over open connections.
    Keep,
}

/// A request of [`Load::ask`] with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Asked {
    /// `tcp`; `udp` from the socket that sends to all targets; `connected` from a socket connected to one
    /// target.
    pub kind: String,
    /// Address that was asked.
    pub target: SocketAddr,
    /// Time of the request in microseconds of CLOCK_MONOTONIC.
    pub sent_us: u64,
    /// Time of the answer in microseconds of CLOCK_MONOTONIC.
    pub got_us: u64,
    /// Name of the server that answered.
    pub by: Option<String>,
    /// The failure, if no server answered.
    pub error: Option<String>,
    /// Whether a connected socket had been aborted and was replaced.
    pub renewed: bool,
}

/// A running `ask` client. It ends after its time, or when this value is dropped.
#[derive(Debug)]
pub struct Asker {
    child: Server,
    told: mpsc::Receiver<std::io::Result<String>>,
    time: Duration,
}

impl Asker {
    /// Waits for the client's end and returns all answers.
    ///
    /// # Errors
    /// The client fails or does not end.
    pub fn finish(mut self) -> Result<Vec<Asked>> {
        let text = self.told.recv_timeout(self.time + PATIENCE).context("the client does not end")??;
        let status = self.child.0.wait().context("wait for the client")?;
        ensure!(status.success(), "the client failed: {status}");
        let line =
            |line: &str| serde_json::from_str(line).with_context(|| format!("the client said {line:?}"));
        text.lines().map(line).collect()
    }
}

/// A running program, most often a server, killed when this value is dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // The pid cannot have been reused, because the child is waited for here only. The child may have
        // ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Load {
    /// The program at this path.
    ///
    /// # Errors
    /// The file does not exist.
    pub fn at(program: &Path) -> Result<Load> {
        ensure!(program.is_file(), "{} is not there: build berth-load", program.display());
        Ok(Load { program: program.into() })
    }

    /// Command that runs the program in a namespace, and in a cgroup if one is given.
    fn command(&self, netns: &Path, group: Option<&Path>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--netns").arg(netns);
        if let Some(group) = group {
            command.arg("--cgroup").arg(group);
        }
        // The program ends when its standard input closes, which happens however this process ends.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }

    /// Starts a server and waits until it listens on all addresses.
    ///
    /// # Errors
    /// The server does not start.
    pub fn serve(&self, netns: &Netns, listen: &[SocketAddr]) -> Result<Server> {
        let mut command = self.command(&netns.path(), None);
        command.arg("serve");
        for at in listen {
            command.arg("--listen").arg(at.to_string());
        }
        Load::begin(command)
    }

    /// Starts a server on one port of all addresses that the namespace has.
    ///
    /// # Errors
    /// The server does not start.
    pub fn serve_any(&self, netns: &Netns, port: u16) -> Result<Server> {
        let mut command = self.command(&netns.path(), None);
        command.args(["serve", "--any", &port.to_string()]);
        Load::begin(command)
    }

    fn begin(mut command: Command) -> Result<Server> {
        let mut server = Server(command.spawn().context("start berth-load")?);
        let out = server.0.stdout.take().context("its output")?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(out).read_line(&mut line);
            // The receiver may have given up.
            tell.send(read.map(|_| line)).ok();
        });
        let line = told.recv_timeout(PATIENCE).context("the server does not begin")??;
        ensure!(line.trim() == "ready", "the server said {line:?}");
        Ok(server)
    }

    /// Runs `client`, in a cgroup if one is given.
    ///
    /// # Errors
    /// The client got a wrong answer or none.
    pub fn count(
        &self,
        netns: &Path,
        group: Option<&Path>,
        target: SocketAddr,
        mode: Mode,
        time: Duration,
    ) -> Result<Counted> {
        let mode = match mode {
            Mode::New => "new",
            Mode::Keep => "keep",
        };
        let mut command = self.command(netns, group);
        command
            .args(["client", "--target", &target.to_string(), "--mode", mode, "--millis"])
            .arg(time.as_millis().to_string());
        let mut client = Server(command.spawn().context("start berth-load")?);
        let out = client.0.stdout.take().context("its output")?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let read = std::io::read_to_string(out);
            tell.send(read).ok();
        });
        let text = told.recv_timeout(time + PATIENCE).context("the client does not end")??;
        let status = client.0.wait().context("wait for the client")?;
        if !status.success() {
            bail!("the client failed: {status}");
        }
        serde_json::from_str(text.trim()).with_context(|| format!("the client said {text:?}"))
    }

    /// Starts an `ask` client, which sends to all targets in turn, `per_second` times a second over TCP and
    /// as often over UDP.
    ///
    /// # Errors
    /// The client does not start.
    pub fn ask(
        &self,
        netns: &Path,
        group: Option<&Path>,
        targets: &[SocketAddr],
        per_second: u32,
        time: Duration,
    ) -> Result<Asker> {
        let mut command = self.command(netns, group);
        command.args(["ask", "--per-second", &per_second.to_string(), "--millis"]);
        command.arg(time.as_millis().to_string());
        for target in targets {
            command.args(["--target", &target.to_string()]);
        }
        let mut child = Server(command.spawn().context("start berth-load")?);
        let out = child.0.stdout.take().context("its output")?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            // The receiver may have given up.
            tell.send(std::io::read_to_string(out)).ok();
        });
        Ok(Asker { child, told, time })
    }
}
