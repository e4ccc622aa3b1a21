//! The address that a socket's call is about, in the kernel's context.

use crate::{reverse::Remembered, wide::Wide};
use aya_ebpf::programs::SockAddrContext;
use berth_ebpf_abi::{V4, V6};
use core::ptr::{addr_of, addr_of_mut};

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

/// How a call names an address.
pub(crate) trait Naming {
    type Addr: Remembered;
    fn read(ctx: &SockAddrContext) -> Halves<Self>;
    fn write(ctx: &SockAddrContext, addr: Halves<Self>);
}

/// An address in registers.
pub(crate) type Halves<N> = <<N as Naming>::Addr as Wide>::Halves;

/// IPv4.
pub(crate) struct Plain4;
/// IPv4 by a socket of IPv6: `::ffff:a.b.c.d`.
pub(crate) struct Mapped4;
/// IPv6.
pub(crate) struct Plain6;

impl Naming for Plain4 {
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

impl Naming for Mapped4 {
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

impl Naming for Plain6 {
    type Addr = V6;

    /// By halves: each access of this field becomes several instructions.
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> [u64; 2] {
        // SAFETY: the kernel's context, valid for the run; these programs may read the field by eight aligned bytes.
        unsafe {
            let at = addr_of!((*ctx.sock_addr).user_ip6).cast::<u64>();
            [at.read_volatile(), at.add(1).read_volatile()]
        }
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, [a, b]: [u64; 2]) {
        // SAFETY: as above; and write.
        unsafe {
            let at = addr_of_mut!((*ctx.sock_addr).user_ip6).cast::<u64>();
            at.write_volatile(a);
            at.add(1).write_volatile(b);
        }
    }
}

/// `IPPROTO_*`.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    get!(ctx, protocol)
}

/// The port, in network order: it stands in the low half.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    get!(ctx, user_port) as u16
}

/// The same with the upper half, which the kernel fills with zeros: so it is compared as it is.
#[inline(always)]
pub(crate) fn whole_port(ctx: &SockAddrContext) -> u32 {
    get!(ctx, user_port)
}

#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    set!(ctx, u32::from(port), user_port);
}

/// The third word of `::ffff:a.b.c.d`, as the upper half.
const MAPPED: u64 = (0xffff_u32.to_be() as u64) << 32;

/// Whether an address is an IPv4 one, `::ffff:a.b.c.d`.
#[inline(always)]
pub(crate) fn is_mapped([a, b]: [u64; 2]) -> bool {
    a == 0 && b << 32 == MAPPED
}
