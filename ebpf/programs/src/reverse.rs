//! The translations that a socket remembers, in the socket's storage: answers are shown as from the dialled
//! address, and later datagrams keep their backend. Owns no state: the storage is a map.

use crate::{
    asm::number,
    maps::SocketStorage,
    sock_addr::{self, Halves, SockAddr},
    wide::Wide,
};
use aya_ebpf::programs::SockAddrContext;
use berth_ebpf_abi::{REVERSE, Reverse, Reverses};
use berth_ebpf_decide::ring::{Ring, remember, remember_alone, search};
use core::ptr::addr_of_mut;

/// Memory of a call's socket.
pub(crate) struct SocketMemory<'c, S: SockAddr> {
    at: *mut Reverses<S::Addr>,
    ctx: &'c SockAddrContext,
}

impl<'c, S: SockAddr> SocketMemory<'c, S> {
    /// The memory of the socket; `None` for a socket that remembers no translation.
    #[inline(always)]
    pub(crate) fn of(ctx: &'c SockAddrContext) -> Option<SocketMemory<'c, S>> {
        // SAFETY: the context is the kernel's own, and the helper takes its socket.
        let at = unsafe { S::Addr::storage().get_ptr_mut(ctx) };
        if at.is_null() { None } else { Some(SocketMemory { at, ctx }) }
    }

    /// The memory of the socket, created if missing; `None` if the kernel has no room for it.
    #[inline(always)]
    fn of_or_new(ctx: &'c SockAddrContext) -> Option<SocketMemory<'c, S>> {
        // SAFETY: as above.
        let at = unsafe { S::Addr::storage().get_or_insert_ptr_mut(ctx, None) };
        if at.is_null() { None } else { Some(SocketMemory { at, ctx }) }
    }
}

impl<S: SockAddr> Ring<S::Addr> for SocketMemory<'_, S> {
    type Place = *mut Reverse<S::Addr>;
    type Addr = (Halves<S>, u16);

    #[inline(always)]
    fn first(&self) -> Self::Place {
        // SAFETY: a value of the socket storage, valid for the run.
        unsafe { addr_of_mut!((*self.at).entries).cast() }
    }

    #[inline(always)]
    fn after(&self, place: Self::Place) -> Self::Place {
        place.wrapping_add(1)
    }

    #[inline(always)]
    fn oldest(&self) -> Self::Place {
        const { assert!(REVERSE == 8) };
        // SAFETY: as above; the index is masked to the array's length.
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
        (S::read(self.ctx), sock_addr::port(self.ctx))
    }

    #[inline(always)]
    fn is_dialled(&self, place: Self::Place, (addr, port): Self::Addr) -> bool {
        // SAFETY: within the value. Another thread that sends by the same socket to a ninth address may be
        // writing the entry; this datagram then selects a backend again.
        unsafe { (*place).port == port && S::Addr::is_dialled(place, addr) }
    }

    #[inline(always)]
    fn leads_to(&self, place: Self::Place, (addr, port): Self::Addr) -> bool {
        // SAFETY: within the value. Another thread may be writing the entry, as above; the sender of one
        // datagram may then be shown as the backend, or as the address just dialled.
        unsafe { (*place).backend_port == port && S::Addr::has_backend(place, addr) }
    }

    #[inline(always)]
    fn copy_dialled(&self, from: Self::Place, to: Self::Place) {
        // SAFETY: within the value.
        unsafe {
            S::Addr::put_dialled(to, S::Addr::dialled(from));
            (*to).port = (*from).port;
        }
    }

    #[inline(always)]
    fn write_dialled(&self, place: Self::Place, (addr, port): Self::Addr) {
        // SAFETY: within the value.
        unsafe {
            S::Addr::put_dialled(place, addr);
            (*place).port = port;
        }
    }

    #[inline(always)]
    fn write_backend(&self, place: Self::Place, (addr, port): Self::Addr) {
        // SAFETY: within the value.
        unsafe {
            S::Addr::put_backend(place, addr);
            (*place).backend_port = port;
        }
    }
}

/// Directs a connecting call to a backend, after the socket has stored the dialled address. If the kernel has
/// no memory for it, the socket shows the backend as its peer.
#[inline(always)]
pub(crate) fn redirect<S: SockAddr>(ctx: &SockAddrContext, backend: (Halves<S>, u16)) {
    if let Some(memory) = SocketMemory::<S>::of_or_new(ctx) {
        remember_alone(&memory, backend);
    }
    set_destination::<S>(ctx, backend);
}

/// Directs a datagram to a backend, likewise. `kept` is the socket's entry of the dialled address, or null.
///
/// If the kernel has no memory for the entry, a pod's datagram stays unchanged: the pod's device translates
/// the datagram and its answer.
#[inline(always)]
pub(crate) fn redirect_datagram<S: SockAddr>(
    ctx: &SockAddrContext,
    backend: (Halves<S>, u16),
    kept: *mut Reverse<S::Addr>,
    pod: bool,
) {
    match SocketMemory::<S>::of_or_new(ctx) {
        Some(memory) => remember(&memory, if kept.is_null() { None } else { Some(kept) }, backend),
        None if pod => return,
        None => {}
    }
    set_destination::<S>(ctx, backend);
}

/// Replaces the destination of a call.
#[inline(always)]
pub(crate) fn set_destination<S: SockAddr>(ctx: &SockAddrContext, (addr, port): (Halves<S>, u16)) {
    S::write(ctx, addr);
    sock_addr::set_port(ctx, port);
}

/// Shows the dialled address for an answer of a backend. The port is not 0, so that no unused entry is found.
#[inline(always)]
pub(crate) fn show_dialled<S: SockAddr>(ctx: &SockAddrContext, backend: Halves<S>) {
    let port = sock_addr::whole_port(ctx);
    if port == 0 {
        return;
    }
    let port = port as u16;
    let Some(memory) = SocketMemory::<S>::of(ctx) else { return };
    if let Some(place) = search(&memory, |place| memory.leads_to(place, (backend, port))) {
        // SAFETY: a value of the socket storage of this run.
        unsafe {
            S::write(ctx, S::Addr::dialled(place));
            sock_addr::set_port(ctx, (*place).port);
        }
    }
}
