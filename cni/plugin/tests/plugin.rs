//! The plugin as runtimes call it, in network namespaces of the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use berth_harness::{
    netns::Netns,
    wait::{PATIENCE, until},
};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

struct Host {
    netns: Netns,
    dir: tempfile::TempDir,
    config: Value,
}

impl Host {
    fn new(what: &str, extra: Value) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let mut config =
            json!({"cniVersion": "1.1.0", "name": "pods", "type": "berth-cni", "dataDir": dir.path()});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Host { netns: Netns::unique(what).unwrap(), dir, config }
    }

    fn dual(what: &str) -> Host {
        Host::new(what, json!({"subnets": ["10.78.0.0/24", "fd78::/64"]}))
    }

    /// Returns the output after success, or else the error object.
    fn call(&self, verb: &str, id: &str, netns: Option<&Path>, config: &Value) -> Result<Value, Value> {
        let output = self
            .netns
            .enter(|| {
                let mut child = Command::new(env!("CARGO_BIN_EXE_berth-cni"))
                    .env_clear()
                    .envs([
                        ("CNI_COMMAND", verb),
                        ("CNI_CONTAINERID", id),
                        ("CNI_IFNAME", "eth0"),
                        ("CNI_PATH", "/"),
                    ])
                    .env("CNI_NETNS", netns.unwrap_or(Path::new("")))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
                child.wait_with_output().unwrap()
            })
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let value = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        };
        if output.status.success() { Ok(value) } else { Err(value) }
    }

    fn add(&self, id: &str, pod: &Netns) -> Result<Value, Value> {
        self.call("ADD", id, Some(&pod.path()), &self.config)
    }

    fn with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[key] = value;
        config
    }

    fn check(&self, id: &str, pod: &Netns, result: &Value) -> Result<Value, Value> {
        self.call("CHECK", id, Some(&pod.path()), &self.with("prevResult", result.clone()))
    }

    fn veths(&self) -> usize {
        self.netns.ip("-o link show type veth").unwrap().lines().count()
    }

    /// Waits until the process that deletes retired pairs has done so.
    fn no_veth_is_left(&self) {
        until("the pairs are deleted", PATIENCE, || self.veths() == 0).unwrap();
    }

    /// Lets no process delete retired pairs while the value lives.
    fn hold_deletions(&self) -> Flock<fs::File> {
        let file = fs::File::create(self.dir.path().join("pods/waiting")).unwrap();
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap()
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("pods/journal")
    }
}

#[test]
fn both_sides_are_as_the_design_says() {
    let host = Host::dual("sides");
    let pod = Netns::unique("pod").unwrap();
    // A new namespace inherits the machine's IPv4 settings.
    host.netns.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap()).unwrap();
    let result = host.add("c1", &pod).unwrap();
    let (end, mtu) = (result["interfaces"][0]["name"].as_str().unwrap(), &result["interfaces"][0]["mtu"]);
    assert_eq!(mtu, 1500, "no default route to go by");
    assert_eq!(
        result["ips"][0],
        json!({"address": "10.78.0.1/32", "gateway": "169.254.1.1", "interface": 1})
    );
    assert_eq!(result["ips"][1], json!({"address": "fd78::1/128", "gateway": "fe80::1", "interface": 1}));
    assert_eq!(result["interfaces"][1]["sandbox"], pod.path().to_str().unwrap());
    for (key, value) in [("rp_filter", "1"), ("forwarding", "1")] {
        assert_eq!(host.netns.sysctl(&format!("ipv4/conf/{end}/{key}")).unwrap(), value, "{key}");
    }
    for (key, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("forwarding", "1")] {
        assert_eq!(host.netns.sysctl(&format!("ipv6/conf/{end}/{key}")).unwrap(), value, "{key}");
    }
    assert_eq!(pod.sysctl("ipv6/conf/eth0/accept_ra").unwrap(), "0");
    // A value that the plugin does not set.
    assert_eq!(host.netns.sysctl("ipv4/ip_forward").unwrap(), "0");
    assert_eq!(host.netns.sysctl(&format!("ipv4/conf/{end}/proxy_arp")).unwrap(), "0");
    assert_eq!(host.netns.sysctl(&format!("ipv4/conf/{end}/route_localnet")).unwrap(), "0");
    // The kernel adds its own link-local address, which may be tentative for a second.
    let v6 = pod.ip("-6 -o addr show dev eth0 scope global").unwrap();
    assert!(v6.contains("fd78::1/128") && !v6.contains("tentative"), "{v6}");
    assert!(pod.ip("neigh").unwrap().lines().all(|l| l.trim_end().ends_with("PERMANENT")));
    assert!(host.netns.ip(&format!("-6 addr show dev {end}")).unwrap().contains("fe80::1/128"));
    host.check("c1", &pod, &result).unwrap();
    host.call("DEL", "c1", None, &host.config).unwrap();
    host.no_veth_is_left();
}

