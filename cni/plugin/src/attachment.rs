//! One container's interface: created, checked, removed.

use crate::{
    config::{ExtraRoute, GATEWAY_V4, GATEWAY_V6},
    error::Error,
    names::Mac,
    netlink::{Link, Netlink},
    netns::Netns,
    retired,
    sysctl::{self, Family},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};

/// Specification of a container's interface.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    /// Name of the host end.
    pub(crate) host_end: String,
    /// Name of the interface in the container.
    pub(crate) ifname: String,
    pub(crate) host_mac: Mac,
    pub(crate) pod_mac: Mac,
    /// The alias that marks the host end as ours.
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<ExtraRoute>,
}

impl Attachment {
    pub(crate) fn has_v4(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv4)
    }

    pub(crate) fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Creates the interface. If it exists and is complete, nothing changes; if it is incomplete,
    /// it is created again.
    pub(crate) fn create(&self, host: &mut Netlink, netns: &Netns) -> Result<(), Error> {
        if host.link(&self.host_end).map_err(netlink_error("look up", &self.host_end))?.is_some() {
            if self.check(host, netns).is_ok() {
                return Ok(());
            }
            delete(host, &self.host_end)?;
        }
        let index = match self.create_pair(host, netns) {
            // The name in the container may still be that of a pair that was retired a moment ago.
            Err(Error::Taken { .. }) => {
                retired::delete(host)?;
                self.create_pair(host, netns)?
            }
            made => made?,
        };
        self.set_host_sysctls()?;
        netns.run(|| self.set_up_pod_side())?;
        self.set_up_host_side(host, index)
    }

    /// Creates both ends in one request: the pod's end is created in its namespace and never
    /// visible in the host's.
    fn create_pair(&self, host: &mut Netlink, netns: &Netns) -> Result<u32, Error> {
        let end = |name: &str, mac: Mac| {
            vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Address(mac.0.to_vec()),
                LinkAttribute::Mtu(self.mtu),
            ]
        };
        let mut peer = LinkMessage::default();
        peer.attributes = end(&self.ifname, self.pod_mac);
        peer.attributes.push(LinkAttribute::NetNsFd(netns.file().as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes = end(&self.host_end, self.host_mac);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        match host.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => {}
            // The host end did not exist, so the name in the container is taken.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Taken { ifname: self.ifname.clone() });
            }
            Err(e) => return Err(netlink_error("create veth pair", &self.host_end)(e)),
        }
        let link = host.link(&self.host_end).map_err(netlink_error("look up", &self.host_end))?;
        link.map(|l| l.index).ok_or_else(|| missing(&self.host_end))
    }

    /// Set before the device is up, so that it never configures an address by itself or accepts
    /// router advertisements.
    fn set_host_sysctls(&self) -> Result<(), Error> {
        let set = |family, key, value| sysctl::set(family, &self.host_end, key, value);
        // Packets from a pod with a source address other than the pod's are dropped here. Packets
        // in the other direction never pass this check.
        set(Family::V4, "rp_filter", "1")?;
        set(Family::V4, "forwarding", "1")?;
        set(Family::V6, "accept_ra", "0")?;
        set(Family::V6, "accept_dad", "0")?;
        set(Family::V6, "addr_gen_mode", "1")?;
        set(Family::V6, "forwarding", "1")
    }

    /// Runs in the container's network namespace.
    fn set_up_pod_side(&self) -> Result<(), Error> {
        let mut pod = Netlink::open().map_err(netlink_error("open netlink socket in", "the container"))?;
        let link = pod.link(&self.ifname).map_err(netlink_error("look up", &self.ifname))?;
        let index = link.map(|l| l.index).ok_or_else(|| missing(&self.ifname))?;
        sysctl::set(Family::V6, &self.ifname, "accept_ra", "0")?;
        sysctl::set(Family::V6, &self.ifname, "accept_dad", "0")?;
        set_up(&mut pod, index, &self.ifname, None)?;
        for address in &self.addresses {
            add_address(&mut pod, index, *address)?;
        }
        if self.has_v4() {
            add_neighbour(&mut pod, index, GATEWAY_V4.into(), self.host_mac)?;
            add_route(&mut pod, index, GATEWAY_V4.into(), 32, None)?;
            add_route(&mut pod, index, Ipv4Addr::UNSPECIFIED.into(), 0, Some(GATEWAY_V4.into()))?;
        }
        if self.has_v6() {
            add_neighbour(&mut pod, index, GATEWAY_V6.into(), self.host_mac)?;
            add_route(&mut pod, index, GATEWAY_V6.into(), 128, None)?;
            add_route(&mut pod, index, Ipv6Addr::UNSPECIFIED.into(), 0, Some(GATEWAY_V6.into()))?;
        }
        for route in &self.routes {
            let to = route.destination;
            add_route(&mut pod, index, to.addr(), to.prefix_len(), Some(route.gateway))?;
        }
        Ok(())
    }

    fn set_up_host_side(&self, host: &mut Netlink, index: u32) -> Result<(), Error> {
        set_up(host, index, &self.host_end, Some(&self.alias))?;
        if self.has_v6() {
            add_address(host, index, GATEWAY_V6.into())?;
        }
        for address in &self.addresses {
            add_neighbour(host, index, *address, self.pod_mac)?;
            add_route(host, index, *address, full_prefix(*address), None)?;
        }
        Ok(())
    }

    /// Checks that both sides are as [`Attachment::create`] leaves them.
    pub(crate) fn check(&self, host: &mut Netlink, netns: &Netns) -> Result<(), Error> {
        let link = host.link(&self.host_end).map_err(netlink_error("look up", &self.host_end))?;
        let link = link.ok_or_else(|| missing(&self.host_end))?;
        check_link(&link, self.host_mac, self.mtu)?;
        if link.alias.as_deref() != Some(self.alias.as_str()) {
            return Err(changed(&self.host_end, "is marked as another's"));
        }
        for address in &self.addresses {
            check_route(host, link.index, *address, None, "route to the container's address")?;
            check_neighbour(host, link.index, *address, self.pod_mac)?;
        }
        netns.run(|| self.check_pod_side())
    }

    /// Runs in the container's network namespace.
    fn check_pod_side(&self) -> Result<(), Error> {
        let mut pod = Netlink::open().map_err(netlink_error("open netlink socket in", "the container"))?;
        let link = pod.link(&self.ifname).map_err(netlink_error("look up", &self.ifname))?;
        let link = link.ok_or_else(|| missing(&self.ifname))?;
        check_link(&link, self.pod_mac, self.mtu)?;
        let ask = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let there = pod.request(ask, netlink_packet_core::NLM_F_DUMP);
        let there = there.map_err(netlink_error("list addresses of", &self.ifname))?;
        let has = |wanted: IpAddr| {
            there.iter().any(|m| match m {
                RouteNetlinkMessage::NewAddress(m) => {
                    m.header.index == link.index && m.attributes.contains(&AddressAttribute::Address(wanted))
                }
                _ => false,
            })
        };
        if let Some(lost) = self.addresses.iter().find(|a| !has(**a)) {
            return Err(changed(&self.ifname, format!("has lost address {lost}")));
        }
        if self.has_v4() {
            check_neighbour(&mut pod, link.index, GATEWAY_V4.into(), self.host_mac)?;
            check_route(&mut pod, link.index, REMOTE_V4.into(), Some(GATEWAY_V4.into()), "default route")?;
        }
        if self.has_v6() {
            check_neighbour(&mut pod, link.index, GATEWAY_V6.into(), self.host_mac)?;
            check_route(&mut pod, link.index, REMOTE_V6.into(), Some(GATEWAY_V6.into()), "default route")?;
        }
        Ok(())
    }
}

