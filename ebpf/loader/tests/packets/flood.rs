//! A flood of refused packets: only a limited number is answered.

use crate::{
    frame::{Net, frame},
    object,
    support::Scratch,
    world::{CLIENTS, Programs, VIPS, configure, spec},
};
use berth_ebpf_abi::{Service, ServiceKey, Tuple, V4, V6, config, count, tag};
use berth_ebpf_decide::flow::{PacketHook, TCP, tcp};
use berth_ebpf_loader::{Access, Datapath, Map, Plain, load};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::time::{Duration, Instant};

/// `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

#[test]
fn a_flood_of_refused_packets_is_no_flood_of_answers() {
    let scratch = Scratch::new();
    let pins = scratch.pins();
    load(&pins, &object(), |_| ()).unwrap();
    let maps = Datapath::open(&pins, Access::Write).unwrap();
    configure(&maps, config::REDIRECT, [20_000, 29_999]);
    // The limit of answers is counted per processor.
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let programs = Programs::open(&pins);
    let answered = flood(&programs, &maps.service4, V4::make(VIPS, 1), V4::make(CLIENTS, 1));
    let all = answered + flood(&programs, &maps.service6, V6::make(VIPS, 1), V6::make(CLIENTS, 1));
    let sums = maps.count.sums().unwrap();
    let counted = |index| sums[usize::try_from(index).unwrap()];
    assert_eq!(counted(count::PACKET_REJECTED), all);
    assert!(counted(count::PACKET_UNANSWERED) > 0);
}

/// Returns the number of answers.
fn flood<A: Net + Plain>(
    programs: &Programs,
    service: &Map<ServiceKey<A>, Service<A>>,
    dst: A,
    src: A,
) -> u64 {
    let key = ServiceKey { addr: dst, port: 80_u16.to_be(), proto: TCP, pad: 0 };
    service.put(&key, &Service { tag: tag(1, 1), id: 1, generation: 1, ..Service::default() }).unwrap();
    let tuple = Tuple { src, dst, src_port: 1000, dst_port: key.port, proto: TCP, pad: [0; 3] };
    let packet = frame(&spec(tuple, tcp::SYN));
    let send = || programs.at(PacketHook::Uplink).run(&packet).unwrap().value;
    let (started, mut answered) = (Instant::now(), 0);
    for _ in 0..4000 {
        match send() {
            REDIRECT => answered += 1,
            SHOT => {}
            other => panic!("{other}"),
        }
    }
    // The burst, and one answer per millisecond since. The kernel's coarse clock may lag by ten.
    let most = 50 + started.elapsed().as_millis() + 10;
    assert!((50..=most).contains(&u128::from(answered)), "{answered} of 4000, {most} at most");
    // Answers resume later.
    let deadline = Instant::now() + Duration::from_secs(5);
    while send() != REDIRECT {
        assert!(Instant::now() < deadline, "nothing is answered any more");
    }
    answered + 1
}
