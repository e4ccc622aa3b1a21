//! "Port unreachable", made of the packet that is refused (RFC 792, RFC 4443): to TCP too, as kube-proxy's `reject`. And
//! "too big" (RFC 1191, RFC 4443), made of one that does not fit through the device that it would leave by.
//!
//! The packet is cut or stretched to the answer's length and written anew from its network header on, then sent back
//! by its device. It quotes the header and eight bytes, which hold the ports and so tell the client's socket.
//!
//! A processor answers 50 at once and 1,000 a second of each family (`flow::Bucket`), the numbers by which the kernel
//! bounds its own; what is above that vanishes and is counted.

use super::{
    act::{NETWORK, turn_round},
    skb::{Skb, Wire},
    v4::Ip as Ip4,
    v6::Ip as Ip6,
};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use berth_ebpf_decide::flow::checksum::{difference, fold16};
use core::{
    mem::size_of,
    ptr::{addr_of, null_mut},
};

/// `IPPROTO_ICMP`.
const ICMP: u8 = 1;
/// `IPPROTO_ICMPV6`.
pub(super) const ICMP6: u8 = 58;
/// Hops the answer may take.
const TTL: u8 = 64;

/// Eight bytes of a transport header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Start([u32; 2]);
// SAFETY: integers without padding.
unsafe impl Wire for Start {}

/// An ICMP message about a packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message<H> {
    kind: u8,
    code: u8,
    check: u16,
    mtu: u32,
    quote: H,
    start: Start,
}

/// The answer from its network header on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Answer<H> {
    ip: H,
    message: Message<H>,
}
// SAFETY: integers; all sizes are multiples of four, which is the alignment.
unsafe impl Wire for Answer<Ip4> {}
// SAFETY: as above.
unsafe impl Wire for Answer<Ip6> {}

impl<H> Message<H> {
    /// Writes its head, without a checksum.
    #[inline(always)]
    fn begin(&mut self, (kind, code): (u8, u8), mtu: u32) {
        self.kind = kind;
        self.code = code;
        self.check = 0;
        self.mtu = mtu.to_be();
    }

    /// The sum of all of its words.
    #[inline(always)]
    fn sum(&self) -> u32 {
        // SAFETY: the helper reads `self`, whose size is a multiple of four and which has no padding.
        let sum = unsafe {
            bpf_csum_diff(null_mut(), 0, addr_of!(*self).cast_mut().cast(), size_of::<Message<H>>() as u32, 0)
        };
        // A sum of fewer than 2^16 bytes is never negative.
        (sum & 0xffff_ffff) as u32
    }
}

#[inline(always)]
pub(super) fn v4(skb: Skb, ip: &Ip4, transport: u32, answer: &mut Answer<Ip4>, mtu: u32) -> Option<()> {
    if transport != NETWORK + size_of::<Ip4>() as u32 {
        return None;
    }
    let Answer { ip: head, message } = answer;
    skb.load_into(transport, &mut message.start)?;
    message.quote = *ip;
    message.begin(if mtu == 0 { (3, 3) } else { (3, 4) }, mtu);
    message.check = !fold16(message.sum());
    let len = size_of::<Answer<Ip4>>() as u32;
    *head = ip.answer(len, ICMP, TTL);
    skb.resize(NETWORK + len)?;
    skb.store(NETWORK, answer)?;
    turn_round(skb)
}

#[inline(always)]
pub(super) fn v6(skb: Skb, ip: &Ip6, transport: u32, answer: &mut Answer<Ip6>, mtu: u32) -> Option<()> {
    if transport != NETWORK + size_of::<Ip6>() as u32 {
        return None;
    }
    let Answer { ip: head, message } = answer;
    skb.load_into(transport, &mut message.start)?;
    message.quote = *ip;
    message.begin(if mtu == 0 { (1, 4) } else { (2, 0) }, mtu);
    let len = size_of::<Message<Ip6>>() as u32;
    let pseudo = ip.pseudo(len, ICMP6);
    message.check = !fold16(difference(u64::from(message.sum()), pseudo));
    *head = ip.answer(len, ICMP6, TTL);
    skb.resize(NETWORK + size_of::<Answer<Ip6>>() as u32)?;
    skb.store(NETWORK, answer)?;
    turn_round(skb)
}