#[test]
fn the_mtu_is_the_underlays_or_the_configured_one_and_routes_are_added() {
    let host = Host::new(
        "mtu",
        json!({"subnets": ["10.78.0.0/24"], "routes": [{"dst": "172.16.0.0/12"}, {"dst": "0.0.0.0/0"}]}),
    );
    for args in [
        "link add up0 mtu 1420 type veth peer name up1",
        "addr add 203.0.113.1/24 dev up0",
        "link set up0 up",
        "route add default via 203.0.113.2",
    ] {
        host.netns.ip(args).unwrap();
    }
    let pod = Netns::unique("pod").unwrap();
    let result = host.add("c1", &pod).unwrap();
    assert_eq!(result["interfaces"][1]["mtu"], 1420);
    assert!(pod.ip("link show eth0").unwrap().contains("mtu 1420"));
    assert!(pod.ip("route").unwrap().contains("172.16.0.0/12 via 169.254.1.1 dev eth0"));
    assert_eq!(result["routes"][1], json!({"dst": "172.16.0.0/12", "gw": "169.254.1.1"}));
    host.call("DEL", "c1", None, &host.config).unwrap();
    let config = host.with("mtu", 1300.into());
    let result = host.call("ADD", "c1", Some(&pod.path()), &config).unwrap();
    assert_eq!(result["interfaces"][1]["mtu"], 1300);
    host.call("DEL", "c1", None, &config).unwrap();
}

#[test]
fn results_have_the_form_of_the_version_asked_for() {
    let host = Host::dual("versions");
    let pod = Netns::unique("pod").unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let config = host.with("cniVersion", version.into());
        let result = host.call("ADD", "c1", Some(&pod.path()), &config).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(
            result["ips"][1].get("version"),
            version.starts_with('0').then_some(&"6".into()),
            "{version}"
        );
        assert_eq!(result["interfaces"][1].get("mtu").is_some(), version == "1.1.0");
        host.call("DEL", "c1", None, &config).unwrap();
    }
    let versions = host.call("VERSION", "", None, &json!({"cniVersion": "1.0.0"})).unwrap();
    assert_eq!(versions["cniVersion"], "1.0.0");
    assert_eq!(versions["supportedVersions"].as_array().unwrap().len(), 5);
}

#[test]
fn errors_have_the_specifications_codes_and_change_nothing() {
    let host = Host::dual("errors");
    let pod = Netns::unique("pod").unwrap();
    let code = |answer: Result<Value, Value>| answer.unwrap_err()["code"].as_u64().unwrap();
    let netns = pod.path();
    let call =
        |verb: &str, id: &str, netns: &Path, config: &Value| code(host.call(verb, id, Some(netns), config));
    assert_eq!(call("ADD", "c1", &netns, &host.with("cniVersion", "0.2.0".into())), 1);
    assert_eq!(call("NOPE", "c1", &netns, &host.config), 4);
    assert_eq!(call("ADD", "../c1", &netns, &host.config), 4);
    assert_eq!(call("ADD", "", &netns, &host.config), 4);
    assert_eq!(call("ADD", "c1", Path::new(""), &host.config), 4);
    assert_eq!(call("ADD", "c1", &host.netns.path(), &host.config), 4, "the host's own namespace");
    assert_eq!(call("ADD", "c1", Path::new("/nowhere"), &host.config), 101);
    assert_eq!(call("ADD", "c1", Path::new("/etc/hostname"), &host.config), 101, "not a namespace");
    assert_eq!(call("ADD", "c1", &netns, &Value::Null), 6);
    assert_eq!(call("ADD", "c1", &netns, &host.with("subnets", json!([]))), 7);
    assert_eq!(call("CHECK", "c1", &netns, &host.config), 7, "without prevResult");
    assert_eq!(call("GC", "c1", &netns, &host.config), 7, "without valid attachments");
    assert_eq!(host.veths(), 0);
    let left = fs::read_to_string(host.journal()).unwrap_or_default();
    assert!(
        left.lines()
            .filter(|l| l.contains(" a "))
            .all(|l| left.matches(" r c1 ").count() > 0 || l.is_empty()),
        "{left}"
    );
}

