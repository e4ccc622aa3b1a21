//! Lookup of the node's own sockets in the kernel's stack. Owns no state.

use super::headers::Headers;
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use berth_ebpf_abi::Tuple;
use berth_ebpf_decide::flow::{Sockets, TCP};
use core::{
    mem::{offset_of, size_of},
    ptr::{addr_of, null_mut},
};

/// `BPF_F_CURRENT_NETNS`: the network namespace of the device.
const THIS_NETNS: u64 = u64::MAX;

/// Sockets of the network namespace in which the packet is seen.
pub(super) struct Stack(pub(super) *mut __sk_buff);

impl<A: Headers> Sockets<A> for Stack {
    #[inline(always)]
    fn connected(&self, arriving: &Tuple<A>) -> bool {
        const { assert!(offset_of!(Tuple<A>, dst_port) + 2 == 2 * size_of::<A>() + 4) };
        let tuple = addr_of!(*arriving).cast_mut().cast();
        let size = (2 * size_of::<A>() + 4) as u32;
        // SAFETY: a tuple begins with the kernel's `bpf_sock_tuple` of its family, whose size is passed. The
        // socket is released below.
        let socket: *mut bpf_sock = unsafe {
            if arriving.proto == TCP {
                bpf_sk_lookup_tcp(self.0.cast(), tuple, size, THIS_NETNS, 0)
            } else {
                bpf_sk_lookup_udp(self.0.cast(), tuple, size, THIS_NETNS, 0)
            }
        };
        if socket == null_mut() {
            return false;
        }
        // SAFETY: the socket is held. An unconnected socket has port 0 here.
        unsafe {
            let port = addr_of!((*socket).dst_port).read_volatile();
            bpf_sk_release(socket.cast());
            port != 0
        }
    }
}
