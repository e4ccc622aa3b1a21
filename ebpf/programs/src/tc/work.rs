//! The scratch memory of a run, which does not fit on the kernel's stack of 512 bytes.
//!
//! Owns the layout of the maps `SCRATCH4/6`. Invariant: a run neither sleeps nor is interrupted by another of
//! these programs, so the memory of its processor is the run's alone.

use super::{answer::IcmpAnswer, headers::Headers};
use crate::maps::Scratch;
use berth_ebpf_abi::LocalPod;
use berth_ebpf_decide::flow::{Bucket, FlowContext, Forwarding, NextHop, PacketVerdict};
use core::{mem::size_of, ptr::addr_of_mut};

/// Working memory of a run.
pub(super) struct Work<A: Headers> {
    pub(super) ctx: FlowContext<A>,
    pub(super) view: A::View,
    pub(super) answer: IcmpAnswer<A::Header>,
    pub(super) stored: StoredVerdict,
    /// Number of flows that a garbage collection removed.
    pub(super) removed: u32,
}

/// Word of the scratch memory that keeps its value from run to run.
const BUCKET: usize = size_of::<Scratch>() / size_of::<u64>() - 1;

/// Working memory of this run. Always `Some`; the `Option` is for the verifier.
#[inline(always)]
pub(super) fn work<A: Headers>() -> Option<&'static mut Work<A>> {
    const { assert!(size_of::<Work<A>>() <= BUCKET * size_of::<u64>()) };
    let at = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the element of this processor is large enough and lives as long as the program; no other run
    // uses it. All of `Work` is integers except `Part`, which is written before it is read.
    Some(unsafe { &mut *at.cast::<Work<A>>() })
}

/// Limit of this processor's answers to refused packets. Always `Some`, as [`work`].
#[inline(always)]
pub(super) fn bucket<A: Headers>() -> Option<&'static mut Bucket> {
    const { assert!(size_of::<Bucket>() == size_of::<u64>()) };
    let at = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the last word of this processor's element, which no `Work` reaches; no other run uses it. Any
    // bytes are a `Bucket`.
    Some(unsafe { &mut *addr_of_mut!((*at)[BUCKET]).cast::<Bucket>() })
}

/// Verdict in memory. Not the enum itself: a copy of an enum has padding bytes in some variants, and the
/// verifier refuses to store those.
pub(super) struct StoredVerdict {
    /// One of the constants below.
    pub(super) what: u32,
    /// Reason of a drop, or index of a device.
    pub(super) number: u32,
    pub(super) pod: LocalPod,
}

pub(super) const PASS: u32 = 0;
pub(super) const DROP: u32 = 1;
pub(super) const REJECT: u32 = 2;
pub(super) const FORWARD: u32 = 3;
pub(super) const TO_POD: u32 = 4;
pub(super) const TO_NEIGHBOUR: u32 = 5;
pub(super) const TO_STACK: u32 = 6;
/// No verdict yet: the packet starts a connection.
pub(super) const BEGINS: u32 = 7;

impl StoredVerdict {
    /// Stores a next hop. The entry of the pod, if any, is in `pod` already.
    #[inline(always)]
    pub(super) fn next_hop(&mut self, next_hop: NextHop) {
        match next_hop {
            NextHop::Pod => self.what = TO_POD,
            NextHop::Neighbour(ifindex) => {
                self.number = ifindex;
                self.what = TO_NEIGHBOUR;
            }
            NextHop::Stack => self.what = TO_STACK,
        }
    }

    #[inline(always)]
    fn forwarding(&mut self, forwarding: Forwarding) {
        match forwarding {
            Forwarding::Pod(pod) => {
                self.pod = pod;
                self.what = TO_POD;
            }
            Forwarding::Neighbour(ifindex) => {
                self.number = ifindex;
                self.what = TO_NEIGHBOUR;
            }
            Forwarding::Stack => self.what = TO_STACK,
        }
    }

    /// Stores a verdict.
    #[inline(always)]
    pub(super) fn verdict(&mut self, verdict: PacketVerdict) {
        match verdict {
            PacketVerdict::Pass => self.what = PASS,
            PacketVerdict::Drop(why) => {
                self.number = why as u32;
                self.what = DROP;
            }
            PacketVerdict::Reject => self.what = REJECT,
            PacketVerdict::Forward(pod) => {
                self.pod = pod;
                self.what = FORWARD;
            }
            PacketVerdict::Translate(forwarding) => self.forwarding(forwarding),
        }
    }
}
