//! `berth dns`: one thread that answers DNS questions.
//!
//! Tasks, all owned by [`serve`] and ended with it: for each address one that reads datagrams and
//! one that accepts TCP connections, one that watches the zone file and resolv.conf, and one for
//! the local socket. Forwarded questions and TCP connections have a task each, at most [`FORWARDS`]
//! and [`STREAMS`], shared fairly among clients ([`berth_core::shares`]). Equal questions are forwarded once
//! ([`pending`]).
//!
//! Invariants: an answer from the zone waits for nothing. The zone in use is replaced completely; a
//! file that cannot be read changes nothing. Before the first zone, names of the cluster are
//! answered by SERVFAIL, because it is not known which names exist.
//!
//! # Failures
//! - The agent's death has no effect: the zone file stays.
//! - After the server's own death the addresses stay on `lo`; the next server binds them again.
//! - Replacement: the new server reads the same sockets before the old one stops reading
//!   ([`handover`]). The old server finishes the questions that it has read.

mod answers;
mod bind;
mod control;
mod datagrams;
mod files;
mod handover;
mod pending;
mod stream;

use crate::{address, cache::Cache, error::Error, forward::Upstreams, index::Index};
use berth_core::{roots::Roots, shares::Shares};
use berth_sys::service;
use bind::Pair;
use control::{Active, End};
use handover::Start;
use hickory_proto::rr::Name;
use pending::Pending;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};

/// The most questions that wait for upstreams. More, or more than a client's share, are answered by
/// SERVFAIL.
pub const FORWARDS: usize = 512;

/// The most TCP connections. More, or more than a client's share, are closed at once.
pub const STREAMS: usize = 128;

/// Bounds of the cache: answers and bytes.
const CACHE: (usize, usize) = (4096, 1024 * 1024);

/// How long a server that was told to end finishes the questions in flight.
const FINISH: Duration = Duration::from_secs(1);

/// How long a replaced server lingers: until its last TCP connection has been idle, or an upstream
/// has been asked.
const LINGER: Duration = stream::IDLE.saturating_add(FINISH);

/// Configuration of `berth dns`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Root directories.
    pub roots: Roots,
    /// Addresses to listen on.
    pub addresses: Vec<IpAddr>,
    /// The port; 53 but in tests.
    pub port: u16,
    /// The cluster domain until there is a zone.
    pub domain: String,
    /// Whether the addresses are added to `lo`.
    pub own_addresses: bool,
}

impl Config {
    /// Configuration for port 53 of these addresses, which are added to `lo`.
    pub fn new(roots: Roots, addresses: Vec<IpAddr>, domain: impl Into<String>) -> Config {
        Config { roots, addresses, port: crate::resolv::PORT, domain: domain.into(), own_addresses: true }
    }
}

/// Reason for an orderly end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another server has taken over, or a client requested the end.
    Requested,
}

/// Serves until told to end. Blocks.
///
/// # Errors
/// The addresses cannot be served, or another server holds the lock and does not hand over.
pub fn run(cfg: Config) -> Result<Ended, Error> {
    berth_sys::memory::bound_arenas();
    // Each forwarded question and each TCP connection needs a socket.
    if let Err(error) = service::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // setsid fails only for the leader of a process group, as a process started by hand or by a
    // service manager is.
    let _leader = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::from_millis(100))
        .build()
        .map_err(|source| Error::Kernel { what: "start the async runtime", source })?;
    let ended = runtime.block_on(serve(cfg));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Serves until told to end, in the current runtime.
