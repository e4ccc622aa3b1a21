//! The source on real directories. The tests wait for conditions instead of times.

use super::{events::WRITE_QUIET, watcher::DirectoryWatcher, *};
use crate::manifest;
use berth_core::{model::ObjectKind, value::Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    time::Instant,
};
use tempfile::TempDir;

mod histories;

struct Node {
    home: TempDir,
    cfg: DirectoryConfig,
}

impl Node {
    fn new() -> Node {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("m")).unwrap();
        let mut cfg = DirectoryConfig::new(
            home.path().join("m"),
            NodeName::new("n1").unwrap(),
            Mode::Manifests,
            home.path().join("state"),
        );
        cfg.settle = Duration::from_millis(300);
        Node { home, cfg }
    }

    fn start(&self) -> (DirectorySource, Rx) {
        let dir = DirectorySource::start(self.cfg.clone());
        let snapshots = Rx(dir.snapshots());
        (dir, snapshots)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cfg.dir.join(name)
    }

    /// Writes a file as careful tools do: beside the directory, then renamed into place.
    fn put(&self, name: &str, text: &str) {
        let aside = self.home.path().join("aside");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, self.path(name)).unwrap();
    }
}

struct Rx(watch::Receiver<Arc<Snapshot>>);

impl Rx {
    async fn until(&mut self, what: &str, condition: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = tokio::time::timeout(Duration::from_secs(10), self.0.wait_for(|s| condition(s)))
            .await
            .map(|found| found.map(|snapshot| Arc::clone(&snapshot)));
        match found {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(_)) => panic!("{what}: the source ended"),
            Err(_) => panic!("{what}: still {:#?}", self.0.borrow()),
        }
    }
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
    )
}

fn names(s: &Snapshot) -> BTreeSet<String> {
    s.pods.values().map(|p| p.pod.key.name.to_string()).collect()
}

fn has(s: &Snapshot, wanted: &[&str]) -> bool {
    names(s) == wanted.iter().map(|n| (*n).to_owned()).collect()
}

fn get(s: &Snapshot, name: &str) -> Arc<crate::DesiredPod> {
    Arc::clone(
        s.pods.values().find(|p| p.pod.key.name.as_str() == name).unwrap_or_else(|| panic!("no {name}")),
    )
}

#[tokio::test]
async fn pods_follow_their_files() {
    let node = Node::new();
    node.put("a.yaml", &pod("a", "i:1"));
    let (dir, mut rx) = node.start();
    let first = rx.until("a", |s| s.listed && has(s, &["a"])).await;
    assert_eq!(first.version, 1);
    node.put("b.yml", &pod("b", "i:1"));
    let second = rx.until("b", |s| has(s, &["a", "b"])).await;
    assert!(Arc::ptr_eq(&get(&first, "a"), &get(&second, "a")), "an unchanged pod keeps its Arc");
    node.put("a.yaml", &pod("a", "i:2"));
    let third = rx.until("a changed", |s| get(s, "a").pod.containers[0].image == "i:2").await;
    assert_ne!(get(&first, "a").pod.uid, get(&third, "a").pod.uid);
    assert!(Arc::ptr_eq(&get(&second, "b"), &get(&third, "b")));
    fs::remove_file(node.path("a.yaml")).unwrap();
    rx.until("a gone", |s| has(s, &["b"])).await;
    fs::remove_file(node.path("b.yml")).unwrap();
    let empty = rx.until("b gone", |s| s.pods.is_empty()).await;
    assert!(empty.listed && empty.errors.is_empty());
    dir.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_has_the_config_maps_and_services_of_the_directory() {
    let node = Node::new();
    let map = |text: &str| {
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: m}}, data: {{k: {text}}}}}")
    };
    node.put("m.yaml", &map("one"));
    node.put(
        "s.json",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":1}]}}"#,
    );
    let (_dir, mut rx) = node.start();
    let value = |s: &Snapshot| {
        let ns = "default".parse().unwrap();
        s.objects.config_map(&ns, "m").map(|m| String::from_utf8(m.data["k"].clone()).unwrap())
    };
    let first = rx.until("one", |s| value(s).as_deref() == Some("one") && s.services.len() == 1).await;
    node.put("m.yaml", &map("two"));
    let second = rx.until("two", |s| value(s).as_deref() == Some("two")).await;
    assert!(first.services.is(&second.services) && Arc::ptr_eq(&first.pods, &second.pods));
    node.put("z.yaml", &pod("z", "i"));
    let third = rx.until("z", |s| has(s, &["z"])).await;
    assert!(Arc::ptr_eq(&second.objects, &third.objects));
}

