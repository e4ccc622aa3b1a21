//! The address of a socket's call, in the kernel's context (`bpf_sock_addr`). Owns no state.

use crate::{maps::SocketStorage, wide::Wide};
use aya_ebpf::programs::SockAddrContext;
use berth_ebpf_abi::{V4, V6};
use core::ptr::{addr_of, addr_of_mut};

/// Reads a field of the context by one load of its own, as the verifier requires.
macro_rules! get {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the kernel's context is valid for the run, and these programs may read the field.
        unsafe { addr_of!((*$ctx.sock_addr).$($field)+).read_volatile() }
    };
}

/// Writes a field of the context, likewise.
macro_rules! set {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: the kernel's context is valid for the run, and these programs may write the field.
        unsafe { addr_of_mut!((*$ctx.sock_addr).$($field)+).write_volatile($value) }
    };
}

/// Form in which the context holds the address of a call.
pub(crate) trait SockAddr {
    /// Family of the address.
    type Addr: SocketStorage;
    /// Reads the address of the call.
    fn read(ctx: &SockAddrContext) -> Halves<Self>;
    /// Replaces the address of the call.
    fn write(ctx: &SockAddrContext, addr: Halves<Self>);
}

/// Address of a call, in registers.
pub(crate) type Halves<S> = <<S as SockAddr>::Addr as Wide>::Halves;

/// An IPv4 address.
pub(crate) struct Ipv4;
/// An IPv4 address of an IPv6 socket: `::ffff:a.b.c.d`.
pub(crate) struct MappedIpv4;
/// An IPv6 address.
pub(crate) struct Ipv6;

impl SockAddr for Ipv4 {
    type Addr = V4;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> V4 {
        get!(ctx, user_ip4)
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: V4) {
        set!(ctx, addr, user_ip4);
    }
}

impl SockAddr for MappedIpv4 {
    type Addr = V4;

    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> V4 {
        get!(ctx, user_ip6[3])
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, addr: V4) {
        set!(ctx, addr, user_ip6[3]);
    }
}

impl SockAddr for Ipv6 {
    type Addr = V6;

    /// Reads the address in two halves, because the kernel turns each access of this field into several
    /// instructions.
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u64; 2] {
        // SAFETY: the kernel's context is valid for the run, and these programs may read eight aligned bytes
        // of the field at once.
        unsafe {
            let at = addr_of!((*ctx.sock_addr).user_ip6).cast::<u64>();
            [at.read_volatile(), at.add(1).read_volatile()]
        }
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, [a, b]: [u64; 2]) {
        // SAFETY: as above; these programs may also write the field.
        unsafe {
            let at = addr_of_mut!((*ctx.sock_addr).user_ip6).cast::<u64>();
            at.write_volatile(a);
            at.add(1).write_volatile(b);
        }
    }
}

/// Protocol of the socket, as `IPPROTO_*`.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    get!(ctx, protocol)
}

/// Port of the call in network order: the low half of the context's field.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    get!(ctx, user_port) as u16
}

/// Port of the call as the whole field of the context. The upper half is zero, so the field is compared as it
/// is.
#[inline(always)]
pub(crate) fn whole_port(ctx: &SockAddrContext) -> u32 {
    get!(ctx, user_port)
}

/// Replaces the port of the call, in network order.
#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    set!(ctx, u32::from(port), user_port);
}

/// Third word of `::ffff:a.b.c.d`, as the upper half of eight bytes.
const MAPPED: u64 = (0xffff_u32.to_be() as u64) << 32;

/// Whether an IPv6 address is a mapped IPv4 address, `::ffff:a.b.c.d`.
#[inline(always)]
pub(crate) fn is_mapped([a, b]: [u64; 2]) -> bool {
    a == 0 && b << 32 == MAPPED
}
