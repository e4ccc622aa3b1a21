//! The families that the parts of the agent count.

use crate::agent::csi;
use berth_core::metrics::ReadFamily;

/// All families of `/metrics`.
pub(super) fn all() -> Vec<&'static dyn ReadFamily> {
    let mut families: Vec<&'static dyn ReadFamily> = Vec::new();
    families.extend(berth_pods::metrics::families());
    families.extend(berth_executor::metrics::families());
    families.extend(berth_node::metrics::families());
    families.extend(berth_volumes::metrics::families());
    families.extend(csi::families());
    families.extend(berth_kube::metrics::families());
    families.extend(berth_nodeapi::metrics::families());
    families
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::metrics::FamilyType;
    use berth_stats::{parity, render::agent};
    use std::collections::{BTreeMap, BTreeSet};

    /// The shapes of families that are counted, also of those that have no series yet.
    fn counted<'a>(
        families: impl IntoIterator<Item = &'a &'static dyn ReadFamily>,
    ) -> BTreeMap<String, parity::FamilyShape> {
        let shape = |family: &&'static dyn ReadFamily| {
            let kind = match family.family_type() {
                FamilyType::Counter => "counter",
                FamilyType::Gauge => "gauge",
                FamilyType::Histogram => "histogram",
            };
            let labels = family.labels().iter().map(ToString::to_string).collect();
            (family.name().to_owned(), (kind.to_owned(), labels))
        };
        families.into_iter().map(shape).collect()
    }

    /// The shapes of the families in a text without histograms.
    fn written(text: &str) -> BTreeMap<String, parity::FamilyShape> {
        let mut shapes = BTreeMap::new();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
                shapes.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            } else if let Some((name, labels)) = line.split_once('{') {
                let names =
                    labels.split('"').step_by(2).filter_map(|l| l.trim_start_matches(',').strip_suffix('='));
                shapes.get_mut(name).unwrap().1.extend(names.map(str::to_owned));
            }
        }
        shapes
    }

    #[test]
    fn the_families_are_the_kubelets_but_for_reviewed_differences() {
        let facts = agent::AgentFacts {
            process: berth_stats::process::read_own(),
            helpers: vec![("logd", 1)],
            pods: agent::PodCounts {
                containers: [("running", 1)].into(),
                volumes: [("kubernetes.io/empty-dir", (1, 1))].into(),
                ..agent::PodCounts::default()
            },
            ..agent::AgentFacts::default()
        };
        let mut ours = written(&String::from_utf8(agent::render(&facts, &[])).unwrap());
        ours.extend(counted(&all()));
        assert_eq!(parity::problems("metrics", &ours), [""; 0]);
        let mut probes = counted(&berth_pods::metrics::probe_families());
        probes.extend(written("# TYPE process_start_time_seconds gauge\n"));
        assert_eq!(parity::problems("probes", &probes), [""; 0]);
    }

    #[test]
    fn each_family_has_one_owner() {
        let probes = berth_pods::metrics::probe_families();
        let names: Vec<_> = all().into_iter().chain(probes).map(ReadFamily::name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(names.len() > 15, "{names:?}");
    }
}
