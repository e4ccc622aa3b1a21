//! Exec plugins: programs that make credentials (`client.authentication.k8s.io`).
//!
//! A plugin runs without a terminal, in its own process group, for [`DEADLINE`] at most. Its credentials are
//! used until they expire, or until the API server refuses them.

use super::kubeconfig::{Chosen, Exec};
use crate::{Error, null::or_default};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

/// Maximum run time of a plugin.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Maximum of bytes that are read of a plugin's output.
const MAX_OUTPUT: u64 = 1024 * 1024;

/// Maximum of characters of the plugin's error output in an error.
const SHOWN: usize = 200;

/// Credentials made by a plugin.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Credentials {
    pub(super) token: Option<String>,
    /// Certificates and key in PEM.
    pub(super) certificate: Option<(String, String)>,
    pub(super) expires: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    #[serde(default, deserialize_with = "or_default")]
    api_version: String,
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    token: String,
    #[serde(default, deserialize_with = "or_default")]
    client_certificate_data: String,
    #[serde(default, deserialize_with = "or_default")]
    client_key_data: String,
}

/// Runs the plugin. `dir` is the kubeconfig's directory; `ca` is the CA in base64.
pub(super) async fn run(chosen: &Chosen, exec: &Exec, dir: &Path, ca: &str) -> Result<Credentials, Error> {
    // As in client-go: a path with a slash is relative to the kubeconfig, a bare name is searched in PATH.
    let program =
        if exec.command.contains('/') { dir.join(&exec.command) } else { PathBuf::from(&exec.command) };
    let failed = |reason: String| Error::Plugin { command: program.clone(), reason };
    let mut command = Command::new(&program);
    command
        .args(&exec.args)
        .envs(exec.variables())
        .env("KUBERNETES_EXEC_INFO", question(chosen, exec, ca))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| {
        let hint =
            if exec.install_hint.is_empty() { String::new() } else { format!("; {}", exec.install_hint) };
        failed(format!("{e}{hint}"))
    })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    let work = async {
        let read_out = async {
            match out {
                Some(out) => out.take(MAX_OUTPUT).read_to_end(&mut text).await.map(drop),
                None => Ok(()),
            }
        };
        let read_err = async {
            match err {
                Some(err) => err.take(MAX_OUTPUT).read_to_end(&mut errors).await.map(drop),
                None => Ok(()),
            }
        };
        let (out, err, status) = tokio::join!(read_out, read_err, child.wait());
        out.and(err).and(status)
    };
    let ended = timeout(DEADLINE, work).await;
    let Ok(ended) = ended else {
        if let Some(group) = group {
            // A process group that is gone already is no failure. The child is not reaped yet, so its id is
            // not reused.
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap_or_default();
        }
        return Err(failed(format!("has not ended within {} s", DEADLINE.as_secs())));
    };
    let status = ended.map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        let errors = String::from_utf8_lossy(&errors);
        let last: String = errors.trim().lines().last().unwrap_or_default().chars().take(SHOWN).collect();
        return Err(failed(format!("ends with {status}: {last}")));
    }
    answer(&text, &exec.api_version).map_err(failed)
}

/// The content of `KUBERNETES_EXEC_INFO` for the plugin.
fn question(chosen: &Chosen, exec: &Exec, ca: &str) -> String {
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        let cluster = &chosen.cluster;
        spec["cluster"] = json!({
            "server": cluster.server,
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
            "certificate-authority-data": ca,
        });
    }
    json!({"kind": "ExecCredential", "apiVersion": exec.api_version, "spec": spec}).to_string()
}

/// Reads the plugin's output. Errors do not repeat the output, because it contains secrets.
fn answer(text: &[u8], version: &str) -> Result<Credentials, String> {
    let credential: ExecCredential = serde_json::from_slice(text)
        .map_err(|e| format!("its output is no ExecCredential: line {}, column {}", e.line(), e.column()))?;
    if credential.kind != "ExecCredential" || credential.api_version != version {
        return Err(format!(
            "its output must be an ExecCredential of {version}, is {:?} of {:?}",
            credential.kind, credential.api_version
        ));
    }
    let status = credential.status.ok_or("its output has no status")?;
    let token = Some(status.token).filter(|t| !t.is_empty());
    let certificate = match (status.client_certificate_data, status.client_key_data) {
        (certificate, key) if !certificate.is_empty() && !key.is_empty() => Some((certificate, key)),
        (certificate, key) if certificate.is_empty() && key.is_empty() => None,
        _ => return Err("its output has only one of clientCertificateData and clientKeyData".to_owned()),
    };
    if token.is_none() && certificate.is_none() {
        return Err("its output has neither a token nor a certificate".to_owned());
    }
    let expires = status.expiration_timestamp.map(|text| text.parse::<Timestamp>()).transpose();
    let expires = expires.map_err(|e| format!("its output has a wrong expirationTimestamp: {e}"))?;
    Ok(Credentials { token, certificate, expires })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "client.authentication.k8s.io/v1";

    #[test]
    fn outputs_of_plugins_are_read_or_refused() {
        let read = |status: &str| {
            answer(
                format!(r#"{{"kind":"ExecCredential","apiVersion":"{V1}","status":{status}}}"#).as_bytes(),
                V1,
            )
        };
        let good = read(r#"{"token":"t","expirationTimestamp":"2026-01-02T03:04:05Z"}"#).unwrap();
        assert_eq!(good.token.as_deref(), Some("t"));
        assert_eq!(good.expires.unwrap().to_string(), "2026-01-02T03:04:05Z");
        let good = read(r#"{"clientCertificateData":"c","clientKeyData":"k","token":null}"#).unwrap();
        assert_eq!(good.certificate, Some(("c".into(), "k".into())));
        for (status, told) in [
            ("null", "no status"),
            ("{}", "neither a token nor"),
            (r#"{"clientKeyData":"s3cret"}"#, "only one of"),
            (r#"{"token":["s3cret"]}"#, "no ExecCredential"),
        ] {
            let Err(wrong) = read(status) else { panic!("{status} is taken") };
            assert!(wrong.contains(told) && !wrong.contains("s3cret"), "{wrong}");
        }
        assert!(
            answer(br#"{"kind":"ExecCredential","apiVersion":"x/v1","status":{"token":"t"}}"#, V1).is_err()
        );
        assert!(answer(b"", V1).is_err());
    }
}
