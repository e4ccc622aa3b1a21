use super::*;
use crate::manifest::{ManifestContext, Mode, parse_file};
use berth_core::time::Wall;
use proptest::prelude::*;

fn services(text: &str) -> Vec<Arc<DesiredService>> {
    let ctx =
        ManifestContext { node: "n".parse().unwrap(), mode: Mode::Manifests, now: Wall(0), services: None };
    let parsed = parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx).unwrap_or_else(|e| panic!("{e}"));
    let desired = parsed
        .services
        .into_iter()
        .map(|e| Arc::new(DesiredService { service: Arc::new(e.service), raw: Arc::new(e.raw) }));
    desired.collect()
}

/// Returns the Services with their assignments, in the order of `services`.
fn fill(
    allocator: &mut ClusterIpAllocator,
    services: &[Arc<DesiredService>],
    all: bool,
) -> Vec<Arc<DesiredService>> {
    let mut set = Shared::default();
    services.iter().for_each(|s| set.put(Arc::clone(s)));
    let shown = allocator.fill(&set, all);
    assert_eq!(shown.len(), services.len());
    services.iter().map(|s| Arc::clone(shown.get(s.key()).unwrap())).collect()
}

fn a(name: &str, spec: &str) -> String {
    format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n---\n")
}

fn ranges() -> ServiceRanges {
    ServiceRanges {
        networks: vec![("10.96.0.0".parse().unwrap(), 24), ("fd00:96::".parse().unwrap(), 112)],
        node_ports: 30_000..=30_003,
        reserved: vec!["10.96.0.10".parse().unwrap()],
    }
}

#[test]
fn an_assigned_address_is_unique_and_stays_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let open = || ClusterIpAllocator::open(Some(ranges()), folder.path());
    let many: String = (0..100).map(|n| a(&format!("s{n}"), "ports: [{port: 80}]")).collect();
    let mut allocator = open();
    let first = fill(&mut allocator, &services(&many), true);
    allocator.save().unwrap();
    let ips: BTreeSet<IpAddr> = first.iter().map(|s| s.service.cluster_ips[0]).collect();
    assert_eq!(ips.len(), 100);
    assert!(ips.iter().all(|ip| holds("10.96.0.0".parse().unwrap(), 24, *ip)));
    assert!(
        ips.iter().all(|ip| *ip >= "10.96.0.16".parse::<IpAddr>().unwrap()),
        "the lowest are assigned by hand"
    );
    // Two new Services come first by name, and one of them states an address that is already assigned.
    let hand = first[3].service.cluster_ips[0];
    let more = a("a0", &format!("clusterIP: {hand}, ports: [{{port: 1}}]"))
        + &a("a1", "ports: [{port: 80}]")
        + &many;
    let mut allocator = open();
    let second = fill(&mut allocator, &services(&more), true);
    for (before, now) in first.iter().zip(&second[2..]) {
        assert_eq!(before.service.cluster_ips, now.service.cluster_ips);
        assert_eq!(now.raw["spec"]["clusterIP"], json!(now.service.cluster_ips[0]));
    }
    assert_eq!(second[0].service.cluster_ips, [hand]);
    assert!(!ips.contains(&second[1].service.cluster_ips[0]));
    // The address of a removed Service is freed only when all Services are known.
    fill(&mut allocator, &[], false);
    assert_eq!(allocator.journal.services.len(), 101);
    fill(&mut allocator, &[], true);
    assert!(allocator.journal.services.is_empty());
}

