//! Sockets for questions: those that another `berth dns` handed over, or new ones.
//!
//! New sockets are bound with SO_REUSEPORT, so that they do not conflict with a `berth dns` that
//! cannot hand over.

use crate::error::Error;
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt},
};
use std::{net::SocketAddr, os::fd::AsFd as _, sync::Arc};
use tokio::net::{TcpListener, UdpSocket};

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) udp: Arc<UdpSocket>,
    pub(super) tcp: Arc<TcpListener>,
}

impl Pair {
    /// Takes the sockets of this address out of `handed` and binds the missing ones.
    pub(super) fn at(address: SocketAddr, handed: &mut Vec<OwnedFd>) -> Result<Pair, Error> {
        let failed = |source| Error::Listen { address, source };
        let mut take = |kind| {
            let found = handed.iter().position(|socket| is(socket, address, kind));
            found.map_or_else(|| bound(address, kind), |at| Ok(handed.swap_remove(at)))
        };
        let udp = take(SocketType::DGRAM).map_err(|e| failed(e.into()))?;
        let tcp = take(SocketType::STREAM).map_err(|e| failed(e.into()))?;
        Ok(Pair {
            udp: Arc::new(UdpSocket::from_std(udp.into()).map_err(failed)?),
            tcp: Arc::new(TcpListener::from_std(tcp.into()).map_err(failed)?),
        })
    }

    /// The descriptors for a handover.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.udp.as_fd(), self.tcp.as_fd()]
    }
}

fn is(socket: &OwnedFd, address: SocketAddr, kind: SocketType) -> bool {
    let at = getsockname(socket).ok().and_then(|at| SocketAddr::try_from(at).ok());
    at == Some(address) && sockopt::socket_type(socket) == Ok(kind)
}

fn bound(at: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    if kind == SocketType::STREAM {
        // Connections of a server that has just died may still be in TIME_WAIT.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)?;
    if kind == SocketType::STREAM {
        listen(&socket, 128)?;
    }
    Ok(socket)
}
