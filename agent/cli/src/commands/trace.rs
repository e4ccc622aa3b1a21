//! `berth trace`: the decision for one connection, step by step.

use crate::{
    error::{self, Error},
    output::{self, Output},
    services::{
        self,
        family::MapFamily,
        names::Names,
        trace::{self, AddressKind},
    },
};
use berth_core::roots::Roots;
use berth_ebpf_abi::{Client, V4, V6};
use berth_ebpf_loader::{self as loader, Access, Datapath, Pins};
use berth_ebpf_tables::Net as _;
use clap::Args;
use std::net::{IpAddr, SocketAddr};

/// Options of `trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The client: a pod (namespace/pod, or less), its address, `node`, or
    /// `outside:ADDRESS[:PORT]`.
    src: String,
    /// The destination: address and port, `[address]:port` for IPv6.
    #[arg(value_parser = destination)]
    dst: SocketAddr,
    /// Trace a UDP datagram instead of a TCP connection.
    #[arg(long)]
    udp: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Parses the destination of a connection.
fn destination(text: &str) -> Result<SocketAddr, String> {
    text.parse().ok().ok_or_else(|| {
        "must be an address and a port, 10.96.0.1:80 or [fd00::1]:80; for a Service's name see `berth services NAME`"
            .to_owned()
    })
}

pub(crate) async fn run(roots: &Roots, args: &TraceArgs) -> Result<u8, Error> {
    let pins = services::pins(roots)?;
    let (names, pods) = services::names(roots, true).await;
    let datapath = Datapath::open(&pins, Access::Read)?;
    let clients = datapath.client.entries()?;
    let source = trace::find(&args.src, &pods, |ip| address_kind(&datapath, &clients, ip))?;
    let dst = SocketAddr::new(args.dst.ip().to_canonical(), args.dst.port());
    if dst.port() == 0 {
        return Err(Error::Usage("port 0 cannot be dialled: give the Service's port".to_owned()));
    }
    if dst.is_ipv4() {
        show::<V4>(&pins, &datapath, &names, &source, dst, &clients, args)
    } else {
        show::<V6>(&pins, &datapath, &names, &source, dst, &clients, args)
    }
}

/// Whether the maps have an address as one of a pod, of the node, or of neither.
fn address_kind(datapath: &Datapath, clients: &[(u64, Client)], ip: IpAddr) -> Result<AddressKind, Error> {
    fn of<A: MapFamily>(
        datapath: &Datapath,
        clients: &[(u64, Client)],
        addr: A,
    ) -> Result<AddressKind, Error> {
        let maps = A::maps(datapath);
        Ok(if clients.iter().any(|(_, c)| A::of_client(c) == addr) || maps.pod.get(&addr)?.is_some() {
            AddressKind::Pod
        } else if addr.is_loopback() || maps.node.get(&addr)?.is_some() {
            AddressKind::Node
        } else {
            AddressKind::Neither
        })
    }
    match (V4::of(ip), V6::of(ip)) {
        (Some(addr), _) => of(datapath, clients, addr),
        (_, Some(addr)) => of(datapath, clients, addr),
        (None, None) => Ok(AddressKind::Neither),
    }
}

/// The device by which the node's packets to this address leave, and whether our egress program is
/// attached to it.
fn egress_device(pins: &Pins, to: IpAddr) -> Result<Option<(String, bool)>, Error> {
    let failed = || Error::io(format!("ask for the route to {to}"));
    let Some(index) = berth_sys::netlink::route_device(to).map_err(failed())? else { return Ok(None) };
    let name = nix::net::if_::if_indextoname(index).map_err(|e| failed()(e.into()))?;
    let mut links = loader::devices(pins)?.into_iter();
    let hooked = links.any(|link| link.ifindex == index && link.live && link.place == loader::Place::Out);
    Ok(Some((name.to_string_lossy().into_owned(), hooked)))
}

fn show<A: MapFamily>(
    pins: &Pins,
    datapath: &Datapath,
    names: &Names,
    source: &trace::Source,
    dst: SocketAddr,
    clients: &[(u64, Client)],
    args: &TraceArgs,
) -> Result<u8, Error> {
    let Some(query) = trace::query::<A>(source, dst, args.udp, clients) else {
        let family = if A::V6 { "IPv6" } else { "IPv4" };
        return Err(Error::Usage(format!("{} has no {family} address to dial {dst} from", args.src)));
    };
    let now_s = u32::try_from(berth_sys::clock::monotonic().as_secs()).unwrap_or(u32::MAX);
    let traced = trace::pinned(datapath, now_s, &query, egress_device(pins, dst.ip())?)?;
    let page = trace::Page { names, query: &query, traced: &traced };
    match args.output {
        Output::Table => output::put(&page.text())?,
        Output::Json => output::put_json(&page.json())?,
    }
    Ok(if traced.end.passes() { error::OK } else { error::PROBLEM })
}
