use super::*;
use crate::testing::{Node, facts, pod};
use std::{fs, os::unix::fs::MetadataExt as _};

fn read(node: &Node, p: &Pod, name: &str) -> String {
    fs::read_to_string(node.pod_dir(p).join(name)).unwrap()
}

#[test]
fn hosts_resolv_conf_hostname_and_shm_are_made() {
    let node = Node::new();
    let mut p = pod("web-0");
    p.dns.subdomain = Some("sub".into());
    p.dns.hostname_as_fqdn = true;
    assert_eq!(node.volumes.prepare_files(&p, &facts()).unwrap(), []);
    assert!(read(&node, &p, "etc-hosts").contains("10.1.2.3\tweb-0.sub.default.svc.cluster.local\tweb-0\n"));
    assert_eq!(read(&node, &p, "hostname"), "web-0.sub.default.svc.cluster.local\n");
    assert!(read(&node, &p, "resolv.conf").starts_with("search default.svc.cluster.local svc.cluster.local"));
    for name in ["etc-hosts", "hostname", "resolv.conf"] {
        assert_eq!(fs::metadata(node.pod_dir(&p).join(name)).unwrap().mode() & 0o7777, 0o644, "{name}");
    }
    let shm = node.pod_dir(&p).join("shm");
    let stat = rustix::fs::statvfs(&shm).unwrap();
    assert_eq!(stat.f_blocks * stat.f_frsize, 64 << 20);
    assert_eq!(fs::metadata(&shm).unwrap().mode() & 0o7777, 0o1777);
    let mount = berth_sys::mount::mounts_below(&shm).unwrap().pop().unwrap();
    assert!(["nosuid", "nodev", "noexec"].iter().all(|o| mount.has_option(o)), "{mount:?}");
    // The tmpfs has no `noswap`, as in containerd's CRI plugin.
    assert!(!mount.has_super_option("noswap"), "{}", mount.super_options);
    assert_eq!((mount.fs_type.as_str(), mount.source.to_str()), ("tmpfs", Some("shm")));
}

#[test]
fn changes_are_written_into_the_same_file() {
    let node = Node::new();
    let p = pod("web-0");
    let mut f = facts();
    node.volumes.prepare_files(&p, &f).unwrap();
    let hosts = node.pod_dir(&p).join("etc-hosts");
    let (before, mtime) = fs::metadata(&hosts).map(|m| (m.ino(), m.mtime_nsec())).unwrap();
    node.volumes.prepare_files(&p, &f).unwrap();
    assert_eq!(fs::metadata(&hosts).unwrap().mtime_nsec(), mtime, "not written without need");
    f.ips = vec!["10.9.9.9".parse().unwrap()];
    node.volumes.prepare_files(&p, &f).unwrap();
    assert_eq!(fs::metadata(&hosts).unwrap().ino(), before);
    let text = read(&node, &p, "etc-hosts");
    assert!(text.ends_with("ip6-allrouters\n10.9.9.9\tweb-0\n"), "{text}");
    assert_eq!(node.mounts().len(), 1, "one shm");
}

#[test]
fn host_network_pods_see_the_nodes_files() {
    let node = Node::new();
    let mut p = pod("web-0");
    p.namespaces.host_network = true;
    p.namespaces.host_ipc = true;
    node.volumes.prepare_files(&p, &facts()).unwrap();
    assert_eq!(
        read(&node, &p, "etc-hosts"),
        "# Kubernetes-managed hosts file (host network).\n127.0.0.1 the-node\n"
    );
    assert_eq!(read(&node, &p, "resolv.conf"), "search example.org\nnameserver 192.0.2.1\n");
    let nodename = rustix::system::uname();
    assert_eq!(read(&node, &p, "hostname"), format!("{}\n", nodename.nodename().to_str().unwrap()));
    assert!(!node.pod_dir(&p).join("shm").exists());
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    let node = Node::new();
    let p = pod("web-0");
    fs::create_dir_all(node.pod_dir(&p)).unwrap();
    let victim = node.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, node.pod_dir(&p).join("etc-hosts")).unwrap();
    assert!(node.volumes.prepare_files(&p, &facts()).is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_missing_node_file_is_an_error_that_names_it() {
    let node = Node::new();
    fs::remove_file(&node.roots.resolv_conf).unwrap();
    let e = node.volumes.prepare_files(&pod("x"), &facts()).unwrap_err();
    assert!(e.message().contains(node.roots.resolv_conf.to_str().unwrap()), "{}", e.message());
}
