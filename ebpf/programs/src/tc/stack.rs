//! Asks the stack for the node's own sockets.

use super::act::Headers;
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

/// `BPF_F_CURRENT_NETNS`: that of the device.
const THIS_NETNS: u64 = u64::MAX;

/// The sockets of the network namespace in which a packet is met.
pub(super) struct Stack(pub(super) *mut __sk_buff);

impl<A: Headers> Sockets<A> for Stack {
    #[inline(always)]
    fn connected(&self, arriving: &Tuple<A>) -> bool {
        const { assert!(offset_of!(Tuple<A>, dst_port) + 2 == 2 * size_of::<A>() + 4) };
        let tuple = addr_of!(*arriving).cast_mut().cast();
        let size = (2 * size_of::<A>() + 4) as u32;
        // SAFETY: a tuple begins as the kernel's `bpf_sock_tuple` of its family, whose size it is told; what it finds is
        // given back below.
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
        // SAFETY: it is held. One that is not connected has no port there.
        unsafe {
            let port = addr_of!((*socket).dst_port).read_volatile();
            bpf_sk_release(socket.cast());
            port != 0
        }
    }
}
