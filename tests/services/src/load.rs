//! `berth-load` as a program: servers that answer, clients that count.

use crate::netns::Netns;
use anyhow::{Context, Result, bail, ensure};
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

/// How long a program may take to begin, and beyond its own time to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program.
#[derive(Debug, Clone)]
pub struct Load {
    program: PathBuf,
}

/// What a client counted.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Counted {
    /// Answers.
    pub n: u32,
    /// Answers a second.
    pub rate: f64,
    /// The middle time of one, in microseconds.
    pub p50_us: f64,
    /// The time that 99 of 100 keep to, in microseconds.
    pub p99_us: f64,
}

/// What a client counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Connections.
    New,
    /// Requests over connections that stay.
    Keep,
}

/// An answer that [`Load::ask`] got.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Asked {
    /// `tcp`; `udp` from a socket that asks everybody; `connected` from one that asks one target alone.
    pub kind: String,
    /// Who was asked.
    pub target: SocketAddr,
    /// When, in microseconds of CLOCK_MONOTONIC.
    pub sent_us: u64,
    /// When the answer was there.
    pub got_us: u64,
    /// Who answered.
    pub by: Option<String>,
    /// Why nobody did.
    pub error: Option<String>,
    /// Whether a connected socket had been taken away and was made anew.
    pub renewed: bool,
}

/// A client that asks; it ends with its time, or when this value goes.
#[derive(Debug)]
pub struct Asker {
    child: Server,
    told: mpsc::Receiver<std::io::Result<String>>,
    time: Duration,
}

impl Asker {
    /// Waits for its end: all answers.
    ///
    /// # Errors
    /// It fails, or does not end.
    pub fn finish(mut self) -> Result<Vec<Asked>> {
        let text = self.told.recv_timeout(self.time + PATIENCE).context("the client does not end")??;
        let status = self.child.0.wait().context("wait for the client")?;
        ensure!(status.success(), "the client failed: {status}");
        let line =
            |line: &str| serde_json::from_str(line).with_context(|| format!("the client said {line:?}"));
        text.lines().map(line).collect()
    }
}

/// A program that runs, a server above all; it ends when this value goes.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Our own child, waited for here: its pid is nobody else's. It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Load {
    /// The program that lies there.
    ///
    /// # Errors
    /// There is none.
    pub fn at(program: &Path) -> Result<Load> {
        ensure!(program.is_file(), "{} is not there: build berth-load", program.display());
        Ok(Load { program: program.into() })
    }

    /// It, in a namespace, and in a group if one is given.
    fn command(&self, netns: &Path, group: Option<&Path>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--netns").arg(netns);
        if let Some(group) = group {
            command.arg("--cgroup").arg(group);
        }
        // It ends with its input: when we end, however we do.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }

    /// Starts a server and waits until it listens everywhere.
    ///
    /// # Errors
    /// It does not.
    pub fn serve(&self, netns: &Netns, listen: &[SocketAddr]) -> Result<Server> {
        let mut command = self.command(&netns.path(), None);
        command.arg("serve");
        for at in listen {
            command.arg("--listen").arg(at.to_string());
        }
        Load::begin(command)
    }

    /// Starts a server at one port of all addresses that the namespace has.
    ///
    /// # Errors
    /// It does not begin.
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
            // Nobody may be waiting any more.
            tell.send(read.map(|_| line)).ok();
        });
        let line = told.recv_timeout(PATIENCE).context("the server does not begin")??;
        ensure!(line.trim() == "ready", "the server said {line:?}");
        Ok(server)
    }

    /// Runs a client, in a group if one is given.
    ///
    /// # Errors
    /// It got an answer that it should not have got, or none.
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

    /// Starts a client that asks all targets again and again, so many times a second over TCP and over UDP.
    ///
    /// # Errors
    /// It does not start.
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
            // Nobody may be waiting any more.
            tell.send(std::io::read_to_string(out)).ok();
        });
        Ok(Asker { child, told, time })
    }
}
