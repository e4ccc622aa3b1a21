//! `berth dns`: one thread that answers DNS questions.
//!
//! Tasks, all owned by [`serve`] and ended with it: for each address one that reads datagrams and
//! one that accepts TCP connections, one that watches the zone file and resolv.conf, and one for
//! the local socket. Forwarded questions and TCP connections have a task each, at most [`FORWARDS`]
//! and [`STREAMS`], shared fairly among clients ([`shares`]). Equal questions are forwarded once
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

mod bind;
mod control;
mod files;
mod handover;
mod pending;
mod shares;
mod stream;

use crate::{
    address,
    cache::{Cache, Key},
    error::Error,
    forward::Upstreams,
    index::Index,
    proto::{Counts, Status},
    question::{self, Answer, Asked, Question, Transport},
    resolve::{Step, resolve},
};
use berth_core::{error::Chain, roots::Roots, sync::lock};
use berth_sys::service;
use bind::Pair;
use control::{Charge, End};
use handover::Start;
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use pending::{Part, Pending};
use shares::{Place, Shares};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{UdpSocket, UnixStream},
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};

/// The most questions that wait for upstreams. More, or more than a client's share, are answered by
/// SERVFAIL.
pub const FORWARDS: usize = 512;

/// The most TCP connections. More, or more than a client's share, are closed at once.
pub const STREAMS: usize = 128;

/// Pause between two log lines about a forwarding loop.
const LOOP_TOLD: Duration = Duration::from_secs(60);

/// Bounds of the cache: answers and bytes.
const CACHE: (usize, usize) = (4096, 1024 * 1024);

/// Datagrams that are read before other tasks run.
const TURN: usize = 64;

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
    Told,
}

