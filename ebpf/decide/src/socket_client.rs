//! The client behind a socket, and the error of its call when no backend is selected.

use crate::{ClientLocation, Decision, Family, RejectReason};
use berth_ebpf_abi::{Client, client, local_pod};

/// `ECONNREFUSED`: no server listens. Clients can tell it from a policy's drop.
pub const ECONNREFUSED: i32 = 111;
/// `EHOSTUNREACH`: the address cannot be reached.
pub const EHOSTUNREACH: i32 = 113;

/// Client by the entry of the socket's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketClient<A> {
    /// A pod whose sockets have no hooks.
    LeftAlone,
    /// The node, a pod, or another process of this machine.
    At(ClientLocation<A>),
}

/// The client behind a socket, by the cookie of its network namespace and the entry of that. A namespace
/// without an entry is served as a client from outside, with an address that stands for the namespace.
#[inline(always)]
pub fn socket_client<A: Family>(cookie: u64, client: Option<Client>) -> SocketClient<A> {
    match client {
        None => SocketClient::At(ClientLocation::Outside(A::of_namespace(cookie))),
        Some(client) if is_host(client.flags) => SocketClient::At(ClientLocation::Host),
        Some(client) if left_alone(client.flags) => SocketClient::LeftAlone,
        Some(client) => SocketClient::At(ClientLocation::Pod(A::of_client(&client))),
    }
}

/// Whether the sockets of a pod with these flags ([`local_pod`]) have no hooks.
#[inline(always)]
pub fn left_alone(flags: u32) -> bool {
    flags & local_pod::NO_SOCKET_HOOKS != 0
}

/// Whether a namespace with these flags is the host's.
#[inline(always)]
pub fn is_host(flags: u32) -> bool {
    flags & client::HOST != 0
}

/// A socket's call that names an address.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketCall {
    /// `connect()` of a stream socket, which sends a packet.
    Connect,
    /// `connect()` of a datagram socket, which sends none. With kube-proxy it succeeds whatever the tables say, and
    /// programs rely on that: a datagram socket that is connected to a Service of TCP alone tells its own address.
    ConnectDatagram,
    /// The datagram of an unconnected socket, which would receive no refusal.
    Send,
}

/// Why a call gets no backend.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unserved {
    /// No Service is meant.
    No,
    /// [`RejectReason::NoEndpoints`].
    NoEndpoints,
    /// [`RejectReason::UnknownPort`].
    UnknownPort,
    /// The call's packets are dropped.
    Dropped,
}

impl Unserved {
    /// Why a call with this decision gets no backend.
    #[inline(always)]
    pub fn of(decision: &Decision) -> Unserved {
        match decision {
            Decision::Reject(RejectReason::NoEndpoints) => Unserved::NoEndpoints,
            Decision::Reject(RejectReason::UnknownPort) => Unserved::UnknownPort,
            Decision::Drop(_) => Unserved::Dropped,
            _ => Unserved::No,
        }
    }
}

/// Error of a socket's call; `None` if the call continues. `host`: the socket is in the host's namespace.
///
/// The device answers a pod's packet if the call continues, and translates it once there is an endpoint. The host's
/// packets may leave by a device without programs, so the host's calls fail at once where packets would follow.
#[inline(always)]
pub fn refusal(why: Unserved, host: bool, call: SocketCall) -> Option<i32> {
    match (why, call) {
        (Unserved::No, _) => None,
        (Unserved::Dropped, SocketCall::ConnectDatagram) => None,
        (Unserved::Dropped, _) => host.then_some(EHOSTUNREACH),
        (_, SocketCall::Connect) => Some(ECONNREFUSED),
        (Unserved::UnknownPort, SocketCall::ConnectDatagram) => None,
        (_, _) => host.then_some(ECONNREFUSED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DropReason;
    use berth_ebpf_abi::{V4, V6};

    #[test]
    fn namespaces_tell_who_dials() {
        let pod = Client { v4: 7, v6: [0, 0, 0, 9], flags: 0 };
        assert_eq!(socket_client::<V4>(1, Some(pod)), SocketClient::At(ClientLocation::Pod(7)));
        assert_eq!(socket_client::<V6>(1, Some(pod)), SocketClient::At(ClientLocation::Pod([0, 0, 0, 9])));
        let out = Client { flags: local_pod::NO_SOCKET_HOOKS, ..pod };
        assert_eq!(socket_client::<V4>(1, Some(out)), SocketClient::LeftAlone);
        let host = Client { flags: client::HOST, ..Client::default() };
        assert_eq!(socket_client::<V4>(1, Some(host)), SocketClient::At(ClientLocation::Host));
    }

    #[test]
    fn a_namespace_that_nobody_knows_is_a_client_of_its_own_and_never_the_host() {
        let of = |cookie| match socket_client::<V4>(cookie, None) {
            SocketClient::At(ClientLocation::Outside(addr)) => addr.to_ne_bytes(),
            other => panic!("{other:?}"),
        };
        // Addresses of class E belong to no host.
        assert_eq!(of(0x0001_0203), [240, 3, 2, 1]);
        assert_ne!(of(5), of(6));
        let SocketClient::At(ClientLocation::Outside(addr)) =
            socket_client::<V6>(0x0102_0304_0506_0708, None)
        else {
            panic!()
        };
        // So do addresses of 100::/64 (RFC 6666).
        assert_eq!(addr.map(u32::to_ne_bytes), [[1, 0, 0, 0], [0; 4], [8, 7, 6, 5], [4, 3, 2, 1]]);
    }

    #[test]
    fn calls_that_get_no_backend_end_as_their_packets_would_and_on_the_host_at_once() {
        let none = Decision::Reject(RejectReason::NoEndpoints);
        let gone = Decision::Drop(DropReason::NoSuchService);
        let other = Decision::Reject(RejectReason::UnknownPort);
        let calls = [SocketCall::Connect, SocketCall::Send, SocketCall::ConnectDatagram];
        let ends = |decision, host| calls.map(|call| refusal(Unserved::of(decision), host, call));
        assert_eq!(ends(&none, true), [Some(111), Some(111), Some(111)]);
        assert_eq!(ends(&other, true), [Some(111), Some(111), None]);
        assert_eq!(ends(&gone, true), [Some(113), Some(113), None]);
        assert_eq!(ends(&none, false), [Some(111), None, None]);
        assert_eq!(ends(&other, false), [Some(111), None, None]);
        assert_eq!(ends(&gone, false), [None, None, None]);
        assert_eq!(ends(&Decision::Pass, true), [None, None, None]);
    }
}
