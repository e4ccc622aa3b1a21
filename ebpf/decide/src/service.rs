//! Which backend, if any, a client of a Service gets.

use crate::{Family, Header, Maps};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, ChunkKey, INLINE, MemberKey, ServiceKey, Set, frontend, tag,
};

/// Where a client sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum From<A> {
    /// This node itself.
    Host,
    /// A pod of this node, with its address.
    Pod(A),
    /// Any other, with its address.
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
pub trait Who<A>: Copy {
    /// Where it sits.
    fn side(self) -> Side;
    /// Writes its address; [`berth_ebpf_abi::Addr::ANY`] for the node itself.
    fn put_addr(self, into: &mut A);
}

/// Where a client sits, without its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This node itself.
    Host,
    /// A pod of this node.
    Pod,
    /// Any other.
    Outside,
}

impl<A: Family> Who<A> for From<A> {
    #[inline(always)]
    fn side(self) -> Side {
        match self {
            From::Host => Side::Host,
            From::Pod(_) => Side::Pod,
            From::Outside(_) => Side::Outside,
        }
    }

    #[inline(always)]
    fn put_addr(self, into: &mut A) {
        *into = match self {
            From::Host => A::ANY,
            From::Pod(addr) | From::Outside(addr) => addr,
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
}

/// Where eight bytes may be read and written at once, as the kernel's stack requires it for that.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aligned<T>(pub T);

/// What a decision writes to: memory of the caller's, for in the kernel an address in registers is saved and restored
/// around each call of a helper.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given<A> {
    /// The backend, and when its client was last given it. Meaningless before [`Ruling::To`].
    pub last: Affinity<A>,
    /// Puts the address behind it where eight bytes may be copied at once.
    room: u32,
    /// Whose it is to stay; written for a Service with affinity only.
    client: AffinityKey<A>,
    /// Likewise.
    room2: u32,
    /// The backend as it is looked for in the Service's sets.
    member: MemberKey<A>,
}

/// A verdict whose backend is in [`Given::last`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
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
/// own address with a NodePort likewise, from the node itself also by loopback; other ports of a cluster address are
/// refused; other addresses in a Service range are dropped, but for the node's own. `0.0.0.0` and `::` mean the client's own loopback.
#[inline(always)]
pub fn decide<A: Family, M: Maps<A>>(maps: &M, key: &ServiceKey<A>, from: From<A>) -> Verdict<A> {
    let (mut key, mut given) = (Aligned(*key), Given::default());
    match rule(maps, &mut key, from, &mut given) {
        Ruling::Pass => Verdict::Pass,
        Ruling::To(header, set) => {
            let Header { id: service, generation, frontend, .. } = header;
            Verdict::To(Choice { backend: given.last.backend, service, generation, frontend, set })
        }
        Ruling::Reject(reason) => Verdict::Reject(reason),
        Ruling::Drop(reason) => Verdict::Drop(reason),
    }
}

/// [`decide`] in the caller's memory; `key` is changed too.
#[inline(always)]
pub fn rule<A: Family, M: Maps<A>, W: Who<A>>(
    maps: &M,
    key: &mut Aligned<ServiceKey<A>>,
    from: W,
    given: &mut Given<A>,
) -> Ruling {
    let mut search = maps.number::<{ search::DIALLED }>();
    loop {
        let at = match find(maps, key, &mut search, from.side()) {
            Ok(at) => at,
            Err(ruling) => return ruling,
        };
        if let Some(ruling) = serve(maps, &key.0, at, from, given) {
            return ruling;
        }
        if search == search::AGAIN {
            return Ruling::Drop(DropReason::Unsettled);
        }
        search = maps.number::<{ search::AGAIN }>();
    }
}

/// Finds the way in that is dialled, or what becomes of a client of none. A NodePort's key loses its address. `flow` finds a
/// connection's Service once more by it.
///
/// One loop with one look into each table: in the kernel each look that stands here takes ten instructions.
#[inline(always)]
pub(crate) fn find<A: Family, M: Maps<A>>(
    maps: &M,
    key: &mut Aligned<ServiceKey<A>>,
    search: &mut u32,
    from: Side,
) -> Result<M::Service, Ruling> {
    let key = &mut key.0;
    if *search == search::DIALLED && (key.addr == A::ANY || key.addr.is_loopback()) {
        if from != Side::Host {
            return Err(Ruling::Pass);
        }
        *search = maps.number::<{ search::NODE_PORT }>();
    }
    loop {
        if maps.hide(*search) == search::NODE_PORT {
            maps.clear(&mut key.addr);
        }
        if let Some(at) = maps.service(key) {
            return match *search {
                search::BARE => Err(Ruling::Reject(RejectReason::UnknownPort)),
                _ => Ok(at),
            };
        }
        match *search {
            search::AGAIN => return Err(Ruling::Drop(DropReason::Unsettled)),
            search::NODE_PORT => return Err(Ruling::Pass),
            search::DIALLED if maps.in_service_range(key.addr) => {
                key.port = 0;
                key.proto = 0;
                *search = maps.number::<{ search::BARE }>();
                continue;
            }
            _ => {}
        }
        let node = maps.node(&key.addr);
        if *search == search::BARE {
            // Cluster DNS on the node itself has an address of the Service range.
            return Err(if node.is_some() { Ruling::Pass } else { Ruling::Drop(DropReason::NoSuchService) });
        }
        if !matches!(node, Some(node) if node.node_ports != 0) {
            return Err(Ruling::Pass);
        }
        *search = maps.number::<{ search::NODE_PORT }>();
    }
}

/// Takes a backend; nothing when the value changed while it was read.
#[inline(always)]
fn serve<A: Family, M: Maps<A>, W: Who<A>>(
    maps: &M,
    key: &ServiceKey<A>,
    at: M::Service,
    from: W,
    given: &mut Given<A>,
) -> Option<Ruling> {
    let header = maps.header(at);
    if header.tag != tag(header.id, header.generation) {
        return None;
    }
    let local = match from.side() {
        Side::Outside if header.frontend & frontend::EXTERNAL != 0 => frontend::OUTSIDE_LOCAL,
        _ => frontend::INSIDE_LOCAL,
    };
    let set = if header.frontend & local != 0 { Set::Local } else { Set::Cluster };
    let [cluster, here] = header.counts.map(u32::from);
    let (count, before) = match set {
        Set::Cluster => (cluster, 0),
        Set::Local => (here, cluster),
    };
    // None while its port is 0.
    given.last.backend.port = 0;
    let mut now_s = 0;
    if count != 0 {
        if header.affinity_s != 0 {
            now_s = maps.now_s();
            last(maps, given, &header, set, from, now_s);
        }
        if given.last.backend.port == 0 {
            let ordinal = scale(maps.rand(), count);
            if cluster + here <= INLINE as u32 {
                maps.take_inline(at, before + ordinal, &mut given.last.backend);
            } else {
                of_chunk(maps, &header, set, ordinal, &mut given.last.backend)?;
            }
        }
    }
    if !maps.unchanged(key, at, header.tag) {
        return None;
    }
    if given.last.backend.port == 0 {
        return Some(if header.frontend & frontend::HAS_ENDPOINTS != 0 {
            Ruling::Drop(DropReason::Policy)
        } else {
            Ruling::Reject(RejectReason::NoEndpoints)
        });
    }
    // Once a second.
    if header.affinity_s != 0 && given.last.seen_s != now_s {
        given.last.seen_s = now_s;
        let given = maps.place(given);
        maps.stick(&given.client, &given.last);
    }
    Some(Ruling::To(header, set))
}

/// Writes the backend that the client had, if it may stay with it; else one with port 0.
#[inline(always)]
fn last<A: Family, M: Maps<A>, W: Who<A>>(
    maps: &M,
    given: &mut Given<A>,
    header: &Header,
    set: Set,
    from: W,
    now_s: u32,
) {
    let given = maps.place(given);
    given.client.id = header.id;
    from.put_addr(&mut given.client.client);
    if maps.take_affinity(&given.client, &mut given.last) {
        let Backend { addr, port, .. } = given.last.backend;
        given.member = MemberKey { id: header.id, addr, port, set: set as u16 };
        let young = now_s.wrapping_sub(given.last.seen_s) < header.affinity_s;
        if young && maps.member(&given.member) {
            return;
        }
    }
    given.last.backend.port = 0;
    // Any other second: whom it is given next is written down.
    given.last.seen_s = !now_s;
}

#[inline(always)]
fn of_chunk<A: Family, M: Maps<A>>(
    maps: &M,
    header: &Header,
    set: Set,
    ordinal: u32,
    into: &mut Backend<A>,
) -> Option<()> {
    let Header { id, generation, tag, .. } = *header;
    // CHUNK is a power of two: the kernel's verifier follows a shift and a mask, not a division.
    let at = maps.chunk(&ChunkKey { id, generation, set: set as u32, index: ordinal >> 4 })?;
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
