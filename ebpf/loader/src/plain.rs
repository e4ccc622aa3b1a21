//! Values that equal their bytes.

use berth_ebpf_abi::{
    Addr, Affinity, AffinityKey, Chunk, ChunkKey, Client, Config, Flow, FragmentKey, FragmentPorts, LocalPod,
    MemberKey, NodeAddress, PodDevice, Reverses, Service, ServiceKey, Tuple, V6,
};

/// A key or value of a map.
///
/// # Safety
/// The type has no padding and no pointer, and every pattern of its bytes is a value of it.
pub unsafe trait Plain: Copy + Default + 'static {}

// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}
// SAFETY: four integers.
unsafe impl Plain for V6 {}

macro_rules! plain {
    ($($name:ident),*) => {$(
        // SAFETY: repr(C), integers alone, without padding: the tests of the abi crate hold the sizes.
        unsafe impl Plain for $name {}
    )*};
}

macro_rules! plain_by_address {
    ($($name:ident),*) => {$(
        // SAFETY: repr(C), integers and addresses alone, without padding: the tests of the abi crate check
        // the sizes.
        unsafe impl<A: Addr + Plain> Plain for $name<A> {}
    )*};
}

plain!(ChunkKey, Client, Config, FragmentPorts, LocalPod, NodeAddress, PodDevice);
plain_by_address!(
    Affinity,
    AffinityKey,
    Chunk,
    Flow,
    FragmentKey,
    MemberKey,
    Reverses,
    Service,
    ServiceKey,
    Tuple
);

/// The bytes of these values.
pub(crate) fn bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: Plain: every byte is initialised; the length is the slice's own.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of these values, for writing.
pub(crate) fn bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: Plain: every byte is initialised and every pattern of bytes is a value; the length is the
    // slice's.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
