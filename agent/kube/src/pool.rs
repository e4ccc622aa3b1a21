//! Pool of the connections to one API server with one identity.
//!
//! - One connection carries requests, the others carry watches. A consumer that reads its watch slowly fills
//!   the window of its connection, and requests must not wait for that. Some streams are reserved for the
//!   node's lease.
//! - A connection for watches has at most [`STREAMS`](crate::connection::STREAMS) streams by the pool's own
//!   count.
//! - A connection that refuses new streams (GOAWAY) stays open until its streams end, and another one is
//!   opened.
//! - At most one dial per kind of connection is in progress. Dials wait after failures: 0.1 s, doubling to 5
//!   s, with jitter. A connection without an answer, or one that breaks within a second, counts as a failure.
//! - The identity's files are checked every ten seconds, before each dial, and when the server refuses the
//!   identity (401). If certificate or server have changed, all connections are cut. Watches continue from
//!   their last version.
//! - A node that has no identity yet has a pool that waits for one: nothing is dialled until its kubeconfig can be used.
//!
//! Tasks: one that checks the identity, one for each dial, one for each connection. They end with the pool.
//! Invariant: no connection outlives its identity.

use crate::{
    Error,
    connection::{Connection, SPARE_FOR_LEASE, spare_for_watches},
    identity::{Identity, Source},
};
use berth_core::{sync::lock, time::Now};
use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

mod body;
mod service;
mod set;

pub use body::Body;
use set::Set;

/// Interval of checks of the identity's files.
const LOOK: Duration = Duration::from_secs(10);

/// Maximum of connections of a kind.
const MOST: usize = 32;

/// Maximum of HTTP/1.1 connections: one for each request in progress and each watch.
const MOST_HTTP1: usize = 512;

/// Consecutive failures of the lease after which all connections are replaced (the kubelet's
/// `onRepeatedHeartbeatFailure`).
const FAILED_LEASES: u32 = 2;

/// Purpose of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// A request with an answer of limited length.
    Request,
    /// The node's lease: a request that never waits for other requests.
    Lease,
    /// A watch.
    Watch,
}

/// State of a pool, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// URL of the server.
    pub server: String,
    /// Common name of the client certificate, if there is one.
    pub common_name: Option<String>,
    /// Number of open connections.
    pub connections: usize,
    /// Number of open streams.
    pub streams: usize,
    /// Time of the server's last answer.
    pub last_contact: Option<Now>,
    /// Time of the last renewal of the node's lease.
    pub lease_renewed: Option<Now>,
    /// The reason why there is no connection, or the identity's problem; on one line, with the remedy.
    pub problem: Option<String>,
}

/// Pool of connections to one API server; clones share the connections.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    source: Source,
    state: Mutex<State>,
    /// Notified when a connection is opened, ends or has a free stream again, or a dial fails.
    changed: Notify,
    /// Held during a load of the identity, so that one load runs at a time.
    loading: tokio::sync::Mutex<()>,
    /// Whether the server is assumed to support streaming lists.
    streams_lists: AtomicBool,
    looking: Mutex<Option<AbortHandle>>,
}

struct State {
    identity: Arc<Identity>,
    requests: Set,
    watches: Set,
    /// Connections whose last streams are ending.
    draining: Vec<Weak<Connection>>,
    /// Whether the server's proxy supports HTTP/1.1 only.
    http1: bool,
    dial_problem: Option<String>,
    identity_problem: Option<String>,
    last_contact: Option<Now>,
    failed_leases: u32,
    lease_renewed: Option<Now>,
    /// Time of the identity's load.
    loaded: Instant,
}

/// A stream of a connection, counted until it is dropped.
pub(crate) struct Stream {
    pub(crate) connection: Arc<Connection>,
    pub(crate) identity: Arc<Identity>,
    shared: Arc<Shared>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.release();
        self.shared.changed.notify_waiters();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.looking).take() {
            task.abort();
        }
        lock(&self.state).cut_all();
    }
}

impl Pool {
    /// A pool without a connection; the first request opens one.
    ///
    /// # Errors
    /// The identity cannot be read.
    pub async fn new(source: Source) -> Result<Pool, Error> {
        let identity = source.load(None).await?;
        Ok(Pool::with(source, identity, None))
    }

    /// A pool whose kubeconfig is missing or cannot be used yet. Requests wait and fail for this reason until the
    /// kubeconfig has changed to one that can be used. `bootstrap` is the identity by which the node gets its own; the
    /// server is taken from it until then.
    pub fn waiting(source: Source, bootstrap: &Identity, reason: &str) -> Pool {
        let identity = Identity::awaited(&source, bootstrap);
        Pool::with(source, identity, Some(reason.to_owned()))
    }

    /// A pool of an identity that comes from no kubeconfig and does not change.
    pub fn of(identity: Identity) -> Pool {
        Pool::with(Source { kubeconfig: std::path::PathBuf::new(), context: None }, identity, None)
    }

