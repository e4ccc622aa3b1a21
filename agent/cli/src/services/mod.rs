//! `berth services`, `backends`, `trace` and `bpf`: what the Service tables in the kernel hold and do.
//!
//! The tables are read from their pins, read-only; names of Services come from the file that the agent leaves, names
//! of pods from the agent or from what it left. So everything works with the agent dead. `list`, `check`, `trace` and
//! `bpf` are pure: what was read becomes text or JSON.
//!
//! On failure: without pins nothing can be told, which is an error; without names ids and addresses are shown.

mod bpf;
mod check;
mod family;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden;
mod known;
mod list;
mod names;
mod pinned;
mod snapshot;
mod trace;

use crate::{
    commands::{Output, put_table},
    error::{self, Error},
    out, state,
    table::plain,
};
use berth_api::services::{self as file, ServicesFile};
use berth_core::roots::Roots;
use berth_ebpf_abi::{Client, V4, V6};
use berth_ebpf_loader::{self as loader, Access, Datapath, OBJECT, Pins};
use check::Findings;
use clap::Args;
use family::Net;
use known::Known;
use names::Names;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde_json::json;
use snapshot::{Port, Snapshot};
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

/// What is found inconsistent is looked at again after this: longer than replaced chunks stay.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// So many of the notices are told.
const NOTICES: usize = 10;

/// Options of `services`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// Check that the tables fit together, fit the Services' names, the node and its pods, and are asked by the programs,
    /// and that no Service lacks anything. Exits with 1 where not.
    #[arg(long, conflicts_with = "name")]
    check: bool,
    /// How to show them.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only this one: namespace/service, less where that is enough, or an address.
    name: Option<String>,
}

/// Options of `backends`.
#[derive(Debug, Args)]
pub struct BackendsArgs {
    /// How to show them.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Only those of this Service: namespace/service, less where that is enough, or an address.
    name: Option<String>,
}

/// Options of `trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// ClientIdentity dials: a pod (namespace/pod, or less), its address, `node`, or `outside:ADDRESS[:PORT]`.
    src: String,
    /// What is dialled: address and port, `[address]:port` for IPv6.
    #[arg(value_parser = destination)]
    dst: SocketAddr,
    /// A datagram; otherwise a TCP connection.
    #[arg(long)]
    udp: bool,
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Where a connection goes to.
fn destination(text: &str) -> Result<SocketAddr, String> {
    text.parse().ok().ok_or_else(|| {
        "must be an address and a port, 10.96.0.1:80 or [fd00::1]:80; for a Service's name see `berth services NAME`"
            .to_owned()
    })
}

/// The pins, where there are any.
fn pins(roots: &Roots) -> Result<Pins, Error> {
    let none = |why| Error::NoTables { path: roots.bpf_pins.clone(), why };
    let parent = roots.bpf_pins.parent().unwrap_or(Path::new("/"));
    match statfs(parent) {
        Err(nix::errno::Errno::ENOENT) => return Err(none("no such directory")),
        Err(e) => return Err(Error::io(format!("examine {}", parent.display()))(e.into())),
        Ok(found) if found.filesystem_type() != BPF_FS_MAGIC => {
            return Err(none("it is on no BPF file system"));
        }
        Ok(_) => {}
    }
    let there = roots.bpf_pins.try_exists();
    if !there.map_err(Error::io(format!("examine {}", roots.bpf_pins.display())))? {
        return Err(none("nothing is pinned; no agent has loaded the programs"));
    }
    Ok(Pins::new(&roots.bpf_pins))
}

/// What the agent named; a file that cannot be read names nothing.
fn named(roots: &Roots) -> Option<ServicesFile> {
    match file::read(roots) {
        Ok(Some(file)) => Some(file),
        Ok(None) => {
            out::tell("berth: Services are shown without names: the agent has left none");
            None
        }
        Err(e) => {
            out::tell(&format!("berth: Services are shown without names: {}", e.chain()));
            None
        }
    }
}

/// Names of Services and, where wanted, of pods.
async fn names(roots: &Roots, with_pods: bool) -> (Names, Vec<berth_api::view::PodView>) {
    let pods = match with_pods {
        false => Vec::new(),
        true => match state::read(roots, false).await {
            Ok(state) => {
                if let Some(offline) = &state.offline {
                    out::tell(&format!("berth: {}", offline.banner()));
                }
                state.pods
            }
            Err(e) => {
                out::tell(&format!("berth: pods are shown without names: {}", e.chain()));
                Vec::new()
            }
        },
    };
    (Names::new(named(roots), &pods), pods)
}

