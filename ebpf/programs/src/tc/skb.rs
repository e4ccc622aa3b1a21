//! The bytes of a packet, through the kernel's helpers, which also reach non-linear data and copy shared data
//! before a write. Owns no state.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use core::{
    mem::{MaybeUninit, size_of},
    ptr::{addr_of, addr_of_mut, null_mut},
};

/// Length of an Ethernet header.
pub(super) const ETH: u32 = 14;
/// `ETH_P_IP`, network order.
pub(super) const IPV4: u16 = 0x0800_u16.to_be();
/// `ETH_P_IPV6`, network order.
pub(super) const IPV6: u16 = 0x86dd_u16.to_be();

/// `BPF_F_PSEUDO_HDR`: the change is in the pseudo header.
pub(super) const PSEUDO: u64 = 1 << 4;
/// `BPF_F_MARK_MANGLED_0`: a checksum of zero means that the packet has none, and stays zero.
pub(super) const ZERO_IS_NONE: u64 = 1 << 5;
/// `BPF_F_IPV6` (Linux 6.16 and stable releases with the fix): a change of addresses leaves the checksum over
/// the whole packet (`CHECKSUM_COMPLETE`) as it is.
const OVER_IPV6: u64 = 1 << 7;

/// `PACKET_HOST`: type of a packet that is addressed to this machine.
const PACKET_HOST: u32 = 0;

/// Type that may be read from a packet's bytes.
///
/// # Safety
///
/// Every bit pattern is a value, and the type has no padding.
pub(super) unsafe trait Wire: Copy {}
// SAFETY: integers.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for u8 {}

/// A packet (`struct __sk_buff`).
#[derive(Clone, Copy)]
pub(super) struct Skb(*mut __sk_buff);

impl Skb {
    /// The packet of a program's context.
    #[inline(always)]
    pub(super) fn of(ctx: &TcContext) -> Skb {
        Skb(ctx.skb.skb)
    }

    /// The packet of the context that the kernel passed to the program.
    #[inline(always)]
    pub(super) fn at(skb: *mut __sk_buff) -> Skb {
        Skb(skb)
    }

    /// Protocol in network order; 0 for a packet with a VLAN tag.
    #[inline(always)]
    pub(super) fn protocol(self) -> u16 {
        // SAFETY: the kernel's context is valid for the run, and these fields may be read.
        let (protocol, tagged) = unsafe {
            (addr_of!((*self.0).protocol).read_volatile(), addr_of!((*self.0).vlan_present).read_volatile())
        };
        if tagged != 0 { 0 } else { (protocol & 0xffff) as u16 }
    }

    /// Length including the Ethernet header.
    #[inline(always)]
    pub(super) fn len(self) -> u32 {
        // SAFETY: as above.
        unsafe { addr_of!((*self.0).len).read_volatile() }
    }

    /// Payload of each segment of a packet that will be segmented; 0 for other packets.
    #[inline(always)]
    pub(super) fn gso_size(self) -> u32 {
        // SAFETY: as above.
        unsafe { addr_of!((*self.0).gso_size).read_volatile() }
    }

    /// Index of the device at which the packet is seen.
    #[inline(always)]
    pub(super) fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { addr_of!((*self.0).ifindex).read_volatile() }
    }

    /// Whether the packet is addressed to the node, by its hardware address if the device has one.
    #[inline(always)]
    pub(super) fn is_for_host(self) -> bool {
        // SAFETY: as above.
        unsafe { addr_of!((*self.0).pkt_type).read_volatile() == PACKET_HOST }
    }

    /// Marks the packet as addressed to the node.
    #[inline(always)]
    pub(super) fn make_for_host(self) {
        if !self.is_for_host() {
            // SAFETY: a helper without pointers. It refuses only types that packets at these hooks do not
            // have.
            let _refused = unsafe { bpf_skb_change_type(self.0.cast(), PACKET_HOST) };
        }
    }

    /// Reads a value; `None` beyond the packet's end.
    #[inline(always)]
    pub(super) fn load<T: Wire>(self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of `value` or fails, and any bytes are a `T`.
        unsafe {
            let failed =
                bpf_skb_load_bytes(self.0.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
            if failed == 0 { Some(value.assume_init()) } else { None }
        }
    }

    /// As [`Skb::load`], into existing memory.
    #[inline(always)]
    pub(super) fn load_into<T: Wire>(self, offset: u32, into: &mut T) -> Option<()> {
        // SAFETY: the helper writes all of `into` or fails, and any bytes are a `T`.
        let failed = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, addr_of_mut!(*into).cast(), size_of::<T>() as u32)
        };
        (failed == 0).then_some(())
    }

    /// Overwrites existing bytes by a value.
    #[inline(always)]
    pub(super) fn store<T: Wire>(self, offset: u32, value: &T) -> Option<()> {
        // SAFETY: the helper reads `value`, which has no padding.
        let failed = unsafe {
            bpf_skb_store_bytes(
                self.0.cast(),
                offset,
                addr_of!(*value).cast_mut().cast(),
                size_of::<T>() as u32,
                0,
            )
        };
        (failed == 0).then_some(())
    }

    /// Adds a difference to a transport checksum.
    #[inline(always)]
    pub(super) fn add_to_checksum(self, offset: u32, difference: u32, flags: u64) -> Option<()> {
        // SAFETY: a helper without pointers.
        let failed = unsafe { bpf_l4_csum_replace(self.0.cast(), offset, 0, u64::from(difference), flags) };
        (failed == 0).then_some(())
    }

    /// As [`Skb::add_to_checksum`], for a change of IPv6 addresses. A kernel without the flag refuses it, and
    /// needs none.
    #[inline(always)]
    pub(super) fn add_to_checksum6(self, offset: u32, difference: u32, flags: u64) -> Option<()> {
        match self.add_to_checksum(offset, difference, flags | PSEUDO | OVER_IPV6) {
            Some(()) => Some(()),
            None => self.add_to_checksum(offset, difference, flags | PSEUDO),
        }
    }

    /// Sets the length of the packet.
    #[inline(always)]
    pub(super) fn resize(self, len: u32) -> Option<()> {
        // SAFETY: a helper without pointers; no pointer into the packet exists.
        let failed = unsafe { bpf_skb_change_tail(self.0.cast(), len, 0) };
        (failed == 0).then_some(())
    }

    /// The kernel's context, for helpers and for functions that are not inlined.
    #[inline(always)]
    pub(super) fn raw(self) -> *mut __sk_buff {
        self.0
    }

    /// Sends the packet out by the device at which it arrived.
    #[inline(always)]
    pub(super) fn send_back(self) -> i32 {
        // SAFETY: a helper without pointers.
        unsafe { bpf_redirect(self.ifindex(), 0) as i32 }
    }
}

/// Hands the packet to the other end of a veth pair, as if it had arrived there.
#[inline(always)]
pub(super) fn into_peer(ifindex: u32) -> i32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Sends the packet out by a device, to the neighbour that the routes name.
#[inline(always)]
pub(super) fn to_neighbour(ifindex: u32) -> i32 {
    // SAFETY: a null pointer means that the kernel looks up the routes.
    unsafe { bpf_redirect_neigh(ifindex, null_mut(), 0, 0) as i32 }
}
