//! The agent's client of the exec helper: starts it, sends it commands, and restarts it when it
//! dies.
//!
//! One task per helper process owns its socket and the waiting callers, which reach the task over a
//! channel. When the helper dies, its callers get `NotRun`, and the next call starts another
//! helper, at most once a second.

use super::session::{Session, SessionError, Sides};
use crate::ProberConfig;
use berth_api::exec::{self as wire, ExecOutcome, ExecTarget};
use berth_core::error::Chain;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::{
    collections::HashMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixStream, unix::OwnedWriteHalf},
    process::{Child, Command},
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout},
};

/// The helper enforces the deadlines. A helper that is this much late is stuck and is replaced.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How long the command of a session may take to run.
const START: Duration = Duration::from_secs(10);
const RESTART_GAP: Duration = Duration::from_secs(1);
const QUEUE: usize = 256;

pub(super) enum Message {
    Exec { id: u64, frame: Vec<u8>, descriptors: Vec<OwnedFd>, waiter: Waiter },
    Cancel { id: u64 },
    Stuck,
}

/// Who waits for a command.
pub(super) struct Waiter {
    /// For the word that a session's command runs, with its process id.
    started: Option<oneshot::Sender<u32>>,
    ended: oneshot::Sender<ExecOutcome>,
}

#[derive(Default)]
struct State {
    helper: Option<mpsc::Sender<Message>>,
    started: Option<Instant>,
}

pub(crate) struct Client {
    config: ProberConfig,
    next_id: AtomicU64,
    state: Mutex<State>,
}

