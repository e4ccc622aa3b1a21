//! A TCP proxy before the API server, with faults: connections are refused, or cut all at once. Encryption is from end
//! to end, so the node's certificate reaches the API server.
//!
//! Owns a thread that accepts and two for each connection; they end with the value. A side that ends its connection
//! ends the other one too.

use anyhow::{Context, Result};
use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Deadline of a connection to the API server.
const DIAL: Duration = Duration::from_secs(5);

/// The running proxy.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    refuses: AtomicBool,
    ends: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl FaultProxy {
    /// Starts to listen on a free port of this machine's address `host`, and hands on to `server`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) fn start(host: &str, server: SocketAddr) -> Result<FaultProxy> {
        let listener = TcpListener::bind((host, 0)).with_context(|| format!("cannot listen on {host}"))?;
        let address = listener.local_addr().context("cannot read a socket's address")?;
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || accept(&listener, server, &shared));
        Ok(FaultProxy { address, state })
    }

    /// Address of the proxy.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        for stream in self.state.open().drain(..) {
            // A connection that its ends closed already is cut.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Refuses new connections from now on, or no longer.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::SeqCst);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; where this fails the thread waits for the next client.
        TcpStream::connect_timeout(&self.address, DIAL).ok();
        self.cut();
    }
}

impl State {
    fn open(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, state: &Arc<State>) {
    for client in listener.incoming() {
        if state.ends.load(Ordering::SeqCst) {
            return;
        }
        if state.refuses.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(client) = client else { continue };
        let state = Arc::clone(state);
        // The client sees the failure of a connection as its end.
        thread::spawn(move || hand_on(&client, server, &state).ok());
    }
}

fn hand_on(client: &TcpStream, server: SocketAddr, state: &State) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&server, DIAL)?;
    for stream in [client, &server] {
        stream.set_nodelay(true)?;
    }
    {
        let mut open = state.open();
        // Ended connections are forgotten here, so that the list stays as long as there are connections.
        open.retain(|stream| stream.peer_addr().is_ok());
        open.push(client.try_clone()?);
        open.push(server.try_clone()?);
    }
    let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let back = thread::spawn(move || copy(&from_server, &to_client));
    copy(client, &server);
    back.join().ok();
    Ok(())
}

/// Copies until one side ends, and then ends both.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    io::copy(&mut from, &mut to).ok();
    for stream in [from, to] {
        stream.shutdown(Shutdown::Both).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_proxy_hands_on_cuts_and_refuses() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        thread::spawn(move || {
            for stream in server.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() {
                        stream.write_all(&byte).unwrap();
                    }
                });
            }
        });
        let proxy = FaultProxy::start("127.0.0.1", address).unwrap();
        let echo = |stream: &mut TcpStream| {
            let mut byte = [0];
            stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte)).is_ok() && byte == *b"x"
        };
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        assert!(echo(&mut stream) && echo(&mut stream));
        proxy.cut();
        assert!(!echo(&mut stream));
        proxy.refuse(true);
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        assert!(!echo(&mut refused));
        proxy.refuse(false);
        assert!(echo(&mut TcpStream::connect(proxy.address()).unwrap()));
    }
}
