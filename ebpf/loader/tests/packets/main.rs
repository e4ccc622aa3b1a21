//! Compares the packet programs in the kernel with the same decisions in memory. Every packet must get the
//! same verdict and leave with the same bytes, and the tables of flows must be equal afterwards. All
//! checksums are recomputed over all bytes, because a veth pair would hide a wrong one.
//!
//! The kernel draws its own random numbers. The test reads the chosen backend and port from the kernel's
//! table and requires that some sequence of numbers leads the model to the same choice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod classes;
mod expected;
mod flood;
mod forged;
mod frame;
mod world;

use berth_ebpf_abi::{Tuple, V4, V6};
use berth_ebpf_decide::flow::{PacketHook, Part, TCP, UDP, reverse, tcp};
use berth_ebpf_loader::{Access, Datapath, OBJECT, Plain, load, report};
use frame::{Net, Spec};
use world::{
    CLIENTS, ELSEWHERE, FLAGS, Kernel, NODES, PODS, Programs, SERVICES, VIPS, World, configure, spec,
};

/// The object under test: the committed one, or the file named by `BERTH_OBJECT`.
fn object() -> Vec<u8> {
    std::env::var_os("BERTH_OBJECT").map_or_else(|| OBJECT.to_vec(), |path| std::fs::read(path).unwrap())
}

/// Number of cases of each family.
fn cases() -> u32 {
    std::env::var("BERTH_PACKETS").map_or(54_000, |n| n.parse().unwrap())
}

#[test]
fn kernel_and_memory_agree_on_every_ipv4_packet() {
    agree::<V4>(|maps| Kernel {
        service: &maps.service4,
        chunk: &maps.chunk4,
        member: &maps.member4,
        node: &maps.node4,
        pod: &maps.pod4,
        pod_device: &maps.pod_device,
        flows: [&maps.udp4, &maps.unassured4, &maps.assured4],
        affinity: &maps.affinity4,
    });
}

#[test]
fn kernel_and_memory_agree_on_every_ipv6_packet() {
    agree::<V6>(|maps| Kernel {
        service: &maps.service6,
        chunk: &maps.chunk6,
        member: &maps.member6,
        node: &maps.node6,
        pod: &maps.pod6,
        pod_device: &maps.pod_device,
        flows: [&maps.udp6, &maps.unassured6, &maps.assured6],
        affinity: &maps.affinity6,
    });
}

/// A program that takes the verifier long is slow to load, and one more branch may exceed the verifier's
/// limit.
#[test]
fn the_verifier_is_soon_done() {
    let scratch = support::Scratch::new();
    let pins = scratch.pins();
    load(&pins, &object(), |_| ()).unwrap();
    for program in report(&pins, false).unwrap().programs.iter().filter(|one| one.name.starts_with("tc_")) {
        println!(
            "{}: {} instructions of both families, {} verified",
            program.name, program.instructions, program.verified
        );
        assert!(program.verified <= 300_000 && program.instructions <= 12_000, "{program:?}");
    }
}

fn agree<A: Net + Plain>(tables: impl for<'a> Fn(&'a Datapath) -> Kernel<'a, A>) {
    let scratch = support::Scratch::new();
    let pins = scratch.pins();
    let object = object();
    let started = std::time::Instant::now();
    let mut seen = std::collections::BTreeMap::<String, u64>::new();
    // The ports suffice in the first round and run out in the others.
    for (round, ports) in [(0, [20_000, 29_999]), (1, [20_000, 20_003]), (2, [20_000, 20_063])] {
        load(&pins, &object, |_| ()).unwrap();
        let maps = Datapath::open(&pins, Access::Write).unwrap();
        let config = configure(&maps, FLAGS[round], ports);
        let programs = Programs::open(&pins);
        let seed = 0x9e37_79b9_7f4a_7c15 + u64::try_from(round).unwrap();
        let mut world = World::new(tables(&maps), &programs, &maps, config, seed);
        for case in 0..cases() / 3 {
            step(&mut world, case);
        }
        world.compare();
        for (name, count) in world.seen {
            *seen.entry(name).or_default() += count;
        }
        std::fs::remove_dir_all(pins.root()).unwrap();
    }
    println!("{} packets in {:?}: {seen:?}", seen.values().sum::<u64>(), started.elapsed());
    for verdict in [
        "pass",
        "reject",
        "forward",
        "translate to a pod",
        "translate by route",
        "translate by device",
        "translate(stack)",
        "drop(service)",
        "drop(fragment)",
        "drop(ports)",
        "drop(leak)",
        "collected",
    ] {
        assert!(seen.get(verdict).copied().unwrap_or_default() >= 20, "too few of {verdict}: {seen:?}");
    }
}

