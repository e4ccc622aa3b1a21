//! Socket hooks: a call that names a Service's address goes to a backend before a packet exists, and answers
//! look as if the Service had sent them. Owns no state: translations are in the socket's storage
//! ([`crate::reverse`]).
//!
//! On failure: a call without an entry of the tables goes on unchanged; a call that gets no backend fails, or
//! goes on and its packets are answered at the pod's device (`berth_ebpf_decide::refusal`).

use crate::{
    kernel::Kernel,
    maps::CLIENT,
    reverse::{SocketMemory, redirect, redirect_datagram, set_destination, show_dialled},
    sock_addr::{self, Halves, Ipv4, Ipv6, MappedIpv4, SockAddr, is_mapped},
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
    Aligned, ClientIdentity, Decision, Maps, MemberQuery, Selection, SocketCall, Unserved, backend_hash,
    decide_into, is_host, left_alone, may_keep_backend, refusal,
    ring::{again, kept},
};
use core::mem::MaybeUninit;

/// The hook allows the call; if an error was set, the call ends with the error.
const ALLOW: i32 = 1;

const TCP: u32 = 6;
const UDP: u32 = 17;

/// Port in network order and protocol of a call; `None` for a protocol without Services and for port 0.
#[inline(always)]
fn port_and_proto(ctx: &SockAddrContext) -> Option<(u16, u8)> {
    let (proto, port) = (sock_addr::protocol(ctx), sock_addr::whole_port(ctx));
    ((proto == TCP || proto == UDP) && port != 0).then_some((port as u16, proto as u8))
}

/// Flags of a network namespace without an entry, whose clients are served as clients from outside.
const UNKNOWN: u32 = frontend::EXTERNAL;
const _: () = assert!(UNKNOWN & (local_pod::NO_SOCKET_HOOKS | client::HOST) == 0);

/// Client behind a call: the socket's network namespace and its entry.
///
/// The map is not preallocated and a pod's entry is written once. So the entry that is read can be that of
/// another pod only after the namespace itself has gone.
#[derive(Clone, Copy)]
struct Caller {
    /// Cookie of the namespace.
    cookie: u64,
    /// Entry of the namespace.
    client: Option<*const Client>,
    /// Flags of the entry, or [`UNKNOWN`].
    flags: u32,
}

impl Caller {
    #[inline(always)]
    fn new(ctx: &SockAddrContext) -> Caller {
        // SAFETY: the helper takes the kernel's context.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
        let client = CLIENT.get_ptr(cookie);
        // SAFETY: an element of the map, valid until the run's end.
        let flags = client.map_or(UNKNOWN, |at| unsafe { (*at).flags });
        Caller { cookie, client, flags }
    }

    #[inline(always)]
    fn host(self) -> bool {
        is_host(self.flags)
    }

    /// Whether the client's packets pass the programs at a pod's device.
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
        // SAFETY: an element of the map; the memory of the decision is aligned. The host's entry has no
        // address.
        unsafe {
            match self.client {
                Some(at) => A::take_client(at, into),
                None => into.put(A::namespace(self.cookie)),
            }
        }
    }
}

/// Client that sends a datagram by an unconnected socket.
#[derive(Clone, Copy)]
struct DatagramSender {
    caller: Caller,
    ctx: *mut bpf_sock_addr,
}

impl<A: Wide> ClientIdentity<A> for DatagramSender {
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

    /// A hash of the socket's cookie, so that the socket gets a forgotten backend again.
    #[inline(always)]
    fn backend_hash<M: Maps<A>>(self, _maps: &M, service: u32) -> u32 {
        // SAFETY: the helper takes the kernel's context.
        backend_hash(unsafe { bpf_get_socket_cookie(self.ctx.cast()) }, service)
    }
}

/// Key of the address and port that a call names.
#[inline(always)]
fn key<A: Wide>(addr: A::Halves, port: u16, proto: u8) -> Aligned<ServiceKey<A>> {
    let mut key = Aligned(ServiceKey { addr: A::ANY, port, proto, pad: 0 });
    // SAFETY: the key is aligned.
    unsafe { key.0.addr.put(addr) };
    key
}

/// Sets the error of a call that got no backend, if the call is to fail. `flags` are the namespace's; `connects` is
/// the protocol of a socket that connects, and 0 of one that sends. Not inlined: most calls get a backend.
#[inline(never)]
fn end(why: Unserved, flags: u32, connects: u32) -> i32 {
    let call = match connects {
        TCP => SocketCall::Connect,
        UDP => SocketCall::ConnectDatagram,
        _ => SocketCall::Send,
    };
    if let Some(errno) = refusal(why, is_host(flags), call) {
        // SAFETY: a helper without pointers.
        unsafe { bpf_set_retval(-errno) };
    }
    ALLOW
}

/// Selects the backend of a socket that connects, and directs the call to it.
#[inline(always)]
fn translate<S: SockAddr>(ctx: &SockAddrContext, addr: Halves<S>) -> i32
where
    Kernel: Maps<S::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return ALLOW };
    let mut key = key::<S::Addr>(addr, port, proto);
    let caller = Caller::new(ctx);
    if left_alone(caller.flags) {
        return ALLOW;
    }
    let mut selection = MaybeUninit::<Selection<S::Addr>>::uninit();
    // SAFETY: integers, each written before it is read.
    let selection = unsafe { &mut *selection.as_mut_ptr() };
    match decide_into(&Kernel, &mut key, caller, selection) {
        Decision::To(..) => {
            let Backend { addr, port, .. } = &selection.last.backend;
            redirect::<S>(ctx, (addr.halves(), *port));
            ALLOW
        }
        decision => end(Unserved::of(&decision), caller.flags, u32::from(proto)),
    }
}

