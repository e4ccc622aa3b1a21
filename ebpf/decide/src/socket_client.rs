//! The client behind a socket, and the error of its call when no backend is selected.

use crate::{ClientLocation, Decision, Family};
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

/// Error of a socket's call; `None` if the call continues. `host`: the socket is in the host's namespace.
/// `sends`: the call sends a datagram of an unconnected socket, which would receive no refusal.
///
/// The device answers a pod's packet if the call continues. The host's packets may leave by a device without
/// programs, so the host's calls fail at once.
#[inline(always)]
pub fn refusal(decision: &Decision, host: bool, sends: bool) -> Option<i32> {
    match decision {
        Decision::Reject(_) if !sends || host => Some(ECONNREFUSED),
        Decision::Drop(_) if host => Some(EHOSTUNREACH),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DropReason, RejectReason};
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
        let ends = |decision, host| [false, true].map(|sends| refusal(decision, host, sends));
        assert_eq!(ends(&none, true), [Some(111), Some(111)]);
        assert_eq!(ends(&gone, true), [Some(113), Some(113)]);
        assert_eq!(ends(&none, false), [Some(111), None]);
        assert_eq!(ends(&gone, false), [None, None]);
        assert_eq!(ends(&Decision::Pass, true), [None, None]);
    }
}
