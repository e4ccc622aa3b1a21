//! The control plane on the page of `berth status`.

use crate::time;
use berth_api::view::{
    CertificateView, ControlPlaneView, RequestView, SetBehind, UnpublishedPod, UnreadObject,
};
use berth_core::time::Wall;
use serde_json::{Value, json};

/// The line: server, identity, last contact and extent.
pub(super) fn line(server: &ControlPlaneView, now: Wall) -> String {
    let ago = |at| format!("{} ago", time::age(Some(at), now));
    let mut line = server.server.clone();
    if let Some(identity) = &server.identity {
        line.push_str(&format!(" as {identity}"));
    }
    line.push_str(&match server.last_contact {
        Some(at) => format!(", last contact {}", ago(at)),
        None => ", no contact yet".to_owned(),
    });
    if let Some(at) = server.lease_renewed {
        line.push_str(&format!(", lease renewed {}", ago(at)));
    }
    let listed = if server.listed { "" } else { ", not listed" };
    line.push_str(&format!("; {} connections; {} pods{listed}", server.connections, server.pods));
    line
}

/// What is behind the API server and why, one line each.
pub(super) fn problems(server: &ControlPlaneView) -> Vec<String> {
    let mut problems: Vec<String> =
        server.problem.iter().map(|why| format!("control plane: {why}")).collect();
    if !server.listed {
        problems
            .push("the control plane is not listed yet: no pod of it starts and none is deleted".to_owned());
    }
    // Before the first list the object is not known either.
    if server.listed && !server.registered {
        let what = "the control plane has no Node object of this node: start the agent again to register it";
        problems.push(what.to_owned());
    }
    problems.extend(server.behind.iter().map(|SetBehind { resource, since, reason }| {
        format!("{resource} may be behind since {}: {reason}", time::stamp(*since))
    }));
    problems.extend(
        server
            .unread
            .iter()
            .map(|UnreadObject { kind, key, reason }| format!("cannot read {kind} {key}: {reason}")),
    );
    problems.extend(server.unpublished.iter().map(|UnpublishedPod { pod, since, reason }| {
        format!("cannot publish the status of pod {pod} since {}: {reason}", time::stamp(*since))
    }));
    problems.extend(server.certificates.iter().flat_map(certificate_problems));
    problems
}

/// The line of the certificates: when each ends. Empty without a certificate.
pub(super) fn certificates(server: &ControlPlaneView, now: Wall) -> String {
    let ends = server.certificates.iter().filter_map(|CertificateView { purpose, not_after, .. }| {
        let end = (*not_after)?;
        let left = time::age(Some(now), end);
        Some(match end > now {
            true => format!("{purpose} ends in {left}, at {}", time::stamp(end)),
            false => format!("{purpose} ended at {}", time::stamp(end)),
        })
    });
    ends.collect::<Vec<_>>().join("; ")
}

/// What a certificate waits for, and why there is no newer one.
fn certificate_problems(certificate: &CertificateView) -> Vec<String> {
    let CertificateView { purpose, request, problem, .. } = certificate;
    let pending = request.as_ref().map(|RequestView { name, since, approved, denied }| {
        let since = time::stamp(*since);
        match (denied, approved) {
            (Some(why), _) => format!(
                "the request for a {purpose} certificate was denied ({why}): kubectl delete csr {name} lets \
                 the node ask again"
            ),
            (None, true) => {
                format!("CSR {name} ({purpose}) is approved and waits for its signer since {since}")
            }
            (None, false) => {
                format!("CSR {name} ({purpose}) waits since {since}: kubectl certificate approve {name}")
            }
        }
    });
    let failed = problem.iter().map(|why| format!("cannot renew the {purpose} certificate: {why}"));
    pending.into_iter().chain(failed).collect()
}

