//! A pod of one container for this module's tests.

use berth_core::{
    ids::{ContainerName, Namespace, NodeName, PodKey, PodName, PodUid},
    model::{
        Container, ContainerSecurity, Origin, Pod, PodDns, PodNamespaces, PodSecurity, PullPolicy, Resources,
        RestartPolicy, TerminationMessagePolicy,
    },
    time::Wall,
};
use std::collections::BTreeMap;

pub(super) fn container(name: &str) -> Container {
    Container {
        name: ContainerName::new(name).unwrap(),
        image: "berth.test/busybox:1".to_owned(),
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
        termination_message_path: "/dev/termination-log".to_owned(),
        termination_message_policy: TerminationMessagePolicy::File,
        security: ContainerSecurity::default(),
        stdin: false,
        stdin_once: false,
        tty: false,
        sidecar: false,
    }
}

pub(super) fn pod() -> Pod {
    Pod {
        uid: PodUid::new("u1").unwrap(),
        key: PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new("p").unwrap() },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: Wall(0),
        origin: Origin::Cluster,
        node: NodeName::new("n").unwrap(),
        restart_policy: RestartPolicy::Always,
        grace_seconds: 30,
        active_deadline_seconds: None,
        init_containers: Vec::new(),
        containers: vec![container("app")],
        volumes: Vec::new(),
        resources: None,
        overhead: None,
        namespaces: PodNamespaces::default(),
        dns: PodDns::default(),
        security: PodSecurity::default(),
        service_account: "default".to_owned(),
        runtime_class: None,
        priority: 0,
        priority_class: None,
        enable_service_links: true,
        readiness_gates: Vec::new(),
    }
}
