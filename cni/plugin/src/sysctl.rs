//! Sysctls of our own devices, in the network namespace of the calling thread.

use crate::error::Error;
use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::PathBuf,
};

/// Address family of a sysctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// `net.ipv4`.
    V4,
    /// `net.ipv6`. A kernel without IPv6 has no such sysctl, which is no error.
    V6,
}

/// Sets `net.<family>.conf.<device>.<key>`.
pub(crate) fn set(family: Family, device: &str, key: &str, value: &'static str) -> Result<(), Error> {
    let net = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let path = PathBuf::from(format!("/proc/sys/net/{net}/conf/{device}/{key}"));
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(value.as_bytes()));
    match written {
        Err(e) if e.kind() == io::ErrorKind::NotFound && family == Family::V6 && !ipv6() => Ok(()),
        other => other.map_err(|source| Error::Sysctl { path, value, source }),
    }
}

fn ipv6() -> bool {
    std::fs::exists("/proc/sys/net/ipv6").unwrap_or(true)
}
