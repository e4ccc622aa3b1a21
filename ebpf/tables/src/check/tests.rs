//! Ports that are encoded, decoded and damaged.

use crate::{
    Contents, Difference, Inconsistency, Net, PublishedPort, address_value, differences, inconsistencies,
    serving_members,
};
use berth_ebpf_abi::{Backend, Service, ServiceKey, V4, frontend};
use proptest::prelude::*;
use std::collections::BTreeSet;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn backends(first: u8, count: usize) -> Vec<Backend<V4>> {
    (0..count)
        .map(|n| Backend {
            addr: V4::of([10, 1, first, u8::try_from(n).unwrap()].into()).unwrap(),
            port: 80_u16.to_be(),
            flags: 0,
        })
        .collect()
}

/// Tables of one port with a ClusterIP.
fn tables(proto: u8, affinity_s: u32, cluster: &[Backend<V4>], local: &[Backend<V4>]) -> Contents<V4> {
    let port = PublishedPort { id: 7, generation: 3, has_endpoints: true, affinity_s, cluster, local };
    let addr = V4::of([10, 96, 0, 1].into()).unwrap();
    let key = ServiceKey { addr, port: 80_u16.to_be(), proto, pad: 0 };
    let mut members: Vec<_> = port.affinity_members().collect();
    if proto == UDP {
        members.extend(serving_members(7, cluster.iter().chain(local)));
    }
    Contents {
        services: vec![
            (key, port.value(frontend::INSIDE_LOCAL)),
            (ServiceKey { port: 0, proto: 0, ..key }, address_value()),
        ],
        chunks: port.chunks().collect(),
        members: members.into_iter().collect(),
    }
}

fn value(contents: &Contents<V4>) -> Service<V4> {
    contents.services[0].1
}

proptest! {
    #[test]
    fn a_port_that_is_encoded_is_consistent_and_is_decoded_again(
        (cluster, local) in (0..70_usize, 0..40_usize),
        affinity_s in 0..2_u32,
        udp in any::<bool>(),
    ) {
        let (cluster, local) = (backends(0, cluster), backends(1, local));
        let contents = tables(if udp { UDP } else { TCP }, affinity_s, &cluster, &local);
        prop_assert_eq!(contents.sets(&value(&contents)), Some((cluster, local)));
        prop_assert_eq!(inconsistencies(&contents, &BTreeSet::new()), []);
        prop_assert_eq!(differences(&contents, &contents), []);
        let keys: BTreeSet<_> = contents.chunks.keys().map(|k| (k.set, k.index)).collect();
        prop_assert_eq!(keys.len(), contents.chunks.len());
    }

    #[test]
    fn an_entry_that_is_missing_or_altered_is_found(
        (cluster, local) in (1..70_usize, 0..40_usize),
        at in any::<prop::sample::Index>(),
        what in 0..4_u8,
    ) {
        let whole = tables(UDP, 1, &backends(0, cluster), &backends(1, local));
        let mut contents = whole.clone();
        let chunk = (!contents.chunks.is_empty()).then(|| {
            let mut keys: Vec<_> = contents.chunks.keys().copied().collect();
            keys.sort_by_key(|k| (k.set, k.index));
            keys[at.index(keys.len())]
        });
        let (table, expected, is_decoded) = match (what, chunk) {
            (0, Some(key)) => {
                contents.chunks.remove(&key);
                ("CHUNK4", Inconsistency::ChunkMissing(key), false)
            }
            (1, Some(key)) => {
                contents.chunks.get_mut(&key).unwrap().tag ^= 1;
                ("CHUNK4", Inconsistency::ChunkTag(key), false)
            }
            (2, _) => {
                contents.services[0].1.tag ^= 1;
                let (key, Service { id, generation, .. }) = contents.services[0];
                ("SERVICE4", Inconsistency::ValueTag { key, id, generation }, false)
            }
            _ => {
                let mut members: Vec<_> = contents.members.iter().copied().collect();
                members.sort_by_key(|m| (m.set, m.addr, m.port));
                let member = members[at.index(members.len())];
                contents.members.remove(&member);
                ("MEMBER4", Inconsistency::MemberMissing(member), true)
            }
        };
        prop_assert_eq!(contents.sets(&value(&contents)).is_some(), is_decoded);
        let found = inconsistencies(&contents, &BTreeSet::new());
        prop_assert!(found.contains(&expected), "{:?}", found);
        let found = differences(&whole, &contents);
        let [Difference { table: of, .. }] = &*found else { panic!("{found:?}") };
        prop_assert_eq!(*of, table);
    }
}

#[test]
fn entries_without_a_value_are_found_but_those_of_a_port_without_frontends() {
    let mut contents = tables(TCP, 1, &backends(0, 20), &[]);
    contents.services.clear();
    assert_eq!(inconsistencies(&contents, &BTreeSet::from([7])), []);
    let found = inconsistencies(&contents, &BTreeSet::new());
    let chunks = found.iter().filter(|f| matches!(f, Inconsistency::ChunkExcess(_))).count();
    let members = found.iter().filter(|f| matches!(f, Inconsistency::MemberUnknown(_))).count();
    assert_eq!((chunks, members, found.len()), (2, 20, 22));
    let empty = differences(&Contents::default(), &contents);
    assert!(empty.iter().all(|d| d.what == "is too much") && empty.len() == 22);
}
