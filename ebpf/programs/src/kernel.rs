//! The decision core's tables as kernel maps.

use crate::{maps, wide::Wide};
use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Chunk, ChunkKey, Config, MemberKey, NodeAddress, Prefix, Service,
    ServiceKey, V4, V6,
};
use berth_ebpf_decide::{Header, Maps};
use core::{arch::asm, ptr::addr_of};

/// The kernel's maps.
#[derive(Clone, Copy)]
pub(crate) struct Kernel;

impl Kernel {
    /// The configuration: the element of an array of one, so it is always there.
    #[inline(always)]
    pub(crate) fn config() -> Option<*const Config> {
        maps::CONFIG.get_ptr(0)
    }

    /// Seconds of CLOCK_MONOTONIC, wrapping after 136 years.
    #[inline(always)]
    pub(crate) fn now_s() -> u32 {
        // SAFETY: a helper without arguments.
        let ns = unsafe { bpf_ktime_get_coarse_ns() };
        (ns / 1_000_000_000) as u32
    }
}

/// Milliseconds of CLOCK_MONOTONIC, wrapping after 49 days; as coarse as the kernel's tick.
#[inline(always)]
pub(crate) fn now_ms() -> u32 {
    // SAFETY: a helper without arguments.
    let ns = unsafe { bpf_ktime_get_coarse_ns() };
    ((ns / 1_000_000) & 0xffff_ffff) as u32
}

/// Reads a field of a value that others may write meanwhile.
macro_rules! read {
    ($at:expr, $($field:tt)+) => {
        // SAFETY: `$at` came from a map lookup of this run, so the memory stays a value of this type until the run's
        // end (its content may be replaced: the caller checks the tag); volatile, for others write it.
        unsafe { addr_of!((*$at).$($field)+).read_volatile() }
    };
}

/// See [`Maps::number`].
#[inline(always)]
pub(crate) fn number<const N: u32>() -> u32 {
    let hidden: u64;
    // SAFETY: loads a constant into a register.
    unsafe { asm!("{} = {}", out(reg) hidden, const N, options(nomem, nostack, preserves_flags)) };
    (hidden & 0xffff_ffff) as u32
}

/// See [`Maps::opaque`].
#[inline(always)]
fn opaque(number: u32) -> u32 {
    let hidden: u64;
    // SAFETY: moves a number from register to register.
    unsafe {
        asm!("{} = {}", out(reg) hidden, in(reg) u64::from(number), options(nomem, nostack, preserves_flags));
    }
    (hidden & 0xffff_ffff) as u32
}

/// Eight bytes of zeros, of which the compiler does not know: it calls a function to write zeros that it knows of.
#[inline(always)]
pub(crate) fn zeros() -> u64 {
    let zeros: u64;
    // SAFETY: loads a constant into a register.
    unsafe { asm!("{} = 0", out(reg) zeros, options(nomem, nostack, preserves_flags)) };
    zeros
}

/// See [`Maps::opaque_ref`].
#[inline(always)]
fn opaque_ref<T>(at: &mut T) -> &mut T {
    let hidden: *mut T;
    // SAFETY: moves an address from register to register; it stays borrowed as it was.
    unsafe {
        asm!("{} = {}", out(reg) hidden, in(reg) core::ptr::from_mut(at), options(nostack, preserves_flags));
        &mut *hidden
    }
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
                        // SAFETY: as above; the two stand side by side, at four bytes' alignment.
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
                // SAFETY: the index is below the array's length.
                let at = unsafe { addr_of!((*at).inline).cast::<Backend<$addr>>().add((index & 3) as usize) };
                Backend { addr: read!(at, addr), port: read!(at, port), flags: read!(at, flags) }
            }

            #[inline(always)]
            fn take_inline(&self, at: Self::Service, index: u32, into: &mut Backend<$addr>) {
                // SAFETY: the index is below the array's length; the decision's memory is aligned.
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
                // SAFETY: the index is below the array's length.
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
                // SAFETY: as above. The copy is no single step: an entry that another client of the same address
                // changes meanwhile may be read half, which is then no member of the Service.
                unsafe { <$addr>::take_affinity(at, into) };
                true
            }

            #[inline(always)]
            fn set_affinity(&self, key: &AffinityKey<$addr>, value: &Affinity<$addr>) {
                // A client that is not remembered is given a backend anew: no fault.
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
                // SAFETY: the element of the array.
                let mut range = unsafe { addr_of!((*at).$ranges) }.cast::<Prefix>();
                let mut left = number::<2>();
                loop {
                    // SAFETY: one of the two. A range that is being changed may be read half; it is set before
                    // Services exist.
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
                // SAFETY: as the trait says.
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
