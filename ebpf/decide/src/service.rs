//! Which backend, if any, a client of a Service gets; session affinity.

use crate::{Family, Header, Maps};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, ChunkKey, INLINE, MemberKey, SERVING, ServiceKey, Set, frontend, tag,
};

/// Where a client sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientLocation<A> {
    /// This node itself.
    Host,
    /// A pod of this node, with its address.
    Pod(A),
    /// Any other, with its address; also a network namespace of this machine that is neither the node's nor a pod's.
    Outside(A),
}

/// What becomes of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<A> {
    /// No Service is meant: nothing is changed.
    Pass,
    /// This backend.
    To(Choice<A>),
    /// The client is told that nobody listens: ECONNREFUSED, port unreachable.
    Reject(RejectReason),
    /// Nothing is answered.
    Drop(DropReason),
}

/// The backend given, and by which Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice<A> {
    /// The backend.
    pub backend: Backend<A>,
    /// [`berth_ebpf_abi::Service::id`].
    pub service: u32,
    /// [`berth_ebpf_abi::Service::generation`].
    pub generation: u32,
    /// [`berth_ebpf_abi::Service::frontend`].
    pub frontend: u32,
    /// The set it was taken from.
    pub set: Set,
}

/// Why a client is refused.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// No endpoint exists anywhere.
    NoEndpoints,
    /// The address is a Service's, the port is not.
    UnknownPort,
}

/// Why a client gets no answer.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The address lies in a Service range and is no Service's.
    NoSuchService,
    /// Endpoints exist, but the traffic policy leaves this client none.
    Policy,
    /// The tables changed below two readings in a row.
    Unsettled,
}

/// A client, as far as a decision asks: its address is only read for a Service with affinity.
pub trait ClientIdentity<A: Family>: Copy {
    /// Whether it is this node itself.
    fn is_host(self) -> bool;
    /// Has the bit [`frontend::EXTERNAL`] where it is neither this node nor a pod of it: a way in from outside has a policy
    /// of its own for it.
    fn outside(self) -> u32;
    /// Writes its address; [`berth_ebpf_abi::Addr::ANY`] for the node itself.
    fn put_addr(self, into: &mut A);
    /// 32 bits by which it is given one of a Service's backends: any, or the same ones for whoever is to come to the same
    /// backend again.
    #[inline(always)]
    fn backend_hash<M: Maps<A>>(self, maps: &M, _service: u32) -> u32 {
        maps.rand()
    }
}

