//! Starting a child with a descriptor at a given number.
//!
//! A child of Rust's `Command` gets only stdin, stdout and stderr; everything else is close-on-exec. Some programs
//! expect one more descriptor at a fixed number (a listening socket at 3). [`pass_fd`] places it there between fork
//! and exec.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// Makes `fd` descriptor `number` of the child that `command` starts. The parent's own copy lives as long as the
/// command.
///
/// `number` should be one that this process has in use (any long-lived process has 3): at a free number, the pipe on
/// which `Command` hears of a failed exec could lie, and the failure would show only as the child's early end.
pub fn pass_fd(command: &mut Command, fd: OwnedFd, number: RawFd) {
    let place = move || {
        let raw = fd.as_raw_fd();
        // SAFETY: both calls are async-signal-safe and touch nothing but the descriptor table of the child; `fd` is
        // open, because this closure owns it.
        let result = unsafe {
            if raw == number { libc::fcntl(raw, libc::F_SETFD, 0) } else { libc::dup2(raw, number) }
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure runs in the child between fork and exec; it allocates nothing, takes no lock and makes
    // only the async-signal-safe call above.
    unsafe {
        command.pre_exec(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    #[test]
    fn the_child_finds_the_descriptor_at_its_number() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "read line <&9; echo got $line >&9"]);
        pass_fd(&mut command, theirs.into(), 9);
        let mut child = command.spawn().unwrap();
        drop(command);
        ours.write_all(b"word\n").unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(answer, "got word\n");
    }
}
