//! Selection of the backend for a client of a Service; session affinity.

use crate::{Family, Header, Maps};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, ChunkKey, INLINE, MemberKey, SERVING, ServiceKey, Set, frontend, tag,
};

/// Location of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientLocation<A> {
    /// This node itself.
    Host,
    /// A pod of this node, with its address.
    Pod(A),
    /// A client outside, or in a network namespace of this machine that is neither node nor pod.
    Outside(A),
}

/// Verdict about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<A> {
    /// The address belongs to no Service: the call continues unchanged.
    Pass,
    /// The client uses this backend.
    To(Choice<A>),
    /// The client gets ECONNREFUSED or "port unreachable".
    Reject(RejectReason),
    /// The client gets no answer.
    Drop(DropReason),
}

/// The selected backend and its Service.
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
    /// Set from which the backend was selected.
    pub set: Set,
}

/// Reasons to refuse a client.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// The Service has no endpoints.
    NoEndpoints,
    /// The address belongs to a Service, the port does not.
    UnknownPort,
}

/// Reasons to drop a client's packets.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The address lies in a Service range and belongs to no Service.
    NoSuchService,
    /// Endpoints exist, but the traffic policy leaves none for this client.
    Policy,
    /// The tables changed during two reads in a row.
    Unsettled,
}

/// A client as seen by a decision. Its address is read only for a Service with affinity.
pub trait ClientIdentity<A: Family>: Copy {
    /// Whether the client is this node itself.
    fn is_host(self) -> bool;
    /// [`frontend::EXTERNAL`] if the client is neither this node nor a local pod, else 0. Frontends have a
    /// traffic policy of their own for such clients.
    fn outside(self) -> u32;
    /// Writes the client's address; [`berth_ebpf_abi::Addr::ANY`] for the node itself.
    fn put_addr(self, into: &mut A);
    /// 32 bits that select one of a Service's backends: random, or fixed for a client that must reach the
    /// same backend again.
    #[inline(always)]
    fn backend_hash<M: Maps<A>>(self, maps: &M, _service: u32) -> u32 {
        maps.rand()
    }
}

/// [`ClientIdentity::backend_hash`] of a datagram socket: a forgotten backend is selected again.
#[inline(always)]
pub fn backend_hash(cookie: u64, service: u32) -> u32 {
    // Cookies are consecutive numbers; the two multiplications spread neighbours.
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

/// States of the search for a frontend, as numbers for [`Maps::number`].
pub(crate) mod search {
    /// The key is the dialled address and port.
    pub(crate) const DIALLED: u32 = 0;
    /// The key is the bare address, whose Service has other ports.
    pub(crate) const BARE: u32 = 1;
    /// The key is that of a NodePort, without an address.
    pub(crate) const NODE_PORT: u32 = 2;
    /// The value changed during the read: one more lookup and read follow.
    pub(crate) const AGAIN: u32 = 3;
    /// Result: the address belongs to no Service.
    pub(crate) const PASS: u32 = 4;
    /// Result: the address belongs to a Service, the port does not.
    pub(crate) const UNKNOWN_PORT: u32 = 5;
    /// Result: the address lies in a Service range and belongs to no Service.
    pub(crate) const NO_SUCH_SERVICE: u32 = 6;
    /// Result: the value existed at the first lookup and is gone.
    pub(crate) const UNSETTLED: u32 = 7;
}

/// A value aligned to eight bytes, which the kernel's stack requires for accesses of eight bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aligned<T>(pub T);

/// Output of a decision, in the caller's memory: an address in registers would be saved and restored around
/// each call of a kernel helper.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Selection<A> {
    /// The backend, and its last use by the client. Valid only after [`Decision::To`].
    pub last: Affinity<A>,
    /// Aligns the next address to eight bytes.
    pad: u32,
    /// Key of the client's affinity. Written for a Service with affinity only.
    client: AffinityKey<A>,
    /// Aligns the member key to eight bytes.
    pad2: u32,
    /// Key of the backend in the Service's sets.
    member: MemberKey<A>,
}

/// A verdict whose backend is in [`Selection::last`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// As [`Verdict::Pass`].
    Pass,
    /// A backend was written, from this Service and set.
    To(Header, Set),
    /// As [`Verdict::Reject`].
    Reject(RejectReason),
    /// As [`Verdict::Drop`].
    Drop(DropReason),
}

