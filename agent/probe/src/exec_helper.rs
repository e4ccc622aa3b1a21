//! The helper process that runs commands in containers: role `probe-exec` of the agent's program.
//!
//! The helper has one thread, because only a single-threaded process may fork and enter namespaces.
//! One `poll` loop watches its socket and every running command, so that a container that blocks
//! its command (frozen, out of memory) delays no other. Standard input is the socket to the agent.
//! When the agent closes it, the helper kills all commands and exits.
//!
//! Each command has a cgroup of its own below the container's in one hierarchy. No process outlives
//! its command there: at the deadline, and also after an orderly exit, the rest is killed.
//!
//! The command of a session is a person's: its streams are descriptors of the agent's, and it may run for ever. It is
//! killed with its children when its caller no longer waits, be it that the client has left or that the agent has
//! ended. Where the helper itself is killed, the next one does it. What a command leaves running after its own end
//! stays, as a process of the container.

mod cgroup;
mod entry;
mod explain;
mod inbox;
mod running;

use berth_api::exec::{self as wire, ExecOutcome, ExecTarget, SessionStreams};
use cgroup::CommandCgroup;
use inbox::Inbox;
use running::{Entry, Kind, Running};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    collections::VecDeque,
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    process::ExitCode,
    time::{Duration, Instant},
};

/// The most commands at once, because each holds some descriptors.
const MAX_RUNNING: usize = 200;

/// The most sessions at once, beside the other commands.
const MAX_SESSIONS: usize = 128;

/// Set once the program runs from a read-only view of its file.
const READ_ONLY: &str = "BERTH_PROBE_EXEC_READ_ONLY";

/// How long killed commands may take to end after the agent has closed the socket.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Runs as the helper until the agent closes the socket on standard input.
pub fn main() -> ExitCode {
    if std::env::var_os(READ_ONLY).is_none() {
        let error = run_from_read_only_view();
        tracing::warn!(%error, "cannot run the exec helper from a read-only view of its file; containers may be able to write to it");
    }
    match berth_sys::exec::prepare_helper().and_then(|()| Helper::from_stdin()).and_then(Helper::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "exec helper ended by an error");
            ExitCode::FAILURE
        }
    }
}

/// Re-executes the program from a read-only view of its file. Containers with CAP_SYS_PTRACE can
/// reach the file through a process that is entering them.
fn run_from_read_only_view() -> io::Error {
    let argv: Vec<CString> = std::env::args_os().filter_map(|a| CString::new(a.into_vec()).ok()).collect();
    let entry = |(mut name, value): (std::ffi::OsString, std::ffi::OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec()).ok()
    };
    let marked = std::env::vars_os().chain([(READ_ONLY.into(), "1".into())]);
    berth_sys::exec::reexec_read_only(&argv, &marked.filter_map(entry).collect::<Vec<_>>())
}

struct Helper {
    socket: File,
    input: Inbox,
    output: VecDeque<u8>,
    running: Vec<Running>,
    /// Cgroups that an earlier helper left, until they are removed.
    leftovers: Vec<(CommandCgroup, Instant)>,
    /// Counter for the names of this helper's cgroups.
    count: u64,
}

impl Helper {
    fn from_stdin() -> io::Result<Helper> {
        let socket = berth_sys::exec::take_stdin()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Helper {
            socket: File::from(socket),
            input: Inbox::default(),
            output: VecDeque::new(),
            running: Vec::new(),
            leftovers: Vec::new(),
            count: 0,
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            if self.wait(None)? && !self.serve_socket()? {
                return self.end();
            }
            for reply in self.advance() {
                self.reply(&reply)?;
            }
        }
    }

    /// Waits until there is work, at most until `last`. True if the socket is ready.
    fn wait(&self, last: Option<Instant>) -> io::Result<bool> {
        let interest = if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds: Vec<PollFd<'_>> = self
            .running
            .iter()
            .flat_map(Running::watched)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        // Once the agent is gone, its end of the socket is always ready and gives no data.
        if last.is_none() {
            fds.push(PollFd::new(&self.socket, interest));
        }
        let left = self.leftovers.iter().map(|(_, at)| *at);
        let due = self.running.iter().filter_map(Running::next_action).chain(left).chain(last).min();
        let timeout = due.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(last.is_none() && fds.last().is_some_and(|fd| !fd.revents().is_empty()))
    }

