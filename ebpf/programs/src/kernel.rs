//! The tables of the decision core ([`Maps`]) as kernel maps. Owns no state: the maps are in [`crate::maps`].

use crate::{
    asm::{number, opaque, opaque_ref},
    maps,
    wide::Wide,
};
use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Chunk, ChunkKey, Config, MemberKey, NodeAddress, Prefix, Service,
    ServiceKey, V4, V6,
};
use berth_ebpf_decide::{Header, Maps};
use core::ptr::addr_of;

/// The kernel's maps and clock.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

impl Kernel {
    /// The configuration. Always `Some`, because the element of an array exists.
    #[inline(always)]
    pub(crate) fn config() -> Option<*const Config> {
        maps::CONFIG.get_ptr(0)
    }

    /// Seconds of CLOCK_MONOTONIC; wraps after 136 years.
    #[inline(always)]
    pub(crate) fn now_s() -> u32 {
        // SAFETY: a helper without arguments.
        let ns = unsafe { bpf_ktime_get_coarse_ns() };
        (ns / 1_000_000_000) as u32
    }
}

/// Milliseconds of CLOCK_MONOTONIC, with the resolution of the kernel's tick; wraps after 49 days.
#[inline(always)]
pub(crate) fn now_ms() -> u32 {
    // SAFETY: a helper without arguments.
    let ns = unsafe { bpf_ktime_get_coarse_ns() };
    ((ns / 1_000_000) & 0xffff_ffff) as u32
}

/// Reads a field of a map's value, which other writers may change in the meantime.
macro_rules! read {
    ($at:expr, $($field:tt)+) => {
        // SAFETY: `$at` came from a map lookup of this run, so the memory stays a value of this type until
        // the run's end. Its content may be replaced, so the read is volatile and the caller checks the tag.
        unsafe { addr_of!((*$at).$($field)+).read_volatile() }
    };
}