/// Addresses that only a default route leads to: documentation prefixes (RFC 5737, RFC 3849).
const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The MTU of the device of the default route; 1500 if there is no default route.
pub(crate) fn underlay_mtu(host: &mut Netlink) -> Result<u32, Error> {
    for remote in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
        // A missing route is no failure: a node may have none, or only one of the other family.
        let Ok(Some((index, _))) = route_to(host, remote) else { continue };
        let link =
            host.link_by_index(index).map_err(netlink_error("look up device of", "the default route"))?;
        if let Some(link) = link {
            return Ok(link.mtu.clamp(1280, 65535));
        }
    }
    Ok(1500)
}

/// Deletes the pair with this host end, and with it all its routes and neighbours. `false` if it
/// does not exist.
pub(crate) fn delete(host: &mut Netlink, host_end: &str) -> Result<bool, Error> {
    host.delete_link(host_end).map_err(netlink_error("delete", host_end))
}

/// The destination addresses of routes through that device, without link-local ones.
pub(crate) fn routed_to(host: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, Error> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family;
        let routes = host.request(RouteNetlinkMessage::GetRoute(ask), netlink_packet_core::NLM_F_DUMP);
        for message in routes.map_err(netlink_error("list routes of", "the host"))? {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            if route.header.table != RouteHeader::RT_TABLE_MAIN
                || !route.attributes.contains(&RouteAttribute::Oif(index))
            {
                continue;
            }
            let destination = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
                RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
                _ => None,
            });
            let whole = |a: &IpAddr| route.header.destination_prefix_length == full_prefix(*a);
            let link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
            found.extend(destination.filter(|a| whole(a) && !link_local(a)));
        }
    }
    Ok(found)
}