/// Decides for a client that dials `key` (`port` and `proto` are never 0).
///
/// The rules are kube-proxy's. A frontend uses its policy's set; so does a NodePort at a node's own address,
/// and for the node at IPv4's loopback. A ClusterIP's other ports are refused, a Service range's other
/// addresses dropped except the node's own. `0.0.0.0` and `::` mean the client's own loopback.
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

/// As [`decide`], with the output in the caller's memory. Changes `key`.
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

/// First state of the search: [`search::PASS`] at a client's own loopback, except the node's of IPv4.
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
        // The key with `::` would be that of a node port; `::1` is in no table.
        return search::PASS;
    }
    maps.number::<{ search::DIALLED }>()
}

/// Finds the dialled frontend, else sets `search` to the reason. A NodePort's key loses its address.
///
/// The state is a number: the compiler would put an enum into half a register beside an address.
///
/// One loop with one lookup of each table: each lookup in the code takes ten instructions in the kernel. The
/// refresh of a flow uses the same search.
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

/// Query for a serving backend, in the caller's memory.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberQuery<A> {
    /// Aligns the address in `member` to eight bytes.
    pad: u32,
    /// Key of the query. The caller writes its address and port.
    pub member: MemberKey<A>,
}

/// Whether the flows of a UDP Service port may keep a backend.
#[inline(always)]
pub(crate) fn serves<A: Family, M: Maps<A>>(maps: &M, asked: &mut MemberQuery<A>, id: u32) -> bool {
    asked.member.id = id;
    asked.member.set = SERVING;
    maps.member(&asked.member)
}

/// Whether a datagram may keep the backend that its socket remembers for `key`, which is changed. True as
/// long as the backend serves, whatever set the client uses now; affinity is ignored, as in kube-proxy.
#[inline(always)]
pub fn may_keep_backend<A: Family, M: Maps<A>>(
    maps: &M,
    key: &mut Aligned<ServiceKey<A>>,
    asked: &mut MemberQuery<A>,
) -> bool {
    // Only a socket of the host remembers a backend for a loopback address.
    let mut search = start(maps, &key.0, ClientLocation::Host);
    let Some(at) = find(maps, key, &mut search) else { return false };
    let header = maps.header(at);
    // During a change of the value the backend is kept; the next datagram checks again.
    header.tag != tag(header.id, header.generation) || serves(maps, asked, header.id)
}

/// Selects a backend: the one of the client's affinity, else one by the client's hash. `None` if the value
/// changed during the read.
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
    // Computed without a branch: the policy bit for this location is the number of the set.
    let outside = (header.frontend & from.outside() & frontend::EXTERNAL) >> 2;
    let set = maps.opaque((header.frontend >> outside) & 1);
    let [cluster, here] = header.counts.map(u32::from);
    let (count, before) = if set == 0 { (cluster, 0) } else { (here, cluster) };
    // A port of 0 means that no backend is selected yet.
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
    // Affinity is written at most once a second.
    if header.affinity_s != 0 && selection.last.seen_s != now_s {
        selection.last.seen_s = now_s;
        let selection = maps.opaque_ref(selection);
        maps.set_affinity(&selection.client, &selection.last);
    }
    Some(Decision::To(header, if set == 0 { Set::Cluster } else { Set::Local }))
}

/// Writes the backend of the client's affinity if the client may keep it, else a port of 0.
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
    // Differs from the current second, so that [`serve`] writes the affinity of the new backend.
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
    // CHUNK is a power of two: the kernel's verifier follows shifts and masks, not divisions.
    let at = maps.chunk(&ChunkKey { id, generation, set, index: ordinal >> 4 })?;
    // A Service's value is replaced before its chunks are removed: an unchanged value has valid chunks.
    if maps.chunk_tag(at) != tag {
        return None;
    }
    maps.take_chunk_backend(at, ordinal, into);
    Some(())
}

/// Scales a random number to `0..n` without a division, with an error of one in 2^32.
#[inline(always)]
pub(crate) fn scale(rand: u32, n: u32) -> u32 {
    // The upper half of the product is below `n`.
    ((u64::from(rand) * u64::from(n)) >> 32) as u32
}