/// The same as JSON.
pub(super) fn json(server: &ControlPlaneView) -> Value {
    let behind = server.behind.iter().map(|SetBehind { resource, since, reason }| {
        json!({ "resource": resource, "since": time::stamp(*since), "reason": reason })
    });
    let unread = server
        .unread
        .iter()
        .map(|UnreadObject { kind, key, reason }| json!({ "kind": kind, "key": key, "reason": reason }));
    let unpublished = server.unpublished.iter().map(|UnpublishedPod { pod, since, reason }| {
        json!({
            "namespace": pod.namespace, "name": pod.name, "since": time::stamp(*since), "reason": reason,
        })
    });
    let certificates = server.certificates.iter().map(|certificate| {
        let request = certificate.request.as_ref().map(|request| {
            json!({
                "name": request.name,
                "since": time::stamp(request.since),
                "approved": request.approved,
                "denied": request.denied,
            })
        });
        json!({
            "purpose": certificate.purpose,
            "notAfter": certificate.not_after.map(time::stamp),
            "request": request,
            "problem": certificate.problem,
        })
    });
    json!({
        "server": server.server,
        "identity": server.identity,
        "connections": server.connections,
        "lastContact": server.last_contact.map(time::stamp),
        "leaseRenewed": server.lease_renewed.map(time::stamp),
        "problem": server.problem,
        "listed": server.listed,
        "registered": server.registered,
        "pods": server.pods,
        "behind": behind.collect::<Vec<_>>(),
        "unread": unread.collect::<Vec<_>>(),
        "unpublished": unpublished.collect::<Vec<_>>(),
        "certificates": certificates.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> ControlPlaneView {
        ControlPlaneView {
            server: "https://192.0.2.1:6443".to_owned(),
            identity: Some("system:node:n1".to_owned()),
            connections: 3,
            last_contact: Some(Wall(1_000_000_000_000)),
            lease_renewed: Some(Wall(996_000_000_000)),
            listed: true,
            registered: true,
            pods: 7,
            ..ControlPlaneView::default()
        }
    }

    #[test]
    fn the_line_has_server_identity_contact_and_extent() {
        let now = Wall(1_002_000_000_000);
        assert_eq!(
            line(&view(), now),
            "https://192.0.2.1:6443 as system:node:n1, last contact 2s ago, lease renewed 6s ago; \
             3 connections; 7 pods"
        );
        assert_eq!(problems(&view()), Vec::<String>::new());
        let server = "https://192.0.2.1:6443".to_owned();
        let new = ControlPlaneView { server, ..ControlPlaneView::default() };
        assert_eq!(
            line(&new, now),
            "https://192.0.2.1:6443, no contact yet; 0 connections; 0 pods, not listed"
        );
    }

    #[test]
    fn certificates_have_their_end_and_what_they_wait_for() {
        let request = |approved, denied: Option<&str>| {
            let denied = denied.map(str::to_owned);
            Some(RequestView { name: "node-csr-x".to_owned(), since: Wall(0), approved, denied })
        };
        let of = |purpose: &str, not_after, request| CertificateView {
            purpose: purpose.to_owned(),
            not_after,
            request,
            problem: None,
        };
        let day = 86_400_000_000_000;
        let certificates =
            vec![of("client", Some(Wall(89 * day)), None), of("serving", None, request(false, None))];
        let waiting = ControlPlaneView { certificates, ..view() };
        assert_eq!(super::certificates(&waiting, Wall(0)), "client ends in 89d, at 1970-03-31T00:00:00Z");
        assert_eq!(
            problems(&waiting),
            [
                "CSR node-csr-x (serving) waits since 1970-01-01T00:00:00Z: kubectl certificate approve node-csr-x"
            ]
        );
        assert_eq!(json(&waiting)["certificates"][1]["request"]["name"], "node-csr-x");
        let failed = CertificateView { problem: Some("no".to_owned()), ..of("client", Some(Wall(0)), None) };
        let certificates = vec![
            of("client", None, request(true, None)),
            of("client", None, request(false, Some("No: no"))),
            failed,
        ];
        let others = ControlPlaneView { certificates, ..view() };
        assert_eq!(super::certificates(&others, Wall(day)), "client ended at 1970-01-01T00:00:00Z");
        assert_eq!(
            problems(&others),
            [
                "CSR node-csr-x (client) is approved and waits for its signer since 1970-01-01T00:00:00Z",
                "the request for a client certificate was denied (No: no): kubectl delete csr node-csr-x lets \
                 the node ask again",
                "cannot renew the client certificate: no",
            ]
        );
    }

    #[test]
    fn each_thing_that_is_behind_is_a_problem_with_its_reason() {
        let since = Wall(0);
        let behind = ControlPlaneView {
            problem: Some("cannot connect to 192.0.2.1:6443: connection refused".to_owned()),
            behind: vec![SetBehind { resource: "pods".into(), since, reason: "connection refused".into() }],
            unread: vec![UnreadObject {
                kind: "configmap".into(),
                key: "default/settings".into(),
                reason: "refused: forbidden".into(),
            }],
            unpublished: vec![UnpublishedPod {
                pod: berth_core::ids::PodKey {
                    namespace: "default".parse().unwrap(),
                    name: "web".parse().unwrap(),
                },
                since,
                reason: "timed out".into(),
            }],
            ..view()
        };
        assert_eq!(
            problems(&behind),
            [
                "control plane: cannot connect to 192.0.2.1:6443: connection refused",
                "pods may be behind since 1970-01-01T00:00:00Z: connection refused",
                "cannot read configmap default/settings: refused: forbidden",
                "cannot publish the status of pod default/web since 1970-01-01T00:00:00Z: timed out",
            ]
        );
        assert_eq!(json(&behind)["unpublished"][0]["name"], "web");
        let deleted = ControlPlaneView { registered: false, ..view() };
        let what = "the control plane has no Node object of this node: start the agent again to register it";
        assert_eq!(problems(&deleted), [what]);
    }
}