/// The Service ports of both families.
fn ports(datapath: &Datapath) -> Result<Vec<Port>, Error> {
    let mut ports = Snapshot::<V4>::read(datapath)?.ports();
    ports.extend(Snapshot::<V6>::read(datapath)?.ports());
    Ok(ports)
}

/// `berth services`.
pub(crate) async fn services(roots: &Roots, args: &ServicesArgs) -> Result<u8, Error> {
    let pins = pins(roots)?;
    if args.check {
        return check(roots, &pins, args.output).await;
    }
    let (names, _) = names(roots, false).await;
    let ports = names.narrow(ports(&Datapath::open(&pins, Access::Read)?)?, args.name.as_deref())?;
    match args.output {
        Output::Table => {
            put_table(list::services(&ports, &names), "No Services.")?;
            let old = names.notices.len().saturating_sub(NOTICES);
            names.notices.iter().skip(old).for_each(|notice| out::tell(&format!("berth: {}", plain(notice))));
        }
        Output::Json => out::put_json(&list::services_json(&ports, &names))?,
    }
    Ok(error::OK)
}

/// `berth backends`.
pub(crate) async fn backends(roots: &Roots, args: &BackendsArgs) -> Result<(), Error> {
    let pins = pins(roots)?;
    let (names, _) = names(roots, true).await;
    let ports = names.narrow(ports(&Datapath::open(&pins, Access::Read)?)?, args.name.as_deref())?;
    match args.output {
        Output::Table => put_table(list::backends(&ports, &names), "No backends."),
        Output::Json => out::put_json(&list::backends_json(&ports, &names)),
    }
}

/// One reading of everything, compared; with what is known of the node, where its agent or its files tell.
fn look(roots: &Roots, pins: &Pins, known: &Known) -> Result<(Findings, usize), Error> {
    // Unlike for the other commands a broken file is a finding.
    let (file, mut found) = match file::read(roots) {
        Ok(Some(file)) => (Some(file), Findings::new()),
        Ok(None) => (None, Findings::from(["services.json: missing, so Services have no names".to_owned()])),
        Err(e) => (None, Findings::from([format!("services.json: {}", e.chain())])),
    };
    let names = Names::new(file, &[]);
    // What a Service's owner was told is not as the Service wants it.
    found.extend(names.notices.iter().map(|notice| plain(notice)));
    found.extend(check::programs(&loader::report(pins, false)?, &loader::program_names(OBJECT)?));
    if let Err(e) = loader::check_pinned_maps(pins, OBJECT) {
        found.insert(Error::from(e).chain());
    }
    let mut seen = 0;
    match Datapath::open(pins, Access::Read) {
        Ok(datapath) => {
            let (v4, v6) = (Snapshot::<V4>::read(&datapath)?, Snapshot::<V6>::read(&datapath)?);
            seen = v4.services.len().saturating_add(v6.services.len());
            found.extend(check::tables(&v4, &names));
            found.extend(check::tables(&v6, &names));
            let clients = datapath.client.entries()?;
            found.extend(known.check::<V4>(&datapath, &clients)?);
            found.extend(known.check::<V6>(&datapath, &clients)?);
        }
        Err(e) => drop(found.insert(Error::from(e).chain())),
    }
    Ok((found, seen))
}

async fn check(roots: &Roots, pins: &Pins, output: Output) -> Result<u8, Error> {
    let (mut found, mut seen) = look(roots, pins, &Known::read(roots).await)?;
    if !found.is_empty() {
        tokio::time::sleep(SECOND_LOOK).await;
        let (again, now) = look(roots, pins, &Known::read(roots).await)?;
        found.retain(|line| again.contains(line));
        seen = now;
    }
    match output {
        Output::Json => out::put_json(&json!({
            "apiVersion": "berth/v1", "kind": "ServiceCheck", "entries": seen, "problems": found,
        }))?,
        Output::Table if found.is_empty() => out::put(&format!("{seen} entries, no problems.\n"))?,
        Output::Table => out::put(&found.iter().map(|line| format!("{line}\n")).collect::<String>())?,
    }
    Ok(if found.is_empty() { error::OK } else { error::PROBLEM })
}

