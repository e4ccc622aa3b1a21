//! The CSI drivers of the node: their registration, as the API server, the metrics and the status page show them, and as
//! volumes find them.

use berth_api::view::Health;
use berth_core::{
    metrics::{Histogram, ReadFamily},
    roots::Roots,
};
use berth_csi_client::{
    Code, EndedCall, Observer,
    registration::{Plugins, RegisteredDriver, Registration},
};
use berth_source::csi_node::CsiNodeDriver;
use berth_volumes::FindDriver;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::watch;

/// The plugins, now and after each change.
pub(crate) type PluginWatch = watch::Receiver<Arc<Plugins>>;

/// Upper bounds of calls in seconds, as the kubelet has them.
const BUCKETS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

static CALLS: Histogram = Histogram::histogram(
    "csi_operations_seconds",
    "Duration of calls of CSI drivers, by driver, call and gRPC code.",
    &["driver_name", "grpc_status_code", "method_name", "migrated"],
    BUCKETS,
);

/// The families of `/metrics`.
pub(super) fn families() -> [&'static dyn ReadFamily; 1] {
    [&CALLS]
}

fn count(ended: EndedCall<'_>) {
    // Go's spelling.
    let code = match ended.code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    CALLS.observe(&[ended.driver.as_str(), &code, ended.call.method(), "false"], ended.took);
}

/// Starts the registration of drivers.
pub(super) fn start(roots: &Roots) -> Registration {
    // The manifests of drivers mount this directory and expect it to be there, as the kubelet makes it.
    if let Err(error) = std::fs::create_dir_all(roots.plugins_dir()) {
        tracing::warn!(dir = %roots.plugins_dir().display(), %error, "cannot make the directory of plugins");
    }
    Registration::start(&roots.plugins_registry_dir(), Observer::new(count))
}

/// The registered drivers as the CSINode shows them.
pub(super) fn drivers(plugins: &Arc<Plugins>) -> Vec<CsiNodeDriver> {
    let driver = |registered: &Arc<RegisteredDriver>| CsiNodeDriver {
        name: registered.driver.name().to_string(),
        node_id: registered.info.node_id.clone(),
        topology: registered.info.topology.clone(),
        max_volumes: registered.info.max_volumes,
    };
    plugins.drivers.values().map(driver).collect()
}

/// How volumes find a registered driver.
pub(super) fn find(plugins: PluginWatch) -> FindDriver {
    Box::new(move |name| {
        let plugins = plugins.borrow();
        let registered = plugins.drivers.get(name)?;
        Some((registered.driver.clone(), registered.capabilities))
    })
}

/// The drivers' names, and why a plugin is not registered. `None` where there is no plugin.
pub(super) fn health(plugins: &Plugins) -> Option<Health> {
    let names: Vec<String> = plugins.drivers.keys().map(ToString::to_string).collect();
    let drivers = if names.is_empty() { "no driver".to_owned() } else { names.join(", ") };
    let problem = |(socket, why): (&PathBuf, &String)| format!("{}: {why}", socket.display());
    let problems: Vec<String> = plugins.problems.iter().map(problem).collect();
    match (names.is_empty(), problems.is_empty()) {
        (true, true) => None,
        (_, true) => Some(Health::good(drivers)),
        (_, false) => Some(Health::bad(format!("{drivers}; {}", problems.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_csi_client::{Driver, DriverName, NodeCapabilities, NodeInfo, registration::Version};

    fn plugins(names: &[&str], problems: &[(&str, &str)]) -> Arc<Plugins> {
        let driver = |name: &&str| {
            let name = DriverName::parse(name).unwrap();
            let topology = [("zone".to_owned(), "a".to_owned())].into();
            let registered = RegisteredDriver {
                driver: Driver::new(name.clone(), "/s".as_ref()),
                version: Version::parse("1.5.0").unwrap(),
                info: NodeInfo { node_id: "n".into(), max_volumes: Some(5), topology },
                capabilities: NodeCapabilities::default(),
                socket: "/r".into(),
            };
            (name, Arc::new(registered))
        };
        Arc::new(Plugins {
            drivers: names.iter().map(driver).collect(),
            problems: problems.iter().map(|(s, why)| ((*s).into(), (*why).to_owned())).collect(),
        })
    }

    #[test]
    fn the_status_page_names_drivers_and_problems() {
        assert_eq!(health(&plugins(&[], &[])), None);
        assert_eq!(health(&plugins(&["b", "a"], &[])), Some(Health::good("a, b")));
        let bad = health(&plugins(&["a"], &[("/r/x.sock", "no answer")])).unwrap();
        assert!(!bad.ok);
        assert_eq!(bad.message, "a; /r/x.sock: no answer");
        assert_eq!(health(&plugins(&[], &[("/r/x", "y")])).unwrap().message, "no driver; /r/x: y");
    }

    #[test]
    fn a_csi_node_has_what_the_drivers_said() {
        let shown = drivers(&plugins(&["a"], &[]));
        let topology = [("zone".to_owned(), "a".to_owned())].into();
        let expected =
            CsiNodeDriver { name: "a".into(), node_id: "n".into(), topology, max_volumes: Some(5) };
        assert_eq!(shown, [expected]);
    }
}
