//! The sockets of the self-test: servers on the loopback device, and clients that dial the Service.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket,
        sockopt::BindToDevice,
    },
};
use std::{
    ffi::OsString,
    fmt, io,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Deadline of a connection, and of a datagram with its answer. Four of them are within the second after which the kubelet
/// gives up a probe by default.
const DEADLINE: Duration = Duration::from_millis(200);

/// The device of all these sockets.
const LOOPBACK: &str = "lo";

/// Numbers of datagrams, so that a late one is not taken for another's.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// What was not answered, through which hooks, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not answered (through {hooks}): {why}")]
pub(super) struct Failure {
    what: &'static str,
    hooks: String,
    why: String,
}

/// The backends of the Service in one family.
#[derive(Debug)]
pub(super) struct Server {
    frontend: SocketAddr,
    tcp: TcpListener,
    udp: UdpSocket,
    tcp_at: SocketAddr,
    udp_at: SocketAddr,
}

impl Server {
    /// Opens the sockets behind a frontend.
    pub(super) fn open(frontend: IpAddr, port: u16) -> io::Result<Server> {
        let any: SocketAddr = (loopback(frontend), 0).into();
        let (tcp, udp) = (TcpListener::bind(any)?, UdpSocket::bind(any)?);
        // Packets from elsewhere are for others, whatever routes say.
        on_loopback(&tcp)?;
        on_loopback(&udp)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        let (tcp_at, udp_at) = (tcp.local_addr()?, udp.local_addr()?);
        Ok(Server { frontend: (frontend, port).into(), tcp, udp, tcp_at, udp_at })
    }

    pub(super) fn frontend(&self) -> SocketAddr {
        self.frontend
    }

    pub(super) fn frontend_address(&self) -> IpAddr {
        self.frontend.ip()
    }

    pub(super) fn address(&self) -> IpAddr {
        self.tcp_at.ip()
    }

    pub(super) fn tcp_port(&self) -> u16 {
        self.tcp_at.port()
    }

    pub(super) fn udp_port(&self) -> u16 {
        self.udp_at.port()
    }

    fn failure(&self, what: &'static str, hooks: &[&str]) -> impl Fn(&dyn fmt::Display) -> Failure {
        let family = if self.frontend.is_ipv6() { 6 } else { 4 };
        let hooks: Vec<String> = hooks.iter().map(|hook| format!("{hook}{family}")).collect();
        move |why| Failure { what, hooks: hooks.join(", "), why: why.to_string() }
    }

    /// Connects to the Service, and receives what its backend sends.
    pub(super) fn connection(&self) -> Result<(), Failure> {
        let end = Instant::now() + DEADLINE;
        let failed = self.failure("a connection of the node", &["connect"]);
        let mut client = self.dial(end).map_err(|error| failed(&error))?;
        let own = client.local_addr().map_err(|error| failed(&error))?;
        let mut served = accept(&self.tcp, own, end).map_err(|error| failed(&error))?;
        served.write_all(b"y").map_err(|error| failed(&error))?;
        wait(&client, PollFlags::POLLIN, end).map_err(|error| failed(&error))?;
        client.read_exact(&mut [0]).map_err(|error| failed(&error))?;
        let failed = self.failure("the question for a connection's peer", &["getpeername"]);
        let peer = client.peer_addr().map_err(|error| failed(&error))?;
        if peer != self.frontend {
            return Err(failed(&format!("it is {peer}, not {}", self.frontend)));
        }
        Ok(())
    }

    fn dial(&self, end: Instant) -> io::Result<TcpStream> {
        let family = if self.frontend.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(family, SockType::Stream, flags, None)?;
        on_loopback(&fd)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(self.frontend)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let client = TcpStream::from(fd);
        wait(&client, PollFlags::POLLOUT, end)?;
        client.take_error()?.map_or(Ok(client), Err)
    }

    /// Sends a datagram to the Service by a socket that is not connected, and receives its answer as the Service's.
    pub(super) fn datagram(&self) -> Result<(), Failure> {
        let end = Instant::now() + DEADLINE;
        let failed = self.failure("a datagram of the node", &["sendmsg"]);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
        let client = (|| {
            let client = UdpSocket::bind((loopback(self.frontend.ip()), 0))?;
            on_loopback(&client)?;
            client.set_nonblocking(true)?;
            client.send_to(&number, self.frontend)?;
            Ok::<_, io::Error>(client)
        })()
        .map_err(|error| failed(&error))?;
        let own = client.local_addr().map_err(|error| failed(&error))?;
        receive(&self.udp, &number, Some(own), end).map_err(|error| failed(&error))?;
        self.udp.send_to(&number, own).map_err(|error| failed(&error))?;
        let failed = self.failure("the question for a datagram's sender", &["recvmsg"]);
        let from = receive(&client, &number, None, end).map_err(|error| failed(&error))?;
        if from != self.frontend {
            return Err(failed(&format!("it is {from}, not {}", self.frontend)));
        }
        Ok(())
    }
}

fn loopback(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

fn on_loopback(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, BindToDevice, &OsString::from(LOOPBACK)).map_err(io::Error::from)
}

/// Waits until a socket is ready.
fn wait(socket: &impl AsFd, what: PollFlags, end: Instant) -> io::Result<()> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("nothing came within {DEADLINE:?}"));
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // Rounded up, so that the wait does not end before its time.
        let left = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), what)], PollTimeout::from(left)) {
            Ok(0) => return Err(late()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) if Instant::now() < end => {}
            Err(Errno::EINTR) => return Err(late()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Accepts the connection of this client. Connections of others are closed.
fn accept(listener: &TcpListener, client: SocketAddr, end: Instant) -> io::Result<TcpStream> {
    loop {
        match listener.accept() {
            Ok((stream, from)) if from == client => return Ok(stream),
            Ok(_other) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(listener, PollFlags::POLLIN, end)?
            }
            Err(error) => return Err(error),
        }
    }
}

/// Receives the datagram with these bytes, and returns its sender: where one is named, it is that one.
fn receive(
    socket: &UdpSocket,
    bytes: &[u8; 8],
    from: Option<SocketAddr>,
    end: Instant,
) -> io::Result<SocketAddr> {
    let mut buffer = [0; 16];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((8, sender)) if buffer.starts_with(bytes) && from.is_none_or(|from| from == sender) => {
                return Ok(sender);
            }
            Ok(_other) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(socket, PollFlags::POLLIN, end)?,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without hooks the frontend is an address like any other.
    #[test]
    fn without_hooks_a_server_itself_answers_and_the_frontend_does_not() {
        let mut server = Server::open(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        server.frontend = server.tcp_at;
        server.connection().unwrap();
        server.frontend = server.udp_at;
        server.datagram().unwrap();
        server.frontend = "192.0.0.8:10256".parse().unwrap();
        let failure = server.connection().unwrap_err().to_string();
        assert!(
            failure.starts_with("a connection of the node is not answered (through connect4): "),
            "{failure}"
        );
        let failure = server.datagram().unwrap_err().to_string();
        assert!(
            failure.starts_with("a datagram of the node is not answered (through sendmsg4): "),
            "{failure}"
        );
    }
}
