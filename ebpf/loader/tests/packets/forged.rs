//! Checks of senders and receivers: a pod that sends with foreign source addresses, and frames at a device
//! that are addressed to another machine.

use crate::{
    frame::{Net, THEIRS, frame},
    object,
    support::Scratch,
    world::{CLIENTS, ELSEWHERE, NODES, PODS, Programs, VIPS, configure, spec},
};
use berth_ebpf_abi::{
    Backend, LocalPod, NodeAddress, PodDevice, Service, ServiceKey, Tuple, V4, V6, backend, config, count,
    frontend, local_pod, tag,
};
use berth_ebpf_decide::flow::{Dropped, PacketHook, TCP, UDP, tcp};
use berth_ebpf_loader::{Access, Datapath, Map, Plain, load};

const NEXT: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

struct Tables<'a, A> {
    service: &'a Map<ServiceKey<A>, Service<A>>,
    node: &'a Map<A, NodeAddress>,
    pod: &'a Map<A, LocalPod>,
}

fn with<A: Net + Plain>(
    tables: impl Fn(&Datapath) -> Tables<'_, A>,
    run: impl FnOnce(&Tables<'_, A>, &Datapath, &Programs),
) {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    load(&pins, &object(), |_| ()).unwrap();
    let maps = Datapath::open(&pins, Access::Write).unwrap();
    configure(&maps, config::REDIRECT, [20_000, 29_999]);
    run(&tables(&maps), &maps, &Programs::open(&pins));
}

fn v4(maps: &Datapath) -> Tables<'_, V4> {
    Tables { service: &maps.service4, node: &maps.node4, pod: &maps.pod4 }
}

fn v6(maps: &Datapath) -> Tables<'_, V6> {
    Tables { service: &maps.service6, node: &maps.node6, pod: &maps.pod6 }
}

#[test]
fn a_pod_sends_under_its_own_ipv4_address_only() {
    let link = u32::from_ne_bytes([169, 254, 9, 9]);
    with(v4, |tables, maps, programs| forged(tables, maps, programs, &[link, 0]));
}

#[test]
fn a_pod_sends_under_its_own_ipv6_address_only() {
    let link = [u32::from_ne_bytes([0xfe, 0x80, 0, 0]), 0, 0, 7];
    with(v6, |tables, maps, programs| forged(tables, maps, programs, &[link, [0; 4]]));
}

fn forged<A: Net + Plain>(tables: &Tables<'_, A>, maps: &Datapath, programs: &Programs, link: &[A]) {
    let (own, other) = (A::make(PODS, 1), A::make(PODS, 2));
    let pod = LocalPod { ifindex: 1, flags: local_pod::DIRECT, ..LocalPod::default() };
    tables.pod.put(&other, &pod).unwrap();
    let put = |flags| {
        let device = PodDevice { v4: Net::make(PODS, 1), v6: Net::make(PODS, 1), flags };
        maps.pod_device.put(&1, &device).unwrap();
    };
    let dropped = || {
        let sums = maps.count.sums().unwrap();
        sums[usize::try_from(count::PACKET_DROPPED + Dropped::Forged as u32).unwrap()]
    };
    let sends = |src: A, dst: A, proto| {
        let tuple = Tuple { src, dst, src_port: 999, dst_port: 80_u16.to_be(), proto, pad: [0; 3] };
        programs.at(PacketHook::Pod).run(&frame(&spec(tuple, tcp::SYN))).unwrap().value
    };
    put(local_pod::DIRECT | local_pod::OWN_SOURCE);
    let strangers = [other, A::make(PODS, 77), A::make(NODES, 1), A::make(ELSEWHERE, 1), A::make(VIPS, 1)];
    for (number, src) in (1..).zip(strangers) {
        for (dst, proto) in [(other, TCP), (A::make(CLIENTS, 1), UDP), (A::make(VIPS, 1), A::ICMP)] {
            assert_eq!(sends(src, dst, proto), SHOT, "{src:?} to {dst:?}");
        }
        assert_eq!(dropped(), 3 * number);
    }
    // A packet too short to be parsed is dropped as well.
    let tuple = Tuple { src: other, dst: A::make(CLIENTS, 1), proto: TCP, ..Tuple::default() };
    let mut short = frame(&spec(tuple, tcp::SYN));
    short.truncate(if A::ICMP == 1 { 14 + 20 + 4 } else { 14 + 40 + 4 });
    assert_eq!(programs.at(PacketHook::Pod).run(&short).unwrap().value, SHOT);
    let before = dropped();
    assert_eq!(sends(own, other, TCP), REDIRECT, "straight across");
    assert_eq!(sends(own, A::make(CLIENTS, 1), UDP), NEXT);
    for src in link {
        assert_eq!(
            sends(*src, A::make(CLIENTS, 1), UDP),
            NEXT,
            "{src:?}: before it has an address, and on the link"
        );
    }
    // The allowed sources of pods of other plugins are unknown, and all their packets go by the stack.
    put(0);
    assert_eq!([sends(own, other, TCP), sends(A::make(PODS, 77), other, UDP)], [NEXT, NEXT]);
    put(local_pod::DIRECT);
    tables.pod.put(&other, &LocalPod { flags: 0, ..pod }).unwrap();
    assert_eq!(sends(own, other, TCP), NEXT, "the other one is");
    assert_eq!(dropped(), before);
}

