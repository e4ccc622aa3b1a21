//! What a disturbance did, in figures with their bounds.

use crate::{
    cluster::{Asked, Differences},
    out,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// The most requests a pod after a disturbance.
const REQUESTS: f64 = 3.0;

/// The figures of one disturbance.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Verdict {
    pub(super) phase: String,
    /// Restarts that no pod asked for.
    pub(super) restarts: u64,
    /// Pods with another container or address, or without a trace.
    pub(super) replaced: u64,
    /// Changes of readiness where no probe changed.
    pub(super) readiness: u64,
    /// Writes of EndpointSlices whose pods did not change.
    pub(super) slices: u64,
    /// Changes of the node's readiness.
    pub(super) node: u64,
    /// Requests a pod afterwards, without the node's own lease and status.
    pub(super) requests: f64,
    /// Writes about pods to which nothing happened.
    pub(super) writes: u64,
    /// What the figures count, and what else went wrong.
    pub(super) told: Vec<String>,
    /// Whether a condition was not met at all.
    pub(super) failed: bool,
}

impl Verdict {
    /// The figures of a disturbance after which the node asked for `after`. `unchanged` says by its name whether
    /// nothing happened to a pod; `pods` is the number of all.
    pub(super) fn of(
        phase: &str,
        found: Differences,
        after: &[Asked],
        pods: usize,
        unchanged: impl Fn(&str) -> bool,
    ) -> Verdict {
        // EndpointSlices are written by their controller.
        let of_others = |a: &&Asked| a.resource == "endpointslices" && a.is_write();
        let asked: Vec<_> = after.iter().filter(|a| !a.is_of_the_node() && !of_others(a)).collect();
        let mut told = found.told;
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        for asked in &asked {
            *kinds.entry(format!("{} {} {}", asked.verb, asked.resource, asked.code)).or_default() += 1;
        }
        let writes =
            asked.iter().filter(|a| a.resource.starts_with("pods") && a.is_write() && unchanged(&a.name));
        let mut count = 0;
        for write in writes {
            count += 1;
            told.push(format!("{} {} {} ({})", write.verb, write.resource, write.name, write.code));
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} x {kind}")).collect();
        told.push(format!("requests: {}", kinds.join(", ")));
        Verdict {
            phase: phase.to_owned(),
            restarts: found.restarts,
            replaced: found.replaced,
            readiness: found.readiness,
            slices: found.slices,
            node: found.nodes,
            requests: ratio(asked.len(), pods),
            writes: count,
            told,
            failed: false,
        }
    }

    /// A disturbance that could not be judged.
    pub(super) fn failed(phase: &str, why: &anyhow::Error) -> Verdict {
        Verdict {
            phase: phase.to_owned(),
            failed: true,
            told: vec![format!("{why:#}")],
            ..Verdict::default()
        }
    }

    /// Whether every figure is within its bound.
    pub(super) fn is_good(&self) -> bool {
        let none = [self.restarts, self.replaced, self.readiness, self.slices, self.node, self.writes];
        !self.failed && none.iter().all(|n| *n == 0) && self.requests <= REQUESTS
    }

    /// Prints the figures, and what they count.
    pub(super) fn tell(&self) {
        let mark = if self.is_good() { "✓" } else { "✗" };
        out::line(&format!(
            "{mark} {}: {} restarts, {} replaced, {} readiness changes, {} slice writes, {} node readiness changes, \
             {:.2} requests a pod, {} writes about unchanged pods",
            self.phase,
            self.restarts,
            self.replaced,
            self.readiness,
            self.slices,
            self.node,
            self.requests,
            self.writes
        ));
        for line in self.told.iter().take(25) {
            out::line(&format!("    {line}"));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn ratio(a: usize, b: usize) -> f64 {
    a as f64 / b.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: &str, resource: &str, name: &str) -> Asked {
        Asked { user: "n".into(), verb: verb.into(), resource: resource.into(), name: name.into(), code: 200 }
    }

    #[test]
    fn requests_are_counted_a_pod_and_writes_by_what_happened_to_it() {
        let after = [
            asked("update", "leases", "n"),
            asked("patch", "nodes/status", "n"),
            asked("watch", "pods", ""),
            asked("create", "serviceaccounts/token", "default"),
            asked("patch", "pods/status", "steady-1"),
            asked("patch", "pods/status", "churn-1"),
        ];
        let judge = |after: &[Asked]| {
            Verdict::of("x", Differences::default(), after, 2, |name| name.starts_with("steady"))
        };
        let verdict = judge(&after);
        assert_eq!((verdict.requests, verdict.writes), (2.0, 1));
        assert!(!verdict.is_good());
        assert!(judge(&after[..4]).is_good());
        assert!(!judge(&vec![after[2].clone(); 7]).is_good());
        assert!(!Verdict::failed("x", &anyhow::anyhow!("y")).is_good());
    }
}
