//! Plugins come, go, are replaced, hang and lie in a directory of sockets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use berth_csi_client::{
    registration::{Plugins, Registration, Times},
    testing::{Answer, Fault, Notified, Options, Outcome, TestDriver, TestRegistration},
    *,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

const NAME: &str = "test.csi.example";

/// Longer than anything takes that these tests wait for.
const LONG: Duration = Duration::from_secs(20);

/// Times of a test: events alone show a change, and a refused plugin is tried again soon.
fn times() -> Times {
    let backoff = (Duration::from_millis(20), Duration::from_millis(40));
    Times { rescan: Duration::from_secs(3600), backoff, ..Times::default() }
}

struct Node {
    dir: tempfile::TempDir,
    registration: Registration,
}

impl Node {
    fn start(times: Times) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let registration =
            Registration::start_with(&dir.path().join("plugins_registry"), Observer::default(), times);
        Node { dir, registration }
    }

    async fn new() -> Node {
        let node = Node::start(times());
        // The directory exists once the registration watches it.
        until(|| node.registry().is_dir()).await;
        node
    }

    fn registry(&self) -> PathBuf {
        self.dir.path().join("plugins_registry")
    }

    /// A driver with its directory.
    fn driver(&self, dir: &str) -> TestDriver {
        let dir = self.dir.path().join(dir);
        fs::create_dir(&dir).unwrap();
        TestDriver::start(&dir, Options::default()).unwrap()
    }

    fn register(&self, socket: &str, driver: &TestDriver, version: &str) -> TestRegistration {
        let socket = self.registry().join(socket);
        TestRegistration::start(&socket, "CSIPlugin", NAME, &driver.endpoint(), &[version]).unwrap()
    }

    /// The plugins as soon as they are so.
    async fn when(&self, so: impl Fn(&Plugins) -> bool) -> Arc<Plugins> {
        when(&mut self.registration.plugins(), so).await
    }

    /// The problem of a socket as soon as there is one.
    async fn problem(&self, socket: &str) -> String {
        let socket = self.registry().join(socket);
        self.when(|p| p.problems.contains_key(&socket)).await.problems[&socket].clone()
    }
}

async fn when(plugins: &mut watch::Receiver<Arc<Plugins>>, so: impl Fn(&Plugins) -> bool) -> Arc<Plugins> {
    let found = timeout(LONG, plugins.wait_for(|p| so(p))).await.map(|p| Arc::clone(&p.unwrap()));
    found.unwrap_or_else(|_| panic!("still {:?}", plugins.borrow()))
}

/// Waits for something that nobody reports.
async fn until(so: impl Fn() -> bool) {
    let look = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, look).await.unwrap();
}

fn endpoint(plugins: &Plugins) -> Option<PathBuf> {
    Some(plugins.drivers.get(&name())?.driver.endpoint().to_owned())
}

fn name() -> DriverName {
    DriverName::parse(NAME).unwrap()
}

fn registered() -> Notified {
    Notified { registered: true, error: String::new() }
}

#[tokio::test]
async fn a_driver_is_registered_while_its_socket_exists() {
    let node = Node::new().await;
    let driver = node.driver("a");
    driver.change(|o| {
        o.info.max_volumes = Some(3);
        o.info.topology = [("zone".to_owned(), "a".to_owned())].into();
    });
    let plugin = node.register("a-reg.sock", &driver, "1.5.0");
    let plugins = node.when(|p| !p.drivers.is_empty()).await;
    let found = &plugins.drivers[&name()];
    assert_eq!(
        found.info,
        NodeInfo { max_volumes: Some(3), ..driver.client().unwrap().node_info().await.unwrap() }
    );
    assert!(found.capabilities.stage_unstage);
    assert_eq!(found.driver.endpoint(), driver.endpoint());
    assert_eq!((found.version.to_string().as_str(), &plugins.problems.len()), ("1.5", &0));
    until(|| plugin.notified() == [registered()]).await;
    drop(plugin);
    node.when(|p| p.drivers.is_empty()).await;
}

