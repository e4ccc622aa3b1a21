//! Foreign plugins: chains, their parameters, and their failures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod common;

use berth_core::model::{ContainerPort, Protocol};
use berth_network::{Error, NetworkConfig};
use common::{Netns, Node, sandbox};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A plugin that writes down its parameters, and answers ADD with an address after `prelude`.
fn recorder(prelude: &str) -> String {
    format!(
        r#"dir=$(dirname "$0"); env | grep -v ^PWD= | sort > "$dir/$(basename "$0").$CNI_COMMAND.env"
cat > "$dir/$(basename "$0").$CNI_COMMAND.json"; echo "$CNI_COMMAND $(basename "$0")" >> "$dir/calls"
{prelude}
if [ "$CNI_COMMAND" = ADD ]; then
  echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"br0"}},{{"name":"vethx"}},{{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/x"}}],"ips":[{{"address":"10.5.0.9/24","interface":2}}]}}'
fi"#
    )
}

fn chain(names: &[&str], extra: &str) -> String {
    let plugins: Vec<_> = names
        .iter()
        .map(|n| format!(r#"{{"type":"{n}","capabilities":{{"portMappings":true}},"keep":1{extra}}}"#))
        .collect();
    format!(r#"{{"cniVersion":"1.1.0","name":"chain","plugins":[{}]}}"#, plugins.join(","))
}

fn read(node: &Node, file: &str) -> String {
    fs::read_to_string(node.roots.cni_bin.join(file)).unwrap_or_default()
}

#[test]
fn a_chain_is_called_in_order_with_a_clean_environment_and_the_last_result() {
    let node = Node::new("chain");
    node.script("one", &recorder(""));
    node.script("two", &recorder(""));
    node.conflist(&chain(&["one", "two"], ""));
    let a = Netns::unique("a").unwrap();
    let mut request = sandbox("abc", &a.path());
    request.ports = vec![
        ContainerPort { name: None, port: 80, protocol: Protocol::Tcp, host_port: Some(8080), host_ip: None },
        ContainerPort { name: None, port: 81, protocol: Protocol::Udp, host_port: None, host_ip: None },
    ];
    let network = node.open();
    let attachment = node.block_on(network.add(&request)).unwrap();
    assert_eq!(attachment.ips, ["10.5.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(attachment.host_interface.as_deref(), Some("vethx"));
    assert_eq!(attachment.mac.as_deref(), Some("02:00:00:00:00:01"));
    let config: serde_json::Value = serde_json::from_str(&read(&node, "two.ADD.json")).unwrap();
    assert_eq!(config["prevResult"], attachment.result);
    assert_eq!(
        (&config["name"], &config["cniVersion"], &config["keep"]),
        (&"chain".into(), &"1.1.0".into(), &1.into())
    );
    assert_eq!(config.get("capabilities"), None);
    assert_eq!(
        config["runtimeConfig"],
        serde_json::json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]})
    );
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&read(&node, "one.ADD.json")).unwrap().get("prevResult"),
        None
    );
    let bin = node.roots.cni_bin.display();
    assert_eq!(
        read(&node, "one.ADD.env")
            .lines()
            .filter(|l| !l.starts_with("_=") && !l.starts_with("SHLVL="))
            .collect::<Vec<_>>(),
        [
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=uid-abc",
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=abc",
            "CNI_IFNAME=eth0",
            &format!("CNI_NETNS={}", a.path().display()),
            &format!("CNI_PATH={bin}"),
            // A plugin finds the system's tools (iptables, nft) by name.
            &format!("PATH={bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ]
    );
    let unserved = node.block_on(network.unserved(&request)).unwrap();
    assert_eq!((unserved.host_ports, unserved.bandwidth), (false, false));
    node.block_on(network.check("abc")).unwrap();
    // The list changes, and DEL uses the list of the ADD.
    node.conflist(&chain(&["one"], ""));
    node.block_on(network.del("abc", None)).unwrap();
    let calls = read(&node, "calls");
    assert_eq!(calls, "ADD one\nADD two\nCHECK one\nCHECK two\nDEL two\nDEL one\n");
    let config: serde_json::Value = serde_json::from_str(&read(&node, "one.DEL.json")).unwrap();
    assert_eq!(config["prevResult"], attachment.result);
}

#[test]
fn capabilities_without_a_plugin_are_reported() {
    let node = Node::with_plugin("unserved");
    let a = Netns::unique("a").unwrap();
    let mut request = sandbox("abc", &a.path());
    let network = node.open();
    node.block_on(network.add(&request)).unwrap();
    assert_eq!(node.block_on(network.unserved(&request)).unwrap(), berth_network::Unserved::default());
    node.block_on(network.del("abc", None)).unwrap();
    request.ports = vec![ContainerPort {
        name: None,
        port: 80,
        protocol: Protocol::Tcp,
        host_port: Some(38113),
        host_ip: None,
    }];
    request.annotations.insert("kubernetes.io/egress-bandwidth".into(), "10M".into());
    node.block_on(network.add(&request)).unwrap();
    let expected = berth_network::Unserved { network: "pods".into(), host_ports: true, bandwidth: true };
    assert_eq!(node.block_on(network.unserved(&request)).unwrap(), expected);
    // A restarted agent reports the same, from the attachment file.
    assert_eq!(node.block_on(node.open().unserved(&request)).unwrap(), expected);
    node.block_on(network.del("abc", None)).unwrap();

    request.annotations.insert("kubernetes.io/egress-bandwidth".into(), "fast".into());
    let error = node.block_on(network.add(&request)).unwrap_err().to_string();
    assert!(error.contains("kubernetes.io/egress-bandwidth is \"fast\""), "{error}");
    assert_eq!(node.files(), [""; 0]);
}

#[test]
fn sandboxes_are_attached_while_a_stale_one_takes_long_to_detach() {
    let node = Node::new("slow");
    let gate = node.dir.path().join("gate");
    node.script(
        "one",
        &recorder(&format!(
            r#"if [ $CNI_COMMAND = DEL ] && [ "$CNI_CONTAINERID" = stale ]; then
  until [ -e {gate:?} ]; do sleep 0.02; done
fi"#
        )),
    );
    node.conflist(&chain(&["one"], ""));
    let (a, b) = (Netns::unique("a").unwrap(), Netns::unique("b").unwrap());
    node.block_on(node.open().add(&sandbox("stale", &a.path()))).unwrap();
    let network = node.open();
    let request = sandbox("fresh", &b.path());
    let work = async {
        let nobody = BTreeSet::new();
        let attach = async {
            let begun = || read(&node, "calls").contains("DEL one");
            while !begun() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let added = network.add(&request).await;
            fs::write(&gate, "").unwrap();
            added
        };
        tokio::join!(network.gc(&nobody), attach)
    };
    let (collected, added) =
        node.block_on(async { tokio::time::timeout(Duration::from_secs(15), work).await.unwrap() });
    collected.unwrap();
    added.unwrap();
    // The running GC has spared the sandbox that was attached meanwhile.
    assert_eq!(node.files(), ["fresh.json"]);
    let gc: serde_json::Value = serde_json::from_str(&read(&node, "one.GC.json")).unwrap();
    assert_eq!(
        gc["cni.dev/valid-attachments"],
        serde_json::json!([{"containerID": "fresh", "ifname": "eth0"}])
    );
}

#[test]
fn a_failed_add_is_taken_back_along_the_chain_and_reported_in_the_plugins_words() {
    let node = Node::new("fail");
    node.script("one", &recorder(""));
    let fail =
        r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":11,"msg":"busy","details":"come back"}'; exit 1; }"#;
    node.script("two", &recorder(fail));
    node.conflist(&chain(&["one", "two"], ""));
    let a = Netns::unique("a").unwrap();
    let error = node.block_on(node.open().add(&sandbox("abc", &a.path()))).unwrap_err();
    let Error::Plugin { plugin, verb, source } = error else { panic!("{error}") };
    assert_eq!(
        (plugin.as_str(), verb, source.to_string().as_str()),
        ("two", "ADD", "code 11: busy: come back")
    );
    assert_eq!(read(&node, "calls"), "ADD one\nADD two\nDEL two\nDEL one\n");
    assert_eq!(node.files(), [""; 0]);
}

#[test]
fn the_next_attempt_undoes_what_a_failed_add_could_not() {
    let node = Node::new("half");
    let gate = node.dir.path().join("broken");
    fs::write(&gate, "").unwrap();
    node.script("one", &recorder(&format!("[ -e {} ] && {{ echo no >&2; exit 3; }}", gate.display())));
    node.conflist(&chain(&["one"], ""));
    let a = Netns::unique("a").unwrap();
    let network = node.open();
    let error = node.block_on(network.add(&sandbox("abc", &a.path()))).unwrap_err();
    assert!(
        matches!(&error, Error::Plugin { source, .. } if source.message == "no" && source.code.is_none()),
        "{error:?}"
    );
    assert_eq!(node.files(), ["abc.json"]);
    assert_eq!(network.attachment("abc"), None);
    fs::remove_file(&gate).unwrap();
    node.block_on(network.add(&sandbox("abc", &a.path()))).unwrap();
    assert_eq!(read(&node, "calls"), "ADD one\nDEL one\nDEL one\nADD one\n");
    node.block_on(network.del("abc", None)).unwrap();
    assert_eq!(node.files(), [""; 0]);
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    let node = Node::new("hang");
    let pid = node.dir.path().join("pid");
    let hang = format!("if [ $CNI_COMMAND = ADD ]; then sleep 600 & echo $! > {}; wait; fi", pid.display());
    node.script("one", &recorder(&hang));
    node.conflist(&chain(&["one"], ""));
    let a = Netns::unique("a").unwrap();
    let network = node.open_with(NetworkConfig { masquerade: None, plugin_timeout: Duration::from_secs(1) });
    let start = Instant::now();
    let error = node.block_on(network.add(&sandbox("abc", &a.path()))).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let child = fs::read_to_string(&pid).unwrap().trim().to_owned();
    wait_until(|| !is_running(&child));
}

#[test]
fn a_plugin_whose_grandchild_keeps_the_output_open_is_not_waited_for() {
    let node = Node::new("daemon");
    let pid = node.dir.path().join("pid");
    node.script(
        "one",
        &recorder(&format!("[ $CNI_COMMAND = ADD ] && {{ sleep 600 & echo $! > {}; }}", pid.display())),
    );
    node.conflist(&chain(&["one"], ""));
    let a = Netns::unique("a").unwrap();
    let start = Instant::now();
    node.block_on(node.open().add(&sandbox("abc", &a.path()))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    let child = fs::read_to_string(&pid).unwrap().trim().to_owned();
    assert!(is_running(&child), "it is the plugin's to end");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bad_answers_are_errors_that_name_plugin_and_field() {
    let node = Node::new("answers");
    let a = Netns::unique("a").unwrap();
    let network = node.open();
    for (output, message) in [
        ("echo '{'", "cannot parse the result of network plugin one"),
        ("echo '[]'", "cannot use the result of network plugin one: the result is not an object"),
        (
            "echo '{\"ips\":[{\"address\":\"10.0.0.1\"}]}'",
            "cannot use the result of network plugin one: ips[0].address is no CIDR: invalid IP address syntax",
        ),
        (
            "echo '{\"ips\":[{\"address\":\"0.0.0.0/0\"}]}'",
            "cannot use the result of network plugin one: ips[0].address is not one that a pod can have",
        ),
        (
            "echo '{\"ips\":[{\"address\":\"10.0.0.1/8\",\"interface\":7}]}'",
            "cannot use the result of network plugin one: ips[0].interface is not one of interfaces",
        ),
        (
            "echo '{\"interfaces\":[{\"name\":\"a/b\"}]}'",
            "cannot use the result of network plugin one: interfaces[0].name is not the name of an interface",
        ),
        ("", "cannot attach sandbox abc: network chain gave it no address"),
        ("head -c 5000000 /dev/zero", "network plugin one ADD wrote more than 4194304 bytes"),
        ("exit 7", "network plugin one ADD"),
        ("kill -9 $$", "network plugin one ADD"),
    ] {
        node.script("one", &format!("cat >/dev/null; if [ $CNI_COMMAND = ADD ]; then {output}\ntrue; fi"));
        if output.starts_with("exit") || output.starts_with("kill") {
            node.script("one", &format!("[ $CNI_COMMAND = DEL ] || {output}"));
        }
        node.conflist(&chain(&["one"], ""));
        let error = node.block_on(network.add(&sandbox("abc", &a.path()))).unwrap_err();
        assert_eq!(error.to_string(), message, "{output}");
        assert_eq!(node.files(), [""; 0], "{output}");
    }
    node.conflist(&chain(&["missing"], ""));
    let error = node.block_on(network.add(&sandbox("abc", &a.path()))).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot find network plugin missing in {}", node.roots.cni_bin.display())
    );
    let error = node.block_on(network.del("../x", None)).unwrap_err();
    assert!(matches!(error, Error::SandboxId(_)));
}

#[test]
fn a_network_that_is_not_ready_says_why() {
    let node = Node::new("ready");
    let ready = || {
        let status = node.block_on(node.open().ready()).unwrap();
        (status.ready, status.network, status.reason.unwrap_or_default())
    };
    let conf = node.roots.cni_conf.display();
    assert_eq!(
        ready(),
        (false, None, format!("cannot find a network configuration (*.conflist, *.conf, *.json) in {conf}"))
    );
    node.conflist(r#"{"cniVersion":"1.1.0","name":"chain","plugins":[{"type":"../../bin/sh"}]}"#);
    let reason = format!(
        "cannot use network configuration {conf}/10-test.conflist: plugins[0].type must be the plain name of a binary"
    );
    assert_eq!(ready(), (false, None, reason));
    node.conflist(&chain(&["one"], ""));
    let bin = node.roots.cni_bin.display();
    assert_eq!(ready(), (false, Some("chain".into()), format!("cannot find network plugin one in {bin}")));
    node.script("one", r#"echo '{"code":50,"msg":"no route yet"}'; exit 1"#);
    assert_eq!(
        ready(),
        (false, Some("chain".into()), "network plugin one STATUS: code 50: no route yet".into())
    );
    node.script("one", r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: STATUS"}'; exit 1"#);
    assert_eq!(ready(), (true, Some("chain".into()), String::new()));
    node.script("one", &recorder(""));
    let network = node.open();
    for _ in 0..3 {
        assert!(node.block_on(network.ready()).unwrap().ready);
    }
    assert_eq!(read(&node, "calls"), "STATUS one\n", "asked once for three answers");
}

#[test]
fn the_first_file_by_name_counts_even_where_it_is_broken() {
    let node = Node::new("files");
    let dir = &node.roots.cni_conf;
    fs::write(dir.join("20-b.conf"), r#"{"cniVersion":"1.0.0","name":"single","type":"one"}"#).unwrap();
    fs::write(dir.join("00-note.txt"), "x").unwrap();
    let list = berth_network::Conflist::load(dir).unwrap();
    assert_eq!((list.name.as_str(), list.plugins.len(), list.version), ("single", 1, "1.0.0"));
    fs::write(dir.join("10-a.json"), "{").unwrap();
    let error = berth_network::Conflist::load(dir).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot parse network configuration {}", dir.join("10-a.json").display())
    );
    // Plugins may be in separate files (CNI 1.1).
    fs::write(
        dir.join("10-a.json"),
        r#"{"cniVersion":"0.4.0","cniVersions":["1.1.0","9.0.0"],"name":"net","plugins":[{"type":"one"}]}"#,
    )
    .unwrap();
    fs::create_dir(dir.join("net")).unwrap();
    fs::write(dir.join("net/10-more.conf"), r#"{"type":"two"}"#).unwrap();
    let list = berth_network::Conflist::load(dir).unwrap();
    assert_eq!(list.version, "1.1.0");
    assert_eq!(list.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn the_default_configuration_is_written_whole_and_only_where_there_is_none() {
    let node = Node::new("default");
    let dir = node.dir.path().join("net.d");
    let subnets = ["10.88.0.0/16".parse().unwrap(), "fd88::/64".parse().unwrap()];
    let path = berth_network::write_default_conflist_with(&dir, &subnets, &node.data_dir()).unwrap().unwrap();
    assert_eq!(path, dir.join("10-berth.conflist"));
    let list = berth_network::Conflist::load(&dir).unwrap();
    assert_eq!(list.pod_cidrs(), subnets);
    assert_eq!(list.plugins[0].raw["dataDir"], node.data_dir().to_str().unwrap());
    assert_eq!(berth_network::write_default_conflist(&dir, &subnets[..1]).unwrap(), Some(path.clone()));
    assert_eq!(berth_network::Conflist::load(&dir).unwrap().pod_cidrs(), subnets[..1]);
    fs::write(dir.join("05-other.conflist"), "{}").unwrap();
    assert_eq!(berth_network::write_default_conflist(&dir, &subnets).unwrap(), None);
    fs::remove_file(&path).unwrap();
    fs::rename(dir.join("05-other.conflist"), dir.join("99-other.conf")).unwrap();
    assert_eq!(
        berth_network::write_default_conflist(&dir, &subnets).unwrap(),
        None,
        "another's, though later by name"
    );
    assert!(!path.exists());
}

/// bridge, host-local and portmap of the CNI project, which most nodes have, configured like
/// containerd's example. Masquerade and host ports are rules that the plugins make by `iptables` or
/// `nft`.
#[test]
fn the_reference_plugins_attach_and_leave_nothing() {
    let node = Node::new("reference");
    for name in ["bridge", "host-local", "portmap"] {
        std::os::unix::fs::symlink(plugin(name), node.roots.cni_bin.join(name)).unwrap();
    }
    let data = node.data_dir();
    node.conflist(&format!(
        r#"{{"cniVersion":"1.0.0","name":"ref","plugins":[{{"type":"bridge","bridge":"br0","isGateway":true,
        "ipMasq":true,"ipam":{{"type":"host-local","dataDir":{data:?},"ranges":[[{{"subnet":"10.66.0.0/24"}}]],
        "routes":[{{"dst":"0.0.0.0/0"}}]}}}},{{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#
    ));
    let (a, b) = (Netns::unique("a").unwrap(), Netns::unique("b").unwrap());
    let network = node.open();
    let mut request = sandbox("abc", &a.path());
    request.ports = vec![ContainerPort {
        name: None,
        port: 80,
        protocol: Protocol::Tcp,
        host_port: Some(8080),
        host_ip: None,
    }];
    let attachment = node.block_on(network.add(&request)).unwrap();
    assert!(!node.block_on(network.unserved(&request)).unwrap().host_ports);
    let listener = a.enter(|| std::net::TcpListener::bind("0.0.0.0:80")).unwrap().unwrap();
    let host_port = "192.0.2.10:8080".parse().unwrap();
    node.host
        .enter(|| std::net::TcpStream::connect_timeout(&host_port, Duration::from_secs(5)))
        .unwrap()
        .expect("the host port leads to the pod");
    drop(listener);
    assert_eq!(attachment.ips, ["10.66.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert!(attachment.host_interface.as_deref().unwrap().starts_with("veth"));
    assert!(a.ip("addr show eth0").unwrap().contains(attachment.mac.as_deref().unwrap()));
    node.block_on(network.check("abc")).unwrap();
    node.block_on(network.add(&sandbox("def", &b.path()))).unwrap();
    node.block_on(network.del("abc", Some(&a.path()))).unwrap();
    drop((network, b));
    // The agent died, and the namespace is gone.
    node.block_on(node.open().gc(&BTreeSet::new())).unwrap();
    assert_eq!(node.files(), Vec::<String>::new());
    // The bridge plugin cannot remove the device of a deleted namespace. The kernel removes it a
    // while after the namespace.
    wait_until(|| node.leftovers().is_empty());
    let held: Vec<_> = fs::read_dir(data.join("ref")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(held.iter().all(|n| !n.to_str().unwrap().starts_with("10.66")), "{held:?}");
}

/// A plugin in `$BERTH_TOOLS`, by default `berth/tools/bin` in the user's cache, where `cargo xtask
/// setup` installs them. PATH is not searched, because iproute2 also has a `bridge`.
fn plugin(name: &str) -> PathBuf {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    let dir = var("BERTH_TOOLS").or_else(|| Some(cache?.join("berth/tools/bin"))).unwrap();
    let file = dir.join(name);
    assert!(file.is_file(), "no CNI plugin {name} in {}: run `cargo xtask setup`", dir.display());
    file
}
