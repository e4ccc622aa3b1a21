//! One line of the journal.
//!
//! `<checksum> <kind> <fields>`. The checksum is FNV-1a of the rest of the line, in 16 hexadecimal
//! digits. Container ids and interface names contain no spaces, so fields need no quoting.

use std::{fmt, net::IpAddr, str::FromStr};

/// Owner of an address: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    container: String,
    ifname: String,
}

/// A container id or interface name that cannot be part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {text:?} {reason}")]
pub struct KeyError {
    /// `container id` or `interface name`.
    pub field: &'static str,
    /// The text, cut to 80 characters.
    pub text: String,
    /// Reason of the failure.
    pub reason: &'static str,
}

impl Key {
    /// Checks both texts by the rules of the CNI specification and of the kernel. A container id
    /// starts with a letter or digit, followed by letters, digits, `_`, `.`, `-` (at most 128
    /// characters here). An interface name has 1 to 15 characters without spaces, `/` and `:`, and
    /// is not `.` or `..`.
    pub fn new(container: &str, ifname: &str) -> Result<Key, KeyError> {
        let reject =
            |field, text: &str, reason| KeyError { field, text: text.chars().take(80).collect(), reason };
        let alnum = |b: u8| b.is_ascii_alphanumeric();
        if container.is_empty() || container.len() > 128 {
            return Err(reject("container id", container, "must have 1 to 128 characters"));
        }
        if !container.bytes().next().is_some_and(alnum)
            || !container.bytes().all(|b| alnum(b) || matches!(b, b'_' | b'.' | b'-'))
        {
            return Err(reject(
                "container id",
                container,
                "must be letters, digits, '_', '.' and '-', the first a letter or digit",
            ));
        }
        if ifname.is_empty() || ifname.len() > 15 {
            return Err(reject("interface name", ifname, "must have 1 to 15 characters"));
        }
        if !ifname.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
            || matches!(ifname, "." | "..")
        {
            return Err(reject(
                "interface name",
                ifname,
                "may not hold spaces, '/' or ':' nor be '.' or '..'",
            ));
        }
        Ok(Key { container: container.into(), ifname: ifname.into() })
    }

    /// `CNI_CONTAINERID`.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// `CNI_IFNAME`.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.ifname)
    }
}

/// A line of the journal. All times are milliseconds on `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The first line: the format, and the boot of all other lines.
    Header {
        /// The boot id.
        boot: String,
    },
    /// Addresses were allocated to a key, one from each set of ranges, in order.
    Allocate {
        /// The key.
        key: Key,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The addresses of a key were released.
    Release {
        /// The key.
        key: Key,
        /// Time of the release.
        at: u64,
    },
    /// An address was released. Only in a rewritten journal, in place of its history.
    Quarantine {
        /// The address.
        address: IpAddr,
        /// Time of the release.
        since: u64,
    },
    /// The last address allocated from a set. Only in a rewritten journal, in place of its history.
    Cursor {
        /// Index of the set in the configuration.
        set: usize,
        /// The address.
        address: IpAddr,
    },
}

const FORMAT: &str = "berth-ipam-1";

impl Record {
    /// The record as a line, with its line feed.
    pub fn to_line(&self) -> String {
        let body = match self {
            Record::Header { boot } => format!("h {FORMAT} {boot}"),
            Record::Allocate { key, addresses } => {
                let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                format!("a {} {} {}", key.container, key.ifname, list.join(","))
            }
            Record::Release { key, at } => format!("r {} {} {at}", key.container, key.ifname),
            Record::Quarantine { address, since } => format!("q {address} {since}"),
            Record::Cursor { set, address } => format!("c {set} {address}"),
        };
        format!("{:016x} {body}\n", checksum(body.as_bytes()))
    }

    /// Parses a line without its line feed. None if it is damaged or of an unknown kind.
    pub fn parse(line: &[u8]) -> Option<Record> {
        let line = std::str::from_utf8(line).ok()?;
        let (sum, body) = line.split_once(' ')?;
        if sum.len() != 16 || u64::from_str_radix(sum, 16).ok()? != checksum(body.as_bytes()) {
            return None;
        }
        let mut fields = body.split(' ');
        let record = match fields.next()? {
            "h" => {
                if fields.next()? != FORMAT {
                    return None;
                }
                Record::Header { boot: fields.next()?.to_owned() }
            }
            "a" => {
                let key = Key::new(fields.next()?, fields.next()?).ok()?;
                let addresses = fields.next()?.split(',').map(|a| a.parse().ok()).collect::<Option<_>>()?;
                Record::Allocate { key, addresses }
            }
            "r" => Record::Release {
                key: Key::new(fields.next()?, fields.next()?).ok()?,
                at: next(&mut fields)?,
            },
            "q" => Record::Quarantine { address: next(&mut fields)?, since: next(&mut fields)? },
            "c" => Record::Cursor { set: next(&mut fields)?, address: next(&mut fields)? },
            _ => return None,
        };
        fields.next().is_none().then_some(record)
    }
}

fn next<'a, T: FromStr>(fields: &mut impl Iterator<Item = &'a str>) -> Option<T> {
    fields.next()?.parse().ok()
}

/// FNV-1a, 64 bits. Detects accidental damage only.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_is_read_back() {
        let key = Key::new("c0ffee", "eth0").unwrap();
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        for record in [
            Record::Header { boot: "b-1".into() },
            Record::Allocate { key: key.clone(), addresses: vec![ip("10.0.0.1"), ip("fd00::1")] },
            Record::Release { key, at: 17 },
            Record::Quarantine { address: ip("10.0.0.1"), since: 0 },
            Record::Cursor { set: 1, address: ip("fd00::1") },
        ] {
            let line = record.to_line();
            let bytes = line.strip_suffix('\n').unwrap().as_bytes();
            assert_eq!(Record::parse(bytes), Some(record));
            for at in 0..bytes.len() {
                let mut bent = bytes.to_vec();
                bent[at] ^= 1;
                assert_eq!(Record::parse(&bent), None, "bit flipped at {at} in {line:?}");
                assert_eq!(Record::parse(&bytes[..at]), None, "cut at {at} in {line:?}");
            }
        }
    }

    #[test]
    fn keys_that_would_break_a_line_or_a_path_are_refused() {
        for (container, ifname) in [
            ("", "eth0"),
            ("a b", "eth0"),
            ("../x", "eth0"),
            ("a\n", "eth0"),
            ("a", ""),
            ("a", "eth 0"),
            ("a", ".."),
            ("a", "a/b"),
            ("a", "0123456789abcdef"),
        ] {
            assert!(Key::new(container, ifname).is_err(), "{container:?} {ifname:?}");
        }
        assert!(Key::new(&"x".repeat(129), "eth0").is_err());
        assert_eq!(Key::new("A_b.c-1", "net1").unwrap().to_string(), "A_b.c-1/net1");
    }
}
