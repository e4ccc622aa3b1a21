//! The API server's audit log: what it holds, and how its lines are counted.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

/// Path of the log in the cluster's directory.
pub(crate) const AUDIT: &str = "logs/requests.log";

/// Which requests the audit log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Audit {
    /// Those that the API server hands on to a node's own API.
    #[default]
    ToNodes,
    /// Those of the nodes, and all writes of EndpointSlices.
    OfNodes,
}

const TO_NODES: &str = r#"- level: Metadata
  omitStages: [RequestReceived, ResponseStarted]
  resources:
  - {group: "", resources: [pods/log, pods/exec, pods/attach, pods/portforward, nodes/proxy]}
"#;

// A watch is logged when it begins, because it may outlast the reader.
const OF_NODES: &str = r#"- level: Metadata
  omitStages: [RequestReceived]
  userGroups: [system:nodes]
- level: Metadata
  omitStages: [RequestReceived, ResponseStarted]
  verbs: [create, update, patch, delete, deletecollection]
  resources:
  - {group: discovery.k8s.io, resources: [endpointslices]}
"#;

impl Audit {
    /// The API server's audit policy.
    pub(super) fn policy(self) -> String {
        let rules = match self {
            Audit::ToNodes => TO_NODES,
            Audit::OfNodes => OF_NODES,
        };
        format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}- level: None\n")
    }
}

/// A request in the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// User without `system:node:` and the like before the name.
    pub(crate) user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub(crate) verb: String,
    /// Resource with its subresource, as `pods/status`.
    pub(crate) resource: String,
    /// Name of the object; empty for a set.
    pub(crate) name: String,
    /// HTTP status of the answer.
    pub(crate) code: u16,
}

impl Asked {
    /// Whether the request renews the node's lease or sends the Node's own status, which a node does all the time, or is
    /// about its CSI drivers, of which a node asks once whatever pods it has.
    pub(crate) fn is_of_the_node(&self) -> bool {
        matches!(self.resource.as_str(), "leases" | "nodes" | "nodes/status" | "csinodes" | "csidrivers")
    }

    /// Whether the request is about a certificate of the node.
    pub(crate) fn is_of_a_certificate(&self) -> bool {
        self.resource.starts_with("certificatesigningrequests")
    }

    /// Whether the request changes an object.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// A reader of the audit log. Each request is given once.
#[derive(Debug)]
pub(crate) struct AuditLog {
    path: PathBuf,
    at: u64,
    /// Watches whose beginning was given; their ends are not.
    begun: BTreeSet<String>,
}

impl AuditLog {
    /// A reader of what comes after now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn from_now(path: PathBuf) -> Result<AuditLog> {
        let mut log = AuditLog { path, at: 0, begun: BTreeSet::new() };
        log.news()?;
        Ok(log)
    }

    /// The requests since the last call.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn news(&mut self) -> Result<Vec<Asked>> {
        let what = || format!("cannot read {}", self.path.display());
        let mut file = File::open(&self.path).with_context(what)?;
        file.seek(SeekFrom::Start(self.at)).with_context(what)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(what)?;
        // The API server may be about to write the last line.
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        text.truncate(whole);
        self.at += u64::try_from(whole)?;
        let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let lines: Vec<Line> = lines
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()
            .context("cannot read a line of the audit log")?;
        Ok(lines.into_iter().filter_map(|line| self.once(line)).collect())
    }

    fn once(&mut self, line: Line) -> Option<Asked> {
        let ends = line.stage != "ResponseStarted";
        if ends && self.begun.remove(&line.audit_id) {
            return None;
        }
        if !ends {
            self.begun.insert(line.audit_id.clone());
        }
        let object = line.object_ref.unwrap_or_default();
        let resource = match object.subresource {
            Some(sub) => format!("{}/{sub}", object.resource.unwrap_or_default()),
            None => object.resource.unwrap_or(line.request_uri),
        };
        Some(Asked {
            user: line.user.username.rsplit(':').next().unwrap_or_default().to_owned(),
            verb: line.verb,
            resource,
            name: object.name.unwrap_or_default(),
            code: line.response_status.unwrap_or_default().code,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Answer>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize, Default)]
struct Object {
    resource: Option<String>,
    subresource: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize, Default)]
struct Answer {
    #[serde(default)]
    code: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::OpenOptions, io::Write};

    fn line(id: &str, stage: &str, verb: &str) -> String {
        format!(
            r#"{{"auditID":"{id}","stage":"{stage}","requestURI":"/x","verb":"{verb}","user":{{"username":"system:node:n1"}},"objectRef":{{"resource":"pods","name":"p","subresource":"status"}},"responseStatus":{{"code":200}}}}"#
        )
    }

    #[test]
    fn each_request_is_given_once_and_a_watch_when_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let say =
            |text: &str| write!(OpenOptions::new().append(true).create(true).open(&path).unwrap(), "{text}");
        say(&format!("{}\n", line("0", "ResponseComplete", "get"))).unwrap();
        let mut log = AuditLog::from_now(path.clone()).unwrap();
        assert_eq!(log.news().unwrap(), []);
        say(&format!("{}\n{}", line("1", "ResponseStarted", "watch"), r#"{"auditID":"#)).unwrap();
        let news = log.news().unwrap();
        assert_eq!((news.len(), news[0].verb.as_str()), (1, "watch"), "a line that is not whole waits");
        say(&format!(
            "{}\n{}\n",
            &line("2", "ResponseComplete", "patch")[r#"{"auditID":"#.len()..],
            line("1", "ResponseComplete", "watch")
        ))
        .unwrap();
        let news = log.news().unwrap();
        let patch = Asked {
            user: "n1".into(),
            verb: "patch".into(),
            resource: "pods/status".into(),
            name: "p".into(),
            code: 200,
        };
        assert_eq!(news, [patch], "the end of a known watch is no request");
    }
}
