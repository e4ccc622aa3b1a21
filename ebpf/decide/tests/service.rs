//! Decisions about Services, compared with a plain model, and on tables that change during the read.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use berth_ebpf_abi::{
    Affinity, AffinityKey, Backend, Chunk, ChunkKey, MemberKey, NodeAddress, Service, ServiceKey, V4, V6, tag,
};
use berth_ebpf_decide::{
    ClientLocation, DropReason, Header, Maps, Verdict, decide,
    memory::Tables,
    testing::{Dice, Expected, Kind, Sample, TCP, World, client},
    trace::{Step, Trace},
};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
};

/// Half a million cases of a family, in many worlds.
fn agrees_with_the_model<A: Sample>(seed: u64) {
    let mut kinds: HashMap<&str, u32> = HashMap::new();
    let mut cases = 0;
    for number in 0..2_500 {
        let mut dice = Dice::new(seed + number);
        let mut world = World::<A>::random(&mut dice, 100, 50_000);
        let mut tables = world.tables();
        tables.dice = Cell::new(dice.throw() | 1);
        for _ in 0..200 {
            let dial = world.dial(&mut dice);
            let expected = world.expected(&dial);
            let (verdict, steps) = {
                let trace = Trace::new(&tables);
                // The trace draws the same random numbers.
                let before = tables.dice.get();
                let traced = decide(&trace, &dial.key, dial.from);
                tables.dice.set(before);
                let steps = trace.steps();
                let verdict = decide(&tables, &dial.key, dial.from);
                assert_eq!(traced, verdict, "a trace decides otherwise: world {number}, {dial:?}");
                (verdict, steps)
            };
            let wrong =
                || format!("world {number}, {dial:?}: {verdict:?}, expected {expected:?}, steps {steps:?}");
            let kind = match (&expected, &verdict) {
                (Expected::Exactly(expected), verdict) => {
                    assert_eq!(expected, verdict, "{}", wrong());
                    match verdict {
                        Verdict::Pass => "pass",
                        Verdict::Drop(DropReason::Policy) => "drop by policy",
                        Verdict::Drop(_) => "drop",
                        Verdict::Reject(_) => "reject",
                        Verdict::To(_) => panic!("{}", wrong()),
                    }
                }
                (Expected::Stays(backend), Verdict::To(choice)) => {
                    assert_eq!(choice.backend, *backend, "{}", wrong());
                    world.selection(&dial, choice.service, choice.backend);
                    "stays"
                }
                (Expected::OneOf(set), Verdict::To(choice)) => {
                    assert!(set.contains(&choice.backend), "{}", wrong());
                    world.selection(&dial, choice.service, choice.backend);
                    if set.len() > 4 { "one of many" } else { "one of few" }
                }
                _ => panic!("{}", wrong()),
            };
            *kinds.entry(kind).or_default() += 1;
            cases += 1;
            if let Verdict::To(choice) = verdict {
                let key = AffinityKey { id: choice.service, client: client(&dial) };
                let kept = tables.affinity.borrow().get(&key).map(|a| (a.backend, a.seen_s));
                let known = world.stuck.get(&(choice.service, client(&dial))).map(|a| (a.backend, a.seen_s));
                assert_eq!(kept, known, "{}", wrong());
            }
        }
    }
    assert_eq!(cases, 500_000);
    for kind in ["pass", "drop by policy", "drop", "reject", "stays", "one of many", "one of few"] {
        let count = kinds.get(kind).copied().unwrap_or_default();
        assert!(count > 5_000, "the generator makes too few cases of {kind}: {kinds:?}");
    }
}

#[test]
fn ipv4_agrees_with_the_model_in_half_a_million_cases() {
    agrees_with_the_model::<V4>(1);
}

#[test]
fn ipv6_agrees_with_the_model_in_half_a_million_cases() {
    agrees_with_the_model::<V6>(1_000_000);
}

fn backend(n: u16) -> Backend<V4> {
    Backend { addr: V4::nth(Kind::Pod, n), port: 80_u16.to_be(), flags: 0 }
}

fn service(id: u32, generation: u32, backends: &[Backend<V4>]) -> Service<V4> {
    let mut value = Service {
        tag: tag(id, generation),
        id,
        generation,
        counts: [u16::try_from(backends.len()).unwrap(), 0],
        ..Service::default()
    };
    value.inline[..backends.len()].copy_from_slice(backends);
    value
}

const KEY: ServiceKey<V4> = ServiceKey { addr: 1, port: 1, proto: TCP, pad: 0 };