/// Serves until told to end. Blocks.
///
/// # Errors
/// The addresses cannot be served, or another server holds the lock and does not hand over.
pub fn run(cfg: Config) -> Result<Ended, Error> {
    berth_sys::memory::bound_arenas();
    // Each forwarded question and each TCP connection needs a socket.
    if let Err(error) = service::raise_descriptor_limit() {
        tracing::warn!(%error, "limit of open files cannot be raised");
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
    let lock = server.cfg.roots.runtime_state.join("dns/lock");
    let mut start = handover::begin(&lock, &server.cfg.roots.dns_socket()).await?;
    let mut sockets = Vec::new();
    for ip in &server.cfg.addresses {
        let at = SocketAddr::new(*ip, server.cfg.port);
        let pair = match &mut start {
            Start::Taken(taken) => Pair::at(at, &mut taken.sockets),
            Start::Alone(_) | Start::Beside(_) => Pair::at(at, &mut Vec::new()),
        }?;
        readers.spawn(datagrams(Arc::clone(&server), Arc::clone(&pair.udp), stopping.clone()));
        readers.spawn(stream::accept(Arc::clone(&server), Arc::clone(&pair.tcp), stopping.clone()));
        sockets.push(pair);
    }
    let (lock, old) = match start {
        Start::Alone(lock) => (lock, None),
        Start::Beside(waiting) => (waiting.lock().await?, None),
        Start::Taken(taken) => (taken.lock, Some(taken.old)),
    };
    let (end, mut ends) = mpsc::channel(1);
    let charge = Charge { server: Arc::clone(&server), lock, sockets, end };
    let control = control::start(charge, &mut tasks)?;
    let _old = match old {
        Some(old) => Some(old.end().await.map_err(|source| Error::Kernel { what: "take over", source })?),
        None => None,
    };
    tracing::info!(addresses = ?server.cfg.addresses, serial = server.status().serial, "cluster DNS runs");
    if let Err(error) = service::ready() {
        tracing::warn!(%error, "the service manager is not told that cluster DNS is ready");
    }
    let broken = |ended: Result<(), JoinError>| {
        let source = ended.err().map_or_else(|| io::Error::other("it returned"), io::Error::other);
        Error::Kernel { what: "a task that should run for ever", source }
    };
    let end = tokio::select! {
        Some(end) = ends.recv() => end,
        Some(ended) = tasks.join_next() => return Err(broken(ended)),
        Some(ended) = readers.join_next() => return Err(broken(ended)),
    };
    match end {
        End::Told => finish(&server).await,
        End::Replaced(by) => {
            control.abort();
            stop.send_replace(true);
            linger(&mut readers, by).await;
        }
    }
    Ok(Ended::Told)
}

/// Keeps serving until no question is in flight.
async fn finish(server: &Server) {
    let finished = async {
        while !server.forwards.unused() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(FINISH, finished).await.is_err() {
        tracing::info!("ends with questions under way");
    }
}

/// Finishes the questions in flight while the new server reads the sockets. If the new server ends,
/// this one ends at once: as long as it holds the sockets without reading them, no other server can
/// serve them.
async fn linger(readers: &mut JoinSet<()>, mut by: UnixStream) {
    let finished = async { while readers.join_next().await.is_some() {} };
    tokio::select! {
        () = finished => {}
        () = tokio::time::sleep(LINGER) => tracing::info!("ends with questions under way"),
        // The new server sends nothing more, so any result of the read is its end.
        _end = by.read_u8() => tracing::warn!("the one that took over has ended"),
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
    loop_told: Mutex<Option<Instant>>,
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

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Action for a message.
enum Todo {
    Nothing,
    Reply(Vec<u8>),
    Forward(Box<Forward>),
}

/// A question for the upstreams.
struct Forward {
    question: Question,
    aliases: Vec<Record>,
    /// The name in the case of the client.
    name: Name,
    key: Key,
    _place: Place,
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
            loop_told: Mutex::default(),
            counters: Counters::default(),
            cfg,
        })
    }

    fn index(&self) -> Option<Arc<Index>> {
        lock(&self.zone).index.clone()
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        lock(&self.cache)
    }

    fn status(&self) -> Status {
        let index = self.index();
        let error = lock(&self.zone).error.clone();
        let c = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            addresses: self.cfg.addresses.clone(),
            serial: index.as_ref().map(|i| i.serial()),
            services: index.as_ref().map_or(0, |i| i.services()),
            zone_error: error,
            upstreams: self.upstreams.servers(),
            cached: self.cache().len(),
            counts: Counts {
                udp: load(&c.udp),
                tcp: load(&c.tcp),
                zone: load(&c.zone),
                cache: load(&c.cache),
                upstream: load(&c.upstream),
                failed: load(&c.failed),
                refused: load(&c.refused),
            },
        }
    }

    /// Handles a message: answers at once where possible.
    fn handle(&self, bytes: &[u8], transport: Transport, client: IpAddr) -> Todo {
        count(if transport == Transport::Udp { &self.counters.udp } else { &self.counters.tcp });
        let question = match question::read(bytes, transport) {
            Asked::Question(question) => question,
            Asked::Refused(reply) => {
                count(&self.counters.refused);
                return Todo::Reply(reply);
            }
            Asked::Nothing => {
                count(&self.counters.refused);
                return Todo::Nothing;
            }
        };
        let (name, kind) = (question.query.name(), question.query.query_type());
        let step = match self.index() {
            Some(index) => resolve(&index, name, kind),
            None if self.domain.zone_of(name) => {
                count(&self.counters.failed);
                return reply(&question, &Answer::code(ResponseCode::ServFail));
            }
            None => Step::Forward { aliases: Vec::new(), name: name.clone() },
        };
        match step {
            Step::Done(answer) => {
                count(&self.counters.zone);
                reply(&question, &answer)
            }
            Step::Forward { .. } if kind == RecordType::ANY => {
                count(&self.counters.refused);
                reply(&question, &Answer::code(ResponseCode::Refused))
            }
            Step::Forward { aliases, name } => self.forward(question, aliases, name, client),
        }
    }

    fn forward(&self, question: Question, aliases: Vec<Record>, name: Name, client: IpAddr) -> Todo {
        let key = Key {
            // The case belongs to the client; the answers are the same.
            name: name.to_lowercase(),
            kind: question.query.query_type(),
            dnssec: question.dnssec,
            checking_disabled: question.checking_disabled,
        };
        if let Some(message) = self.cache().get(&key, Instant::now()) {
            count(&self.counters.cache);
            return reply(&question, &forwarded(message, &name, aliases));
        }
        let leads_back = self.pending.is_ours(&key, &name);
        if leads_back {
            self.tell_loop(client);
        }
        match self.forwards.take(client).filter(|_| !leads_back) {
            Some(place) => Todo::Forward(Box::new(Forward { question, aliases, name, key, _place: place })),
            None => {
                count(&self.counters.failed);
                reply(&question, &Answer::code(ResponseCode::ServFail))
            }
        }
    }

    fn tell_loop(&self, from: IpAddr) {
        let mut told = lock(&self.loop_told);
        if told.is_none_or(|at| at.elapsed() > LOOP_TOLD) {
            *told = Some(Instant::now());
            let (upstreams, resolv_conf) = (self.upstreams.servers(), &self.cfg.roots.resolv_conf);
            tracing::error!(
                ?upstreams, %from, resolv_conf = %resolv_conf.display(),
                "cannot resolve names outside of the cluster: an upstream forwards to cluster DNS, which asked it; name \
                 another server in resolv.conf"
            );
        }
    }

    /// Asks the upstreams, or waits for the task that asks them the same question.
    async fn finish(&self, forward: Forward) -> Option<Vec<u8>> {
        let Forward { question, aliases, name, key, _place } = forward;
        let outcome = match self.pending.join(&key) {
            Part::Joined(receiver) => pending::outcome(receiver).await,
            Part::Leader(leader) => {
                let answer = self.upstreams.ask(&key, &leader.sent).await;
                let outcome = answer.map(|(message, wire)| {
                    count(&self.counters.upstream);
                    self.cache().put(key, &message, &wire, Instant::now());
                    Arc::new(message)
                });
                leader.tell(outcome.clone());
                outcome
            }
        };
        let Some(message) = outcome else {
            count(&self.counters.failed);
            return question.write(&Answer::code(ResponseCode::ServFail));
        };
        question.write(&forwarded(Arc::unwrap_or_clone(message), &name, aliases))
    }
}