/// [`ClientIdentity::lot`] of a datagram socket, by its cookie: what it has forgotten it comes to again, while the set stands.
#[inline(always)]
pub fn backend_hash(cookie: u64, service: u32) -> u32 {
    // Cookies are given out one after the other: both multiplications are for neighbours to lie apart.
    let mixed = (cookie ^ (u64::from(service) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

impl<A: Family> ClientIdentity<A> for ClientLocation<A> {
    #[inline(always)]
    fn is_host(self) -> bool {
        matches!(self, ClientLocation::Host)
    }

    #[inline(always)]
    fn outside(self) -> u32 {
        if matches!(self, ClientLocation::Outside(_)) { frontend::EXTERNAL } else { 0 }
    }

    #[inline(always)]
    fn put_addr(self, into: &mut A) {
        *into = match self {
            ClientLocation::Host => A::ANY,
            ClientLocation::Pod(addr) | ClientLocation::Outside(addr) => addr,
        };
    }
}

/// How far the search for a way in is. Numbers, for [`Maps::number`].
pub(crate) mod search {
    /// The key is what was dialled.
    pub(crate) const DIALLED: u32 = 0;
    /// The bare address, whose Service has other ports.
    pub(crate) const BARE: u32 = 1;
    /// A NodePort: the key has no address.
    pub(crate) const NODE_PORT: u32 = 2;
    /// The value changed while it was read: it is looked for, and read, once more and no third time.
    pub(crate) const AGAIN: u32 = 3;
    /// It is over: no Service is meant.
    pub(crate) const PASS: u32 = 4;
    /// It is over: the address is a Service's, the port is not.
    pub(crate) const UNKNOWN_PORT: u32 = 5;
    /// It is over: the address lies in a Service range and is no Service's.
    pub(crate) const NO_SUCH_SERVICE: u32 = 6;
    /// It is over: the value was there and is not any more.
    pub(crate) const UNSETTLED: u32 = 7;
}

/// Where eight bytes may be read and written at once, as the kernel's stack requires it for that.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aligned<T>(pub T);

/// What a decision writes to: memory of the caller's, for in the kernel an address in registers is saved and restored
/// around each call of a helper.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Selection<A> {
    /// The backend, and when its client was last given it. Meaningless before [`Decision::To`].
    pub last: Affinity<A>,
    /// Puts the address behind it where eight bytes may be copied at once.
    pad: u32,
    /// Whose it is to stay; written for a Service with affinity only.
    client: AffinityKey<A>,
    /// Puts the member key where eight bytes may be copied at once.
    pad2: u32,
    /// The backend as it is looked for in the Service's sets.
    member: MemberKey<A>,
}

/// A verdict whose backend is in [`Selection::last`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// See [`Verdict::Pass`].
    Pass,
    /// The backend that was written, by the Service of this head, from this set.
    To(Header, Set),
    /// See [`Verdict::Reject`].
    Reject(RejectReason),
    /// See [`Verdict::Drop`].
    Drop(DropReason),
}

/// Decides for a client that dials `key` (`port` and `proto` are never 0).
///
/// The rules are kube-proxy's: an address and port of a Service go to the set that the traffic policies give; a node's
/// own address with a NodePort likewise, from the node itself also by IPv4's loopback; other ports of a cluster address are
/// refused; other addresses in a Service range are dropped, but for the node's own. `0.0.0.0` and `::` mean the client's own loopback.
#[inline(always)]
pub fn decide<A: Family, M: Maps<A>>(maps: &M, key: &ServiceKey<A>, from: ClientLocation<A>) -> Verdict<A> {
    let (mut key, mut selection) = (Aligned(*key), Selection::default());
    match decide_into(maps, &mut key, from, &mut selection) {
        Decision::Pass => Verdict::Pass,
        Decision::To(header, set) => {
            let Header { id: service, generation, frontend, .. } = header;
            Verdict::To(Choice { backend: selection.last.backend, service, generation, frontend, set })
        }
        Decision::Reject(reason) => Verdict::Reject(reason),
        Decision::Drop(reason) => Verdict::Drop(reason),
    }
}

/// [`decide`] in the caller's memory; `key` is changed too.
#[inline(always)]
pub fn decide_into<A: Family, M: Maps<A>, W: ClientIdentity<A>>(
    maps: &M,
    key: &mut Aligned<ServiceKey<A>>,
    from: W,
    selection: &mut Selection<A>,
) -> Decision {
    let mut search = start(maps, &key.0, from);
    if search == search::PASS {
        return Decision::Pass;
    }
    loop {
        let Some(at) = find(maps, key, &mut search) else {
            return match search {
                search::UNKNOWN_PORT => Decision::Reject(RejectReason::UnknownPort),
                search::NO_SUCH_SERVICE => Decision::Drop(DropReason::NoSuchService),
                search::UNSETTLED => Decision::Drop(DropReason::Unsettled),
                _ => Decision::Pass,
            };
        };
        if let Some(decision) = serve(maps, &key.0, at, from, selection) {
            return decision;
        }
        if search == search::AGAIN {
            return Decision::Drop(DropReason::Unsettled);
        }
        search = maps.number::<{ search::AGAIN }>();
    }
}

/// Where the search for a way in starts; nowhere ([`search::PASS`]) at a client's own loopback, but for IPv4's of the node.
#[inline(always)]
pub(crate) fn start<A: Family, M: Maps<A>, W: ClientIdentity<A>>(
    maps: &M,
    key: &ServiceKey<A>,
    from: W,
) -> u32 {
    if A::LOOPBACK_NODE_PORTS {
        if key.addr == A::ANY || key.addr.is_loopback() {
            return if from.is_host() { maps.number::<{ search::NODE_PORT }>() } else { search::PASS };
        }
    } else if key.addr == A::ANY {
        // It would be the key of a node port; `::1` is in no table.
        return search::PASS;
    }
    maps.number::<{ search::DIALLED }>()
}

/// Finds the way in that is dialled; where there is none, `search` says why. A NodePort's key loses its address. `flow` finds
/// a connection's Service once more by it.
///
/// A number and not the ruling: of that the compiler makes half a register beside half an address.
///
/// One loop with one look into each table: in the kernel each look that stands here takes ten instructions.
#[inline(always)]
pub(crate) fn find<A: Family, M: Maps<A>>(
    maps: &M,
    key: &mut Aligned<ServiceKey<A>>,
    search: &mut u32,
) -> Option<M::Service> {
    let key = &mut key.0;
    loop {
        if maps.opaque(*search) == search::NODE_PORT {
            maps.clear(&mut key.addr);
        }
        if let Some(at) = maps.service(key) {
            if *search == search::BARE {
                *search = search::UNKNOWN_PORT;
                return None;
            }
            return Some(at);
        }
        match *search {
            search::AGAIN => {
                *search = search::UNSETTLED;
                return None;
            }
            search::NODE_PORT => {
                *search = search::PASS;
                return None;
            }
            search::DIALLED if maps.in_service_range(key.addr) => {
                key.port = 0;
                key.proto = 0;
                *search = maps.number::<{ search::BARE }>();
                continue;
            }
            _ => {}
        }
        let node = maps.node_number(&key.addr);
        if *search == search::BARE {
            // Cluster DNS on the node itself has an address of the Service range.
            *search = if node != 0 { search::PASS } else { search::NO_SUCH_SERVICE };
            return None;
        }
        if node <= 1 {
            *search = search::PASS;
            return None;
        }
        *search = maps.number::<{ search::NODE_PORT }>();
    }
}

/// A backend as it is looked for among those that serve, in the caller's memory.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberQuery<A> {
    /// Puts the address behind it where eight bytes may be copied at once.
    pad: u32,
    /// Its address and port are the caller's to write.
    pub member: MemberKey<A>,
}

