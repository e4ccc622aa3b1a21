//! The agent's client of the exec helper: starts it, sends it commands, and restarts it when it
//! dies.
//!
//! One task per helper process owns its socket and the waiting callers, which reach the task over a
//! channel. When the helper dies, its callers get `NotRun`, and the next call starts another
//! helper, at most once a second.

use crate::ProberConfig;
use berth_api::exec::{self as wire, ExecOutcome, ExecTarget};
use berth_core::error::Chain;
use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::{Child, Command},
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, timeout},
};

/// The helper enforces the deadlines. A helper that is this much late is stuck and is replaced.
const GRACE: Duration = Duration::from_secs(5);
const RESTART_GAP: Duration = Duration::from_secs(1);
const QUEUE: usize = 256;

enum Message {
    Exec { id: u64, frame: Vec<u8>, reply: oneshot::Sender<ExecOutcome> },
    Cancel { id: u64 },
    Stuck,
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
        let sent = tokio::time::timeout_at(deadline, helper.send(Message::Exec { id, frame, reply })).await;
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

struct CancelOnDrop {
    id: u64,
    helper: Option<mpsc::Sender<Message>>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(helper) = &self.helper {
            // If the queue is full, the command's own deadline ends it.
            drop(helper.try_send(Message::Cancel { id: self.id }));
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
    let mut waiting: HashMap<u64, oneshot::Sender<ExecOutcome>> = HashMap::new();
    let mut buffer = Vec::new();
    timeout(GRACE, to.write_all(&hello)).await??;
    loop {
        tokio::select! {
            message = messages.recv() => {
                let frame = match message {
                    None => return Ok(()),
                    Some(Message::Stuck) => return Err(io::Error::other("it did not answer")),
                    Some(Message::Cancel { id }) => {
                        waiting.remove(&id);
                        wire::encode(&wire::Request::Cancel { id })?
                    }
                    Some(Message::Exec { id, frame, reply }) => {
                        waiting.insert(id, reply);
                        frame
                    }
                };
                timeout(GRACE, to.write_all(&frame)).await??;
            }
            read = from.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Err(io::Error::other("it closed its socket"));
                }
                while let Some(reply) = wire::take::<wire::Reply>(&mut buffer)? {
                    if let Some(caller) = waiting.remove(&reply.id) {
                        // The caller may have been dropped.
                        drop(caller.send(reply.outcome));
                    }
                }
            }
        }
    }
}
