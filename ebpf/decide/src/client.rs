//! Who dials from a socket.

use crate::{Family, From};
use berth_ebpf_abi::{Client, local_pod};

/// What a socket's network namespace says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialler<A> {
    /// A pod that wants its sockets left alone.
    LeftAlone,
    /// The node or a pod.
    From(From<A>),
}

/// Tells who dials from the entry of the socket's network namespace; without one it is the host.
#[inline(always)]
pub fn dialler<A: Family>(client: Option<Client>) -> Dialler<A> {
    match client {
        None => Dialler::From(From::Host),
        Some(client) if left_alone(client.flags) => Dialler::LeftAlone,
        Some(client) => Dialler::From(From::Pod(A::of_client(&client))),
    }
}

/// Whether a pod with these flags ([`local_pod`]) wants its sockets left alone.
#[inline(always)]
pub fn left_alone(flags: u32) -> bool {
    flags & local_pod::NO_SOCKET_HOOKS != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_ebpf_abi::{V4, V6};

    #[test]
    fn namespaces_tell_who_dials() {
        let pod = Client { v4: 7, v6: [0, 0, 0, 9], flags: 0 };
        assert_eq!(dialler::<V4>(None), Dialler::From(From::Host));
        assert_eq!(dialler::<V4>(Some(pod)), Dialler::From(From::Pod(7)));
        assert_eq!(dialler::<V6>(Some(pod)), Dialler::From(From::Pod([0, 0, 0, 9])));
        let out = Client { flags: local_pod::NO_SOCKET_HOOKS, ..pod };
        assert_eq!(dialler::<V4>(Some(out)), Dialler::LeftAlone);
    }
}
