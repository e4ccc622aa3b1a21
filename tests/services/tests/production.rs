//! A node with the default roots: hooks for the whole machine, no `--uplink`, no `--node-ip`, cluster DNS on
//! `lo`, masquerade, and containerd's stock network (bridge with ipMasq, portmap). A mount namespace, a
//! cgroup and a network namespace stand for the machine, so `/run`, `/etc`, `/var/lib` and the cgroup roots
//! are the node's own.

mod production {
    pub(crate) mod machine;
    pub(crate) mod node;
    pub(crate) mod outside;
}
#[path = "support/mod.rs"]
mod support;

use anyhow::{Context, Result, ensure};
use berth_ebpf_loader::{Access, Datapath, DeviceRole, Pins, Place, attach_device, devices};
use berth_harness::netns::run;
use berth_harness::wait::{self, PATIENCE};
use production::{
    machine,
    node::Production,
    outside::{Outside, dial, get},
};
use std::process::Command;

/// Address outside the machine to which the node's default route leads.
const OUTSIDE: &str = "198.51.100.254";

#[test]
fn a_node_of_the_defaults_finds_its_addresses_and_uplinks_and_follows_them() {
    let done = if machine::is_inside() { inside() } else { machine::run_inside(&support::plain().unwrap()) };
    if let Err(error) = done {
        panic!("{error:?}");
    }
}

fn inside() -> Result<()> {
    machine::make_own()?;
    let node = Production::new()?;
    let socket = machine::outside()?;
    let told = scenario(&node, Outside(&socket));
    if told.is_err() {
        support::tell(&format!("the agent's last words:\n{}", node.node.last_words()));
    }
    let ended = node.end();
    told.and(ended)
}

fn scenario(node: &Production, outside: Outside<'_>) -> Result<()> {
    ip("link set lo up")?;
    // An address on `lo` that is not the node's address.
    ip("address add 203.0.113.9/32 dev lo")?;
    node.start_containerd()?;
    node.start_agent()?;
    node.apply_all()?;
    late_address(node, outside)?;
    names_of_the_host(node)?;
    other_address(node, outside)?;
    checked(node)?;
    next_agents(node, outside)?;
    other_devices(node, outside)
}

/// The machine gets its first address after the agent's start.
fn late_address(node: &Production, outside: Outside<'_>) -> Result<()> {
    let problems = wait::some("the agent says that there is no address", PATIENCE, || {
        let problems = node.problems().ok()?;
        problems.contains("no device has an address for the node").then_some(problems)
    })?;
    ensure!(problems.contains("no device is an uplink"), "{problems}");
    // Pods become ready by the stock conflist with masquerade and portmap.
    node.node.ready("default/web")?;
    let web = node.node.ready("default/on-host")?;
    ensure!(web.status()["hostIP"] == "127.0.0.1", "{}", web.status());

    outside.join("uplink", &format!("{OUTSIDE}/24"))?;
    ip("link set uplink up")?;
    ip("address add 198.51.100.1/24 dev uplink")?;
    ip(&format!("route add default via {OUTSIDE}"))?;
    reached(node, outside, "198.51.100.1", &["uplink"])?;
    ensure!(node.problems()?.is_empty(), "{}", node.problems()?);
    // The plugin portmap serves the host port.
    wait::ok("the host port answers", PATIENCE, || outside.get("198.51.100.1:8088"))?;
    Ok(())
}

/// Processes of the host, and pods in the host's network, resolve names and reach Services.
fn names_of_the_host(node: &Production) -> Result<()> {
    wait::ok("the host resolves a name of the cluster", PATIENCE, || {
        let out =
            run(Command::new("busybox").args(["nslookup", "web.default.svc.cluster.local", "10.96.0.10"]))?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(said.contains("10.96.0.50"), "{said}");
        Ok(())
    })?;
    ensure!(get("10.96.0.50:80")? == "web", "the host does not reach the Service");
    for pod in ["on-host", "client"] {
        let fetch = ["timeout", "5", "wget", "-q", "-O", "-", "http://web.default.svc.cluster.local/"];
        let said = wait::ok("a pod fetches by name", PATIENCE, || {
            node.node.exec(&format!("default/{pod}/main"), &fetch)
        })?;
        ensure!(said.trim() == "web", "{pod}: {said}");
    }
    let trace = node.node.berth(&["trace", "node", "10.96.0.10:53", "--udp"])?;
    let said = String::from_utf8_lossy(&trace.stdout).into_owned();
    ensure!(said.contains("it goes by device lo"), "{said}");
    let trace = node.node.berth(&["trace", "node", "10.96.200.200:80"])?;
    let said = String::from_utf8_lossy(&trace.stdout).into_owned();
    ensure!(said.contains("refused: EHOSTUNREACH"), "{said}");
    // The hook must refuse the connection as `berth trace` reports.
    let refused = std::net::TcpStream::connect("10.96.200.200:80").map_err(|e| e.kind());
    ensure!(
        refused.is_err_and(|kind| kind == std::io::ErrorKind::HostUnreachable),
        "an address of no Service"
    );
    Ok(())
}

