//! What a request says, in the terms of [`berth_sys::exec`].

use berth_api::exec::{ExecOutcome, ExecTarget};
use berth_sys::exec::{Command, Streams};
use std::{
    ffi::CString,
    fs,
    os::fd::{AsFd as _, OwnedFd},
};

/// The streams of a session, by the number of its descriptors.
pub(super) fn streams_of(given: &[OwnedFd]) -> Result<Streams<'_>, ExecOutcome> {
    match given {
        [console] => Ok(Streams::Terminal(console.as_fd())),
        [input, output, errors] => Ok(Streams::Given([input.as_fd(), output.as_fd(), errors.as_fd()])),
        _ => Err(ExecOutcome::NotRun("the command came without its streams".to_owned())),
    }
}

/// A container with its own user namespace needs its ids mapped, which is not supported.
pub(super) fn own_user_namespace(pid: u32) -> Result<(), ExecOutcome> {
    let theirs = fs::read_link(format!("/proc/{pid}/ns/user"));
    match (theirs, fs::read_link("/proc/self/ns/user")) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Ok(()),
        (Ok(_), Ok(_)) => Err(ExecOutcome::Unsupported("the container has a user namespace".to_owned())),
        (Err(e), _) | (_, Err(e)) => Err(ExecOutcome::NotRun(format!("cannot find the container: {e}"))),
    }
}

/// The command in the kernel's terms.
pub(super) fn command(target: &ExecTarget) -> Result<Command, ExecOutcome> {
    let texts =
        |texts: &[String]| texts.iter().map(|t| CString::new(t.as_str())).collect::<Result<Vec<_>, _>>();
    let nul = |_| ExecOutcome::NotRun("the command holds a NUL character".to_owned());
    let process = &target.process;
    if target.command.is_empty() {
        return Err(ExecOutcome::NotRun("the command is empty".to_owned()));
    }
    Ok(Command {
        argv: texts(&target.command).map_err(nul)?,
        env: texts(&process.env).map_err(nul)?,
        cwd: CString::new(process.cwd.as_str()).map_err(nul)?,
        uid: process.uid,
        gid: process.gid,
        groups: process.groups.clone(),
        umask: process.umask,
        capabilities: process.capabilities,
        no_new_privs: process.no_new_privs,
        rlimits: process.rlimits.iter().map(|l| (l.resource, l.soft, l.hard)).collect(),
        oom_score_adj: process.oom_score_adj,
        find_home: !process.env.iter().any(|e| e.strip_prefix("HOME=").is_some_and(|h| !h.is_empty())),
    })
}
