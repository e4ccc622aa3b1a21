//! Random histories of Services and slices against tables that check every write. At any moment a reader sees
//! a complete set that is or was wanted. After an agent is killed at any write, the next agent repairs the
//! tables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use berth_core::{
    ids::PodKey,
    model::{EndpointSlice, Protocol, Service, TrafficPolicy},
    time::Wall,
};
use berth_ebpf_abi::{SERVING, ServiceKey, frontend};
use berth_ebpf_loader::Frontend;
use berth_harness::rng::Rng;
use berth_services::{Net, NodeFacts, REST, TableReconciler, Transport, WantedPort, compile};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use support::{Fake, Maps, View, endpoint, gone, is_udp, new, service, slice};

#[derive(Default)]
struct World {
    services: BTreeMap<PodKey, Arc<Service>>,
    slices: BTreeMap<PodKey, Arc<EndpointSlice>>,
}

fn node() -> NodeFacts {
    NodeFacts { name: "a".into(), zone: "".into(), addresses: BTreeSet::new(), own: BTreeSet::new() }
}

impl World {
    fn random_service(&self, rng: &mut Rng) -> Service {
        let name = ["s0", "s1", "s2", "s3"][rng.below(4) as usize];
        let ips = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.3,fd00::1", "fd00::2,10.96.0.4"];
        let np = |rng: &mut Rng| rng.one_in(3).then(|| 30000 + rng.below(3) as u16);
        let ports = match rng.below(3) {
            0 => vec![("", Protocol::Tcp, 80, np(rng))],
            1 => vec![("dns", Protocol::Udp, 53, np(rng))],
            _ => vec![("dns", Protocol::Udp, 53, None), ("web", Protocol::Tcp, 80, np(rng))],
        };
        let mut s = service(name, ips[rng.below(5) as usize], &ports);
        s.created = Wall(rng.below(3) as i64);
        if rng.one_in(6) {
            s.uid = format!("again-{name}-{}", rng.below(3)).into();
        }
        s.affinity_s = rng.one_in(3).then_some(60);
        if rng.one_in(3) {
            s.internal_policy = TrafficPolicy::Local;
        }
        if rng.one_in(3) {
            s.external_policy = TrafficPolicy::Local;
        }
        s
    }

    fn random_slice(&self, rng: &mut Rng) -> EndpointSlice {
        let (name, of) = [("x0", "s0"), ("x1", "s0"), ("x2", "s1"), ("x3", "s2"), ("x4", "s3"), ("x4", "s1")]
            [rng.below(6) as usize];
        let v6 = rng.one_in(5);
        let count = [0, 1, 3, 4, 5, 12, 16, 17, 40][rng.below(9) as usize];
        let first = rng.below(6);
        let endpoints = (first..first + count).map(|i| {
            let address = if v6 { format!("fd01::{i:x}") } else { format!("10.1.0.{i}") };
            let mut e = endpoint(&address, if rng.one_in(3) { "a" } else { "b" });
            e.ready = !rng.one_in(8);
            e.serving = e.ready || rng.one_in(2);
            e.terminating = !e.ready && rng.one_in(2);
            e
        });
        let ports = [("", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 5353), ("web", Protocol::Tcp, 8080)];
        let mut s = slice(name, of, &ports, endpoints.collect());
        s.v6 = v6;
        s
    }

    /// Makes a random change and passes it on as a source reports it.
    fn step(&mut self, rng: &mut Rng, reconciler: &mut TableReconciler) {
        match rng.below(10) {
            0 if !self.services.is_empty() => {
                let at = rng.below(self.services.len() as u64) as usize;
                let key = self.services.keys().nth(at).unwrap().clone();
                reconciler.change_services(gone(self.services.remove(&key).unwrap()));
            }
            1 if !self.slices.is_empty() => {
                let at = rng.below(self.slices.len() as u64) as usize;
                let key = self.slices.keys().nth(at).unwrap().clone();
                reconciler.change_slices(gone(self.slices.remove(&key).unwrap()));
            }
            2..=4 => {
                let service = Arc::new(self.random_service(rng));
                self.services.insert(service.key.clone(), Arc::clone(&service));
                reconciler.change_services(new(service));
            }
            _ => {
                let slice = Arc::new(self.random_slice(rng));
                self.slices.insert(slice.key.clone(), Arc::clone(&slice));
                reconciler.change_slices(new(slice));
            }
        }
    }

