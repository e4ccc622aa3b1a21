//! The program `berth-load` in namespaces of nodes and pods.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Instant,
};

/// The built program.
pub(super) struct Dialler {
    program: PathBuf,
}

/// A running program, ended with this value.
pub(super) struct Background {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Background {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line).context("cannot read what berth-load says")?;
        Ok(line.trim().to_owned())
    }

    /// When the program said that it has reached all.
    pub(super) fn ended(mut self) -> Result<Instant> {
        let line = self.line()?;
        let at = Instant::now();
        ensure!(line == "reached", "not all Services answer");
        Ok(at)
    }
}

impl Dialler {
    pub(super) fn new(program: &Path) -> Dialler {
        Dialler { program: program.to_owned() }
    }

    fn start(&self, network: &Path, group: &Path, args: &[&str]) -> Result<Background> {
        let mut command = Command::new(&self.program);
        command.arg("--netns").arg(network).arg("--cgroup").arg(group).args(args);
        // It ends when its input ends, which happens however this program does.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start berth-load")?;
        let said = child.stdout.take().context("berth-load has no output")?;
        Ok(Background { child, said: BufReader::new(said) })
    }

    /// Starts a server.
    pub(super) fn serve(&self, network: &Path, group: &Path, what: &[&str]) -> Result<Background> {
        let mut server = self.start(network, group, &[&["serve"], what].concat())?;
        ensure!(server.line()? == "ready", "the server does not start");
        Ok(server)
    }

    /// Starts to dial these addresses, until each has answered.
    pub(super) fn reach(&self, network: &Path, group: &Path, targets: &[SocketAddr]) -> Result<Background> {
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let words = targets.iter().flat_map(|target| ["--to", target.as_str()]);
        let mut reaching =
            self.start(network, group, &[&["reach"], &words.collect::<Vec<_>>()[..]].concat())?;
        ensure!(reaching.line()? == "dialling", "the client does not start");
        Ok(reaching)
    }

    /// New connections a second to an address, for this time.
    pub(super) fn rate(&self, network: &Path, group: &Path, target: SocketAddr, millis: u64) -> Result<f64> {
        let (target, millis) = (target.to_string(), millis.to_string());
        let args = ["client", "--target", &target, "--mode", "new", "--millis", &millis];
        let line = self.start(network, group, &args)?.line()?;
        let counted: Value =
            serde_json::from_str(&line).with_context(|| format!("berth-load said {line:?}"))?;
        match counted["rate"].as_f64() {
            Some(rate) => Ok(rate),
            None => bail!("berth-load said {line:?}"),
        }
    }
}
