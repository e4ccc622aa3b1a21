//! Where this node keeps everything: from a file, or the defaults.

use anyhow::Context as _;
use berth_core::{ids::NodeName, roots::Roots};
use std::path::{Path, PathBuf};

/// Reads the file, or makes the defaults with the machine's host name as the node's name.
pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Roots> {
    match file {
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{}: not a roots file", path.display()))
        }
        None => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
            let name = host.trim().to_ascii_lowercase();
            let node = NodeName::new(name).context("the host name cannot be the node's name")?;
            let mut roots = Roots::defaults(node);
            roots.resolv_conf = resolv_conf(roots.resolv_conf);
            Ok(roots)
        }
    }
}

/// What systemd-resolved knows of the network, without its own address on the loopback device.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The file that says which DNS servers the node asks. systemd-resolved's stub answers on the node's loopback device, which
/// no pod reaches: then the file beside it, as installers configure the kubelet (`resolvConf`).
fn resolv_conf(usual: PathBuf) -> PathBuf {
    let stub = std::fs::read_to_string(&usual).is_ok_and(|text| asks_stub_alone(&text));
    if stub && Path::new(RESOLVED).is_file() { RESOLVED.into() } else { usual }
}

/// Whether all the servers that a resolv.conf names are systemd-resolved's stub.
fn asks_stub_alone(text: &str) -> bool {
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
    fn the_stub_of_systemd_resolved_is_known() {
        assert!(asks_stub_alone(
            "# made by systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"
        ));
        assert!(!asks_stub_alone("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
        assert!(!asks_stub_alone("nameserver 127.0.0.1\n"));
        assert!(!asks_stub_alone("search example.org\n"));
        assert!(!asks_stub_alone("#nameserver 127.0.0.53\n"));
    }
}