/// Whether the flows of a UDP Service port may go on with a backend.
#[inline(always)]
pub(crate) fn serves<A: Family, M: Maps<A>>(maps: &M, asked: &mut MemberQuery<A>, id: u32) -> bool {
    asked.member.id = id;
    asked.member.set = SERVING;
    maps.member(&asked.member)
}

/// Whether a datagram goes on with the backend that its socket was given before for `key`, which is changed. It does for
/// as long as that serves, whatever set its client would be given another from; affinity has no say, as with kube-proxy.
#[inline(always)]
pub fn may_keep_backend<A: Family, M: Maps<A>>(
    maps: &M,
    key: &mut Aligned<ServiceKey<A>>,
    asked: &mut MemberQuery<A>,
) -> bool {
    // A socket that was given a backend at its loopback is the host's.
    let mut search = start(maps, &key.0, ClientLocation::Host);
    let Some(at) = find(maps, key, &mut search) else { return false };
    let header = maps.header(at);
    // What changes right now is asked with the next datagram.
    header.tag != tag(header.id, header.generation) || serves(maps, asked, header.id)
}

/// Takes a backend: the one that affinity keeps the client with, else one by lot. Nothing when the value changed while it
/// was read.
#[inline(always)]
fn serve<A: Family, M: Maps<A>, W: ClientIdentity<A>>(
    maps: &M,
    key: &ServiceKey<A>,
    at: M::Service,
    from: W,
    selection: &mut Selection<A>,
) -> Option<Decision> {
    let header = maps.header(at);
    if header.tag != tag(header.id, header.generation) {
        return None;
    }
    const {
        assert!(
            frontend::INSIDE_LOCAL == 1 && frontend::OUTSIDE_LOCAL == 1 << 1 && frontend::EXTERNAL == 1 << 2
        )
    };
    // By bits, not by branches: the flag of the one or of the other, which is the set's number.
    let outside = (header.frontend & from.outside() & frontend::EXTERNAL) >> 2;
    let set = maps.opaque((header.frontend >> outside) & 1);
    let [cluster, here] = header.counts.map(u32::from);
    let (count, before) = if set == 0 { (cluster, 0) } else { (here, cluster) };
    // None while its port is 0.
    selection.last.backend.port = 0;
    let mut now_s = 0;
    if count != 0 {
        if header.affinity_s != 0 {
            now_s = maps.now_s();
            last(maps, selection, &header, set, from, now_s);
        }
        if selection.last.backend.port == 0 {
            let ordinal = scale(from.backend_hash(maps, header.id), count);
            if cluster + here <= INLINE as u32 {
                maps.take_inline(at, before + ordinal, &mut selection.last.backend);
            } else {
                chunk_backend(maps, &header, set, ordinal, &mut selection.last.backend)?;
            }
        }
    }
    if !maps.unchanged(key, at, header.tag) {
        return None;
    }
    if selection.last.backend.port == 0 {
        return Some(if header.frontend & frontend::HAS_ENDPOINTS != 0 {
            Decision::Drop(DropReason::Policy)
        } else {
            Decision::Reject(RejectReason::NoEndpoints)
        });
    }
    // Once a second.
    if header.affinity_s != 0 && selection.last.seen_s != now_s {
        selection.last.seen_s = now_s;
        let selection = maps.opaque_ref(selection);
        maps.set_affinity(&selection.client, &selection.last);
    }
    Some(Decision::To(header, if set == 0 { Set::Cluster } else { Set::Local }))
}

