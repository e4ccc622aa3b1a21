//! ADD, DEL, CHECK and GC with the real plugin in network namespaces of the test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod common;

use berth_network::Error;
use common::{Netns, Node, sandbox};
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

#[test]
fn a_sandbox_is_attached_reaches_the_host_and_another_and_leaves_nothing() {
    let node = Node::with_plugin("first");
    let (a, b) = (Netns::unique("a").unwrap(), Netns::unique("b").unwrap());
    let network = node.open();
    node.block_on(network.prepare_host()).unwrap();
    let first = node.block_on(network.add(&sandbox("sandbox-a", &a.path()))).unwrap();
    let second = node.block_on(network.add(&sandbox("sandbox-b", &b.path()))).unwrap();
    assert_eq!(first.ips, ["10.77.0.1".parse::<IpAddr>().unwrap(), "fd77::1".parse().unwrap()]);
    assert_eq!(second.ips, ["10.77.0.2".parse::<IpAddr>().unwrap(), "fd77::2".parse().unwrap()]);
    let host_end = first.host_interface.as_deref().unwrap();
    assert!(host_end.starts_with("veth") && node.host.ip("link").unwrap().contains(host_end));
    assert!(a.ip("link show eth0").unwrap().contains(first.mac.as_deref().unwrap()));
    assert!(a.ip("link show lo").unwrap().contains("LOOPBACK,UP"), "lo is up");
    for (family, host) in ["192.0.2.10", "2001:db8:1::1"].into_iter().enumerate() {
        assert_reaches(&a, &b, second.ips[family]);
        assert_reaches(&a, &node.host, host.parse().unwrap());
        assert_reaches(&node.host, &a, first.ips[family]);
    }
    node.block_on(network.check("sandbox-a")).unwrap();
    assert_eq!(network.attachment("sandbox-a"), Some(first.clone()));
    assert_eq!(node.open().attachment("sandbox-a"), Some(first.clone()), "by another life of the agent");
    let again = node.block_on(network.add(&sandbox("sandbox-a", &a.path()))).unwrap();
    assert_eq!(again, first, "a second ADD is the first");

    a.ip("route del default").unwrap();
    let error = node.block_on(network.check("sandbox-a")).unwrap_err();
    assert!(matches!(error, Error::Plugin { .. }), "{error}");

    node.block_on(network.del("sandbox-a", Some(&a.path()))).unwrap();
    node.block_on(network.del("sandbox-a", Some(&a.path()))).unwrap();
    node.block_on(network.del("sandbox-b", None)).unwrap();
    assert_eq!((node.lasting_leftovers(), node.files(), node.allocated("pods")), Default::default());
    assert!(matches!(node.block_on(network.check("sandbox-a")), Err(Error::NotAttached(_))));
    assert!(!a.ip("link").unwrap().contains("eth0"));
}

/// Sends a byte from one namespace to an address in the other.
fn assert_reaches(from: &Netns, to: &Netns, address: IpAddr) {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let mut client =
        from.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap()).unwrap();
    client.write_all(b"x").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn del_works_after_the_configuration_the_namespace_and_the_agent_changed() {
    let node = Node::with_plugin("changed");
    let a = Netns::unique("a").unwrap();
    node.block_on(node.open().add(&sandbox("sandbox-a", &a.path()))).unwrap();
    drop(a);
    fs::remove_file(node.roots.cni_conf.join("10-test.conflist")).unwrap();
    let network = node.open();
    node.block_on(network.del("sandbox-a", None)).unwrap();
    assert_eq!((node.lasting_leftovers(), node.files(), node.allocated("pods")), Default::default());
}

#[test]
fn gc_takes_away_what_earlier_lives_left_and_spares_its_own() {
    let node = Node::with_plugin("gc");
    let (a, b, c) = (Netns::unique("a").unwrap(), Netns::unique("b").unwrap(), Netns::unique("c").unwrap());
    let earlier = node.open();
    node.block_on(earlier.add(&sandbox("valid", &a.path()))).unwrap();
    node.block_on(earlier.add(&sandbox("gone", &b.path()))).unwrap();
    let network = node.open();
    node.block_on(network.add(&sandbox("new", &c.path()))).unwrap();
    // The set of valid sandboxes was made before "new" was attached.
    node.block_on(network.gc(&BTreeSet::from(["valid".to_owned()]))).unwrap();
    assert_eq!(node.allocated("pods"), ["new", "valid"]);
    assert_eq!(node.files(), ["new.json", "valid.json"]);
    assert_eq!(node.leftovers().lines().filter(|l| l.contains("fd77::2")).count(), 0);

    // An attachment without its file is found by the plugin's GC.
    fs::remove_file(node.roots.lasting_state.join("attachments/valid.json")).unwrap();
    node.block_on(node.open().gc(&BTreeSet::new())).unwrap();
    assert_eq!((node.lasting_leftovers(), node.files(), node.allocated("pods")), Default::default());
}

#[test]
fn another_boot_keeps_no_attachment_but_del_still_reaches_the_plugin() {
    let mut node = Node::with_plugin("boot");
    let a = Netns::unique("a").unwrap();
    node.block_on(node.open().add(&sandbox("sandbox-a", &a.path()))).unwrap();
    let boot = node.dir.path().join("boot-id");
    fs::write(&boot, "another-boot\n").unwrap();
    node.roots.boot_id = boot;
    let network = node.open();
    assert_eq!(network.attachment("sandbox-a"), None);
    node.block_on(network.gc(&BTreeSet::new())).unwrap();
    assert_eq!((node.lasting_leftovers(), node.files(), node.allocated("pods")), Default::default());
}

#[test]
fn a_torn_attachment_file_is_set_aside() {
    let node = Node::with_plugin("torn");
    let a = Netns::unique("a").unwrap();
    let network = node.open();
    node.block_on(network.add(&sandbox("sandbox-a", &a.path()))).unwrap();
    let path = node.roots.lasting_state.join("attachments/sandbox-a.json");
    let bytes = fs::read(&path).unwrap();
    // The first line is damaged: if only the second line is cut short, the first still counts.
    let first = bytes.iter().position(|b| *b == b'\n').unwrap();
    fs::write(&path, &bytes[..first / 2]).unwrap();
    assert_eq!(network.attachment("sandbox-a"), None);
    assert_eq!(node.files(), ["sandbox-a.json.torn"]);
    // The plugin's own journal is intact: GC finds the attachment that the file no longer contains.
    node.block_on(node.open().gc(&BTreeSet::new())).unwrap();
    assert_eq!((node.lasting_leftovers(), node.allocated("pods")), Default::default());
}

#[test]
fn many_at_once_get_addresses_of_their_own() {
    const PODS: usize = 24;
    let node = Node::with_plugin("burst");
    let pods: Vec<_> = (0..PODS).map(|_| Netns::unique("pod").unwrap()).collect();
    let network = node.open();
    let attachments = node.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for (n, pod) in pods.iter().enumerate() {
            let (network, request) = (network.clone(), sandbox(&format!("sandbox-{n}"), &pod.path()));
            tasks.spawn(async move { network.add(&request).await.unwrap() });
        }
        tasks.join_all().await
    });
    let ips: BTreeSet<_> = attachments.iter().flat_map(|a| a.ips.clone()).collect();
    assert_eq!(ips.len(), 2 * PODS);
    node.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..PODS {
            let network = network.clone();
            tasks.spawn(async move { network.del(&format!("sandbox-{n}"), None).await.unwrap() });
        }
        tasks.join_all().await
    });
    assert_eq!((node.lasting_leftovers(), node.files(), node.allocated("pods")), Default::default());
}
