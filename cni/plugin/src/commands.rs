//! The commands of the CNI specification.

use crate::{
    attachment::{self, Attachment},
    config::{Config, Network, Plan},
    environment::Environment,
    error::Error,
    names::NetworkId,
    netlink::Netlink,
    netns::Netns,
    output, retired,
};
use berth_cni_ipam::{Key, Options, Store, boot_id, now};
use serde_json::Value;
use std::{collections::BTreeSet, net::IpAddr};

/// Runs one command. `Some` is written to standard output.
pub(crate) fn run(environment: &Environment, input: &[u8]) -> Result<Option<Value>, Error> {
    let command = environment.command()?;
    if command == "VERSION" {
        return Ok(Some(output::versions(&crate::config::version_of(input))));
    }
    let config = Config::parse(input)?;
    match command {
        "ADD" => add(environment, &config).map(Some),
        "DEL" => del(environment, &config).map(|()| None),
        "CHECK" => check(environment, &config).map(|()| None),
        "GC" => gc(&config).map(|()| None),
        "STATUS" => status(&config).map(|()| None),
        other => Err(Error::Environment { name: "CNI_COMMAND", reason: format!("({other:?}) is unknown") }),
    }
}

fn add(environment: &Environment, config: &Config) -> Result<Value, Error> {
    // Everything is validated before the first change.
    let (network, plan) = (config.network()?, config.plan()?);
    let key = environment.key()?;
    let netns = Netns::open(&environment.netns()?)?;
    let mut host = open_host()?;
    let mtu = match plan.mtu {
        Some(mtu) => mtu,
        None => attachment::underlay_mtu(&mut host)?,
    };
    // The lock is not held while devices are created, so that other pods can get addresses
    // meanwhile.
    let addresses =
        open_store(&network)?.allocate(&plan.sets, &key, now()).map_err(address_error(&network))?;
    let attachment = specification(&network, &plan, &key, addresses, mtu);
    if let Err(error) = attachment.create(&mut host, &netns) {
        // The first failure is reported. What could not be undone is left for DEL, which follows.
        drop(remove(&mut host, &network, &key));
        return Err(error);
    }
    Ok(output::result(network.version, &attachment, netns.path(), &plan.dns))
}

/// Needs no namespace: the pair is retired by its host end. Succeeds if nothing is left to do.
fn del(environment: &Environment, config: &Config) -> Result<(), Error> {
    let (mut host, network) = (open_host()?, config.network()?);
    if retire(&mut host, &network, &environment.key()?)? && retired::delete_soon(&network.journal).is_err() {
        // No process can be started: the devices are deleted here.
        return retired::delete(&mut host);
    }
    Ok(())
}

fn check(environment: &Environment, config: &Config) -> Result<(), Error> {
    let (network, plan) = (config.network()?, config.plan()?);
    let key = environment.key()?;
    let netns = Netns::open(&environment.netns()?)?;
    let previous = config
        .previous()
        .ok_or_else(|| Error::Config { field: "prevResult".into(), reason: "is missing".into() })?;
    let addresses = open_store(&network)?.state().get(&key).unwrap_or_default().to_vec();
    let reported = addresses_of(previous);
    if addresses.is_empty() || !addresses.iter().all(|a| reported.contains(a)) {
        let found = format!("has addresses {addresses:?}, its result says {reported:?}");
        return Err(Error::Changed { subject: key.to_string(), found });
    }
    let mut host = open_host()?;
    // The device's MTU was chosen at ADD; the default route may have changed since.
    let id = NetworkId::of(&network.journal);
    let link = host.link(&id.host_end(&key)).map_err(|source| Error::Netlink {
        operation: "look up",
        subject: id.host_end(&key),
        source,
    })?;
    let mtu = plan.mtu.or(link.map(|l| l.mtu)).unwrap_or_default();
    specification(&network, &plan, &key, addresses, mtu).check(&mut host, &netns)
}

