//! The text of a pod's `/etc/hosts`.

use crate::{Error, PodHostname};
use berth_core::model::Pod;
use std::net::IpAddr;

const HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HOST_NETWORK_HEADER: &str = "# Kubernetes-managed hosts file (host network).\n";
const LOCAL: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// The file of a pod with its own network namespace.
pub(crate) fn managed(pod: &Pod, name: &PodHostname, ips: &[IpAddr]) -> Result<String, Error> {
    let mut text = format!("{HEADER}{LOCAL}");
    for ip in ips {
        text.push_str(&match &name.domain {
            Some(domain) => format!("{ip}\t{short}.{domain}\t{short}\n", short = name.name),
            None => format!("{ip}\t{}\n", name.name),
        });
    }
    text.push_str(&aliases(pod)?);
    Ok(text)
}

/// The file of a host-network pod: the node's own under another header.
pub(crate) fn host_network(pod: &Pod, node_file: &[u8]) -> Result<Vec<u8>, Error> {
    let mut text = HOST_NETWORK_HEADER.as_bytes().to_vec();
    text.extend_from_slice(node_file);
    text.extend_from_slice(aliases(pod)?.as_bytes());
    Ok(text)
}

fn aliases(pod: &Pod) -> Result<String, Error> {
    if pod.dns.host_aliases.is_empty() {
        return Ok(String::new());
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for (ip, names) in &pod.dns.host_aliases {
        if let Some(bad) = names.iter().find(|n| !one_word(n)) {
            return Err(Error::PodText {
                field: "spec.hostAliases[].hostnames",
                text: bad.clone(),
                reason: "is not a hostname",
            });
        }
        text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
    }
    Ok(text)
}

/// Whether the text is one word of one line. A name with a line end could add lines to the file.
pub(crate) fn one_word(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '#')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    fn text(pod: &Pod, ips: &[&str]) -> String {
        let ips: Vec<IpAddr> = ips.iter().map(|i| i.parse().unwrap()).collect();
        managed(pod, &PodHostname::of(pod, Some("cluster.local")).unwrap(), &ips).unwrap()
    }

    #[test]
    fn a_plain_pod_has_its_addresses_and_name() {
        let expected = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n\
            fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.1.2.3\tweb-0\nfd00::3\tweb-0\n";
        assert_eq!(text(&pod("web-0"), &["10.1.2.3", "fd00::3"]), expected);
    }

    #[test]
    fn subdomain_and_aliases_are_added() {
        let mut p = pod("web-0");
        p.dns.subdomain = Some("sub".into());
        p.dns.host_aliases = vec![("1.2.3.4".parse().unwrap(), vec!["foo.local".into(), "bar.local".into()])];
        let text = text(&p, &["10.1.2.3"]);
        assert!(
            text.ends_with(
                "fe00::2\tip6-allrouters\n10.1.2.3\tweb-0.sub.default.svc.cluster.local\tweb-0\n\
                 \n# Entries added by HostAliases.\n1.2.3.4\tfoo.local\tbar.local\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn host_network_keeps_the_nodes_bytes() {
        let mut p = pod("x");
        assert_eq!(
            host_network(&p, b"127.0.0.1 me\xff\n").unwrap(),
            b"# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\xff\n"
        );
        p.dns.host_aliases = vec![("::5".parse().unwrap(), vec!["five".into()])];
        let text = host_network(&p, b"a\n").unwrap();
        assert!(text.ends_with(b"a\n\n# Entries added by HostAliases.\n::5\tfive\n"));
    }

    #[test]
    fn an_alias_cannot_add_lines() {
        for bad in ["", "a b", "a\n1.1.1.1 kubernetes.default", "a\u{2028}b", "#x"] {
            let mut p = pod("x");
            p.dns.host_aliases = vec![("::5".parse().unwrap(), vec!["ok".into(), bad.into()])];
            let got = host_network(&p, b"");
            assert!(matches!(got, Err(Error::PodText { .. })), "{bad:?}");
        }
    }
}