fn reply(question: &Question, answer: &Answer) -> Todo {
    question.write(answer).map_or(Todo::Nothing, Todo::Reply)
}

/// The upstream's answer after the zone's aliases, in the case of the question.
fn forwarded(message: hickory_proto::op::Message, name: &Name, aliases: Vec<Record>) -> Answer {
    let mut answers = aliases;
    answers.extend(message.answers.into_iter().map(|mut record| {
        if record.name == *name {
            record.name = name.clone();
        }
        record
    }));
    Answer {
        code: message.metadata.response_code,
        authoritative: false,
        authentic: message.metadata.authentic_data,
        truncated: message.metadata.truncation,
        answers,
        authorities: message.authorities,
        additionals: message.additionals,
    }
}

/// Reads datagrams until told to stop, then returns when all of them are answered.
async fn datagrams(server: Arc<Server>, socket: Arc<UdpSocket>, mut stop: watch::Receiver<bool>) {
    let mut buffer = vec![0; 4096];
    let mut under_way = JoinSet::new();
    loop {
        // Readiness means that there is a datagram, or that the socket has an error, which the next
        // read returns.
        let ready = tokio::select! {
            // The sender lives as long as the program.
            _stopped = stop.wait_for(|stop| *stop) => break,
            ready = socket.readable() => ready,
        };
        if let Err(error) = ready {
            tracing::error!(error = %Chain(&error), "datagrams cannot be waited for");
            return;
        }
        for _ in 0..TURN {
            let (n, from) = match socket.try_recv_from(&mut buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // ICMP error of an earlier answer, whose client is gone.
                Err(_icmp) => continue,
            };
            match server.handle(buffer.get(..n).unwrap_or_default(), Transport::Udp, from.ip()) {
                Todo::Nothing => {}
                // A reply that does not fit into the socket's buffer is lost like any datagram: the
                // client asks again.
                Todo::Reply(bytes) => drop(socket.try_send_to(&bytes, from)),
                Todo::Forward(forward) => {
                    let (server, socket) = (Arc::clone(&server), Arc::clone(&socket));
                    under_way.spawn(async move {
                        if let Some(bytes) = server.finish(*forward).await {
                            // A lost reply, as above.
                            drop(socket.send_to(&bytes, from).await);
                        }
                    });
                }
            }
        }
        while under_way.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
    while under_way.join_next().await.is_some() {}
}
