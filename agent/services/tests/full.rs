//! Table reconciler over tables that are too small for all entries.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use berth_core::model::{EndpointSlice, Protocol, Service};
use berth_ebpf_abi::{ServiceKey, V4};
use berth_services::{Net as _, NodeFacts, NoticeReason, Outcome, REST, TableReconciler};
use proptest::prelude::*;
use std::{collections::BTreeSet, net::IpAddr};
use support::{Fake, endpoint, gone, new, service, slice};

/// The tables and their reconciler.
struct World {
    fake: Fake,
    reconciler: TableReconciler,
    told: Vec<NoticeReason>,
}

impl World {
    fn new(capacity: [usize; 3]) -> World {
        let mut fake = Fake::unwatched();
        fake.v4.capacity = capacity;
        let facts = NodeFacts { name: "n".into(), ..NodeFacts::default() };
        let mut reconciler = TableReconciler::new(facts, 1);
        reconciler.listed();
        World { fake, reconciler, told: Vec::new() }
    }

    fn sync(&mut self) -> Outcome {
        let clock = self.fake.clock();
        let outcome = self.reconciler.sync(&mut self.fake, clock).unwrap();
        self.told.extend(outcome.notices.iter().map(|n| n.why.clone()));
        outcome
    }

    /// Syncs until no further sync is due.
    fn settle(&mut self) {
        for _ in 0..10 {
            if self.sync().due.is_none() {
                return;
            }
            self.fake.pass(REST);
        }
        panic!("it never comes to rest");
    }

    fn service(&mut self, n: u8, endpoints: &[u16], affinity: bool) {
        let (service, slice) = objects(n, endpoints, affinity);
        self.reconciler.change_services(new(service));
        self.reconciler.change_slices(new(slice));
    }

    fn gone(&mut self, n: u8) {
        let (service, slice) = objects(n, &[], false);
        self.reconciler.change_services(gone(service));
        self.reconciler.change_slices(gone(slice));
    }

    /// The endpoints that clients of a Service reach; `None` where the Service is not served.
    fn served(&self, n: u8) -> Option<BTreeSet<u16>> {
        let addr = V4::of(address(n)).unwrap();
        let value =
            self.fake.v4.services.get(&ServiceKey { addr, port: 80_u16.to_be(), proto: 6, pad: 0 })?;
        let view = self.fake.v4.view(value);
        // The sets are complete and have all members.
        for (addr, port) in &view.cluster {
            let there = self
                .fake
                .v4
                .members
                .keys()
                .any(|m| (m.id, m.addr, m.port) == (value.id, *addr, port.to_be()));
            assert!(view.affinity_s == 0 || there, "a client that stays is not found again");
        }
        Some(view.cluster.iter().map(|(addr, _)| number(addr.ip())).collect())
    }
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, n])
}

fn number(ip: IpAddr) -> u16 {
    let IpAddr::V4(ip) = ip else { panic!("{ip}") };
    let [_, _, a, b] = ip.octets();
    u16::from_be_bytes([a, b])
}

fn objects(n: u8, endpoints: &[u16], affinity: bool) -> (Service, EndpointSlice) {
    let name = format!("s{n}");
    let mut service = service(&name, &address(n).to_string(), &[("", Protocol::Tcp, 80, None)]);
    service.created = berth_core::time::Wall(i64::from(n));
    service.affinity_s = affinity.then_some(60);
    let endpoints = endpoints.iter().map(|e| {
        let [a, b] = e.to_be_bytes();
        endpoint(&format!("10.1.{a}.{b}"), "")
    });
    let slice = slice(&format!("{name}-x"), &name, &[("", Protocol::Tcp, 80)], endpoints.collect());
    (service, slice)
}

fn up_to(n: u16) -> Vec<u16> {
    (1..=n).collect()
}

fn all(n: &[u16]) -> Option<BTreeSet<u16>> {
    Some(n.iter().copied().collect())
}