    fn with(source: Source, identity: Identity, problem: Option<String>) -> Pool {
        let state = State {
            identity: Arc::new(identity),
            requests: Set::default(),
            watches: Set::default(),
            draining: Vec::new(),
            http1: false,
            dial_problem: None,
            identity_problem: problem,
            last_contact: None,
            failed_leases: 0,
            lease_renewed: None,
            loaded: Instant::now(),
        };
        let shared = Arc::new(Shared {
            source,
            state: Mutex::new(state),
            changed: Notify::new(),
            loading: tokio::sync::Mutex::new(()),
            streams_lists: AtomicBool::new(true),
            looking: Mutex::new(None),
        });
        let weak = Arc::downgrade(&shared);
        let looking = tokio::spawn(async move {
            loop {
                sleep(LOOK).await;
                let Some(shared) = weak.upgrade() else { return };
                shared.look().await;
            }
        });
        *lock(&shared.looking) = Some(looking.abort_handle());
        Pool(shared)
    }

    /// Checks the identity's files now, and loads the identity if they have changed.
    pub async fn look(&self) {
        self.0.look().await;
    }

    /// Cuts all connections. Requests in progress fail, watches are opened again.
    pub fn close_all(&self) {
        lock(&self.0.state).cut_all();
        self.0.changed.notify_waiters();
    }

    /// Records whether the node's lease was renewed. After two consecutive failures all connections are cut,
    /// because they may lead to a server that is gone.
    pub fn lease_renewed(&self, renewed: bool) {
        let close = {
            let mut state = lock(&self.0.state);
            state.failed_leases = if renewed { 0 } else { state.failed_leases.saturating_add(1) };
            if renewed {
                state.lease_renewed = Some(berth_sys::clock::now());
            }
            let close = state.failed_leases >= FAILED_LEASES;
            if close {
                state.failed_leases = 0;
            }
            close
        };
        if close {
            tracing::warn!(
                "the node's lease was not renewed twice; all connections to the API server are made again"
            );
            self.close_all();
        }
    }

    /// The identity of new connections.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&lock(&self.0.state).identity)
    }

    /// Waits until there are credentials to connect with.
    pub async fn identified(&self) {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // No change is missed from here on.
            changed.as_mut().enable();
            if self.identity().is_usable() {
                return;
            }
            changed.await;
        }
    }

    /// The pool's present state.
    pub fn view(&self) -> View {
        let mut state = lock(&self.0.state);
        state.sort_out();
        let draining: Vec<_> = state.draining.iter().filter_map(Weak::upgrade).collect();
        let all = || state.requests.open.iter().chain(&state.watches.open).chain(&draining);
        View {
            server: state.identity.server.url.clone(),
            common_name: state.identity.certificate.as_ref().map(|c| c.common_name.clone()),
            connections: all().count(),
            streams: all().map(|c| c.streams()).sum(),
            last_contact: state.last_contact,
            lease_renewed: state.lease_renewed,
            problem: state.problem(),
        }
    }

    /// Returns a stream as soon as a connection has a free one.
    ///
    /// # Errors
    /// No stream is free before the deadline. The text has the reason of the last failed dial.
    pub(crate) async fn stream(&self, traffic: Traffic, deadline: Instant) -> Result<Stream, Error> {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // No change is missed from here on.
            changed.as_mut().enable();
            if let Some(stream) = Shared::take(&self.0, traffic) {
                return Ok(stream);
            }
            if timeout_at(deadline, changed).await.is_err() {
                let state = lock(&self.0.state);
                let reason = state.problem().unwrap_or_else(|| "no connection has room in time".to_owned());
                return Err(Error::Unreachable { server: state.identity.server.url.clone(), reason });
            }
        }
    }

    /// Whether the server is assumed to support streaming lists.
    pub(crate) fn streams_lists(&self) -> bool {
        self.0.streams_lists.load(Ordering::Relaxed)
    }

    /// Records that the server refuses streaming lists.
    pub(crate) fn refuses_streaming_lists(&self) {
        if self.0.streams_lists.swap(false, Ordering::Relaxed) {
            tracing::info!("the API server refuses streaming lists; lists in pages are used");
        }
    }

    /// Records the time of an answer of the server.
    fn heard(&self) {
        lock(&self.0.state).last_contact = Some(berth_sys::clock::now());
    }

    /// Reacts to a 401 of the server: a new identity may exist already.
    async fn unknown(&self, identity: &Arc<Identity>) {
        let refused = {
            let mut state = lock(&self.0.state);
            // A plugin whose credentials are refused permanently is not run for each request.
            let refused = Arc::ptr_eq(&state.identity, identity)
                && identity.is_made()
                && state.loaded.elapsed() >= LOOK;
            if refused {
                state.identity = Arc::new(identity.refused());
            }
            refused
        };
        if refused { self.0.load().await } else { self.0.look().await }
    }
}

