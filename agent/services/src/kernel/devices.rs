//! Devices, addresses and default routes of the host, and the kernel's events about their changes.

use crate::{DefaultRoute, Device, KernelNetwork, LinkLayer};
use berth_sys::netlink::{RouteEvents, route_request};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use nix::libc;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// Deadline of a netlink request in seconds. The kernel answers within the call, so the deadline only bounds
/// a defect.
const DEADLINE_S: i64 = 5;

/// The flag `NLM_F_DUMP`.
const DUMP: u16 = 0x300;

/// Whether the name is that of a pod's device. Such devices come and go, and their addresses belong to the
/// pod network.
fn is_pods(name: &str) -> bool {
    name.starts_with("veth")
}

/// The name of the device with that index, where the device exists.
pub(super) fn name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
    // The name is empty for an unused index.
    (!name.is_empty()).then_some(name)
}

/// Reads devices, addresses and default routes of the calling thread's network namespace. Loopback is
/// included. Devices of pods are left out unless `named` lists them. Blocks for some 100 microseconds, and
/// longer where the main table has very many routes.
///
/// # Errors
/// The kernel rejects a request.
pub fn read_network(named: &[String]) -> io::Result<KernelNetwork> {
    let dump = |message| route_request(message, DUMP, DEADLINE_S);
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut devices: BTreeMap<String, Device> = BTreeMap::new();
    for link in dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = link else { continue };
        let Some(name) = link_name(&link) else { continue };
        if is_pods(&name) && !named.contains(&name) {
            continue;
        }
        names.insert(link.header.index, name.clone());
        devices.insert(name, device(&link));
    }
    // Addresses that may go away, or must not be used yet, come last.
    let mut weak: Vec<(u32, IpAddr)> = Vec::new();
    for address in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(address) = address else { continue };
        let index = address.header.index;
        let Some(ip) = address_of(&address) else { continue };
        let device = names.get(&index).filter(|name| !is_pods(name)).and_then(|name| devices.get_mut(name));
        let Some(device) = device else { continue };
        if is_weak(&address) { weak.push((index, ip)) } else { device.addresses.push(ip) }
    }
    for (index, ip) in weak {
        if let Some(device) = names.get(&index).and_then(|name| devices.get_mut(name)) {
            device.addresses.push(ip);
        }
    }
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family;
        let messages = match dump(RouteNetlinkMessage::GetRoute(asked)) {
            Ok(messages) => messages,
            // The kernel does not support this family.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
            Err(e) => return Err(e),
        };
        routes.extend(messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => default_route(route),
            _ => None,
        }));
    }
    Ok(KernelNetwork { devices, routes })
}

fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn device(link: &LinkMessage) -> Device {
    let kind = |infos: &[LinkInfo]| infos.iter().any(|i| matches!(i, LinkInfo::Kind(InfoKind::Bridge)));
    Device {
        index: link.header.index,
        addresses: Vec::new(),
        bridge: link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkInfo(infos) if kind(infos))),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        layer: match link.header.link_layer_type {
            LinkLayerType::Ether => LinkLayer::Ethernet,
            LinkLayerType::None
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Rawip => LinkLayer::Layer3,
            _ => LinkLayer::Other,
        },
    }
}

/// The device's own address. On a point-to-point link `IFA_ADDRESS` is the peer's.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

/// Whether the address is temporary, deprecated, or not yet known to be unique.
fn is_weak(message: &AddressMessage) -> bool {
    let flags = message.header.flags;
    let v6 = message.header.family == AddressFamily::Inet6;
    let passing =
        AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed | AddressHeaderFlags::Deprecated;
    // For an IPv4 address the same bit means "secondary". The kernel already lists secondary addresses after
    // their primary one.
    flags.intersects(passing) || v6 && flags.contains(AddressHeaderFlags::Secondary)
}

/// The route as a default route, where it is one of the main table and of type unicast.
fn default_route(route: &RouteMessage) -> Option<DefaultRoute> {
    let header = &route.header;
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let main = u32::from(RouteHeader::RT_TABLE_MAIN);
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || table.unwrap_or(u32::from(header.table)) != main
    {
        return None;
    }
    let mut found = DefaultRoute {
        v6: header.address_family == AddressFamily::Inet6,
        metric: 0,
        source: None,
        devices: Vec::new(),
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::Oif(index) => found.devices.push(*index),
            RouteAttribute::MultiPath(hops) => found.devices.extend(hops.iter().map(|h| h.interface_index)),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => found.source = Some((*ip).into()),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => found.source = Some((*ip).into()),
            _ => {}
        }
    }
    Some(found)
}

/// Events of links, addresses and routes in the network namespace in which the socket was opened. Clones
/// share one socket.
#[derive(Debug, Clone)]
pub struct DeviceEvents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    events: RouteEvents,
    named: Vec<String>,
}

impl DeviceEvents {
    /// Opens the event socket. `named` are devices that count although their name is like that of a pod's
    /// device.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open(named: Vec<String>) -> io::Result<DeviceEvents> {
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
        ];
        Ok(DeviceEvents(Arc::new(Inner { events: RouteEvents::open(&groups)?, named })))
    }

    /// Reads the pending events. Returns whether the network must be read again.
    pub fn drain(&self) -> bool {
        match self.0.events.drain() {
            Ok(messages) => messages.iter().any(|message| self.matters(message)),
            // Lost or unreadable events may have been relevant.
            Err(_lost) => true,
        }
    }

    fn matters(&self, message: &RouteNetlinkMessage) -> bool {
        let name = match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => link_name(link),
            RouteNetlinkMessage::NewAddress(a) | RouteNetlinkMessage::DelAddress(a) => {
                // A deleted device also sends an event of its own.
                name(a.header.index)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                return default_route(route).is_some();
            }
            _ => None,
        };
        name.is_some_and(|name| !is_pods(&name) || self.0.named.contains(&name))
    }
}

impl AsFd for DeviceEvents {
    /// The descriptor is readable while events are pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.events.as_fd()
    }
}
