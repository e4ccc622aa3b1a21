//! Settings of an image for its processes: the part of the OCI image configuration that pods use.
//!
//! Labels are left out on purpose: no label of an image is ever copied onto containers, snapshots or leases.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The largest image configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// `config` of an OCI image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`, the default arguments for pods without arguments.
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=value`.
    pub env: Vec<String>,
    /// `User`: empty, `user`, `uid`, or either with `:group`; Kubernetes ignores the group.
    pub user: String,
    /// `WorkingDir`, empty where unset.
    pub working_dir: String,
    /// `Volumes`: destinations, sorted.
    pub volumes: Vec<String>,
    /// `StopSignal`, for example `SIGQUIT`.
    pub stop_signal: Option<String>,
}

/// Reason why an image configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageConfigError {
    /// The configuration exceeds the size of any valid one.
    #[error("image configuration has {0} bytes, more than {MAX_CONFIG_BYTES}")]
    TooLarge(usize),
    /// The configuration is not the JSON that the image specification requires.
    #[error("image configuration is not valid")]
    Parse(#[source] serde_json::Error),
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Config>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
}

impl ImageConfig {
    /// Reads an OCI or Docker image configuration blob.
    pub fn parse(json: &[u8]) -> Result<ImageConfig, ImageConfigError> {
        if json.len() > MAX_CONFIG_BYTES {
            return Err(ImageConfigError::TooLarge(json.len()));
        }
        let document: Document = serde_json::from_slice(json).map_err(ImageConfigError::Parse)?;
        let c = document.config.unwrap_or_default();
        Ok(ImageConfig {
            entrypoint: c.entrypoint.unwrap_or_default(),
            cmd: c.cmd.unwrap_or_default(),
            env: c.env.unwrap_or_default(),
            user: c.user.unwrap_or_default(),
            working_dir: c.working_dir.unwrap_or_default(),
            volumes: c.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: c.stop_signal.filter(|s| !s.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there_and_defaults_the_rest() {
        let c = ImageConfig::parse(
            br#"{"architecture":"amd64","config":{"Entrypoint":["/a"],"Cmd":null,"Env":["A=b"],"User":"7:8",
                 "WorkingDir":"/w","Volumes":{"/b":{},"/a":{}},"StopSignal":"SIGQUIT","Labels":{"x":"y"}}}"#,
        )
        .unwrap();
        assert_eq!(c.entrypoint, ["/a"]);
        assert!(c.cmd.is_empty());
        assert_eq!(c.user, "7:8");
        assert_eq!(c.volumes, ["/a", "/b"]);
        assert_eq!(c.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(ImageConfig::parse(b"{}").unwrap(), ImageConfig::default());
        assert_eq!(ImageConfig::parse(b"{\"config\":null}").unwrap(), ImageConfig::default());
    }

    #[test]
    fn refuses_what_is_no_configuration() {
        for bad in ["", "7", "{\"config\":{\"Env\":\"A=b\"}}", "{\"config\":{\"User\":7}}"] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(matches!(
            ImageConfig::parse(&vec![b' '; MAX_CONFIG_BYTES + 1]),
            Err(ImageConfigError::TooLarge(_))
        ));
    }
}
