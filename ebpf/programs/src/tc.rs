//! Packet programs at devices: for what passes no socket hook.
//!
//! - `tc_uplink`, ingress of a device that leads out of the node: outside clients, answers of backends elsewhere.
//! - `tc_pod`, ingress of the host's side of a pod's veth pair, so what the pod sends: answers of local backends, pods
//!   whose sockets are left alone, raw packets, and pod to pod straight across.
//! - `tc_out`, egress of both: answers of backends in the host's own network, which the stack sends; and a guard:
//!   no packet for a Service's address leaves the node.
//! - `tc_gc`, on no device: run by the agent with keys of old connections, see [`gc`].
//!
//! IPv4 and IPv6 on Ethernet without VLAN tags; everything else passes.

mod act;
mod gc;
mod refuse;
mod skb;
mod stack;
mod tables;
mod v4;
mod v6;

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use berth_ebpf_abi::{V4, V6};
use berth_ebpf_decide::flow::Hook;
use skb::{IPV4, IPV6, Skb};

/// Another program, and in the end the stack, has the say.
const NEXT: i32 = -1;
/// The packet vanishes.
const SHOT: i32 = 2;

/// One family's part of a program: a function of its own, with a stack of its own.
macro_rules! part {
    ($name:ident, $addr:ty, $hook:expr) => {
        #[inline(never)]
        fn $name(skb: *mut __sk_buff) -> i32 {
            act::run::<$addr>(Skb::at(skb), $hook)
        }
    };
}

part!(uplink4, V4, Hook::Uplink);
part!(uplink6, V6, Hook::Uplink);
part!(pod4, V4, Hook::Pod);
part!(pod6, V6, Hook::Pod);
part!(out4, V4, Hook::Egress);
part!(out6, V6, Hook::Egress);

/// Ingress of an uplink.
#[classifier]
pub fn tc_uplink(ctx: TcContext) -> i32 {
    match Skb::of(&ctx).protocol() {
        IPV4 => uplink4(ctx.skb.skb),
        IPV6 => uplink6(ctx.skb.skb),
        _ => NEXT,
    }
}

/// Ingress of the host's side of a pod's veth pair.
#[classifier]
pub fn tc_pod(ctx: TcContext) -> i32 {
    match Skb::of(&ctx).protocol() {
        IPV4 => pod4(ctx.skb.skb),
        IPV6 => pod6(ctx.skb.skb),
        _ => NEXT,
    }
}

/// Egress of uplinks and of the host's side of pods' veth pairs.
#[classifier]
pub fn tc_out(ctx: TcContext) -> i32 {
    match Skb::of(&ctx).protocol() {
        IPV4 => out4(ctx.skb.skb),
        IPV6 => out6(ctx.skb.skb),
        _ => NEXT,
    }
}

/// Removes connections whose time is over.
#[classifier]
pub fn tc_gc(ctx: TcContext) -> i32 {
    gc::run(Skb::of(&ctx))
}