#[test]
fn addresses_and_node_ports_follow_families_types_and_protocols() {
    let folder = tempfile::tempdir().unwrap();
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let text = [
        a("dual", "ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]"),
        a("six", "ipFamilies: [IPv6], ports: [{port: 80}]"),
        a("none", "clusterIP: None, ports: [{port: 80}]"),
        a("named", "type: ExternalName, externalName: example.org"),
        a(
            "np",
            "type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81, nodePort: 30002}, {name: c, port: 82}]",
        ),
        a("lb", "type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]"),
        a("udp", "type: NodePort, ports: [{port: 80, protocol: UDP}]"),
    ];
    let all = fill(&mut allocator, &services(&text.concat()), true);
    let families =
        |n: usize| -> Vec<bool> { all[n].service.cluster_ips.iter().map(IpAddr::is_ipv6).collect() };
    assert_eq!(families(0), [false, true]);
    assert_eq!(families(1), [true]);
    assert!(families(2).is_empty() && families(3).is_empty());
    let ports: Vec<u16> = all[4].service.ports.iter().map(|p| p.node_port.unwrap()).collect();
    assert_eq!(ports[1], 30_002);
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(all[4].raw["spec"]["ports"][0]["nodePort"], ports[0]);
    assert_eq!(all[5].service.ports[0].node_port, None);
    assert!(all[6].service.ports[0].node_port.is_some(), "another protocol's ports are other ports");
}

#[test]
fn a_service_without_a_free_node_port_is_reported_until_one_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let ports = |n: u8| a(&format!("s{n}"), "type: NodePort, ports: [{port: 80}]");
    let all: String = (0..5).map(ports).collect();
    let reported = |allocator: &ClusterIpAllocator| -> Vec<String> {
        allocator.unallocated().map(|(key, what)| format!("{key}: {what}")).collect()
    };
    fill(&mut allocator, &services(&all), true);
    let [one] = reported(&allocator).try_into().unwrap();
    assert!(one.ends_with("a node port for /TCP"), "{one}");
    fill(&mut allocator, &services(&all), true);
    assert_eq!(reported(&allocator), std::slice::from_ref(&one), "still");
    let without = one.split(':').next().unwrap().trim_start_matches("default/s").parse::<u8>().unwrap();
    let other = (0..5).find(|n| *n != without).unwrap();
    let fewer: String = (0..5).filter(|n| *n != other).map(ports).collect();
    fill(&mut allocator, &services(&fewer), true);
    assert_eq!(reported(&allocator), [""; 0]);
}

#[test]
fn a_torn_journal_is_set_aside_and_the_same_addresses_are_assigned_again() {
    let folder = tempfile::tempdir().unwrap();
    let web = services(&a("web", "ports: [{port: 80}]"));
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let first = fill(&mut allocator, &web, true);
    allocator.save().unwrap();
    let whole = std::fs::read(&allocator.path).unwrap();
    std::fs::write(&allocator.path, &whole[..whole.len() / 2]).unwrap();
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let again = fill(&mut allocator, &web, true);
    assert_eq!(first[0].service, again[0].service);
}

/// The model: computes the journal from all Services at once.
fn whole(
    journal: &AllocationJournal,
    ranges: &ServiceRanges,
    services: &[Arc<DesiredService>],
    all: bool,
) -> AllocationJournal {
    let there: BTreeMap<String, &DesiredService> =
        services.iter().map(|s| (s.service.key.to_string(), &**s)).collect();
    let mut next = journal.clone();
    next.services.retain(|name, _| !all || there.contains_key(name));
    // Assignments that a Service no longer needs are freed.
    for (name, assigned) in &mut next.services {
        let Some(service) = there.get(name) else { continue };
        let families = missing_families(service, ranges);
        assigned.addresses.retain(|ip| {
            families.contains(&ip.is_ipv6())
                && ranges.networks.iter().any(|(net, len)| holds(*net, *len, *ip))
        });
        let wanted: BTreeSet<String> = missing_ports(service).map(port_name).collect();
        assigned.node_ports.retain(|name, port| wanted.contains(name) && ranges.node_ports.contains(port));
    }
    let mut in_use = UseCounts::default();
    in_use.count(&ranges.reserved, [], true);
    services.iter().for_each(|s| in_use.count_manifest(&s.service, true));
    next.services.values().for_each(|assigned| in_use.count_assigned(assigned, true));
    for (name, service) in &there {
        let had = next.services.get(name).cloned().unwrap_or_default();
        let mut assigned = had.clone();
        for v6 in missing_families(service, ranges) {
            let network = ranges.networks.iter().find(|(net, _)| net.is_ipv6() == v6);
            let Some((net, len)) = network.filter(|_| had.addresses.iter().all(|ip| ip.is_ipv6() != v6))
            else {
                continue;
            };
            if let Some(ip) = address(name, *net, *len, &in_use) {
                in_use.count([&ip], [], true);
                assigned.addresses.push(ip);
            }
        }
        for port in missing_ports(service) {
            let (of, protocol) = (port_name(port), word(port.protocol));
            if assigned.node_ports.contains_key(&of) {
                continue;
            }
            let free = |number| !in_use.port(protocol, number);
            if let Some(number) = node_port(&format!("{name}:{of}"), &ranges.node_ports, free) {
                in_use.count([], [(protocol, number)], true);
                assigned.node_ports.insert(of, number);
            }
        }
        if assigned != Assigned::default() {
            next.services.insert(name.clone(), assigned);
        } else {
            next.services.remove(name);
        }
    }
    next
}

