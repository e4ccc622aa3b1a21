use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn device(index: u32, addresses: &[&str]) -> Device {
    Device { index, addresses: addresses.iter().map(|a| ip(a)).collect(), ..Device::default() }
}

fn lo(more: &[&str]) -> (String, Device) {
    let mut lo = device(1, &["127.0.0.1"]);
    lo.addresses.extend(more.iter().map(|a| ip(a)));
    ("lo".to_owned(), Device { loopback: true, layer: LinkLayer::Other, ..lo })
}

fn named(name: &str, device: Device) -> (String, Device) {
    (name.to_owned(), device)
}

fn bridge(index: u32, addresses: &[&str]) -> Device {
    Device { bridge: true, ..device(index, addresses) }
}

fn route(v6: bool, metric: u32, source: Option<&str>, devices: &[u32]) -> DefaultRoute {
    DefaultRoute { v6, metric, source: source.map(ip), devices: devices.to_vec() }
}

fn config() -> HostNetworkConfig {
    HostNetworkConfig {
        cluster_dns: vec![ip("10.96.0.10")],
        whole_machine: true,
        ..HostNetworkConfig::default()
    }
}

/// The chosen node IPs, uplinks and problems.
fn chosen(
    cfg: &HostNetworkConfig,
    devices: Vec<(String, Device)>,
    routes: Vec<DefaultRoute>,
) -> (Vec<String>, Vec<u32>, Vec<NetworkProblem>) {
    let kernel = KernelNetwork { devices: devices.into_iter().collect(), routes };
    let HostNetwork { node_ips, uplinks, problems, .. } = HostNetwork::choose(cfg, &kernel);
    (node_ips.iter().map(ToString::to_string).collect(), uplinks.into_keys().collect(), problems)
}

#[test]
fn loopback_and_the_addresses_of_cluster_dns_are_never_the_nodes() {
    let devices = vec![lo(&["10.96.0.10"]), named("eth0", device(2, &["10.0.2.15"]))];
    let (ips, uplinks, problems) = chosen(&config(), devices, vec![]);
    assert_eq!((ips, uplinks, problems), (vec!["10.0.2.15".to_owned()], vec![2], vec![]));
    // Cluster DNS addresses on another device are no node IPs either.
    let devices = vec![lo(&[]), named("eth0", device(2, &["10.96.0.10", "10.0.2.15"]))];
    assert_eq!(chosen(&config(), devices, vec![]).0, ["10.0.2.15"]);
    // Another address of `lo` is no node IP either.
    let devices = vec![lo(&["203.0.113.7"]), named("eth0", device(2, &[]))];
    let (ips, uplinks, problems) = chosen(&config(), devices, vec![]);
    assert_eq!((ips.len(), uplinks.len()), (0, 0));
    assert_eq!(problems, [NetworkProblem::NoNodeIp, NetworkProblem::NoUplink]);
}

#[test]
fn endpoints_at_any_address_of_the_host_sit_in_its_network() {
    let kernel = KernelNetwork {
        devices: [lo(&["10.96.0.10"]), named("cni0", bridge(3, &["10.1.0.1", "fe80::1"]))].into(),
        routes: vec![],
    };
    let host = HostNetwork::choose(&config(), &kernel);
    assert_eq!(host.addresses, [ip("10.1.0.1"), ip("10.96.0.10")].into());
    assert_eq!(host.host_ips(), [ip("127.0.0.1")]);
    assert_eq!(host.cluster_dns, [ip("10.96.0.10")].into(), "answered here");
    // A left-over device of another proxy (kube-ipvs0) answers no Service here.
    let kernel = KernelNetwork {
        devices: [lo(&[]), named("kube-ipvs0", device(4, &["10.96.0.10"]))].into(),
        routes: vec![],
    };
    assert!(HostNetwork::choose(&config(), &kernel).cluster_dns.is_empty());
}

#[test]
fn the_default_routes_device_bears_the_node_ip() {
    let devices = || {
        vec![
            lo(&[]),
            named("eth0", device(2, &["198.51.100.1"])),
            named("eth1", device(3, &["192.0.2.1", "192.0.2.2"])),
        ]
    };
    let table = [
        (vec![], "198.51.100.1"),
        (vec![route(false, 0, None, &[3])], "192.0.2.1"),
        (vec![route(false, 0, Some("192.0.2.2"), &[3])], "192.0.2.2"),
        // A route's source that no device has is ignored.
        (vec![route(false, 0, Some("192.0.2.9"), &[3])], "192.0.2.1"),
        (vec![route(false, 200, None, &[2]), route(false, 100, None, &[3])], "192.0.2.1"),
        (vec![route(false, 0, None, &[9])], "198.51.100.1"),
        (vec![route(false, 0, None, &[3, 2])], "192.0.2.1"),
    ];
    for (routes, want) in table {
        let (ips, uplinks, _) = chosen(&config(), devices(), routes.clone());
        assert_eq!((ips, uplinks), (vec![want.to_owned()], vec![2, 3]), "{routes:?}");
    }
}

#[test]
fn a_source_on_loopback_is_the_node_ip_where_the_default_route_says_so() {
    // Routed host: BGP on unnumbered links.
    let devices = vec![lo(&["203.0.113.7"]), named("swp1", device(2, &[])), named("swp2", device(3, &[]))];
    let routes = vec![route(false, 0, Some("203.0.113.7"), &[2, 3])];
    let (ips, uplinks, problems) = chosen(&config(), devices, routes);
    assert_eq!((ips, uplinks, problems), (vec!["203.0.113.7".to_owned()], vec![2, 3], vec![]));
}

