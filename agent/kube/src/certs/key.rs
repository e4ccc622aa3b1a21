//! Keys, and requests for certificates of them (PKCS #10, RFC 2986).
//!
//! Keys are ECDSA on P-256, as the kubelet's. A control plane approves the request of a node by itself only
//! if subject and usages are exactly those of a node (`pkg/controller/certificates/approver` and
//! `pkg/apis/certificates` of Kubernetes), so a request carries nothing beside its subject and names.

use super::{CertificateError, pem};
use crate::identity::Certificate;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use sha2::{Digest, Sha256, Sha512_256};
use std::{fmt, net::IpAddr};

/// The organization of all nodes.
const NODES: &str = "system:nodes";

/// Days for which a certificate of tests is valid.
#[cfg(test)]
const SELF_SIGNED_DAYS: i64 = 365;

/// A private key.
pub struct Key(KeyPair);

/// The node that a certificate is for, with the names under which it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The user, `system:node:<name>`. The organization is `system:nodes`.
    pub common_name: String,
    /// DNS names in order; none for a client.
    pub dns_names: Vec<String>,
    /// Addresses in order; none for a client.
    pub addresses: Vec<IpAddr>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Makes a key.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> Result<Key, CertificateError> {
        let made = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        made.map(Key).map_err(|e| CertificateError::new("make a key", e))
    }

    /// Reads a key that [`Key::pem`] wrote.
    ///
    /// # Errors
    /// The text is no key on P-256 in PKCS #8. Other keys serve in TLS, but make no request.
    pub fn from_pem(text: &[u8]) -> Result<Key, CertificateError> {
        // The reasons of the readers are of no use to a person; a new key is the remedy.
        let wrong = || CertificateError::new("read a key", "the file has no key on P-256 in PKCS #8");
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_unreadable| wrong())?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        key.map(Key).map_err(|_other_kind| wrong())
    }

    /// The key as PKCS #8 in PEM.
    pub fn pem(&self) -> String {
        pem::block("PRIVATE KEY", self.0.serialized_der())
    }

    /// SHA-256 of the public key's information: [`Certificate::key_digest`] of a certificate of this key.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.subject_public_key_info()).into()
    }

    /// A request for a certificate, in PEM.
    ///
    /// # Errors
    /// A name is none that a certificate can have.
    pub fn request(&self, subject: &Subject) -> Result<String, CertificateError> {
        let failed = |e| CertificateError::new("make a certificate signing request", e);
        let request = subject.parameters().and_then(|p| p.serialize_request(&self.0)).map_err(failed)?;
        Ok(pem::block("CERTIFICATE REQUEST", request.der()))
    }

    /// Name of the CertificateSigningRequest object. The name is derived from what is requested, so an agent
    /// that starts again with the same key finds its request (the kubelet's `digestedName`, with the names of
    /// a server).
    pub fn request_name(&self, subject: &Subject, usages: &[&str]) -> String {
        let mut digest = Sha512_256::new();
        let mut write = |bytes: &[u8]| {
            digest.update(URL_SAFE_NO_PAD.encode(bytes));
            digest.update("|");
        };
        write(&self.0.subject_public_key_info());
        write(subject.common_name.as_bytes());
        write(NODES.as_bytes());
        usages.iter().for_each(|usage| write(usage.as_bytes()));
        subject.dns_names.iter().for_each(|name| write(name.as_bytes()));
        subject.addresses.iter().for_each(|address| write(address.to_string().as_bytes()));
        format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finalize()))
    }

    /// A certificate that the key signs itself, in PEM; valid for a year.
    #[cfg(test)]
    pub(super) fn self_signed(
        &self,
        subject: &Subject,
        now: jiff::Timestamp,
    ) -> Result<String, CertificateError> {
        let failed = |reason: String| CertificateError::new("make a serving certificate", reason);
        let mut parameters = subject.parameters().map_err(|e| failed(e.to_string()))?;
        let day = |days: i64| {
            let zoned = now.to_zoned(jiff::tz::TimeZone::UTC);
            let at = zoned.checked_add(jiff::Span::new().days(days)).map_err(|e| failed(e.to_string()))?;
            let (month, date) = (at.month().unsigned_abs(), at.day().unsigned_abs());
            Ok::<_, CertificateError>(rcgen::date_time_ymd(i32::from(at.year()), month, date))
        };
        // From yesterday on: a client's clock may be behind.
        (parameters.not_before, parameters.not_after) = (day(-1)?, day(SELF_SIGNED_DAYS)?);
        let certificate = parameters.self_signed(&self.0).map_err(|e| failed(e.to_string()))?;
        Ok(pem::block("CERTIFICATE", certificate.der()))
    }
}

impl Subject {
    /// The node as a client of the API server.
    pub fn client(node: &str) -> Subject {
        Subject { common_name: format!("system:node:{node}"), dns_names: Vec::new(), addresses: Vec::new() }
    }

    /// The node as a server under its name and addresses. A name that is an address counts as one.
    pub fn server(node: &str, addresses: &[IpAddr]) -> Subject {
        let mut subject = Subject { addresses: addresses.to_vec(), ..Subject::client(node) };
        match node.parse() {
            Ok(address) => subject.addresses.push(address),
            Err(_) => subject.dns_names.push(node.to_owned()),
        }
        subject.addresses.sort_unstable();
        subject.addresses.dedup();
        subject
    }

