//! Devices of the host: which there are, and the kernel's word that they changed.

use crate::Device;
use berth_sys::netlink::RouteEvents;
use netlink_packet_route::{RouteNetlinkMessage, link::LinkAttribute};
use nix::libc;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The pods' devices come and go, and what they bear is the pod network's.
fn is_pods(name: &str) -> bool {
    name.starts_with("veth")
}

/// The name of the device with that index, where there is one.
pub(super) fn name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
    // So it comes back for an index that nothing has.
    (!name.is_empty()).then_some(name)
}

/// Devices of the host with the addresses they have, loopback among them, the pods' not; but those that are named in any
/// case.
pub(super) fn list(named: &[String]) -> BTreeMap<String, Device> {
    let mut found: BTreeMap<String, Device> = BTreeMap::new();
    for a in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let pods = is_pods(&a.interface_name);
        if pods && !named.contains(&a.interface_name) {
            continue;
        }
        let v4 = a.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
        let v6 = || a.address.as_ref().and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()));
        let ip = v4.or_else(v6).filter(|_| !pods);
        found.entry(a.interface_name).or_default().addresses.extend(ip);
    }
    for (name, device) in &mut found {
        device.index = nix::net::if_::if_nametoindex(name.as_str()).unwrap_or(0);
        device.bridge = Path::new("/sys/class/net").join(name).join("bridge").exists();
    }
    found
}

/// What the kernel tells of links and addresses in the network namespace it was opened in. Cheap to clone; all clones
/// are one.
#[derive(Debug, Clone)]
pub struct DeviceEvents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    events: RouteEvents,
    /// Something was told that matters, and nobody took it yet.
    changed: AtomicBool,
    named: Vec<String>,
}

impl DeviceEvents {
    /// Begins to listen. `named` are devices that matter although their name is like that of a pod's.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open(named: Vec<String>) -> io::Result<DeviceEvents> {
        let events =
            RouteEvents::open(&[libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR])?;
        Ok(DeviceEvents(Arc::new(Inner { events, changed: AtomicBool::new(false), named })))
    }

    /// Reads what was told. Whether any of it matters: the engine is to be woken.
    pub fn drain(&self) -> bool {
        // What cannot be read or was lost may have been anything.
        let changed = match self.0.events.drain() {
            Ok(told) => told.iter().any(|message| self.matters(message)),
            Err(_lost) => true,
        };
        if changed {
            self.0.changed.store(true, Ordering::Release);
        }
        changed
    }

    /// Whether anything that matters was told since the last call.
    pub(super) fn take(&self) -> bool {
        self.drain();
        self.0.changed.swap(false, Ordering::AcqRel)
    }

    fn matters(&self, message: &RouteNetlinkMessage) -> bool {
        let name = match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                link.attributes.iter().find_map(|a| match a {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                })
            }
            RouteNetlinkMessage::NewAddress(a) | RouteNetlinkMessage::DelAddress(a) => {
                // Where the device is gone its own end is told besides.
                name(a.header.index)
            }
            _ => None,
        };
        name.is_some_and(|name| !is_pods(&name) || self.0.named.contains(&name))
    }
}

impl AsFd for DeviceEvents {
    /// Readable when something was told.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.events.as_fd()
    }
}
