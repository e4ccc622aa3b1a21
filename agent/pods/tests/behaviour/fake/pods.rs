//! Pods for the tests.

use berth_core::{ids::*, model::*, time::Wall};
use std::collections::BTreeMap;

pub fn uid(text: &str) -> PodUid {
    PodUid::new(text).unwrap()
}

pub fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

pub fn container(text: &str) -> Container {
    Container {
        name: name(text),
        image: "img".into(),
        pull_policy: PullPolicy::IfNotPresent,
        command: Vec::new(),
        args: Vec::new(),
        working_dir: None,
        env_from: Vec::new(),
        env: Vec::new(),
        ports: Vec::new(),
        resources: Resources::default(),
        mounts: Vec::new(),
        liveness: None,
        readiness: None,
        startup: None,
        post_start: None,
        pre_stop: None,
        termination_message_path: "/dev/termination-log".into(),
        termination_message_policy: TerminationMessagePolicy::File,
        security: ContainerSecurity::default(),
        stdin: false,
        stdin_once: false,
        tty: false,
        sidecar: false,
    }
}

pub fn probe(period_seconds: u32) -> Probe {
    Probe {
        action: ProbeAction::Tcp { host: None, port: PortRef::Number(80) },
        initial_delay_seconds: 0,
        timeout_seconds: 1,
        period_seconds,
        success_threshold: 1,
        failure_threshold: 3,
        grace_seconds: None,
    }
}

/// With a readiness probe.
pub fn probed(text: &str) -> Container {
    Container { readiness: Some(probe(10)), ..container(text) }
}

/// UID `u-<name>`, one main container `c` where none is given.
pub fn pod(text: &str, containers: Vec<Container>) -> Pod {
    let containers = if containers.is_empty() { vec![container("c")] } else { containers };
    Pod {
        uid: uid(&format!("u-{text}")),
        key: PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new(text).unwrap() },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: Wall(0),
        origin: Origin::Cluster,
        node: NodeName::new("n").unwrap(),
        restart_policy: RestartPolicy::Always,
        grace_seconds: 30,
        active_deadline_seconds: None,
        init_containers: Vec::new(),
        containers,
        volumes: Vec::new(),
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
        readiness_gates: Vec::new(),
    }
}

pub fn config_map(name: &str, value: &str) -> KeyedData {
    KeyedData {
        namespace: Namespace::new("default").unwrap(),
        name: name.into(),
        data: [("k".to_owned(), value.as_bytes().to_vec())].into(),
    }
}

/// One that shows a ConfigMap as a volume.
pub fn showing(text: &str, config_map: &str) -> Pod {
    let source = VolumeSource::ConfigMap(KeysVolume {
        name: config_map.into(),
        items: Vec::new(),
        default_mode: 0o644,
        optional: true,
    });
    Pod { volumes: vec![Volume { name: VolumeName::new("v").unwrap(), source }], ..pod(text, vec![]) }
}
