//! The main loop of `berth logd`: one thread that waits on FIFOs and clients.
//!
//! There are two epoll sets, one for clients and one for FIFOs. After a round in which streams held
//! little but wrote often, the FIFOs are left alone for 8 ms, so that a container that writes line
//! by line costs some hundred wake-ups a second and not one for each line. Clients are served
//! meanwhile.
//!
//! # Replacement
//! A logd that starts while another is active asks it to hand over:
//! 1. `takeover`: the old logd stops reading and sends the lock, the listening socket, and each
//!    container with its FIFOs by `SCM_RIGHTS`. Unfinished lines are already in the carry files.
//! 2. `commit`: the new logd sends it when it has received everything. The old logd replies
//!    `released` and ends.
//! 3. The new logd opens the files and begins to read.
//!
//! If the new logd ends or is too slow before the commit, the old one resumes. A commit that comes
//! too late is not answered by `released`, and the new logd ends. After the commit the new logd
//! waits for that reply or the end of the old process, and for nothing else. The listening socket
//! is never closed, so clients only see their connection end.
//!
//! # Failures
//! A stream that cannot be read is logged and left alone; the others continue. A file that cannot
//! be written costs records, never a writer's time. A client that misbehaves loses its connection.
//! Only a failure of the epoll sets or of the private pipe ends the loop, because then nothing can
//! be served.

mod attach;
mod batch;
mod carry;
mod clients;
mod conn;
mod container;
mod gzip;
mod handover;
mod logfile;
#[cfg(test)]
mod mutations;
mod removal;
mod start;
mod table;

use crate::error::Error;
pub use batch::READ_SIZE;
use batch::Scratch;
use berth_api::logd::StreamSpec;
use berth_core::{error::Chain, ids::ContainerId, roots::Roots};
use berth_sys::{memory, service};
use conn::Conn;
use container::Container;
use gzip::Gzip;
use logfile::Limits;
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use std::{
    collections::{BTreeMap, HashMap},
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

/// Pause in reading FIFOs that receive little at a time.
const TRICKLE_PAUSE: Duration = Duration::from_millis(8);

/// After this long without a request, memory that only requests need is released.
const IDLE: Duration = Duration::from_secs(3);

/// A stream that wrote within this time before counts as busy.
const BUSY: Duration = Duration::from_millis(20);

/// Reads of one stream before the next stream is served.
const READS_PER_TURN: usize = 16;

/// Token of the listening socket in the set of clients.
const LISTENER: u64 = 0;

/// Configuration of a logd.
#[derive(Debug, Clone)]
pub struct Config {
    /// Root directories.
    pub roots: Roots,
    /// Bytes of a log file before it is rotated (`containerLogMaxSize`, by default 10 Mi).
    pub max_size: u64,
    /// Number of log files of one container (`containerLogMaxFiles`, by default 5, at least 2).
    pub max_files: u32,
}

impl Config {
    /// Returns the configuration with the kubelet's limits.
    pub fn defaults(roots: Roots) -> Config {
        Config { roots, max_size: 10 * 1024 * 1024, max_files: 5 }
    }
}

/// Reason for an orderly end of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another logd has taken over.
    Replaced,
}

/// Serves until another logd takes over. Takes over itself if one is active already. Blocks.
pub fn run(cfg: Config) -> Result<Ended, Error> {
    if cfg.max_files < 2 {
        return Err(Error::Limits { reason: "at least 2 files must be kept" });
    }
    if cfg.max_size == 0 {
        return Err(Error::Limits { reason: "the size must not be 0" });
    }
    // setsid fails only for the leader of a process group, as a process started by hand or by a
    // service manager is.
    let _leader = rustix::process::setsid();
    // Each container needs six descriptors, so the usual limit of 1024 is soon reached.
    if let Err(error) = service::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    Logd::start(cfg)?.serve()
}

#[derive(Debug)]
struct Logd {
    cfg: Config,
    limits: Limits,
    lock: OwnedFd,
    listener: UnixListener,
    clients: OwnedFd,
    streams: OwnedFd,
    containers: BTreeMap<ContainerId, Container>,
    /// Container and FIFO index of each token in the set of streams.
    tokens: HashMap<u64, (ContainerId, usize)>,
    conns: HashMap<u64, Conn>,
    next_token: u64,
    scratch: Scratch,
    gzip: Gzip,
    /// Time until which FIFOs are left alone.
    pause_until: Option<Instant>,
    last_round: Option<Instant>,
    /// Time at which memory is released; None after it was.
    release_memory_at: Option<Instant>,
}

fn kernel(what: &'static str) -> impl Fn(Errno) -> Error {
    move |e| Error::Kernel { what, source: e.into() }
}

