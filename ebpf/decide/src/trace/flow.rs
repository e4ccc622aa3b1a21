//! The tables of flows of a trace: writes are kept aside, so that later steps of the decision find them.

use super::{Step, Trace};
use crate::{
    Family,
    flow::{Class, FlowMaps, Put, Sockets},
};
use berth_ebpf_abi::{Begun, Flow, FragmentKey, FragmentPorts, LocalPod, PodDevice, Tuple};

impl<A: Family, M: FlowMaps<A>> Trace<'_, A, M> {
    fn entry(&self, class: Class, key: &Tuple<A>) -> Option<Flow<A>> {
        let written = self.written.borrow();
        if let Some((.., entry)) = written.iter().rev().find(|(of, at, _)| *of == class && at == key) {
            return *entry;
        }
        let mut entry = Flow::default();
        self.maps.find(class, key, &mut entry).then_some(entry)
    }

    fn write(&self, class: Class, key: &Tuple<A>, entry: Option<Flow<A>>) {
        self.written.borrow_mut().push((class, *key, entry));
    }
}

impl<A: Family, M: Sockets<A>> Sockets<A> for Trace<'_, A, M> {
    fn connected(&self, arriving: &Tuple<A>) -> bool {
        self.maps.connected(arriving)
    }
}

impl<A: Family, M: FlowMaps<A>> FlowMaps<A> for Trace<'_, A, M> {
    fn find(&self, class: Class, key: &Tuple<A>, into: &mut Flow<A>) -> bool {
        let found = self.entry(class, key);
        let step = Step::Flow { class, key: *key, found };
        // A missing entry is looked up several times and recorded once.
        if found.is_some() || !self.steps.borrow().contains(&step) {
            self.note(step);
        }
        if let Some(entry) = found {
            *into = entry;
        }
        found.is_some()
    }

    fn insert(&self, class: Class, key: &Tuple<A>, value: &Flow<A>) -> Put {
        let done = self.entry(class, key).is_none();
        self.note(Step::Insert { class, key: *key, value: *value, done });
        if done {
            self.write(class, key, Some(*value));
        }
        if done { Put::Done } else { Put::Exists }
    }

    fn touch(&self, class: Class, key: &Tuple<A>, flags: u32, generation: u32, seen_s: u32) {
        self.note(Step::Touch { class, key: *key, flags, generation, seen_s });
        if let Some(entry) = self.entry(class, key) {
            self.write(class, key, Some(Flow { flags, generation, seen_s, ..entry }));
        }
    }

    fn remove(&self, class: Class, key: &Tuple<A>) {
        self.note(Step::Remove { class, key: *key });
        self.write(class, key, None);
    }

    /// Every class has room in a trace.
    fn enqueue(&self, _: Class, _: &Begun<A>) -> bool {
        true
    }

    fn dequeue(&self, _: Class, _: &mut Begun<A>) -> bool {
        false
    }

    fn count(&self, _: u32, _: Class) {}

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        let found = self.maps.fragment(key);
        self.note(Step::Fragment { key: *key, found });
        found
    }

    fn keep_fragment(&self, key: &FragmentKey<A>, value: &FragmentPorts) {
        self.note(Step::KeepFragment { key: *key, value: *value });
    }

    fn pod(&self, addr: &A) -> Option<LocalPod> {
        let found = self.maps.pod(addr);
        self.note(Step::Pod { addr: *addr, found });
        found
    }

    fn pod_device(&self, ifindex: u32) -> Option<PodDevice> {
        self.maps.pod_device(ifindex)
    }

    fn is_of_stack(&self, key: &Tuple<A>) -> bool {
        self.maps.is_of_stack(key)
    }

    fn note_of_stack(&self, _: &Tuple<A>) {}

    fn redirects(&self) -> bool {
        self.maps.redirects()
    }

    fn masquerades_all(&self) -> bool {
        self.maps.masquerades_all()
    }

    fn masquerade(&self) -> A {
        self.maps.masquerade()
    }

    fn ports(&self) -> [u16; 2] {
        self.maps.ports()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flow::{
            FlowContext, Forwarding, Packet, PacketHook, PacketVerdict, TCP, decide_packet, memory::Flows,
            tcp,
        },
        memory::Tables,
    };
    use berth_ebpf_abi::{Backend, INLINE, Service, ServiceKey, V4, flow, tag};
    use std::collections::HashMap;

    fn tuple() -> Tuple<V4> {
        Tuple { src: 5, dst: 7, src_port: 40_000, dst_port: 80, proto: TCP, pad: [0; 3] }
    }

    /// A pod that opens a connection to a Service with one backend.
    fn dial() -> (Flows<V4>, FlowContext<V4>) {
        let key = ServiceKey { addr: 7, port: 80, proto: TCP, pad: 0 };
        let mut inline = [Backend::default(); INLINE];
        inline[0] = Backend { addr: 9, port: 8080, flags: 0 };
        let service =
            Service { tag: tag(3, 1), id: 3, generation: 1, counts: [1, 0], inline, ..Service::default() };
        let tables = Tables { services: HashMap::from([(key, service)]), ..Tables::default() };
        let packet = Packet { tuple: tuple(), tcp_flags: tcp::SYN, ..Packet::default() };
        let (mut flows, mut ctx) = (Flows::default(), FlowContext::default());
        flows.tables = tables;
        ctx.packet = packet;
        (flows, ctx)
    }

    #[test]
    fn a_packet_s_decision_is_written_down_and_the_tables_are_not() {
        let (flows, mut ctx) = dial();
        let trace = Trace::new(&flows);
        assert_eq!(
            decide_packet(&trace, PacketHook::Pod, &mut ctx),
            PacketVerdict::Translate(Forwarding::Stack)
        );
        assert_eq!((ctx.to().dst, ctx.to().dst_port), (9, 8080));
        assert!(flows.flows.borrow().is_empty());
        let steps = trace.steps();
        let looked = Step::Flow { class: Class::Assured, key: tuple(), found: None };
        assert_eq!(steps.first(), Some(&looked), "{steps:?}");
        let inserted: std::vec::Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Insert { value, done: true, .. } => Some(value.flags & flow::REPLY),
                _ => None,
            })
            .collect();
        assert_eq!(inserted, [flow::REPLY, 0], "the answers' entry first");
        assert!(matches!(steps.last(), Some(Step::Pod { addr: 9, found: None })), "{steps:?}");

        // The untraced decision must have the same result.
        let (flows, mut untraced) = dial();
        assert_eq!(
            decide_packet(&flows, PacketHook::Pod, &mut untraced),
            PacketVerdict::Translate(Forwarding::Stack)
        );
        assert_eq!(untraced.to(), ctx.to());
    }
}
