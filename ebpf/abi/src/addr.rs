//! Addresses in the byte order of a packet.

/// An IPv4 address: the four bytes of the packet as a native `u32`, so the value is in network order.
pub type V4 = u32;

/// An IPv6 address: the sixteen bytes of the packet as four native words.
pub type V6 = [u32; 4];

/// Address of one family.
pub trait Addr: Copy + Eq + core::hash::Hash + core::fmt::Debug + Default + 'static {
    /// The unspecified address, `0.0.0.0` or `::`. In a NodePort's key it means any address of the node.
    const ANY: Self;
}

impl Addr for V4 {
    const ANY: Self = 0;
}

impl Addr for V6 {
    const ANY: Self = [0; 4];
}
