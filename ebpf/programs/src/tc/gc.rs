//! Garbage collection of flows whose lifetime is over, run by the agent.
//!
//! The agent reads the tables in batches and passes the keys of old flows as the data of a test run: an
//! Ethernet header of zeros, a word with the family (AF_INET, AF_INET6), a word with the number of keys (at
//! most [`MAX`]), the keys. The age is checked again at the moment of removal. The result is the number of
//! flows removed. Owns no state.

use super::{
    headers::Headers,
    skb::{ETH, Skb, Wire},
    tables::repeat,
    work::{Work, work},
};
use crate::kernel::Kernel;
use berth_ebpf_abi::{Tuple, V4, V6};
use berth_ebpf_decide::flow::{FlowMaps, collect};
use core::mem::size_of;

/// Largest number of keys in one run.
const MAX: u32 = 128;

// SAFETY: integers; the padding is a field.
unsafe impl Wire for Tuple<V4> {}
// SAFETY: as above.
unsafe impl Wire for Tuple<V6> {}

/// Removes the flows whose keys are in the packet.
#[inline(always)]
pub(super) fn run(skb: Skb) -> i32 {
    let (Some(family), Some(count)) = (skb.load::<u32>(ETH), skb.load::<u32>(ETH + 4)) else { return 0 };
    match family {
        2 => each::<V4>(skb, count),
        10 => each::<V6>(skb, count),
        _ => 0,
    }
}

#[inline(always)]
fn each<A: Headers>(skb: Skb, count: u32) -> i32
where
    Kernel: FlowMaps<A>,
    Tuple<A>: Wire,
{
    let Some(Work { ctx, removed, .. }) = work::<A>() else { return 0 };
    *removed = 0;
    repeat(count.min(MAX), |index| {
        let at = ETH + 8 + index * size_of::<Tuple<A>>() as u32;
        if skb.load_into(at, &mut ctx.packet.tuple).is_none() {
            return true;
        }
        let key = ctx.packet.tuple;
        if collect(&Kernel, &key, ctx) {
            *removed += 1;
        }
        false
    });
    (*removed & 0xff) as i32
}
