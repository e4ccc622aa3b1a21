//! Addresses as they stand in a packet.

/// An IPv4 address: the four bytes of the packet read as one native `u32` (so its value is network order).
pub type V4 = u32;

/// An IPv6 address: four native words of the packet's bytes.
pub type V6 = [u32; 4];

/// One address family's address.
pub trait Addr: Copy + Eq + core::hash::Hash + core::fmt::Debug + Default + 'static {
    /// The unspecified address, `0.0.0.0` or `::`: stands for "any of the node's addresses" in a NodePort's key.
    const ANY: Self;
}

impl Addr for V4 {
    const ANY: Self = 0;
}

impl Addr for V6 {
    const ANY: Self = [0; 4];
}