#[tokio::test]
async fn an_object_that_no_file_has_is_absent_once_the_directory_was_listed() {
    let node = Node::new();
    let absent = |s: &Snapshot| {
        s.objects.get(ObjectKind::Secret, &"default".parse().unwrap(), "nosuch") == Value::Absent
    };
    let moved = node.home.path().join("moved");
    fs::rename(&node.cfg.dir, &moved).unwrap();
    let (dir, mut rx) = node.start();
    let missing = rx.until("missing", |s| !s.errors.is_empty()).await;
    assert!(!absent(&missing), "never listed");
    fs::rename(&moved, &node.cfg.dir).unwrap();
    let listed = rx.until("listed", |s| s.listed).await;
    assert!(absent(&listed));
    // A directory that is lost, also over a restart, makes nothing unknown.
    node.put("a.yaml", &pod("a", "i:1"));
    rx.until("a", |s| has(s, &["a"])).await;
    fs::rename(&node.cfg.dir, &moved).unwrap();
    let lost = rx.until("lost", |s| !s.listed).await;
    assert!(absent(&lost));
    dir.shutdown().await.unwrap();
    let (_dir, mut rx) = node.start();
    let held = rx.until("held", |s| has(s, &["a"])).await;
    assert!(!held.listed && absent(&held));
}

