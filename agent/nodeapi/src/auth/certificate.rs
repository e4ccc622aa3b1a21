//! The caller that a client certificate names (`CommonNameUserConversion` of `k8s.io/apiserver`). Pure.

use crate::Caller;
use berth_core::der::{COMMON_NAME, SEQUENCE, attributes, certificate_fields, element, of_tag};
use sha2::{Digest, Sha256};

/// 2.5.4.10, organisation: a group.
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
/// 1.3.6.1.4.1.57683.2: the user's UID.
const UID: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xc2, 0x53, 0x02];

/// `UTF8String`, `PrintableString`, `IA5String`.
const TEXTS: &[u8] = &[0x0c, 0x13, 0x16];

/// The caller of a certificate in DER whose chain was verified; `None` if the certificate names nobody. The common name is
/// the user's; of several the last one counts, as in Go.
pub(crate) fn caller(der: &[u8]) -> Option<Caller> {
    let mut rest = certificate_fields(der)?;
    // Serial number, signature algorithm, issuer and validity come before the subject.
    for _ in 0..4 {
        (_, _, rest) = element(rest)?;
    }
    let (subject, _) = of_tag(rest, SEQUENCE)?;
    let (mut caller, mut uids) = (Caller::default(), Vec::new());
    for (id, tag, value) in attributes(subject)? {
        if ![COMMON_NAME, ORGANIZATION, UID].contains(&id) {
            continue;
        }
        // A name that cannot be read exactly is no name.
        let text = std::str::from_utf8(value).ok().filter(|_| TEXTS.contains(&tag))?.to_owned();
        match id {
            COMMON_NAME => caller.name = text,
            ORGANIZATION => caller.groups.push(text),
            _ => uids.push(text),
        }
    }
    if caller.name.is_empty() || uids.len() > 1 {
        return None;
    }
    caller.uid = uids.pop().unwrap_or_default();
    let hash: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    caller
        .extra
        .insert("authentication.kubernetes.io/credential-id".into(), vec![format!("X509SHA256={hash}")]);
    Some(caller)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn der(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in names {
            parameters.distinguished_name.push(kind.clone(), *text);
        }
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_user_group_and_uid() {
        let uid = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]);
        let der = der(&[
            (DnType::OrganizationName, "system:masters"),
            (DnType::CommonName, "kube-apiserver-kubelet-client"),
            (DnType::CountryName, "XX"),
            (uid, "u-1"),
        ]);
        let found = caller(&der).unwrap();
        assert_eq!((found.name.as_str(), found.uid.as_str()), ("kube-apiserver-kubelet-client", "u-1"));
        assert_eq!(found.groups, ["system:masters"]);
        let id = &found.extra["authentication.kubernetes.io/credential-id"][0];
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");
    }

    #[test]
    fn a_certificate_without_a_name_is_nobody() {
        assert_eq!(caller(&der(&[(DnType::OrganizationName, "system:masters")])), None);
        assert_eq!(caller(b"\x30\x03\x30\x01\x00"), None);
        let whole = der(&[(DnType::CommonName, "n")]);
        for end in 0..whole.len() {
            assert_eq!(caller(&whole[..end]), None);
        }
    }
}
