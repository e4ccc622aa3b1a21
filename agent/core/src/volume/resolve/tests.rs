use super::*;
use crate::{
    ids::PodKey,
    model::{
        ClaimRef, Container, CsiVolume, MountPropagation, NodeSelectorTerm, RecursiveReadOnly, StorageObject,
        VolumeMount,
    },
    refs::refs_with,
};
use std::collections::BTreeMap;

struct World {
    pod: Pod,
    claim: PersistentVolumeClaim,
    volume: PersistentVolume,
    objects: Objects,
}

impl World {
    fn new() -> World {
        let key = PodKey { namespace: "default".parse().unwrap(), name: "p".parse().unwrap() };
        let mount = VolumeMount {
            volume: "data".parse().unwrap(),
            mount_path: "/data".into(),
            read_only: false,
            recursive_read_only: RecursiveReadOnly::Disabled,
            sub_path: None,
            propagation: MountPropagation::None,
        };
        let container = Container { mounts: vec![mount], ..Container::new("c".parse().unwrap(), "i") };
        let source = VolumeSource::PersistentVolumeClaim { claim: "claim".into(), read_only: false };
        let pod = Pod {
            containers: vec![container],
            volumes: vec![Volume { name: "data".parse().unwrap(), source }],
            ..Pod::new("u".parse().unwrap(), key, "n1".parse().unwrap())
        };
        let claim = PersistentVolumeClaim {
            uid: "cu".into(),
            volume: Some("pv".into()),
            bound: true,
            ..PersistentVolumeClaim::new("default".parse().unwrap(), "claim")
        };
        let source = PersistentVolumeSource::Local { path: "/d".into(), fs_type: None };
        let of = ClaimRef { namespace: "default".into(), name: "claim".into(), uid: "cu".into() };
        let volume =
            PersistentVolume { uid: "vu".into(), claim: Some(of), ..PersistentVolume::new("pv", source) };
        World { pod, claim, volume, objects: Objects::default() }
    }

    fn csi(mut self) -> World {
        self.volume.source = PersistentVolumeSource::Csi(CsiVolume::new("d.io", "h"));
        self
    }

    fn put(mut self) -> World {
        let namespace = self.pod.key.namespace.clone();
        let name = |kind, name: &str| (kind, namespace.clone(), name.to_owned());
        let claim = StorageObject::Claim(Arc::new(self.claim.clone()));
        self.objects.put_storage(name(ObjectKind::PersistentVolumeClaim, &self.claim.name), claim);
        let volume = StorageObject::Volume(Arc::new(self.volume.clone()));
        self.objects.put_storage(name(ObjectKind::PersistentVolume, "pv"), volume);
        self
    }

    fn drivers(mut self, drivers: &[CsiDriver]) -> World {
        let drivers = drivers.iter().map(|d| (d.name.clone(), Arc::new(d.clone()))).collect();
        self.objects.set_csi_drivers(Arc::new(drivers));
        self
    }

    fn attachment(mut self, attached: bool, error: Option<&str>) -> World {
        let PersistentVolumeSource::Csi(csi) = &self.volume.source else { panic!() };
        let name = attachment_name(csi, &self.pod.node);
        let found = VolumeAttachment {
            name: name.clone(),
            deleting: false,
            attached,
            metadata: BTreeMap::new(),
            error: error.map(str::to_owned),
            driver: "d.io".into(),
            exhausted: false,
        };
        let key = (ObjectKind::VolumeAttachment, self.pod.key.namespace.clone(), name);
        self.objects.put_storage(key, StorageObject::Attachment(Arc::new(found)));
        self
    }

    fn resolve(&self) -> Result<Resolved, ResolveError> {
        let node = NodeInfo::new("n1".parse().unwrap());
        resolve(&self.pod, &self.pod.volumes[0], &self.objects, &node)
    }

    fn error(&self) -> String {
        self.resolve().unwrap_err().to_string()
    }
}

#[test]
fn a_claim_leads_to_its_volume() {
    let Ok(Resolved::Persistent(found)) = World::new().put().resolve() else { panic!() };
    let world = World::new().put();
    let told = crate::volume::describe(&world.pod, &world.pod.volumes[0], &world.objects);
    assert_eq!((told.kind, told.source.as_str()), ("local", "/d"));
    assert_eq!(told.claim, Some(("claim".to_owned(), Some("pv".to_owned()))));
    assert_eq!(told.root, Some("volumes/kubernetes.io~local-volume/pv".into()));
    let unbound = crate::volume::describe(&world.pod, &world.pod.volumes[0], &Objects::default());
    assert_eq!((unbound.kind, unbound.root), ("unbound", None));
    assert_eq!(
        (found.volume.name.as_str(), found.claim.name.as_str(), found.read_only),
        ("pv", "claim", false)
    );
}

