//! `berth services --check`: consistency of the tables with each other, with the names, and with
//! the programs.
//!
//! Each check compares entries of one reading. The agent may write during the reading, so a problem
//! counts only if a second reading, after replaced chunks are gone, finds it too.

use super::{
    family::{Net, socket},
    names::Names,
    snapshot::{Protocol, Snapshot, chunk_keys},
};
use berth_api::services::NamedPort;
use berth_ebpf_abi::{ChunkKey, INLINE, MemberKey, SERVING, Service, ServiceKey, Set, frontend, tag};
use berth_ebpf_decide::flow::{TCP, UDP};
use berth_ebpf_loader::{Hook, Report};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

/// The problems found, one line each.
pub(crate) type Findings = BTreeSet<String>;

/// Checks that one family's tables are consistent and agree with the names.
pub(crate) fn tables<A: Net>(snapshot: &Snapshot<A>, names: &Names) -> Findings {
    let mut found = Findings::new();
    let expected = Expected::of(snapshot, names, &mut found);
    for (id, generations) in expected.generations.iter().filter(|(_, g)| g.len() > 1) {
        let service = names.service_port(A::V6, *id);
        found
            .insert(format!("{} {service}: its frontends have generations {generations:?}", A::MAPS.service));
    }
    let ids: BTreeSet<u32> = expected.generations.keys().copied().collect();
    let without_frontends =
        if names.published { check_names(snapshot, &ids, names, &mut found) } else { BTreeSet::new() };
    let known = |id: &u32| ids.contains(id) || without_frontends.contains(id);
    for chunk in snapshot.chunks.keys() {
        if !expected.chunks.contains(chunk) && !without_frontends.contains(&chunk.id) {
            found.insert(format!("{} {}: no value names it", A::MAPS.chunk, chunk_text(chunk)));
        }
    }
    members(snapshot, &expected, names, known, &mut found);
    found
}

/// The entries of other tables that follow from the Service entries.
#[derive(Default)]
struct Expected<A> {
    /// The generations of each id's frontends; one in consistent tables.
    generations: BTreeMap<u32, BTreeSet<u32>>,
    chunks: HashSet<ChunkKey>,
    members: HashSet<MemberKey<A>>,
    /// The ids that have members, and whether one of their frontends is UDP. Beside the members of
    /// the sets such a port may have [`SERVING`] members for terminating endpoints, which are in no
    /// set.
    with_members: HashMap<u32, bool>,
}

impl<A: Net> Expected<A> {
    /// Collects the expected entries, and checks each Service entry by itself on the way.
    fn of(snapshot: &Snapshot<A>, names: &Names, found: &mut Findings) -> Expected<A> {
        let mut expected = Expected {
            generations: BTreeMap::new(),
            chunks: HashSet::new(),
            members: HashSet::new(),
            with_members: HashMap::new(),
        };
        let keys: HashSet<ServiceKey<A>> = snapshot.services.iter().map(|(key, _)| *key).collect();
        let with_ports: HashSet<A> = keys.iter().filter(|k| k.port != 0).map(|k| k.addr).collect();
        for (key, value) in &snapshot.services {
            let at = format!("{} {}", A::MAPS.service, frontend_text(key));
            if value.tag != tag(value.id, value.generation) {
                let (id, generation) = (value.id, value.generation);
                found.insert(format!("{at}: the tag does not fit id {id} generation {generation}"));
            }
            if value.frontend & frontend::ADDRESS != 0 {
                if !with_ports.contains(&key.addr) {
                    found.insert(format!("{at}: an address without any Service port"));
                }
                continue;
            }
            let cluster_ip = value.frontend & (frontend::EXTERNAL | frontend::NODE_PORT) == 0;
            if cluster_ip && !keys.contains(&ServiceKey { addr: key.addr, ..ServiceKey::default() }) {
                found.insert(format!("{at}: no entry of the bare address, so other ports are not refused"));
            }
            expected.generations.entry(value.id).or_default().insert(value.generation);
            expected.add_chunks(snapshot, value, names, found);
            let inline = value.counts.map(usize::from).into_iter().fold(0, usize::saturating_add);
            if inline <= INLINE && value.inline.iter().take(inline).any(|b| b.port == 0) {
                found.insert(format!("{at}: a backend without a port"));
            }
            expected.add_members(snapshot, key, value);
        }
        expected
    }

    fn add_chunks(
        &mut self,
        snapshot: &Snapshot<A>,
        value: &Service<A>,
        names: &Names,
        found: &mut Findings,
    ) {
        let service = names.service_port(A::V6, value.id);
        for (chunk, len) in [Set::Cluster, Set::Local].into_iter().flat_map(|set| chunk_keys(value, set)) {
            let at = format!("{} {}: {service}", A::MAPS.chunk, chunk_text(&chunk));
            match snapshot.chunks.get(&chunk) {
                None => drop(found.insert(format!("{at}: missing"))),
                Some(c) if c.tag != tag(chunk.id, chunk.generation) => {
                    found.insert(format!("{at}: the tag does not fit"));
                }
                Some(c) if usize::try_from(c.len).ok() != Some(len) => {
                    found.insert(format!("{at}: has {} backends, the value says {len}", c.len));
                }
                Some(c) if c.backends.iter().take(len).any(|b| b.port == 0) => {
                    found.insert(format!("{at}: a backend without a port"));
                }
                Some(_) => {}
            }
            self.chunks.insert(chunk);
        }
    }

