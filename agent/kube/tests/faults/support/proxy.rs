//! A TCP proxy with faults.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

/// Treatment of connections by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// New connections are reset, existing ones continue.
    Refuse,
    /// Nothing is forwarded, and nothing is closed.
    Stall,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    mode: watch::Sender<Mode>,
    /// Connections with a lower number are reset.
    number: watch::Sender<u64>,
    dials: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, modes) = watch::channel(Mode::Pass);
        let (number, numbers) = watch::channel(0);
        let dials = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&dials);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                if *modes.borrow() == Mode::Refuse {
                    client.set_zero_linger().unwrap();
                    continue;
                }
                tokio::spawn(forward(client, to, modes.clone(), numbers.clone()));
            }
        });
        Proxy { port, mode, number, dials }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Resets all connections.
    pub(crate) fn cut(&self) {
        self.number.send_modify(|n| *n += 1);
    }

    /// Number of connections since the last call.
    pub(crate) fn dials(&self) -> usize {
        self.dials.swap(0, Ordering::Relaxed)
    }
}

async fn forward(
    client: TcpStream,
    to: u16,
    modes: watch::Receiver<Mode>,
    mut numbers: watch::Receiver<u64>,
) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    client.set_zero_linger().unwrap();
    // The kernel's own timeouts would be minutes of paused time.
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    numbers.borrow_and_update();
    tokio::select! {
        () = copy(client_read, server_write, modes.clone()) => {}
        () = copy(server_read, client_write, modes) => {}
        _ = numbers.changed() => {}
    }
}

/// Copies until the end of the stream. Dropping both sides passes the end on.
async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        // A stalled connection is not even read.
        let passes = async { modes.wait_for(|mode| *mode != Mode::Stall).await.is_ok() };
        if !passes.await {
            return;
        }
        tokio::select! {
            biased;
            () = async { drop(modes.wait_for(|mode| *mode == Mode::Stall).await) } => {}
            read = from.read(&mut buffer) => match read {
                Ok(n) if n > 0 => {
                    if to.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
                _ => {
                    // The last bytes arrive before the end.
                    sleep(Duration::from_millis(1)).await;
                    return;
                }
            },
        }
    }
}
