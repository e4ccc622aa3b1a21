//! What a socket remembers: which virtual address an answer stands for.

use crate::{
    kernel::number,
    maps::{REVERSE4, REVERSE6},
    naming::{self, Halves, Naming},
    wide::Wide,
};
use aya_ebpf::{btf_maps::SkStorage, programs::SockAddrContext};
use berth_ebpf_abi::{REVERSE, Reverse, Reverses, V4, V6};
use berth_ebpf_decide::ring::{Ring, remember, remember_alone, search};
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

/// What a call's socket remembers.
pub(crate) struct Memory<'c, N: Naming> {
    at: *mut Reverses<N::Addr>,
    ctx: &'c SockAddrContext,
}

impl<'c, N: Naming> Memory<'c, N> {
    /// Of a socket that remembers anything.
    #[inline(always)]
    pub(crate) fn of(ctx: &'c SockAddrContext) -> Option<Memory<'c, N>> {
        // SAFETY: the context is the kernel's own; its socket is what the helper wants.
        let at = unsafe { N::Addr::storage().get_ptr_mut(ctx) };
        if at.is_null() { None } else { Some(Memory { at, ctx }) }
    }

    /// Makes room for it. Nothing where the kernel has none.
    #[inline(always)]
    fn made(ctx: &'c SockAddrContext) -> Option<Memory<'c, N>> {
        // SAFETY: as above.
        let at = unsafe { N::Addr::storage().get_or_insert_ptr_mut(ctx, None) };
        if at.is_null() { None } else { Some(Memory { at, ctx }) }
    }
}

impl<N: Naming> Ring<N::Addr> for Memory<'_, N> {
    type Place = *mut Reverse<N::Addr>;
    type Addr = (Halves<N>, u16);

    #[inline(always)]
    fn first(&self) -> Self::Place {
        // SAFETY: a value of the socket storage of this run.
        unsafe { addr_of_mut!((*self.at).entries).cast() }
    }

    #[inline(always)]
    fn after(&self, place: Self::Place) -> Self::Place {
        place.wrapping_add(1)
    }

    #[inline(always)]
    fn oldest(&self) -> Self::Place {
        const { assert!(REVERSE == 8) };
        // SAFETY: as above; masked to the array's length.
        unsafe {
            let next = addr_of_mut!((*self.at).next).read_volatile();
            addr_of_mut!((*self.at).next).write_volatile(next.wrapping_add(1));
            self.first().add((next & 7) as usize)
        }
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        number::<{ REVERSE as u32 }>()
    }

    #[inline(always)]
    fn named(&self) -> Self::Addr {
        (N::read(self.ctx), naming::port(self.ctx))
    }

    #[inline(always)]
    fn is_dialled(&self, place: Self::Place, (addr, port): Self::Addr) -> bool {
        // SAFETY: within the value. Another thread may be writing it when it sends by the same socket to a ninth
        // address; then a datagram chooses anew.
        unsafe { (*place).port == port && N::Addr::is_dialled(place, addr) }
    }

    #[inline(always)]
    fn leads_to(&self, place: Self::Place, (addr, port): Self::Addr) -> bool {
        // SAFETY: within the value. As above; then one datagram's sender may be shown as it is, or as the address just
        // dialled.
        unsafe { (*place).backend_port == port && N::Addr::same(place, addr) }
    }

    #[inline(always)]
    fn copy_dialled(&self, from: Self::Place, to: Self::Place) {
        // SAFETY: within the value.
        unsafe {
            N::Addr::put_addr(to, N::Addr::dialled(from));
            (*to).port = (*from).port;
        }
    }

    #[inline(always)]
    fn write_dialled(&self, place: Self::Place, (addr, port): Self::Addr) {
        // SAFETY: within the value.
        unsafe {
            N::Addr::put_addr(place, addr);
            (*place).port = port;
        }
    }

    #[inline(always)]
    fn write_backend(&self, place: Self::Place, (addr, port): Self::Addr) {
        // SAFETY: within the value.
        unsafe {
            N::Addr::put_backend(place, addr);
            (*place).backend_port = port;
        }
    }
}

/// Turns a connecting call to a backend, after remembering what it named. Without memory for it the socket shows the
/// backend.
#[inline(always)]
pub(crate) fn redirect<N: Naming>(ctx: &SockAddrContext, backend: (Halves<N>, u16)) {
    if let Some(memory) = Memory::<N>::made(ctx) {
        remember_alone(&memory, backend);
    }
    turn::<N>(ctx, backend);
}

/// Turns a datagram to a backend, likewise. `kept` is the entry of what it names; null where there is none.
///
/// Without memory for it a pod's datagram stays as it is: it is translated at the pod's device, and so is the answer.
#[inline(always)]
pub(crate) fn redirect_datagram<N: Naming>(
    ctx: &SockAddrContext,
    backend: (Halves<N>, u16),
    kept: *mut Reverse<N::Addr>,
    pod: bool,
) {
    match Memory::<N>::made(ctx) {
        Some(memory) => remember(&memory, if kept.is_null() { None } else { Some(kept) }, backend),
        None if pod => return,
        None => {}
    }
    turn::<N>(ctx, backend);
}

/// Turns a call to a backend.
#[inline(always)]
pub(crate) fn turn<N: Naming>(ctx: &SockAddrContext, (addr, port): (Halves<N>, u16)) {
    N::write(ctx, addr);
    naming::set_port(ctx, port);
}

/// Shows what was dialled where an answer is of a backend. Its port is not 0, so no unused entry is found.
#[inline(always)]
pub(crate) fn recall<N: Naming>(ctx: &SockAddrContext, backend: Halves<N>) {
    let port = naming::whole_port(ctx);
    if port == 0 {
        return;
    }
    let port = port as u16;
    let Some(memory) = Memory::<N>::of(ctx) else { return };
    if let Some(place) = search(&memory, |place| memory.leads_to(place, (backend, port))) {
        // SAFETY: a value of this run's socket.
        unsafe {
            N::write(ctx, N::Addr::dialled(place));
            naming::set_port(ctx, (*place).port);
        }
    }
}