/// Sends one packet, or changes the tables once.
fn step<A: Net + Plain>(world: &mut World<'_, A>, case: u32) {
    match world.dice.below(100) {
        0..30 => client(world),
        30..75 => along(world),
        75..78 => noise(world),
        78..82 => across(world),
        82..87 => error(world),
        87..93 => fragments(world),
        93..95 => {
            let id = world.dice.byte(SERVICES);
            if world.dice.one_in(6) {
                world.withdraw(id);
            } else {
                world.publish(id);
            }
        }
        95..98 => {
            if let Some(key) = any(world) {
                let seconds = *world.dice.of(&[1, 1, 1, 11, 31, 61, 121, 3601, 90_000]);
                let both = world.dice.one_in(2);
                world.age(&key, seconds, both);
            }
        }
        98 => {
            let keys: Vec<_> = (0..10).filter_map(|_| any(world)).collect();
            if let Some(key) = keys.first() {
                let seconds = *world.dice.of(&[31, 61, 121, 90_000]);
                world.age(key, seconds, true);
            }
            world.collect(&keys);
        }
        _ => {
            if case.is_multiple_of(8) {
                world.compare();
            }
        }
    }
}

/// Tuple of some flow.
fn any<A: Net + Plain>(world: &mut World<'_, A>) -> Option<Tuple<A>> {
    let flows = world.model.flows.borrow();
    if flows.is_empty() {
        return None;
    }
    // The order of a HashMap differs between runs; sorting each time would take too long.
    let at = world.dice.below(u32::try_from(flows.len()).unwrap()) as usize;
    flows.keys().nth(at.min(200)).map(|(_, key)| *key)
}

/// A client dials a Service.
fn client<A: Net + Plain>(world: &mut World<'_, A>) {
    let id = world.dice.byte(SERVICES);
    let dice = &mut world.dice;
    let proto = if dice.one_in(20) { TCP } else { World::<A>::proto(id) };
    let inside = dice.one_in(3);
    let src = if inside { A::make(PODS, 1 + dice.byte(9)) } else { A::make(CLIENTS, dice.byte(4)) };
    let (dst, port) = match dice.below(10) {
        0..5 => (A::make(VIPS, id), 80_u16.to_be()),
        5..9 => (A::make(NODES, 1 + dice.byte(2)), World::<A>::node_port(id)),
        _ => (A::make(VIPS, id + dice.byte(8)), 81_u16.to_be()),
    };
    let tuple = Tuple {
        src,
        dst,
        src_port: (40_000 + u16::from(dice.byte(16))).to_be(),
        dst_port: port,
        proto,
        pad: [0; 3],
    };
    let flags = *dice.of(&[
        tcp::SYN,
        tcp::SYN,
        tcp::SYN,
        tcp::ACK,
        tcp::SYN | tcp::ACK,
        tcp::RST,
        tcp::FIN | tcp::ACK,
    ]);
    let mut spec = spec(tuple, flags);
    spec.unchecked = A::ICMP == 1 && proto == UDP && dice.one_in(4);
    if dice.one_in(40) {
        spec.ttl = 1;
    }
    world.send(if inside { PacketHook::Pod } else { PacketHook::Uplink }, &spec);
}

