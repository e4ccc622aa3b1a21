//! The next hop of a translated packet.

use super::{FlowMaps, Forwarding, NextHop, PacketHook};
use crate::Family;
use berth_ebpf_abi::{Flow, LocalPod, flow, local_pod};

/// Next hop of a translated packet. The pod's entry is written to `pod`.
///
/// A packet with a source address of the node or of a Service must not pass the stack, which would drop it as
/// forged. Such a packet leaves by its device, even where pods are reached through the stack.
#[inline(always)]
pub(super) fn next_hop<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: PacketHook,
    entry: &Flow<A>,
    pod: &mut LocalPod,
) -> NextHop {
    if hook == PacketHook::Egress {
        return NextHop::Stack;
    }
    let reply = entry.flags & flow::REPLY != 0;
    if reply && entry.ifindex != 0 {
        return NextHop::Neighbour(entry.ifindex);
    }
    let foreign = entry.flags & (flow::REPLY | flow::MASQUERADE) != 0;
    if maps.take_pod(&entry.to.dst, pod) {
        if maps.redirects() && pod.flags & local_pod::DIRECT != 0 {
            NextHop::Pod
        } else if foreign {
            NextHop::Neighbour(pod.ifindex)
        } else {
            NextHop::Stack
        }
    } else if !reply && foreign {
        NextHop::Neighbour(0)
    } else {
        NextHop::Stack
    }
}

/// [`next_hop`] together with the pod.
#[inline(always)]
pub(super) fn forwarding<A: Family, M: FlowMaps<A>>(
    maps: &M,
    hook: PacketHook,
    entry: &Flow<A>,
) -> Forwarding {
    let mut pod = LocalPod::default();
    next_hop(maps, hook, entry, &mut pod).with(pod)
}
