//! Socket hooks: a Service's address becomes a backend's before a packet exists, and answers look as from the Service.

use crate::{
    kernel::Kernel,
    maps::CLIENT,
    naming::{self, Halves, Mapped4, Naming, Plain4, Plain6, is_mapped},
    reverse::{Memory, recall, redirect, redirect_datagram, turn},
    wide::Wide,
};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use berth_ebpf_abi::{Backend, Client, Reverse, ServiceKey, V4, V6, client, frontend, local_pod};
use berth_ebpf_decide::{
    Aligned, MemberQuery, Selection, Maps, Decision, ClientIdentity, may_keep_backend, is_host, left_alone, backend_hash, refusal,
    ring::{again, kept},
    decide_into,
};
use core::mem::MaybeUninit;

/// The hook lets the call go on; where a result was set, the call ends with that.
const GO_ON: i32 = 1;

const TCP: u32 = 6;
const UDP: u32 = 17;

/// Port, network order, and protocol, where Services speak it.
#[inline(always)]
fn port_and_proto(ctx: &SockAddrContext) -> Option<(u16, u8)> {
    let (proto, port) = (naming::protocol(ctx), naming::whole_port(ctx));
    ((proto == TCP || proto == UDP) && port != 0).then_some((port as u16, proto as u8))
}

/// A namespace that has no entry, beside the flags of those that have one: served as those from outside.
const UNKNOWN: u32 = frontend::EXTERNAL;
const _: () = assert!(UNKNOWN & (local_pod::NO_SOCKET_HOOKS | client::HOST) == 0);

/// Who calls: the socket's network namespace and its entry.
///
/// Not preallocated, and a pod's entry is written once: what is read may be an older or a newer pod's only when the
/// namespace itself is gone.
#[derive(Clone, Copy)]
struct Caller {
    /// Of the namespace.
    cookie: u64,
    client: Option<*const Client>,
    /// The entry's, or [`UNKNOWN`].
    flags: u32,
}

impl Caller {
    #[inline(always)]
    fn new(ctx: &SockAddrContext) -> Caller {
        // SAFETY: the kernel's context is what the helper wants.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
        let client = CLIENT.get_ptr(cookie);
        // SAFETY: an element of the map, there until the run's end.
        let flags = client.map_or(UNKNOWN, |at| unsafe { (*at).flags });
        Caller { cookie, client, flags }
    }

    #[inline(always)]
    fn host(self) -> bool {
        is_host(self.flags)
    }

    /// Whether its packets pass the programs at a pod's device.
    #[inline(always)]
    fn is_pod(self) -> bool {
        self.flags & (UNKNOWN | client::HOST) == 0
    }
}

impl<A: Wide> ClientIdentity<A> for Caller {
    #[inline(always)]
    fn is_host(self) -> bool {
        self.host()
    }

    #[inline(always)]
    fn outside(self) -> u32 {
        self.flags
    }

    #[inline(always)]
    fn put_addr(self, into: &mut A) {
        // SAFETY: an element of the map; the decision's memory is aligned. The host's entry has no address.
        unsafe {
            match self.client {
                Some(at) => A::take_client(at, into),
                None => into.put(A::namespace(self.cookie)),
            }
        }
    }
}

/// Who sends a datagram from a socket that is not connected.
#[derive(Clone, Copy)]
struct Sender {
    caller: Caller,
    ctx: *mut bpf_sock_addr,
}

impl<A: Wide> ClientIdentity<A> for Sender {
    #[inline(always)]
    fn is_host(self) -> bool {
        self.caller.host()
    }

    #[inline(always)]
    fn outside(self) -> u32 {
        self.caller.flags
    }

    #[inline(always)]
    fn put_addr(self, into: &mut A) {
        self.caller.put_addr(into);
    }

    /// What the socket has forgotten it comes to again.
    #[inline(always)]
    fn backend_hash<M: Maps<A>>(self, _maps: &M, service: u32) -> u32 {
        // SAFETY: the kernel's context is what the helper wants.
        backend_hash(unsafe { bpf_get_socket_cookie(self.ctx.cast()) }, service)
    }
}

/// What a call dials.
#[inline(always)]
fn key<A: Wide>(addr: A::Halves, port: u16, proto: u8) -> Aligned<ServiceKey<A>> {
    let mut key = Aligned(ServiceKey { addr: A::ANY, port, proto, pad: 0 });
    // SAFETY: it is aligned.
    unsafe { key.0.addr.put(addr) };
    key
}