#[tokio::test]
async fn sockets_are_found_below_directories_and_hidden_names_are_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("plugins_registry");
    fs::create_dir_all(registry.join("before")).unwrap();
    fs::write(registry.join("file.sock"), "").unwrap();
    let driver = TestDriver::start(dir.path(), Options::default()).unwrap();
    let plugin = |path: &str, name: &str| {
        TestRegistration::start(&registry.join(path), "CSIPlugin", name, &driver.endpoint(), &["1.0"])
            .unwrap()
    };
    let _there = plugin("before/s", "a");
    let hidden = plugin(".hidden", "hidden");
    let registration = Registration::start_with(&registry, Observer::default(), times());
    let mut plugins = registration.plugins();
    let names = |p: &Plugins| p.drivers.keys().map(|n| n.as_str().to_owned()).collect::<Vec<_>>();
    when(&mut plugins, |p| names(p) == ["a"]).await;
    // A tree that appears while the registration runs, with its sockets already in it.
    fs::create_dir_all(dir.path().join("new/er")).unwrap();
    let moved =
        TestRegistration::start(&dir.path().join("new/er/s"), "CSIPlugin", "b", &driver.endpoint(), &["1.0"])
            .unwrap();
    fs::rename(dir.path().join("new"), registry.join("new")).unwrap();
    when(&mut plugins, |p| names(p) == ["a", "b"]).await;
    // One renamed from its hidden name, and one made in a directory of a directory.
    fs::rename(registry.join(".hidden"), registry.join("shown")).unwrap();
    when(&mut plugins, |p| names(p) == ["a", "b", "hidden"]).await;
    fs::create_dir(registry.join("new/er/est")).unwrap();
    let _deep = plugin("new/er/est/s", "c");
    when(&mut plugins, |p| names(p) == ["a", "b", "c", "hidden"]).await;
    // The whole registry goes and comes again.
    fs::remove_dir_all(&registry).unwrap();
    when(&mut plugins, |p| p.drivers.is_empty()).await;
    until(|| registry.is_dir()).await;
    let _again = plugin("s", "d");
    when(&mut plugins, |p| names(p) == ["d"]).await;
    drop((moved, hidden));
}

#[tokio::test]
async fn a_replaced_socket_is_registered_anew() {
    let node = Node::new().await;
    let (first, second) = (node.driver("a"), node.driver("b"));
    let old = node.register("s", &first, "1.0");
    node.when(|p| endpoint(p) == Some(first.endpoint())).await;
    // Replaced by a rename, so that the path always has a socket.
    let new = node.register(".new", &second, "1.0");
    fs::rename(node.registry().join(".new"), node.registry().join("s")).unwrap();
    node.when(|p| endpoint(p) == Some(second.endpoint())).await;
    until(|| new.notified() == [registered()]).await;
    assert_eq!(old.notified(), [registered()]);
}

#[tokio::test]
async fn a_newer_driver_takes_the_name_and_the_older_one_gets_it_back() {
    let node = Node::new().await;
    let (old, same, new) = (node.driver("a"), node.driver("b"), node.driver("c"));
    let _old = node.register("a", &old, "1.2.0");
    node.when(|p| endpoint(p) == Some(old.endpoint())).await;
    let waiting = node.register("b", &same, "1.2");
    let why = node.problem("b").await;
    let socket = node.registry().join("a");
    let by =
        format!("another driver with the name {NAME} is registered with version 1.2 by {}", socket.display());
    assert_eq!(why, by);
    until(|| waiting.notified() == [Notified { registered: false, error: by.clone() }]).await;
    let newer = node.register("c", &new, "1.3");
    node.when(|p| endpoint(p) == Some(new.endpoint())).await;
    // The socket that lost the name takes nothing with it, and one of the two others follows.
    drop(newer);
    let plugins = node.when(|p| endpoint(p).is_some_and(|e| e != new.endpoint())).await;
    assert_ne!(endpoint(&plugins), Some(new.endpoint()));
    drop(waiting);
    node.when(|p| endpoint(p) == Some(old.endpoint()) && p.problems.is_empty()).await;
}

