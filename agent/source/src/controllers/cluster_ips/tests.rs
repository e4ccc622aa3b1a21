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

/// The Services as they are shown, in the order that they were given in.
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
fn what_is_given_stays_over_restarts_and_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    let open = || ClusterIpAllocator::open(Some(ranges()), folder.path());
    let many: String = (0..100).map(|n| a(&format!("s{n}"), "ports: [{port: 80}]")).collect();
    let mut allocator = open();
    let first = fill(&mut allocator, &services(&many), true);
    allocator.keep().unwrap();
    let ips: BTreeSet<IpAddr> = first.iter().map(|s| s.service.cluster_ips[0]).collect();
    assert_eq!(ips.len(), 100);
    assert!(ips.iter().all(|ip| holds("10.96.0.0".parse().unwrap(), 24, *ip)));
    assert!(
        ips.iter().all(|ip| *ip >= "10.96.0.16".parse::<IpAddr>().unwrap()),
        "the lowest are given by hand"
    );
    // Others come before them, one by one, and one of them takes an address by hand.
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
    // One that is gone gives its address back, but only when all are known.
    fill(&mut allocator, &[], false);
    assert_eq!(allocator.journal.services.len(), 101);
    fill(&mut allocator, &[], true);
    assert!(allocator.journal.services.is_empty());
}

#[test]
fn families_types_and_ports() {
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
fn what_is_not_to_be_had_is_told_until_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let ports = |n: u8| a(&format!("s{n}"), "type: NodePort, ports: [{port: 80}]");
    let all: String = (0..5).map(ports).collect();
    let told = |allocator: &ClusterIpAllocator| -> Vec<String> {
        allocator.short().map(|(key, what)| format!("{key}: {what}")).collect()
    };
    fill(&mut allocator, &services(&all), true);
    let [one] = told(&allocator).try_into().unwrap();
    assert!(one.ends_with("a node port for /TCP"), "{one}");
    fill(&mut allocator, &services(&all), true);
    assert_eq!(told(&allocator), std::slice::from_ref(&one), "still");
    let short = one.split(':').next().unwrap().trim_start_matches("default/s").parse::<u8>().unwrap();
    let other = (0..5).find(|n| *n != short).unwrap();
    let fewer: String = (0..5).filter(|n| *n != other).map(ports).collect();
    fill(&mut allocator, &services(&fewer), true);
    assert_eq!(told(&allocator), [""; 0]);
}

#[test]
fn a_torn_journal_is_set_aside_and_the_same_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let web = services(&a("web", "ports: [{port: 80}]"));
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let first = fill(&mut allocator, &web, true);
    allocator.keep().unwrap();
    let whole = std::fs::read(&allocator.path).unwrap();
    std::fs::write(&allocator.path, &whole[..whole.len() / 2]).unwrap();
    let mut allocator = ClusterIpAllocator::open(Some(ranges()), folder.path());
    let again = fill(&mut allocator, &web, true);
    assert_eq!(first[0].service, again[0].service);
}

/// The model: the whole journal made anew.
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
    // What is not needed any more is given back: the manifest names its own, or the type changed.
    for (name, given) in &mut next.services {
        let Some(service) = there.get(name) else { continue };
        let families = missing_families(service, ranges);
        given.addresses.retain(|ip| {
            families.contains(&ip.is_ipv6())
                && ranges.networks.iter().any(|(net, len)| holds(*net, *len, *ip))
        });
        let wanted: BTreeSet<String> = missing_ports(service).map(port_name).collect();
        given.node_ports.retain(|name, port| wanted.contains(name) && ranges.node_ports.contains(port));
    }
    let mut taken = UseCounts::default();
    taken.count(&ranges.reserved, [], true);
    services.iter().for_each(|s| taken.stated(&s.service, true));
    next.services.values().for_each(|given| taken.given(given, true));
    for (name, service) in &there {
        let had = next.services.get(name).cloned().unwrap_or_default();
        let mut given = had.clone();
        for v6 in missing_families(service, ranges) {
            let network = ranges.networks.iter().find(|(net, _)| net.is_ipv6() == v6);
            let Some((net, len)) = network.filter(|_| had.addresses.iter().all(|ip| ip.is_ipv6() != v6))
            else {
                continue;
            };
            if let Some(ip) = address(name, *net, *len, &taken) {
                taken.count([&ip], [], true);
                given.addresses.push(ip);
            }
        }
        for port in missing_ports(service) {
            let (of, protocol) = (port_name(port), word(port.protocol));
            if given.node_ports.contains_key(&of) {
                continue;
            }
            let free = |number| !taken.port(protocol, number);
            if let Some(number) = node_port(&format!("{name}:{of}"), &ranges.node_ports, free) {
                taken.count([], [(protocol, number)], true);
                given.node_ports.insert(of, number);
            }
        }
        if given != Assigned::default() {
            next.services.insert(name.clone(), given);
        } else {
            next.services.remove(name);
        }
    }
    next
}

/// What a manifest may say of a Service, by number; some need more than the narrow ranges have.
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
    /// Change by change it comes to what all Services together would be given, starting from the same journal.
    #[test]
    fn a_change_gives_what_the_whole_would(
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
                let given = journal.services.get(&stated.service.key.to_string());
                let expected = given.and_then(|g| filled(stated, g));
                prop_assert_eq!(expected.as_ref().unwrap_or(stated), &**shown);
            }
            allocator.keep().unwrap();
            let again = ClusterIpAllocator::open(Some(narrow.clone()), folder.path());
            prop_assert_eq!(&again.journal.services, &journal.services);
        }
        fill(&mut allocator, &[], true);
        let mut reserved = UseCounts::default();
        reserved.count(&narrow.reserved, [], true);
        prop_assert_eq!(&allocator.taken, &reserved, "everything was given back");
    }
}
