//! The required node affinity. Preferred and inter-pod affinities are for the scheduler: the pod is bound to
//! its node already.

use super::{
    check,
    field::{FieldError, FieldPath, shorten},
};
use berth_core::model::{NodeSelectorOperator, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::core::v1 as api;

/// `requiredDuringSchedulingIgnoredDuringExecution`, where there is one.
pub(super) fn required(
    at: &FieldPath<'_>,
    spec: &api::PodSpec,
) -> Result<Option<Vec<NodeSelectorTerm>>, FieldError> {
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let Some(selector) = required else { return Ok(None) };
    let at = &at.key("affinity");
    let at = &at.key("nodeAffinity");
    let at = &at.key("requiredDuringSchedulingIgnoredDuringExecution");
    terms(&at.key("nodeSelectorTerms"), selector).map(Some)
}

/// The terms of a node selector.
pub(super) fn terms(
    at: &FieldPath<'_>,
    selector: &api::NodeSelector,
) -> Result<Vec<NodeSelectorTerm>, FieldError> {
    if selector.node_selector_terms.is_empty() {
        return Err(at.error("must hold at least one term"));
    }
    let mut terms = Vec::new();
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        let at = &at.index(index);
        let list = |name: &str, given: &Option<Vec<api::NodeSelectorRequirement>>, of: Of| {
            let at = &at.key(name);
            given.iter().flatten().enumerate().map(|(n, r)| requirement(&at.index(n), r, of)).collect()
        };
        let match_expressions: Result<_, FieldError> =
            list("matchExpressions", &term.match_expressions, Of::Labels);
        let match_fields: Result<_, FieldError> = list("matchFields", &term.match_fields, Of::Fields);
        terms.push(NodeSelectorTerm { match_expressions: match_expressions?, match_fields: match_fields? });
    }
    Ok(terms)
}

/// The list of a term in which a requirement stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Labels,
    Fields,
}

fn requirement(
    at: &FieldPath<'_>,
    r: &api::NodeSelectorRequirement,
    of: Of,
) -> Result<NodeSelectorRequirement, FieldError> {
    let key_at = &at.key("key");
    match of {
        Of::Labels => check::qualified_name(key_at, &r.key)?,
        Of::Fields if r.key == "metadata.name" => {}
        Of::Fields => {
            return Err(key_at.error(format!("{:?} is no field: metadata.name is", shorten(&r.key))));
        }
    }
    let values = r.values.clone().unwrap_or_default();
    let values_at = &at.key("values");
    let some = |values: Vec<String>| match (of, values.len()) {
        (_, 0) => Err(values_at.error(format!("must hold at least one with operator {}", r.operator))),
        (Of::Fields, 2..) => Err(values_at.error("must hold one alone")),
        _ => Ok(values),
    };
    let none = |values: &[String]| match values {
        [] => Ok(()),
        _ => Err(values_at.error(format!("must be empty with operator {}", r.operator))),
    };
    let number = |values: &[String]| match values {
        [one] => one
            .parse::<i64>()
            .ok()
            .ok_or_else(|| values_at.index(0).error(format!("{:?} must be a whole number", shorten(one)))),
        _ => Err(values_at.error(format!("must hold one alone with operator {}", r.operator))),
    };
    let operator = match (r.operator.as_str(), of) {
        ("In", _) => NodeSelectorOperator::In(some(values)?),
        ("NotIn", _) => NodeSelectorOperator::NotIn(some(values)?),
        ("Exists", Of::Labels) => none(&values).map(|()| NodeSelectorOperator::Exists)?,
        ("DoesNotExist", Of::Labels) => none(&values).map(|()| NodeSelectorOperator::DoesNotExist)?,
        ("Gt", Of::Labels) => NodeSelectorOperator::Gt(number(&values)?),
        ("Lt", Of::Labels) => NodeSelectorOperator::Lt(number(&values)?),
        (other, _) => {
            let known =
                if of == Of::Labels { "In, NotIn, Exists, DoesNotExist, Gt, Lt" } else { "In, NotIn" };
            return Err(at.key("operator").error(format!("{:?} must be one of {known}", shorten(other))));
        }
    };
    Ok(NodeSelectorRequirement { key: r.key.clone(), operator })
}