    fn wanted(&self) -> Vec<(Arc<Service>, berth_services::Wanted)> {
        let of = |s: &Arc<Service>| {
            let slices: Vec<_> = self.slices.values().filter(|x| x.service == s.key).cloned().collect();
            (Arc::clone(s), compile(s, &slices, &node()))
        };
        self.services.values().map(of).collect()
    }

    /// The owner of each ClusterIP: the oldest Service that names it.
    fn address_holders<A: Net>(
        &self,
        of: impl Fn(&berth_services::Wanted) -> &Vec<WantedPort<A>>,
    ) -> HashMap<A, (Wall, Arc<str>)> {
        let mut holders: HashMap<A, (Wall, Arc<str>)> = HashMap::new();
        for (service, wanted) in self.wanted() {
            let age = (service.created, Arc::clone(&service.uid));
            let bare = of(&wanted).iter().flat_map(|p| &p.frontends).filter(|(k, _)| k.port == 0);
            for (key, _) in bare {
                let holder = holders.entry(key.addr).or_insert_with(|| age.clone());
                if age < *holder {
                    *holder = age.clone();
                }
            }
        }
        holders
    }

    /// The views that readers must see by the rule alone: the oldest Service holds the key, if it also holds
    /// the ClusterIP.
    fn views<A: Net>(
        &self,
        of: impl Fn(&berth_services::Wanted) -> &Vec<WantedPort<A>>,
    ) -> HashMap<ServiceKey<A>, View<A>> {
        type Aged<A> = ((Wall, Arc<str>), View<A>);
        let mut views: HashMap<ServiceKey<A>, Aged<A>> = HashMap::new();
        let holders = self.address_holders(&of);
        for (service, wanted) in self.wanted() {
            for port in of(&wanted) {
                let set = |b: &[berth_ebpf_abi::Backend<A>]| -> BTreeSet<(A, u16)> {
                    b.iter().map(|b| (b.addr, u16::from_be(b.port))).collect()
                };
                for (key, flags) in &port.frontends {
                    let age = (service.created, Arc::clone(&service.uid));
                    if holders.get(&key.addr).is_some_and(|holder| age != *holder) {
                        continue;
                    }
                    let view = if *flags == frontend::ADDRESS {
                        View { frontend: *flags, affinity_s: 0, cluster: [].into(), local: [].into() }
                    } else {
                        let has = if port.has_endpoints { frontend::HAS_ENDPOINTS } else { 0 };
                        View {
                            frontend: flags | has,
                            affinity_s: port.affinity_s,
                            cluster: set(&port.cluster),
                            local: set(&port.local),
                        }
                    };
                    let older = views.get(key).is_none_or(|(there, _)| age < *there);
                    if older {
                        views.insert(*key, (age, view));
                    }
                }
            }
        }
        views.into_iter().map(|(key, (_, view))| (key, view)).collect()
    }

    /// Backends outside the sets that flows of a UDP key may keep: those of the Service that holds the key.
    fn serving<A: Net>(
        &self,
        of: impl Fn(&berth_services::Wanted) -> &Vec<WantedPort<A>>,
    ) -> HashMap<ServiceKey<A>, BTreeSet<(A, u16)>> {
        type Aged<A> = ((Wall, Arc<str>), BTreeSet<(A, u16)>);
        let mut serving: HashMap<ServiceKey<A>, Aged<A>> = HashMap::new();
        let holders = self.address_holders(&of);
        for (service, wanted) in self.wanted() {
            for port in of(&wanted) {
                let only =
                    port.serving.iter().map(|b| (b.addr, u16::from_be(b.port))).collect::<BTreeSet<_>>();
                for (key, _) in port.frontends.iter().filter(|(key, _)| is_udp(key)) {
                    let age = (service.created, Arc::clone(&service.uid));
                    if holders.get(&key.addr).is_some_and(|holder| age != *holder) {
                        continue;
                    }
                    if serving.get(key).is_none_or(|(there, _)| age < *there) {
                        serving.insert(*key, (age, only.clone()));
                    }
                }
            }
        }
        serving.into_iter().map(|(key, (_, only))| (key, only)).collect()
    }