#[test]
fn what_does_not_fit_holds_up_nobody_and_is_told_and_comes_when_there_is_room() {
    let mut world = World::new([100, 100, 50]);
    world.service(1, &up_to(40), true);
    world.service(2, &[7, 8, 9], false);
    world.settle();
    assert_eq!(world.served(1), all(&up_to(40)));
    assert!(world.told.is_empty());

    // One sync with more members than fit, a change of another Service, and a new Service.
    world.service(3, &up_to(30), true);
    world.service(2, &[8], false);
    world.service(4, &[5], false);
    world.settle();
    assert_eq!(world.served(2), all(&[8]), "an endpoint that went is given to nobody");
    assert_eq!(world.served(4), all(&[5]), "a new Service is served");
    assert_eq!(world.served(3), all(&up_to(4)), "in part, for want of room");
    let cut = NoticeReason::CutShort { name: "".into(), used: 4, endpoints: 30, affinity: true };
    assert_eq!(world.told, std::slice::from_ref(&cut), "once");
    assert_eq!(world.reconciler.unfit(), 1);
    let now: Vec<NoticeReason> = world.reconciler.notices().map(|n| n.why).collect();
    assert_eq!(now, [cut]);

    world.gone(1);
    world.settle();
    assert_eq!(world.served(3), all(&up_to(30)), "as soon as there is room");
    assert_eq!((world.reconciler.unfit(), world.reconciler.notices().count()), (0, 0));
    assert_eq!(world.fake.v4.members.len(), 30);
}