#[test]
fn a_bridge_counts_only_where_it_bears_the_nodes_address() {
    // The uplink stands beside docker0 and cni0, which come first by index and by name.
    let local = || {
        vec![lo(&[]), named("cni0", bridge(2, &["10.1.0.1"])), named("docker0", bridge(3, &["172.17.0.1"]))]
    };
    let mut devices = local();
    devices.push(named("eth0", device(9, &["192.0.2.1"])));
    let (ips, uplinks, _) = chosen(&config(), devices, vec![]);
    assert_eq!((ips, uplinks), (vec!["192.0.2.1".to_owned()], vec![9]));

    let mut devices = local();
    devices.push(named("br0", bridge(9, &["192.0.2.1"])));
    devices.push(named("eth0", device(4, &[])));
    let (ips, uplinks, problems) = chosen(&config(), devices.clone(), vec![route(false, 0, None, &[9])]);
    assert_eq!((ips, uplinks, problems), (vec!["192.0.2.1".to_owned()], vec![9], vec![]));
    // Without a route only the option tells br0 from docker0.
    let given = HostNetworkConfig { node_ips: vec![ip("192.0.2.1")], ..config() };
    let (ips, uplinks, _) = chosen(&given, devices, vec![]);
    assert_eq!((ips, uplinks), (vec!["192.0.2.1".to_owned()], vec![9]));

    let (ips, uplinks, problems) = chosen(&config(), local(), vec![]);
    assert_eq!((ips.len(), uplinks.len()), (0, 0));
    assert_eq!(problems, [NetworkProblem::NoNodeIp, NetworkProblem::NoUplink]);
}

#[test]
fn a_family_without_a_route_takes_the_others_device() {
    let devices = vec![
        lo(&[]),
        named("eth0", device(2, &["198.51.100.1", "2001:db8:1::1", "fe80::2"])),
        named("eth1", device(3, &["192.0.2.1", "fe80::3", "2001:db8:2::1"])),
    ];
    let (ips, ..) = chosen(&config(), devices.clone(), vec![route(false, 0, None, &[3])]);
    assert_eq!(ips, ["192.0.2.1", "2001:db8:2::1"]);
    let routes = vec![route(false, 0, None, &[3]), route(true, 1024, None, &[2])];
    assert_eq!(chosen(&config(), devices, routes).0, ["192.0.2.1", "2001:db8:1::1"]);
}

#[test]
fn layer_3_devices_are_known_as_such() {
    let wg = Device { layer: LinkLayer::Layer3, ..device(5, &["10.8.0.2"]) };
    let odd = Device { layer: LinkLayer::Other, ..device(6, &["10.9.0.2"]) };
    let devices =
        vec![lo(&[]), named("eth0", device(2, &["192.0.2.1"])), named("wg0", wg), named("ib0", odd)];
    let kernel = KernelNetwork { devices: devices.into_iter().collect(), routes: vec![] };
    let host = HostNetwork::choose(&config(), &kernel);
    let layers: Vec<_> = host.uplinks.iter().map(|(index, up)| (*index, &*up.name, up.layer)).collect();
    assert_eq!(layers, [(2, "eth0", LinkLayer::Ethernet)]);
    for name in ["wg0", "ib0"] {
        let unfit =
            |p: &NetworkProblem| matches!(p, NetworkProblem::UnfitUplink { device, .. } if device == name);
        assert!(host.problems.iter().any(unfit), "{name}: {:?}", host.problems);
    }
}

#[test]
fn what_is_given_counts() {
    let given = HostNetworkConfig {
        node_ips: vec![ip("198.51.100.9")],
        uplinks: vec!["eth1".to_owned(), "lo".to_owned(), "eth7".to_owned()],
        ..config()
    };
    let devices = vec![lo(&[]), named("eth0", device(2, &["192.0.2.1"])), named("eth1", device(3, &[]))];
    let kernel = KernelNetwork { devices: devices.into_iter().collect(), routes: vec![] };
    let host = HostNetwork::choose(&given, &kernel);
    assert_eq!(host.node_ips, given.node_ips);
    assert!(host.addresses.contains(&ip("198.51.100.9")));
    assert_eq!(host.uplinks.keys().copied().collect::<Vec<_>>(), [3]);
    let [NetworkProblem::NoSuchUplink(absent), NetworkProblem::UnfitUplink { device: unfit, .. }] =
        &*host.problems
    else {
        panic!("{:?}", host.problems);
    };
    assert_eq!((absent.as_str(), unfit.as_str()), ("eth7", "lo"));

    let part = HostNetworkConfig { whole_machine: false, ..config() };
    let (ips, uplinks, problems) =
        chosen(&part, vec![lo(&[]), named("eth0", device(2, &["192.0.2.1"]))], vec![]);
    assert_eq!((ips, uplinks, problems), (vec!["192.0.2.1".to_owned()], vec![], vec![]));
}

#[test]
fn a_node_whose_neighbours_have_services_addresses_is_told() {
    let cfg = HostNetworkConfig {
        service_networks: vec![(ip("10.96.0.0"), 16), (ip("fd00:96::"), 112)],
        ..config()
    };
    let problems = |address: &str| {
        let devices = vec![lo(&["10.96.0.10"]), named("eth0", device(2, &[address]))];
        chosen(&cfg, devices, vec![]).2
    };
    for apart in ["10.97.0.1", "10.95.255.255", "fd00:96::1:0", "192.0.2.1"] {
        assert_eq!(problems(apart), [], "{apart}");
    }
    for (address, network) in
        [("10.96.3.4", cfg.service_networks[0]), ("fd00:96::7", cfg.service_networks[1])]
    {
        assert_eq!(problems(address), [NetworkProblem::AmongServices { address: ip(address), network }]);
    }
    let said = problems("10.96.3.4")[0].to_string();
    assert!(said.contains("10.96.3.4 lies in the network of Services, 10.96.0.0/16"), "{said}");
}
