//! Which volumes of a pod are asked, where and whom.

use super::*;
use berth_core::{
    ids::PodKey,
    model::{CsiEphemeral, CsiVolume, Medium, NfsVolume, ObjectKind, PersistentVolumeClaim, StorageObject},
};
use berth_csi_client::{
    Driver, NodeCapabilities, NodeInfo,
    registration::{RegisteredDriver, Version},
};
use std::{collections::BTreeMap, path::Path, sync::Arc};

fn pod(sources: Vec<(&str, VolumeSource)>) -> Pod {
    let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
    let volume = |(name, source): (&str, _)| Volume { name: name.parse().unwrap(), source };
    Pod {
        volumes: sources.into_iter().map(volume).collect(),
        ..Pod::new("u".parse().unwrap(), key, "n1".parse().unwrap())
    }
}

fn csi(driver: &str) -> PersistentVolumeSource {
    PersistentVolumeSource::Csi(CsiVolume::new(driver, "h"))
}

/// Adds a claim of that name, bound to a volume `pv-<name>` of that source.
fn bind(objects: &mut Objects, name: &str, source: PersistentVolumeSource, mode: VolumeMode, bound: bool) {
    let claim = PersistentVolumeClaim {
        mode,
        volume: Some(format!("pv-{name}")),
        bound,
        ..PersistentVolumeClaim::new("ns".parse().unwrap(), name)
    };
    let volume = PersistentVolume { mode, ..PersistentVolume::new(format!("pv-{name}"), source) };
    let key = |kind, name: &str| (kind, "ns".parse().unwrap(), name.to_owned());
    objects.put_storage(key(ObjectKind::PersistentVolumeClaim, name), StorageObject::Claim(Arc::new(claim)));
    let name = format!("pv-{name}");
    objects.put_storage(key(ObjectKind::PersistentVolume, &name), StorageObject::Volume(Arc::new(volume)));
}

fn plugins(drivers: &[(&str, bool)]) -> Plugins {
    let driver = |(name, get_volume_stats): &(&str, bool)| {
        let name = DriverName::parse(name).unwrap();
        let registered = RegisteredDriver {
            driver: Driver::new(name.clone(), Path::new("/s")),
            version: Version::parse("1.5.0").unwrap(),
            info: NodeInfo { node_id: "n".into(), max_volumes: None, topology: BTreeMap::new() },
            capabilities: NodeCapabilities { get_volume_stats: *get_volume_stats, ..Default::default() },
            socket: "/r".into(),
        };
        (name, Arc::new(registered))
    };
    Plugins { drivers: drivers.iter().map(driver).collect(), ..Plugins::default() }
}

/// A line for each volume that is asked.
fn asked(pod: &Pod, objects: &Objects, plugins: &Plugins) -> Vec<String> {
    let roots = Roots::defaults("n1".parse().unwrap());
    let line = |of: PodVolume| {
        let path = of.volume.path.display().to_string().replace("/var/lib/kubelet/", "");
        let asked = match of.volume.asked {
            Asked::FileSystem => "kernel".to_owned(),
            Asked::Driver(driver, question) => {
                assert_eq!(question.volume_path, of.volume.path);
                format!("{} {}", driver.name(), question.volume)
            }
        };
        let claim = of.claim.map(|(namespace, name)| format!(" of {namespace}/{name}")).unwrap_or_default();
        format!("{}{claim}: {asked}: {path}", of.name)
    };
    of_pod(&roots, pod, objects, plugins).map(line).collect()
}

fn claim(name: &str) -> VolumeSource {
    VolumeSource::PersistentVolumeClaim { claim: name.into(), read_only: false }
}

#[test]
fn each_kind_is_asked_at_its_place() {
    let nfs = || NfsVolume { server: "s".into(), path: "/e".into(), read_only: false };
    let local = PersistentVolumeSource::Local { path: "/d".into(), fs_type: None };
    let mut objects = Objects::default();
    bind(&mut objects, "csi", csi("a.b"), VolumeMode::Filesystem, true);
    bind(&mut objects, "block", csi("a.b"), VolumeMode::Block, true);
    bind(&mut objects, "mute", csi("mute"), VolumeMode::Filesystem, true);
    bind(&mut objects, "local", local, VolumeMode::Filesystem, true);
    bind(&mut objects, "nfs", PersistentVolumeSource::Nfs(nfs()), VolumeMode::Filesystem, true);
    bind(&mut objects, "p-made", csi("a.b"), VolumeMode::Filesystem, true);
    let inline = CsiEphemeral {
        driver: "a.b".into(),
        fs_type: None,
        read_only: false,
        attributes: BTreeMap::new(),
        publish_secret: None,
    };
    let pod = pod(vec![
        ("v0", claim("csi")),
        ("v1", claim("block")),
        ("v2", claim("mute")),
        ("v3", claim("local")),
        ("v4", claim("nfs")),
        ("made", VolumeSource::Ephemeral),
        ("v6", VolumeSource::Nfs(nfs())),
        ("v7", VolumeSource::Csi(inline)),
        ("v8", VolumeSource::EmptyDir { medium: Medium::Disk, size_limit: None }),
    ]);
    let handle = ephemeral_handle(&pod, &pod.volumes[7]);
    let csi = "pods/u/volumes/kubernetes.io~csi";
    assert_eq!(
        asked(&pod, &objects, &plugins(&[("a.b", true), ("mute", false)])),
        [
            format!("v0 of ns/csi: a.b h: {csi}/pv-csi/mount"),
            "v1 of ns/block: a.b h: plugins/kubernetes.io/csi/volumeDevices/publish/pv-block/u".to_owned(),
            format!("v2 of ns/mute: kernel: {csi}/pv-mute/mount"),
            "v3 of ns/local: kernel: pods/u/volumes/kubernetes.io~local-volume/pv-local".to_owned(),
            "v4 of ns/nfs: kernel: pods/u/volumes/kubernetes.io~nfs/pv-nfs".to_owned(),
            format!("made of ns/p-made: a.b h: {csi}/pv-p-made/mount"),
            "v6: kernel: pods/u/volumes/kubernetes.io~nfs/v6".to_owned(),
            format!("v7: a.b {handle}: {csi}/v7/mount"),
        ]
    );
}

#[test]
fn what_is_not_known_is_not_asked() {
    let mut objects = Objects::default();
    bind(&mut objects, "unbound", csi("a.b"), VolumeMode::Filesystem, false);
    bind(&mut objects, "gone", csi("not.registered"), VolumeMode::Filesystem, true);
    bind(&mut objects, "odd", csi("../x"), VolumeMode::Filesystem, true);
    bind(&mut objects, "device", csi("mute"), VolumeMode::Block, true);
    let pod =
        pod(["unbound", "gone", "odd", "device", "missing"].into_iter().map(|n| (n, claim(n))).collect());
    assert_eq!(asked(&pod, &objects, &plugins(&[("a.b", true), ("mute", false)])), [""; 0]);
}
