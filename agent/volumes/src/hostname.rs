//! The hostname of a pod.

use crate::Error;
use berth_core::model::Pod;

/// Limit of the kernel for the hostname of a UTS namespace, in bytes.
const UTS_MAX: usize = 64;
/// Limit of a pod's short hostname, in bytes.
const HOSTNAME_MAX: usize = 63;

/// The hostname of a pod, in its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodHostname {
    /// The short name: `spec.hostname` or the pod's name, cut to 63 characters.
    pub name: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, if the pod has a subdomain.
    pub domain: Option<String>,
    /// The hostname of the UTS namespace and of `/etc/hostname`: the short name, or with `setHostnameAsFQDN`
    /// the full one.
    pub kernel: String,
}

impl PodHostname {
    /// The hostname of a pod with a network namespace of its own; a host-network pod has the node's name.
    ///
    /// Fails if `hostname` or `subdomain` is not a DNS label, or the full name is longer than 64 bytes.
    pub fn of(pod: &Pod, cluster_domain: Option<&str>) -> Result<PodHostname, Error> {
        let name = match pod.dns.hostname.as_deref().filter(|h| !h.is_empty()) {
            Some(name) => label("spec.hostname", name)?,
            None => pod.key.name.as_str(),
        };
        let name = match name.get(..HOSTNAME_MAX) {
            Some(cut) if name.len() > HOSTNAME_MAX => cut.trim_end_matches(['-', '.']),
            _ => name,
        }
        .to_owned();
        let domain = match pod.dns.subdomain.as_deref().filter(|s| !s.is_empty()) {
            Some(subdomain) => {
                let subdomain = label("spec.subdomain", subdomain)?;
                Some(format!("{subdomain}.{}.svc.{}", pod.key.namespace, cluster_domain.unwrap_or_default()))
            }
            None => None,
        };
        let kernel = match &domain {
            Some(domain) if pod.dns.hostname_as_fqdn => {
                let full = format!("{name}.{domain}");
                if full.len() > UTS_MAX {
                    return Err(Error::PodText {
                        field: "spec.setHostnameAsFQDN",
                        text: full,
                        reason: "is longer than the 64 characters a hostname may have",
                    });
                }
                full
            }
            _ => name.clone(),
        };
        Ok(PodHostname { name, domain, kernel })
    }
}

fn label<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Error> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.len() <= HOSTNAME_MAX && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
    {
        Ok(text)
    } else {
        Err(Error::PodText { field, text: text.to_owned(), reason: "is not a DNS label" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn the_hostname_follows_hostname_subdomain_and_fqdn() {
        let mut p = pod("web-0");
        assert_eq!(PodHostname::of(&p, None).unwrap().kernel, "web-0");
        p.dns.hostname = Some("front".into());
        p.dns.subdomain = Some("sites".into());
        let n = PodHostname::of(&p, Some("cluster.local")).unwrap();
        assert_eq!((n.name.as_str(), n.kernel.as_str()), ("front", "front"));
        assert_eq!(n.domain.as_deref(), Some("sites.default.svc.cluster.local"));
        p.dns.hostname_as_fqdn = true;
        assert_eq!(
            PodHostname::of(&p, Some("cluster.local")).unwrap().kernel,
            "front.sites.default.svc.cluster.local"
        );
        assert!(PodHostname::of(&p, Some(&"d".repeat(60))).is_err());
    }

    #[test]
    fn long_names_are_cut_and_do_not_end_in_a_dash() {
        let p = pod(&format!("{}--x", "a".repeat(61)));
        let n = PodHostname::of(&p, None).unwrap();
        assert_eq!(n.name, "a".repeat(61));
    }

    #[test]
    fn a_hostname_that_is_no_dns_label_is_an_error() {
        for bad in ["a b", "a\nb", "-a", "a.b", "A"] {
            let mut p = pod("x");
            p.dns.hostname = Some(bad.into());
            assert!(PodHostname::of(&p, None).is_err(), "{bad:?}");
        }
    }
}
