//! What a socket remembers: which virtual address an answer stands for.

use crate::{
    kernel::number,
    maps::{REVERSE4, REVERSE6},
    naming::{self, Halves, Naming},
    wide::Wide,
};
use aya_ebpf::{btf_maps::SkStorage, programs::SockAddrContext};
use berth_ebpf_abi::{Backend, REVERSE, Reverse, Reverses, V4, V6};
use core::ptr::addr_of_mut;

/// A family with its socket storage.
pub(crate) trait Remembered: Wide {
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

/// Finds the entry of a backend.
///
/// # Safety
/// As for [`entry`].
#[inline(always)]
unsafe fn find<A: Remembered>(
    at: *mut Reverses<A>,
    backend: A::Halves,
    port: u16,
) -> Option<*mut Reverse<A>> {
    // Unknown to the compiler, which would write the loop's body eight times; the verifier walks it.
    let mut left = number::<{ REVERSE as u32 }>();
    // SAFETY: the caller's.
    let mut here = unsafe { entry(at, 0) };
    loop {
        // SAFETY: within the value. Another thread may be writing it when it sends by the same socket to a ninth
        // backend; then one datagram's sender may be shown as it is, or as the address just dialled.
        if unsafe { (*here).backend_port == port && A::same(here, backend) } {
            return Some(here);
        }
        left -= 1;
        if left == 0 {
            return None;
        }
        here = here.wrapping_add(1);
    }
}

/// Turns a call to a backend, after remembering what it named. One memory per backend: a later one over the same
/// backend replaces it.
///
/// Without memory for it the call stays as it is.
#[inline(always)]
pub(crate) fn redirect<N: Naming>(ctx: &SockAddrContext, backend: &Backend<N::Addr>) {
    // SAFETY: the context is the kernel's own; its socket is what the helper wants.
    let at = unsafe { N::Addr::storage().get_or_insert_ptr_mut(ctx, None) };
    if at.is_null() {
        return;
    }
    let (addr, port) = (backend.addr.halves(), backend.port);
    // SAFETY: a value of this run's socket, and places in it.
    unsafe {
        let place = match find(at, addr, port) {
            Some(place) => place,
            None => {
                let next = addr_of_mut!((*at).next).read_volatile();
                addr_of_mut!((*at).next).write_volatile(next.wrapping_add(1));
                entry(at, next)
            }
        };
        N::Addr::put_addr(place, N::read(ctx));
        (*place).port = naming::port(ctx);
        N::Addr::put_backend(place, addr);
        (*place).backend_port = port;
    }
    N::write(ctx, addr);
    naming::set_port(ctx, port);
}

/// Shows what was dialled where an answer is of a backend. Its port is not 0, so no unused entry is found.
#[inline(always)]
pub(crate) fn recall<N: Naming>(ctx: &SockAddrContext, backend: Halves<N>) {
    let port = naming::port(ctx);
    // SAFETY: as above.
    let at = unsafe { N::Addr::storage().get_ptr_mut(ctx) };
    if at.is_null() || port == 0 {
        return;
    }
    // SAFETY: a value of this run's socket.
    unsafe {
        if let Some(place) = find(at, backend, port) {
            N::write(ctx, N::Addr::dialled(place));
            naming::set_port(ctx, (*place).port);
        }
    }
}
