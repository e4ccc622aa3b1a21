//! The tables of flows ([`FlowMaps`]) as kernel maps. Owns no state: the maps are in [`crate::maps`].

use crate::{
    kernel::Kernel,
    maps::{self, bump},
    wide::{Wide, take_pod},
};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::{bpf_loop, bpf_map_pop_elem},
    maps::Queue,
};
use berth_ebpf_abi::{
    Addr, Begun, Config, Flow, FragmentKey, FragmentPorts, LocalPod, PodDevice, Tuple, V4, V6, config, count,
};
use berth_ebpf_decide::flow::{Class, FlowMaps, Put};
use core::{
    ffi::c_void,
    mem::size_of,
    ptr::{addr_of, addr_of_mut},
};

/// Calls `step` up to `times` times, until it returns true.
#[inline(always)]
pub(super) fn repeat<F: FnMut(u32) -> bool>(times: u32, mut step: F) {
    // SAFETY: the kernel calls `one` with this `step`, which lives over the call.
    unsafe { bpf_loop(times, one::<F> as *mut c_void, addr_of_mut!(step).cast(), 0) };
}

/// Function that the kernel calls for each step.
///
/// # Safety
///
/// `step` is the step that [`repeat`] passed to the kernel.
unsafe extern "C" fn one<F: FnMut(u32) -> bool>(number: u64, step: *mut F) -> i64 {
    // SAFETY: the caller's; `repeat` does not use the step during the kernel's call.
    let last = unsafe { (*step)((number & 0xffff_ffff) as u32) };
    i64::from(last)
}

/// Reads a field of the configuration, which always exists; the default is for the compiler.
macro_rules! config {
    ($($field:tt)+) => {
        match Kernel::config() {
            // SAFETY: the element of an array of one lives as long as the program.
            Some(at) => unsafe { addr_of!((*at).$($field)+).read() },
            None => Config::default().$($field)+,
        }
    };
}

/// `EEXIST`.
const EXISTS: i32 = 17;
const UDP: u32 = Class::Udp as u32;
const UNASSURED: u32 = Class::Unassured as u32;

/// Takes the first element of a queue.
#[inline(always)]
fn pop<T>(queue: &Queue<T>, into: &mut T) -> bool {
    // SAFETY: a `Queue` is the definition of its map; the helper writes all of `into` or fails.
    unsafe { bpf_map_pop_elem(addr_of!(*queue).cast_mut().cast(), addr_of_mut!(*into).cast()) == 0 }
}

/// Defines the functions that write and remove entries. They are not inlined, because each names three tables
/// and counts.
macro_rules! changes {
    ($put:ident, $remove:ident: $addr:ty, $v6:literal, $udp:ident, $unassured:ident, $assured:ident) => {
        /// Writes an entry under a free key. Returns [`Put`] as a number.
        #[inline(never)]
        fn $put(class: u32, key: &Tuple<$addr>, value: &Flow<$addr>) -> u32 {
            let flags = u64::from(BPF_NOEXIST);
            let done = match class {
                UDP => maps::$udp.insert(key, value, flags),
                UNASSURED => maps::$unassured.insert(key, value, flags),
                _ => maps::$assured.insert(key, value, flags),
            };
            match done {
                Ok(()) => {
                    bump(count::flow(count::FLOW_ENTERED, class, $v6));
                    Put::Done as u32
                }
                Err(e) if e == -EXISTS => Put::Exists as u32,
                Err(_) => Put::Full as u32,
            }
        }

        /// Removes an entry, which may be gone already.
        #[inline(never)]
        fn $remove(class: u32, key: &Tuple<$addr>) -> u32 {
            let done = match class {
                UDP => maps::$udp.remove(key),
                UNASSURED => maps::$unassured.remove(key),
                _ => maps::$assured.remove(key),
            };
            if done.is_ok() {
                bump(count::flow(count::FLOW_LEFT, class, $v6));
            }
            0
        }
    };
}

changes!(put4, remove4: V4, false, UDP4, UNASSURED4, ASSURED4);
changes!(put6, remove6: V6, true, UDP6, UNASSURED6, ASSURED6);

