//! Names and hardware addresses as functions of network and container, so that they need not be
//! stored.

use berth_cni_ipam::Key;
use std::path::Path;

/// Identity of a network on a node: its journal directory. Two nodes on one machine have different
/// directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NetworkId(u64);

impl NetworkId {
    pub(crate) fn of(journal: &Path) -> NetworkId {
        NetworkId(hash(&[journal.as_os_str().as_encoded_bytes()]))
    }

    /// Name of the host end, 15 characters.
    pub(crate) fn host_end(self, key: &Key) -> String {
        format!("veth{:011x}", self.of_key(key, "name") & 0xfff_ffff_ffff)
    }

    /// Hardware addresses of the host end and of the pod's end: locally administered, unicast.
    pub(crate) fn macs(self, key: &Key) -> (Mac, Mac) {
        (Mac::from_hash(self.of_key(key, "host")), Mac::from_hash(self.of_key(key, "pod")))
    }

    /// Alias that marks the host end as ours (shown by `ip -d link`). The journal can be rebuilt
    /// from it.
    pub(crate) fn alias(self, key: &Key) -> String {
        format!("berth-cni/{:016x}/{}/{}", self.0, key.container(), key.ifname())
    }

    /// Key of the host end with this alias. None if it does not belong to this network.
    pub(crate) fn key_of_alias(self, alias: &str) -> Option<Key> {
        let rest = alias.strip_prefix(&format!("berth-cni/{:016x}/", self.0))?;
        let (container, ifname) = rest.split_once('/')?;
        Key::new(container, ifname).ok()
    }

    fn of_key(self, key: &Key, what: &str) -> u64 {
        let parts = [key.container(), key.ifname(), what];
        hash(&[&self.0.to_be_bytes(), parts[0].as_bytes(), parts[1].as_bytes(), parts[2].as_bytes()])
    }
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    fn from_hash(hash: u64) -> Mac {
        let [first, rest @ .., _, _] = hash.to_be_bytes();
        let [b, c, d, e, f] = rest;
        Mac([first & !1 | 2, b, c, d, e, f])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// FNV-1a with a final mix (the last bytes would otherwise affect only the low bits). The parts are
/// separated by a zero byte.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_valid_and_differ_by_node_container_and_interface() {
        let mut seen = BTreeSet::new();
        for dir in ["/a/net", "/b/net"] {
            let network = NetworkId::of(Path::new(dir));
            for n in 0..5000 {
                for ifname in ["eth0", "net1"] {
                    let key = Key::new(&format!("c{n}"), ifname).unwrap();
                    let name = network.host_end(&key);
                    assert_eq!(name.len(), 15);
                    let (host, pod) = network.macs(&key);
                    assert!(host != pod && host.0[0] & 3 == 2 && pod.0[0] & 3 == 2);
                    assert!(
                        seen.insert(name) && seen.insert(pod.to_string()) && seen.insert(host.to_string())
                    );
                }
            }
        }
    }

    #[test]
    fn an_alias_leads_back_to_its_key_and_only_in_its_network() {
        let network = NetworkId::of(Path::new("/a/net"));
        let key = Key::new(&"x".repeat(128), "0123456789abcde").unwrap();
        let alias = network.alias(&key);
        assert!(alias.len() < 256);
        assert_eq!(network.key_of_alias(&alias), Some(key));
        assert_eq!(NetworkId::of(Path::new("/b/net")).key_of_alias(&alias), None);
        assert_eq!(network.key_of_alias("uplink"), None);
    }
}
