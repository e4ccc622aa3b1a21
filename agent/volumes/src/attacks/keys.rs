//! Keys of objects and paths of items: whatever their text is, the files lie in the volume.

use super::*;
use crate::testing::{config_map, facts, mounting_all, pod, volume};
use berth_core::model::{
    DownwardItem, DownwardValue, KeyToPath, KeysVolume, Pod, ProjectedSource, VolumeSource,
};
use proptest::prelude::*;

/// Texts of the kinds that have led out of volumes: parents, absolute paths, the volume's own names, devices, long names.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => Just("..".to_owned()),
        2 => Just(".".to_owned()),
        2 => Just(String::new()),
        1 => Just("..data".to_owned()),
        1 => Just("..data_tmp".to_owned()),
        1 => Just("..2026_01_01_00_00_00.1".to_owned()),
        1 => Just("dev/null".to_owned()),
        1 => Just("proc/self/root".to_owned()),
        1 => Just("outside".to_owned()),
        1 => Just("nul\0nul".to_owned()),
        1 => Just("n".repeat(256)),
        2 => "[a-c]{1,2}",
        1 => "\\PC{1,3}",
    ];
    proptest::collection::vec(part, 1..6).prop_map(|parts| parts.join("/"))
}

struct World {
    node: Node,
    outside: Outside,
    files: BTreeSet<PathBuf>,
}

thread_local! {
    static WORLD: World = {
        let node = Node::on_tmpfs();
        let outside = Outside::new(&node);
        fs::create_dir_all(node.roots.pod_state.join("pods")).unwrap();
        let files = all_paths(node.path());
        World { node, outside, files }
    };
}

/// The paths of all files below a directory.
fn all_paths(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        all.insert(path);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(rounds(300)))]
    #[test]
    fn attack_on_keys_and_paths_of_items(paths in proptest::collection::vec(path(), 1..4), kind in 0..4) {
        WORLD.with(|World { node, outside, files }| {
            let items: Vec<KeyToPath> =
                paths.iter().map(|p| KeyToPath { key: "k".into(), path: p.into(), mode: None }).collect();
            let keys = |items| KeysVolume { name: "cm".into(), items, default_mode: 0o644, optional: false };
            let down = || paths.iter().map(|p| DownwardItem {
                path: p.into(), value: DownwardValue::Field("metadata.name".into()), mode: None,
            }).collect::<Vec<_>>();
            let source = match kind {
                0 => VolumeSource::ConfigMap(keys(Vec::new())),
                1 => VolumeSource::Secret(keys(items)),
                2 => VolumeSource::DownwardApi { items: down(), default_mode: 0o644 },
                _ => VolumeSource::Projected {
                    sources: vec![ProjectedSource::ConfigMap(keys(items)), ProjectedSource::DownwardApi(down())],
                    default_mode: 0o644,
                },
            };
            let p = mounting_all(Pod { volumes: vec![volume("v", source)], ..pod("web") });
            let mut data: Vec<(&str, &[u8])> = vec![("k", &b"text"[..])];
            if kind == 0 {
                data.extend(paths.iter().map(|p| (p.as_str(), &b"text"[..])));
            }
            let mut objects = config_map("cm", &data);
            objects.put_secret(crate::testing::keyed("cm", &data));
            let mounted = node.volumes.mount(&p, &facts(), &objects);
            let tricky = |p: &String| p.starts_with('/') || p.split('/').any(|part| part == "..") || p.contains('\0');
            if paths.iter().any(tricky) {
                prop_assert!(mounted.is_err(), "{paths:?}");
            }
            node.volumes.unmount(&p.uid).unwrap();
            prop_assert_eq!(&all_paths(node.path()), files);
            outside.assert_untouched();
            Ok(())
        })?;
    }
}