/// Writes the backend that the client had, if it may stay with it; else one with port 0.
#[inline(always)]
fn last<A: Family, M: Maps<A>, W: ClientIdentity<A>>(
    maps: &M,
    selection: &mut Selection<A>,
    header: &Header,
    set: u32,
    from: W,
    now_s: u32,
) {
    let selection = maps.opaque_ref(selection);
    selection.client.id = header.id;
    from.put_addr(&mut selection.client.client);
    if maps.take_affinity(&selection.client, &mut selection.last) {
        let Backend { addr, port, .. } = selection.last.backend;
        selection.member = MemberKey { id: header.id, addr, port, set: (set & 0xffff) as u16 };
        let young = now_s.wrapping_sub(selection.last.seen_s) < header.affinity_s;
        if young && maps.member(&selection.member) {
            return;
        }
    }
    selection.last.backend.port = 0;
    // Any other second: whom it is given next is written down.
    selection.last.seen_s = !now_s;
}

#[inline(always)]
fn chunk_backend<A: Family, M: Maps<A>>(
    maps: &M,
    header: &Header,
    set: u32,
    ordinal: u32,
    into: &mut Backend<A>,
) -> Option<()> {
    let Header { id, generation, tag, .. } = *header;
    // CHUNK is a power of two: the kernel's verifier follows a shift and a mask, not a division.
    let at = maps.chunk(&ChunkKey { id, generation, set, index: ordinal >> 4 })?;
    // A generation's chunks go after its Service's value: while that is unchanged, which is looked at next, so is this.
    if maps.chunk_tag(at) != tag {
        return None;
    }
    maps.take_chunk_backend(at, ordinal, into);
    Some(())
}

/// Maps a random number onto `0..n` evenly: without a division, and good to one in 2^32.
#[inline(always)]
pub(crate) fn scale(rand: u32, n: u32) -> u32 {
    // The product's upper half is below n.
    ((u64::from(rand) * u64::from(n)) >> 32) as u32
}
