//! Comparison of an endpoint's families with those of the real kubelet and with what rules read, for tests here and
//! where families are counted. The data is in `tests/data`.

use std::collections::{BTreeMap, BTreeSet};

const KUBELET: &str = include_str!("../tests/data/kubelet.txt");
const DIFFERENCES: &str = include_str!("../tests/data/differences.txt");
const REQUIRED: &str = include_str!("../tests/data/required.txt");

/// A family: its type (`counter`, `gauge`, `histogram`) and its labels without `le`.
pub type FamilyShape = (String, BTreeSet<String>);

fn labels(text: &str) -> BTreeSet<String> {
    text.split(',').filter(|label| *label != "-").map(str::to_owned).collect()
}

/// What is wrong with the families of an endpoint (`metrics`, `cadvisor`, `resource`, `probes`), one line each: a
/// missing family or label, a family of another shape than the kubelet's, a difference that nobody has reviewed, and a
/// reviewed difference that does not exist.
pub fn problems(endpoint: &str, ours: &BTreeMap<String, FamilyShape>) -> Vec<String> {
    let of_endpoint = |text: &'static str| {
        text.lines().filter_map(move |line| line.strip_prefix(endpoint)?.strip_prefix(' '))
    };
    let mut problems = Vec::new();
    for line in of_endpoint(REQUIRED) {
        let (name, wanted) = line.split_once(' ').unwrap_or((line, "-"));
        match ours.get(name) {
            None => problems.push(format!("{name} is missing")),
            Some((_, own)) if *own != labels(wanted) => {
                problems.push(format!("{name} has the labels {own:?}"))
            }
            Some(_) => {}
        }
    }
    let kubelet: BTreeMap<&str, FamilyShape> = of_endpoint(KUBELET)
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, kind, own) = (words.next()?, words.next()?, words.next()?);
            Some((name, (kind.to_owned(), labels(own))))
        })
        .collect();
    let reviewed: Vec<(&str, &str)> = of_endpoint(DIFFERENCES)
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?))
        })
        .collect();
    let mut used = BTreeSet::new();
    let names: BTreeSet<&str> = ours.keys().map(String::as_str).chain(kubelet.keys().copied()).collect();
    for name in names {
        let side = match (ours.get(name), kubelet.get(name)) {
            (Some(own), Some(theirs)) if own == theirs => continue,
            (Some(own), Some(theirs)) => {
                problems.push(format!("{name} is {own:?} and the kubelet's {theirs:?}"));
                continue;
            }
            (Some(_), None) => "berth",
            (None, _) => "kubelet",
        };
        let matches = |pattern: &str| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => pattern == name,
        };
        match reviewed.iter().position(|(pattern, own)| *own == side && matches(pattern)) {
            Some(at) => {
                used.insert(at);
            }
            None => problems.push(format!("{name}: only {side} has it, and nobody has reviewed that")),
        }
    }
    for (n, (pattern, side)) in reviewed.iter().enumerate() {
        if !used.contains(&n) {
            problems.push(format!("{pattern} is no family that only {side} has"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{
        cadvisor, resource,
        testing::{machine, node, parsed},
    };

    fn shapes(text: Vec<u8>) -> BTreeMap<String, FamilyShape> {
        let shape = |family: crate::render::testing::ParsedFamily| {
            let labels = family.samples.into_iter().flat_map(|(_, labels)| labels.into_keys());
            (family.kind, labels.filter(|label| label != "le").collect())
        };
        parsed(std::str::from_utf8(&text).unwrap()).into_iter().map(|(name, f)| (name, shape(f))).collect()
    }

    #[test]
    fn the_families_are_the_kubelets_but_for_reviewed_differences() {
        assert_eq!(problems("resource", &shapes(resource::render(&node()))), [""; 0]);
        assert_eq!(problems("cadvisor", &shapes(cadvisor::render(&node(), &machine()))), [""; 0]);
    }

    #[test]
    fn every_kind_of_problem_is_seen() {
        let good = shapes(resource::render(&node()));
        let of = |change: fn(&mut BTreeMap<String, FamilyShape>)| {
            let mut bad = good.clone();
            change(&mut bad);
            problems("resource", &bad)
        };
        assert_eq!(of(|bad| drop(bad.remove("pod_swap_usage_bytes"))).len(), 1);
        assert_eq!(of(|bad| drop(bad.remove("pod_memory_working_set_bytes"))).len(), 2);
        assert_eq!(of(|bad| drop(bad.remove("scrape_error"))).len(), 1);
        assert_eq!(of(|bad| drop(bad.insert("new".to_owned(), FamilyShape::default()))).len(), 1);
        let other = |bad: &mut BTreeMap<String, FamilyShape>| {
            bad.insert("pod_swap_usage_bytes".to_owned(), ("counter".to_owned(), BTreeSet::new()));
        };
        assert_eq!(of(other).len(), 1);
    }
}
