//! Socket hooks: a Service's address becomes a backend's before a packet exists, and answers look as from the Service.

use crate::{
    kernel::Kernel,
    maps::CLIENT,
    naming::{self, Halves, Mapped4, Naming, Plain4, Plain6, is_mapped},
    reverse::{recall, redirect},
    wide::Wide,
};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use berth_ebpf_abi::{Addr, Client, ServiceKey};
use berth_ebpf_decide::{Aligned, Given, Maps, Ruling, Side, Who, left_alone, rule};
use core::mem::MaybeUninit;

/// The hook lets the call go on; where a result was set, the call ends with that.
const GO_ON: i32 = 1;
/// What a call that nobody listens to ends with: clients tell it from a failure of policy.
const ECONNREFUSED: i32 = 111;

const TCP: u32 = 6;
const UDP: u32 = 17;

/// Port, network order, and protocol, where Services speak it.
#[inline(always)]
fn port_and_proto(ctx: &SockAddrContext) -> Option<(u16, u8)> {
    let (proto, port) = (naming::protocol(ctx), naming::port(ctx));
    ((proto == TCP || proto == UDP) && port != 0).then_some((port, proto as u8))
}

/// Who calls: the entry of the socket's network namespace, or the host.
///
/// Not preallocated, and a pod's entry is written once: what is read may be an older or a newer pod's only when the
/// namespace itself is gone.
#[derive(Clone, Copy)]
struct Caller(Option<*const Client>);

impl Caller {
    #[inline(always)]
    fn left_alone(self) -> bool {
        // SAFETY: an element of the map, there until the run's end.
        self.0.is_some_and(|at| left_alone(unsafe { (*at).flags }))
    }
}

impl<A: Wide> Who<A> for Caller {
    #[inline(always)]
    fn side(self) -> Side {
        if self.0.is_some() { Side::Pod } else { Side::Host }
    }

    #[inline(always)]
    fn put_addr(self, into: &mut A) {
        // SAFETY: as above; the decision's memory is aligned.
        unsafe {
            match self.0 {
                Some(at) => A::take_client(at, into),
                None => A::clear(into),
            }
        }
    }
}

/// Decides for the address that a call names and acts.
#[inline(always)]
fn translate<N: Naming>(ctx: &SockAddrContext, addr: Halves<N>) -> i32
where
    Kernel: Maps<N::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return GO_ON };
    let mut key = Aligned(ServiceKey { addr: N::Addr::ANY, port, proto, pad: 0 });
    // SAFETY: it is aligned.
    unsafe { key.0.addr.put(addr) };
    // SAFETY: the kernel's context is what the helper wants.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let from = Caller(CLIENT.get_ptr(cookie));
    if from.left_alone() {
        return GO_ON;
    }
    let mut given = MaybeUninit::<Given<N::Addr>>::uninit();
    // SAFETY: integers, which are written before they are read.
    let given = unsafe { &mut *given.as_mut_ptr() };
    match rule(&Kernel, &mut key, from, given) {
        Ruling::To(..) => redirect::<N>(ctx, &given.last.backend),
        Ruling::Reject(_) => {
            // SAFETY: a helper of plain arguments.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
        }
        // Of what is dropped, too: nothing listens at the address as it is, and its packets are dropped at the device.
        Ruling::Pass | Ruling::Drop(_) => {}
    }
    GO_ON
}

/// A function of its own: the kernel runs one family's code for a call, and a budget holds for each.
#[inline(never)]
fn translate_mapped(ctx: *mut bpf_sock_addr) -> i32 {
    let ctx = SockAddrContext { sock_addr: ctx };
    translate::<Mapped4>(&ctx, Mapped4::read(&ctx))
}

/// A socket asks who sent or who is at the other end: over IPv6, or by a mapped address.
#[inline(always)]
fn show6(ctx: &SockAddrContext) -> i32 {
    let addr = Plain6::read(ctx);
    if is_mapped(addr) {
        recall::<Mapped4>(ctx, Mapped4::read(ctx));
    } else {
        recall::<Plain6>(ctx, addr);
    }
    GO_ON
}

#[inline(always)]
fn show4(ctx: &SockAddrContext) -> i32 {
    recall::<Plain4>(ctx, Plain4::read(ctx));
    GO_ON
}

/// A socket connects over IPv4.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    translate::<Plain4>(&ctx, Plain4::read(&ctx))
}

/// A socket connects over IPv6, or over IPv4 by a mapped address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    let addr = Plain6::read(&ctx);
    if is_mapped(addr) { translate_mapped(ctx.sock_addr) } else { translate::<Plain6>(&ctx, addr) }
}

/// A socket sends a datagram to a named address.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    translate::<Plain4>(&ctx, Plain4::read(&ctx))
}

/// A socket sends a datagram to a named IPv6 address; mapped ones come to [`sendmsg4`].
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    translate::<Plain6>(&ctx, Plain6::read(&ctx))
}

/// A socket asks who sent a datagram.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show4(&ctx)
}

/// The same over IPv6, and for mapped addresses.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show6(&ctx)
}

/// A socket asks who is at the other end.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    show4(&ctx)
}

/// The same over IPv6, and for mapped addresses.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    show6(&ctx)
}
