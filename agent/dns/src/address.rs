//! The addresses of the cluster's DNS on `lo`. They stay when every process of the node's agent is dead, so that a
//! server that comes back finds them; only [`remove`] takes them away, and only what was added here.
//!
//! An address of ours bears the protocol number [`MARK`] in the kernel (`IFA_PROTO`) and its name stands in
//! `<runtime_state>/dns/addresses.json`; both must agree before it is removed. Its scope is the host: never chosen as the
//! source of what the node sends. Blocks.

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
use std::{io, net::IpAddr, path::PathBuf};

/// The protocol number of our addresses; the kernel's own end at 3.
pub const MARK: u8 = 186;

/// The kernel answers at once; a deadline all the same, in seconds.
const DEADLINE_S: i64 = 10;

/// The file names at most so many bytes.
const RECORD_MAX: usize = 64 * 1024;

fn record(roots: &Roots) -> PathBuf {
    roots.runtime_state.join("dns/addresses.json")
}

/// Has `lo` bear these addresses, /32 or /128. One that is there already, whoever's, is left as it is.
///
/// # Errors
/// The kernel refused, or the record cannot be written; then nothing was added.
pub fn ensure(roots: &Roots, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut ours = recorded(roots)?;
    ours.extend(addresses);
    ours.sort_unstable();
    ours.dedup();
    // First, so that an end between the two leaves nothing behind that nobody removes.
    let path = record(roots);
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

/// Removes what [`ensure`] added. Returns what was removed.
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
    let path = record(roots);
    match berth_sys::fs::remove_if_there(&path) {
        Ok(()) => Ok(removed),
        Err(source) => Err(Error::File { path, source }),
    }
}

fn recorded(roots: &Roots) -> Result<Vec<IpAddr>, Error> {
    let path = record(roots);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text =
        berth_sys::fs::read_limited(&path, RECORD_MAX).map_err(|source| Error::State { path, source })?;
    // Replaced by rename; one that cannot be read was not written by us.
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

/// Whether `lo` bears the address with our mark.
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