    /// Advances every command as far as possible, and returns the outcomes.
    fn advance(&mut self) -> Vec<wire::Reply> {
        let now = Instant::now();
        let replies = self.running.iter_mut().flat_map(|r| r.advance(now)).collect();
        self.running.retain(|r| !r.is_done());
        if self.running.is_empty() {
            running::reap_strays();
        }
        self.leftovers.retain_mut(|(cgroup, at)| {
            if *at > now {
                return true;
            }
            if !cgroup.keeps() {
                cgroup.kill();
            }
            let removed = cgroup.remove();
            *at = now + cgroup.backoff();
            !removed
        });
        replies
    }

    /// Reads requests and writes replies, as far as the socket allows. False if the agent has
    /// closed it.
    fn serve_socket(&mut self) -> io::Result<bool> {
        self.flush()?;
        if !self.input.read(&self.socket)? {
            return Ok(false);
        }
        while let Some(request) = wire::take(self.input.bytes())? {
            match request {
                wire::Request::Clean { roots } => {
                    self.leftovers
                        .extend(cgroup::leftovers_below(&roots).into_iter().map(|g| (g, Instant::now())));
                }
                wire::Request::Cancel { id } => {
                    self.running.iter_mut().filter(|r| r.id == id).for_each(Running::cancel);
                }
                wire::Request::Exec { id, timeout_ms, target } => {
                    self.start(id, timeout_ms, &target, &Kind::Captured)?;
                }
                wire::Request::Session { id, start_ms, streams, target } => {
                    self.start_session(id, start_ms, &target, streams)?;
                }
            }
        }
        Ok(true)
    }

    fn start_session(
        &mut self,
        id: u64,
        start_ms: u64,
        target: &ExecTarget,
        streams: SessionStreams,
    ) -> io::Result<()> {
        let given: Vec<OwnedFd> = self.input.take(streams.count())?;
        if self.running.iter().filter(|r| r.is_session() && !r.is_answered()).count() >= MAX_SESSIONS {
            let outcome = ExecOutcome::Unsupported("too many sessions are under way".to_owned());
            return self.reply(&wire::Reply::Ended { id, outcome });
        }
        self.start(id, start_ms, target, &Kind::Session(&given))
    }

    fn start(&mut self, id: u64, timeout_ms: u64, target: &ExecTarget, kind: &Kind<'_>) -> io::Result<()> {
        let commands = self.running.iter().filter(|r| !r.is_session()).count();
        let outcome = if matches!(kind, Kind::Captured) && commands >= MAX_RUNNING {
            ExecOutcome::NotRun("too many commands are under way".to_owned())
        } else {
            self.count += 1;
            let deadline = Instant::now() + Duration::from_millis(timeout_ms.min(u64::from(u32::MAX)));
            match running::start(&Entry { id, deadline, target, number: self.count, kind }) {
                Ok(running) => {
                    self.running.push(running);
                    return Ok(());
                }
                Err(outcome) => outcome,
            }
        };
        self.reply(&wire::Reply::Ended { id, outcome })
    }

    fn reply(&mut self, reply: &wire::Reply) -> io::Result<()> {
        self.output.extend(wire::encode(reply)?);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.socket.write(self.output.as_slices().0) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The next read reports that the agent is gone.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.output.clear(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The agent is gone, and with it the connections of its clients: kills all commands and waits for their end.
    /// What the command of a session left running at its own end stays.
    fn end(mut self) -> io::Result<()> {
        self.running.retain(|r| !(r.is_answered() && r.stays()));
        self.running.iter_mut().for_each(Running::cancel);
        let last = Instant::now() + END_WITHIN;
        while !self.running.is_empty() && Instant::now() < last {
            drop(self.advance());
            self.wait(Some(last))?;
        }
        Ok(())
    }
}
