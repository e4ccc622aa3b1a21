//! Copies of addresses and of the values that hold them: IPv6 addresses by eight bytes instead of by four.
//! Owns no state. The rules of alignment are in [`crate::asm`].

use crate::asm::{copy, load, store, zeros};
use berth_ebpf_abi::{Affinity, Backend, Client, Flow, LocalPod, Prefix, Reverse, V4, V6};
use berth_ebpf_decide::Family;
use core::mem::offset_of;

/// Copies the entry of a pod.
///
/// # Safety
/// `at` and `into` lie in values of maps of this run.
#[inline(always)]
pub(crate) unsafe fn take_pod(at: *const LocalPod, into: *mut LocalPod) {
    const { assert!(size_of::<LocalPod>() == 20 && align_of::<LocalPod>() == 4) };
    // SAFETY: the caller's.
    unsafe {
        copy!(at, into; 0 8);
        into.cast::<u32>().add(4).write(at.cast::<u32>().add(4).read());
    }
}

/// Address family whose values can be copied in the kernel.
pub(crate) trait Wide: Family {
    /// Address in registers.
    type Halves: Copy;
    /// Loads the address into registers; an address known to be aligned to eight bytes is loaded at once.
    fn halves(&self) -> Self::Halves;
    /// Overwrites the address.
    ///
    /// # Safety
    /// The address is aligned to eight bytes.
    unsafe fn put(&mut self, addr: Self::Halves);
    /// Copies a backend from a map.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run; `into` is aligned to eight bytes on the stack.
    unsafe fn take_backend(at: *const Backend<Self>, into: &mut Backend<Self>);
    /// Copies the affinity of a client from a map.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run; `into` is aligned to eight bytes on the stack.
    unsafe fn take_affinity(at: *const Affinity<Self>, into: &mut Affinity<Self>);
    /// Copies a pod's address from a map.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run; `into` is aligned to eight bytes on the stack.
    unsafe fn take_client(at: *const Client, into: &mut Self);
    /// Copies a flow's entry of one direction.
    ///
    /// # Safety
    /// `at` and `into` lie in values of maps of this run.
    unsafe fn take_flow(at: *const Flow<Self>, into: *mut Flow<Self>);
    /// Copies a source address and the destination address behind it.
    ///
    /// # Safety
    /// `at` and `into` lie in values of maps of this run.
    unsafe fn take_pair(at: *const Self, into: *mut Self);
    /// Sets the address to zeros.
    ///
    /// # Safety
    /// The address is aligned to eight bytes.
    unsafe fn clear(&mut self);
    /// Address that stands for a network namespace.
    fn namespace(cookie: u64) -> Self::Halves;
    /// Whether the address lies in a range of the configuration.
    ///
    /// # Safety
    /// `range` lies in a value of a map of this run.
    unsafe fn lies_in(addr: Self::Halves, range: *const Prefix) -> bool;
    /// Whether an entry of a socket's storage has this dialled address.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run.
    unsafe fn is_dialled(at: *const Reverse<Self>, addr: Self::Halves) -> bool;
    /// Address of the backend in an entry of a socket's storage.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run.
    unsafe fn backend_of(at: *const Reverse<Self>) -> Self::Halves;
    /// Whether an entry of a socket's storage has this backend address.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run.
    unsafe fn has_backend(at: *const Reverse<Self>, backend: Self::Halves) -> bool;
    /// Dialled address in an entry of a socket's storage.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run.
    unsafe fn dialled(at: *const Reverse<Self>) -> Self::Halves;
    /// Writes the dialled address of an entry.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run.
    unsafe fn put_dialled(at: *mut Reverse<Self>, addr: Self::Halves);
    /// Writes the backend's address of an entry.
    ///
    /// # Safety
    /// `at` lies in a value of a map of this run.
    unsafe fn put_backend(at: *mut Reverse<Self>, backend: Self::Halves);
}

impl Wide for V4 {
    type Halves = V4;

    #[inline(always)]
    fn halves(&self) -> V4 {
        *self
    }

    #[inline(always)]
    unsafe fn put(&mut self, addr: V4) {
        *self = addr;
    }