impl Shared {
    /// Takes a free stream of a connection. If no stream is free and no dial is in progress, a dial starts.
    fn take(shared: &Arc<Shared>, traffic: Traffic) -> Option<Stream> {
        let mut state = lock(&shared.state);
        state.sort_out();
        let (http1, identity) = (state.http1, Arc::clone(&state.identity));
        if !identity.is_usable() {
            return None;
        }
        let set = state.set(traffic);
        if let Some(connection) = set.open.iter().find(|c| c.reserve(spare(traffic, c))) {
            let connection = Arc::clone(connection);
            return Some(Stream { connection, identity, shared: Arc::clone(shared) });
        }
        let most = match traffic {
            _ if http1 => MOST_HTTP1,
            Traffic::Watch => MOST,
            // Requests wait for a free stream of their one connection.
            Traffic::Request | Traffic::Lease => 1,
        };
        if !set.dialing && set.open.len() < most {
            set.dialing = true;
            let wait = set.wait(rand::random());
            tokio::spawn(Shared::dial(Arc::downgrade(shared), traffic, wait));
        }
        None
    }

    async fn dial(weak: Weak<Shared>, traffic: Traffic, wait: Duration) {
        sleep(wait).await;
        let Some(shared) = weak.upgrade() else { return };
        shared.look().await;
        let identity = Arc::clone(&lock(&shared.state).identity);
        let ended = {
            let weak = weak.clone();
            move || {
                if let Some(shared) = weak.upgrade() {
                    shared.changed.notify_waiters();
                }
            }
        };
        // The dial's task must not own the pool: the pool would then outlive its owner.
        drop(shared);
        let dialed = Connection::dial(&identity, ended).await;
        let Some(shared) = weak.upgrade() else { return };
        {
            let mut state = lock(&shared.state);
            let current = Arc::clone(&state.identity);
            state.set(traffic).dialing = false;
            match dialed {
                Ok(connection) if current.shares_connections(&identity) => {
                    if state.dial_problem.take().is_some() {
                        tracing::info!(server = identity.server.url, "the API server can be reached");
                    }
                    state.http1 = !connection.is_http2();
                    let set = state.set(traffic);
                    set.doubt = set.doubt.max(set.failures);
                    set.failures = 0;
                    set.open.push(Arc::new(connection));
                }
                // The identity was replaced meanwhile.
                Ok(connection) => connection.cut(),
                Err(reason) => {
                    let set = state.set(traffic);
                    set.failures = set.failures.saturating_add(1);
                    if state.dial_problem.as_ref() != Some(&reason) {
                        tracing::warn!(server = identity.server.url, reason, "cannot reach the API server");
                    }
                    state.dial_problem = Some(reason);
                }
            }
        }
        shared.changed.notify_waiters();
    }

    /// Loads the identity if its files have changed.
    async fn look(&self) {
        let identity = Arc::clone(&lock(&self.state).identity);
        let stale = tokio::task::spawn_blocking(move || identity.is_stale()).await;
        if stale.unwrap_or(false) {
            self.load().await;
        }
    }

    /// Loads the identity, and cuts all connections if the new identity cannot use them.
    async fn load(&self) {
        let _one = self.loading.lock().await;
        let last = Arc::clone(&lock(&self.state).identity);
        let loaded = self.source.load(Some(&last)).await;
        let mut state = lock(&self.state);
        state.loaded = Instant::now();
        match loaded {
            Ok(identity) => {
                state.identity_problem = None;
                let shared = last.shares_connections(&identity);
                state.identity = Arc::new(identity);
                if !shared {
                    tracing::info!(
                        "the identity has changed; all connections to the API server are made again"
                    );
                    state.cut_all();
                }
            }
            Err(error) => {
                let text = berth_core::error::Chain(&error).to_string();
                if state.identity_problem.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = text,
                        "cannot read the identity again; the last one is used further"
                    );
                }
                state.identity_problem = Some(text);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    fn set(&mut self, traffic: Traffic) -> &mut Set {
        match traffic {
            Traffic::Watch => &mut self.watches,
            Traffic::Request | Traffic::Lease => &mut self.requests,
        }
    }

    /// Moves connections that accept no new stream to the draining ones.
    fn sort_out(&mut self) {
        let State { requests, watches, draining, .. } = self;
        for set in [requests, watches] {
            let ended: Vec<_> = set.open.extract_if(.., |c| c.is_closed()).collect();
            if set.open.iter().any(|c| c.is_proven()) {
                set.doubt = 0;
            }
            for connection in ended {
                set.learn(&connection);
                if connection.streams() > 0 {
                    draining.push(Arc::downgrade(&connection));
                }
            }
        }
        draining.retain(|c| c.upgrade().is_some_and(|c| c.streams() > 0));
    }

    fn cut_all(&mut self) {
        self.sort_out();
        let draining = self.draining.drain(..).filter_map(|c| c.upgrade());
        for connection in self.requests.open.drain(..).chain(self.watches.open.drain(..)).chain(draining) {
            connection.cut();
        }
    }

    fn problem(&self) -> Option<String> {
        let expired = self.identity.problem(jiff::Timestamp::now());
        self.dial_problem.clone().or_else(|| self.identity_problem.clone()).or(expired)
    }
}

/// Streams that stay free on a connection.
fn spare(traffic: Traffic, connection: &Connection) -> usize {
    match traffic {
        Traffic::Lease => 0,
        Traffic::Request => SPARE_FOR_LEASE,
        Traffic::Watch => spare_for_watches(connection.allowed()),
    }
}
