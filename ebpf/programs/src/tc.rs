//! Packet programs at devices, for packets that pass no socket hook. Owns no state: flows are in
//! [`crate::maps`].
//!
//! - `tc_uplink`, ingress of a device that leads out of the node: clients from outside, answers of backends
//!   elsewhere.
//! - `tc_pod`, ingress of the host's end of a pod's veth pair, for packets that the pod sends: answers of
//!   local backends, pods without socket hooks, raw packets, and packets from pod to pod that bypass the
//!   stack.
//! - `tc_out`, egress of both: answers of backends in the host's network, which the stack sends. Also a
//!   guard: no packet for a Service's address leaves the node.
//! - `tc_gc`, on no device: run by the agent with the keys of old flows, see [`gc`].
//!
//! The programs understand IPv4 and IPv6 on Ethernet without VLAN tags; other packets pass.

mod act;
mod answer;
mod gc;
mod headers;
mod skb;
mod stack;
mod tables;
mod v4;
mod v6;
mod work;

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use berth_ebpf_abi::{V4, V6};
use berth_ebpf_decide::flow::PacketHook;
use skb::{IPV4, IPV6, Skb};

/// `TCX_NEXT`: the next program decides, and at last the stack.
const NEXT: i32 = -1;
/// `TCX_DROP` (`TC_ACT_SHOT`): the packet is dropped.
const SHOT: i32 = 2;

/// Defines the part of a program for one family. Not inlined, so that it has a stack frame of its own.
macro_rules! part {
    ($name:ident, $addr:ty, $hook:expr) => {
        #[inline(never)]
        fn $name(skb: *mut __sk_buff) -> i32 {
            act::run::<$addr>(Skb::at(skb), $hook)
        }
    };
}

part!(uplink4, V4, PacketHook::Uplink);
part!(uplink6, V6, PacketHook::Uplink);
part!(pod4, V4, PacketHook::Pod);
part!(pod6, V6, PacketHook::Pod);
part!(out4, V4, PacketHook::Egress);
part!(out6, V6, PacketHook::Egress);

/// Ingress of an uplink.
#[classifier]
pub fn tc_uplink(ctx: TcContext) -> i32 {
    match Skb::of(&ctx).protocol() {
        IPV4 => uplink4(ctx.skb.skb),
        IPV6 => uplink6(ctx.skb.skb),
        _ => NEXT,
    }
}

/// Ingress of the host's end of a pod's veth pair.
#[classifier]
pub fn tc_pod(ctx: TcContext) -> i32 {
    match Skb::of(&ctx).protocol() {
        IPV4 => pod4(ctx.skb.skb),
        IPV6 => pod6(ctx.skb.skb),
        _ => NEXT,
    }
}

/// Egress of uplinks and of the host's ends of pods' veth pairs.
#[classifier]
pub fn tc_out(ctx: TcContext) -> i32 {
    match Skb::of(&ctx).protocol() {
        IPV4 => out4(ctx.skb.skb),
        IPV6 => out6(ctx.skb.skb),
        _ => NEXT,
    }
}

/// Removes flows whose lifetime is over.
#[classifier]
pub fn tc_gc(ctx: TcContext) -> i32 {
    gc::run(Skb::of(&ctx))
}
