//! Waiting until the node is Ready, with a line for each change on the way.

use crate::{Error, files::Files, tell};
use berth_api::{
    client::Client,
    message::{Reply, Request as Ask},
    view::{CertificateView, NodeView},
};
use berth_core::{error::Chain, roots::Roots};
use berth_kube::{identity::Source, pool::Pool, request::Request};
use serde::Deserialize;
use std::{path::Path, time::Duration};
use tokio::time::{Instant, sleep};

/// Time between two looks. A person waits, for minutes at most.
const LOOK: Duration = Duration::from_secs(1);

/// Deadline of an answer.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

/// Waits until the API server says that the node is Ready.
///
/// # Errors
/// It does not within `patience`; the text has what is missing.
pub(crate) async fn ready(roots: &Roots, files: &Files, patience: Duration) -> Result<(), Error> {
    let until = Instant::now() + patience;
    let (mut told, mut pool) = (String::new(), None);
    loop {
        let missing = match look(roots, files, &mut pool).await {
            None => return Ok(()),
            Some(missing) => missing,
        };
        if missing != told {
            tell(&format!("  {missing}"));
            told.clone_from(&missing);
        }
        if Instant::now() + LOOK >= until {
            return Err(Error::NotReady { seconds: patience.as_secs(), reason: missing });
        }
        sleep(LOOK).await;
    }
}

/// What is missing; `None` where the node is Ready.
async fn look(roots: &Roots, files: &Files, pool: &mut Option<Pool>) -> Option<String> {
    if !files.kubeconfig.exists() {
        return Some(certificate(&roots.agent_socket()).await);
    }
    let connected = match pool {
        Some(pool) => pool,
        None => {
            let source = Source { kubeconfig: files.kubeconfig.clone(), context: None };
            match Pool::new(source).await {
                Ok(new) => pool.insert(new),
                Err(error) => return Some(Chain(&error).to_string()),
            }
        }
    };
    let path = format!("/api/v1/nodes/{}", roots.node_name);
    match connected.send(&Request::get(path).within(ANSWER)).await {
        Ok(answer) => condition(&answer.body),
        Err(error) if error.refusal().is_some_and(|refusal| refusal.is_not_found()) => {
            Some("the node is not registered yet".to_owned())
        }
        Err(error) => Some(Chain(&error).to_string()),
    }
}

/// Why a Node object is not Ready; `None` where it is.
fn condition(body: &[u8]) -> Option<String> {
    let node: Node = match serde_json::from_slice(body) {
        Ok(node) => node,
        Err(error) => return Some(format!("cannot read the Node object: {error}")),
    };
    let ready = node.status.conditions.into_iter().find(|condition| condition.kind == "Ready");
    match ready {
        Some(Condition { status, .. }) if status == "True" => None,
        Some(Condition { message, .. }) if !message.is_empty() => {
            Some(format!("the node is not Ready: {message}"))
        }
        _ => Some("the node is not Ready yet".to_owned()),
    }
}

/// What the agent waits for before it has a certificate.
async fn certificate(socket: &Path) -> String {
    let asked = async {
        let mut client = Client::connect(socket).await?;
        client.ask(&Ask::Status, ANSWER).await
    };
    match asked.await {
        Ok(Reply::Status(view)) => of_status(&view),
        Ok(_) => "the agent's answer does not fit".to_owned(),
        Err(_) => "the agent does not answer yet".to_owned(),
    }
}

/// What the status page says of the client certificate.
fn of_status(view: &NodeView) -> String {
    let server = view.control_plane.as_ref();
    let client = server.and_then(|server| server.certificates.iter().find(|c| c.purpose == "client"));
    client.map_or_else(|| "the agent has no control plane".to_owned(), of_certificate)
}

fn of_certificate(certificate: &CertificateView) -> String {
    match (&certificate.request, &certificate.problem) {
        (Some(request), _) => match (&request.denied, request.approved) {
            (Some(why), _) => format!("CSR {} was denied: {why}", request.name),
            (None, true) => format!("CSR {} is approved and waits for its signer", request.name),
            (None, false) => format!("CSR {0} waits: kubectl certificate approve {0}", request.name),
        },
        (None, Some(problem)) => problem.clone(),
        (None, None) => "a certificate is requested".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::view::RequestView;
    use berth_core::time::Wall;

    #[test]
    fn a_node_is_ready_by_its_condition() {
        let of = |status: &str, message: &str| {
            condition(
                format!(
                    r#"{{"status":{{"conditions":[{{"type":"MemoryPressure","status":"False"}},{{"type":"Ready","status":"{status}","message":"{message}"}}]}}}}"#
                )
                .as_bytes(),
            )
        };
        assert_eq!(of("True", "runs"), None);
        assert_eq!(of("False", "no network").unwrap(), "the node is not Ready: no network");
        assert!(of("Unknown", "").is_some() && condition(b"{}").is_some());
        assert!(condition(b"x").unwrap().starts_with("cannot read the Node object: "));
    }

    #[test]
    fn a_certificate_says_whom_it_waits_for() {
        let request = |approved, denied: Option<&str>| RequestView {
            name: "x".to_owned(),
            since: Wall(0),
            approved,
            denied: denied.map(str::to_owned),
        };
        let of = |request, problem: Option<&str>| {
            of_certificate(&CertificateView {
                request,
                problem: problem.map(str::to_owned),
                ..Default::default()
            })
        };
        assert_eq!(of(Some(request(false, None)), Some("old")), "CSR x waits: kubectl certificate approve x");
        assert_eq!(of(Some(request(true, None)), None), "CSR x is approved and waits for its signer");
        assert_eq!(of(Some(request(false, Some("no"))), None), "CSR x was denied: no");
        assert_eq!(of(None, Some("cannot")), "cannot");
        assert_eq!(of(None, None), "a certificate is requested");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_run_is_what_is_missing() {
        assert_eq!(certificate(Path::new("/nonexistent/agent.sock")).await, "the agent does not answer yet");
    }
}
