//! A pod of one container for this module's tests.

use berth_core::{
    ids::PodKey,
    model::{Container, Pod},
};

pub(super) fn container(name: &str) -> Container {
    Container::new(name.parse().unwrap(), "berth.test/busybox:1")
}

pub(super) fn pod() -> Pod {
    let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
    Pod { containers: vec![container("app")], ..Pod::new("u1".parse().unwrap(), key, "n".parse().unwrap()) }
}
