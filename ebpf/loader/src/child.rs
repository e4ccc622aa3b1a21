//! Loading child process: a load takes some 20 MB for a tenth of a second, which the agent must not keep.

use crate::{
    Error, OBJECT, Pins, Result, Sizes,
    load::{is_loaded, load_maps},
    sizes,
};
use berth_core::error::Chain;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal},
};
use std::{
    ffi::OsString,
    io::{self, Read},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

/// The first argument that makes the program run [`child_main`].
pub const ROLE: &str = "ebpf-load";

/// Outcome of [`prepare`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// All maps and programs were pinned already, from the same object.
    Adopted,
    /// A child loaded the programs; existing maps of this schema were adopted.
    Loaded,
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
    if is_loaded(pins, OBJECT)? {
        return Ok(Prepared::Adopted);
    }
    let failed = |op| move |source| Error::Child { op, exe: exe.into(), source };
    let mut child = Command::new(exe)
        .args([ROLE, "--pins"])
        .arg(pins.root())
        .args(sizes::arguments(&sizes.other_than_default()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("start"))?;
    match wait(&mut child, deadline) {
        Ok(true) => {}
        Ok(false) => {
            kill(&mut child).map_err(failed("kill"))?;
            return Err(Error::ChildDeadline(deadline));
        }
        Err(e) => {
            kill(&mut child).map_err(failed("kill"))?;
            return Err(failed("wait for")(e));
        }
    }
    let status = child.wait().map_err(failed("wait for"))?;
    if status.success() {
        return Ok(Prepared::Loaded);
    }
    let mut message = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(1 << 16).read_to_string(&mut message).map_err(failed("hear"))?;
    }
    Err(Error::ChildFailed { status, message: message.trim_end().to_owned() })
}

/// Waits for the child's end. Returns false at the deadline.
fn wait(child: &mut Child, deadline: Duration) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let fd = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec::try_from(deadline).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience))? > 0)
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
    match load_maps(&Pins::new(dir), OBJECT, &entries, |_| {}) {
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
