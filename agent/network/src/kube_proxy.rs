//! The rules that a kube-proxy has left in the kernel, in nf_tables: its own tables (mode nftables), and its chains in the
//! tables that `iptables` keeps there (mode iptables). The rules of the kubelet and of everybody else stay.
//!
//! Connections that a kube-proxy has translated go on without its rules, but not without a translating chain: the kernel
//! translates their packets only where one is attached. Conntrack would also refuse a new connection that looks like an
//! earlier, translated one. So a table of our own with such a chain, [`HANDOVER`], takes the place of kube-proxy's; it is
//! removed when no translated connection is left.
//!
//! Rules of the older `ip_tables` (`iptables-legacy`) are not in nf_tables. They are told of and stay: that interface knows no
//! change of a chain, only the replacement of a whole table, which would take back whatever another program changes at the
//! same time.

use crate::Error;
use berth_sys::ip_tables::legacy_tables;
use berth_sys::netfilter::{Message, any_connection, attribute, attributes, batch, delete_connections, dump};
use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::{IpAddr, SocketAddr},
};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [u8; 2] = [2, 10];

/// kube-proxy's table in mode nftables (`pkg/proxy/nftables/proxier.go`).
const TABLE: &str = "kube-proxy";

/// Our table that keeps translated connections going.
const HANDOVER: &str = "berth-handover";

/// The chain of our table.
const ESTABLISHED: &str = "established";

/// The tables of `iptables` in which kube-proxy has chains (`pkg/proxy/iptables/cleanup.go`).
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// kube-proxy's chains. `KUBE-FIREWALL` and the canary of the kubelet are not among them.
const CHAINS: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-MARK-DROP",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
];

/// The first parts of the names of its chains of Services and endpoints.
const CHAINS_OF_SERVICES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"];

/// Chains of kube-proxy alone, one of which each of its modes with `iptables` has.
const OWN_CHAINS: [&str; 2] = ["KUBE-SERVICES", "KUBE-NODEPORTS"];

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// `enum nf_tables_msg_types`.
mod kind {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const DELETE_CHAIN: u16 = 5;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const DELETE_RULE: u16 = 8;
}

/// Removes the rules of a kube-proxy that does not run any more, each table as a whole or not at all. Returns what was
/// removed, in words; empty where there was nothing.
///
/// # Errors
/// The kernel refuses.
pub fn remove_kube_proxy_rules() -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    for family in FAMILIES {
        let of_family = if family == FAMILIES[0] { "ip" } else { "ip6" };
        let tables: BTreeSet<String> =
            found(kind::GET_TABLE, family, &[])?.iter().filter_map(|m| name(&m.attributes, 1)).collect();
        // Made with the first change, and once.
        let mut handover = handover(family);
        if tables.contains(TABLE) {
            let mut changes = std::mem::take(&mut handover);
            changes.push(Message { kind: kind::DELETE_TABLE, family, attributes: text(1, TABLE) });
            apply(&changes)?;
            removed.push(format!("table {of_family} {TABLE}"));
        }
        let all_chains = found(kind::GET_CHAIN, family, &[])?;
        for table in TABLES.into_iter().filter(|table| tables.contains(*table)) {
            let chains: BTreeSet<String> = all_chains
                .iter()
                .filter(|m| name(&m.attributes, 1).as_deref() == Some(table))
                .filter_map(|m| name(&m.attributes, 3))
                .filter(|chain| is_kube_proxys(chain))
                .collect();
            if chains.is_empty() {
                continue;
            }
            let rules = found(kind::GET_RULE, family, &text(1, table))?;
            let jumps = rules.iter().filter(|rule| leads_to(&rule.attributes, &chains, table));
            let mut changes = std::mem::take(&mut handover);
            changes.extend(removal(family, table, &chains, jumps));
            apply(&changes)?;
            removed.push(format!("{} chains of table {of_family} {table}", chains.len()));
        }
    }
    Ok(removed)
}