    /// Whether a certificate is for this subject. Further names of the certificate do not matter.
    pub fn is_met_by(&self, certificate: &Certificate) -> bool {
        certificate.common_name == self.common_name
            && self.dns_names.iter().all(|name| certificate.dns_names.contains(name))
            && self.addresses.iter().all(|address| certificate.addresses.contains(address))
    }

    fn parameters(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::OrganizationName, NODES);
        parameters.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        for name in &self.dns_names {
            parameters.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        parameters.subject_alt_names.extend(self.addresses.iter().copied().map(SanType::IpAddress));
        Ok(parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_core::der::{OBJECT_ID, SEQUENCE, SET, element, of_tag};
    use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

    const CLIENT: [&str; 2] = ["digital signature", "client auth"];

    /// Subject attributes (last byte of the identifier, tag, text) and the bytes of the attributes of a
    /// request.
    fn parts(der: &[u8]) -> (Vec<(u8, u8, String)>, Vec<u8>) {
        let (request, _) = of_tag(der, SEQUENCE).unwrap();
        let (info, _) = of_tag(request, SEQUENCE).unwrap();
        let (_, version, rest) = element(info).unwrap();
        assert_eq!(version, [0]);
        let (mut subject, rest) = of_tag(rest, SEQUENCE).unwrap();
        let (_, _, attributes) = element(rest).unwrap();
        let mut found = Vec::new();
        while let Some((set, after)) = of_tag(subject, SET) {
            let (attribute, more) = of_tag(set, SEQUENCE).unwrap();
            assert!(more.is_empty(), "one attribute a set");
            let (id, value) = of_tag(attribute, OBJECT_ID).unwrap();
            let (tag, text, _) = element(value).unwrap();
            found.push((*id.last().unwrap(), tag, String::from_utf8(text.to_vec()).unwrap()));
            subject = after;
        }
        (found, attributes.to_vec())
    }

    #[test]
    fn the_request_of_a_client_is_what_a_control_plane_approves_by_itself() {
        let request = Key::generate().unwrap().request(&Subject::client("n1")).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
        let (subject, attributes) = parts(&der);
        // O is 2.5.4.10 and CN 2.5.4.3, both UTF8String.
        let (nodes, name) = ("system:nodes".to_owned(), "system:node:n1".to_owned());
        assert_eq!(subject, [(10, 0x0c, nodes), (3, 0x0c, name)]);
        let (tag, content, after) = element(&attributes).unwrap();
        assert_eq!((tag, content, after), (0xa0, &[][..], &[][..]), "no extension, so no name");
    }

    #[test]
    fn the_request_of_a_server_has_its_names() {
        let addresses = ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse().unwrap());
        let subject = Subject::server("n1", &addresses);
        let request = Key::generate().unwrap().request(&subject).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
        let (_, attributes) = parts(&der);
        for name in [b"n1".as_slice(), &[192, 0, 2, 7], &[0x20, 0x01, 0x0d, 0xb8]] {
            assert!(attributes.windows(name.len()).any(|window| window == name), "{name:?}");
        }
        let by_address = Subject::server("192.0.2.7", &addresses);
        assert_eq!((by_address.dns_names.len(), by_address.addresses.len()), (0, 2));
    }

    #[test]
    fn a_key_that_was_kept_names_the_same_request() {
        let key = Key::generate().unwrap();
        let again = Key::from_pem(key.pem().as_bytes()).unwrap();
        let subject = Subject::client("n1");
        let name = key.request_name(&subject, &CLIENT);
        assert_eq!(name, again.request_name(&subject, &CLIENT));
        assert_eq!(key.digest(), again.digest());
        assert!(name.starts_with("node-csr-") && name.len() == 52, "{name}");
        let others = [
            Key::generate().unwrap().request_name(&subject, &CLIENT),
            key.request_name(&Subject::client("n2"), &CLIENT),
            key.request_name(&subject, &["digital signature", "server auth"]),
            key.request_name(&Subject::server("n1", &["192.0.2.7".parse().unwrap()]), &CLIENT),
        ];
        assert!(others.iter().all(|other| *other != name));
        assert!(Key::from_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
        assert!(Key::from_pem(b"").is_err());
    }

    #[test]
    fn a_certificate_of_its_own_is_for_the_nodes_names() {
        let (key, addresses) = (Key::generate().unwrap(), ["192.0.2.7".parse().unwrap()]);
        let subject = Subject::server("n1", &addresses);
        let text = key.self_signed(&subject, "2026-01-02T03:04:05Z".parse().unwrap()).unwrap();
        let der = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
        let certificate = Certificate::read(&der).unwrap();
        assert!(subject.is_met_by(&certificate), "{certificate:?}");
        assert_eq!(certificate.key_digest, key.digest());
        let end = (certificate.not_before.to_string(), certificate.not_after.to_string());
        assert_eq!(end, ("2026-01-01T00:00:00Z".to_owned(), "2027-01-02T00:00:00Z".to_owned()));
        assert!(!Subject::server("n2", &addresses).is_met_by(&certificate));
        assert!(!Subject::server("n1", &["192.0.2.8".parse().unwrap()]).is_met_by(&certificate));
        assert!(key.self_signed(&Subject::server("\u{fc}", &[]), jiff::Timestamp::now()).is_err());
    }
}
