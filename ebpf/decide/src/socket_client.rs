//! Which client dials from a socket, and what its call ends with where it is given no backend.

use crate::{ClientLocation, Decision, Family};
use berth_ebpf_abi::{Client, client, local_pod};

/// `ECONNREFUSED`: nobody listens; clients tell it from a failure of policy.
pub const ECONNREFUSED: i32 = 111;
/// `EHOSTUNREACH`: there is no way to the address.
pub const EHOSTUNREACH: i32 = 113;

/// What a socket's network namespace says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketClient<A> {
    /// A pod that wants its sockets left alone.
    LeftAlone,
    /// The node, a pod, or somebody else on this machine.
    At(ClientLocation<A>),
}

/// Tells who dials from the cookie of the socket's network namespace and its entry. Without one it is neither the host nor
/// a pod: it is served as a client from outside, by an address that stands for the namespace.
#[inline(always)]
pub fn socket_client<A: Family>(cookie: u64, client: Option<Client>) -> SocketClient<A> {
    match client {
        None => SocketClient::At(ClientLocation::Outside(A::of_namespace(cookie))),
        Some(client) if is_host(client.flags) => SocketClient::At(ClientLocation::Host),
        Some(client) if left_alone(client.flags) => SocketClient::LeftAlone,
        Some(client) => SocketClient::At(ClientLocation::Pod(A::of_client(&client))),
    }
}

/// Whether a pod with these flags ([`local_pod`]) wants its sockets left alone.
#[inline(always)]
pub fn left_alone(flags: u32) -> bool {
    flags & local_pod::NO_SOCKET_HOOKS != 0
}

/// Whether a namespace with these flags is the host's.
#[inline(always)]
pub fn is_host(flags: u32) -> bool {
    flags & client::HOST != 0
}

/// The error that a socket's call ends with; `None`: the call goes on. `host`: the socket is the host's. `sends`: the call
/// sends a datagram of a socket that is not connected, which hears of no refusal.
///
/// What a pod's call is not told, its packet is told at the device. The host's packets may leave by a device that nothing
/// is attached to: its calls end here.
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
        // Addresses of class E are nobody's.
        assert_eq!(of(0x0001_0203), [240, 3, 2, 1]);
        assert_ne!(of(5), of(6));
        let SocketClient::At(ClientLocation::Outside(addr)) =
            socket_client::<V6>(0x0102_0304_0506_0708, None)
        else {
            panic!()
        };
        // So are those of 100::/64 (RFC 6666).
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
