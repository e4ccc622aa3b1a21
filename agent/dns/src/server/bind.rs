//! Sockets that the next `berth dns` can bind beside ours.

use crate::error::Error;
use rustix::{
    fd::OwnedFd,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
};
use std::net::SocketAddr;
use tokio::net::{TcpListener, UdpSocket};

fn bound(at: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    if kind == SocketType::STREAM {
        // Streams of one that has just died are not yet forgotten.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)?;
    Ok(socket)
}

/// A socket for datagrams.
pub(super) fn udp(address: SocketAddr) -> Result<UdpSocket, Error> {
    let failed = |source| Error::Listen { address, source };
    let socket = bound(address, SocketType::DGRAM).map_err(|e| failed(e.into()))?;
    UdpSocket::from_std(socket.into()).map_err(failed)
}

/// A socket for streams.
pub(super) fn tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    let failed = |source| Error::Listen { address, source };
    let socket = bound(address, SocketType::STREAM).map_err(|e| failed(e.into()))?;
    listen(&socket, 128).map_err(|e| failed(e.into()))?;
    TcpListener::from_std(socket.into()).map_err(failed)
}
