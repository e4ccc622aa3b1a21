//! The ICMP error that answers a packet: "port unreachable" for a refused one (RFC 792, RFC 4443), also for
//! TCP as kube-proxy's `reject`; "too big" (RFC 1191, RFC 4443) for one larger than the MTU of the device it
//! would leave by. Owns no state.
//!
//! The packet itself becomes the answer: it gets the answer's length, is overwritten from its network header
//! on, and is sent back by its device. The answer quotes the network header and eight bytes behind it, which
//! hold the ports and so identify the client's socket.

use super::skb::{Skb, Wire};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use core::{
    mem::size_of,
    ptr::{addr_of, null_mut},
};

/// Hop limit of an answer.
pub(super) const TTL: u8 = 64;

/// First eight bytes of a transport header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TransportStart([u32; 2]);
// SAFETY: integers without padding.
unsafe impl Wire for TransportStart {}

/// ICMP error about a packet with a network header `H`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IcmpError<H> {
    kind: u8,
    code: u8,
    pub(super) check: u16,
    mtu: u32,
    pub(super) quote: H,
    pub(super) start: TransportStart,
}

/// Answer from its network header on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct IcmpAnswer<H> {
    pub(super) ip: H,
    pub(super) error: IcmpError<H>,
}

impl<H> IcmpError<H> {
    /// Writes type, code and MTU, and a checksum of 0.
    #[inline(always)]
    pub(super) fn begin(&mut self, (kind, code): (u8, u8), mtu: u32) {
        self.kind = kind;
        self.code = code;
        self.check = 0;
        self.mtu = mtu.to_be();
    }

    /// Sum of all words.
    #[inline(always)]
    pub(super) fn sum(&self) -> u32 {
        // SAFETY: the helper reads `self`, whose size is a multiple of four and which has no padding.
        let sum = unsafe {
            bpf_csum_diff(
                null_mut(),
                0,
                addr_of!(*self).cast_mut().cast(),
                size_of::<IcmpError<H>>() as u32,
                0,
            )
        };
        // The sum of fewer than 2^16 bytes is never negative.
        (sum & 0xffff_ffff) as u32
    }
}

/// Hardware addresses of an Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct HardwareAddresses {
    dst: [u8; 6],
    src: [u8; 6],
}
// SAFETY: bytes.
unsafe impl Wire for HardwareAddresses {}

/// Swaps the hardware addresses, so that the packet returns to its sender.
#[inline(always)]
pub(super) fn swap_hardware_addresses(skb: Skb) -> Option<()> {
    let HardwareAddresses { dst, src } = skb.load(0)?;
    skb.store(0, &HardwareAddresses { dst: src, src: dst })
}
