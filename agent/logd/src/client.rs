//! The agent's client of logd's socket.
//!
//! `Client` owns one connection, used by one request at a time and reopened when it breaks, and
//! both ends of the FIFOs of each registered stream, so that their content survives the end of logd
//! and of the shim together.
//!
//! Every request has a deadline of [`DEADLINE`]. Within the deadline a broken connection is
//! reopened and the request is sent again. That is safe because each request states the wanted
//! result and not a change. No task is spawned.

use crate::{error::Error, fifo::hold_fifo};
use berth_api::{
    frame,
    logd::{
        FinishReport, Hello, REPLY_MAX, Reply, Request, StreamPaths, StreamSpec, StreamStatus, decode, encode,
    },
};
use berth_core::{
    ids::{ContainerId, PodKey, PodUid},
    sync::lock,
};
use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Mutex as StdMutex, MutexGuard},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    sync::{Mutex, Notify},
    time::{Instant, sleep, timeout_at},
};

/// Deadline of a request, reconnecting included.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Deadline of one try of a request. A stopped logd must not use up the whole deadline, because
/// another logd may replace it.
const TRY: Duration = Duration::from_secs(3);

/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(10);

/// Client of logd.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    conn: Mutex<Option<Conn>>,
    held: StdMutex<HashMap<ContainerId, Held>>,
    /// Notified when `held` shrinks.
    let_go: Notify,
}

#[derive(Debug)]
struct Held {
    pod: PodUid,
    _fifos: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Conn {
    stream: UnixStream,
    seq: u64,
}

impl Client {
    /// Returns a client of the logd that listens on `socket`. The first request connects.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket, conn: Mutex::new(None), held: StdMutex::default(), let_go: Notify::new() }
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for the running logd's version and process id, once and with this deadline. For finding
    /// out whether a logd runs.
    pub async fn ping_within(&self, within: Duration) -> Result<Hello, Error> {
        match self.ask(Request::Hello, within, false).await? {
            Reply::Hello(hello) => Ok(hello),
            other => Err(unexpected("hello", other)),
        }
    }

    /// Asks for the running logd's version and process id.
    pub async fn ping(&self) -> Result<Hello, Error> {
        match self.ask(Request::Hello, DEADLINE, true).await? {
            Reply::Hello(hello) => Ok(hello),
            other => Err(unexpected("hello", other)),
        }
    }

    /// Registers a container's output: logd creates the FIFOs, holds and reads them, and creates
    /// the log file and its link. Must be complete before the task is created. Repeated for the
    /// same container, the answer is the same. Another specification under the same id is an error.
    pub async fn register(&self, spec: StreamSpec) -> Result<StreamPaths, Error> {
        let (id, pod) = (spec.id.clone(), spec.uid.clone());
        match self.ask(Request::Register { spec }, DEADLINE, true).await? {
            Reply::Paths(paths) => {
                self.hold(id, pod, &paths);
                Ok(paths)
            }
            other => Err(unexpected("register", other)),
        }
    }

    /// Ends a container's output: logd writes what the FIFOs still hold, writes an unfinished line
    /// as a partial record, closes the files and removes the FIFOs. To be called after the exit
    /// event and the deletion of the task, when the shim has written everything.
    pub async fn finish(&self, id: &ContainerId) -> Result<FinishReport, Error> {
        match self.ask(Request::Finish { id: id.clone() }, DEADLINE, true).await? {
            Reply::Finished(report) => {
                self.let_go(id);
                Ok(report)
            }
            other => Err(unexpected("finish", other)),
        }
    }

    /// Waits until a container's output is complete: until this client has finished or removed the stream. Returns at once
    /// for a stream that the client does not know.
    pub async fn finished(&self, id: &ContainerId) {
        loop {
            let mut let_go = pin!(self.let_go.notified());
            let_go.as_mut().enable();
            if !self.held().contains_key(id) {
                return;
            }
            let_go.await;
        }
    }

    /// Removes the output of one attempt, its rotated files and its link. The stream is finished
    /// first.
    pub async fn remove_attempt(&self, spec: &StreamSpec) -> Result<(), Error> {
        self.done("remove-attempt", Request::RemoveAttempt { spec: spec.clone() }).await?;
        self.let_go(&spec.id);
        Ok(())
    }

    /// Removes a pod's log directory and the links into it. The pod's streams are finished first.
    pub async fn remove_pod(&self, key: &PodKey, uid: &PodUid) -> Result<(), Error> {
        self.done("remove-pod", Request::RemovePod { key: key.clone(), uid: uid.clone() }).await?;
        self.held().retain(|_, held| held.pod != *uid);
        self.let_go.notify_waiters();
        Ok(())
    }