/// The uplink's address changes, as after a new DHCP lease.
fn other_address(node: &Production, outside: Outside<'_>) -> Result<()> {
    ip("address del 198.51.100.1/24 dev uplink")?;
    ip("address add 198.51.100.2/24 dev uplink")?;
    ip(&format!("route replace default via {OUTSIDE}"))?;
    reached(node, outside, "198.51.100.2", &["uplink"])
}

/// `berth services --check` passes on correct tables and reports removed entries. The next agent restores
/// them.
fn checked(node: &Production) -> Result<()> {
    let check = || -> Result<(bool, String)> {
        let out = node.node.berth(&["services", "--check"])?;
        Ok((out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned()))
    };
    let (well, said) = check()?;
    ensure!(well, "{said}");
    let maps = Datapath::open(&Pins::new(&node.node.roots.bpf_pins), Access::Write)?;
    for (address, _) in maps.node4.entries()? {
        maps.node4.delete(&address)?;
    }
    for (cookie, _) in maps.client.entries()? {
        maps.client.delete(&cookie)?;
    }
    let (well, said) = check()?;
    ensure!(!well && said.contains("NODE4 198.51.100.2: missing"), "{said}");
    ensure!(said.contains("CLIENT") && said.contains("counts as the node"), "{said}");
    Ok(())
}

/// The agent after a kill keeps the node's address and detaches a program that an older agent had attached to
/// `lo`.
fn next_agents(node: &Production, outside: Outside<'_>) -> Result<()> {
    node.node.kill_agent()?;
    let pins = Pins::new(&node.node.roots.bpf_pins);
    attach_device(&pins, 1, DeviceRole::Uplink).context("attach to lo, as agents once did")?;
    ensure!(dial("10.96.0.10:53").is_err(), "the leak guard at lo lets DNS through: the test shows nothing");
    node.start_agent()?;
    reached(node, outside, "198.51.100.2", &["uplink"])?;
    wait::until("cluster DNS answers the host again", PATIENCE, || dial("10.96.0.10:53").is_ok())
}

/// The node's address moves to a bridge, and a layer-3 device gets an address as well.
fn other_devices(node: &Production, outside: Outside<'_>) -> Result<()> {
    for words in [
        "tuntap add dev tun0 mode tun",
        "address add 10.8.0.2/24 dev tun0",
        "link set tun0 up",
        "link add br0 type bridge",
        "link set br0 up",
        "address del 198.51.100.2/24 dev uplink",
        "link set uplink master br0",
        "address add 198.51.100.3/24 dev br0",
    ] {
        ip(words)?;
    }
    ip(&format!("route replace default via {OUTSIDE}"))?;
    reached(node, outside, "198.51.100.3", &["br0"])?;
    wait::until("the agent says what it does not attach to", PATIENCE, || {
        node.problems().is_ok_and(|p| p.contains("device tun0 cannot be an uplink"))
    })
}

/// Waits until `hostIP` is the address, node ports answer there from outside and from the host, and exactly
/// these uplinks have programs.
fn reached(node: &Production, outside: Outside<'_>, address: &str, uplinks: &[&str]) -> Result<()> {
    for (pod, own) in [("web", false), ("on-host", true)] {
        node.node.pod(&format!("has the hostIP {address}"), &format!("default/{pod}"), PATIENCE, |pod| {
            pod.status()["hostIP"] == address && (!own || pod.status()["podIP"] == address)
        })?;
    }
    for port in [30080, 30081] {
        let at = format!("{address}:{port}");
        wait::ok(&format!("{at} answers from outside"), PATIENCE, || outside.get(&at))?;
        wait::ok(&format!("{at} answers the host"), PATIENCE, || get(&at))?;
    }
    let indices: Vec<u32> = uplinks.iter().map(|name| machine::index(name)).collect::<Result<_>>()?;
    wait::ok("the uplinks have programs, and no other device", PATIENCE, || {
        let links = devices(&Pins::new(&node.node.roots.bpf_pins))?;
        let mut there: Vec<u32> =
            links.iter().filter(|l| l.live && l.place == Place::Uplink).map(|l| l.ifindex).collect();
        there.sort_unstable();
        ensure!(there == indices, "uplink programs at {there:?}, not {indices:?}");
        Ok(())
    })
}

fn ip(words: &str) -> Result<()> {
    run(Command::new("ip").args(words.split(' '))).map(drop)
}
