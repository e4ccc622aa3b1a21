//! What the packet path reads and writes beyond the Service decision.

use super::{Class, Put};
use crate::{Family, Maps};
use berth_ebpf_abi::{Begun, Flow, FragmentKey, FragmentPorts, LocalPod, PodDevice, Tuple};

/// The node's own sockets, as its stack knows them.
pub trait Sockets<A> {
    /// Whether one of them is connected to where this arriving packet comes from, at the address and port that it goes to.
    /// A socket that only listens there is none.
    fn connected(&self, arriving: &Tuple<A>) -> bool;
}

/// The tables of connections, and what translation needs to know of the node.
pub trait FlowMaps<A: Family>: Maps<A> {
    /// Reads a direction's entry in the table of a class; says whether there is one.
    fn find(&self, class: Class, key: &Tuple<A>, into: &mut Flow<A>) -> bool;
    /// Writes an entry where that table has none.
    fn insert(&self, class: Class, key: &Tuple<A>, value: &Flow<A>) -> Put;
    /// Changes an entry in place; one that is gone stays gone.
    fn touch(&self, class: Class, key: &Tuple<A>, flags: u32, generation: u32, seen_s: u32);
    /// Removes an entry, if it is there.
    fn remove(&self, class: Class, key: &Tuple<A>);
    /// Gives a connection the last place in the order of a class; not where all places are taken, or the class has no
    /// order. Nothing takes a place away but [`FlowMaps::dequeue`].
    fn enqueue(&self, class: Class, begun: &Begun<A>) -> bool;
    /// Takes the first place; says whether there was one.
    fn dequeue(&self, class: Class, into: &mut Begun<A>) -> bool;
    /// Adds one to the counter of a class in a block of [`berth_ebpf_abi::count`].
    fn count(&self, block: u32, class: Class);

    /// Reads the ports of a fragmented datagram.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    /// Writes them. A full table is no error: the rest of the datagram is then lost, as if on the way.
    fn keep_fragment(&self, key: &FragmentKey<A>, value: &FragmentPorts);

    /// A pod of this node.
    fn pod(&self, addr: &A) -> Option<LocalPod>;
    /// The same into a place that is there; says whether there is one.
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
    /// The pod of this node whose device this is.
    fn pod_device(&self, ifindex: u32) -> Option<PodDevice>;
    /// Whether this packet between pods belongs to what the stack translated.
    fn is_of_stack(&self, key: &Tuple<A>) -> bool;
    /// Writes that down. A full table is no error: the oldest is forgotten.
    fn note_of_stack(&self, key: &Tuple<A>);
    /// Whether packets are handed to pods directly ([`berth_ebpf_abi::config::REDIRECT`]).
    fn redirects(&self) -> bool;
    /// Whether everything is masqueraded ([`berth_ebpf_abi::config::MASQUERADE_ALL`]).
    fn masquerades_all(&self) -> bool;
    /// The address for masqueraded connections; [`berth_ebpf_abi::Addr::ANY`] where there is none.
    fn masquerade(&self) -> A;
    /// First and last port for connections whose source port is taken, host order.
    fn ports(&self) -> [u16; 2];

    /// Takes a step up to `times` times, with its number, until one says that it was the last. The kernel's verifier
    /// then follows one step instead of all.
    #[inline(always)]
    fn repeat(&self, times: u32, mut step: impl FnMut(u32) -> bool) {
        let mut number = 0;
        while number < times && !step(number) {
            number += 1;
        }
    }
}