    /// Attaches a reader to a container's output. The FIFOs exist under the names of [`attach_fifo`] for `session`, with
    /// their reading ends open, and may be removed afterwards. The container never waits for the reader: one that is
    /// slower than its FIFO allows sees the end of it.
    pub async fn attach(&self, id: &ContainerId, session: &str) -> Result<(), Error> {
        self.done("attach", Request::Attach { id: id.clone(), session: session.to_owned() }).await
    }

    /// Drops logd's hold of a container's standard input, for a container whose input ends with its first client.
    pub async fn close_stdin(&self, id: &ContainerId) -> Result<(), Error> {
        self.done("close-stdin", Request::CloseStdin { id: id.clone() }).await
    }

    /// All streams that logd drains.
    pub async fn list(&self) -> Result<Vec<StreamStatus>, Error> {
        match self.ask(Request::List, DEADLINE, true).await? {
            Reply::Streams { streams } => Ok(streams),
            other => Err(unexpected("list", other)),
        }
    }

    /// Holds the FIFOs of all streams that logd drains, and no others. For an agent that has just
    /// started.
    pub async fn adopt(&self, roots: &berth_core::roots::Roots) -> Result<Vec<StreamStatus>, Error> {
        let streams = self.list().await?;
        self.held().retain(|id, _| streams.iter().any(|s| s.spec.id == *id));
        for s in &streams {
            self.hold(s.spec.id.clone(), s.spec.uid.clone(), &s.spec.paths(roots));
        }
        Ok(streams)
    }

    fn let_go(&self, id: &ContainerId) {
        self.held().remove(id);
        self.let_go.notify_waiters();
    }

    fn held(&self) -> MutexGuard<'_, HashMap<ContainerId, Held>> {
        lock(&self.held)
    }

    fn hold(&self, id: ContainerId, pod: PodUid, paths: &StreamPaths) {
        let mut held = self.held();
        if held.contains_key(&id) {
            return;
        }
        let mut fds = Vec::new();
        for path in std::iter::once(&paths.stdout).chain(&paths.stderr) {
            match hold_fifo(path) {
                Ok(fd) => fds.push(fd),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot hold a fifo of a container; its content is lost if logd dies together with the shim")
                }
            }
        }
        held.insert(id, Held { pod, _fifos: fds });
    }

    async fn done(&self, op: &'static str, request: Request) -> Result<(), Error> {
        match self.ask(request, DEADLINE, true).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(op, other)),
        }
    }

    async fn ask(&self, request: Request, within: Duration, again: bool) -> Result<Reply, Error> {
        let op = request.name();
        let late = || Error::Deadline { op, after: within };
        let until = Instant::now().checked_add(within).ok_or_else(late)?;
        let mut conn = timeout_at(until, self.conn.lock()).await.map_err(|_elapsed| late())?;
        loop {
            let try_until = Instant::now().checked_add(TRY).map_or(until, |t| t.min(until));
            // The connection is taken out, so that neither a failure nor a dropped future leaves a
            // half-used connection behind.
            let error = match timeout_at(try_until, exchange(&self.socket, conn.take(), &request)).await {
                Ok(Ok((open, reply))) => {
                    *conn = Some(open);
                    return Ok(reply);
                }
                Ok(Err(error)) => Some(error),
                Err(_elapsed) => None,
            };
            let over = Instant::now().checked_add(RETRY).is_none_or(|next| next >= until);
            if over || !again {
                return Err(match error {
                    Some(source) => Error::Socket { path: self.socket.clone(), source },
                    None => late(),
                });
            }
            sleep(RETRY).await;
        }
    }
}

async fn exchange(socket: &Path, conn: Option<Conn>, request: &Request) -> io::Result<(Conn, Reply)> {
    let mut conn = match conn {
        Some(conn) => conn,
        None => Conn { stream: UnixStream::connect(socket).await?, seq: 0 },
    };
    conn.seq = conn.seq.wrapping_add(1);
    conn.stream.write_all(&encode(conn.seq, request)?).await?;
    let envelope = decode::<Reply>(&frame::read(&mut conn.stream, REPLY_MAX).await?)?;
    if envelope.seq != conn.seq {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "reply to another request"));
    }
    Ok((conn, envelope.body))
}

fn unexpected(op: &'static str, reply: Reply) -> Error {
    let message = match reply {
        Reply::Failed { message } => message,
        Reply::Unsupported { message } => format!("it does not know the request: {message}"),
        _ => "it sent a reply to something else".to_owned(),
    };
    Error::Refused { op, message }
}