#[test]
fn a_foreign_interface_of_that_name_is_left_alone_and_the_address_given_back() {
    let host = Host::dual("foreign");
    let pod = Netns::unique("pod").unwrap();
    pod.ip("link add eth0 type veth peer name other").unwrap();
    let error = host.add("c1", &pod).unwrap_err();
    assert_eq!(error["code"], 103, "{error}");
    assert!(pod.ip("link").unwrap().contains("other"));
    assert_eq!(host.veths(), 0);
    let gc = host.with("cni.dev/valid-attachments", json!([]));
    host.call("GC", "", None, &gc).unwrap();
    assert!(fs::read_to_string(host.journal()).unwrap().contains(" r c1 eth0 "));
}

#[test]
fn add_repairs_what_is_half_there_and_check_finds_each_loss() {
    let host = Host::dual("repair");
    let pod = Netns::unique("pod").unwrap();
    let result = host.add("c1", &pod).unwrap();
    let end = result["interfaces"][0]["name"].as_str().unwrap();
    let losses: [(&Netns, &str); 9] = [
        (&pod, "route del default"),
        (&pod, "-6 route del default"),
        (&pod, "neigh del 169.254.1.1 dev eth0"),
        (&pod, "addr del 10.78.0.1/32 dev eth0"),
        (&pod, "link set eth0 down"),
        (&pod, "link del eth0"),
        (&host.netns, "route del 10.78.0.1"),
        (&host.netns, &format!("neigh del fd78::1 dev {end}")),
        (&host.netns, &format!("link set {end} mtu 1400")),
    ];
    for (at, loss) in losses {
        host.check("c1", &pod, &result).unwrap();
        at.ip(loss).unwrap();
        let config = host.with("mtu", 1500.into());
        let checked = host.call("CHECK", "c1", Some(&pod.path()), &{
            let mut config = config.clone();
            config["prevResult"] = result.clone();
            config
        });
        assert_eq!(checked.map_err(|e| e["code"].clone()), Err(104.into()), "after {loss}");
        assert_eq!(host.add("c1", &pod).unwrap(), result, "after {loss}");
    }
    assert_eq!(host.check("c2", &pod, &result).unwrap_err()["code"], 104, "not attached at all");
    host.call("DEL", "c1", None, &host.config).unwrap();
    host.no_veth_is_left();
}

#[test]
fn a_full_range_means_try_again_and_not_ready() {
    let host = Host::new("full", json!({"subnets": ["10.78.0.0/30"]}));
    let pods = [Netns::unique("a").unwrap(), Netns::unique("b").unwrap(), Netns::unique("c").unwrap()];
    host.call("STATUS", "", None, &host.config).unwrap();
    host.add("c0", &pods[0]).unwrap();
    host.add("c1", &pods[1]).unwrap();
    let error = host.add("c2", &pods[2]).unwrap_err();
    assert_eq!(
        (&error["code"], &error["details"]),
        (&11.into(), &"cannot allocate an address for c2/eth0: no address left in 10.78.0.0/30".into())
    );
    assert_eq!(host.call("STATUS", "", None, &host.config).unwrap_err()["code"], 50);
    host.call("DEL", "c0", None, &host.config).unwrap();
    host.call("STATUS", "", None, &host.config).unwrap();
    let result = host.add("c2", &pods[2]).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.78.0.1/32", "quarantine gives way");
    for id in ["c1", "c2"] {
        host.call("DEL", id, None, &host.config).unwrap();
    }
}