    #[inline(always)]
    unsafe fn take_backend(at: *const Backend<V4>, into: &mut Backend<V4>) {
        // SAFETY: the caller's; both are eight bytes long.
        unsafe { core::ptr::from_mut(into).cast::<u64>().write(load::<0, _>(at)) }
    }

    #[inline(always)]
    unsafe fn take_affinity(at: *const Affinity<V4>, into: &mut Affinity<V4>) {
        // SAFETY: the caller's.
        unsafe {
            V4::take_backend(&raw const (*at).backend, &mut into.backend);
            into.seen_s = (&raw const (*at).seen_s).read_volatile();
        }
    }

    #[inline(always)]
    unsafe fn take_client(at: *const Client, into: &mut V4) {
        // SAFETY: the caller's.
        *into = unsafe { (*at).v4 };
    }

    #[inline(always)]
    unsafe fn take_flow(at: *const Flow<V4>, into: *mut Flow<V4>) {
        const { assert!(size_of::<Flow<V4>>() == 40) };
        // SAFETY: the caller's.
        unsafe {
            copy!(at, into; 0 8 16 24 32);
        }
    }

    #[inline(always)]
    unsafe fn take_pair(at: *const V4, into: *mut V4) {
        // SAFETY: the caller's.
        unsafe {
            copy!(at, into; 0);
        };
    }

    #[inline(always)]
    unsafe fn clear(&mut self) {
        *self = 0;
    }

    #[inline(always)]
    fn namespace(cookie: u64) -> V4 {
        V4::of_namespace(cookie)
    }

    #[inline(always)]
    unsafe fn is_dialled(at: *const Reverse<V4>, addr: V4) -> bool {
        // SAFETY: the caller's.
        unsafe { (*at).addr == addr }
    }

    #[inline(always)]
    unsafe fn backend_of(at: *const Reverse<V4>) -> V4 {
        // SAFETY: the caller's.
        unsafe { (&raw const (*at).backend).read_volatile() }
    }

    #[inline(always)]
    unsafe fn lies_in(addr: V4, range: *const Prefix) -> bool {
        // SAFETY: the caller's.
        addr.within(unsafe { &*range })
    }

    #[inline(always)]
    unsafe fn has_backend(at: *const Reverse<V4>, backend: V4) -> bool {
        // SAFETY: the caller's.
        unsafe { (*at).backend == backend }
    }

    #[inline(always)]
    unsafe fn dialled(at: *const Reverse<V4>) -> V4 {
        // SAFETY: the caller's.
        unsafe { (*at).addr }
    }

    #[inline(always)]
    unsafe fn put_dialled(at: *mut Reverse<V4>, addr: V4) {
        // SAFETY: the caller's.
        unsafe { (*at).addr = addr };
    }

    #[inline(always)]
    unsafe fn put_backend(at: *mut Reverse<V4>, backend: V4) {
        // SAFETY: the caller's.
        unsafe { (*at).backend = backend };
    }
}

/// Offset of a pod's IPv6 address.
const CLIENT_V6: usize = offset_of!(Client, v6);
/// Offset of a range's network.
const NET: usize = offset_of!(Prefix, net);
/// Offset of a range's mask.
const MASK: usize = offset_of!(Prefix, mask);
/// Offset of the backend's address in an entry of a socket's storage.
const BACKEND: usize = offset_of!(Reverse<V6>, backend);

impl Wide for V6 {
    type Halves = [u64; 2];

    #[inline(always)]
    fn halves(&self) -> [u64; 2] {
        let [a, b, c, d] = *self;
        [u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32]
    }

    #[inline(always)]
    unsafe fn put(&mut self, [a, b]: [u64; 2]) {
        let at = core::ptr::from_mut(self).cast::<u64>();
        // SAFETY: the caller's.
        unsafe {
            at.write(a);
            at.add(1).write(b);
        }
    }

    #[inline(always)]
    unsafe fn take_backend(at: *const Backend<V6>, into: &mut Backend<V6>) {
        const { assert!(offset_of!(Backend<V6>, port) == 16 && offset_of!(Backend<V6>, flags) == 18) };
        let into = core::ptr::from_mut(into);
        // SAFETY: the caller's; both are twenty bytes long.
        unsafe {
            into.cast::<u64>().write(load::<0, _>(at));
            into.cast::<u64>().add(1).write(load::<8, _>(at));
            let rest = at.cast::<u32>().add(4).read_volatile();
            into.cast::<u32>().add(4).write(rest);
        }
    }

