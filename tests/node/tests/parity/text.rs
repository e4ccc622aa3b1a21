//! Texts about pods without the parts that change from run to run and from node to node.
//! `tests/peers/cmd/record/events.go` replaces the same parts in the kubelet's texts.

use berth_core::roots::Roots;
use berth_harness::socket::Pod;
use std::collections::BTreeSet;

/// The replacements for the texts of one pod.
#[derive(Debug)]
pub(crate) struct Plain {
    replaced: Vec<(String, &'static str)>,
}

impl Plain {
    /// Builds the replacements; `addresses` are all addresses that the pod has had.
    pub(crate) fn of(pod: &Pod, roots: &Roots, addresses: &BTreeSet<String>) -> Plain {
        let mut replaced = vec![
            (pod.uid(), "$UID"),
            (format!("/{}", roots.cgroup_root.display()), "/KUBEPODS"),
            (roots.pod_state.display().to_string(), "/ROOT/kubelet"),
            (roots.pod_logs.display().to_string(), "/ROOT/logs"),
            (roots.runtime_state.join("shapes").display().to_string(), "/run/berth-shapes"),
            (roots.node_name.to_string(), "$NODE"),
        ];
        // The longer address is replaced first, because the shorter one may be its beginning.
        let host = pod.status()["hostIP"].as_str().unwrap_or_default();
        let own = addresses.iter().filter(|ip| *ip != host).map(|ip| (ip.clone(), "$IP"));
        let mut addresses: Vec<(String, &str)> = own.chain([(host.to_owned(), "$HOST")]).collect();
        addresses.sort_by_key(|(address, _)| std::cmp::Reverse(address.len()));
        replaced.extend(addresses);
        replaced.retain(|(text, _)| !text.is_empty());
        Plain { replaced }
    }

    pub(crate) fn text(&self, text: &str) -> String {
        let text = self.replaced.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        numbers(&digests(&text))
    }
}

/// All addresses in a pod's status.
pub(crate) fn addresses(pod: &Pod) -> impl Iterator<Item = String> {
    let list = pod.status()["podIPs"].as_array().into_iter().flatten();
    let all = list.filter_map(|ip| ip["ip"].as_str()).chain([pod.ip()]);
    all.filter(|ip| !ip.is_empty()).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// Replaces runs of exactly 64 hex digits, which are ids of containers or images.
fn digests(text: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_digit() || ('a'..='f').contains(&c) {
            run.push(c);
            continue;
        }
        out.push_str(if run.len() == 64 { "$DIGEST" } else { &run });
        run.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

/// Replaces process ids, descriptor numbers, and figures of used and of lacking memory.
fn numbers(text: &str) -> String {
    let mut out = text.to_owned();
    for mark in ["pid=", "/fd/", "/proc/", "usage: ", "q: "] {
        let mut parts = out.split(mark);
        let mut joined = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            joined.push_str(mark);
            joined.push_str(if rest.len() < part.len() { "$N" } else { "" });
            joined.push_str(rest);
        }
        out = joined;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_taken_out() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(digests(&format!("a {id} b {id}0 beef")), format!("a $DIGEST b {id}0 beef"));
        assert_eq!(
            numbers("read /proc/12/fd/3: pid=7, /proc/self"),
            "read /proc/$N/fd/$N: pid=$N, /proc/self"
        );
    }
}