/// A packet of some connection, in either direction, at any hook.
fn along<A: Net + Plain>(world: &mut World<'_, A>) {
    let Some(key) = any(world) else { return client(world) };
    let dice = &mut world.dice;
    let flags = *dice.of(&[
        tcp::ACK,
        tcp::ACK,
        tcp::ACK,
        tcp::SYN,
        tcp::SYN | tcp::ACK,
        tcp::RST,
        tcp::FIN | tcp::ACK,
        tcp::FIN | tcp::ACK,
    ]);
    let hook = *dice.of(&[PacketHook::Uplink, PacketHook::Pod, PacketHook::Egress]);
    let mut spec = spec(key, flags);
    spec.unchecked = A::ICMP == 1 && key.proto == UDP && dice.one_in(4);
    world.send(hook, &spec);
}

/// A pod sends to another pod.
fn across<A: Net + Plain>(world: &mut World<'_, A>) {
    let dice = &mut world.dice;
    let tuple = Tuple {
        src: A::make(PODS, 1 + dice.byte(9)),
        dst: A::make(PODS, 1 + dice.byte(12)),
        src_port: (40_000 + u16::from(dice.byte(16))).to_be(),
        dst_port: (8080 + u16::from(dice.byte(2))).to_be(),
        proto: if dice.one_in(2) { TCP } else { UDP },
        pad: [0; 3],
    };
    let flags = *dice.of(&[tcp::SYN, tcp::ACK]);
    let spec = spec(tuple, flags);
    world.send(PacketHook::Pod, &spec);
}

/// A packet that mostly has nothing to do with Services.
fn noise<A: Net + Plain>(world: &mut World<'_, A>) {
    let dice = &mut world.dice;
    let nets = [PODS, ELSEWHERE, NODES, CLIENTS, VIPS];
    let proto = *dice.of(&[TCP, UDP, A::ICMP]);
    let port =
        |dice: &mut world::Dice| if proto == A::ICMP { 0 } else { (79 + u16::from(dice.byte(3))).to_be() };
    let tuple = Tuple {
        src: A::make(*dice.of(&nets), dice.byte(30)),
        dst: A::make(*dice.of(&nets), dice.byte(40)),
        src_port: port(dice),
        dst_port: port(dice),
        proto,
        pad: [0; 3],
    };
    let hook = *dice.of(&[PacketHook::Uplink, PacketHook::Pod, PacketHook::Egress]);
    let spec = spec(tuple, tcp::SYN);
    world.send(hook, &spec);
}

/// An ICMP error about a packet of some connection, from its end or from a router.
fn error<A: Net + Plain>(world: &mut World<'_, A>) {
    let Some(key) = any(world) else { return };
    let dice = &mut world.dice;
    let key = if dice.one_in(8) { reverse(&key) } else { key };
    let from = if dice.one_in(2) { key.src } else { A::make(CLIENTS, 200) };
    let hook = *dice.of(&[PacketHook::Uplink, PacketHook::Pod, PacketHook::Egress]);
    let spec = Spec { outer: Some((from, key.dst)), part: Part::Error, ..spec(key, 0) };
    world.send(hook, &spec);
}

/// A datagram in two fragments, or only its second fragment.
fn fragments<A: Net + Plain>(world: &mut World<'_, A>) {
    let id = world.dice.byte(SERVICES);
    let dice = &mut world.dice;
    let identification = dice.below(60_000);
    let id_on_wire = if A::ICMP == 1 {
        u32::from(u16::try_from(identification).unwrap().to_be())
    } else {
        identification.to_be()
    };
    let tuple = Tuple {
        src: A::make(CLIENTS, dice.byte(4)),
        dst: if dice.one_in(2) { A::make(VIPS, id) } else { A::make(NODES, 1) },
        src_port: (41_000 + u16::from(dice.byte(16))).to_be(),
        dst_port: 80_u16.to_be(),
        proto: UDP,
        pad: [0; 3],
    };
    let mut tuple = tuple;
    if tuple.dst == A::make(NODES, 1) {
        tuple.dst_port = World::<A>::node_port(id);
    }
    let whole = spec(tuple, 0);
    let rest =
        Spec { part: Part::Later(id_on_wire), tuple: Tuple { src_port: 0, dst_port: 0, ..tuple }, ..whole };
    if !world.dice.one_in(4) {
        world.send(PacketHook::Uplink, &Spec { part: Part::First(id_on_wire), ..whole });
    }
    world.send(PacketHook::Uplink, &rest);
}