    #[inline(always)]
    unsafe fn take_affinity(at: *const Affinity<V6>, into: &mut Affinity<V6>) {
        const { assert!(size_of::<Affinity<V6>>() == 24) };
        let into = core::ptr::from_mut(into).cast::<u64>();
        // SAFETY: the caller's; both are twenty-four bytes long.
        unsafe {
            into.write(load::<0, _>(at));
            into.add(1).write(load::<8, _>(at));
            into.add(2).write(load::<16, _>(at));
        }
    }

    #[inline(always)]
    unsafe fn take_client(at: *const Client, into: &mut V6) {
        let into = core::ptr::from_mut(into).cast::<u64>();
        // SAFETY: the caller's.
        unsafe {
            into.write(load::<CLIENT_V6, _>(at));
            into.add(1).write(load::<{ CLIENT_V6 + 8 }, _>(at));
        }
    }

    #[inline(always)]
    unsafe fn take_flow(at: *const Flow<V6>, into: *mut Flow<V6>) {
        const { assert!(size_of::<Flow<V6>>() == 64) };
        // SAFETY: the caller's.
        unsafe {
            copy!(at, into; 0 8 16 24 32 40 48 56);
        }
    }

    #[inline(always)]
    unsafe fn take_pair(at: *const V6, into: *mut V6) {
        // SAFETY: the caller's.
        unsafe {
            copy!(at, into; 0 8 16 24);
        };
    }

    #[inline(always)]
    fn namespace(cookie: u64) -> [u64; 2] {
        [1, cookie]
    }

    #[inline(always)]
    unsafe fn is_dialled(at: *const Reverse<V6>, [a, b]: [u64; 2]) -> bool {
        // SAFETY: the caller's.
        unsafe { load::<0, _>(at) == a && load::<8, _>(at) == b }
    }

    #[inline(always)]
    unsafe fn backend_of(at: *const Reverse<V6>) -> [u64; 2] {
        // SAFETY: the caller's.
        unsafe { [load::<BACKEND, _>(at), load::<{ BACKEND + 8 }, _>(at)] }
    }

    #[inline(always)]
    unsafe fn clear(&mut self) {
        let (at, zeros) = (core::ptr::from_mut(self).cast::<u64>(), zeros());
        // SAFETY: the caller's.
        unsafe {
            at.write(zeros);
            at.add(1).write(zeros);
        }
    }

    #[inline(always)]
    unsafe fn lies_in([a, b]: [u64; 2], range: *const Prefix) -> bool {
        // SAFETY: the caller's.
        unsafe {
            let (net, mask) = (load::<NET, _>(range), load::<MASK, _>(range));
            (net | mask) != 0
                && a & mask == net
                && b & load::<{ MASK + 8 }, _>(range) == load::<{ NET + 8 }, _>(range)
        }
    }

    #[inline(always)]
    unsafe fn has_backend(at: *const Reverse<V6>, [a, b]: [u64; 2]) -> bool {
        // SAFETY: the caller's.
        unsafe { load::<BACKEND, _>(at) == a && load::<{ BACKEND + 8 }, _>(at) == b }
    }

    #[inline(always)]
    unsafe fn dialled(at: *const Reverse<V6>) -> [u64; 2] {
        // SAFETY: the caller's.
        unsafe { [load::<0, _>(at), load::<8, _>(at)] }
    }

    #[inline(always)]
    unsafe fn put_dialled(at: *mut Reverse<V6>, [a, b]: [u64; 2]) {
        // SAFETY: the caller's.
        unsafe {
            store::<0, _>(at, a);
            store::<8, _>(at, b);
        }
    }

    #[inline(always)]
    unsafe fn put_backend(at: *mut Reverse<V6>, [a, b]: [u64; 2]) {
        // SAFETY: the caller's.
        unsafe {
            store::<BACKEND, _>(at, a);
            store::<{ BACKEND + 8 }, _>(at, b);
        }
    }
}
