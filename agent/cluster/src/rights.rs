//! The rights that the node needs at the API server, and what to do where one is missing. Pure.

use berth_core::ids::NodeName;
use berth_kube::status::Refusal;

/// The group of all nodes.
const NODES: &str = "system:nodes";

/// What follows a refusal's text: what the refusal means for the node, and what to do. Empty where nothing is known.
pub(crate) fn remedy(resource: &str, refusal: Option<&Refusal>, node: &NodeName) -> String {
    match refusal {
        Some(refusal) if refusal.is_forbidden() => format!("; {}", of_forbidden(resource, node)),
        _ => String::new(),
    }
}

/// What to do where the API server forbids the node to read or write a resource.
pub(crate) fn of_forbidden(resource: &str, node: &NodeName) -> String {
    match resource {
        "endpointslices" => format!(
            "until this node may read them it serves no change of Services: give the ClusterRole \
             system:node-proxier to the group {NODES} (kubectl create clusterrolebinding berth-node-proxier \
             --clusterrole=system:node-proxier --group={NODES})"
        ),
        _ => format!(
            "the API server must know this agent as user system:node:{node} of the group {NODES}: look at the \
             kubeconfig, at the node's name, and whether the API server has the authorizer Node"
        ),
    }
}

/// What to say where the kubeconfig's certificate is not this node's; `None` where it is, and where there is none: a
/// token does not tell its user.
pub fn foreign_certificate(common_name: Option<&str>, node: &NodeName) -> Option<String> {
    let user = common_name.filter(|user| *user != format!("system:node:{node}"))?;
    Some(format!(
        "the kubeconfig is of the user {user:?} and this is the node {node}: the API server lets a node read its own \
         objects alone; give this node the kubeconfig of system:node:{node}, or the name that its kubeconfig has"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_named_with_the_command_that_gives_it() {
        let node = NodeName::new("n1").unwrap();
        let refusal = |code| Refusal::of_answer(code, None, b"no");
        let text = remedy("endpointslices", Some(&refusal(403)), &node);
        assert!(text.contains("--clusterrole=system:node-proxier --group=system:nodes"), "{text}");
        assert!(!text.contains("  ") && !text.contains('\n'), "one line: {text}");
        let text = remedy("nodes", Some(&refusal(403)), &node);
        assert!(text.starts_with("; ") && text.contains("system:node:n1"), "{text}");
        assert_eq!(remedy("nodes", Some(&refusal(500)), &node), "");
        assert_eq!(remedy("nodes", None, &node), "");
    }

    #[test]
    fn the_certificate_of_another_is_told() {
        let node = NodeName::new("n1").unwrap();
        assert_eq!(foreign_certificate(Some("system:node:n1"), &node), None);
        assert_eq!(foreign_certificate(None, &node), None);
        let text = foreign_certificate(Some("system:node:n2"), &node).unwrap();
        assert!(text.contains("\"system:node:n2\"") && text.contains("of system:node:n1"), "{text}");
    }
}