    fn add_members(&mut self, snapshot: &Snapshot<A>, key: &ServiceKey<A>, value: &Service<A>) {
        let udp = key.proto == UDP;
        let affinity = value.affinity_s != 0;
        if affinity || udp {
            *self.with_members.entry(value.id).or_default() |= udp;
        }
        for (number, set) in [(0, Set::Cluster), (1, Set::Local)] {
            for b in snapshot.backends(value, set).into_iter().filter(|b| b.port != 0) {
                let member = MemberKey { id: value.id, addr: b.addr, port: b.port, set: number };
                self.members.extend(affinity.then_some(member));
                self.members.extend(udp.then_some(MemberKey { set: SERVING, ..member }));
            }
        }
    }
}

/// Compares the members with the expected ones.
fn members<A: Net>(
    snapshot: &Snapshot<A>,
    expected: &Expected<A>,
    names: &Names,
    known: impl Fn(&u32) -> bool,
    found: &mut Findings,
) {
    let map = A::MAPS.member;
    for member in expected.members.difference(&snapshot.members) {
        let service = names.service_port(A::V6, member.id);
        let who = if member.set == SERVING { "no flow" } else { "no client" };
        found.insert(format!("{map} {}: {service}: missing, so {who} stays there", member_text(member)));
    }
    for member in snapshot.members.iter().filter(|m| !known(&m.id)) {
        found.insert(format!("{map} {}: no Service has this id", member_text(member)));
    }
    let excess =
        |m: &&MemberKey<A>| expected.with_members.get(&m.id).is_some_and(|udp| m.set != SERVING || !udp);
    for member in snapshot.members.difference(&expected.members).filter(excess) {
        let service = names.service_port(A::V6, member.id);
        found.insert(format!("{map} {}: {service}: not one of its backends", member_text(member)));
    }
}

/// Checks that each id has a name and each named port its entries. Returns the ids of ports whose
/// frontends are all owned by other Services; their entries are kept in case a frontend becomes
/// free.
fn check_names<A: Net>(
    snapshot: &Snapshot<A>,
    ids: &BTreeSet<u32>,
    names: &Names,
    found: &mut Findings,
) -> BTreeSet<u32> {
    let map = A::MAPS.service;
    for id in ids.iter().filter(|id| names.port(A::V6, **id).is_none()) {
        found.insert(format!("{map} (id {id}): not named in services.json"));
    }
    let owners: HashMap<ServiceKey<A>, u32> = snapshot.services.iter().map(|(key, v)| (*key, v.id)).collect();
    let mut without_frontends = BTreeSet::new();
    for port in names.all().filter(|p| p.v6 == A::V6) {
        let service = names.service_port(A::V6, port.id);
        let (present, missing): (Vec<_>, Vec<_>) =
            frontends::<A>(port).partition(|key| owners.contains_key(key));
        for key in &missing {
            found.insert(format!("services.json {service}: no entry {} in {map}", frontend_text(key)));
        }
        if ids.contains(&port.id) {
            continue;
        }
        let owned = |key| owners.get(key).is_some_and(|id| names.port(A::V6, *id).is_some());
        if missing.is_empty() && !present.is_empty() && present.iter().all(owned) {
            without_frontends.insert(port.id);
        } else {
            found.insert(format!("services.json {service}: no value in {map} has its id {}", port.id));
        }
    }
    without_frontends
}

/// The keys of a named port's frontends.
fn frontends<A: Net>(port: &NamedPort) -> impl Iterator<Item = ServiceKey<A>> {
    let proto = if port.protocol == "UDP" { UDP } else { TCP };
    let key = move |at: &SocketAddr| {
        Some(ServiceKey { addr: A::of(at.ip())?, port: at.port().to_be(), proto, pad: 0 })
    };
    // The entry of the bare address is shared by all ports of the address.
    port.frontends.iter().filter(|at| at.port() != 0).filter_map(key)
}

fn frontend_text<A: Net>(key: &ServiceKey<A>) -> String {
    match key.port {
        0 => key.addr.ip().to_string(),
        port if key.addr == A::ANY => format!("*:{}/{}", u16::from_be(port), Protocol(key.proto)),
        port => format!("{}/{}", socket(key.addr, port), Protocol(key.proto)),
    }
}

fn chunk_text(chunk: &ChunkKey) -> String {
    let set = if chunk.set == 0 { "cluster" } else { "local" };
    format!("id {} generation {} {set} {}", chunk.id, chunk.generation, chunk.index)
}

fn member_text<A: Net>(member: &MemberKey<A>) -> String {
    let set = match member.set {
        0 => "cluster",
        SERVING => "serving",
        _ => "local",
    };
    format!("id {} {} {set}", member.id, socket(member.addr, member.port))
}

/// Checks the programs: all `wanted` ones are pinned, and each link is live and runs the pinned
/// program.
pub(crate) fn programs(report: &Report, wanted: &[String]) -> Findings {
    let mut found = Findings::new();
    let id = |name: &str| report.programs.iter().find(|p| p.name == name).map(|p| p.id);
    for name in wanted.iter().filter(|name| id(name).is_none()) {
        found.insert(format!("program {name}: not pinned"));
    }
    for hook in Hook::ALL {
        if !report.links.iter().any(|l| l.name == hook.name()) {
            found.insert(format!("link {}: not pinned, so sockets are not served", hook.name()));
        }
    }
    for link in &report.links {
        let program = match link.name.strip_prefix("tcx-").and_then(|rest| rest.split_once('-')) {
            Some((_, place)) => id(&format!("tc_{place}")),
            None => id(&link.name),
        };
        if !link.live {
            found.insert(format!("link {}: what it was attached to is gone", link.name));
        } else if program.is_some_and(|id| id != link.program) {
            found.insert(format!("link {}: runs program {}, not the pinned one", link.name, link.program));
        }
    }
    found
}
