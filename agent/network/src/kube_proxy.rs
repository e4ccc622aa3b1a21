//! The rules that a kube-proxy has left in the kernel, in nf_tables: its own tables (mode nftables), and its chains in the
//! tables that `iptables` keeps there (mode iptables). The rules of the kubelet and of everybody else stay.
//!
//! Rules of the older `ip_tables` (`iptables-legacy`) are not in nf_tables and not found here.

use crate::Error;
use berth_sys::netfilter::{Message, attribute, attributes, batch, dump};
use std::{collections::BTreeSet, io};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [u8; 2] = [2, 10];

/// kube-proxy's table in mode nftables (`pkg/proxy/nftables/proxier.go`).
const TABLE: &str = "kube-proxy";

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

/// `enum nf_tables_msg_types`.
mod kind {
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const DELETE_CHAIN: u16 = 5;
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
        if tables.contains(TABLE) {
            apply(&[Message { kind: kind::DELETE_TABLE, family, attributes: text(1, TABLE) }])?;
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
            apply(&removal(family, table, &chains, jumps))?;
            removed.push(format!("{} chains of table {of_family} {table}", chains.len()));
        }
    }
    Ok(removed)
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
