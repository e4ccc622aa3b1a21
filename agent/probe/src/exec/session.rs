//! The command of a client: its streams are descriptors of this process, and it ends with its [`Session`].

use super::client::CancelOnDrop;
use berth_api::exec::{ExecOutcome, SessionStreams};
use rustix::{
    io::{Errno, IoSliceMut},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};
use tokio::sync::oneshot;

/// Exit code of a command that a signal ended, as of every container runtime.
const SIGNALLED: i32 = 128;

/// Standard streams of a command.
#[derive(Debug)]
pub enum Stdio {
    /// Input, output and errors of the command, which closes them at its end. They are blocking.
    Given {
        /// What the command reads.
        input: OwnedFd,
        /// What it writes.
        output: OwnedFd,
        /// Where it writes errors.
        errors: OwnedFd,
    },
    /// A terminal of the container's, whose other side is [`Session::terminal`].
    Terminal,
}

/// Both sides of a command's streams.
pub(crate) struct Sides {
    pub(super) streams: SessionStreams,
    /// The command's.
    pub(super) theirs: Vec<OwnedFd>,
    /// Where the other side of a terminal comes.
    pub(super) console: Option<UnixStream>,
}

impl Sides {
    pub(crate) fn of(stdio: Stdio) -> io::Result<Sides> {
        Ok(match stdio {
            Stdio::Given { input, output, errors } => {
                Sides { streams: SessionStreams::Given, theirs: vec![input, output, errors], console: None }
            }
            Stdio::Terminal => {
                let (ours, theirs) = UnixStream::pair()?;
                Sides { streams: SessionStreams::Terminal, theirs: vec![theirs.into()], console: Some(ours) }
            }
        })
    }
}

/// Why a session did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The helper cannot run the command exactly as containerd would. Callers go through containerd.
    #[error("{0}")]
    Unsupported(String),
    /// The command does not run; the text is for its client.
    #[error("{0}")]
    Failed(String),
}

/// A command that runs for a client. Dropped before the command's end, it kills the command and all processes that
/// it started.
pub struct Session {
    /// Process id in the host's PID namespace; 0 where the command ended at once.
    pub pid: u32,
    /// The other side of the command's terminal; non-blocking.
    pub terminal: Option<OwnedFd>,
    guard: CancelOnDrop,
    outcome: oneshot::Receiver<ExecOutcome>,
    known: Option<Result<i32, String>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(guard: CancelOnDrop, outcome: oneshot::Receiver<ExecOutcome>) -> Session {
        Session { pid: 0, terminal: None, guard, outcome, known: None }
    }

    /// The command runs. Its terminal has been sent before.
    pub(super) fn runs(&mut self, pid: u32, console: Option<UnixStream>) -> Result<(), SessionError> {
        self.pid = pid;
        if let Some(console) = console {
            let terminal = receive(&console);
            self.terminal =
                Some(terminal.map_err(|e| {
                    SessionError::Failed(format!("cannot receive the command's terminal: {e}"))
                })?);
        }
        Ok(())
    }

    /// Why the command does not run.
    pub(super) async fn why_not(mut self) -> SessionError {
        match self.next().await {
            Some(ExecOutcome::NotRun(why)) => SessionError::Failed(why),
            Some(ExecOutcome::Unsupported(why)) => SessionError::Unsupported(why),
            _ => SessionError::Failed("the exec helper ended meanwhile".to_owned()),
        }
    }

    async fn next(&mut self) -> Option<ExecOutcome> {
        let outcome = (&mut self.outcome).await.ok();
        self.guard.disarm();
        outcome
    }

    /// Waits for the end and returns the exit code: that of a command which a signal ended is 128 more than the
    /// signal. A dropped wait can be repeated.
    ///
    /// # Errors
    /// The helper died, so the end will not be known.
    pub async fn wait(&mut self) -> Result<i32, String> {
        if let Some(known) = &self.known {
            return known.clone();
        }
        let code = match self.next().await {
            Some(ExecOutcome::Exited { code, .. }) => Ok(code),
            Some(ExecOutcome::Killed { signal, .. }) => Ok(SIGNALLED.saturating_add(signal)),
            Some(ExecOutcome::NotRun(why) | ExecOutcome::Unsupported(why)) => Err(why),
            Some(ExecOutcome::TimedOut { .. }) => Err("it took too long".to_owned()),
            None => Err("the exec helper ended meanwhile".to_owned()),
        };
        self.known = Some(code.clone());
        code
    }
}

impl Session {
    /// Sets the size of the terminal in columns and rows. Does nothing without a terminal.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(terminal, size)?)
    }
}

/// Takes the descriptor out of the socket, where it is already.
fn receive(console: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    loop {
        match recvmsg(console, &mut [IoSliceMut::new(&mut byte)], &mut rights, flags) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(_) => break,
        }
    }
    let found = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    found.ok_or_else(|| io::Error::other("it did not come"))
}
