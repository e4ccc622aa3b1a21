//! The connections to one API server as one identity.
//!
//! - One connection carries requests, others carry watches. A consumer that is slow to read its watch holds the
//!   window of its connection, and a request must not wait for that. The node's lease has streams kept free.
//! - A connection for watches has at most [`STREAMS`](crate::connection::STREAMS) streams by the pool's own count.
//! - A connection that closes to new streams (GOAWAY) is left to end its streams, and another one is opened.
//! - One dial of a kind goes on at a time. Dials wait after failures: 0.1 s, doubling to 5 s, with jitter. A
//!   connection without an answer, or one that breaks within a second, counts as a failure.
//! - The identity's files are looked at every ten seconds, before each dial, and when the server knows the identity no
//!   more. Where certificate or server changed, all connections are cut. Watches go on from their last version.
//!
//! Tasks: one that looks at the identity, one for each dial, one for each connection. They end with the pool.
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

pub use body::Body;

/// First wait after a dial that failed.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Longest wait between two dials. Measured: 5 s instead of 30 s costs 11 dials in half a minute, and an outage
/// is over 20 s sooner.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Time between two looks at the identity's files.
const LOOK: Duration = Duration::from_secs(10);

/// Connections of a kind at most.
const MOST: usize = 32;

/// Connections of HTTP/1.1 at most: one for each request under way and each watch.
const MOST_HTTP1: usize = 512;

/// Leases in a row that fail before all connections are made anew (the kubelet's `onRepeatedHeartbeatFailure`).
const FAILED_LEASES: u32 = 2;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// A request with an answer of known length.
    Request,
    /// The node's lease: a request that waits for no other.
    Lease,
    /// A watch.
    Watch,
}

/// What a pool shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// URL of the server.
    pub server: String,
    /// Common name of the client certificate, where there is one.
    pub common_name: Option<String>,
    /// Open connections.
    pub connections: usize,
    /// Open streams.
    pub streams: usize,
    /// The last answer of the server.
    pub last_contact: Option<Now>,
    /// Why there is no connection, or what is wrong with the identity; on one line, with what to do.
    pub problem: Option<String>,
}

/// Connections to one API server; clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    source: Source,
    state: Mutex<State>,
    /// A connection is there, has ended, or has room again; or a dial has failed.
    changed: Notify,
    /// One load of the identity at a time.
    loading: tokio::sync::Mutex<()>,
    /// The server is thought to know streaming lists.
    streams_lists: AtomicBool,
    looking: Mutex<Option<AbortHandle>>,
}

struct State {
    identity: Arc<Identity>,
    requests: Set,
    watches: Set,
    /// Connections that end their last streams.
    draining: Vec<Weak<Connection>>,
    /// The server's proxy speaks HTTP/1.1 alone.
    http1: bool,
    dial_problem: Option<String>,
    identity_problem: Option<String>,
    last_contact: Option<Now>,
    failed_leases: u32,
    /// When the identity was loaded.
    loaded: Instant,
}

/// The connections of one kind.
#[derive(Default)]
struct Set {
    open: Vec<Arc<Connection>>,
    dialing: bool,
    /// Failures in a row that the next dial waits for.
    failures: u32,
    /// Failures before the last dial that went well. They count again if its connection turns out to be useless.
    doubt: u32,
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
        let identity = Arc::new(source.load(None).await?);
        let state = State {
            identity,
            requests: Set::default(),
            watches: Set::default(),
            draining: Vec::new(),
            http1: false,
            dial_problem: None,
            identity_problem: None,
            last_contact: None,
            failed_leases: 0,
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
        Ok(Pool(shared))
    }

    /// Looks at the identity's files now, and takes over what has changed.
    pub async fn look(&self) {
        self.0.look().await;
    }

    /// Cuts all connections. Requests under way fail, watches are opened anew.
    pub fn close_all(&self) {
        lock(&self.0.state).cut_all();
        self.0.changed.notify_waiters();
    }

