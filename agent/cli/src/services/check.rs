//! `berth services --check`: whether the tables fit together, fit the names, and are asked at all.
//!
//! Everything is compared within one reading. The agent may write meanwhile, so what is found counts only if a second
//! reading, after more than the time that replaced chunks stay, finds it too.

use super::{
    family::{Net, socket},
    names::Names,
    snapshot::{Protocol, Snapshot, chunk_keys},
};
use berth_api::services::NamedPort;
use berth_ebpf_abi::{ChunkKey, INLINE, MemberKey, SERVING, ServiceKey, Set, frontend, tag};
use berth_ebpf_decide::flow::{TCP, UDP};
use berth_ebpf_loader::{Hook, Report};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

/// What is wrong, a line each.
pub(crate) type Findings = BTreeSet<String>;

/// Whether one family's tables fit together and fit the names.
pub(crate) fn tables<A: Net>(snapshot: &Snapshot<A>, names: &Names) -> Findings {
    let mut found = Findings::new();
    let map = A::MAPS;
    let mut generations: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let (mut chunks, mut members) = (HashSet::new(), HashSet::new());
    // What may be among the members beside those of the sets: who serves and is in none.
    let mut with_members: HashMap<u32, bool> = HashMap::new();
    let keys: HashSet<ServiceKey<A>> = snapshot.services.iter().map(|(key, _)| *key).collect();
    let with_ports: HashSet<A> = keys.iter().filter(|k| k.port != 0).map(|k| k.addr).collect();
    for (key, value) in &snapshot.services {
        let at = format!("{} {}", map.service, way_in(key));
        let service = names.told(A::V6, value.id);
        if value.tag != tag(value.id, value.generation) {
            found.insert(format!(
                "{at}: the tag does not fit id {} generation {}",
                value.id, value.generation
            ));
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
        generations.entry(value.id).or_default().insert(value.generation);
        for set in [Set::Cluster, Set::Local] {
            for (chunk, len) in chunk_keys(value, set) {
                let told = format!("{} {}: {service}", map.chunk, chunk_told(&chunk));
                match snapshot.chunks.get(&chunk) {
                    None => drop(found.insert(format!("{told}: missing"))),
                    Some(c) if c.tag != tag(chunk.id, chunk.generation) => {
                        found.insert(format!("{told}: the tag does not fit"));
                    }
                    Some(c) if usize::try_from(c.len).ok() != Some(len) => {
                        found.insert(format!("{told}: has {} backends, the value says {len}", c.len));
                    }
                    Some(c) if c.backends.iter().take(len).any(|b| b.port == 0) => {
                        found.insert(format!("{told}: a backend without a port"));
                    }
                    Some(_) => {}
                }
                chunks.insert(chunk);
            }
        }
        let [cluster, local] = value.counts.map(usize::from);
        if cluster.saturating_add(local) <= INLINE {
            let used = value.inline.iter().take(cluster.saturating_add(local));
            if used.into_iter().any(|b| b.port == 0) {
                found.insert(format!("{at}: a backend without a port"));
            }
        }
        let udp = key.proto == UDP;
        if value.affinity_s != 0 || udp {
            *with_members.entry(value.id).or_default() |= udp;
        }
        for (number, set) in [(0, Set::Cluster), (1, Set::Local)] {
            for b in snapshot.backends(value, set).into_iter().filter(|b| b.port != 0) {
                let member = MemberKey { id: value.id, addr: b.addr, port: b.port, set: number };
                members.extend((value.affinity_s != 0).then_some(member));
                members.extend(udp.then_some(MemberKey { set: SERVING, ..member }));
            }
        }
    }
    for (id, generations) in generations.iter().filter(|(_, g)| g.len() > 1) {
        let service = names.told(A::V6, *id);
        found.insert(format!("{} {service}: its ways in have generations {generations:?}", map.service));
    }
    let ids: BTreeSet<u32> = generations.keys().copied().collect();
    let losers = if names.published { named(snapshot, &ids, names, &mut found) } else { BTreeSet::new() };
    let known = |id: &u32| ids.contains(id) || losers.contains(id);
    for chunk in snapshot.chunks.keys().filter(|c| !chunks.contains(*c) && !losers.contains(&c.id)) {
        found.insert(format!("{} {}: no value names it", map.chunk, chunk_told(chunk)));
    }
    for member in members.difference(&snapshot.members) {
        let service = names.told(A::V6, member.id);
        let who = if member.set == SERVING { "no flow" } else { "no client" };
        found.insert(format!(
            "{} {}: {service}: missing, so {who} stays there",
            map.member,
            member_told(member)
        ));
    }
    for member in snapshot.members.iter().filter(|m| !known(&m.id)) {
        found.insert(format!("{} {}: no Service has this id", map.member, member_told(member)));
    }
    let too_much = |m: &&MemberKey<A>| with_members.get(&m.id).is_some_and(|udp| m.set != SERVING || !udp);
    for member in snapshot.members.difference(&members).filter(too_much) {
        let service = names.told(A::V6, member.id);
        found.insert(format!("{} {}: {service}: not one of its backends", map.member, member_told(member)));
    }
    found
}

/// Compares with the names: every id has one, everything named has its entries. Gives the ids of those that lost all
/// their ways in to other Services: they keep what they have for the day when they get them.
fn named<A: Net>(
    snapshot: &Snapshot<A>,
    ids: &BTreeSet<u32>,
    names: &Names,
    found: &mut Findings,
) -> BTreeSet<u32> {
    let map = A::MAPS.service;
    for id in ids.iter().filter(|id| names.port(A::V6, **id).is_none()) {
        found.insert(format!("{map} (id {id}): not named in services.json"));
    }
    let there: HashMap<ServiceKey<A>, u32> = snapshot.services.iter().map(|(key, v)| (*key, v.id)).collect();
    let mut losers = BTreeSet::new();
    for port in names.all().filter(|p| p.v6 == A::V6) {
        let told = names.told(A::V6, port.id);
        let (frontends, missing): (Vec<_>, Vec<_>) =
            frontends::<A>(port).partition(|key| there.contains_key(key));
        for key in &missing {
            found.insert(format!("services.json {told}: no entry {} in {map}", way_in(key)));
        }
        if ids.contains(&port.id) {
            continue;
        }
        let taken = |key| there.get(key).is_some_and(|id| names.port(A::V6, *id).is_some());
        if missing.is_empty() && !frontends.is_empty() && frontends.iter().all(taken) {
            losers.insert(port.id);
        } else {
            found.insert(format!("services.json {told}: no value in {map} has its id {}", port.id));
        }
    }
    losers
}

/// The keys of a named port's ways in.
fn frontends<A: Net>(port: &NamedPort) -> impl Iterator<Item = ServiceKey<A>> {
    let proto = if port.protocol == "UDP" { UDP } else { TCP };
    let key = move |at: &SocketAddr| {
        Some(ServiceKey { addr: A::of(at.ip())?, port: at.port().to_be(), proto, pad: 0 })
    };
    // The bare address belongs to all.
    port.frontends.iter().filter(|at| at.port() != 0).filter_map(key)
}

fn way_in<A: Net>(key: &ServiceKey<A>) -> String {
    match key.port {
        0 => key.addr.ip().to_string(),
        port if key.addr == A::ANY => format!("*:{}/{}", u16::from_be(port), Protocol(key.proto)),
        port => format!("{}/{}", socket(key.addr, port), Protocol(key.proto)),
    }
}

fn chunk_told(chunk: &ChunkKey) -> String {
    let set = if chunk.set == 0 { "cluster" } else { "local" };
    format!("id {} generation {} {set} {}", chunk.id, chunk.generation, chunk.index)
}

fn member_told<A: Net>(member: &MemberKey<A>) -> String {
    let set = match member.set {
        0 => "cluster",
        SERVING => "serving",
        _ => "local",
    };
    format!("id {} {} {set}", member.id, socket(member.addr, member.port))
}

/// Whether the programs are there and are run: all that are `wanted` pinned, every hook live and with the pinned
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