macro_rules! family {
    (
        $addr:ty, [$udp:ident, $unassured:ident, $assured:ident], [$begun_udp:ident, $begun_tcp:ident],
        $put:ident, $remove:ident, $fragment:ident, $pod:ident, $stack:ident, $masquerade:ident
    ) => {
        impl FlowMaps<$addr> for Kernel {
            #[inline(always)]
            fn find(&self, class: Class, key: &Tuple<$addr>, into: &mut Flow<$addr>) -> bool {
                let found = match class {
                    Class::Udp => maps::$udp.get_ptr(key),
                    Class::Unassured => maps::$unassured.get_ptr(key),
                    Class::Assured => maps::$assured.get_ptr(key),
                };
                let Some(at) = found else { return false };
                // SAFETY: a value of this type until the run's end, and the scratch memory of the run. The
                // memory of an entry that is removed in the meantime may be reused, so another flow's entry
                // may be read. The next packet reads the right one.
                unsafe { <$addr>::take_flow(at, into) };
                true
            }

            #[inline(always)]
            fn insert(&self, class: Class, key: &Tuple<$addr>, value: &Flow<$addr>) -> Put {
                match $put(class as u32, key, value) {
                    0 => Put::Done,
                    1 => Put::Exists,
                    _ => Put::Full,
                }
            }

            #[inline(always)]
            fn touch(&self, class: Class, key: &Tuple<$addr>, flags: u32, generation: u32, seen_s: u32) {
                let found = match class {
                    Class::Udp => maps::$udp.get_ptr_mut(key),
                    Class::Unassured => maps::$unassured.get_ptr_mut(key),
                    Class::Assured => maps::$assured.get_ptr_mut(key),
                };
                if let Some(at) = found {
                    // SAFETY: as in `find`. The packets of one direction usually come on one CPU; if two CPUs
                    // write at once, a lost state only changes the moment at which the entry is removed.
                    unsafe {
                        addr_of_mut!((*at).flags).write_volatile(flags);
                        addr_of_mut!((*at).generation).write_volatile(generation);
                        addr_of_mut!((*at).seen_s).write_volatile(seen_s);
                    }
                }
            }

            #[inline(always)]
            fn remove(&self, class: Class, key: &Tuple<$addr>) {
                let _always = $remove(class as u32, key);
            }

            #[inline(always)]
            fn enqueue(&self, class: Class, begun: &Begun<$addr>) -> bool {
                match class {
                    Class::Udp => maps::$begun_udp.push(begun, 0).is_ok(),
                    _ => maps::$begun_tcp.push(begun, 0).is_ok(),
                }
            }

            #[inline(always)]
            fn dequeue(&self, class: Class, into: &mut Begun<$addr>) -> bool {
                match class {
                    Class::Udp => pop(&maps::$begun_udp, into),
                    _ => pop(&maps::$begun_tcp, into),
                }
            }

            #[inline(always)]
            fn count(&self, block: u32, class: Class) {
                bump(count::flow(block, class as u32, size_of::<$addr>() == size_of::<V6>()));
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<FragmentPorts> {
                // SAFETY: as in `find`.
                maps::$fragment.get_ptr(key).map(|at| unsafe { at.read() })
            }

            #[inline(always)]
            fn keep_fragment(&self, key: &FragmentKey<$addr>, value: &FragmentPorts) {
                // If the map has no room, the datagram's other fragments are dropped, as in any network.
                let _ = maps::$fragment.insert(key, value, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn pod(&self, addr: &$addr) -> Option<LocalPod> {
                // SAFETY: as in `find`; entries are not changed in place.
                maps::$pod.get_ptr(addr).map(|at| unsafe { at.read() })
            }

            #[inline(always)]
            fn take_pod(&self, addr: &$addr, into: &mut LocalPod) -> bool {
                let Some(at) = maps::$pod.get_ptr(addr) else { return false };
                // SAFETY: as above; `into` lies in the scratch memory of the run, which is a map's value.
                unsafe { take_pod(at, into) };
                true
            }

            #[inline(always)]
            fn pod_device(&self, ifindex: u32) -> Option<PodDevice> {
                // SAFETY: as in `pod`.
                maps::POD_DEVICE.get_ptr(ifindex).map(|at| unsafe { at.read() })
            }

            #[inline(always)]
            fn is_of_stack(&self, key: &Tuple<$addr>) -> bool {
                maps::$stack.get_ptr(key).is_some()
            }

            #[inline(always)]
            fn note_of_stack(&self, key: &Tuple<$addr>) {
                // An LRU map accepts the entry unless memory is short; the connection then fails as without
                // the entry.
                let _ = maps::$stack.insert(key, 1, u64::from(BPF_ANY));
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
                    // SAFETY: as in `config!`.
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

family!(
    V4,
    [UDP4, UNASSURED4, ASSURED4],
    [BEGUN_UDP4, BEGUN_TCP4],
    put4,
    remove4,
    FRAGMENT4,
    POD4,
    STACK4,
    masquerade4
);
family!(
    V6,
    [UDP6, UNASSURED6, ASSURED6],
    [BEGUN_UDP6, BEGUN_TCP6],
    put6,
    remove6,
    FRAGMENT6,
    POD6,
    STACK6,
    masquerade6
);