#[test]
fn a_ruined_journal_is_set_aside_and_rebuilt_from_the_devices() {
    let host = Host::dual("ruined");
    let pods = [Netns::unique("a").unwrap(), Netns::unique("b").unwrap()];
    host.add("c0", &pods[0]).unwrap();
    fs::write(host.journal(), "not a journal\n").unwrap();
    let second = host.add("c1", &pods[1]).unwrap();
    assert_eq!(second["ips"][0]["address"], "10.78.0.2/32");
    assert_eq!(fs::read_to_string(host.dir.path().join("pods/journal.corrupt")).unwrap(), "not a journal\n");
    assert!(fs::read_to_string(host.journal()).unwrap().contains(" a c0 eth0 10.78.0.1,fd78::1\n"));
    let gc = host.with("cni.dev/valid-attachments", json!([{"containerID": "c1", "ifname": "eth0"}]));
    host.call("GC", "", None, &gc).unwrap();
    assert_eq!(host.veths(), 1);
    // Even without a journal, GC finds the plugin's own devices, and no others.
    fs::remove_file(host.journal()).unwrap();
    host.netns.ip("link add vethfffffffffff type veth peer name other").unwrap();
    let gc = host.with("cni.dev/valid-attachments", json!([]));
    host.call("GC", "", None, &gc).unwrap();
    assert_eq!(host.veths(), 2, "{}", host.netns.ip("link").unwrap());
    assert!(host.netns.ip("link").unwrap().contains("vethfffffffffff"));
}

#[test]
fn two_nodes_with_the_same_network_name_do_not_meet() {
    let (host, other) = (Host::dual("node-a"), Host::new("node-b", json!({"subnets": ["10.79.0.0/24"]})));
    let pods = [Netns::unique("a").unwrap(), Netns::unique("b").unwrap()];
    host.add("c0", &pods[0]).unwrap();
    // Both nodes are in the first one's namespace.
    let netns = Some(pods[1].path());
    host.call("ADD", "c0", netns.as_deref(), &other.config).unwrap();
    let gc = host.with("cni.dev/valid-attachments", json!([]));
    host.call("GC", "", None, &gc).unwrap();
    assert_eq!(host.veths(), 1);
    assert!(host.netns.ip("route").unwrap().contains("10.79.0.1"));
    host.call("DEL", "c0", None, &other.config).unwrap();
    host.no_veth_is_left();
}

#[test]
fn a_retired_pair_carries_nothing_and_goes_with_the_next_ones() {
    let host = Host::dual("retired");
    let pods = [Netns::unique("a").unwrap(), Netns::unique("b").unwrap()];
    let result = host.add("c0", &pods[0]).unwrap();
    let end = result["interfaces"][0]["name"].as_str().unwrap();
    let held = host.hold_deletions();
    host.call("DEL", "c0", None, &host.config).unwrap();
    // The address may be another pod's by now: nothing leads to this pod, and nothing comes from it.
    assert!(fs::read_to_string(host.journal()).unwrap().contains(" r c0 eth0 "));
    let link = host.netns.ip(&format!("-d link show dev {end}")).unwrap();
    assert!(link.contains("state DOWN") && link.contains("group 1920231523"), "{link}");
    for family in ["-4", "-6"] {
        let routes = host.netns.ip(&format!("{family} route show table all")).unwrap();
        assert!(!routes.contains(end), "{routes}");
    }
    assert!(pods[0].ip("link show dev eth0").unwrap().contains("NO-CARRIER"));
    // DEL again, and ADD of the same pod: the pair is a new one, in nobody's group.
    host.call("DEL", "c0", None, &host.config).unwrap();
    let again = host.add("c0", &pods[0]).unwrap();
    host.check("c0", &pods[0], &again).unwrap();
    let link = host.netns.ip(&format!("-d link show dev {end}")).unwrap();
    assert!(link.contains("state UP") && link.contains("group default"), "{link}");
    // Another sandbox in the namespace whose interface is a retired pair's still: the name is free for it.
    host.call("DEL", "c0", None, &host.config).unwrap();
    host.add("other", &pods[0]).unwrap();
    assert_eq!(host.veths(), 1, "{}", host.netns.ip("link").unwrap());
    host.call("DEL", "other", None, &host.config).unwrap();
    let again = host.add("c0", &pods[0]).unwrap();
    // A process that was killed leaves its pairs to the next DEL, or to GC.
    host.add("c1", &pods[1]).unwrap();
    host.call("DEL", "c1", None, &host.config).unwrap();
    assert_eq!(host.veths(), 2);
    let gc = host.with("cni.dev/valid-attachments", json!([{"containerID": "c0", "ifname": "eth0"}]));
    host.call("GC", "", None, &gc).unwrap();
    assert_eq!(host.veths(), 1);
    host.check("c0", &pods[0], &again).unwrap();
    host.add("c1", &pods[1]).unwrap();
    host.call("DEL", "c1", None, &host.config).unwrap();
    drop(held);
    host.call("DEL", "c0", None, &host.config).unwrap();
    host.no_veth_is_left();
}