/// Our table with one chain of type nat: the kernel translates established connections at all of its hooks as soon as one
/// such chain is attached (`nf_nat_register_fn`, `net/netfilter/nf_nat_core.c`). The chain's one rule decides nothing: as it
/// asks for the state of connections, the kernel goes on to track them (`nft_ct_get_init`, `net/netfilter/nft_ct.c`).
fn handover(family: u8) -> Vec<Message> {
    let number = |kind: u16, value: u32| attribute(kind, &value.to_be_bytes());
    // NF_INET_PRE_ROUTING, and the priority of translations of destinations.
    let hook = [number(1, 0), attribute(2, &(-100_i32).to_be_bytes())].concat();
    let chain = [text(1, HANDOVER), text(3, ESTABLISHED), attribute(4 | NESTED, &hook), text(7, "nat")];
    // Into NFT_REG_1: NFT_CT_STATE.
    let state = [number(1, 1), number(2, 0)].concat();
    let expression = [text(1, "ct"), attribute(2 | NESTED, &state)].concat();
    let expressions = attribute(1 | NESTED, &expression);
    let rule = [text(1, HANDOVER), text(2, ESTABLISHED), attribute(4 | NESTED, &expressions)];
    vec![
        Message { kind: kind::NEW_TABLE, family, attributes: text(1, HANDOVER) },
        Message { kind: kind::NEW_CHAIN, family, attributes: chain.concat() },
        Message { kind: kind::NEW_RULE, family, attributes: rule.concat() },
    ]
}

/// Removes our table of each family that has no translated connection left. Returns whether a table stays.
///
/// # Errors
/// The kernel refuses.
pub fn end_kube_proxy_handover() -> Result<bool, Error> {
    let mut stays = false;
    for family in FAMILIES {
        if !has_handover(family)? {
            continue;
        }
        if any_connection(family, is_translated).map_err(failed)? {
            stays = true;
        } else {
            apply(&[no_handover(family)])?;
        }
    }
    Ok(stays)
}

/// Removes our tables, also where connections need them.
///
/// # Errors
/// The kernel refuses.
pub fn remove_kube_proxy_handover() -> Result<(), Error> {
    for family in FAMILIES {
        if has_handover(family)? {
            apply(&[no_handover(family)])?;
        }
    }
    Ok(())
}

/// The tables of `iptables-legacy` in which a kube-proxy has left chains, such as `ip nat`.
///
/// # Errors
/// The kernel refuses.
pub fn legacy_kube_proxy_tables() -> Result<Vec<String>, Error> {
    let tables = legacy_tables().map_err(failed)?;
    let with_chains = tables.iter().filter(|table| OWN_CHAINS.iter().any(|chain| table.has_chain(chain)));
    Ok(with_chains.map(|table| format!("{} {}", if table.v6 { "ip6" } else { "ip" }, table.name)).collect())
}

fn has_handover(family: u8) -> Result<bool, Error> {
    let tables = found(kind::GET_TABLE, family, &[])?;
    Ok(tables.iter().any(|table| name(&table.attributes, 1).as_deref() == Some(HANDOVER)))
}

fn no_handover(family: u8) -> Message {
    Message { kind: kind::DELETE_TABLE, family, attributes: text(1, HANDOVER) }
}

/// Whether a connection's destination was translated: `IPS_DST_NAT` of `CTA_STATUS`.
fn is_translated(connection: &[u8]) -> bool {
    let status =
        within(connection, 3).and_then(|status| status.try_into().ok()).map_or(0, u32::from_be_bytes);
    status & (1 << 5) != 0
}

/// Forgets the UDP connections that a kube-proxy that is gone has translated to these backends, which serve no more: their
/// next datagrams get another one. Does nothing once no connection of kube-proxy's is left. Returns how many there were.
///
/// # Errors
/// The kernel refuses.
pub fn forget_kube_proxy_connections(backends: &HashSet<SocketAddr>) -> Result<usize, Error> {
    let mut forgotten = 0;
    for family in FAMILIES {
        if has_handover(family)? {
            forgotten += delete_connections(family, |connection| {
                let is_lost = is_translated(connection) && backends.contains(&udp_backend(connection)?);
                is_lost.then(|| name_of(connection))
            })
            .map_err(failed)?;
        }
    }
    Ok(forgotten)
}

