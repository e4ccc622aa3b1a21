//! Loading child process: a load takes some 20 MB, which the agent must not keep.

use crate::{
    Error, OBJECT, Pins, Result, Sizes, Step,
    load::{is_loaded, load_maps},
    sizes,
};
use berth_core::error::Chain;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal},
};
use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// The first argument that makes the program run [`child_main`].
pub const ROLE: &str = "ebpf-load";

/// What the child writes to its standard output once the programs of socket hooks are pinned.
const SOCKETS: &str = "sockets\n";

/// Outcome of [`prepare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// All maps and programs were pinned already, from the same object.
    Adopted,
    /// A child loaded the programs; existing maps of this schema were adopted.
    Loaded,
}

/// A running child. It is killed with this value; the next one continues from its state.
#[derive(Debug)]
pub struct Loading {
    child: Child,
    exe: PathBuf,
    deadline: Duration,
    end: Instant,
    /// What the child has written until now.
    said: Vec<u8>,
}

/// Ensures that maps and programs of the embedded object are pinned. Unless they are, runs `exe ebpf-load
/// --pins DIR` with an argument `MAP=ENTRIES` for each map whose size differs from the object's. Attaches
/// nothing.
///
/// # Errors
/// A pinned map differs from the wanted one ([`Error::MapMismatch`], or in the child's message), the child
/// fails, or the child exceeds `deadline`: then the child is killed, and the next call continues from its
/// state.
pub fn prepare(pins: &Pins, exe: &Path, sizes: &Sizes, deadline: Duration) -> Result<Prepared> {
    match begin(pins, exe, sizes, deadline)? {
        Some(mut loading) => loading.finish().map(|()| Prepared::Loaded),
        None => Ok(Prepared::Adopted),
    }
}

/// The same without a wait for the child. `None` where all is pinned already.
///
/// # Errors
/// A pinned map differs from the wanted one, or the child cannot be started.
pub fn begin(pins: &Pins, exe: &Path, sizes: &Sizes, deadline: Duration) -> Result<Option<Loading>> {
    if is_loaded(pins, OBJECT)? {
        return Ok(None);
    }
    let child = Command::new(exe)
        .args([ROLE, "--pins"])
        .arg(pins.root())
        .args(sizes::arguments(&sizes.other_than_default()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Child { op: "start", exe: exe.into(), source })?;
    Ok(Some(Loading { child, exe: exe.into(), deadline, end: Instant::now() + deadline, said: Vec::new() }))
}

impl Loading {
    /// Waits until all maps and the programs of socket hooks are pinned. The child goes on with the others.
    ///
    /// # Errors
    /// The child fails, or exceeds its deadline.
    pub fn wait_for_sockets(&mut self) -> Result<()> {
        while !self.said.windows(SOCKETS.len()).any(|part| part == SOCKETS.as_bytes()) {
            let out = self.child.stdout.as_ref().map(|out| wait(out.as_fd(), self.end));
            match out {
                Some(Ok(true)) => {}
                Some(Ok(false)) => return Err(self.late()),
                Some(Err(source)) => return Err(self.failed("wait for", source)),
                None => return self.finish(),
            }
            let mut part = [0; 256];
            let read = self.child.stdout.as_mut().map_or(Ok(0), |out| out.read(&mut part));
            match read {
                // It has ended, or will write no more.
                Ok(0) => return self.finish(),
                Ok(n) => self.said.extend(part.iter().take(n)),
                Err(source) => return Err(self.failed("hear", source)),
            }
        }
        Ok(())
    }

    /// Whether the child has ended or exceeded its deadline: then [`Loading::finish`] does not wait.
    ///
    /// # Errors
    /// The child cannot be asked for.
    pub fn is_over(&mut self) -> Result<bool> {
        let ended = self.child.try_wait().map_err(|source| self.failed("wait for", source))?;
        Ok(ended.is_some() || Instant::now() >= self.end)
    }

    /// Waits for the child's end, after which all programs are pinned.
    ///
    /// # Errors
    /// The child has failed, or exceeds its deadline.
    pub fn finish(&mut self) -> Result<()> {
        match self.wait_for_end() {
            Ok(true) => {}
            Ok(false) => return Err(self.late()),
            Err(source) => return Err(self.failed("wait for", source)),
        }
        let status = self.child.wait().map_err(|source| self.failed("wait for", source))?;
        if status.success() {
            return Ok(());
        }
        let mut message = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let read = stderr.take(1 << 16).read_to_string(&mut message);
            read.map_err(|source| self.failed("hear", source))?;
        }
        Err(Error::ChildFailed { status, message: message.trim_end().to_owned() })
    }

    /// Returns false at the deadline.
    fn wait_for_end(&mut self) -> io::Result<bool> {
        if self.child.try_wait()?.is_some() {
            return Ok(true);
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let fd = pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
        wait(fd.as_fd(), self.end)
    }

    fn late(&mut self) -> Error {
        match kill(&mut self.child) {
            Ok(()) => Error::ChildDeadline(self.deadline),
            Err(source) => self.failed("kill", source),
        }
    }

    fn failed(&self, op: &'static str, source: io::Error) -> Error {
        Error::Child { op, exe: self.exe.clone(), source }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        // It has mostly ended already.
        drop(kill(&mut self.child));
    }
}

/// Waits until there is something to read, or the process of a pidfd has ended. Returns false at the end of the time.
fn wait(fd: BorrowedFd<'_>, end: Instant) -> io::Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn kill(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

/// Both ends of a long text. The end of the verifier's log holds the reason, and the pipe must take the whole
/// message: the agent reads standard error only after the child's end.
fn tail(text: &str) -> String {
    const HEAD: usize = 300;
    const TAIL: usize = 3000;
    let count = text.chars().count();
    if count <= HEAD + TAIL {
        return text.to_owned();
    }
    let head: String = text.chars().take(HEAD).collect();
    let tail: String = text.chars().skip(count - TAIL).collect();
    format!("{head} [...] {tail}")
}

/// Main function of the child: `--pins DIR [MAP=ENTRIES]...`. Errors go to standard error.
pub fn child_main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (flag, dir) = (args.next(), args.next());
    let entries: Option<Vec<_>> = args.map(|argument| sizes::parse(&argument)).collect();
    let (Some(dir), Some(entries)) = (dir.filter(|_| flag.is_some_and(|flag| flag == "--pins")), entries)
    else {
        eprintln!("usage: {ROLE} --pins DIR [MAP=ENTRIES]...");
        return ExitCode::from(2);
    };
    // The next load completes a partial one. Without the agent a load has no user, and a reset would collide
    // with it.
    if let Err(e) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("cannot be bound to the agent's life: {e}");
        return ExitCode::FAILURE;
    }
    let tell = |step| {
        if step == Step::Sockets {
            // Without a reader nobody waits for it.
            drop(io::stdout().write_all(SOCKETS.as_bytes()).and_then(|()| io::stdout().flush()));
        }
    };
    match load_maps(&Pins::new(dir), OBJECT, &entries, tell) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", tail(&Chain(&e).to_string()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_keep_both_ends() {
        assert_eq!(tail("short"), "short");
        let long = format!("begin{}end", "ü".repeat(100_000));
        let shown = tail(&long);
        assert!(shown.starts_with("begin") && shown.ends_with("end") && shown.len() < 8000);
    }
}