#[test]
fn an_agent_that_comes_to_full_tables_frees_them() {
    let mut world = World::new([100, 100, 50]);
    world.service(1, &up_to(50), true);
    world.settle();
    let World { fake, .. } = world;
    let mut world = World { fake, ..World::new([100, 100, 50]) };
    // Service 1 was deleted meanwhile. Service 2 needs the space.
    world.service(2, &up_to(20), true);
    world.settle();
    assert_eq!(world.served(1), None);
    assert_eq!(world.served(2), all(&up_to(20)));
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn a_change_may_replace_all_of_a_full_table() {
    // The old set takes three chunks of sixteen, so the new chunks do not fit beside them.
    let mut world = World::new([100, 3, 100]);
    world.service(1, &up_to(40), false);
    world.settle();
    let other: Vec<u16> = (100..140).collect();
    world.service(1, &other, false);
    world.sync();
    let served = world.served(1).unwrap();
    assert!(
        !served.is_empty() && served.iter().all(|e| other.contains(e)),
        "no endpoint that went: {served:?}"
    );
    world.settle();
    assert_eq!(world.served(1), all(&other));
    assert!(world.told.is_empty(), "{:?}", world.told);
    // The same holds for members.
    let mut world = World::new([100, 100, 50]);
    world.service(1, &up_to(40), true);
    world.settle();
    world.service(1, &other, true);
    world.settle();
    assert_eq!(world.served(1), all(&other));
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn the_newest_services_find_no_way_in() {
    // Each Service has two keys: its port and its bare address.
    let mut world = World::new([6, 100, 100]);
    for n in [4, 3, 2, 1] {
        world.service(n, &[1], false);
    }
    world.settle();
    assert_eq!([1, 2, 3, 4].map(|n| world.served(n).is_some()), [true, true, true, false]);
    let address = address(4);
    let transport = berth_services::Transport::Tcp;
    assert_eq!(world.told, [NoticeReason::NoRoom { address, port: 80, transport }]);
    world.service(2, &[2], false);
    world.settle();
    assert_eq!(world.served(2), all(&[2]), "what is there is written over");
    world.gone(1);
    world.settle();
    assert_eq!([1, 2, 3, 4].map(|n| world.served(n).is_some()), [false, true, true, true]);
    assert_eq!(world.told.len(), 1);
    assert_eq!(world.reconciler.notices().count(), 0);
}

#[test]
fn entries_that_somebody_deleted_or_altered_are_mended() {
    let mut world = World::new([usize::MAX; 3]);
    world.service(1, &up_to(40), true);
    world.service(2, &[1], false);
    world.settle();
    let (services, chunks, members) =
        (world.fake.v4.services.clone(), world.fake.v4.chunks.clone(), world.fake.v4.members.clone());
    let mended = |world: &mut World, found: usize| {
        let mut reconciler =
            std::mem::replace(&mut world.reconciler, TableReconciler::new(NodeFacts::default(), 1));
        assert_eq!(reconciler.reconcile(&mut world.fake).unwrap(), found);
        world.reconciler = reconciler;
        world.settle();
        assert_eq!(world.fake.v4.services, services);
        assert_eq!(world.fake.v4.chunks, chunks);
        assert_eq!(world.fake.v4.members, members);
    };
    mended(&mut world, 0);
    let service = *world.fake.v4.services.keys().find(|k| k.port != 0).unwrap();
    world.fake.v4.services.remove(&service);
    mended(&mut world, 1);
    world.fake.v4.services.get_mut(&service).unwrap().counts = [0, 0];
    let strange = ServiceKey { addr: 9, port: 9, proto: 6, pad: 0 };
    let value = world.fake.v4.services[&service];
    world.fake.v4.services.insert(strange, value);
    mended(&mut world, 2);
    let chunk = *world.fake.v4.chunks.keys().next().unwrap();
    world.fake.v4.chunks.remove(&chunk);
    mended(&mut world, 1);
    world.fake.v4.chunks.get_mut(&chunk).unwrap().len = 1;
    mended(&mut world, 1);
    let member = *world.fake.v4.members.keys().next().unwrap();
    world.fake.v4.members.remove(&member);
    world.fake.v4.members.insert(berth_ebpf_abi::MemberKey { id: 77, ..member }, 1);
    mended(&mut world, 2);
}

/// A step of a history.
#[derive(Debug, Clone)]
enum Step {
    Set { service: u8, endpoints: Vec<u16>, affinity: bool },
    Gone(u8),
    Sync,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = prop_oneof![
        proptest::collection::btree_set(1_u16..60, 0..5),
        proptest::collection::btree_set(1_u16..60, 20..50),
    ];
    prop_oneof![
        4 => (1_u8..8, endpoints, any::<bool>())
            .prop_map(|(service, e, affinity)| Step::Set { service, endpoints: e.into_iter().collect(), affinity }),
        1 => (1_u8..8).prop_map(Step::Gone),
        3 => Just(Step::Sync),
        1 => Just(Step::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// At any capacity and history no client is sent to a removed endpoint. Once all entries fit, every
    /// Service is served.
    #[test]
    fn no_client_is_sent_to_an_endpoint_that_went(
        capacity in (4_usize..16, 2_usize..14, 10_usize..120),
        steps in proptest::collection::vec(step(), 1..25),
    ) {
        let mut world = World::new(capacity.into());
        let mut wanted: [Option<BTreeSet<u16>>; 8] = Default::default();
        let mut fresh = true;
        for step in steps {
            match step {
                Step::Set { service, endpoints, affinity } => {
                    world.service(service, &endpoints, affinity);
                    wanted[usize::from(service)] = Some(endpoints.into_iter().collect());
                    fresh = false;
                }
                Step::Gone(service) => {
                    world.gone(service);
                    wanted[usize::from(service)] = None;
                    fresh = false;
                }
                Step::Sync => drop(world.sync()),
                Step::Settle => {
                    world.settle();
                    fresh = true;
                }
            }
            for n in 1..8 {
                // While chunks rest, a port may wait for them for one sync.
                let served = world.served(n);
                if fresh {
                    let wanted = wanted[usize::from(n)].clone().unwrap_or_default();
                    prop_assert!(served.unwrap_or_default().is_subset(&wanted));
                }
            }
        }
        (world.fake.v4.capacity, world.fake.v6.capacity) = ([usize::MAX; 3], [usize::MAX; 3]);
        world.settle();
        for n in 1..8 {
            prop_assert_eq!(world.served(n), wanted[usize::from(n)].clone(), "service {}", n);
        }
        prop_assert_eq!(world.reconciler.unfit(), 0);
        prop_assert!(world.reconciler.check(&mut world.fake).unwrap().is_empty());
    }
}