/// A Service of this kind; some kinds need more addresses or ports than the narrow ranges have.
fn kind(number: u8, name: &str) -> Arc<DesiredService> {
    let spec = match number {
        0 => "ports: [{port: 80}]".to_owned(),
        1 => "ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]".to_owned(),
        2 => "clusterIP: None, ports: [{port: 80}]".to_owned(),
        3 => "type: NodePort, ports: [{name: a, port: 80}, {name: b, port: 81}]".to_owned(),
        4 => "type: NodePort, ports: [{name: a, port: 80, nodePort: 30001}, {name: b, port: 81}]".to_owned(),
        5 => "type: NodePort, ports: [{name: a, port: 80, protocol: UDP}]".to_owned(),
        n => format!("clusterIP: 10.96.0.{n}, ports: [{{port: 80}}]"),
    };
    services(&a(name, &spec)).remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Compares with the model after each change, starting from the same journal.
    #[test]
    fn changes_one_by_one_assign_what_all_services_at_once_would(
        steps in prop::collection::vec((0..12_u8, 0..10_u8, 0..4_u8, any::<bool>()), 1..60),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let narrow = ServiceRanges { networks: vec![("10.96.0.0".parse().unwrap(), 29), ("fd00::".parse().unwrap(), 125)], ..ranges() };
        let mut allocator = ClusterIpAllocator::open(Some(narrow.clone()), folder.path());
        let mut there: BTreeMap<u8, Arc<DesiredService>> = BTreeMap::new();
        let mut journal = AllocationJournal::default();
        for (name, number, what, all) in steps {
            match what {
                0 => drop(there.remove(&name)),
                _ => drop(there.insert(name, kind(number, &format!("s{name}")))),
            }
            let services: Vec<Arc<DesiredService>> = there.values().cloned().collect();
            journal = whole(&journal, &narrow, &services, all);
            let shown = fill(&mut allocator, &services, all);
            prop_assert_eq!(&allocator.journal.services, &journal.services);
            for (stated, shown) in services.iter().zip(&shown) {
                let assigned = journal.services.get(&stated.service.key.to_string());
                let expected = assigned.and_then(|g| filled(stated, g));
                prop_assert_eq!(expected.as_ref().unwrap_or(stated), &**shown);
            }
            allocator.save().unwrap();
            let again = ClusterIpAllocator::open(Some(narrow.clone()), folder.path());
            prop_assert_eq!(&again.journal.services, &journal.services);
        }
        fill(&mut allocator, &[], true);
        let mut reserved = UseCounts::default();
        reserved.count(&narrow.reserved, [], true);
        prop_assert_eq!(&allocator.in_use, &reserved, "every assignment was freed");
    }
}
