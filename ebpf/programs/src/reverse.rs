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
    // SAFETY: a value of this run's socket; the socket's lock or its single user keep others away, and a torn entry
    // would only show a datagram's sender as it is.
    unsafe {
        let (mut index, end) = (0, ring());
        let mut place = addr_of_mut!((*at).next).read_volatile();
        let mut found = false;
        while index < end {
            let old = entry(at, index);
            if (*old).backend_port == new.backend_port && (*old).backend == new.backend {
                place = index;
                found = true;
                break;
            }
            index += 1;
        }
        let old = entry(at, place);
        if !found {
            addr_of_mut!((*at).next).write_volatile(place.wrapping_add(1));
        }
        old.write(new);
    }
    true
}

/// Finds what an answer of `backend` stands for.
#[inline(always)]
pub(crate) fn recall<A: Remembered>(ctx: &SockAddrContext, backend: A, port: u16) -> Option<(A, u16)> {
    // SAFETY: as above.
    let at = unsafe { A::storage().get_ptr_mut(ctx) };
    if at.is_null() {
        return None;
    }
    let (mut index, end) = (0, ring());
    while index < end {
        // SAFETY: as above; an unused entry has port 0, which no answer has.
        unsafe {
            let old = entry(at, index);
            if (*old).backend_port == port && (*old).port != 0 && (*old).backend == backend {
                return Some(((*old).addr, (*old).port));
            }
        }
        index += 1;
    }
    None
}
