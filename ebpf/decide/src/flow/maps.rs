//! Tables and facts that packets need beyond those of [`Maps`].

use super::{Class, Put};
use crate::{Family, Maps};
use berth_ebpf_abi::{Begun, Flow, FragmentKey, FragmentPorts, LocalPod, PodDevice, Tuple};

/// The node's own sockets, as its stack knows them.
pub trait Sockets<A> {
    /// Whether a socket is connected to the source of this arriving packet, with the packet's destination as
    /// its own address and port. A listening socket does not count.
    fn connected(&self, arriving: &Tuple<A>) -> bool;
}

/// The tables of flows, and the facts about the node that translation needs.
pub trait FlowMaps<A: Family>: Maps<A> {
    /// Reads the entry of a direction in the table of a class; returns whether one exists.
    fn find(&self, class: Class, key: &Tuple<A>, into: &mut Flow<A>) -> bool;
    /// Writes an entry if the table has none under the key.
    fn insert(&self, class: Class, key: &Tuple<A>, value: &Flow<A>) -> Put;
    /// Changes an existing entry in place. A removed entry stays removed.
    fn touch(&self, class: Class, key: &Tuple<A>, flags: u32, generation: u32, seen_s: u32);
    /// Removes an entry if it exists.
    fn remove(&self, class: Class, key: &Tuple<A>);
    /// Appends a flow to the order of a class. False if all places are taken or the class has no order. Only
    /// [`FlowMaps::dequeue`] frees a place.
    fn enqueue(&self, class: Class, begun: &Begun<A>) -> bool;
    /// Takes the first place of the order; returns whether there was one.
    fn dequeue(&self, class: Class, into: &mut Begun<A>) -> bool;
    /// Adds one to the counter of a class in a block of [`berth_ebpf_abi::count`].
    fn count(&self, block: u32, class: Class);

    /// Reads the ports of a fragmented datagram.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    /// Writes the ports of a fragmented datagram. If the table is full, its other fragments are lost.
    fn keep_fragment(&self, key: &FragmentKey<A>, value: &FragmentPorts);

    /// Returns the entry of a local pod.
    fn pod(&self, addr: &A) -> Option<LocalPod>;
    /// Copies the entry of a local pod to `into`; returns whether one exists.
    #[inline(always)]
    fn take_pod(&self, addr: &A, into: &mut LocalPod) -> bool {
        match self.pod(addr) {
            Some(pod) => {
                *into = pod;
                true
            }
            None => false,
        }
    }
    /// Returns the entry of a local pod's device.
    fn pod_device(&self, ifindex: u32) -> Option<PodDevice>;
    /// Whether this packet between local pods belongs to a connection that the stack translated.
    fn is_of_stack(&self, key: &Tuple<A>) -> bool;
    /// Records that. A full table drops its oldest entry.
    fn note_of_stack(&self, key: &Tuple<A>);
    /// Whether packets go directly to pods ([`berth_ebpf_abi::config::REDIRECT`]).
    fn redirects(&self) -> bool;
    /// Whether all connections are masqueraded ([`berth_ebpf_abi::config::MASQUERADE_ALL`]).
    fn masquerades_all(&self) -> bool;
    /// Source address of masqueraded connections; [`berth_ebpf_abi::Addr::ANY`] for none.
    fn masquerade(&self) -> A;
    /// First and last source port of masqueraded connections, in host order.
    fn ports(&self) -> [u16; 2];

    /// Runs `step` with its number up to `times` times, until it returns true. The kernel's verifier follows
    /// one step of the loop instead of all.
    #[inline(always)]
    fn repeat(&self, times: u32, mut step: impl FnMut(u32) -> bool) {
        let mut number = 0;
        while number < times && !step(number) {
            number += 1;
        }
    }
}