/// Directs a datagram to the backend that its socket remembers for the named address, as long as the backend
/// serves. Else `first` selects a backend.
#[inline(always)]
fn translate_datagram<S: SockAddr>(
    ctx: &SockAddrContext,
    addr: Halves<S>,
    first: fn(*mut bpf_sock_addr, *mut Reverse<S::Addr>) -> i32,
) -> i32
where
    Kernel: Maps<S::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return ALLOW };
    let mut place = core::ptr::null_mut();
    if let Some(memory) = SocketMemory::<S>::of(ctx)
        && let Some(kept) = kept(&memory)
    {
        let mut key = key::<S::Addr>(addr, port, proto);
        let mut asked = MaybeUninit::<MemberQuery<S::Addr>>::uninit();
        // SAFETY: integers, each written before it is read.
        let asked = unsafe { &mut *asked.as_mut_ptr() };
        // SAFETY: within the value; the memory of the decision is aligned. Another thread that sends by the
        // same socket may be writing the entry; the backend that is read is therefore looked up in the
        // Service's members.
        let backend = unsafe {
            let backend = (S::Addr::backend_of(kept), (&raw const (*kept).backend_port).read_volatile());
            asked.member.addr.put(backend.0);
            asked.member.port = backend.1;
            backend
        };
        if may_keep_backend(&Kernel, &mut key, asked) {
            again(&memory, kept, backend);
            set_destination::<S>(ctx, backend);
            return ALLOW;
        }
        place = kept;
    }
    first(ctx.sock_addr, place)
}

/// Selects the backend of a datagram, and directs the call to it. `kept` is the socket's entry of the named
/// address, or null.
#[inline(always)]
fn first_datagram<S: SockAddr>(ctx: &SockAddrContext, addr: Halves<S>, kept: *mut Reverse<S::Addr>) -> i32
where
    Kernel: Maps<S::Addr>,
{
    let Some((port, proto)) = port_and_proto(ctx) else { return ALLOW };
    let mut key = key::<S::Addr>(addr, port, proto);
    let sender = DatagramSender { caller: Caller::new(ctx), ctx: ctx.sock_addr };
    if left_alone(sender.caller.flags) {
        return ALLOW;
    }
    let mut selection = MaybeUninit::<Selection<S::Addr>>::uninit();
    // SAFETY: integers, each written before it is read.
    let selection = unsafe { &mut *selection.as_mut_ptr() };
    match decide_into(&Kernel, &mut key, sender, selection) {
        Decision::To(..) => {
            let Backend { addr, port, .. } = &selection.last.backend;
            redirect_datagram::<S>(ctx, (addr.halves(), *port), kept, sender.caller.is_pod());
            ALLOW
        }
        decision => end(Unserved::of(&decision), sender.caller.flags, 0),
    }
}

/// The first datagram of a socket to an IPv4 address. Not inlined: most datagrams do not run this part, and
/// each function has its own budget of instructions.
#[inline(never)]
fn first_datagram4(ctx: *mut bpf_sock_addr, kept: *mut Reverse<V4>) -> i32 {
    let ctx = SockAddrContext { sock_addr: ctx };
    first_datagram::<Ipv4>(&ctx, Ipv4::read(&ctx), kept)
}

/// The first datagram of a socket to an IPv6 address, likewise.
#[inline(never)]
fn first_datagram6(ctx: *mut bpf_sock_addr, kept: *mut Reverse<V6>) -> i32 {
    let ctx = SockAddrContext { sock_addr: ctx };
    first_datagram::<Ipv6>(&ctx, Ipv6::read(&ctx), kept)
}

/// A socket connects by a mapped address. Not inlined: a call runs the code of one family only, and each
/// function has its own budget of instructions.
#[inline(never)]
fn translate_mapped(ctx: *mut bpf_sock_addr) -> i32 {
    let ctx = SockAddrContext { sock_addr: ctx };
    translate::<MappedIpv4>(&ctx, MappedIpv4::read(&ctx))
}

/// Shows the dialled address to an IPv6 socket, whose address may be a mapped one.
#[inline(always)]
fn show6(ctx: &SockAddrContext) -> i32 {
    let addr = Ipv6::read(ctx);
    if is_mapped(addr) {
        show_dialled::<MappedIpv4>(ctx, MappedIpv4::read(ctx));
    } else {
        show_dialled::<Ipv6>(ctx, addr);
    }
    ALLOW
}

/// Shows the dialled address to an IPv4 socket.
#[inline(always)]
fn show4(ctx: &SockAddrContext) -> i32 {
    show_dialled::<Ipv4>(ctx, Ipv4::read(ctx));
    ALLOW
}

/// A socket connects over IPv4.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    translate::<Ipv4>(&ctx, Ipv4::read(&ctx))
}

/// A socket connects over IPv6, or over IPv4 by a mapped address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    let addr = Ipv6::read(&ctx);
    if is_mapped(addr) { translate_mapped(ctx.sock_addr) } else { translate::<Ipv6>(&ctx, addr) }
}

/// A socket sends a datagram to a named IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    translate_datagram::<Ipv4>(&ctx, Ipv4::read(&ctx), first_datagram4)
}

/// A socket sends a datagram to a named IPv6 address. A mapped address runs [`sendmsg4`].
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    translate_datagram::<Ipv6>(&ctx, Ipv6::read(&ctx), first_datagram6)
}

/// A socket asks for the sender of a datagram.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show4(&ctx)
}

/// The same over IPv6, and for mapped addresses.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show6(&ctx)
}

/// A socket asks for its peer.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    show4(&ctx)
}

/// The same over IPv6, and for mapped addresses.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    show6(&ctx)
}