fn set_up(netlink: &mut Netlink, index: u32, name: &str, alias: Option<&str>) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend(alias.map(|a| LinkAttribute::IfAlias(a.to_owned())));
    let answer = netlink.request(RouteNetlinkMessage::SetLink(message), 0);
    answer.map(drop).map_err(netlink_error("set up", name))
}

fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr) -> Result<(), Error> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full_prefix(address);
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    if address.is_ipv6() {
        // No other device can have the address, and a pod that must wait a second for duplicate
        // address detection starts a second later.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    let answer = netlink.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE);
    answer.map(drop).map_err(netlink_error("add address", &address.to_string()))
}

fn add_neighbour(netlink: &mut Netlink, index: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
    let mut message = neighbour(index, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let answer = netlink.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
    answer.map(drop).map_err(netlink_error("add neighbour", &address.to_string()))
}

/// Adds a route and replaces an existing one, which can only be left over from a device that had
/// the address before.
fn add_route(
    netlink: &mut Netlink,
    index: u32,
    destination: IpAddr,
    prefix: u8,
    gateway: Option<IpAddr>,
) -> Result<(), Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match gateway {
        None if destination.is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    if prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.into()));
    }
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.extend(gateway.map(|g| RouteAttribute::Gateway(g.into())));
    let answer = netlink.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE);
    answer.map(drop).map_err(netlink_error("add route to", &format!("{destination}/{prefix}")))
}

/// Device and gateway of the route to that address.
fn route_to(netlink: &mut Netlink, destination: IpAddr) -> io::Result<Option<(u32, Option<IpAddr>)>> {
    let mut ask = RouteMessage::default();
    ask.header.address_family = family(destination);
    ask.header.destination_prefix_length = full_prefix(destination);
    ask.attributes.push(RouteAttribute::Destination(destination.into()));
    let answers = netlink.request(RouteNetlinkMessage::GetRoute(ask), 0)?;
    Ok(answers.into_iter().find_map(|m| match m {
        RouteNetlinkMessage::NewRoute(route) => {
            let device = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })?;
            let gateway = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Gateway(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
                RouteAttribute::Gateway(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
                _ => None,
            });
            Some((device, gateway))
        }
        _ => None,
    }))
}

fn check_link(link: &Link, mac: Mac, mtu: u32) -> Result<(), Error> {
    if link.mac != mac.0 {
        return Err(changed(&link.name, format!("does not have hardware address {mac}")));
    }
    if !link.up {
        return Err(changed(&link.name, "is down"));
    }
    if link.mtu != mtu {
        return Err(changed(&link.name, format!("has MTU {} and not {mtu}", link.mtu)));
    }
    Ok(())
}

fn check_route(
    netlink: &mut Netlink,
    index: u32,
    destination: IpAddr,
    gateway: Option<IpAddr>,
    what: &str,
) -> Result<(), Error> {
    match route_to(netlink, destination) {
        Ok(Some(found)) if found == (index, gateway) => Ok(()),
        Ok(_) => Err(changed(&format!("{what} ({destination})"), "leads elsewhere")),
        Err(e) => Err(changed(&format!("{what} ({destination})"), format!("is missing: {e}"))),
    }
}

fn check_neighbour(netlink: &mut Netlink, index: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
    let subject = format!("neighbour entry {address}");
    let answers = netlink.request(RouteNetlinkMessage::GetNeighbour(neighbour(index, address)), 0);
    let answers = answers.map_err(|e| changed(&subject, format!("is missing: {e}")))?;
    let good = answers.iter().any(|m| match m {
        RouteNetlinkMessage::NewNeighbour(m) => {
            m.header.state == NeighbourState::Permanent
                && m.attributes.contains(&NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()))
        }
        _ => false,
    });
    if good { Ok(()) } else { Err(changed(&subject, format!("is not permanently {mac}"))) }
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    }));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn netlink_error(operation: &'static str, subject: &str) -> impl FnOnce(io::Error) -> Error {
    let subject = subject.to_owned();
    move |source| Error::Netlink { operation, subject, source }
}

fn changed(subject: &str, found: impl Into<String>) -> Error {
    Error::Changed { subject: subject.to_owned(), found: found.into() }
}

fn missing(name: &str) -> Error {
    changed(name, "is missing")
}
