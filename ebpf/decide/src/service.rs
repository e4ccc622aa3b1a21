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

/// How often a value that changed while it was read is read.
const READINGS: u32 = 2;

/// Decides for a client that dials `key` (`port` and `proto` are never 0).
///
/// The rules are kube-proxy's: an address and port of a Service go to the set that the traffic policies give; a node's
/// own address with a NodePort likewise, from the node itself also by loopback; other ports of a cluster address are
/// refused; other addresses in a Service range are dropped, but for the node's own. `0.0.0.0` and `::` mean the client's own loopback.
#[inline(always)]
pub fn decide<A: Family, M: Maps<A>>(maps: &M, key: &ServiceKey<A>, from: From<A>) -> Verdict<A> {
    let mut key = *key;
    let mut at = match find(maps, &mut key, from) {
        Ok(at) => at,
        Err(verdict) => return verdict,
    };
    let mut reading = 1;
    loop {
        if let Some(verdict) = serve(maps, &key, at, from) {
            return verdict;
        }
        if reading == READINGS {
            return Verdict::Drop(DropReason::Unsettled);
        }
        reading += 1;
        at = match maps.service(&key) {
            Some(at) => at,
            None => return Verdict::Drop(DropReason::Unsettled),
        };
    }
}

/// Finds the way in that is dialled, or what becomes of a client of none. A NodePort's key loses its address. `flow` finds a
/// connection's Service once more by it.
#[inline(always)]
pub(crate) fn find<A: Family, M: Maps<A>>(
    maps: &M,
    key: &mut ServiceKey<A>,
    from: From<A>,
) -> Result<M::Service, Verdict<A>> {
    let node = if key.addr == A::ANY || key.addr.is_loopback() {
        matches!(from, From::Host)
    } else {
        if let Some(at) = maps.service(key) {
            return Ok(at);
        }
        if maps.in_service_range(key.addr) {
            key.port = 0;
            key.proto = 0;
            return Err(match maps.service(key) {
                Some(_) => Verdict::Reject(RejectReason::UnknownPort),
                // Cluster DNS on the node itself has an address of the Service range.
                None if maps.node(&key.addr).is_some() => Verdict::Pass,
                None => Verdict::Drop(DropReason::NoSuchService),
            });
        }
        matches!(maps.node(&key.addr), Some(node) if node.node_ports != 0)
    };
    if !node {
        return Err(Verdict::Pass);
    }
    key.addr = A::ANY;
    maps.service(key).ok_or(Verdict::Pass)
}

/// Takes a backend; nothing when the value changed while it was read.
#[inline(always)]
fn serve<A: Family, M: Maps<A>>(
    maps: &M,
    key: &ServiceKey<A>,
    at: M::Service,
    from: From<A>,
) -> Option<Verdict<A>> {
    let header = maps.header(at);
    if header.tag != tag(header.id, header.generation) {
        return None;
    }
    let local = match from {
        From::Outside(_) if header.frontend & frontend::EXTERNAL != 0 => frontend::OUTSIDE_LOCAL,
        _ => frontend::INSIDE_LOCAL,
    };
    let set = if header.frontend & local != 0 { Set::Local } else { Set::Cluster };
    let [cluster, here] = header.counts;
    let (count, before) = match set {
        Set::Cluster => (cluster, 0),
        Set::Local => (here, cluster),
    };
    let client = match from {
        From::Host => A::ANY,
        From::Pod(addr) | From::Outside(addr) => addr,
    };
    let affinity = AffinityKey { id: header.id, client };
    // Seconds of now where the client's backend is to be written down.
    let mut stick = None;
    // None while its port is 0.
    let mut backend = Backend::default();
    if count != 0 {
        if header.affinity_s != 0 {
            let now_s = maps.now_s();
            stick = Some(now_s);
            if let Some(last) = maps.affinity(&affinity) {
                let Backend { addr, port, .. } = last.backend;
                let age = now_s.wrapping_sub(last.seen_s);
                if age < header.affinity_s
                    && maps.member(&MemberKey { id: header.id, addr, port, set: set as u16 })
                {
                    backend = last.backend;
                    if age == 0 {
                        stick = None;
                    }
                }
            }
        }
        if backend.port == 0 {
            let ordinal = scale(maps.rand(), u32::from(count));
            backend = if u32::from(cluster) + u32::from(here) <= INLINE as u32 {
                maps.inline(at, u32::from(before) + ordinal)
            } else {
                of_chunk(maps, header.id, header.generation, set, ordinal)?
            };
        }
    }
    if !maps.unchanged(key, at, header.tag) {
        return None;
    }
    if backend.port == 0 {
        return Some(if header.frontend & frontend::HAS_ENDPOINTS != 0 {
            Verdict::Drop(DropReason::Policy)
        } else {
            Verdict::Reject(RejectReason::NoEndpoints)
        });
    }
    if let Some(now_s) = stick {
        maps.stick(&affinity, &Affinity { backend, seen_s: now_s });
    }
    let Header { id: service, generation, frontend, .. } = header;
    Some(Verdict::To(Choice { backend, service, generation, frontend, set }))
}

#[inline(always)]
fn of_chunk<A: Family, M: Maps<A>>(
    maps: &M,
    id: u32,
    generation: u32,
    set: Set,
    ordinal: u32,
) -> Option<Backend<A>> {
    // CHUNK is a power of two: the kernel's verifier follows a shift and a mask, not a division.
    let at = maps.chunk(&ChunkKey { id, generation, set: set as u32, index: ordinal >> 4 })?;
    // A generation's chunks go after its Service's value: while that is unchanged, which is looked at next, so is this.
    (maps.chunk_tag(at) == tag(id, generation)).then(|| maps.chunk_backend(at, ordinal))
}

/// Maps a random number onto `0..n` evenly: without a division, and good to one in 2^32.
#[inline(always)]
pub(crate) fn scale(rand: u32, n: u32) -> u32 {
    // The product's upper half is below n.
    ((u64::from(rand) * u64::from(n)) >> 32) as u32
}