    fn feed(&self, reconciler: &mut TableReconciler) {
        self.services.values().for_each(|s| reconciler.change_services(new(Arc::clone(s))));
        self.slices.values().for_each(|s| reconciler.change_slices(new(Arc::clone(s))));
    }
}

/// The Service of each id after the last complete sync.
type Names = HashMap<(bool, u32), PodKey>;

/// A backend's address and port, and the frontend through which clients reached it.
type Owed = (std::net::IpAddr, u16, Frontend);

fn owed_by<A: Net>(key: &ServiceKey<A>) -> Frontend {
    Frontend { address: (key.addr != A::ANY).then(|| key.addr.ip()), port: u16::from_be(key.port) }
}

/// Backends of a UDP key that must be reported as stale when the key's value changes: where the key stays
/// with its Service, or where no port wants the key and its Service is deleted.
fn left<A: Net>(
    maps: &Maps<A>,
    world: &World,
    names: &Names,
    of: impl Fn(&berth_services::Wanted) -> &Vec<WantedPort<A>>,
) -> BTreeSet<Owed> {
    let mut left = BTreeSet::new();
    let wanted = world.wanted();
    for (key, value) in
        maps.services.iter().filter(|(k, _)| k.proto == Transport::Udp.number() && k.port != 0)
    {
        let there = maps.view(value);
        let owner = names.get(&(A::V6, value.id));
        let ports = wanted.iter().flat_map(|(s, w)| of(w).iter().map(move |p| (&s.key, p)));
        let ports: Vec<_> = ports.filter(|(_, p)| p.frontends.iter().any(|(k, _)| k == key)).collect();
        let keep: BTreeSet<(A, u16)> = match ports.as_slice() {
            [] if owner.is_some_and(|o| !world.services.contains_key(o)) => BTreeSet::new(),
            [(service, port)] if owner == Some(*service) => {
                let all = port.cluster.iter().chain(&port.local).chain(&port.serving);
                all.map(|b| (b.addr, u16::from_be(b.port))).collect()
            }
            _ => continue,
        };
        let gone = there.cluster.union(&there.local).filter(|b| !keep.contains(b));
        left.extend(gone.map(|(addr, port)| (addr.ip(), *port, owed_by(key))));
    }
    left
}

fn left_of_both(fake: &Fake, world: &World, names: &Names) -> BTreeSet<Owed> {
    let mut left4 = left(&fake.v4, world, names, |w| &w.v4);
    left4.extend(left(&fake.v6, world, names, |w| &w.v6));
    left4
}

/// Ports that lost all their keys to older Services: their chunks and members stay in the tables, but no
/// value names them.
fn hidden(fake: &Fake, reconciler: &TableReconciler) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let ids = |v6| reconciler.names().filter(move |n| n.v6 == v6).map(|n| n.id);
    (fake.v4.hidden(ids(false)), fake.v6.hidden(ids(true)))
}

/// The generation of an id, and the backends that its flows may keep.
type Flows<A> = HashMap<u32, (u32, BTreeSet<(A, u16)>)>;

/// Checks that a removed backend comes with a new generation, because a flow checks its backend only then.
fn asked<A: Net>(before: &mut Flows<A>, maps: &Maps<A>) {
    let mut now = Flows::new();
    for (_, value) in maps.services.iter().filter(|(key, _)| is_udp(key)) {
        let members = maps.members.keys().filter(|m| m.id == value.id && m.set == SERVING);
        let serving: BTreeSet<_> = members.map(|m| (m.addr, m.port)).collect();
        if let Some((generation, there)) = before.get(&value.id)
            && *generation == value.generation
        {
            assert!(there.is_subset(&serving), "flows of {} are not asked: {there:?}, {serving:?}", value.id);
        }
        now.insert(value.id, (value.generation, serving));
    }
    *before = now;
}

