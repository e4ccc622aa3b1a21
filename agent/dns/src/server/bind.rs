//! What questions come by: the sockets that another `berth dns` handed over, or new ones.
//!
//! New ones are bound with SO_REUSEPORT, so that one which knows of no handing over does not stand in the way.

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
    /// Takes those of this address out of `handed`; makes what is not there.
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

    /// To hand over.
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
        // Streams of one that has just died are not yet forgotten.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)?;
    if kind == SocketType::STREAM {
        listen(&socket, 128)?;
    }
    Ok(socket)
}