    /// Tells whether the node's lease was renewed. After two failures in a row all connections are cut: they may
    /// lead to a server that is gone.
    pub fn lease_renewed(&self, renewed: bool) {
        let close = {
            let mut state = lock(&self.0.state);
            state.failed_leases = if renewed { 0 } else { state.failed_leases.saturating_add(1) };
            let close = state.failed_leases >= FAILED_LEASES;
            if close {
                state.failed_leases = 0;
            }
            close
        };
        if close {
            tracing::warn!(
                "the node's lease was not renewed twice; all connections to the API server are made anew"
            );
            self.close_all();
        }
    }

    /// The identity that new connections have.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&lock(&self.0.state).identity)
    }

    /// What there is.
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
            problem: state.problem(),
        }
    }

    /// A stream, as soon as a connection has room for it.
    ///
    /// # Errors
    /// There is none until the deadline: the text says why the last dial failed.
    pub(crate) async fn stream(&self, traffic: Traffic, deadline: Instant) -> Result<Stream, Error> {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // From here on no change is missed.
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

    /// Whether the server is thought to know streaming lists.
    pub(crate) fn streams_lists(&self) -> bool {
        self.0.streams_lists.load(Ordering::Relaxed)
    }

    /// Remembers that the server refuses streaming lists.
    pub(crate) fn refuses_streaming_lists(&self) {
        if self.0.streams_lists.swap(false, Ordering::Relaxed) {
            tracing::info!("the API server refuses streaming lists; lists in pages are used");
        }
    }

    /// The server has answered.
    fn heard(&self) {
        lock(&self.0.state).last_contact = Some(berth_sys::clock::now());
    }

    /// The server does not know the identity: a new one may be there already.
    async fn unknown(&self, identity: &Arc<Identity>) {
        let refused = {
            let mut state = lock(&self.0.state);
            // A plugin whose credentials are refused for good is not run for each request.
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
    /// A stream of a connection with room; without one, a dial is begun where none goes on.
    fn take(shared: &Arc<Shared>, traffic: Traffic) -> Option<Stream> {
        let mut state = lock(&shared.state);
        state.sort_out();
        let (http1, identity) = (state.http1, Arc::clone(&state.identity));
        let set = state.set(traffic);
        if let Some(connection) = set.open.iter().find(|c| c.reserve(spare(traffic, c))) {
            let connection = Arc::clone(connection);
            return Some(Stream { connection, identity, shared: Arc::clone(shared) });
        }
        let most = match traffic {
            _ if http1 => MOST_HTTP1,
            Traffic::Watch => MOST,
            // Requests wait for room on their one connection.
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
        // The dial must not keep the pool: it would end after its owner.
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

    /// Loads the identity where its files have changed.
    async fn look(&self) {
        let identity = Arc::clone(&lock(&self.state).identity);
        let stale = tokio::task::spawn_blocking(move || identity.is_stale()).await;
        if stale.unwrap_or(false) {
            self.load().await;
        }
    }

    /// Loads the identity, and cuts all connections where they are another's now.
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
                        "the identity has changed; all connections to the API server are made anew"
                    );
                    state.cut_all();
                }
            }
            Err(error) => {
                let text = berth_core::error::Chain(&error).to_string();
                if state.identity_problem.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = text,
                        "cannot read the identity anew; the last one is used further"
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

    /// Moves connections that take no new stream to those that drain.
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

impl Set {
    /// What the end of a connection says about the next dial.
    fn learn(&mut self, connection: &Connection) {
        // One of HTTP/1.1 ends with its request.
        if !connection.is_http2() {
            return;
        }
        if connection.was_useless() {
            self.failures = self.failures.max(self.doubt).saturating_add(1);
        } else {
            self.doubt = 0;
        }
    }

    /// Wait before the next dial.
    fn wait(&self, dice: u16) -> Duration {
        let Some(times) = self.failures.checked_sub(1) else { return Duration::ZERO };
        let whole = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(times.min(16))).min(LONGEST_WAIT);
        // Between the half and the whole of it.
        whole / 2 + (whole / 2) * u32::from(dice) / u32::from(u16::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_wait_longer_after_each_failure_up_to_five_seconds() {
        let waits = |dice| {
            (0..9)
                .map(move |failures| Set { failures, ..Set::default() }.wait(dice).as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(u16::MAX), [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(waits(0), [0, 50, 100, 200, 400, 800, 1600, 2500, 2500]);
    }
}