#[test]
fn an_answer_of_what_the_stack_translated_goes_by_the_stack() {
    with(v4, translated);
    with(v6, translated);
}

fn translated<A: Net + Plain>(tables: &Tables<'_, A>, maps: &Datapath, programs: &Programs) {
    let (client, server) = (A::make(PODS, 1), A::make(PODS, 2));
    let pod = LocalPod { ifindex: 1, flags: local_pod::DIRECT, ..LocalPod::default() };
    tables.pod.put(&client, &pod).unwrap();
    tables.pod.put(&server, &pod).unwrap();
    maps.pod_device.put(&1, &PodDevice { flags: local_pod::DIRECT, ..PodDevice::default() }).unwrap();
    let asks = Tuple {
        src: client,
        dst: server,
        src_port: 40_000_u16.to_be(),
        dst_port: 80_u16.to_be(),
        proto: TCP,
        pad: [0; 3],
    };
    let answers = berth_ebpf_decide::flow::reverse(&asks);
    let run = |hook, tuple, flags| programs.at(hook).run(&frame(&spec(tuple, flags))).unwrap().value;
    assert_eq!(run(PacketHook::Pod, answers, tcp::SYN | tcp::ACK), REDIRECT);
    // The client dialled another address, which the stack translated to this one, so the stack must deliver
    // the answer.
    assert_eq!(run(PacketHook::Egress, asks, tcp::SYN), NEXT);
    assert_eq!(run(PacketHook::Pod, answers, tcp::SYN | tcp::ACK), NEXT);
    assert_eq!(
        run(PacketHook::Pod, Tuple { src_port: 81_u16.to_be(), ..answers }, tcp::ACK),
        REDIRECT,
        "another one's"
    );
}

#[test]
fn what_is_for_another_machine_is_left_alone() {
    with(v4, |tables, _, programs| promiscuous(tables, programs));
    with(v6, |tables, _, programs| promiscuous(tables, programs));
}

fn promiscuous<A: Net + Plain>(tables: &Tables<'_, A>, programs: &Programs) {
    let one = Backend { addr: A::make(PODS, 1), port: 8080_u16.to_be(), flags: backend::LOCAL };
    let mut service = Service {
        tag: tag(1, 1),
        id: 1,
        generation: 1,
        frontend: frontend::HAS_ENDPOINTS | frontend::EXTERNAL,
        counts: [1, 0],
        ..Service::default()
    };
    service.inline[0] = one;
    let (dst, port) = (A::make(ELSEWHERE, 50), 80_u16.to_be());
    tables.service.put(&ServiceKey { addr: dst, port, proto: TCP, pad: 0 }, &service).unwrap();
    tables.node.put(&A::make(NODES, 1), &NodeAddress { node_ports: 1 }).unwrap();
    tables
        .pod
        .put(&one.addr, &LocalPod { ifindex: 1, flags: local_pod::DIRECT, ..LocalPod::default() })
        .unwrap();
    let tuple = Tuple { src: A::make(CLIENTS, 1), dst, src_port: 1, dst_port: port, proto: TCP, pad: [0; 3] };
    let ours = spec(tuple, tcp::SYN);
    let theirs = crate::frame::Spec { macs: ([2, 9, 9, 9, 9, 9], THEIRS), ..ours };
    assert_eq!(programs.at(PacketHook::Uplink).run(&frame(&theirs)).unwrap().value, NEXT);
    assert_eq!(programs.at(PacketHook::Uplink).run(&frame(&ours)).unwrap().value, REDIRECT);
}