/// The sender of a UDP connection's answers (`CTA_TUPLE_REPLY`): its backend.
fn udp_backend(connection: &[u8]) -> Option<SocketAddr> {
    let reply = within(connection, 2)?;
    let (addresses, protocol) = (within(reply, 1)?, within(reply, 2)?);
    // CTA_PROTO_NUM: IPPROTO_UDP.
    if within(protocol, 1)? != [17] {
        return None;
    }
    let port = u16::from_be_bytes(within(protocol, 2)?.try_into().ok()?);
    // CTA_IP_V4_SRC, CTA_IP_V6_SRC.
    let v4 = within(addresses, 1).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
    let v6 = || within(addresses, 3).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from);
    Some(SocketAddr::new(v4.or_else(v6)?, port))
}

/// What names a connection: its `CTA_TUPLE_ORIG`, its zone and its `CTA_ID`.
fn name_of(connection: &[u8]) -> Vec<u8> {
    let parts = [(1, NESTED), (18, 0), (12, 0)];
    let named =
        parts.into_iter().filter_map(|(kind, flag)| Some(attribute(kind | flag, within(connection, kind)?)));
    named.flatten().collect()
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || CHAINS_OF_SERVICES.iter().any(|prefix| chain.starts_with(prefix))
}

/// The jumps go first, then the rules of the chains, then the chains, which no rule names any more.
fn removal<'a>(
    family: u8,
    table: &str,
    chains: &BTreeSet<String>,
    jumps: impl Iterator<Item = &'a Message>,
) -> Vec<Message> {
    let jump = |rule: &Message| {
        let kept = attributes(&rule.attributes).filter(|(kind, _)| (1..=3).contains(kind));
        let attributes = kept.flat_map(|(kind, value)| attribute(kind, value)).collect();
        Message { kind: kind::DELETE_RULE, family, attributes }
    };
    let rules_of = |chain: &String| Message {
        kind: kind::DELETE_RULE,
        family,
        attributes: [text(1, table), text(2, chain)].concat(),
    };
    let chain = |chain: &String| Message {
        kind: kind::DELETE_CHAIN,
        family,
        attributes: [text(1, table), text(3, chain)].concat(),
    };
    jumps.map(jump).chain(chains.iter().map(rules_of)).chain(chains.iter().map(chain)).collect()
}

/// Whether a rule of another chain jumps to one of `chains`.
fn leads_to(rule: &[u8], chains: &BTreeSet<String>, table: &str) -> bool {
    let own = name(rule, 2).is_some_and(|chain| chains.contains(&chain));
    if own || name(rule, 1).as_deref() != Some(table) {
        return false;
    }
    // NFTA_RULE_EXPRESSIONS: a list of expressions, of which `immediate` has the verdict with the chain's name.
    let expressions = within(rule, 4).into_iter().flat_map(attributes).map(|(_, expression)| expression);
    let mut targets = expressions
        .filter(|expression| name(expression, 1).as_deref() == Some("immediate"))
        .filter_map(|expression| within(within(within(expression, 2)?, 2)?, 2))
        .filter_map(|verdict| name(verdict, 2));
    targets.any(|target| chains.contains(&target))
}

fn within(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

fn name(bytes: &[u8], kind: u16) -> Option<String> {
    let value = within(bytes, kind)?;
    Some(std::str::from_utf8(value).ok()?.trim_end_matches('\0').to_owned())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

fn failed(source: io::Error) -> Error {
    Error::KubeProxyRules { source }
}

fn found(kind: u16, family: u8, attributes: &[u8]) -> Result<Vec<Message>, Error> {
    dump(&Message { kind, family, attributes: attributes.to_vec() }).map_err(failed)
}

fn apply(changes: &[Message]) -> Result<(), Error> {
    batch(changes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_chains_and_those_of_others_are_not_kube_proxys() {
        for chain in ["KUBE-SERVICES", "KUBE-SVC-ABCDEF", "KUBE-SEP-ABCDEF", "KUBE-MARK-MASQ"] {
            assert!(is_kube_proxys(chain), "{chain}");
        }
        for chain in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "PREROUTING",
            "CNI-HOSTPORT-DNAT",
            "",
        ] {
            assert!(!is_kube_proxys(chain), "{chain}");
        }
    }
}
