//! Lock of the one agent of a node, held as long as the process lives.
//!
//! The lock is a record lock of the process (`F_SETLK`), not of the open file (`flock`): the kernel
//! releases it when the process ends, even while another process has a copy of the descriptor. An
//! agent that is killed while it starts a plugin leaves a child between fork and exec with copies
//! of all its descriptors, and that child must not keep the next agent away. In return the lock is
//! lost when the process closes *any* descriptor of the file, so only this module may open it in
//! the agent.

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{
    fs::{File, OpenOptions},
    path::Path,
};

/// Most tries where the lock's holder ends between the failed try and the query for the holder.
const TRIES: usize = 10;

/// The held lock; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock of this file.
///
/// # Errors
/// Another agent has it, and is named, or the file cannot be opened.
pub(crate) fn take(path: &Path) -> anyhow::Result<Lock> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    for _ in 0..TRIES {
        match fcntl(&file, FcntlArg::F_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => return Ok(Lock { _file: file }),
            Err(Errno::EACCES | Errno::EAGAIN) => {
                if let Some(holder) =
                    holder(&file).with_context(|| format!("cannot examine the lock of {}", path.display()))?
                {
                    bail!("another agent (process {holder}) runs this node: {} is locked", path.display());
                }
            }
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
    bail!("cannot lock {}: several agents start and end on this node; run one only", path.display())
}

/// The process that holds the lock; zero for a process of another PID namespace.
fn holder(file: &File) -> nix::Result<Option<libc::pid_t>> {
    let mut lock = whole(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid))
}

/// A record lock of the whole file.
fn whole(kind: libc::c_int) -> libc::flock {
    // The kernel's constants are small numbers; `libc` gives them as another integer type than the
    // field's.
    let short = |n: libc::c_int| libc::c_short::try_from(n).unwrap_or_default();
    libc::flock { l_type: short(kind), l_whence: short(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::FdFlag;
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        process::{Command, Stdio},
    };

    #[test]
    fn a_child_that_still_has_the_descriptor_does_not_hold_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.lock");
        let lock = take(&path).unwrap();
        // The child keeps the descriptor over its exec, as one between fork and exec has it.
        fcntl(&lock._file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // An answer of the child shows that it is past its exec.
        let (mut stdin, mut answer) = (child.stdin.take().unwrap(), String::new());
        stdin.write_all(b"here\n").unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        let held = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
        let held = held.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        assert!(held.into_iter().any(|file| file == path));
        drop(lock);
        let again = take(&path);
        drop(stdin);
        child.wait().unwrap();
        assert_eq!(answer, "here\n");
        again.unwrap();
    }
}
