//! Builders of pods for the tests.

use berth_core::{ids::*, model::*};

pub fn uid(text: &str) -> PodUid {
    PodUid::new(text).unwrap()
}

pub fn name(text: &str) -> ContainerName {
    ContainerName::new(text).unwrap()
}

pub fn container(text: &str) -> Container {
    Container::new(name(text), "img")
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

/// A container with a readiness probe.
pub fn probed(text: &str) -> Container {
    Container { readiness: Some(probe(10)), ..container(text) }
}

/// A pod of UID `u-<name>`; without containers given, the pod has one main container `c`.
pub fn pod(text: &str, containers: Vec<Container>) -> Pod {
    let containers = if containers.is_empty() { vec![container("c")] } else { containers };
    let key = PodKey { namespace: Namespace::new("default").unwrap(), name: PodName::new(text).unwrap() };
    Pod { containers, ..Pod::new(uid(&format!("u-{text}")), key, NodeName::new("n").unwrap()) }
}

pub fn config_map(name: &str, value: &str) -> KeyedData {
    KeyedData {
        kind: None,
        uid: String::new(),
        binary_data: Default::default(),
        namespace: Namespace::new("default").unwrap(),
        name: name.into(),
        data: [("k".to_owned(), value.as_bytes().to_vec())].into(),
    }
}

/// A pod with a ConfigMap volume.
pub fn showing(text: &str, config_map: &str) -> Pod {
    let source = VolumeSource::ConfigMap(KeysVolume {
        name: config_map.into(),
        items: Vec::new(),
        default_mode: 0o644,
        optional: true,
    });
    let name = VolumeName::new("v").unwrap();
    let mount = VolumeMount {
        volume: name.clone(),
        mount_path: "/v".into(),
        read_only: false,
        recursive_read_only: RecursiveReadOnly::Disabled,
        sub_path: None,
        propagation: MountPropagation::None,
    };
    let showing = Container { mounts: vec![mount], ..container("c") };
    Pod { volumes: vec![Volume { name, source }], ..pod(text, vec![showing]) }
}