#[tokio::test]
async fn a_bad_file_holds_its_pods_also_over_a_restart() {
    let node = Node::new();
    node.put("a.yaml", &format!("{}---\n{}", pod("a", "i:1"), pod("b", "i:1")));
    node.put("c.yaml", &pod("c", "i:1"));
    let (dir, mut rx) = node.start();
    let good = rx.until("all", |s| has(s, &["a", "b", "c"])).await;
    let bad = format!("{}---\n{}", pod("a", "i:2"), pod("b", "''"));
    node.put("a.yaml", &bad);
    let check = |s: &Snapshot| {
        assert!(has(s, &["a", "b", "c"]), "{s:#?}");
        for name in ["a", "b"] {
            assert_eq!(get(s, name).pod, get(&good, name).pod, "held as it was");
            assert!(get(s, name).held.as_ref().unwrap().contains("image: is required"));
        }
        assert_eq!(get(s, "c").held, None);
        let e = &s.errors[0];
        assert_eq!((e.file.clone(), e.document), (node.path("a.yaml"), Some(2)));
        assert_eq!(e.field.as_deref(), Some("spec.containers[0].image"));
    };
    check(&*rx.until("held", |s| s.errors.len() == 1).await);
    for round in 0..2 {
        if round == 0 {
            // The first source runs on, as if it had been killed: the second one has only the state on disk.
            rx.until("still", |s| s.errors.len() == 1).await;
        }
        let (dir, mut rx) = node.start();
        check(&*rx.until("held after a restart", |s| s.listed && !s.errors.is_empty()).await);
        dir.shutdown().await.unwrap();
    }
    // Pods of an unreadable or emptied file are held as well.
    node.put("a.yaml", "");
    rx.until("empty", |s| s.errors.iter().any(|e| e.reason == "holds no object") && has(s, &["a", "b", "c"]))
        .await;
    std::os::unix::fs::symlink("nowhere", node.path("aside")).unwrap();
    fs::rename(node.path("aside"), node.path("a.yaml")).unwrap();
    rx.until("dangling", |s| {
        s.errors.iter().any(|e| e.reason.contains("cannot be read")) && has(s, &["a", "b", "c"])
    })
    .await;
    node.put("a.yaml", &format!("{}---\n{}", pod("a", "i:1"), pod("b", "i:1")));
    let back =
        rx.until("good again", |s| s.errors.is_empty() && s.pods.values().all(|p| p.held.is_none())).await;
    assert_eq!(get(&back, "a"), get(&good, "a"));
    dir.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_deleted_while_the_agent_is_down_is_a_deletion() {
    let node = Node::new();
    node.put("a.yaml", &pod("a", "i"));
    node.put("b.yaml", &pod("b", "i"));
    let (dir, mut rx) = node.start();
    let before = rx.until("both", |s| has(s, &["a", "b"])).await;
    dir.shutdown().await.unwrap();
    fs::remove_file(node.path("a.yaml")).unwrap();
    let (dir, mut rx) = node.start();
    let after = rx.until("b", |s| s.listed && has(s, &["b"])).await;
    assert_eq!(get(&before, "b"), get(&after, "b"), "the creation time outlives a restart");
    dir.shutdown().await.unwrap();
    fs::remove_file(node.path("b.yaml")).unwrap();
    let (_dir, mut rx) = node.start();
    rx.until("nothing", |s| s.listed && s.pods.is_empty()).await;
}

#[tokio::test]
async fn a_missing_directory_is_not_an_empty_one() {
    let node = Node::new();
    node.put("a.yaml", &pod("a", "i"));
    let (dir, mut rx) = node.start();
    let before = rx.until("a", |s| s.listed && has(s, &["a"])).await;
    let away = node.home.path().join("away");
    fs::rename(&node.cfg.dir, &away).unwrap();
    let check = |s: &Snapshot| {
        assert!(has(s, &["a"]));
        assert_eq!(get(s, "a").pod, get(&before, "a").pod);
        assert!(get(s, "a").held.is_some());
        assert_eq!(s.errors[0].file, node.cfg.dir);
    };
    check(&*rx.until("away", |s| !s.listed).await);
    dir.shutdown().await.unwrap();
    let (dir, mut rx) = node.start();
    check(&*rx.until("away after a restart", |s| !s.listed && s.version > 0).await);
    fs::rename(&away, &node.cfg.dir).unwrap();
    let back = rx.until("back", |s| s.listed).await;
    assert_eq!(get(&back, "a"), get(&before, "a"));
    // A file in the directory's place does not count as an empty directory.
    fs::rename(&node.cfg.dir, &away).unwrap();
    fs::write(&node.cfg.dir, "").unwrap();
    check(&*rx.until("a file", |s| !s.listed).await);
    dir.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_replaced_directory_counts_once_it_holds_something_and_stays() {
    let node = Node::new();
    node.put("a.yaml", &pod("a", "i"));
    let (dir, mut rx) = node.start();
    rx.until("a", |s| s.listed && has(s, &["a"])).await;
    let away = node.home.path().join("away");
    fs::rename(&node.cfg.dir, &away).unwrap();
    fs::create_dir(&node.cfg.dir).unwrap();
    let held = |s: &Snapshot| {
        !s.listed && has(s, &["a"]) && s.errors.iter().any(|e| e.reason.contains("empty directory"))
    };
    rx.until("empty", held).await;
    dir.shutdown().await.unwrap();
    let (dir, mut rx) = node.start();
    rx.until("empty after a restart", held).await;
    node.put("b.yaml", &pod("b", "i"));
    let settling =
        rx.until("settling", |s| s.errors.iter().any(|e| e.reason.contains("another directory"))).await;
    assert!(has(&settling, &["a"]) && !settling.listed, "nothing is taken from it yet");
    rx.until("b", |s| s.listed && has(s, &["b"])).await;
    fs::remove_file(node.path("b.yaml")).unwrap();
    rx.until("now it is the directory", |s| s.listed && s.pods.is_empty()).await;
    dir.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_swap_of_links_is_one_change() {
    let node = Node::new();
    let generation = |n: u32, image: &str| {
        let dir = node.path(&format!("..gen{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), pod("a", image)).unwrap();
        std::os::unix::fs::symlink(format!("..gen{n}"), node.path("..tmp")).unwrap();
        fs::rename(node.path("..tmp"), node.path("..data")).unwrap();
    };
    generation(1, "i:1");
    std::os::unix::fs::symlink("..data/a.yaml", node.path("a.yaml")).unwrap();
    let (_dir, mut rx) = node.start();
    rx.until("one", |s| has(s, &["a"]) && get(s, "a").pod.containers[0].image == "i:1").await;
    generation(2, "i:2");
    rx.until("two", |s| get(s, "a").pod.containers[0].image == "i:2").await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone() {
    let node = Node::new();
    node.put("a.yaml", &format!("{}---\n{}", pod("a", "i:1"), pod("b", "i:1")));
    let (_dir, mut rx) = node.start();
    rx.until("a, b", |s| has(s, &["a", "b"])).await;
    // The file was truncated and is half written; its content so far is a valid manifest without `b`.
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(node.path("a.yaml")).unwrap();
    file.write_all(pod("a", "i:2").as_bytes()).unwrap();
    node.put("c.yaml", &pod("c", "i"));
    let between = rx.until("c", |s| names(s).contains("c")).await;
    assert!(has(&between, &["a", "b", "c"]) && between.errors.is_empty());
    assert_eq!(get(&between, "a").pod.containers[0].image, "i:1");
    file.write_all(format!("---\n{}", pod("b", "i:2")).as_bytes()).unwrap();
    drop(file);
    rx.until("both new", |s| {
        get(s, "a").pod.containers[0].image == "i:2" && get(s, "b").pod.containers[0].image == "i:2"
    })
    .await;
    // A writer that never closes its file delays the reading only for a while.
    let mut file = fs::File::create(node.path("d.yaml")).unwrap();
    file.write_all(pod("d", "i").as_bytes()).unwrap();
    rx.until("d", |s| names(s).contains("d")).await;
    drop(file);
}

/// A file that was complete before the start is read at once. A file with a writer waits as it would while
/// the source runs.
#[tokio::test]
async fn a_file_written_just_before_the_start_waits_only_for_its_writer() {
    let node = Node::new();
    node.put("a.yaml", &pod("a", "i:1"));
    node.put("b.yaml", &format!("{}---\n{}", pod("b", "i:1"), pod("c", "i:1")));
    let (dir, mut rx) = node.start();
    rx.until("all", |s| s.listed && has(s, &["a", "b", "c"])).await;
    dir.shutdown().await.unwrap();
    let image = |s: &Snapshot, name: &str| get(s, name).pod.containers[0].image.clone();
    // The file is half written; its content so far is a valid manifest without `c`.
    let mut file = fs::OpenOptions::new().write(true).truncate(true).open(node.path("b.yaml")).unwrap();
    file.write_all(pod("b", "i:2").as_bytes()).unwrap();
    fs::write(node.path("a.yaml"), pod("a", "i:2")).unwrap();
    let begun = Instant::now();
    let (_dir, mut rx) = node.start();
    let first = rx.until("the first scan", |s| s.listed).await;
    if begun.elapsed() < WRITE_QUIET {
        assert_eq!(image(&first, "a"), "i:2");
        assert!(has(&first, &["a", "b", "c"]) && image(&first, "b") == "i:1", "{first:#?}");
    }
    file.write_all(format!("---\n{}", pod("c", "i:2")).as_bytes()).unwrap();
    drop(file);
    rx.until("the rest", |s| image(s, "b") == "i:2" && has(s, &["a", "b", "c"]) && image(s, "c") == "i:2")
        .await;
}

#[tokio::test]
async fn of_two_pods_with_one_name_the_first_is_used_and_the_error_names_both() {
    let node = Node::new();
    node.put("b.yaml", &pod("x", "i:b"));
    node.put("c.yaml", &format!("{}---\n{}", pod("x", "i:c"), pod("q", "i")));
    let (_dir, mut rx) = node.start();
    let s = rx.until("one error", |s| s.listed && s.errors.len() == 1).await;
    assert!(has(&s, &["q", "x"]));
    assert_eq!(get(&s, "x").pod.containers[0].image, "i:b");
    let text = s.errors[0].to_string();
    assert!(text.contains("b.yaml") && text.contains("c.yaml") && text.contains("default/x"), "{text}");
    node.put("d.yaml", &pod("w", "i").replace("name: w", "name: w, uid: same"));
    node.put("e.yaml", &pod("v", "i").replace("name: v", "name: v, uid: same"));
    let s = rx.until("two errors", |s| s.errors.len() == 2).await;
    assert!(has(&s, &["q", "w", "x"]) && s.errors[1].reason.contains("uid same"));
    fs::remove_file(node.path("b.yaml")).unwrap();
    let s = rx.until("the other one", |s| get(s, "x").pod.containers[0].image == "i:c").await;
    assert_eq!(s.errors.len(), 1);
}

#[tokio::test]
async fn only_regular_manifest_files_are_read() {
    let node = Node::new();
    nix::unistd::mkfifo(&node.path("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(node.path("dir.yaml")).unwrap();
    fs::write(node.path("dir.yaml").join("x.yaml"), pod("x", "i")).unwrap();
    node.put(".dot.yaml", &pod("dot", "i"));
    node.put("notes.txt", "not a manifest");
    node.put("a.yaml", &pod("a", "i"));
    fs::File::create(node.path("big.yaml")).unwrap().set_len(manifest::MAX_FILE_BYTES + 1).unwrap();
    let (dir, mut rx) = node.start();
    let s = rx.until("a", |s| s.listed && has(s, &["a"])).await;
    assert_eq!(s.errors.len(), 1);
    assert!(s.errors[0].reason.contains("larger than"), "{}", s.errors[0]);
    dir.shutdown().await.unwrap();
    fs::remove_file(node.path("big.yaml")).unwrap();
    let mut statics = node.cfg.clone();
    statics.mode = Mode::StaticPods;
    statics.state = node.home.path().join("static-state");
    let dir = DirectorySource::start(statics);
    let s = Rx(dir.snapshots()).until("static", |s| s.listed).await;
    assert!(has(&s, &["a-n1"]));
    assert_eq!(s.errors[0].file, node.path("notes.txt"), "there every name counts");
}

#[tokio::test]
async fn a_change_without_an_event_is_found_by_the_rescan() {
    let mut node = Node::new();
    node.cfg.rescan = Duration::from_millis(100);
    let outside = node.home.path().join("outside.yaml");
    fs::write(&outside, pod("a", "i:1")).unwrap();
    std::os::unix::fs::symlink(&outside, node.path("a.yaml")).unwrap();
    let (_dir, mut rx) = node.start();
    rx.until("one", |s| has(s, &["a"])).await;
    fs::write(&outside, pod("a", "i:22")).unwrap();
    rx.until("two", |s| get(s, "a").pod.containers[0].image == "i:22").await;
}

#[tokio::test]
async fn a_torn_saved_version_is_set_aside() {
    let node = Node::new();
    node.put("a.yaml", &pod("a", "i"));
    let (dir, mut rx) = node.start();
    rx.until("a", |s| has(s, &["a"])).await;
    dir.shutdown().await.unwrap();
    let files =
        || -> Vec<PathBuf> { fs::read_dir(&node.cfg.state).unwrap().map(|e| e.unwrap().path()).collect() };
    let remembered = files().into_iter().filter(|p| !p.to_string_lossy().ends_with(".torn"));
    for path in remembered {
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let (dir, mut rx) = node.start();
    rx.until("a all the same", |s| s.listed && has(s, &["a"])).await;
    dir.shutdown().await.unwrap();
    assert_eq!(files().iter().filter(|p| p.to_string_lossy().ends_with(".torn")).count(), 2);
    assert_eq!(files().len(), 4, "written anew");
}

#[tokio::test]
async fn a_dropped_source_ends_its_thread() {
    let node = Node::new();
    let (dir, mut rx) = node.start();
    rx.until("listed", |s| s.listed).await;
    drop(dir);
    let closed = async { while rx.0.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), closed).await.unwrap();
}

/// Measures from before the rename until a waiting task has the snapshot.
#[tokio::test]
async fn a_change_is_seen_within_milliseconds() {
    let node = Node::new();
    for n in 0..100 {
        node.put(&format!("p{n}.yaml"), &pod(&format!("p{n}"), "i"));
    }
    let (_dir, mut rx) = node.start();
    rx.until("all", |s| s.pods.len() == 100).await;
    let mut times = Vec::new();
    for n in 0..100 {
        let aside = node.home.path().join("aside");
        fs::write(&aside, pod("x", &format!("i:{n}"))).unwrap();
        let begin = Instant::now();
        fs::rename(aside, node.path("x.yaml")).unwrap();
        let image = format!("i:{n}");
        rx.until("x", |s| s.pods.values().any(|p| p.pod.containers[0].image == image)).await;
        times.push(begin.elapsed());
    }
    times.sort();
    println!(
        "rename to snapshot with 100 pods: p50 {:?}, p90 {:?}, max {:?}",
        times[50], times[90], times[99]
    );
    // The limit is generous because other tests run at the same time. A missed event would take the 20 s of a
    // rescan.
    assert!(times[50] < Duration::from_millis(100), "{times:?}");
}
