//! Socket hooks: a Service's address becomes a backend's before a packet exists, and answers look as from the Service.

use crate::{
    kernel::Kernel,
    maps::CLIENT,
    reverse::{Remembered, recall, remember},
};
use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use berth_ebpf_abi::{Reverse, ServiceKey, V4, V6};
use berth_ebpf_decide::{Dialler, Maps, Verdict, decide, dialler};
use core::ptr::{addr_of, addr_of_mut};

/// The hook lets the call go on.
const GO_ON: i32 = 1;
/// The call ends with what was set as its result.
const END: i32 = 0;
/// What a call that nobody listens to ends with: clients tell it from a failure of policy.
const ECONNREFUSED: i32 = 111;

const TCP: u32 = 6;
const UDP: u32 = 17;

/// The third word of `::ffff:a.b.c.d`.
const MAPPED: u32 = 0xffff_u32.to_be();

/// The address that a call is about, as this family's.
trait Peer: Remembered {
    fn read(ctx: &SockAddrContext) -> Self;
    fn write(self, ctx: &SockAddrContext);
}

/// Reads a field of the context: one load of its own, as the verifier wants it.
macro_rules! get {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the kernel's context, valid for the run; the field may be read by these programs.
        unsafe { addr_of!((*$ctx.sock_addr).$($field)+).read_volatile() }
    };
}

macro_rules! set {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: the kernel's context, valid for the run; the field may be written by these programs.
        unsafe { addr_of_mut!((*$ctx.sock_addr).$($field)+).write_volatile($value) }
    };
}

impl Peer for V4 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> V4 {
        get!(ctx, user_ip4)
    }

    #[inline(always)]
    fn write(self, ctx: &SockAddrContext) {
        set!(ctx, self, user_ip4);
    }
}

impl Peer for V6 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> V6 {
        [get!(ctx, user_ip6[0]), get!(ctx, user_ip6[1]), get!(ctx, user_ip6[2]), get!(ctx, user_ip6[3])]
    }

    #[inline(always)]
    fn write(self, ctx: &SockAddrContext) {
        set!(ctx, self[0], user_ip6[0]);
        set!(ctx, self[1], user_ip6[1]);
        set!(ctx, self[2], user_ip6[2]);
        set!(ctx, self[3], user_ip6[3]);
    }
}

/// The IPv4 address within `::ffff:a.b.c.d`.
#[inline(always)]
fn mapped(addr: V6) -> Option<V4> {
    (addr[0] == 0 && addr[1] == 0 && addr[2] == MAPPED).then_some(addr[3])
}

/// Port, network order, and protocol, where Services speak it.
#[inline(always)]
fn port_and_proto(ctx: &SockAddrContext) -> Option<(u16, u8)> {
    let proto = get!(ctx, protocol);
    // The port stands in the low half, in network order.
    let port = get!(ctx, user_port) as u16;
    ((proto == TCP || proto == UDP) && port != 0).then_some((port, proto as u8))
}

/// Decides for the address that a call names and acts: `write` puts the backend's address into the call.
#[inline(always)]
fn translate<A: Remembered>(ctx: &SockAddrContext, addr: A, write: impl FnOnce(A)) -> i32
where
    Kernel: Maps<A>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return GO_ON };
    // SAFETY: the kernel's context is what the helper wants.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    // SAFETY: not preallocated, and a pod's entry is written once: what was read may be an older or a newer pod's only
    // when the namespace itself is gone.
    let client = CLIENT.get_ptr(cookie).map(|at| unsafe { at.read() });
    let Dialler::From(from) = dialler::<A>(client) else { return GO_ON };
    match decide(&Kernel, &ServiceKey { addr, port, proto, pad: 0 }, from) {
        Verdict::Pass => GO_ON,
        Verdict::To(choice) => {
            let backend = choice.backend;
            let reverse = Reverse { addr, backend: backend.addr, port, backend_port: backend.port };
            if remember(ctx, reverse) {
                write(backend.addr);
                set!(ctx, u32::from(backend.port), user_port);
            }
            GO_ON
        }
        Verdict::Reject(_) => {
            // SAFETY: a helper of plain arguments.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            END
        }
        // Nothing listens at the address as it is, and its packets are dropped at the device: no answer.
        Verdict::Drop(_) => GO_ON,
    }
}

#[inline(always)]
fn translate4(ctx: &SockAddrContext) -> i32 {
    translate(ctx, V4::read(ctx), |addr| addr.write(ctx))
}

#[inline(always)]
fn translate6(ctx: &SockAddrContext) -> i32 {
    let addr = V6::read(ctx);
    match mapped(addr) {
        Some(addr) => translate(ctx, addr, |addr| set!(ctx, addr, user_ip6[3])),
        None => translate(ctx, addr, |addr| addr.write(ctx)),
    }
}

/// Shows the virtual address where a socket asks who sent or who is at the other end.
#[inline(always)]
fn show<A: Remembered>(ctx: &SockAddrContext, addr: A, write: impl FnOnce(A)) -> i32 {
    let port = get!(ctx, user_port) as u16;
    if let Some((addr, port)) = recall(ctx, addr, port) {
        write(addr);
        set!(ctx, u32::from(port), user_port);
    }
    GO_ON
}

#[inline(always)]
fn show4(ctx: &SockAddrContext) -> i32 {
    show(ctx, V4::read(ctx), |addr| addr.write(ctx))
}

#[inline(always)]
fn show6(ctx: &SockAddrContext) -> i32 {
    let addr = V6::read(ctx);
    match mapped(addr) {
        Some(addr) => show(ctx, addr, |addr| set!(ctx, addr, user_ip6[3])),
        None => show(ctx, addr, |addr| addr.write(ctx)),
    }
}

/// A socket connects over IPv4.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    translate4(&ctx)
}

/// A socket connects over IPv6, or over IPv4 by a mapped address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    translate6(&ctx)
}

/// A socket sends a datagram to a named address.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    translate4(&ctx)
}

/// A socket sends a datagram to a named IPv6 address; mapped ones come to [`sendmsg4`].
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    translate(&ctx, V6::read(&ctx), |addr| addr.write(&ctx))
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
