//! `berth services --check`: consistency of the tables with each other, with the names, and with
//! the programs.
//!
//! Each check compares entries of one reading. The agent may write during the reading, so a problem
//! counts only if a second reading, after replaced chunks are gone, finds it too.

use super::{names::Names, ports::Protocol};
use berth_api::services::NamedPort;
use berth_ebpf_abi::{ChunkKey, MemberKey, SERVING, ServiceKey, frontend};
use berth_ebpf_decide::flow::{TCP, UDP};
use berth_ebpf_loader::{Report, SocketHook};
use berth_ebpf_tables::{Contents, Inconsistency, Net, inconsistencies, socket};
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

/// The problems found, one line each.
pub(crate) type Findings = BTreeSet<String>;

/// Checks that one family's tables are consistent and agree with the names.
pub(crate) fn tables<A: Net>(contents: &Contents<A>, names: &Names) -> Findings {
    let mut found = Findings::new();
    let with_ports = contents.services.iter().filter(|(_, v)| v.frontend & frontend::ADDRESS == 0);
    let ids: BTreeSet<u32> = with_ports.map(|(_, value)| value.id).collect();
    let without_frontends =
        if names.published { check_names(contents, &ids, names, &mut found) } else { BTreeSet::new() };
    let inconsistencies = inconsistencies(contents, &without_frontends);
    found.extend(inconsistencies.iter().map(|problem| text(problem, names)));
    found
}

/// One line about an inconsistency.
fn text<A: Net>(problem: &Inconsistency<A>, names: &Names) -> String {
    use Inconsistency as I;
    let service = |id: u32| names.service_port(A::V6, id);
    let value =
        |key: &ServiceKey<A>, what: &str| format!("{} {}: {what}", A::TABLES.service, frontend_text(key));
    let chunk = |key: &ChunkKey, what: &str| format!("{} {}: {what}", A::TABLES.chunk, chunk_text(key));
    let chunk_of = |key: &ChunkKey, what: &str| chunk(key, &format!("{}: {what}", service(key.id)));
    let member =
        |key: &MemberKey<A>, what: &str| format!("{} {}: {what}", A::TABLES.member, member_text(key));
    let member_of = |key: &MemberKey<A>, what: &str| member(key, &format!("{}: {what}", service(key.id)));
    match problem {
        I::ValueTag { key, id, generation } => {
            value(key, &format!("the tag does not fit id {id} generation {generation}"))
        }
        I::AddressWithoutPort(key) => value(key, "an address without any Service port"),
        I::NoAddress(key) => value(key, "no entry of the bare address, so other ports are not refused"),
        I::BackendWithoutPort(key) => value(key, "a backend without a port"),
        I::Generations { id, generations } => {
            format!("{} {}: its frontends have generations {generations:?}", A::TABLES.service, service(*id))
        }
        I::ChunkMissing(key) => chunk_of(key, "missing"),
        I::ChunkTag(key) => chunk_of(key, "the tag does not fit"),
        I::ChunkLength { key, has, wanted } => {
            chunk_of(key, &format!("has {has} backends, the value says {wanted}"))
        }
        I::ChunkBackendWithoutPort(key) => chunk_of(key, "a backend without a port"),
        I::ChunkExcess(key) => chunk(key, "no value names it"),
        I::MemberMissing(key) if key.set == SERVING => member_of(key, "missing, so no flow stays there"),
        I::MemberMissing(key) => member_of(key, "missing, so no client stays there"),
        I::MemberExcess(key) => member_of(key, "not one of its backends"),
        I::MemberUnknown(key) => member(key, "no Service has this id"),
    }
}

/// Checks that each id has a name and each named port its entries. Returns the ids of ports whose
/// frontends are all owned by other Services; their entries are kept in case a frontend becomes
/// free.
fn check_names<A: Net>(
    contents: &Contents<A>,
    ids: &BTreeSet<u32>,
    names: &Names,
    found: &mut Findings,
) -> BTreeSet<u32> {
    let map = A::TABLES.service;
    for id in ids.iter().filter(|id| names.port(A::V6, **id).is_none()) {
        found.insert(format!("{map} (id {id}): not named in services.json"));
    }
    let owners: HashMap<ServiceKey<A>, u32> = contents.services.iter().map(|(key, v)| (*key, v.id)).collect();
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
    for hook in SocketHook::ALL {
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
