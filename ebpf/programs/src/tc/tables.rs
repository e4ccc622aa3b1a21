//! The tables of connections as kernel maps.

use super::act::{Headers, Scratch, Work};
use crate::{
    kernel::Kernel,
    maps,
    wide::{Wide, take_pod},
};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_loop,
    macros::map,
    maps::PerCpuArray,
};
use berth_ebpf_abi::{Addr, Config, Flow, FragmentKey, FragmentPorts, LocalPod, Tuple, V4, V6, config};
use berth_ebpf_decide::flow::{Bucket, FlowMaps};
use core::{
    ffi::c_void,
    mem::size_of,
    ptr::{addr_of, addr_of_mut},
};

/// Where a run for an IPv4 packet works.
#[map]
pub(super) static SCRATCH4: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// Where a run for an IPv6 packet works.
#[map]
pub(super) static SCRATCH6: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// A run's memory.
#[inline(always)]
pub(super) fn work<A: Headers>(scratch: &PerCpuArray<Scratch>) -> Option<&'static mut Work<A>> {
    const { assert!(size_of::<Work<A>>() <= BUCKET * size_of::<u64>()) };
    let at = scratch.get_ptr_mut(0)?;
    // SAFETY: this processor's element, there as long as the program and large enough; a run neither sleeps nor is
    // interrupted by another of these programs, so it is the only one here. All of `Work` is integers but for `Part`,
    // which is written before it is read.
    Some(unsafe { &mut *at.cast::<Work<A>>() })
}

/// The word of a run's memory that outlives the run.
const BUCKET: usize = size_of::<Scratch>() / size_of::<u64>() - 1;

/// What this processor may still answer.
#[inline(always)]
pub(super) fn bucket(scratch: &PerCpuArray<Scratch>) -> Option<&'static mut Bucket> {
    const { assert!(size_of::<Bucket>() == size_of::<u64>()) };
    let at = scratch.get_ptr_mut(0)?;
    // SAFETY: this processor's element and its last word, which no `Work` reaches; as with that, no other run is here.
    // Any bytes are a bucket.
    Some(unsafe { &mut *addr_of_mut!((*at)[BUCKET]).cast::<Bucket>() })
}

/// Takes a step up to `times` times, until one says that it was the last.
#[inline(always)]
pub(super) fn repeat<F: FnMut(u32) -> bool>(times: u32, mut step: F) {
    // SAFETY: the kernel calls `one` with this very `step`, which lives over the call.
    unsafe { bpf_loop(times, one::<F> as *mut c_void, addr_of_mut!(step).cast(), 0) };
}

/// What the kernel calls: a step.
///
/// # Safety
///
/// `step` must be the step that was handed to the kernel.
unsafe extern "C" fn one<F: FnMut(u32) -> bool>(number: u64, step: *mut F) -> i64 {
    // SAFETY: as required of the caller; nobody else uses it meanwhile.
    let last = unsafe { (*step)((number & 0xffff_ffff) as u32) };
    i64::from(last)
}

/// Reads a field of the configuration; its default where there is none, which cannot be.
macro_rules! config {
    ($($field:tt)+) => {
        match Kernel::config() {
            // SAFETY: the element of an array of one, there as long as the program.
            Some(at) => unsafe { addr_of!((*at).$($field)+).read() },
            None => Config::default().$($field)+,
        }
    };
}

macro_rules! family {
    ($addr:ty, $flow:ident, $fragment:ident, $pod:ident, $masquerade:ident) => {
        impl FlowMaps<$addr> for Kernel {
            #[inline(always)]
            fn flow(&self, key: &Tuple<$addr>, into: &mut Flow<$addr>) -> bool {
                let Some(at) = maps::$flow.get_ptr(key) else { return false };
                // SAFETY: a value of this type until the run's end, and a run's memory. An entry that the table evicts meanwhile may be
                // read as another's: as with any table that is reused without waiting, the next packet reads right.
                unsafe { <$addr>::take_flow(at, into) };
                true
            }

            #[inline(always)]
            fn insert(&self, key: &Tuple<$addr>, value: &Flow<$addr>) -> bool {
                maps::$flow.insert(key, value, u64::from(BPF_NOEXIST)).is_ok()
            }

            #[inline(always)]
            fn touch(&self, key: &Tuple<$addr>, flags: u32, generation: u32, seen_s: u32) {
                if let Some(at) = maps::$flow.get_ptr_mut(key) {
                    // SAFETY: as in `flow`; the packets of one direction come on one CPU, and where not, a state that
                    // is lost only changes when the entry is removed.
                    unsafe {
                        addr_of_mut!((*at).flags).write_volatile(flags);
                        addr_of_mut!((*at).generation).write_volatile(generation);
                        addr_of_mut!((*at).seen_s).write_volatile(seen_s);
                    }
                }
            }

            #[inline(always)]
            fn remove(&self, key: &Tuple<$addr>) {
                // What is gone already is gone.
                let _ = maps::$flow.remove(key);
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<FragmentPorts> {
                // SAFETY: as in `flow`.
                maps::$fragment.get_ptr(key).map(|at| unsafe { at.read() })
            }

            #[inline(always)]
            fn keep_fragment(&self, key: &FragmentKey<$addr>, value: &FragmentPorts) {
                // Without it the datagram's rest is dropped, which is what a network may do.
                let _ = maps::$fragment.insert(key, value, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn pod(&self, addr: &$addr) -> Option<LocalPod> {
                // SAFETY: as in `flow`; entries are not changed in place.
                maps::$pod.get_ptr(addr).map(|at| unsafe { at.read() })
            }

            #[inline(always)]
            fn take_pod(&self, addr: &$addr, into: &mut LocalPod) -> bool {
                let Some(at) = maps::$pod.get_ptr(addr) else { return false };
                // SAFETY: as above; and it is written to a run's memory, which is a map's.
                unsafe { take_pod(at, into) };
                true
            }

            #[inline(always)]
            fn redirects(&self) -> bool {
                config!(flags) & config::REDIRECT != 0
            }

            #[inline(always)]
            fn masquerades_all(&self) -> bool {
                config!(flags) & config::MASQUERADE_ALL != 0
            }

            #[inline(always)]
            fn masquerade(&self) -> $addr {
                match Kernel::config() {
                    // SAFETY: as in the macro.
                    Some(at) => unsafe { addr_of!((*at).$masquerade).read() },
                    None => <$addr>::ANY,
                }
            }

            #[inline(always)]
            fn ports(&self) -> [u16; 2] {
                config!(masquerade_ports)
            }

            #[inline(always)]
            fn repeat(&self, times: u32, step: impl FnMut(u32) -> bool) {
                repeat(times, step);
            }
        }
    };
}

family!(V4, FLOW4, FRAGMENT4, POD4, masquerade4);
family!(V6, FLOW6, FRAGMENT6, POD6, masquerade6);
