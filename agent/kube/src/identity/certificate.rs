//! Validity, subject, names and key of a certificate (RFC 5280 4.1, 4.2.1.6). Pure.
//!
//! TLS checks the server's certificate. The agent's own certificates are read to explain why the API server refuses
//! one, and to know when and for what a new one is needed.

use berth_core::der::{COMMON_NAME, OBJECT_ID, SEQUENCE, attributes, certificate_fields, element, of_tag};
use jiff::{Timestamp, civil::date, tz::TimeZone};
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// The object identifier 2.5.29.17, alternative names of the subject.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];

const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The explicit tag of the extensions.
const EXTENSIONS: u8 = 0xa3;
/// Tags of the alternative names that a node has.
const DNS_NAME: u8 = 0x82;
const ADDRESS: u8 = 0x87;

/// Validity, subject, names and key of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Valid from this time on.
    pub not_before: Timestamp,
    /// Valid until this time.
    pub not_after: Timestamp,
    /// Common name of the subject, such as `system:node:a`; empty where there is none.
    pub common_name: String,
    /// The DNS names that the certificate is for.
    pub dns_names: Vec<String>,
    /// The addresses that the certificate is for.
    pub addresses: Vec<IpAddr>,
    /// SHA-256 of the public key's information (SPKI), the form in which kubeadm pins a CA.
    pub key_digest: [u8; 32],
}

impl Certificate {
    /// Reads a certificate in DER; `None` if it does not have the form of a certificate.
    pub fn read(der: &[u8]) -> Option<Certificate> {
        let mut rest = certificate_fields(der)?;
        // Serial number, signature algorithm and issuer come before the validity.
        for _ in 0..3 {
            (_, _, rest) = element(rest)?;
        }
        let (validity, rest) = of_tag(rest, SEQUENCE)?;
        let (tag, not_before, validity) = element(validity)?;
        let not_before = time(tag, not_before)?;
        let (tag, not_after, _) = element(validity)?;
        let not_after = time(tag, not_after)?;
        let (subject, rest) = of_tag(rest, SEQUENCE)?;
        let (_, after) = of_tag(rest, SEQUENCE)?;
        let key = rest.get(..rest.len() - after.len())?;
        let (dns_names, addresses) = alternative_names(after).unwrap_or_default();
        Some(Certificate {
            not_before,
            not_after,
            common_name: common_name(subject).unwrap_or_default(),
            dns_names,
            addresses,
            key_digest: Sha256::digest(key).into(),
        })
    }

    /// The reason why the certificate is not valid at this time; `None` if it is valid.
    pub fn invalid_at(&self, now: Timestamp) -> Option<String> {
        if now > self.not_after {
            return Some(format!("expired at {}, and this node's clock says {now:.0}", self.not_after));
        }
        (now < self.not_before).then(|| {
            format!(
                "is valid from {} on, and this node's clock says {now:.0}: set the clock",
                self.not_before
            )
        })
    }
}