#[test]
fn backends_are_chosen_evenly() {
    let mut tables = Tables::default();
    let many: Vec<_> = (0..40).map(backend).collect();
    let mut value = service(1, 1, &[]);
    value.counts = [40, 0];
    tables.services.insert(KEY, value);
    for (index, part) in (0..).zip(many.chunks(16)) {
        let mut chunk = Chunk { tag: tag(1, 1), len: u32::try_from(part.len()).unwrap(), ..Chunk::default() };
        chunk.backends[..part.len()].copy_from_slice(part);
        tables.chunks.insert(ChunkKey { id: 1, generation: 1, set: 0, index }, chunk);
    }
    tables.dice.set(7);
    let mut hits: HashMap<Backend<V4>, u32> = HashMap::new();
    for _ in 0..40_000 {
        let Verdict::To(choice) = decide(&tables, &KEY, ClientLocation::Host) else { panic!("no backend") };
        *hits.entry(choice.backend).or_default() += 1;
    }
    assert_eq!(hits.len(), 40);
    // Each backend is expected 1000 times; the standard deviation is 31.
    assert!(hits.values().all(|n| (850..1150).contains(n)), "{hits:?}");
}

#[test]
fn affinity_is_written_once_a_second_and_ends_with_its_time_or_its_backend() {
    let mut tables = Tables::default();
    let backends: Vec<_> = (0..4).map(backend).collect();
    let mut value = service(1, 1, &backends);
    value.affinity_s = 10;
    tables.services.insert(KEY, value);
    let member = |b: &Backend<V4>| MemberKey { id: 1, addr: b.addr, port: b.port, set: 0 };
    tables.members.extend(backends.iter().map(member));
    tables.dice.set(9);
    let client = ClientLocation::Pod(V4::nth(Kind::Pod, 9));
    let writes = |tables: &Tables<V4>| {
        let trace = Trace::new(tables);
        let verdict = decide(&trace, &KEY, client);
        let writes = trace.steps().iter().filter(|step| matches!(step, Step::Stick { .. })).count();
        // A trace writes no entry, unlike the decision.
        if writes > 0 {
            decide(tables, &KEY, client);
        }
        (verdict, writes)
    };
    tables.now_s.set(1000);
    decide(&tables, &KEY, client);
    let first = tables.affinity.borrow().values().next().copied().unwrap();
    assert_eq!(writes(&tables).1, 0, "the second is the same");
    for second in 1..30 {
        tables.now_s.set(1000 + second);
        let (verdict, writes) = writes(&tables);
        let Verdict::To(choice) = verdict else { panic!("{verdict:?}") };
        assert_eq!((choice.backend, writes), (first.backend, 1), "every use within ten seconds renews it");
    }
    tables.now_s.set(1029 + 10);
    let key = AffinityKey { id: 1, client: V4::nth(Kind::Pod, 9) };
    let selection: HashSet<_> = (0..200)
        .map(|_| {
            tables.affinity.borrow_mut().insert(key, Affinity { backend: first.backend, seen_s: 1029 });
            match decide(&tables, &KEY, client) {
                Verdict::To(choice) => choice.backend,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(selection.len(), 4, "after its time any is selection");
    tables.now_s.set(1030);
    tables.members.remove(&member(&first.backend));
    tables.services.insert(KEY, {
        let left: Vec<_> = backends.iter().copied().filter(|b| *b != first.backend).collect();
        let mut value = service(1, 2, &left);
        value.affinity_s = 10;
        value
    });
    tables.affinity.borrow_mut().insert(key, Affinity { backend: first.backend, seen_s: 1030 });
    let Verdict::To(choice) = decide(&tables, &KEY, client) else { panic!("no backend") };
    assert_ne!(choice.backend, first.backend, "a backend that left is not stayed with");
}

/// Tables whose dialled Service gets a new value in other memory after some reads, while another Service
/// reuses the old memory, as in the kernel.
struct Moving {
    places: RefCell<Vec<Service<V4>>>,
    mine: Cell<usize>,
    chunks: HashMap<ChunkKey, Chunk<V4>>,
    looks: Cell<u32>,
    moves: RefCell<Vec<(u32, Service<V4>)>>,
    dice: Cell<u32>,
}

const STRANGER: u16 = 999;

impl Moving {
    fn look(&self) {
        let looks = self.looks.get();
        self.looks.set(looks + 1);
        let mut moves = self.moves.borrow_mut();
        if moves.first().is_some_and(|(at, _)| *at == looks) {
            let (_, value) = moves.remove(0);
            let mut places = self.places.borrow_mut();
            let stranger = service(77, looks, &[backend(STRANGER), backend(STRANGER)]);
            places[self.mine.get()] = stranger;
            // The two places alternate, so the old one is used again.
            self.mine.set((self.mine.get() + 1) % 2);
            places[self.mine.get()] = value;
        }
    }
}

impl Maps<V4> for Moving {
    type Service = usize;
    type Chunk = Chunk<V4>;

    fn service(&self, key: &ServiceKey<V4>) -> Option<usize> {
        self.look();
        (*key == KEY).then(|| self.mine.get())
    }
    fn header(&self, at: usize) -> Header {
        // Each field is read separately, so the value may be replaced in between.
        let read = |field: fn(&Service<V4>) -> u32| {
            self.look();
            field(&self.places.borrow()[at])
        };
        Header {
            tag: read(|s| s.tag),
            id: read(|s| s.id),
            generation: read(|s| s.generation),
            frontend: read(|s| s.frontend),
            affinity_s: read(|s| s.affinity_s),
            counts: [0, 1].map(|set| {
                self.look();
                self.places.borrow()[at].counts[set]
            }),
        }
    }
    fn inline(&self, at: usize, index: u32) -> Backend<V4> {
        self.look();
        let addr = self.places.borrow()[at].inline[index as usize % 4].addr;
        self.look();
        let Backend { port, flags, .. } = self.places.borrow()[at].inline[index as usize % 4];
        Backend { addr, port, flags }
    }
    fn chunk(&self, key: &ChunkKey) -> Option<Chunk<V4>> {
        self.look();
        self.chunks.get(key).copied()
    }
    fn chunk_tag(&self, at: Chunk<V4>) -> u32 {
        at.tag
    }
    fn chunk_backend(&self, at: Chunk<V4>, index: u32) -> Backend<V4> {
        at.backends[index as usize % 16]
    }
    fn affinity(&self, _: &AffinityKey<V4>) -> Option<Affinity<V4>> {
        None
    }
    fn set_affinity(&self, _: &AffinityKey<V4>, _: &Affinity<V4>) {}
    fn member(&self, _: &MemberKey<V4>) -> bool {
        false
    }
    fn node(&self, _: &V4) -> Option<NodeAddress> {
        None
    }
    fn in_service_range(&self, _: V4) -> bool {
        false
    }
    fn rand(&self) -> u32 {
        let next = self.dice.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.dice.set(next);
        next
    }
    fn now_s(&self) -> u32 {
        0
    }
}

#[test]
fn a_value_that_is_replaced_while_it_is_read_gives_no_strange_backend() {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    for seed in 0..200_000 {
        let mut dice = Dice::new(seed);
        let mut chunks = HashMap::new();
        let mut wanted = HashSet::new();
        let mut value = |dice: &mut Dice, generation: u32| {
            let base = u16::try_from(generation).unwrap() * 50;
            let size = dice.of(&[1_u16, 2, 4, 20]);
            let all: Vec<_> = (base..base + size).map(backend).collect();
            wanted.extend(all.iter().copied());
            if size <= 4 {
                return service(5, generation, &all);
            }
            for (index, part) in (0..).zip(all.chunks(16)) {
                let len = u32::try_from(part.len()).unwrap();
                let mut chunk = Chunk { tag: tag(5, generation), len, ..Chunk::default() };
                chunk.backends[..part.len()].copy_from_slice(part);
                chunks.insert(ChunkKey { id: 5, generation, set: 0, index }, chunk);
            }
            let mut value = service(5, generation, &[]);
            value.counts = [size, 0];
            value
        };
        let first = value(&mut dice, 0);
        let mut at = 0;
        let mut moves = Vec::new();
        for generation in 1..=dice.below(4) {
            at += dice.below(12);
            moves.push((at, value(&mut dice, generation)));
            at += 1;
        }
        let maps = Moving {
            places: RefCell::new(vec![first; 2]),
            mine: Cell::new(0),
            chunks,
            looks: Cell::new(0),
            moves: RefCell::new(moves),
            dice: Cell::new(dice.throw()),
        };
        let kind = match decide(&maps, &KEY, ClientLocation::Host) {
            Verdict::To(choice) => {
                assert!(wanted.contains(&choice.backend), "seed {seed}: {choice:?}");
                assert_eq!(choice.service, 5, "seed {seed}");
                "to"
            }
            Verdict::Drop(DropReason::Unsettled) => "unsettled",
            other => panic!("seed {seed}: {other:?}"),
        };
        *seen.entry(kind).or_default() += 1;
    }
    assert!(seen["to"] > 100_000 && seen["unsettled"] > 100, "{seen:?}");
}

#[test]
fn a_trace_names_each_step() {
    let mut tables = Tables::default();
    let many: Vec<_> = (0..5).map(backend).collect();
    let mut value = service(3, 8, &[]);
    value.counts = [5, 0];
    let mut chunk = Chunk { tag: tag(3, 8), len: 5, ..Chunk::default() };
    chunk.backends[..5].copy_from_slice(&many);
    let place = ChunkKey { id: 3, generation: 8, set: 0, index: 0 };
    tables.services.insert(KEY, value);
    tables.chunks.insert(place, chunk);
    let trace = Trace::new(&tables);
    let verdict = decide(&trace, &KEY, ClientLocation::Host);
    let steps = trace.steps();
    assert!(matches!(verdict, Verdict::To(choice) if choice.backend == many[0]));
    let header = Header::from(&value);
    assert_eq!(
        steps,
        [
            Step::Service { key: KEY, found: Some(header) },
            Step::Chunk { key: place, found: true },
            Step::ChunkBackend { index: 0, backend: many[0] },
        ]
    );
}