/// Removes every attachment of this network that is not in `cni.dev/valid-attachments`: those in
/// the journal, and devices that are missing in the journal (which may have been damaged).
fn gc(config: &Config) -> Result<(), Error> {
    let network = config.network()?;
    let valid = config.valid_attachments()?;
    let id = NetworkId::of(&network.journal);
    let mut host = open_host()?;
    let mut unused: BTreeSet<Key> =
        open_store(&network)?.state().allocations().map(|(key, _)| key.clone()).collect();
    let links = host.links().map_err(|source| Error::Netlink {
        operation: "list",
        subject: "links of the host".into(),
        source,
    })?;
    unused.extend(links.iter().filter_map(|l| id.key_of_alias(l.alias.as_deref()?)));
    let mut errors: Vec<Error> = Vec::new();
    for key in unused.difference(&valid) {
        errors.extend(retire(&mut host, &network, key).err());
    }
    // Also those of a process that was killed before it deleted them.
    errors.extend(retired::delete(&mut host).err());
    let failed = errors.len();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Error::Collect { network: network.name, failed, source: Box::new(first) }),
    }
}

fn status(config: &Config) -> Result<(), Error> {
    let (network, plan) = (config.network()?, config.plan()?);
    let room = open_store(&network)?.state().has_room(&plan.sets);
    room.map_err(|source| Error::Full { network: network.name, source })
}

/// Removes the device first, then the address, so that no pod gets an address that a device still
/// has.
fn remove(host: &mut Netlink, network: &Network, key: &Key) -> Result<(), Error> {
    attachment::delete(host, &NetworkId::of(&network.journal).host_end(key))?;
    release(network, key)
}

/// Takes the device out of use first, then gives the address back, so that no pod gets an address that a
/// device still has. Returns whether there is a device, which is to be deleted.
fn retire(host: &mut Netlink, network: &Network, key: &Key) -> Result<bool, Error> {
    let there = retired::retire(host, &NetworkId::of(&network.journal).host_end(key))?;
    release(network, key).map(|()| there)
}

fn release(network: &Network, key: &Key) -> Result<(), Error> {
    open_store(network)?.release(key, now()).map_err(address_error(network)).map(drop)
}

fn specification(network: &Network, plan: &Plan, key: &Key, addresses: Vec<IpAddr>, mtu: u32) -> Attachment {
    let id = NetworkId::of(&network.journal);
    let (host_mac, pod_mac) = id.macs(key);
    Attachment {
        host_end: id.host_end(key),
        ifname: key.ifname().to_owned(),
        host_mac,
        pod_mac,
        alias: id.alias(key),
        mtu,
        addresses,
        routes: plan.routes.clone(),
    }
}

fn open_host() -> Result<Netlink, Error> {
    Netlink::open().map_err(|source| Error::Netlink {
        operation: "open netlink socket in",
        subject: "the host".into(),
        source,
    })
}

fn open_store(network: &Network) -> Result<Store, Error> {
    let boot = boot_id().map_err(address_error(network))?;
    let options = Options { quarantine: network.quarantine, ..Options::new(boot) };
    Store::open(&network.journal, options, || survivors(network)).map_err(address_error(network))
}

/// Allocations that a damaged journal may have lost: the devices with this network's mark, with the
/// addresses of the routes through them. Errors leave devices out, which GC removes later.
fn survivors(network: &Network) -> Vec<(Key, Vec<IpAddr>)> {
    let id = NetworkId::of(&network.journal);
    let Ok(mut host) = open_host() else { return Vec::new() };
    let links = host.links().unwrap_or_default();
    let ours = links.iter().filter_map(|link| Some((link, id.key_of_alias(link.alias.as_deref()?)?)));
    ours.filter_map(|(link, key)| {
        let addresses = attachment::routed_to(&mut host, link.index).ok()?;
        (!addresses.is_empty()).then_some((key, addresses))
    })
    .collect()
}

fn address_error(network: &Network) -> impl FnOnce(berth_cni_ipam::Error) -> Error {
    let network = network.name.clone();
    move |source| Error::Addresses { network, source }
}

/// The addresses of a result of any supported version.
pub(crate) fn addresses_of(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
    ips.into_iter().flatten().filter_map(address).collect()
}