/// `YYMMDDHHMMSSZ` (years 1950 to 2049) or `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_suffix('Z')?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let number = |at: usize| rest.get(at..at + 2)?.parse::<i8>().ok();
    let (month, day) = (number(0)?, number(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (hour, minute, second) = (number(4)?, number(6)?, number(8)?);
    let civil = jiff::civil::Date::new(year, month, day).ok()?;
    let clock = jiff::civil::Time::new(hour, minute, second.min(59), 0).ok()?;
    // 99991231235959Z means "no end" and exceeds the range of time zones.
    let end = date(9999, 12, 30).to_datetime(jiff::civil::Time::midnight());
    civil.to_datetime(clock).min(end).to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// The common name of a distinguished name.
fn common_name(name: &[u8]) -> Option<String> {
    let (.., text) = attributes(name)?.into_iter().find(|(id, ..)| *id == COMMON_NAME)?;
    Some(String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect())
}

/// The DNS names and addresses in what follows the key: two optional identifiers and the extensions.
fn alternative_names(mut rest: &[u8]) -> Option<(Vec<String>, Vec<IpAddr>)> {
    let mut extensions = loop {
        let (tag, content, after) = element(rest)?;
        if tag == EXTENSIONS {
            break of_tag(content, SEQUENCE)?.0;
        }
        rest = after;
    };
    while let Some((extension, after)) = of_tag(extensions, SEQUENCE) {
        let (id, value) = of_tag(extension, OBJECT_ID)?;
        let value = of_tag(value, BOOLEAN).map_or(value, |(_, value)| value);
        if id == ALTERNATIVE_NAMES {
            let (octets, _) = of_tag(value, OCTET_STRING)?;
            return names(of_tag(octets, SEQUENCE)?.0);
        }
        extensions = after;
    }
    None
}

/// The DNS names and addresses of a list of names; names of other kinds are left out.
fn names(mut list: &[u8]) -> Option<(Vec<String>, Vec<IpAddr>)> {
    let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
    while !list.is_empty() {
        let (tag, content, after) = element(list)?;
        match tag {
            DNS_NAME => {
                dns_names.push(String::from_utf8_lossy(content).chars().filter(|c| !c.is_control()).collect())
            }
            ADDRESS => addresses.extend(address(content)),
            _ => {}
        }
        list = after;
    }
    Some((dns_names, addresses))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_harness::mutate;

    /// Common name `system:node:a`, valid in 2025.
    fn der() -> Vec<u8> {
        let names = ["a".to_owned(), "192.0.2.1".to_owned(), "2001:db8::1".to_owned()];
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2025, 1, 2);
        parameters.not_after = rcgen::date_time_ymd(2025, 12, 31);
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "system:node:a");
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_tells_its_time_and_its_subject() {
        let certificate = Certificate::read(&der()).unwrap();
        assert_eq!(certificate.common_name, "system:node:a");
        assert_eq!(certificate.dns_names, ["a"]);
        assert_eq!(
            certificate.addresses,
            ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(certificate.not_before.to_string(), "2025-01-02T00:00:00Z");
        assert_eq!(certificate.not_after.to_string(), "2025-12-31T00:00:00Z");
        let at = |text: &str| certificate.invalid_at(text.parse().unwrap());
        assert_eq!(at("2025-06-01T00:00:00Z"), None);
        assert_eq!(
            at("2026-01-01T00:00:00.5Z").unwrap(),
            "expired at 2025-12-31T00:00:00Z, and this node's clock says 2026-01-01T00:00:00Z"
        );
        assert!(at("1970-01-01T00:00:00Z").unwrap().contains("set the clock"));
    }

    #[test]
    fn both_forms_of_times_are_read() {
        let text = |tag, text: &str| time(tag, text.as_bytes()).map(|t| t.to_string());
        assert_eq!(text(UTC_TIME, "491231235959Z").unwrap(), "2049-12-31T23:59:59Z");
        assert_eq!(text(UTC_TIME, "500101000000Z").unwrap(), "1950-01-01T00:00:00Z");
        assert_eq!(text(GENERALIZED_TIME, "20500101000000Z").unwrap(), "2050-01-01T00:00:00Z");
        assert!(text(GENERALIZED_TIME, "99991231235959Z").unwrap().starts_with("9999-12-30"));
        for bad in ["", "Z", "490231000000Z", "49123123595Z", "4912312359590", "491231235959+0100"] {
            assert_eq!(text(UTC_TIME, bad), None, "{bad}");
        }
    }

    #[test]
    fn mutated_certificates_are_read_or_not_and_nothing_panics() {
        let whole = der();
        let make = |rng: &mut berth_harness::rng::Rng| {
            let mut der = whole.clone();
            mutate::bytes(rng, &mut der, &[b"\x30\x84\xff\xff\xff\xff", b"\x30\x80", b"\x17\x0d", b"\x31"]);
            mutate::Bytes(der)
        };
        mutate::run("certificates", make, |der| match Certificate::read(der) {
            None => mutate::Reached::Checks,
            Some(_) => mutate::Reached::Taken,
        });
    }
}