/// `berth bpf`.
pub(crate) fn bpf(roots: &Roots, output: Output) -> Result<u8, Error> {
    let pins = pins(roots)?;
    let opened = Datapath::open(&pins, Access::Read);
    let counters = opened.as_ref().ok().map(|d| d.count.sums()).transpose()?;
    let refused = opened.map(drop).and_then(|()| loader::check_pinned_maps(&pins, OBJECT));
    let page = bpf::Page {
        pins: pins.root().display().to_string(),
        object: pins.loaded_digest()?,
        report: loader::report(&pins, true)?,
        counters: counters.unwrap_or_default(),
        refused: refused.err().map(|e| Error::from(e).chain()),
    };
    match output {
        Output::Table => out::put(&page.text())?,
        Output::Json => out::put_json(&page.json())?,
    }
    Ok(if page.problems().is_empty() { error::OK } else { error::PROBLEM })
}

/// `berth trace`.
pub(crate) async fn trace(roots: &Roots, args: &TraceArgs) -> Result<u8, Error> {
    let pins = pins(roots)?;
    let (names, pods) = names(roots, true).await;
    let datapath = Datapath::open(&pins, Access::Read)?;
    let clients = datapath.client.entries()?;
    let source = trace::find(&args.src, &pods, |ip| what(&datapath, &clients, ip))?;
    let dst = SocketAddr::new(args.dst.ip().to_canonical(), args.dst.port());
    if dst.port() == 0 {
        return Err(Error::Usage("port 0 is none that can be dialled".to_owned()));
    }
    if dst.is_ipv4() {
        follow::<V4>(&pins, &datapath, &names, &source, dst, &clients, args)
    } else {
        follow::<V6>(&pins, &datapath, &names, &source, dst, &clients, args)
    }
}

/// What an address is to this node, by the maps.
fn what(datapath: &Datapath, clients: &[(u64, Client)], ip: IpAddr) -> Result<trace::Is, Error> {
    fn of<A: Net>(datapath: &Datapath, clients: &[(u64, Client)], addr: A) -> Result<trace::Is, Error> {
        let maps = A::maps(datapath);
        Ok(if clients.iter().any(|(_, c)| A::of_client(c) == addr) || maps.pod.get(&addr)?.is_some() {
            trace::Is::Pod
        } else if addr.is_loopback() || maps.node.get(&addr)?.is_some() {
            trace::Is::Node
        } else {
            trace::Is::Neither
        })
    }
    match (V4::of(ip), V6::of(ip)) {
        (Some(addr), _) => of(datapath, clients, addr),
        (_, Some(addr)) => of(datapath, clients, addr),
        (None, None) => Ok(trace::Is::Neither),
    }
}

/// By which device the node's packets to this address leave, and whether our program sits there.
fn leaves(pins: &Pins, to: IpAddr) -> Result<Option<(String, bool)>, Error> {
    let failed = || Error::io(format!("ask for the route to {to}"));
    let Some(index) = berth_sys::netlink::route_device(to).map_err(failed())? else { return Ok(None) };
    let name = nix::net::if_::if_indextoname(index).map_err(|e| failed()(e.into()))?;
    let mut links = loader::devices(pins)?.into_iter();
    let hooked = links.any(|link| link.ifindex == index && link.live && link.place == loader::Place::Out);
    Ok(Some((name.to_string_lossy().into_owned(), hooked)))
}

fn follow<A: Net>(
    pins: &Pins,
    datapath: &Datapath,
    names: &Names,
    source: &trace::Source,
    dst: SocketAddr,
    clients: &[(u64, Client)],
    args: &TraceArgs,
) -> Result<u8, Error> {
    let Some(asked) = trace::question::<A>(source, dst, args.udp, clients) else {
        let family = if A::V6 { "IPv6" } else { "IPv4" };
        return Err(Error::Usage(format!("{} has no {family} address to dial {dst} from", args.src)));
    };
    let now_s = u32::try_from(berth_sys::clock::monotonic().as_secs()).unwrap_or(u32::MAX);
    let traced = trace::pinned(datapath, now_s, &asked, leaves(pins, dst.ip())?)?;
    let page = trace::Page { names, asked: &asked, traced: &traced };
    match args.output {
        Output::Table => out::put(&page.text())?,
        Output::Json => out::put_json(&page.json())?,
    }
    Ok(if traced.end.passes() { error::OK } else { error::PROBLEM })
}