#[tokio::test]
async fn what_is_not_supported_is_told_so_once() {
    let node = Node::new().await;
    let driver = node.driver("a");
    let start = |socket: &str, kind: &str, name: &str, version: &str| {
        let socket = node.registry().join(socket);
        TestRegistration::start(&socket, kind, name, &driver.endpoint(), &[version]).unwrap()
    };
    for (socket, plugin, text) in [
        (
            "a",
            start("a", "DevicePlugin", "gpu", "v1beta1"),
            "plugins of type \"DevicePlugin\" are not supported",
        ),
        ("b", start("b", "DRAPlugin", "gpu", "1.0.0"), "plugins of type \"DRAPlugin\" are not supported"),
        ("c", start("c", "CSIPlugin", "../../etc", "1.0.0"), "driver name \"../../etc\" is not"),
        ("d", start("d", "CSIPlugin", "old", "0.3.0"), "none of the supported versions [\"0.3.0\"] is 1.x"),
    ] {
        let why = node.problem(socket).await;
        assert!(why.starts_with(text), "{why}");
        until(|| plugin.notified() == [Notified { registered: false, error: why.clone() }]).await;
        drop(plugin);
        let path = node.registry().join(socket);
        node.when(|p| !p.problems.contains_key(&path)).await;
    }
    assert_eq!(driver.journal(), []);
}

#[tokio::test]
async fn a_driver_that_fails_is_tried_again_and_named() {
    let node = Node::new().await;
    let mut driver = node.driver("a");
    driver.fault(Call::NodeGetInfo, Fault::instead(Answer::Code(Code::Internal)));
    driver.fault(Call::NodeGetInfo, Fault::instead(Answer::Garbage));
    driver.fault(Call::NodeGetCapabilities, Fault::instead(Answer::Dies));
    let plugin = node.register("s", &driver, "1.0");
    let why = node.problem("s").await;
    assert_eq!(why, format!("cannot get the node's info by driver {NAME}: Internal: injected fault"));
    node.when(|p| p.problems.values().any(|why| why.contains("No such") || why.contains("refused"))).await;
    driver.restart().unwrap();
    node.when(|p| endpoint(p) == Some(driver.endpoint()) && p.problems.is_empty()).await;
    until(|| plugin.notified().last() == Some(&registered())).await;
    let refused = plugin.notified().iter().filter(|n| !n.registered).count();
    assert!(refused >= 3, "{:?}", plugin.notified());
    // An id is needed.
    drop(plugin);
    driver.change(|o| o.info.node_id.clear());
    let _plugin = node.register("s", &driver, "1.0");
    let why = node.problem("s").await;
    assert!(why.ends_with("invalid answer: the node's id is empty"), "{why}");
    assert!(driver.journal().iter().all(|e| e.outcome == Outcome::Done));
}

#[tokio::test]
async fn a_driver_is_asked_again_what_it_says_of_the_node() {
    let node = Node::new().await;
    let driver = node.driver("a");
    let _plugin = node.register("s", &driver, "1.0");
    let limit = |p: &Plugins| p.drivers.get(&name()).map(|d| d.info.max_volumes);
    node.when(|p| limit(p) == Some(None)).await;
    let refresher = node.registration.refresher();
    driver.change(|o| o.info.max_volumes = Some(3));
    refresher.refresh(&name()).await.unwrap();
    node.when(|p| limit(p) == Some(Some(3))).await;
    driver.change(|o| o.info.max_volumes = Some(4));
    driver.fault(Call::NodeGetInfo, Fault::instead(Answer::Code(Code::Internal)));
    refresher.refresh(&name()).await.unwrap_err();
    node.when(|p| limit(p) == Some(Some(3))).await;
    refresher.refresh(&DriverName::parse("another").unwrap()).await.unwrap();
    let mut plugins = node.registration.plugins();
    plugins.mark_unchanged();
    driver.change(|o| o.info.max_volumes = Some(3));
    refresher.refresh(&name()).await.unwrap();
    assert!(!plugins.has_changed().unwrap(), "nothing is new");
}