#[test]
fn a_claim_that_is_not_there_or_not_bound_says_so_in_the_kubelets_words() {
    let mut world = World::new();
    assert_eq!(world.error(), "persistentvolumeclaim \"claim\" is not read yet");
    world.objects = Objects::listed();
    assert_eq!(
        world.error(),
        "error processing PVC default/claim: failed to fetch PVC from API server: persistentvolumeclaims \"claim\" not found"
    );
    let with = |change: fn(&mut World)| {
        let mut world = World::new();
        change(&mut world);
        world.put().error()
    };
    let about = |text: &str| format!("error processing PVC default/claim: {text}");
    assert_eq!(with(|w| w.claim.bound = false), about("PVC is not bound"));
    assert_eq!(with(|w| w.claim.deleting = true), about("PVC is being deleted"));
    assert_eq!(
        with(|w| w.volume.claim.as_mut().unwrap().uid = "other".into()),
        about(
            "found PV object \"pv\" but its pv.Spec.ClaimRef.UID \"other\" does not point to claim.UID \"cu\""
        )
    );
    assert_eq!(
        with(|w| w.claim.mode = VolumeMode::Block),
        about("volume data has volumeMode Block, but is specified in volumeMounts")
    );
    assert_eq!(
        with(|w| w.volume.node_affinity = Some(vec![NodeSelectorTerm::default()])),
        "MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms"
    );
}

#[test]
fn a_generic_ephemeral_volume_takes_the_claim_of_its_own_pod_alone() {
    let ephemeral = |controller: Option<&str>| {
        let mut world = World::new();
        world.pod.volumes[0].source = VolumeSource::Ephemeral;
        world.claim.name = "p-data".into();
        world.claim.controller = controller.map(str::to_owned);
        world.put()
    };
    assert!(ephemeral(Some("u")).resolve().is_ok());
    for other in [None, Some("v")] {
        assert_eq!(
            ephemeral(other).error(),
            "error processing PVC default/p-data: PVC default/p-data was not created for pod default/p (pod is not owner)"
        );
    }
}

#[test]
fn a_volume_of_a_driver_waits_for_its_attachment_where_the_driver_needs_one() {
    let csi = || World::new().csi().put();
    assert!(matches!(csi().resolve(), Err(ResolveError::Unknown { kind: ObjectKind::CsiDriver, .. })));
    let free = CsiDriver { attach_required: false, ..CsiDriver::new("d.io") };
    let free = csi().drivers(&[free]);
    assert!(free.resolve().is_ok() && crate::volume::attachable(&free.pod, &free.objects).is_empty());
    for drivers in [vec![CsiDriver::new("d.io")], Vec::new()] {
        let attaching = || csi().drivers(&drivers);
        let asked: Vec<_> =
            refs_with(&attaching().pod, &attaching().objects).into_iter().map(|r| r.kind).collect();
        assert!(asked.contains(&ObjectKind::VolumeAttachment), "{asked:?}");
        assert!(matches!(attaching().resolve(), Err(ResolveError::Unknown { .. })));
        assert!(
            attaching()
                .attachment(false, None)
                .error()
                .starts_with("volume attachment is not attached yet: csi-")
        );
        assert_eq!(attaching().attachment(false, Some("no disk")).error(), "no disk");
        let Ok(Resolved::Persistent(found)) = attaching().attachment(true, None).resolve() else { panic!() };
        assert!(found.attachment.is_some());
        let in_use = crate::volume::attachable(&attaching().pod, &attaching().objects);
        assert_eq!(in_use.into_iter().collect::<Vec<_>>(), ["kubernetes.io/csi/d.io^h"]);
    }
    let mut alone = csi();
    alone.objects.set_listed();
    assert!(alone.resolve().is_ok(), "nobody attaches on a node without a control plane");
}

#[test]
fn a_driver_may_want_the_volumes_behind_claims_published_again() {
    let mut world = World::new().csi().put();
    assert!(!wants_republish(&world.pod, &world.objects));
    let driver = CsiDriver { requires_republish: true, ..CsiDriver::new("d.io") };
    world.objects.set_csi_drivers(Arc::new(BTreeMap::from([("d.io".to_owned(), Arc::new(driver))])));
    assert!(wants_republish(&world.pod, &world.objects));
}

#[test]
fn a_pod_wants_an_expansion_while_its_claim_is_smaller_than_the_volume() {
    let sized = |claim: &str, volume: &str| {
        let mut world = World::new().csi();
        world.claim.capacity = Some(claim.parse().unwrap());
        world.volume.capacity = Some(volume.parse().unwrap());
        let world = world.put();
        wants_expansion(&world.pod, &world.objects)
    };
    assert!(sized("1Gi", "2Gi"));
    assert!(!sized("2Gi", "2Gi") && !sized("2Gi", "1Gi"));
    assert!(!wants_expansion(&World::new().csi().pod, &Objects::default()), "nothing is known");
}

#[test]
fn a_pod_runs_with_the_group_that_its_volume_names() {
    let mut world = World::new();
    world.volume.gid = Some(4711);
    let world = world.put();
    let groups = |pod: Pod| {
        let pod = crate::volume::with_volume_groups(&Arc::new(pod), &world.objects);
        pod.security.supplemental_groups.clone()
    };
    assert_eq!(groups(world.pod.clone()), [4711]);
    let mut has_it = world.pod.clone();
    has_it.security.supplemental_groups = vec![4711, 5];
    assert_eq!(groups(has_it), [4711, 5]);
    let mut without = world.pod.clone();
    without.containers[0].mounts.clear();
    assert!(groups(without).is_empty(), "nobody mounts it");
}
