//! Loading of [`Roots`]: from a file, or the defaults.

use anyhow::Context as _;
use berth_core::{ids::NodeName, roots::Roots};
use std::path::{Path, PathBuf};

/// The node's name where it is not the host's: in a container, whose host name says nothing.
const NODE_NAME: &str = "BERTH_NODE_NAME";

/// Reads the file; without one, returns the defaults with the node's name from [`NODE_NAME`], or the machine's host name.
pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Roots> {
    match file {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} is not a roots file", path.display()))
        }
        None => {
            let node = match std::env::var(NODE_NAME) {
                Ok(name) => NodeName::new(name).with_context(|| format!("{NODE_NAME} is no node's name"))?,
                Err(_not_given) => {
                    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
                        .context("cannot read the host name")?;
                    NodeName::new(host.trim().to_ascii_lowercase()).context(
                        "the host name cannot be the node's name; give --roots FILE with `node_name`",
                    )?
                }
            };
            let mut roots = Roots::defaults(node);
            roots.resolv_conf = resolv_conf(roots.resolv_conf);
            Ok(roots)
        }
    }
}

/// systemd-resolved's file with the upstream servers, without its stub on the loopback device.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The resolver configuration for pods. A file with systemd-resolved's stub is replaced by the one
/// with its upstream servers, as installers configure the kubelet (`resolvConf`): the stub is on
/// the node's loopback device, which no pod reaches.
fn resolv_conf(usual: PathBuf) -> PathBuf {
    let stub = std::fs::read_to_string(&usual).is_ok_and(|text| names_only_the_stub(&text));
    if stub && Path::new(RESOLVED).is_file() { RESOLVED.into() } else { usual }
}

/// Whether all servers of a resolv.conf are systemd-resolved's stub.
fn names_only_the_stub(text: &str) -> bool {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    let servers: Vec<&str> = servers.collect();
    !servers.is_empty() && servers.iter().all(|s| ["127.0.0.53", "127.0.0.54"].contains(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_with_only_the_stub_of_systemd_resolved_is_recognized() {
        assert!(names_only_the_stub(
            "# made by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"
        ));
        assert!(!names_only_the_stub("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
        assert!(!names_only_the_stub("nameserver 127.0.0.1\n"));
        assert!(!names_only_the_stub("search example.org\n"));
        assert!(!names_only_the_stub("#nameserver 127.0.0.53\n"));
    }
}
