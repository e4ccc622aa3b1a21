//! A registry on loopback: the pull half of the distribution interface, with credentials and with faults.
//!
//! One thread accepts, and one serves each connection, over plain HTTP or TLS. Content is in memory. Each request is kept
//! for the tests, and each blob's sent bytes are counted. All threads end when the value is dropped.

mod auth;
mod content;
mod fault;
mod http;
mod serve;

pub use auth::Auth;
pub use content::{Encoding, PushedImage};
pub use fault::{Fault, Part};
pub use serve::Asked;

use anyhow::{Context, Result};
use content::Content;
use fault::Faults;
use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Connections at once; more are refused.
const MOST_CONNECTIONS: usize = 256;
/// Requests that are kept.
const MOST_REQUESTS: usize = 10_000;

/// The state that all connections share.
pub(crate) struct State {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) ended: AtomicBool,
    pub(crate) inner: Mutex<Inner>,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) content: Content,
    pub(crate) auth: Auth,
    pub(crate) faults: Faults,
    pub(crate) asked: Vec<Asked>,
    pub(crate) sent: HashMap<String, u64>,
    /// Blobs that are being sent now.
    pub(crate) sending: usize,
    pub(crate) connections: usize,
    /// Bytes of a blob that are sent in a second.
    pub(crate) rate: Option<u64>,
}

impl State {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A running registry.
pub struct Registry {
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("address", &self.state.address).finish_non_exhaustive()
    }
}

impl Registry {
    /// Starts a registry over plain HTTP, which is empty and asks for no credential.
    ///
    /// # Errors
    /// No port is free.
    pub fn start() -> Result<Registry> {
        Registry::start_with(None)
    }

    /// The same over TLS.
    ///
    /// # Errors
    /// No port is free.
    pub fn start_with(tls: Option<rustls::ServerConfig>) -> Result<Registry> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let address = listener.local_addr().context("the registry's address")?;
        let (tls, ended, inner) = (tls.map(Arc::new), AtomicBool::new(false), Mutex::default());
        let state = Arc::new(State { address, tls, ended, inner });
        let served = Arc::clone(&state);
        let accepting = std::thread::spawn(move || accept(&listener, &served));
        Ok(Registry { state, accepting: Some(accepting) })
    }

    /// Address and port, as the first part of an image's name.
    pub fn host(&self) -> String {
        self.state.address.to_string()
    }

    /// The name of an image here.
    pub fn image(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Who may pull.
    pub fn set_auth(&self, auth: Auth) {
        self.state.lock().auth = auth;
    }

    /// Adds a fault. Each takes effect in the order in which it was added.
    pub fn add_fault(&self, fault: Fault) {
        self.state.lock().faults.add(fault);
    }

    /// Ends all faults and the limit of the rate; stalled answers go on.
    pub fn heal(&self) {
        let mut inner = self.state.lock();
        inner.faults = Faults::default();
        inner.rate = None;
    }

    /// Limits how many bytes of each blob are sent in a second.
    pub fn set_rate(&self, bytes: u64) {
        self.state.lock().rate = Some(bytes);
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().asked.clone()
    }

    /// Bytes of blobs sent so far, of all blobs together.
    pub fn sent(&self) -> u64 {
        self.state.lock().sent.values().sum()
    }

    /// Blobs that are being sent now: a connection that its client has closed is no longer counted.
    pub fn sending(&self) -> usize {
        self.state.lock().sending
    }

    /// Forgets requests and sent bytes.
    pub fn forget(&self) {
        let mut inner = self.state.lock();
        inner.asked.clear();
        inner.sent.clear();
    }

    /// Changes the content.
    pub(crate) fn with_content<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.state.lock().content)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        // Wakes the accepting thread. A connection that fails has woken it too.
        drop(TcpStream::connect_timeout(&self.state.address, Duration::from_secs(1)));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let mut inner = state.lock();
        if inner.connections >= MOST_CONNECTIONS {
            continue;
        }
        inner.connections += 1;
        drop(inner);
        let state = Arc::clone(state);
        std::thread::spawn(move || {
            // A client that leaves in the middle is no error of the registry.
            drop(serve::connection(&state, stream));
            state.lock().connections -= 1;
        });
    }
}

/// Keeps a request, within the bound.
pub(crate) fn note(inner: &mut Inner, asked: Asked) {
    if inner.asked.len() < MOST_REQUESTS {
        inner.asked.push(asked);
    }
}

#[cfg(test)]
mod tests;
