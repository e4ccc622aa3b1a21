//! What a socket remembers: which virtual address an answer stands for.

use crate::maps::{REVERSE4, REVERSE6};
use aya_ebpf::{btf_maps::SkStorage, programs::SockAddrContext};
use berth_ebpf_abi::{REVERSE, Reverse, Reverses, V4, V6};
use berth_ebpf_decide::Family;
use core::{arch::asm, ptr::addr_of_mut};

/// A family with its socket storage.
pub(crate) trait Remembered: Family {
    /// The map.
    fn storage() -> &'static SkStorage<Reverses<Self>>;
}

impl Remembered for V4 {
    #[inline(always)]
    fn storage() -> &'static SkStorage<Reverses<V4>> {
        &REVERSE4
    }
}

impl Remembered for V6 {
    #[inline(always)]
    fn storage() -> &'static SkStorage<Reverses<V6>> {
        &REVERSE6
    }
}

/// Where an entry of the ring lies.
///
/// # Safety
/// `at` is a value of the socket storage of this run.
#[inline(always)]
unsafe fn entry<A>(at: *mut Reverses<A>, index: u32) -> *mut Reverse<A> {
    const { assert!(REVERSE == 8) };
    // SAFETY: masked to the array's length.
    unsafe { addr_of_mut!((*at).entries).cast::<Reverse<A>>().add((index & 7) as usize) }
}

/// The ring's length, unknown to the compiler: it would write the body of a loop eight times; the verifier walks it.
#[inline(always)]
fn ring() -> u32 {
    let n: u64;
    // SAFETY: loads a constant into a register.
    unsafe { asm!("{} = {}", out(reg) n, const REVERSE, options(pure, nomem, nostack, preserves_flags)) };
    n as u32
}

/// Finds the entry of a backend.
///
/// # Safety
/// As for [`entry`].
#[inline(always)]
unsafe fn find<A: Remembered>(at: *mut Reverses<A>, backend: A, port: u16) -> Option<*mut Reverse<A>> {
    let (mut index, end) = (0, ring());
    loop {
        // SAFETY: the caller's.
        let here = unsafe { entry(at, index) };
        // SAFETY: within the value. Another thread may be writing it when it sends by the same socket to a ninth
        // backend; then one datagram's sender may be shown as it is, or as the address just dialled.
        if unsafe { (*here).backend_port == port && (*here).backend == backend } {
            return Some(here);
        }
        index += 1;
        if index == end {
            return None;
        }
    }
}

/// Remembers a translation. One per backend: a later one over the same backend replaces it.
///
/// Returns whether it is remembered; without memory for it the address had better stay as it is.
#[inline(always)]
pub(crate) fn remember<A: Remembered>(ctx: &SockAddrContext, new: Reverse<A>) -> bool {
    // SAFETY: the context is the kernel's own; its socket is what the helper wants.
    let at = unsafe { A::storage().get_or_insert_ptr_mut(ctx, None) };
    if at.is_null() {
        return false;
    }
    // SAFETY: a value of this run's socket, and places in it.
    unsafe {
        let place = match find(at, new.backend, new.backend_port) {
            Some(place) => place,
            None => {
                let next = addr_of_mut!((*at).next).read_volatile();
                addr_of_mut!((*at).next).write_volatile(next.wrapping_add(1));
                entry(at, next)
            }
        };
        place.write(new);
    }
    true
}

/// Finds what an answer of `backend` stands for. `port` is not 0, so no unused entry is found.
#[inline(always)]
pub(crate) fn recall<A: Remembered>(ctx: &SockAddrContext, backend: A, port: u16) -> Option<(A, u16)> {
    // SAFETY: as above.
    let at = unsafe { A::storage().get_ptr_mut(ctx) };
    if at.is_null() || port == 0 {
        return None;
    }
    // SAFETY: a value of this run's socket.
    unsafe { find(at, backend, port).map(|place| ((*place).addr, (*place).port)) }
}
