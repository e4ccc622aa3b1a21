//! The older `ip_tables` of the kernel (`iptables-legacy`) in the calling thread's network namespace: what their tables hold,
//! by the kernel's socket options. Nothing is changed.
//!
//! Numbers and layouts: `include/uapi/linux/netfilter_ipv4/ip_tables.h` and `netfilter_ipv6/ip6_tables.h`.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; the same for IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// Bytes of `struct ipt_getinfo`, and where its last field is: the size of the table's entries.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;

/// Bytes before the entries in `struct ipt_get_entries`, and where the size is.
const HEAD: usize = 40;
const HEAD_SIZE: usize = 32;

/// Most bytes of a table that are read: some 100,000 rules.
const MOST: usize = 64 << 20;

/// A table with the bytes of its entries: rules, and the names of its chains as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTable {
    /// The table's name: `nat`, `filter`, ...
    pub name: String,
    /// Whether it is the one of IPv6.
    pub v6: bool,
    /// The entries, as the kernel has them.
    pub entries: Vec<u8>,
}

impl LegacyTable {
    /// Whether a chain of this name is in the table.
    pub fn has_chain(&self, chain: &str) -> bool {
        // The name stands behind the zero of its target's revision.
        let text = [&[0], chain.as_bytes(), &[0]].concat();
        self.entries.windows(text.len()).any(|window| window == text)
    }
}

/// The tables that exist. One that nobody has used in this namespace is not asked for: the question would make it.
///
/// # Errors
/// The kernel refuses.
pub fn legacy_tables() -> io::Result<Vec<LegacyTable>> {
    let mut tables = Vec::new();
    for v6 in [false, true] {
        let file = if v6 {
            "/proc/thread-self/net/ip6_tables_names"
        } else {
            "/proc/thread-self/net/ip_tables_names"
        };
        let names = match fs::read_to_string(file) {
            Ok(names) => names,
            // The kernel has no such tables.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for name in names.lines().filter(|name| !name.is_empty()) {
            tables.extend(entries(name, v6)?.map(|entries| LegacyTable {
                name: name.to_owned(),
                v6,
                entries,
            }));
        }
    }
    Ok(tables)
}

/// The entries of a table; `None` where it has gone meanwhile or is too large to be read.
fn entries(table: &str, v6: bool) -> io::Result<Option<Vec<u8>>> {
    let socket = if v6 {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    }?;
    let level = if v6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    // A table that another program changes between the two questions has another size: `EAGAIN`.
    for _ in 0..3 {
        let mut info = named(table, INFO);
        match ask(&socket, level, GET_INFO, &mut info) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            asked => asked?,
        }
        let size =
            info.get(INFO_SIZE..INFO).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let length = usize::try_from(size).map_err(io::Error::other)?;
        if length > MOST {
            return Ok(None);
        }
        let mut all = named(table, HEAD.saturating_add(length));
        if let Some(place) = all.get_mut(HEAD_SIZE..HEAD_SIZE + 4) {
            place.copy_from_slice(&size.to_ne_bytes());
        }
        match ask(&socket, level, GET_ENTRIES, &mut all) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            asked => {
                asked?;
                return Ok(Some(all.split_off(HEAD)));
            }
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Zeroed bytes that begin with a table's name.
fn named(table: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    // XT_TABLE_MAXNAMELEN, with the end of the text.
    for (to, from) in bytes.iter_mut().take(31).zip(table.as_bytes()) {
        *to = *from;
    }
    bytes
}

fn ask(socket: &UdpSocket, level: i32, what: i32, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes at most `length` bytes of `bytes`, and both outlive the call.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, what, bytes.as_mut_ptr().cast(), &raw mut length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_found_by_its_whole_name() {
        let table =
            LegacyTable { name: "nat".into(), v6: false, entries: b"ERROR\0\0KUBE-SERVICES\0..".to_vec() };
        assert!(table.has_chain("KUBE-SERVICES"));
        assert!(!table.has_chain("KUBE-SERVICE"));
        assert!(!table.has_chain("SERVICES"));
    }
}
