//! Node selection: `spec.nodeSelector` and the required part of `spec.affinity.nodeAffinity`
//! (`component-helpers/scheduling/corev1/nodeaffinity`).

use super::Pod;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A node's labels.
pub type NodeLabels = BTreeMap<String, String>;

/// One of `nodeSelectorTerms`: all its requirements must hold. A term without any requirement selects no
/// node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NodeSelectorTerm {
    /// `matchExpressions`: requirements of the node's labels.
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// `matchFields`: requirements of the node's name, the only field that exists.
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// A requirement of one label or field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSelectorRequirement {
    /// The key of the label or field.
    pub key: String,
    /// The condition that the value must meet.
    pub operator: NodeSelectorOperator,
}

/// An operator with its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeSelectorOperator {
    /// The value is one of these.
    In(Vec<String>),
    /// The value is none of these; a missing label also meets this.
    NotIn(Vec<String>),
    /// The label is present, with any value.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The value is a number greater than this.
    Gt(i64),
    /// The value is a number less than this.
    Lt(i64),
}

impl NodeSelectorRequirement {
    fn holds(&self, labels: &NodeLabels) -> bool {
        let value = labels.get(&self.key);
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            NodeSelectorOperator::In(values) => value.is_some_and(|v| values.contains(v)),
            NodeSelectorOperator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            NodeSelectorOperator::Exists => value.is_some(),
            NodeSelectorOperator::DoesNotExist => value.is_none(),
            NodeSelectorOperator::Gt(least) => number().is_some_and(|n| n > *least),
            NodeSelectorOperator::Lt(most) => number().is_some_and(|n| n < *most),
        }
    }
}

impl Pod {
    /// Whether the pod may run on a node with this name and these labels.
    pub fn selects_node(&self, name: &str, labels: &NodeLabels) -> bool {
        let selected = self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        selected && self.node_affinity.as_ref().is_none_or(|terms| selects(terms, name, labels))
    }
}

/// Whether one of the terms selects a node of that name and those labels.
pub fn selects(terms: &[NodeSelectorTerm], name: &str, labels: &NodeLabels) -> bool {
    let fields = NodeLabels::from([("metadata.name".to_owned(), name.to_owned())]);
    let term = |t: &NodeSelectorTerm| {
        let empty = t.match_expressions.is_empty() && t.match_fields.is_empty();
        !empty
            && t.match_expressions.iter().all(|r| r.holds(labels))
            && t.match_fields.iter().all(|r| r.holds(&fields))
    };
    terms.iter().any(term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PodKey;

    fn selects(selector: &[(&str, &str)], affinity: Option<Vec<NodeSelectorTerm>>) -> bool {
        let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
        let pod = Pod {
            node_selector: selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            node_affinity: affinity,
            ..Pod::new("u".parse().unwrap(), key, "n1".parse().unwrap())
        };
        let labels = [("disk", "ssd"), ("cores", "8")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        pod.selects_node("n1", &labels.into())
    }

    fn term(key: &str, operator: NodeSelectorOperator) -> NodeSelectorTerm {
        let requirement = NodeSelectorRequirement { key: key.to_owned(), operator };
        NodeSelectorTerm { match_expressions: vec![requirement], match_fields: Vec::new() }
    }

    #[test]
    fn every_label_of_the_selector_must_be_the_nodes() {
        assert!(selects(&[], None));
        assert!(selects(&[("disk", "ssd"), ("cores", "8")], None));
        assert!(!selects(&[("disk", "ssd"), ("zone", "a")], None));
        assert!(!selects(&[("disk", "hdd")], None));
    }

    #[test]
    fn operators_mean_what_they_mean_to_the_kubelet() {
        use NodeSelectorOperator::{DoesNotExist, Exists, Gt, In, Lt, NotIn};
        let list = |v: &[&str]| v.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        for (key, operator, holds) in [
            ("disk", In(list(&["hdd", "ssd"])), true),
            ("disk", In(list(&["hdd"])), false),
            ("zone", In(list(&["a"])), false),
            ("disk", NotIn(list(&["ssd"])), false),
            ("zone", NotIn(list(&["a"])), true),
            ("disk", Exists, true),
            ("zone", Exists, false),
            ("zone", DoesNotExist, true),
            ("cores", Gt(7), true),
            ("cores", Gt(8), false),
            ("cores", Lt(9), true),
            ("disk", Lt(9), false),
        ] {
            assert_eq!(selects(&[], Some(vec![term(key, operator.clone())])), holds, "{key} {operator:?}");
        }
    }

    #[test]
    fn one_term_of_several_is_enough_and_an_empty_one_selects_nothing() {
        let (yes, no) =
            (term("disk", NodeSelectorOperator::Exists), term("zone", NodeSelectorOperator::Exists));
        assert!(selects(&[], Some(vec![no.clone(), yes.clone()])));
        assert!(!selects(&[], Some(vec![no])));
        assert!(!selects(&[], Some(vec![NodeSelectorTerm::default()])));
        assert!(!selects(&[], Some(Vec::new())));
        let named = |name: &str| NodeSelectorTerm {
            match_fields: vec![NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: NodeSelectorOperator::In(vec![name.to_owned()]),
            }],
            ..yes.clone()
        };
        assert!(selects(&[], Some(vec![named("n1")])));
        assert!(!selects(&[], Some(vec![named("n2")])));
    }
}