macro_rules! family {
    ($addr:ty, $service:ident, $chunk:ident, $affinity:ident, $member:ident, $node:ident, $ranges:ident) => {
        impl Maps<$addr> for Kernel {
            type Service = *const Service<$addr>;
            type Chunk = *const Chunk<$addr>;

            #[inline(always)]
            fn service(&self, key: &ServiceKey<$addr>) -> Option<Self::Service> {
                maps::$service.get_ptr(key)
            }

            #[inline(always)]
            fn header(&self, at: Self::Service) -> Header {
                Header {
                    tag: read!(at, tag),
                    id: read!(at, id),
                    generation: read!(at, generation),
                    frontend: read!(at, frontend),
                    affinity_s: read!(at, affinity_s),
                    counts: {
                        // SAFETY: as above; the two counts are adjacent and aligned to four bytes.
                        let both = unsafe { addr_of!((*at).counts).cast::<u32>().read_volatile() };
                        [(both & 0xffff) as u16, (both >> 16) as u16]
                    },
                }
            }

            #[inline(always)]
            fn unchanged(&self, key: &ServiceKey<$addr>, at: Self::Service, tag: u32) -> bool {
                self.service(key) == Some(at) && read!(at, tag) == tag
            }

            #[inline(always)]
            fn inline(&self, at: Self::Service, index: u32) -> Backend<$addr> {
                // SAFETY: the masked index is below the array's length.
                let at = unsafe { addr_of!((*at).inline).cast::<Backend<$addr>>().add((index & 3) as usize) };
                Backend { addr: read!(at, addr), port: read!(at, port), flags: read!(at, flags) }
            }

            #[inline(always)]
            fn take_inline(&self, at: Self::Service, index: u32, into: &mut Backend<$addr>) {
                // SAFETY: the masked index is below the array's length; the memory of the decision is
                // aligned.
                unsafe {
                    let at = addr_of!((*at).inline).cast::<Backend<$addr>>().add((index & 3) as usize);
                    <$addr>::take_backend(at, into);
                }
            }

            #[inline(always)]
            fn chunk(&self, key: &ChunkKey) -> Option<Self::Chunk> {
                maps::$chunk.get_ptr(key)
            }

            #[inline(always)]
            fn chunk_tag(&self, at: Self::Chunk) -> u32 {
                read!(at, tag)
            }

            #[inline(always)]
            fn chunk_backend(&self, at: Self::Chunk, index: u32) -> Backend<$addr> {
                // SAFETY: the masked index is below the array's length.
                let at =
                    unsafe { addr_of!((*at).backends).cast::<Backend<$addr>>().add((index & 15) as usize) };
                Backend { addr: read!(at, addr), port: read!(at, port), flags: read!(at, flags) }
            }

            #[inline(always)]
            fn take_chunk_backend(&self, at: Self::Chunk, index: u32, into: &mut Backend<$addr>) {
                // SAFETY: as above.
                unsafe {
                    let at = addr_of!((*at).backends).cast::<Backend<$addr>>().add((index & 15) as usize);
                    <$addr>::take_backend(at, into);
                }
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<$addr>) -> Option<Affinity<$addr>> {
                let at = maps::$affinity.get_ptr(key)?;
                Some(Affinity {
                    backend: Backend {
                        addr: read!(at, backend.addr),
                        port: read!(at, backend.port),
                        flags: read!(at, backend.flags),
                    },
                    seen_s: read!(at, seen_s),
                })
            }

            #[inline(always)]
            fn take_affinity(&self, key: &AffinityKey<$addr>, into: &mut Affinity<$addr>) -> bool {
                let Some(at) = maps::$affinity.get_ptr(key) else { return false };
                // SAFETY: as above. The copy is not atomic: if another client of the same address changes the
                // entry in the meantime, the copy is a mix of two backends, which is no member of the
                // Service.
                unsafe { <$addr>::take_affinity(at, into) };
                true
            }

            #[inline(always)]
            fn set_affinity(&self, key: &AffinityKey<$addr>, value: &Affinity<$addr>) {
                // If the map has no room, the client's next connection selects a backend again, which is no
                // fault.
                let _ = maps::$affinity.insert(key, value, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn member(&self, key: &MemberKey<$addr>) -> bool {
                maps::$member.get_ptr(key).is_some()
            }

            #[inline(always)]
            fn node(&self, addr: &$addr) -> Option<NodeAddress> {
                let at = maps::$node.get_ptr(addr)?;
                Some(NodeAddress { node_ports: read!(at, node_ports) })
            }

            #[inline(always)]
            fn node_number(&self, addr: &$addr) -> u32 {
                match maps::$node.get_ptr(addr) {
                    Some(at) => (read!(at, node_ports) & 1) + 1,
                    None => 0,
                }
            }

            #[inline(always)]
            fn in_service_range(&self, addr: $addr) -> bool {
                let addr = addr.halves();
                let Some(at) = Kernel::config() else { return false };
                // SAFETY: the element of the array of one.
                let mut range = unsafe { addr_of!((*at).$ranges) }.cast::<Prefix>();
                let mut left = number::<2>();
                loop {
                    // SAFETY: one of the two ranges. A range that changes during the read may be read half;
                    // the agent writes the ranges before any Service.
                    if unsafe { <$addr>::lies_in(addr, range) } {
                        return true;
                    }
                    left -= 1;
                    if left == 0 {
                        return false;
                    }
                    range = range.wrapping_add(1);
                }
            }

            #[inline(always)]
            fn number<const N: u32>(&self) -> u32 {
                number::<N>()
            }

            #[inline(always)]
            fn opaque(&self, number: u32) -> u32 {
                opaque(number)
            }

            #[inline(always)]
            fn opaque_ref<'p, T>(&self, at: &'p mut T) -> &'p mut T {
                opaque_ref(at)
            }

            #[inline(always)]
            fn clear(&self, addr: &mut $addr) {
                // SAFETY: the trait requires an aligned address.
                unsafe { addr.clear() };
            }

            #[inline(always)]
            fn rand(&self) -> u32 {
                // SAFETY: a helper without arguments.
                unsafe { bpf_get_prandom_u32() }
            }

            #[inline(always)]
            fn now_s(&self) -> u32 {
                Kernel::now_s()
            }
        }
    };
}

family!(V4, SERVICE4, CHUNK4, AFFINITY4, MEMBER4, NODE4, service4);
family!(V6, SERVICE6, CHUNK6, AFFINITY6, MEMBER6, NODE6, service6);
