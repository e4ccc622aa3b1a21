//! Pods for the tests of this crate.

use berth_core::{
    ids::{NodeName, PodKey, PodUid},
    model::{
        Container, Origin, Pod, PodDns, PodNamespaces, PodSecurity, PullPolicy, ResourceList, Resources,
        RestartPolicy, TerminationMessagePolicy,
    },
    time::Wall,
};
use std::collections::BTreeMap;

fn list(pairs: &[(&str, &str)]) -> ResourceList {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.parse().unwrap())).collect()
}

/// `cpu=100m,memory=1Gi` as a list; empty is empty.
fn parse(text: &str) -> ResourceList {
    list(&text.split(',').filter_map(|pair| pair.split_once('=')).collect::<Vec<_>>())
}

/// Requests and limits; a request that is missing while its limit is there equals it, as sources see to.
pub(crate) fn resources(requests: &str, limits: &str) -> Resources {
    let limits = parse(limits);
    let mut all = limits.clone();
    all.extend(parse(requests));
    Resources { requests: all, limits }
}

/// A main container.
pub(crate) fn container(requests: &str, limits: &str) -> Container {
    Container {
        name: "c".parse().unwrap(),
        image: "i".into(),
        pull_policy: PullPolicy::Never,
        command: vec![],
        args: vec![],
        working_dir: None,
        env_from: vec![],
        env: vec![],
        ports: vec![],
        resources: resources(requests, limits),
        mounts: vec![],
        liveness: None,
        readiness: None,
        startup: None,
        post_start: None,
        pre_stop: None,
        termination_message_path: "/dev/termination-log".into(),
        termination_message_policy: TerminationMessagePolicy::File,
        security: Default::default(),
        stdin: false,
        stdin_once: false,
        tty: false,
        sidecar: false,
    }
}

/// A sidecar.
pub(crate) fn sidecar(requests: &str, limits: &str) -> Container {
    Container { sidecar: true, ..container(requests, limits) }
}

/// A pod of these init and main containers.
pub(crate) fn pod(uid: &str, init: Vec<Container>, main: Vec<Container>) -> Pod {
    Pod {
        uid: PodUid::new(uid).unwrap(),
        key: PodKey { namespace: "ns".parse().unwrap(), name: "pod".parse().unwrap() },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: Wall(0),
        origin: Origin::Cluster,
        node: NodeName::new("node").unwrap(),
        restart_policy: RestartPolicy::Always,
        grace_seconds: 30,
        active_deadline_seconds: None,
        init_containers: init,
        containers: main,
        volumes: vec![],
        resources: None,
        overhead: None,
        namespaces: PodNamespaces::default(),
        dns: PodDns::default(),
        security: PodSecurity::default(),
        service_account: "default".into(),
        runtime_class: None,
        priority: 0,
        priority_class: None,
        enable_service_links: true,
        readiness_gates: vec![],
    }
}

/// The same pod with an overhead.
pub(crate) fn with_overhead(pod: Pod, overhead: &str) -> Pod {
    Pod { overhead: Some(parse(overhead)), ..pod }
}
