//! Random histories of a directory, compared with a model and with full scans.

use super::*;
use berth_harness::rng::Rng;

/// Compares random histories with a model: a pod has the content of its file's last valid version while the
/// file exists.
#[tokio::test]
async fn random_histories_end_in_what_the_files_say() {
    let mut node = Node::new();
    node.cfg.settle = Duration::from_millis(20);
    let mut rng = Rng::new(1);
    let mut random = |below: u64| rng.below(below);
    let mut model: BTreeMap<u64, (Option<String>, bool)> = BTreeMap::new();
    let mut running = Some(node.start());
    for step in 0..250 {
        let file = random(4);
        let name = format!("f{file}.yaml");
        let image = format!("i:{step}");
        match random(10) {
            0..=3 => {
                node.put(&name, &pod(&format!("f{file}"), &image));
                model.insert(file, (Some(image), false));
            }
            4 => {
                fs::write(node.path(&name), pod(&format!("f{file}"), &image)).unwrap();
                model.insert(file, (Some(image), false));
            }
            5 | 6 => {
                node.put(&name, "apiVersion: v1\nkind: Pod\n");
                model.entry(file).or_insert((None, false)).1 = true;
            }
            7 | 8 => {
                fs::remove_file(node.path(&name)).ok();
                model.remove(&file);
            }
            _ => {
                if let Some((dir, _)) = running.take() {
                    dir.shutdown().await.unwrap();
                }
            }
        }
        let (_, rx) = running.get_or_insert_with(|| node.start());
        let expected: BTreeSet<(String, bool)> =
            model.values().filter_map(|(image, bad)| image.clone().map(|i| (i, *bad))).collect();
        let errors = model.values().filter(|(_, bad)| *bad).count();
        rx.until(&format!("step {step}: {expected:?}"), |s| {
            let now =
                s.pods.values().map(|p| (p.pod.containers[0].image.clone(), p.held.is_some())).collect();
            s.listed && expected == now && s.errors.len() == errors
        })
        .await;
    }
}

/// Runs one scan on this thread, after reading all waiting events.
fn step(watcher: &mut DirectoryWatcher) {
    watcher.read_events();
    watcher.scan();
}

/// Compares scans of the files named by events with full scans, and with a source that has just started.
#[test]
fn scans_of_named_files_give_the_snapshots_of_full_scans() {
    let mut rng = Rng::new(2);
    let mut random = |below: u64| rng.below(below);
    let mut named = 0;
    for history in 0..40 {
        let node = Node::new();
        let links = history % 4 == 0;
        let source = |state: &str| {
            let (sender, receiver) = watch::channel(Arc::new(Snapshot::default()));
            let cfg = DirectoryConfig { state: node.home.path().join(state), ..node.cfg.clone() };
            (DirectoryWatcher::new(cfg, sender), receiver)
        };
        let (mut by_name, mut by_full_scan) = (source("named"), source("full"));
        for at in 0..40 {
            let file = format!("f{}.yaml", random(4));
            let object = |random: &mut dyn FnMut(u64) -> u64| {
                let meta = format!("name: n{}, creationTimestamp: \"2024-01-01T00:00:00Z\"", random(4));
                match random(3) {
                    0 => format!(
                        "{{apiVersion: v1, kind: Pod, metadata: {{{meta}}}, spec: {{containers: [{{name: c, image: i{at}}}]}}}}\n"
                    ),
                    1 => format!(
                        "{{apiVersion: v1, kind: ConfigMap, metadata: {{{meta}}}, data: {{k: v{at}}}}}\n"
                    ),
                    _ => format!(
                        "{{apiVersion: v1, kind: Service, metadata: {{{meta}}}, spec: {{ports: [{{port: {}}}]}}}}\n",
                        at + 1
                    ),
                }
            };
            let text = object(&mut random) + "---\n" + &object(&mut random);
            match random(if links { 12 } else { 9 }) {
                0..=2 => node.put(&file, &text),
                3 => {
                    // The temporary file lies in the directory itself.
                    fs::write(node.path(".aside"), text).unwrap();
                    fs::rename(node.path(".aside"), node.path(&file)).unwrap();
                }
                // Fails where the name is a link to itself.
                4 => drop(fs::write(node.path(&file), text)),
                5 => node.put(&file, "kind: Pod"),
                6 | 7 => drop(fs::remove_file(node.path(&file))),
                8 => {
                    let other = format!("f{}.yaml", random(4));
                    fs::rename(node.path(&file), node.path(&other)).ok();
                }
                9 => {
                    fs::remove_file(node.path(&file)).ok();
                    std::os::unix::fs::symlink("f0.yaml", node.path(&file)).unwrap();
                }
                10 => {
                    fs::remove_file(node.path(&file)).ok();
                    fs::write(node.path("other"), text).unwrap();
                    fs::hard_link(node.path("other"), node.path(&file)).unwrap();
                }
                _ => fs::write(node.path("other"), text).unwrap(),
            }
            by_full_scan.0.full_scan_next();
            if random(4) > 0 {
                step(&mut by_name.0);
                step(&mut by_full_scan.0);
                let (a, b) = (by_name.1.borrow().clone(), by_full_scan.1.borrow().clone());
                assert_eq!(
                    *a,
                    Snapshot { version: a.version, ..Snapshot::clone(&b) },
                    "history {history}, step {at}"
                );
                named += u32::from(by_name.0.scanned_by_name());
            }
        }
        step(&mut by_name.0);
        let (mut fresh, now) = source("fresh");
        step(&mut fresh);
        let (a, b) = (by_name.1.borrow().clone(), now.borrow().clone());
        if a.errors.iter().all(|e| e.field.as_deref() == Some("metadata.name")) {
            // Without broken files no pod is held, so a fresh source must have the same snapshot.
            assert_eq!(*a, Snapshot { version: a.version, ..Snapshot::clone(&b) }, "history {history}");
        }
    }
    assert!(named > 300, "only {named} looks were at names");
}