/// Ends a call that got no backend with an error, where it is to have one.
#[inline(always)]
fn end(decision: &Decision, host: bool, sends: bool) {
    if let Some(errno) = refusal(decision, host, sends) {
        // SAFETY: a helper of plain arguments.
        unsafe { bpf_set_retval(-errno) };
    }
}

/// Decides for the address that a socket is connected to, and acts.
#[inline(always)]
fn translate<N: Naming>(ctx: &SockAddrContext, addr: Halves<N>) -> i32
where
    Kernel: Maps<N::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return GO_ON };
    let mut key = key::<N::Addr>(addr, port, proto);
    let caller = Caller::new(ctx);
    if left_alone(caller.flags) {
        return GO_ON;
    }
    let mut selection = MaybeUninit::<Selection<N::Addr>>::uninit();
    // SAFETY: integers, which are written before they are read.
    let selection = unsafe { &mut *selection.as_mut_ptr() };
    match decide_into(&Kernel, &mut key, caller, selection) {
        Decision::To(..) => {
            let Backend { addr, port, .. } = &selection.last.backend;
            redirect::<N>(ctx, (addr.halves(), *port));
        }
        decision => end(&decision, caller.host(), false),
    }
    GO_ON
}

/// A datagram goes on with the backend that its socket was given for what it names, or is given one by `anew`.
#[inline(always)]
fn converse<N: Naming>(
    ctx: &SockAddrContext,
    addr: Halves<N>,
    anew: fn(*mut bpf_sock_addr, *mut Reverse<N::Addr>) -> i32,
) -> i32
where
    Kernel: Maps<N::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return GO_ON };
    let mut place = core::ptr::null_mut();
    if let Some(memory) = Memory::<N>::of(ctx)
        && let Some(kept) = kept(&memory)
    {
        let mut key = key::<N::Addr>(addr, port, proto);
        let mut asked = MaybeUninit::<MemberQuery<N::Addr>>::uninit();
        // SAFETY: integers, which are written before they are read.
        let asked = unsafe { &mut *asked.as_mut_ptr() };
        // SAFETY: within the value; the decision's memory is aligned. Another thread may be writing the entry when it
        // sends by the same socket: what is read is looked for in the Service.
        let backend = unsafe {
            let backend = (N::Addr::kept(kept), (&raw const (*kept).backend_port).read_volatile());
            asked.member.addr.put(backend.0);
            asked.member.port = backend.1;
            backend
        };
        if may_keep_backend(&Kernel, &mut key, asked) {
            again(&memory, kept, backend);
            turn::<N>(ctx, backend);
            return GO_ON;
        }
        place = kept;
    }
    anew(ctx.sock_addr, place)
}

/// Decides for the address that a datagram names, and acts. `kept` is what its socket remembers of it, or null.
#[inline(always)]
fn begin<N: Naming>(ctx: &SockAddrContext, addr: Halves<N>, kept: *mut Reverse<N::Addr>) -> i32
where
    Kernel: Maps<N::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return GO_ON };
    let mut key = key::<N::Addr>(addr, port, proto);
    let sender = Sender { caller: Caller::new(ctx), ctx: ctx.sock_addr };
    if left_alone(sender.caller.flags) {
        return GO_ON;
    }
    let mut selection = MaybeUninit::<Selection<N::Addr>>::uninit();
    // SAFETY: as above.
    let selection = unsafe { &mut *selection.as_mut_ptr() };
    match decide_into(&Kernel, &mut key, sender, selection) {
        Decision::To(..) => {
            let Backend { addr, port, .. } = &selection.last.backend;
            redirect_datagram::<N>(ctx, (addr.halves(), *port), kept, sender.caller.is_pod());
        }
        decision => end(&decision, sender.caller.host(), true),
    }
    GO_ON
}

/// A function of its own: most datagrams run through the other, and a budget holds for each.
#[inline(never)]
fn begin4(ctx: *mut bpf_sock_addr, kept: *mut Reverse<V4>) -> i32 {
    let ctx = SockAddrContext { sock_addr: ctx };
    begin::<Plain4>(&ctx, Plain4::read(&ctx), kept)
}

/// The first datagram to an IPv6 address; a function of its own for the same budget.
#[inline(never)]
fn begin6(ctx: *mut bpf_sock_addr, kept: *mut Reverse<V6>) -> i32 {
    let ctx = SockAddrContext { sock_addr: ctx };
    begin::<Plain6>(&ctx, Plain6::read(&ctx), kept)
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
    converse::<Plain4>(&ctx, Plain4::read(&ctx), begin4)
}

/// A socket sends a datagram to a named IPv6 address; mapped ones come to [`sendmsg4`].
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    converse::<Plain6>(&ctx, Plain6::read(&ctx), begin6)
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