#[tokio::test]
async fn a_plugin_that_hangs_holds_up_no_other() {
    let node = Node::new().await;
    let silent = TestRegistration::start_silent(&node.registry().join("silent")).unwrap();
    let hung = node.driver("hung");
    hung.fault(Call::NodeGetInfo, Fault::after(Answer::Never));
    let socket = node.registry().join("hung");
    let _hung =
        TestRegistration::start(&socket, "CSIPlugin", "hung.example", &hung.endpoint(), &["1.0"]).unwrap();
    until(|| !hung.journal().is_empty()).await;
    let driver = node.driver("a");
    let _plugin = node.register("a", &driver, "1.0");
    node.when(|p| endpoint(p) == Some(driver.endpoint())).await;
    assert_eq!(node.problem("silent").await, "cannot get the plugin's info: no answer within 1 s");
    // A hung plugin whose socket goes is forgotten at once.
    drop(silent);
    fs::remove_file(&socket).unwrap();
    node.when(|p| p.problems.is_empty() && p.drivers.len() == 1).await;
}

#[tokio::test]
async fn a_change_that_no_event_told_is_found() {
    // The registration has the directory by another path, which is exchanged: no watch sees that.
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    [&first, &second].into_iter().for_each(|d| fs::create_dir(d).unwrap());
    let link = dir.path().join("plugins_registry");
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let driver = TestDriver::start(dir.path(), Options::default()).unwrap();
    let start = |dir: &Path, name: &str| {
        TestRegistration::start(&dir.join("s"), "CSIPlugin", name, &driver.endpoint(), &["1.0"]).unwrap()
    };
    let (_a, _b) = (start(&first, "a"), start(&second, "b"));
    let rescan = Duration::from_millis(50);
    let registration = Registration::start_with(&link, Observer::default(), Times { rescan, ..times() });
    let mut plugins = registration.plugins();
    let only = |p: &Plugins, name| p.drivers.keys().map(DriverName::as_str).eq([name]);
    when(&mut plugins, |p| only(p, "a")).await;
    let other = dir.path().join("other");
    std::os::unix::fs::symlink(&second, &other).unwrap();
    fs::rename(&other, &link).unwrap();
    when(&mut plugins, |p| only(p, "b")).await;
}

#[tokio::test]
async fn more_sockets_than_count_change_nothing_for_the_first() {
    let node = Node::new().await;
    let driver = node.driver("a");
    let _plugin = node.register("0", &driver, "1.0");
    node.when(|p| p.drivers.len() == 1).await;
    let mut plugins = node.registration.plugins();
    // Nobody serves these.
    let sockets: Vec<_> = (1000..1200)
        .map(|n| std::os::unix::net::UnixListener::bind(node.registry().join(n.to_string())).unwrap())
        .collect();
    drop(sockets);
    let found = when(&mut plugins, |p| p.problems.len() >= 127).await;
    assert_eq!((found.problems.len(), endpoint(&found)), (127, Some(driver.endpoint())));
    assert!(found.problems.keys().all(|path| *path < node.registry().join("1127")));
}

#[tokio::test]
async fn all_tasks_end_with_the_registration() {
    let node = Node::new().await;
    let driver = node.driver("a");
    let _plugin = node.register("a", &driver, "1.0");
    let _silent = TestRegistration::start_silent(&node.registry().join("silent")).unwrap();
    let mut plugins = node.registration.plugins();
    when(&mut plugins, |p| !p.drivers.is_empty()).await;
    let dir = node.dir;
    drop(node.registration);
    // Its sender goes with the last task.
    let ended = async { while plugins.changed().await.is_ok() {} };
    timeout(LONG, ended).await.unwrap();
    drop(dir);
}