impl Logd {
    fn start(cfg: Config) -> Result<Logd, Error> {
        table::prepare(&cfg.roots)?;
        let active = start::become_active(&cfg.roots)?;
        let epoll = || epoll::create(epoll::CreateFlags::CLOEXEC).map_err(kernel("make an epoll set"));
        let mut logd = Logd {
            limits: Limits { size: cfg.max_size, files: cfg.max_files },
            lock: active.lock,
            listener: active.listener,
            clients: epoll()?,
            streams: epoll()?,
            containers: BTreeMap::new(),
            tokens: HashMap::new(),
            conns: HashMap::new(),
            next_token: LISTENER.saturating_add(1),
            scratch: Scratch::new()?,
            gzip: Gzip::new(&cfg.roots.pod_logs),
            pause_until: None,
            last_round: None,
            release_memory_at: Some(Instant::now() + IDLE),
            cfg,
        };
        logd.listener
            .set_nonblocking(true)
            .map_err(|source| Error::Kernel { what: "listen without blocking", source })?;
        let flags = epoll::EventFlags::IN;
        epoll::add(&logd.clients, &logd.listener, epoll::EventData::new_u64(LISTENER), flags)
            .map_err(kernel("watch the socket"))?;
        let by_handover = active.handed.is_some();
        match active.handed {
            Some(handed) => {
                for h in handed {
                    logd.resume(h.spec, Some(h.fds), h.bytes, h.lost);
                }
            }
            None => {
                for spec in table::load(&logd.cfg.roots)? {
                    logd.resume(spec, None, 0, 0);
                }
            }
        }
        tracing::info!(streams = logd.containers.len(), by_handover, "logd is active");
        if let Err(error) = service::ready() {
            tracing::warn!(%error, "cannot tell the service manager that logd is ready");
        }
        Ok(logd)
    }

    /// Continues a container that may be running.
    fn resume(&mut self, spec: StreamSpec, fds: Option<Vec<OwnedFd>>, bytes: u64, lost: u64) {
        let id = spec.id.clone();
        let resumed = Container::resume(&self.cfg.roots, spec, fds, self.limits, &mut self.scratch).and_then(
            |mut container| {
                container.inherit(bytes, lost);
                self.watch(container)
            },
        );
        if let Err(error) = resumed {
            tracing::error!(container = %id, error = %Chain(&error), "cannot resume the output of a container");
        }
    }

    fn watch(&mut self, container: Container) -> Result<(), Error> {
        for (index, fifo) in container.fifos.iter().enumerate() {
            let token = self.token();
            epoll::add(&self.streams, &fifo.fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
                .map_err(kernel("watch a fifo"))?;
            self.tokens.insert(token, (container.spec.id.clone(), index));
        }
        self.containers.insert(container.spec.id.clone(), container);
        Ok(())
    }

    fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token = self.next_token.wrapping_add(1).max(1);
        token
    }

    fn serve(mut self) -> Result<Ended, Error> {
        loop {
            let (clients, streams) = self.wait()?;
            if clients {
                self.release_memory_at = Some(Instant::now() + IDLE);
                if self.serve_clients()? {
                    return Ok(Ended::Replaced);
                }
            }
            if streams {
                self.serve_streams()?;
            } else if self.gzip.busy() {
                self.gzip.step();
            }
        }
    }

    /// Waits until clients or streams are ready, or until there is a file to compress.
    fn wait(&mut self) -> Result<(bool, bool), Error> {
        let now = Instant::now();
        let pause = self.pause_until.map(|until| until.saturating_duration_since(now));
        let pause = pause.filter(|left| !left.is_zero());
        if pause.is_none() {
            self.pause_until = None;
        }
        if self.release_memory_at.is_some_and(|at| at <= now) {
            self.release_memory_at = None;
            memory::give_back();
            memory::let_go_of_text();
        }
        let release = self.release_memory_at.map(|at| at.saturating_duration_since(now));
        let timeout =
            if self.gzip.busy() { Some(Duration::ZERO) } else { pause.into_iter().chain(release).min() };
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut fds = [PollFd::new(&self.clients, PollFlags::IN), PollFd::new(&self.streams, PollFlags::IN)];
        let watched = if pause.is_some() { 1 } else { 2 };
        match rustix::event::poll(fds.get_mut(..watched).unwrap_or_default(), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok((false, false)),
            Err(e) => return Err(kernel("wait for streams and clients")(e)),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let [clients, streams] = &fds;
        Ok((ready(clients), pause.is_none() && ready(streams)))
    }

    fn serve_streams(&mut self) -> Result<(), Error> {
        let mut trickle = true;
        for event in take_events(&self.streams)? {
            let token = event.data.u64();
            let Some((id, index)) = self.tokens.get(&token) else { continue };
            let Some(container) = self.containers.get_mut(id) else { continue };
            match container.drain(*index, READS_PER_TURN, &mut self.scratch) {
                Ok(n) => {
                    let capacity = container.fifos.get(*index).map_or(0, |f| f.capacity);
                    trickle &= n.saturating_mul(4) < capacity;
                }
                Err(error) => {
                    tracing::error!(container = %id, %error, "cannot read the output of a container any more");
                    if let Some(fifo) = container.fifos.get(*index) {
                        epoll::delete(&self.streams, &fifo.fd).map_err(kernel("leave a fifo alone"))?;
                    }
                    self.tokens.remove(&token);
                }
            }
        }
        self.gzip.add(&mut self.scratch.batch.rotated);
        let now = Instant::now();
        let busy = self.last_round.is_some_and(|last| now.saturating_duration_since(last) < BUSY);
        self.pause_until = if busy && trickle { now.checked_add(TRICKLE_PAUSE) } else { None };
        self.last_round = Some(now);
        Ok(())
    }
}

fn take_events(set: &OwnedFd) -> Result<Vec<epoll::Event>, Error> {
    let mut events = Vec::with_capacity(64);
    match epoll::wait(set, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default())) {
        Ok(_) | Err(Errno::INTR) => Ok(events),
        Err(e) => Err(kernel("wait for events")(e)),
    }
}