impl Client {
    pub(crate) fn new(config: ProberConfig) -> Client {
        Client { config, next_id: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Runs one command.
    pub(crate) async fn run(&self, target: &ExecTarget, limit: Duration) -> ExecOutcome {
        // Longer than anyone waits, and short enough to be added to a clock.
        let limit = limit.min(Duration::from_secs(u64::from(u32::MAX)));
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = wire::Request::Exec { id, timeout_ms, target: Box::new(target.clone()) };
        let frame = match wire::encode(&request) {
            Ok(frame) => frame,
            Err(e) => {
                return ExecOutcome::NotRun(format!(
                    "cannot send the command to the exec helper: {}",
                    Chain(&e)
                ));
            }
        };
        let helper = match self.helper().await {
            Ok(helper) => helper,
            Err(why) => return ExecOutcome::NotRun(why),
        };
        let (reply, answer) = oneshot::channel();
        let died = || ExecOutcome::NotRun("the exec helper ended meanwhile".to_owned());
        let deadline = Instant::now() + limit + GRACE;
        let waiter = Waiter { started: None, ended: reply };
        let message = Message::Exec { id, frame, descriptors: Vec::new(), waiter };
        let sent = tokio::time::timeout_at(deadline, helper.send(message)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return died();
        }
        let mut guard = CancelOnDrop { id, helper: Some(helper.clone()) };
        let outcome = tokio::time::timeout_at(deadline, answer).await;
        guard.helper = None;
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => died(),
            Err(_) => {
                // A full queue means that the task is stuck in a write, which has its own deadline.
                drop(helper.try_send(Message::Stuck));
                ExecOutcome::NotRun("the exec helper does not answer".to_owned())
            }
        }
    }

    /// Starts the command of a session, and waits until it runs.
    pub(crate) async fn session(&self, target: &ExecTarget, sides: Sides) -> Result<Session, SessionError> {
        let failed = |why: String| SessionError::Failed(why);
        let died = || failed("the exec helper ended meanwhile".to_owned());
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let start_ms = u64::try_from(START.as_millis()).unwrap_or(u64::MAX);
        let (streams, target) = (sides.streams, Box::new(target.clone()));
        let frame = wire::encode(&wire::Request::Session { id, start_ms, streams, target })
            .map_err(|e| failed(format!("cannot send the command to the exec helper: {}", Chain(&e))))?;
        let helper = self.helper().await.map_err(failed)?;
        let (started, runs) = oneshot::channel();
        let (ended, outcome) = oneshot::channel();
        let waiter = Waiter { started: Some(started), ended };
        let message = Message::Exec { id, frame, descriptors: sides.theirs, waiter };
        let deadline = Instant::now() + START + GRACE;
        let sent = tokio::time::timeout_at(deadline, helper.send(message)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Err(died());
        }
        // Dropped from here on, the command is killed.
        let mut session = Session::new(CancelOnDrop { id, helper: Some(helper.clone()) }, outcome);
        match tokio::time::timeout_at(deadline, runs).await {
            Ok(Ok(pid)) => session.runs(pid, sides.console)?,
            // An outcome without that word says why.
            Ok(Err(_)) => return Err(session.why_not().await),
            Err(_) => {
                drop(helper.try_send(Message::Stuck));
                return Err(failed("the exec helper does not answer".to_owned()));
            }
        }
        Ok(session)
    }

    async fn helper(&self) -> Result<mpsc::Sender<Message>, String> {
        let mut state = self.state.lock().await;
        if let Some(helper) = state.helper.as_ref().filter(|h| !h.is_closed()) {
            return Ok(helper.clone());
        }
        if state.started.is_some_and(|t| t.elapsed() < RESTART_GAP) {
            return Err("the exec helper has just ended".to_owned());
        }
        state.started = Some(Instant::now());
        let (child, stream) = self.spawn().map_err(|e| format!("cannot start the exec helper: {e}"))?;
        let hello = wire::encode(&wire::Request::Clean { roots: self.config.cgroup_roots.clone() })
            .map_err(|e| format!("cannot start the exec helper: {}", Chain(&e)))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        tracing::info!(pid = child.id(), "exec helper started");
        // The task ends with the last sender, which this client holds, or with the helper.
        drop(tokio::spawn(serve(child, stream, hello, receiver)));
        state.helper = Some(sender.clone());
        Ok(sender)
    }

    fn spawn(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(&self.config.helper_exe)
            .args(&self.config.helper_args)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        if let (Some(group), Some(pid)) = (&self.config.helper_group, child.id())
            && let Err(error) = std::fs::write(group.join("cgroup.procs"), pid.to_string())
        {
            tracing::warn!(group = %group.display(), %error, "cannot move the exec helper into its cgroup; it stays in its starter's");
        }
        Ok((child, UnixStream::from_std(ours)?))
    }
}

pub(super) struct CancelOnDrop {
    id: u64,
    helper: Option<mpsc::Sender<Message>>,
}

impl CancelOnDrop {
    /// The command has ended.
    pub(super) fn disarm(&mut self) {
        self.helper = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(helper) = self.helper.take() else { return };
        let cancel = Message::Cancel { id: self.id };
        // A session has no deadline that would end it where the queue is full.
        if let Err(mpsc::error::TrySendError::Full(cancel)) = helper.try_send(cancel)
            && let Ok(tokio) = tokio::runtime::Handle::try_current()
        {
            tokio.spawn(async move { drop(timeout(GRACE, helper.send(cancel)).await) });
        }
    }
}

async fn serve(mut child: Child, stream: UnixStream, hello: Vec<u8>, mut messages: mpsc::Receiver<Message>) {
    let why = match exchange(stream, hello, &mut messages).await {
        // The socket is closed by now, so the helper kills its commands and exits.
        Ok(()) => {
            drop(timeout(GRACE, child.wait()).await);
            "no longer needed".to_owned()
        }
        Err(e) => e.to_string(),
    };
    // The helper is dead before the next one starts and removes the cgroups that it left.
    if let Err(error) = child.kill().await {
        tracing::warn!(%error, "cannot end the exec helper");
    }
    messages.close();
    tracing::info!(why, "exec helper ended");
}

async fn exchange(
    stream: UnixStream,
    hello: Vec<u8>,
    messages: &mut mpsc::Receiver<Message>,
) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let mut waiting: HashMap<u64, Waiter> = HashMap::new();
    let mut buffer = Vec::new();
    timeout(GRACE, to.write_all(&hello)).await??;
    loop {
        tokio::select! {
            message = messages.recv() => {
                let (frame, descriptors) = match message {
                    None => return Ok(()),
                    Some(Message::Stuck) => return Err(io::Error::other("it did not answer")),
                    Some(Message::Cancel { id }) => {
                        waiting.remove(&id);
                        (wire::encode(&wire::Request::Cancel { id })?, Vec::new())
                    }
                    Some(Message::Exec { id, frame, descriptors, waiter }) => {
                        waiting.insert(id, waiter);
                        (frame, descriptors)
                    }
                };
                timeout(GRACE, send(&mut to, &frame, descriptors)).await??;
            }
            read = from.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Err(io::Error::other("it closed its socket"));
                }
                while let Some(reply) = wire::take::<wire::Reply>(&mut buffer)? {
                    tell(&mut waiting, reply);
                }
            }
        }
    }
}

/// Passes a reply on. The caller may have been dropped.
fn tell(waiting: &mut HashMap<u64, Waiter>, reply: wire::Reply) {
    match reply {
        wire::Reply::Started { id, pid } => {
            if let Some(started) = waiting.get_mut(&id).and_then(|waiter| waiter.started.take()) {
                started.send(pid).ok();
            }
        }
        wire::Reply::Ended { id, outcome } => {
            let Some(waiter) = waiting.remove(&id) else { return };
            // A command may end so soon that there is no word of its start.
            if let Some(started) = waiter.started
                && matches!(outcome, ExecOutcome::Exited { .. } | ExecOutcome::Killed { .. })
            {
                started.send(0).ok();
            }
            drop(waiter.ended.send(outcome));
        }
    }
}

/// Writes a frame. Descriptors go with its first byte.
async fn send(to: &mut OwnedWriteHalf, frame: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
    let mut written = 0;
    if !descriptors.is_empty() {
        let socket: &UnixStream = to.as_ref();
        written = socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
                let mut rights = SendAncillaryBuffer::new(&mut space);
                let borrowed: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
                if !rights.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                    return Err(io::Error::other("too many descriptors"));
                }
                Ok(sendmsg(socket, &[IoSlice::new(frame)], &mut rights, SendFlags::NOSIGNAL)?)
            })
            .await?;
    }
    to.write_all(frame.get(written..).unwrap_or_default()).await
}
