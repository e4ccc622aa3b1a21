//! Addresses of the cluster's DNS on `lo`.
//!
//! The addresses stay when every process of the node's agent is dead, so that a restarted server
//! finds them. Only [`remove`] removes them, and only those that [`ensure`] added.
//!
//! An address added here has the protocol number [`MARK`] in the kernel (`IFA_PROTO`) and is listed
//! in `<runtime_state>/dns/addresses.json`. Both must agree before it is removed. Its scope is the
//! host, so the node never chooses it as a source address. All functions block.

use crate::error::Error;
use berth_core::roots::Roots;
use berth_sys::netlink::route_request;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope},
};
use nix::{
    libc::{EADDRNOTAVAIL, EEXIST},
    net::if_::if_nametoindex,
};
use std::{io, net::IpAddr};

/// Protocol number (`IFA_PROTO`) of the addresses added here. The kernel's own numbers end at 3.
pub const MARK: u8 = 186;

/// Deadline of a netlink request in seconds. The kernel answers at once.
const DEADLINE_S: i64 = 10;

/// The largest file of addresses in bytes.
const FILE_MAX: usize = 64 * 1024;

/// Adds these addresses to `lo`, as /32 or /128. An address that `lo` already has is left as it is.
///
/// # Errors
/// The kernel refused, or the file of addresses cannot be written; then nothing was added.
pub fn ensure(roots: &Roots, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut ours = recorded(roots)?;
    ours.extend(addresses);
    ours.sort_unstable();
    ours.dedup();
    // The file is written first: if the process ends between the two steps, no address stays on `lo` without an
    // entry in the file.
    let path = roots.dns_addresses_file();
    let text = serde_json::to_vec(&ours).map_err(|e| Error::File { path: path.clone(), source: e.into() })?;
    berth_sys::fs::write_atomic(&path, &text, 0o600).map_err(|source| Error::State { path, source })?;
    for address in addresses {
        let failed = |source| Error::Address { op: "add", address: *address, source };
        let message = RouteNetlinkMessage::NewAddress(of_lo(*address).map_err(failed)?);
        match route_request(message, NLM_F_CREATE | NLM_F_EXCL, DEADLINE_S) {
            Err(error) if error.raw_os_error() == Some(EEXIST) => {}
            done => drop(done.map_err(failed)?),
        }
    }
    Ok(())
}

/// Removes the addresses that [`ensure`] added, and returns the removed ones.
///
/// # Errors
/// The kernel refused.
pub fn remove(roots: &Roots) -> Result<Vec<IpAddr>, Error> {
    let mut removed = Vec::new();
    for address in recorded(roots)? {
        let failed = |source| Error::Address { op: "remove", address, source };
        if !marked(address).map_err(failed)? {
            continue;
        }
        match route_request(RouteNetlinkMessage::DelAddress(of_lo(address).map_err(failed)?), 0, DEADLINE_S) {
            Err(error) if error.raw_os_error() == Some(EADDRNOTAVAIL) => {}
            done => {
                done.map_err(failed)?;
                removed.push(address);
            }
        }
    }
    let path = roots.dns_addresses_file();
    match berth_sys::fs::remove_if_there(&path) {
        Ok(()) => Ok(removed),
        Err(source) => Err(Error::File { path, source }),
    }
}

fn recorded(roots: &Roots) -> Result<Vec<IpAddr>, Error> {
    let path = roots.dns_addresses_file();
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text =
        berth_sys::fs::read_limited(&path, FILE_MAX).map_err(|source| Error::State { path, source })?;
    // The file is replaced by rename, so a file that cannot be parsed was not written here.
    Ok(serde_json::from_slice(&text).unwrap_or_default())
}

fn of_lo(address: IpAddr) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.index = if_nametoindex("lo").map_err(io::Error::from)?;
    message.header.scope = AddressScope::Host;
    (message.header.family, message.header.prefix_len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Protocol(AddressProtocol::Other(MARK)),
    ];
    Ok(message)
}

/// Whether `lo` has the address with [`MARK`].
fn marked(address: IpAddr) -> io::Result<bool> {
    let ask = of_lo(address)?;
    let mut all = AddressMessage::default();
    all.header.family = ask.header.family;
    let answers = route_request(RouteNetlinkMessage::GetAddress(all), NLM_F_DUMP, DEADLINE_S)?;
    Ok(answers.iter().any(|answer| {
        let RouteNetlinkMessage::NewAddress(found) = answer else { return false };
        let has = |wanted: &AddressAttribute| found.attributes.contains(wanted);
        found.header.index == ask.header.index
            && found.header.prefix_len == ask.header.prefix_len
            && has(&AddressAttribute::Address(address))
            && has(&AddressAttribute::Protocol(AddressProtocol::Other(MARK)))
    }))
}
