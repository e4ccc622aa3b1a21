//! What a program must make of a packet, by the decision in memory.

use crate::frame::{Net, Spec, frame, refusal};
use berth_ebpf_decide::flow::{FlowContext, Forwarding, PacketVerdict, Part};

/// Return values of a tcx program: `TCX_NEXT`, `TCX_DROP`, `TCX_REDIRECT`.
pub(crate) const NEXT: u32 = u32::MAX;
pub(crate) const SHOT: u32 = 2;
pub(crate) const REDIRECT: u32 = 7;

/// Return value and frame that the program must produce.
pub(crate) fn expected<A: Net>(
    spec: &Spec<A>,
    sent: &[u8],
    verdict: &PacketVerdict,
    ctx: &FlowContext<A>,
) -> (u32, Vec<u8>) {
    match verdict {
        PacketVerdict::Pass => (NEXT, sent.to_vec()),
        PacketVerdict::Drop(_) => (SHOT, Vec::new()),
        // The program writes no answer to an IPv6 packet with a fragment header.
        PacketVerdict::Reject if spec.part != Part::Whole && A::ICMP != 1 => (SHOT, Vec::new()),
        PacketVerdict::Reject => (REDIRECT, refusal(spec)),
        PacketVerdict::Forward(pod) => (REDIRECT, frame(&Spec { macs: (pod.mac, pod.host_mac), ..*spec })),
        PacketVerdict::Translate(via) => {
            let mut after = *spec;
            let to = ctx.to();
            if spec.part == Part::Error {
                after.tuple = *to;
                after.outer = Some((to.src, to.dst));
            } else {
                after.tuple = *to;
                after.ports = (to.src_port, to.dst_port);
            }
            let value = match via {
                Forwarding::Stack => NEXT,
                Forwarding::Pod(pod) => {
                    after.macs = (pod.mac, pod.host_mac);
                    REDIRECT
                }
                Forwarding::Neighbour(_) if spec.ttl < 2 => return (SHOT, Vec::new()),
                Forwarding::Neighbour(_) => {
                    after.ttl -= 1;
                    REDIRECT
                }
            };
            (value, frame(&after))
        }
    }
}
