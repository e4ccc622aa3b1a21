//! Servers that say who they are and whom they see.

use anyhow::{Context, Result};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    thread,
};

/// Connections that are served at a time.
const AT_ONCE: usize = 40;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// What it calls itself; where nothing is given, the address that it was reached at.
    #[arg(long)]
    name: Option<String>,
    /// Where it listens, over TCP and UDP.
    #[arg(long = "listen", required = true, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
}

/// Listens everywhere, says `ready`, and answers on threads of its own.
pub(crate) fn start(serve: &Serve) -> Result<()> {
    for at in &serve.listen {
        let name = serve.name.clone().unwrap_or_else(|| at.to_string());
        let tcp = Arc::new(TcpListener::bind(at).with_context(|| format!("listen on {at}, TCP"))?);
        let udp = UdpSocket::bind(at).with_context(|| format!("listen on {at}, UDP"))?;
        // Many servers in one program have few clients each.
        let threads = if serve.listen.len() > 4 { 2 } else { AT_ONCE };
        for _ in 0..threads {
            let (tcp, name) = (Arc::clone(&tcp), name.clone());
            thread::Builder::new().stack_size(64 << 10).spawn(move || answer(&tcp, &name))?;
        }
        thread::Builder::new().stack_size(64 << 10).spawn(move || echo(&udp, &name))?;
    }
    #[expect(clippy::print_stdout, reason = "whoever started it waits for this line")]
    {
        println!("ready");
    }
    Ok(())
}

/// One connection after the other; one line for each byte.
fn answer(listener: &TcpListener, name: &str) {
    let mut bytes = [0_u8; 256];
    loop {
        // A client that went away before it was accepted is its own affair.
        let Ok((mut stream, peer)) = listener.accept() else { continue };
        // Without it answers of a kept connection would wait for the client's acknowledgement.
        stream.set_nodelay(true).ok();
        let line = format!("{name} {peer}\n");
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            if (0..n).any(|_| stream.write_all(line.as_bytes()).is_err()) {
                break;
            }
        }
    }
}

/// One datagram for each; what came is repeated after the line.
fn echo(socket: &UdpSocket, name: &str) {
    let mut bytes = [0_u8; 2048];
    loop {
        let Ok((n, peer)) = socket.recv_from(&mut bytes) else { continue };
        let mut answer = format!("{name} {peer}\n").into_bytes();
        answer.extend(bytes.get(..n).unwrap_or_default());
        // The client may be gone.
        socket.send_to(&answer, peer).ok();
    }
}
