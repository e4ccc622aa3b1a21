//! Pods for the tests of this crate.

use berth_core::{
    ids::PodKey,
    model::{Container, Pod, ResourceList, Resources},
};

fn list(pairs: &[(&str, &str)]) -> ResourceList {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), v.parse().unwrap())).collect()
}

/// Parses `cpu=100m,memory=1Gi` to a resource list; an empty text gives an empty list.
fn parse(text: &str) -> ResourceList {
    list(&text.split(',').filter_map(|pair| pair.split_once('=')).collect::<Vec<_>>())
}

/// Resources of these requests and limits. A missing request equals its limit, as sources default it.
pub(crate) fn resources(requests: &str, limits: &str) -> Resources {
    let limits = parse(limits);
    let mut all = limits.clone();
    all.extend(parse(requests));
    Resources { requests: all, limits }
}

/// A main container with these requests and limits.
pub(crate) fn container(requests: &str, limits: &str) -> Container {
    Container { resources: resources(requests, limits), ..Container::new("c".parse().unwrap(), "i") }
}

/// A pod of these init and main containers.
pub(crate) fn pod(uid: &str, init: Vec<Container>, main: Vec<Container>) -> Pod {
    let key = PodKey { namespace: "ns".parse().unwrap(), name: "pod".parse().unwrap() };
    Pod {
        init_containers: init,
        containers: main,
        ..Pod::new(uid.parse().unwrap(), key, "node".parse().unwrap())
    }
}