///
/// # Errors
/// As for [`run`].
pub async fn serve(cfg: Config) -> Result<Ended, Error> {
    let zone = cfg.roots.zone_file();
    if let Some(dir) = zone.parent() {
        std::fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.into(), source })?;
    }
    if cfg.own_addresses {
        address::ensure(&cfg.roots, &cfg.addresses)?;
    }
    let server = Arc::new(Server::new(cfg)?);
    let mut tasks = JoinSet::new();
    // The zone is loaded before the sockets are bound, so that the first question finds it.
    files::start(&server, &mut tasks).await?;
    let (stop, stopping) = watch::channel(false);
    let mut readers = JoinSet::new();
    let lock_file = server.cfg.roots.dns_lock();
    let mut start = handover::start(&lock_file, &server.cfg.roots.dns_socket()).await?;
    let mut sockets = Vec::new();
    for ip in &server.cfg.addresses {
        let at = SocketAddr::new(*ip, server.cfg.port);
        let pair = match &mut start {
            Start::Taken(taken) => Pair::at(at, &mut taken.sockets),
            Start::Alone(_) | Start::Beside(_) => Pair::at(at, &mut Vec::new()),
        }?;
        readers.spawn(datagrams::answer(Arc::clone(&server), Arc::clone(&pair.udp), stopping.clone()));
        readers.spawn(stream::accept(Arc::clone(&server), Arc::clone(&pair.tcp), stopping.clone()));
        sockets.push(pair);
    }
    let (lock, old) = match start {
        Start::Alone(lock) => (lock, None),
        Start::Beside(waiting) => (waiting.lock().await?, None),
        Start::Taken(taken) => (taken.lock, Some(taken.old)),
    };
    let (end, mut ends) = mpsc::channel(1);
    let active = Active { server: Arc::clone(&server), lock, sockets, end };
    let control = control::start(active, &mut tasks)?;
    let _old = match old {
        Some(old) => Some(
            old.end()
                .await
                .map_err(|source| Error::Kernel { what: "take over from the active server", source })?,
        ),
        None => None,
    };
    tracing::info!(addresses = ?server.cfg.addresses, serial = server.status().serial, "cluster DNS is active");
    if let Err(error) = service::ready() {
        tracing::warn!(%error, "cannot tell the service manager that cluster DNS is ready");
    }
    let broken = |ended: Result<(), JoinError>| {
        let source = ended.err().map_or_else(|| io::Error::other("it returned"), io::Error::other);
        Error::Kernel { what: "keep a task of cluster DNS running", source }
    };
    let end = tokio::select! {
        Some(end) = ends.recv() => end,
        Some(ended) = tasks.join_next() => return Err(broken(ended)),
        Some(ended) = readers.join_next() => return Err(broken(ended)),
    };
    match end {
        End::Requested => finish(&server).await,
        End::Replaced(by) => {
            control.abort();
            stop.send_replace(true);
            linger(&mut readers, by).await;
        }
    }
    Ok(Ended::Requested)
}

/// Keeps serving until no question is in flight.
async fn finish(server: &Server) {
    let finished = async {
        while !server.forwards.unused() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(FINISH, finished).await.is_err() {
        tracing::info!("ending with questions in flight");
    }
}

/// Finishes the questions in flight while the new server reads the sockets. If the new server ends,
/// this one ends at once: as long as it holds the sockets without reading them, no other server can
/// serve them.
async fn linger(readers: &mut JoinSet<()>, mut by: UnixStream) {
    let finished = async { while readers.join_next().await.is_some() {} };
    tokio::select! {
        () = finished => {}
        () = tokio::time::sleep(LINGER) => tracing::info!("ending with questions in flight"),
        // The new server sends nothing more, so any result of the read is its end.
        _end = by.read_u8() => tracing::warn!("the server that took over has ended"),
    }
}

#[derive(Debug)]
struct Server {
    cfg: Config,
    domain: Name,
    zone: Mutex<ZoneState>,
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    pending: Arc<Pending>,
    forwards: Shares,
    streams: Shares,
    loop_logged: Mutex<Option<Instant>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct ZoneState {
    index: Option<Arc<Index>>,
    error: Option<String>,
}

#[derive(Debug, Default)]
struct Counters {
    udp: AtomicU64,
    tcp: AtomicU64,
    zone: AtomicU64,
    cache: AtomicU64,
    upstream: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl Server {
    fn new(cfg: Config) -> Result<Server, Error> {
        let mut domain = Name::from_ascii(&cfg.domain).map_err(|e| Error::Zone {
            path: cfg.roots.zone_file(),
            reason: format!("domain {:?}: {e}", cfg.domain),
        })?;
        domain.set_fqdn(true);
        Ok(Server {
            domain,
            zone: Mutex::default(),
            upstreams: Upstreams::default(),
            cache: Mutex::new(Cache::new(CACHE.0, CACHE.1)),
            pending: Arc::default(),
            forwards: Shares::new(FORWARDS),
            streams: Shares::new(STREAMS),
            loop_logged: Mutex::default(),
            counters: Counters::default(),
            cfg,
        })
    }
}