fn run(number: u64) {
    let mut rng = Rng::new(number);
    let mut fake = Fake::default();
    let clock = fake.clock();
    let mut world = World::default();
    let mut reconciler = TableReconciler::new(node(), 1);
    reconciler.listed();
    let mut names = Names::new();
    let (mut flows4, mut flows6) = (HashMap::new(), HashMap::new());
    for _ in 0..6 + rng.below(10) {
        for _ in 0..1 + rng.below(3) {
            world.step(&mut rng, &mut reconciler);
        }
        fake.v4.new = world.views(|w| &w.v4);
        fake.v6.new = world.views(|w| &w.v6);
        let mut owed = left_of_both(&fake, &world, &names);
        fake.pass(Duration::from_millis(rng.below(150)));
        if rng.one_in(4) {
            // The agent is killed at some write, perhaps twice, or the kernel rejects a write.
            for _ in 0..1 + rng.below(2) {
                fake.fuse.left.set(Some(rng.below(12) as usize));
                // The sync may succeed or fail by chance.
                let told = reconciler.sync(&mut fake, &clock);
                fake.fuse.left.set(None);
                if let Ok(outcome) = told {
                    owed.retain(|o| outcome.stale.iter().all(|s| (s.address, s.port, s.frontend) != *o));
                }
                if rng.one_in(2) {
                    reconciler = TableReconciler::new(node(), 1);
                    world.feed(&mut reconciler);
                    let idle = reconciler.sync(&mut fake, &clock).unwrap();
                    assert_eq!(idle.put + idle.deleted, 0, "nothing is written before all have listed");
                    reconciler.listed();
                    // A killed agent reports no stale backend, so the next agent must report those that the
                    // tables still show.
                    owed = left_of_both(&fake, &world, &names);
                }
                fake.pass(Duration::from_millis(rng.below(150)));
            }
        }
        let outcome = reconciler.sync(&mut fake, &clock).unwrap();
        owed.retain(|o| outcome.stale.iter().all(|s| (s.address, s.port, s.frontend) != *o));
        let (v4, v6) = hidden(&fake, &reconciler);
        fake.v4.check(&v4, &world.serving(|w| &w.v4));
        fake.v6.check(&v6, &world.serving(|w| &w.v6));
        asked(&mut flows4, &fake.v4);
        asked(&mut flows6, &fake.v6);
        assert!(owed.is_empty(), "not told as stale: {owed:?}");
        assert_eq!(reconciler.check(&mut fake).unwrap(), []);
        names = reconciler.names().map(|n| ((n.v6, n.id), n.service)).collect();
    }
    fake.pass(REST);
    let outcome = reconciler.sync(&mut fake, &clock).unwrap();
    assert_eq!((outcome.put, outcome.due), (0, None));
    let (v4, v6) = hidden(&fake, &reconciler);
    fake.v4.check_rested(&v4);
    fake.v6.check_rested(&v6);
    let unseen = v4.len() + v6.len();
    // A restart without a change writes no entry.
    let mut again = TableReconciler::new(node(), 1);
    world.feed(&mut again);
    again.listed();
    let outcome = again.sync(&mut fake, &clock).unwrap();
    assert!(unseen > 0 || (outcome.put, outcome.deleted, outcome.due) == (0, 0, None), "{outcome:?}");
    assert!(outcome.stale.is_empty(), "{:?}", outcome.stale);
}

#[test]
fn any_history_keeps_readers_whole() {
    let count: u64 = std::env::var("BERTH_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let only: Option<u64> = std::env::var("BERTH_HISTORY").ok().and_then(|n| n.parse().ok());
    for number in only.map_or(0..count, |n| n..n + 1) {
        if let Err(panic) = std::panic::catch_unwind(|| run(number)) {
            panic!("BERTH_HISTORY={number}: {:?}", panic.downcast_ref::<String>());
        }
    }
}
