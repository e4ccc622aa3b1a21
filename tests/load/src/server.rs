//! `serve`: servers that answer with their name and the client's address.

use anyhow::{Context, Result};
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use std::{
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
};

/// Number of connections that one listener serves at a time.
const AT_ONCE: usize = 40;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// Name in the answers; by default the address that the client reached.
    #[arg(long)]
    name: Option<String>,
    /// Addresses to listen on, over TCP and UDP.
    #[arg(long = "listen", required_unless_present = "any", value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Listens on this port of all addresses, which may be thousands. The name in an answer is the address
    /// that the client reached.
    #[arg(long, value_name = "PORT", conflicts_with = "name")]
    any: Option<u16>,
}

/// Starts all listeners on threads of their own, then prints `ready`.
pub(crate) fn start(serve: &Serve) -> Result<()> {
    for at in &serve.listen {
        let name = serve.name.clone().unwrap_or_else(|| at.to_string());
        let tcp = Arc::new(TcpListener::bind(at).with_context(|| format!("listen on {at}, TCP"))?);
        let udp = UdpSocket::bind(at).with_context(|| format!("listen on {at}, UDP"))?;
        // A program with many servers has few clients of each.
        let threads = if serve.listen.len() > 4 { 2 } else { AT_ONCE };
        for _ in 0..threads {
            let (tcp, name) = (Arc::clone(&tcp), name.clone());
            thread::Builder::new().stack_size(64 << 10).spawn(move || answer(&tcp, Some(&name)))?;
        }
        thread::Builder::new().stack_size(64 << 10).spawn(move || echo(&udp, &name))?;
    }
    if let Some(port) = serve.any {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let tcp = Arc::new(TcpListener::bind(at).with_context(|| format!("listen on {at}, TCP"))?);
        let udp = UdpSocket::bind(at).with_context(|| format!("listen on {at}, UDP"))?;
        setsockopt(&udp, sockopt::Ipv4PacketInfo, &true).context("set IP_PKTINFO")?;
        for _ in 0..AT_ONCE {
            let tcp = Arc::clone(&tcp);
            thread::Builder::new().stack_size(64 << 10).spawn(move || answer(&tcp, None))?;
        }
        thread::spawn(move || echo_as_asked(&udp, port));
    }
    #[expect(clippy::print_stdout, reason = "whoever started it waits for this line")]
    {
        println!("ready");
    }
    Ok(())
}

/// Serves one connection after the other, with one line for each byte. Without a name the line holds the
/// address that the client dialled.
fn answer(listener: &TcpListener, name: Option<&str>) {
    let mut bytes = [0_u8; 256];
    loop {
        // The client may have closed the connection before it was accepted.
        let Ok((mut stream, peer)) = listener.accept() else { continue };
        // Without TCP_NODELAY the answers of a kept connection would wait for the client's acknowledgement.
        stream.set_nodelay(true).ok();
        let line = match (name, stream.local_addr()) {
            (Some(name), _) => format!("{name} {peer}\n"),
            (None, Ok(own)) => format!("{own} {peer}\n"),
            // The client has already closed the connection.
            (None, Err(_)) => continue,
        };
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            if (0..n).any(|_| stream.write_all(line.as_bytes()).is_err()) {
                break;
            }
        }
    }
}

/// As [`echo`], with each answer sent from the address that the request was sent to.
fn echo_as_asked(socket: &UdpSocket, port: u16) {
    let mut bytes = [0_u8; 2048];
    loop {
        let (n, peer, at) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let mut space = cmsg_space!(libc::in_pktinfo);
            let received =
                recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty());
            let Ok(received) = received else { continue };
            let at = received.cmsgs().into_iter().flatten().find_map(|c| match c {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
                _ => None,
            });
            let (Some(peer), Some(at)) = (received.address, at) else { continue };
            (received.bytes, peer, at)
        };
        let own = Ipv4Addr::from(at.ipi_addr.s_addr.to_ne_bytes());
        let mut answer = format!("{own}:{port} {peer}\n").into_bytes();
        answer.extend(bytes.get(..n).unwrap_or_default());
        let from = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: at.ipi_addr, ..at };
        // The client may be gone.
        let control = [ControlMessage::Ipv4PacketInfo(&from)];
        sendmsg(socket.as_raw_fd(), &[IoSlice::new(&answer)], &control, MsgFlags::empty(), Some(&peer)).ok();
    }
}

/// Answers each datagram with the line, followed by the datagram's own bytes.
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
