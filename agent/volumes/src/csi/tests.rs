//! Volumes of a driver that answers late, twice, never, wrongly, or dies: the end state is the same.

use super::*;
use crate::testing::{Node, facts, mount, pod, volume};
use berth_core::{
    event::Event,
    model::*,
    quantity::Quantity,
    refs::attachment_name,
    volume::expand::{ClaimSize, ResizeStatus, SizeChange},
};
use berth_csi_client::{
    Call, Code, Deadlines,
    testing::{Answer, Entry, Fault, Options, Outcome, TestDriver},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Runtime, sync::watch};

/// Deadline of calls that are answered, on a machine that is busy, and of those that are not; in milliseconds.
const PATIENCE: u64 = 20_000;
const IMPATIENCE: u64 = 300;

/// Claims as an API server has them: what they say, the changes, and the events.
#[derive(Default)]
struct TestClaims {
    size: Mutex<ClaimSize>,
    changes: Mutex<Vec<SizeChange>>,
    events: Mutex<Vec<Event>>,
    away: AtomicBool,
}

impl Claims for Arc<TestClaims> {
    fn size<'a>(&'a self, _claim: &'a ClaimOfVolume) -> ClaimAnswer<'a> {
        let answer = match self.away.load(Ordering::SeqCst) {
            true => Err("connection refused".to_owned()),
            false => Ok(self.size.lock().unwrap().clone()),
        };
        Box::pin(async move { answer })
    }

    fn change<'a>(
        &'a self,
        claim: &'a ClaimOfVolume,
        before: &'a ClaimSize,
        change: &'a SizeChange,
    ) -> ClaimAnswer<'a> {
        let mut size = self.size.lock().unwrap();
        let version: u32 = size.version.parse().unwrap();
        if *before == *size {
            self.changes.lock().unwrap().push(change.clone());
            size.version = (version + 1).to_string();
            match change {
                SizeChange::Finished(capacity) => {
                    size.capacity = Some(capacity.clone());
                    size.status = None;
                }
                SizeChange::Infeasible(_) => size.status = Some(ResizeStatus::Other),
                SizeChange::InProgress | SizeChange::Failed(_) => {}
            }
            drop(size);
            return Claims::size(self, claim);
        }
        Box::pin(async { Err("the object has been modified".to_owned()) })
    }

    fn tell(&self, _pod: &Pod, _claim: Option<&ClaimOfVolume>, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

struct World {
    node: Node,
    driver: TestDriver,
    objects: Objects,
    listed: watch::Sender<Arc<BTreeSet<String>>>,
    claims: Arc<TestClaims>,
    /// Deadline of the driver's calls in milliseconds.
    patience: Arc<AtomicU64>,
    _runtime: Runtime,
    // Dropped last: the driver's directory.
    _dir: tempfile::TempDir,
}

fn csi(name: &str) -> PersistentVolume {
    let source = CsiVolume {
        fs_type: Some("ext4".into()),
        attributes: BTreeMap::from([("attribute".into(), "value".into())]),
        stage_secret: Some(SecretRef { namespace: "vault".parse().unwrap(), name: "stage".into() }),
        ..CsiVolume::new("test.csi.example", format!("handle-of-{name}"))
    };
    PersistentVolume {
        mount_options: vec!["noatime".into()],
        claim: Some(ClaimRef { namespace: "default".into(), name: name.into(), uid: name.into() }),
        ..PersistentVolume::new(name, PersistentVolumeSource::Csi(source))
    }
}

impl World {
    fn new(options: Options) -> World {
        let dir = tempfile::Builder::new().prefix("berth-csi-").tempdir().unwrap();
        let driver = TestDriver::start(dir.path(), Options { mounts: true, ..options.clone() }).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut node = Node::new();
        let client = driver.client().unwrap();
        let patience = Arc::new(AtomicU64::new(PATIENCE));
        let of_calls = Arc::clone(&patience);
        let find: FindDriver = Box::new(move |name: &DriverName| {
            let within = Duration::from_millis(of_calls.load(Ordering::SeqCst));
            let deadlines = Deadlines { volume: within, info: within, stats: within };
            let client = client.clone().with_deadlines(deadlines);
            (name == client.name()).then_some((client, options.capabilities))
        });
        let (listed, listing) = watch::channel(Arc::default());
        let claims = Arc::new(TestClaims::default());
        let control_plane = ControlPlane { listed: listing, claims: Box::new(Arc::clone(&claims)) };
        let drivers = CsiDrivers::new(find, runtime.handle().clone(), Some(control_plane));
        node.volumes = node.volumes.clone().with_drivers(drivers);
        let secret = KeyedData {
            namespace: "vault".parse().unwrap(),
            ..crate::testing::keyed("stage", &[("password", b"hidden")])
        };
        let mut objects = Objects::listed();
        objects.put_secret(secret);
        World { node, driver, objects, listed, claims, patience, _runtime: runtime, _dir: dir }
    }

    fn put(&mut self, volume: PersistentVolume) {
        let namespace: berth_core::ids::Namespace = "default".parse().unwrap();
        let claim = PersistentVolumeClaim {
            access_modes: volume.access_modes.clone(),
            mode: volume.mode,
            volume: Some(volume.name.clone()),
            bound: true,
            ..PersistentVolumeClaim::new(namespace.clone(), volume.name.clone())
        };
        let key = |kind| (kind, namespace.clone(), volume.name.clone());
        let claim = StorageObject::Claim(Arc::new(claim));
        self.objects.put_storage(key(ObjectKind::PersistentVolumeClaim), claim);
        let object = StorageObject::Volume(Arc::new(volume.clone()));
        self.objects.put_storage(key(ObjectKind::PersistentVolume), object);
    }

    fn object(&mut self, driver: CsiDriver) {
        self.objects.set_csi_drivers(Arc::new(BTreeMap::from([(driver.name.clone(), Arc::new(driver))])));
    }

    fn mount(&self, pod: &Pod) -> Result<(), Error> {
        self.node.volumes.mount(pod, &facts(), &self.objects)
    }

    /// Tries until it succeeds, as the pod's worker does.
    fn until<T>(&self, what: &str, mut step: impl FnMut() -> Result<T, Error>) -> T {
        let mut last = String::new();
        for _ in 0..8 {
            match step() {
                Ok(done) => return done,
                Err(e) => last = e.message(),
            }
        }
        panic!("cannot {what}: {last}");
    }

    fn calls(&self) -> Vec<(Call, Outcome)> {
        let about = |entry: &Entry| !entry.volume.is_empty();
        self.driver.journal().iter().filter(|e| about(e)).map(|e| (e.call, e.outcome)).collect()
    }

    /// Nothing of a volume is left on the node or with the driver.
    fn assert_free(&self) {
        assert!(self.driver.staged().is_empty() && self.driver.published().is_empty(), "{:?}", self.calls());
        let left = |dir: &Path| -> Vec<String> {
            let names = record::names(dir).unwrap();
            names
                .into_iter()
                .filter(|n| !matches!(n.as_str(), "volumeDevices" | "test.csi.example"))
                .collect()
        };
        let plugin_dir = paths::plugin_dir(&self.node.roots);
        for dir in [
            plugin_dir.clone(),
            plugin_dir.join("test.csi.example"),
            self.node.roots.runtime_state.join("volumes"),
        ] {
            assert!(left(&dir).is_empty(), "{}: {:?}", dir.display(), left(&dir));
        }
        assert!(self.node.volumes.pods_on_disk().unwrap().is_empty());
        assert!(self.node.volumes.volumes_in_use().unwrap().is_empty());
    }
}

fn source_of(volume: &PersistentVolume) -> &CsiVolume {
    let PersistentVolumeSource::Csi(source) = &volume.source else { panic!() };
    source
}

/// A pod that mounts claims of these names.
fn claiming(uid: &str, claims: &[&str]) -> Pod {
    let mut p = pod(uid);
    p.uid = uid.parse().unwrap();
    for claim in claims {
        let source = VolumeSource::PersistentVolumeClaim { claim: (*claim).into(), read_only: false };
        p.volumes.push(volume(claim, source));
        p.containers[0].mounts.push(mount(claim, &format!("/{claim}")));
    }
    p
}

fn source(world: &World, pod: &Pod) -> std::path::PathBuf {
    let known = (&world.objects, &*facts().node);
    world.node.volumes.container_mounts(pod, &pod.containers[0], known, &[]).unwrap()[0].source.clone()
}

#[test]
fn a_volume_for_one_pod_is_refused_to_another_until_it_is_free() {
    let mut world = World::new(Options::default());
    world.put(PersistentVolume { access_modes: vec![AccessMode::ReadWriteOncePod], ..csi("pv") });
    let (a, b) = (claiming("a", &["pv"]), claiming("b", &["pv"]));
    world.mount(&a).unwrap();
    world.mount(&a).unwrap();
    let refused = world.mount(&b).unwrap_err().message();
    let told = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    assert!(refused.contains(told), "{refused}");
    world.node.volumes.unmount(&a.uid).unwrap();
    world.mount(&b).unwrap();
    world.node.volumes.unmount(&b.uid).unwrap();
    world.node.volumes.unmount(&a.uid).unwrap();
    world.assert_free();
}

#[test]
fn a_record_that_cannot_be_read_holds_up_its_own_volume_alone() {
    let mut world = World::new(Options::default());
    world.put(csi("one"));
    world.put(csi("two"));
    let (a, b) = (claiming("a", &["one"]), claiming("b", &["two"]));
    world.mount(&a).unwrap();
    world.mount(&b).unwrap();
    let record = world.node.volumes.pod_dir(&a.uid).join("volumes/kubernetes.io~csi/one/vol_data.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "").unwrap();
    world.node.volumes.unmount(&b.uid).unwrap();
    assert_eq!(world.driver.staged().len(), 1, "the other volume is free");
    world.node.volumes.unmount(&a.uid).unwrap_err();
    world.node.volumes.unstage_unused();
    assert_eq!(world.driver.staged().len(), 1, "the volume may be in use");
    world.node.volumes.volumes_in_use().unwrap_err();
    // A FIFO is not waited for, nor a link followed to a device.
    std::fs::remove_file(&record).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &record, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    crate::attacks::at_once("a FIFO as a record", || world.node.volumes.unmount(&a.uid)).unwrap_err();
    std::fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &record).unwrap();
    world.node.volumes.unmount(&a.uid).unwrap_err();
    std::fs::remove_file(&record).unwrap();
    std::fs::write(&record, whole).unwrap();
    world.node.volumes.unmount(&a.uid).unwrap();
    world.assert_free();
}

/// A kubelet that had the node meanwhile has unstaged the volume and removed the records, and knows of no marks.
#[test]
fn a_mark_without_its_record_counts_for_nothing() {
    let mut world = World::new(Options::default());
    world.put(csi("pv"));
    let a = claiming("a", &["pv"]);
    world.mount(&a).unwrap();
    let staged = paths::plugin_dir(&world.node.roots).join("test.csi.example");
    let name = record::names(&staged).unwrap().remove(0);
    std::fs::remove_file(staged.join(name).join("vol_data.json")).unwrap();
    let pod = world.node.volumes.pod_dir(&a.uid).join("volumes/kubernetes.io~csi/pv/vol_data.json");
    std::fs::remove_file(pod).unwrap();
    world.mount(&a).unwrap();
    let stages = world.calls().into_iter().filter(|(call, _)| *call == Call::NodeStageVolume).count();
    assert_eq!(stages, 2, "{:?}", world.calls());
    world.node.volumes.unmount(&a.uid).unwrap();
    world.assert_free();
}

/// The record is the last that goes, so that nothing is left that no record tells of, but an empty directory.
#[test]
fn a_staging_without_a_record_is_an_empty_directory_which_goes() {
    let mut world = World::new(Options::default());
    world.put(csi("pv"));
    let a = claiming("a", &["pv"]);
    world.mount(&a).unwrap();
    let dir = paths::plugin_dir(&world.node.roots).join("test.csi.example").join("left");
    std::fs::create_dir(&dir).unwrap();
    world.node.volumes.unstage_unused();
    assert!(!dir.exists());
    assert_eq!(world.driver.staged().len(), 1, "what is in use stays");
    world.node.volumes.unmount(&a.uid).unwrap();
    world.assert_free();
}

#[test]
fn a_volume_is_staged_once_for_all_pods_and_is_free_after_the_last() {
    let mut world = World::new(Options::default());
    world.put(csi("pv.with-dot"));
    let (mut a, mut b) = (claiming("a", &[]), claiming("b", &[]));
    for p in [&mut a, &mut b] {
        let claim = VolumeSource::PersistentVolumeClaim { claim: "pv.with-dot".into(), read_only: false };
        p.volumes.push(volume("data", claim));
        p.containers[0].mounts.push(mount("data", "/data"));
    }
    world.mount(&a).unwrap();
    world.mount(&a).unwrap();
    std::fs::write(source(&world, &a).join("file"), "precious").unwrap();
    world.mount(&b).unwrap();
    assert_eq!(std::fs::read_to_string(source(&world, &b).join("file")).unwrap(), "precious");
    assert!(world.node.volumes.volumes_in_use().unwrap().is_empty(), "nobody attached it");
    world.node.volumes.unmount(&a.uid).unwrap();
    assert_eq!(world.driver.staged().len(), 1, "the other pod still has it");
    world.node.volumes.unmount(&b.uid).unwrap();
    world.node.volumes.unmount(&b.uid).unwrap();
    use Call::{NodePublishVolume, NodeStageVolume, NodeUnpublishVolume, NodeUnstageVolume};
    let calls = [
        NodeStageVolume,
        NodePublishVolume,
        NodePublishVolume,
        NodeUnpublishVolume,
        NodeUnpublishVolume,
        NodeUnstageVolume,
    ];
    assert_eq!(world.calls(), calls.map(|call| (call, Outcome::Done)));
    world.assert_free();
    let data = world.driver.data("handle-of-pv.with-dot").join("file");
    assert_eq!(std::fs::read_to_string(data).unwrap(), "precious");
    let staged = &world.driver.journal()[0];
    assert!(staged.path.ends_with(format!(
        "plugins/kubernetes.io/csi/test.csi.example/{}/globalmount",
        paths::hex(&["handle-of-pv.with-dot"])
    )));
    assert_eq!(
        (staged.request.secrets["password"].as_str(), staged.request.volume_context["attribute"].as_str()),
        ("hidden", "value")
    );
    assert_eq!(
        (staged.request.fs_type.as_str(), staged.request.mount_flags.as_slice()),
        ("ext4", &["noatime".to_owned()][..])
    );
}

#[test]
fn every_fault_of_every_call_leads_to_the_same_end() {
    let answers = || {
        [
            Answer::Late(Duration::from_millis(600)),
            Answer::Twice,
            Answer::Never,
            Answer::Code(Code::Internal),
            Answer::Code(Code::Unavailable),
            Answer::Garbage,
            Answer::Dies,
        ]
    };
    for call in
        [Call::NodeStageVolume, Call::NodePublishVolume, Call::NodeUnpublishVolume, Call::NodeUnstageVolume]
    {
        for effect in [true, false] {
            for answer in answers() {
                let what = format!("{call:?} {effect} {answer:?}");
                let mut world = World::new(Options::default());
                world.put(csi("v"));
                let p = claiming("a", &["v"]);
                let lies = matches!(answer, Answer::Code(Code::Internal)) && effect;
                let dies = matches!(answer, Answer::Dies);
                if matches!(answer, Answer::Late(_) | Answer::Never) {
                    world.patience.store(IMPATIENCE, Ordering::SeqCst);
                }
                world.driver.fault(call, Fault { effect, answer });
                let restart = |world: &mut World| {
                    if dies {
                        world.driver.restart().unwrap();
                    }
                };
                if world.mount(&p).is_err() {
                    restart(&mut world);
                    world.until(&what, || world.mount(&p));
                }
                std::fs::write(source(&world, &p).join("file"), "precious").unwrap();
                if world.node.volumes.unmount(&p.uid).is_err() {
                    restart(&mut world);
                    world.until(&what, || world.node.volumes.unmount(&p.uid));
                }
                restart(&mut world);
                world.node.volumes.unstage_unused();
                world.assert_free();
                let done =
                    |wanted: Call| world.calls().iter().filter(|c| **c == (wanted, Outcome::Done)).count();
                // A driver that says that nothing was done is believed.
                assert!(lies || done(Call::NodeStageVolume) == 1, "{what}: {:?}", world.calls());
                assert!(
                    !world.calls().iter().any(|c| c.1 == Outcome::Refused),
                    "{what}: {:?}",
                    world.calls()
                );
                assert_eq!(
                    std::fs::read_to_string(world.driver.data("handle-of-v").join("file")).unwrap(),
                    "precious",
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn a_pod_that_goes_while_a_publish_is_uncertain_has_it_undone() {
    let mut world = World::new(Options::default());
    world.put(csi("v"));
    let p = claiming("a", &["v"]);
    world.driver.fault(Call::NodePublishVolume, Fault::after(Answer::Never));
    // Long enough for the staging before it.
    world.patience.store(2_000, Ordering::SeqCst);
    let error = world.mount(&p).unwrap_err();
    world.patience.store(PATIENCE, Ordering::SeqCst);
    let message = error.event().message;
    assert!(message.starts_with("MountVolume.SetUp failed for volume \"v\" : cannot publish volume handle-of-v by driver test.csi.example: "), "{message}");
    assert_eq!(world.driver.published().len(), 1, "it was done all the same");
    // The agent was restarted: nothing is known but what is on disk.
    world.node.volumes.unmount(&p.uid).unwrap();
    world.assert_free();
}

#[test]
fn a_boot_mounts_again_and_a_takeover_does_not() {
    let mut world = World::new(Options::default());
    world.put(csi("v"));
    let p = claiming("a", &["v"]);
    world.mount(&p).unwrap();
    let marks = world.node.roots.runtime_state.join("volumes");
    // A kubelet leaves no marks: its mount points say that the volume is mounted.
    std::fs::remove_dir_all(&marks).unwrap();
    world.mount(&p).unwrap();
    assert_eq!(world.calls().len(), 2, "{:?}", world.calls());
    // A boot loses marks and mounts.
    for mount in world.node.mounts().iter().rev() {
        berth_sys::mount::unmount(mount).unwrap();
    }
    std::fs::remove_dir_all(&marks).ok();
    world.mount(&p).unwrap();
    let again = [Call::NodeStageVolume, Call::NodePublishVolume].map(|call| (call, Outcome::Repeated));
    assert_eq!(world.calls()[2..], again);
}

#[test]
fn a_missing_driver_is_named_and_holds_up_its_own_volumes_alone() {
    let mut world = World::new(Options::default());
    let mut other = csi("v");
    let PersistentVolumeSource::Csi(source) = &mut other.source else { panic!() };
    source.driver = "missing.example".into();
    world.put(other);
    let e = world.mount(&claiming("a", &["v"])).unwrap_err();
    assert_eq!(
        e.event().message,
        "MountVolume.MountDevice failed for volume \"v\" : kubernetes.io/csi: attacher.MountDevice failed: driver name missing.example not found in the list of registered CSI drivers"
    );
    world.node.volumes.unmount(&"a".parse().unwrap()).unwrap();
    world.assert_free();
}

#[test]
fn a_pods_own_volume_is_published_without_a_stage_and_with_the_pod() {
    let mut world = World::new(Options::default());
    world.object(CsiDriver {
        ephemeral: true,
        pod_info_on_mount: true,
        ..CsiDriver::new("test.csi.example")
    });
    let mut p = claiming("a", &[]);
    let csi = CsiEphemeral {
        driver: "test.csi.example".into(),
        fs_type: None,
        read_only: true,
        attributes: BTreeMap::new(),
        publish_secret: None,
    };
    p.volumes.push(volume("own", VolumeSource::Csi(csi)));
    p.containers[0].mounts.push(mount("own", "/own"));
    world.mount(&p).unwrap();
    let published = world.driver.journal().pop().unwrap();
    let attribute =
        |key: &str| published.request.volume_context[&format!("csi.storage.k8s.io/{key}")].clone();
    assert_eq!(
        (attribute("pod.name"), attribute("ephemeral"), published.request.readonly),
        ("a".into(), "true".into(), true)
    );
    assert!(published.volume.starts_with("csi-"));
    world.node.volumes.unmount(&p.uid).unwrap();
    assert_eq!(world.calls().len(), 2);
    world.assert_free();
    world.object(CsiDriver::new("test.csi.example"));
    let e = world.mount(&p).unwrap_err().event().message;
    assert!(e.ends_with("volume mode \"Ephemeral\" not supported by driver test.csi.example"), "{e}");
}

/// A world of a control plane, with volumes that it attaches.
fn attaching(options: Options, volumes: &[&str]) -> World {
    let mut world = World::new(options);
    world.objects = Objects::default();
    world.object(CsiDriver::new("test.csi.example"));
    for name in volumes {
        let mut unlocked = csi(name);
        let PersistentVolumeSource::Csi(source) = &mut unlocked.source else { panic!() };
        source.stage_secret = None;
        world.put(unlocked);
    }
    world
}

/// The name of the attachment of a volume to the pod's node.
fn attachment_of(volume: &str, p: &Pod) -> ObjectName {
    let name = attachment_name(source_of(&csi(volume)), &p.node);
    (ObjectKind::VolumeAttachment, "default".parse().unwrap(), name)
}

impl World {
    fn attach(&mut self, volume: &str, p: &Pod) {
        let key = attachment_of(volume, p);
        let attachment = VolumeAttachment {
            name: key.2.clone(),
            deleting: false,
            attached: true,
            metadata: BTreeMap::from([("device".into(), "/dev/x".into())]),
            error: None,
            driver: "test.csi.example".into(),
            exhausted: false,
        };
        self.objects.put_storage(key, StorageObject::Attachment(Arc::new(attachment)));
    }

    fn list(&self, volumes: &[&str]) {
        let name = |v: &&str| format!("kubernetes.io/csi/test.csi.example^handle-of-{v}");
        self.listed.send_replace(Arc::new(volumes.iter().map(name).collect()));
    }
}

#[test]
fn a_volume_waits_for_its_attachment_and_takes_what_the_controller_said() {
    let mut world = attaching(Options::default(), &["v"]);
    world.list(&["v"]);
    let p = claiming("a", &["v"]);
    let key = attachment_of("v", &p);
    world.objects.put_absent(key.0, key.1.clone(), key.2.clone());
    let e = world.mount(&p).unwrap_err().event().message;
    assert!(e.starts_with("Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[v], failed to process volumes=[]: "), "{e}");
    assert_eq!(world.objects.unknown_of(&p).len(), 1, "the pod waits without a word");
    world.attach("v", &p);
    world.mount(&p).unwrap();
    assert_eq!(world.driver.journal()[0].request.publish_context["device"], "/dev/x");
    let in_use = world.node.volumes.volumes_in_use().unwrap();
    assert_eq!(in_use.into_iter().collect::<Vec<_>>(), ["kubernetes.io/csi/test.csi.example^handle-of-v"]);
    world.node.volumes.unmount(&p.uid).unwrap();
    world.assert_free();
}

#[test]
fn an_attached_volume_is_touched_once_the_node_lists_it_and_others_do_not_wait() {
    for stages in [true, false] {
        let mut options = Options::default();
        options.capabilities.stage_unstage = stages;
        let mut world = attaching(options, &["late", "soon"]);
        let (p, other) = (claiming("a", &["late", "soon"]), claiming("b", &["late"]));
        world.attach("late", &p);
        world.attach("soon", &p);
        world.list(&["soon"]);
        let published =
            |world: &World| world.driver.published().values().cloned().collect::<BTreeSet<String>>();
        let refused = world.mount(&p).unwrap_err().event().message;
        let told = "Unable to attach or mount volumes: unmounted volumes=[late], unattached volumes=[late], failed to process volumes=[]: Volume has not been added to the list of VolumesInUse in the node's volume status";
        assert_eq!(refused, told);
        assert_eq!(published(&world), BTreeSet::from(["handle-of-soon".to_owned()]));
        assert!(world.driver.journal().iter().all(|entry| entry.volume != "handle-of-late"), "untouched");
        // The API server takes the status while the pod waits.
        std::thread::scope(|scope| {
            let mounting = scope.spawn(|| world.mount(&p));
            world.list(&["late", "soon"]);
            mounting.join().unwrap().unwrap();
        });
        assert_eq!(published(&world).len(), 2);
        // The API server is away, and the agent was restarted: what is in use goes on.
        world.list(&[]);
        world.mount(&p).unwrap();
        if stages {
            world.mount(&other).unwrap();
        } else {
            world.mount(&other).unwrap_err();
            world.node.volumes.unmount(&other.uid).unwrap();
        }
        let in_use = || world.node.volumes.volumes_in_use().unwrap().len();
        world.driver.fault(Call::NodeUnstageVolume, Fault::instead(Answer::Code(Code::Internal)));
        world.node.volumes.unmount(&p.uid).unwrap();
        if stages {
            assert_eq!(in_use(), 2, "one has a pod, and one is still staged");
            world.node.volumes.unstage_unused();
            assert_eq!(in_use(), 1);
            world.node.volumes.unmount(&other.uid).unwrap();
        }
        assert_eq!(in_use(), 0);
        world.assert_free();
    }
}

#[test]
fn a_walk_over_a_volumes_files_holds_up_its_own_pod_alone() {
    let mut world = World::new(Options::default());
    world.put(csi("v"));
    let (a, b) = (claiming("a", &["v"]), claiming("b", &["v"]));
    world.mount(&b).unwrap();
    let data = world.driver.data("handle-of-v");
    for file in 0..5000 {
        std::fs::write(data.join(file.to_string()), "").unwrap();
    }
    let paths =
        CsiPaths::new(&world.node.roots, "test.csi.example", "handle-of-v", VolumeMode::Filesystem, "v");
    let group = |of: &Path| std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(of).unwrap());
    // The walk changes the root last: with the volume's turn free before that, others do not wait for the walk.
    let mut free_meanwhile = false;
    for gid in 7000..7050 {
        let mut walking = claiming("a", &["v"]);
        walking.security.fs_group = Some(gid);
        let published =
            || world.driver.journal().iter().filter(|e| e.call == Call::NodePublishVolume).count();
        let before = published();
        std::thread::scope(|scope| {
            let mounting = scope.spawn(|| world.mount(&walking));
            while !mounting.is_finished() && !free_meanwhile {
                if published() > before {
                    let free = world.node.volumes.csi.try_lock(&paths.key).is_some();
                    let own = world.node.volumes.csi.try_lock(&of_pod(&paths.key, &a.uid)).is_some();
                    let walks = group(&data) != gid;
                    assert!(!(walks && own), "an unpublish of the same pod would run under its walk");
                    free_meanwhile = free && walks;
                }
            }
            mounting.join().unwrap().unwrap();
        });
        assert_eq!(group(&data), gid);
        assert_eq!(group(&data.join("17")), gid);
        world.node.volumes.unmount(&a.uid).unwrap();
        if free_meanwhile {
            break;
        }
    }
    assert!(free_meanwhile, "the volume is held while its files are walked over");
    world.node.volumes.unmount(&b.uid).unwrap();
    world.assert_free();
}

impl World {
    /// A volume whose claim has the size `claimed` and that has itself the size `capacity`; the claim says `size` of it.
    fn put_sized(&mut self, name: &str, claimed: &str, capacity: &str) {
        let quantity = |text: &str| Some(text.parse::<Quantity>().unwrap());
        self.put(PersistentVolume { capacity: quantity(capacity), ..csi(name) });
        let namespace: berth_core::ids::Namespace = "default".parse().unwrap();
        let claim = PersistentVolumeClaim {
            volume: Some(name.into()),
            bound: true,
            capacity: quantity(claimed),
            ..PersistentVolumeClaim::new(namespace.clone(), name)
        };
        let key = (ObjectKind::PersistentVolumeClaim, namespace, name.into());
        self.objects.put_storage(key, StorageObject::Claim(Arc::new(claim)));
        *self.claims.size.lock().unwrap() = ClaimSize {
            uid: name.into(),
            version: "1".into(),
            requested: quantity(capacity),
            capacity: quantity(claimed),
            allocated: quantity(capacity),
            status: (claimed != capacity).then_some(ResizeStatus::OfNode),
            ..ClaimSize::default()
        };
    }

    fn refresh(&self, pod: &Pod) -> Result<(), Error> {
        self.node.volumes.refresh(pod, &facts(), &self.objects).map(drop)
    }

    /// The sizes of the calls that expand, in GiB.
    fn expansions(&self) -> Vec<i64> {
        let journal = self.driver.journal();
        let calls = journal.iter().filter(|e| e.call == Call::NodeExpandVolume);
        calls.map(|e| e.request.required_bytes >> 30).collect()
    }

    fn events(&self) -> Vec<(String, String)> {
        let mut events = self.claims.events.lock().unwrap();
        std::mem::take(&mut *events).into_iter().map(|e| (e.reason, e.message)).collect()
    }

    fn changes(&self) -> Vec<SizeChange> {
        std::mem::take(&mut *self.claims.changes.lock().unwrap())
    }
}

fn finished(size: &str) -> [SizeChange; 2] {
    [SizeChange::InProgress, SizeChange::Finished(size.parse().unwrap())]
}

#[test]
fn a_volume_that_has_grown_is_expanded_while_a_pod_has_it_and_as_a_pod_mounts_it() {
    let mut world = World::new(Options::default());
    world.put_sized("v", "1Gi", "1Gi");
    let (p, second) = (claiming("a", &["v"]), claiming("b", &["v"]));
    world.mount(&p).unwrap();
    world.refresh(&p).unwrap();
    assert!(world.expansions().is_empty());
    world.put_sized("v", "1Gi", "2Gi");
    // The API server is away: the pod goes on, and so does a mount.
    world.claims.away.store(true, Ordering::SeqCst);
    world.refresh(&p).unwrap();
    world.mount(&second).unwrap();
    assert!(world.expansions().is_empty());
    world.claims.away.store(false, Ordering::SeqCst);
    world.refresh(&p).unwrap();
    world.refresh(&second).unwrap();
    world.refresh(&p).unwrap();
    assert_eq!(world.expansions(), [2], "once for all pods");
    assert_eq!(world.changes(), finished("2Gi"));
    let text = "MountVolume.NodeExpandVolume succeeded for volume \"v\" node-1";
    assert_eq!(world.events(), [("FileSystemResizeSuccessful".to_owned(), text.to_owned())]);
    let call = world.driver.journal().pop().unwrap();
    assert!(call.path.ends_with("volumes/kubernetes.io~csi/v/mount"), "{}", call.path.display());
    for pod in [&p, &second] {
        world.node.volumes.unmount(&pod.uid).unwrap();
    }
    world.assert_free();
    world.put_sized("v", "2Gi", "3Gi");
    world.mount(&p).unwrap();
    assert_eq!(world.expansions(), [2, 3]);
    assert_eq!(world.changes(), finished("3Gi"));
    world.node.volumes.unmount(&p.uid).unwrap();
    world.assert_free();
}

#[test]
fn another_nodes_expansion_of_a_shared_volume_is_done_here_too_and_told_once() {
    let mut world = World::new(Options::default());
    world.put_sized("v", "1Gi", "1Gi");
    let p = claiming("a", &["v"]);
    world.mount(&p).unwrap();
    world.put_sized("v", "2Gi", "2Gi");
    world.claims.size.lock().unwrap().many_nodes = true;
    world.refresh(&p).unwrap();
    world.refresh(&p).unwrap();
    assert_eq!((world.expansions(), world.changes()), (vec![2], vec![]));
    world.node.volumes.unmount(&p.uid).unwrap();
    world.assert_free();
}

#[test]
fn an_infeasible_size_is_left_alone_until_it_changes_and_an_uncertain_one_is_tried_again() {
    let mut world = World::new(Options::default());
    world.put_sized("v", "1Gi", "2Gi");
    let p = claiming("a", &["v"]);
    world.driver.fault(Call::NodeExpandVolume, Fault::instead(Answer::Code(Code::Unavailable)));
    world.driver.fault(Call::NodeExpandVolume, Fault::instead(Answer::Code(Code::OutOfRange)));
    let failed = world.mount(&p).unwrap_err().event();
    let text = "MountVolume.Setup failed while expanding volume for volume \"v\" : cannot expand volume handle-of-v by driver test.csi.example: Unavailable: injected fault";
    assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("FailedMount", text));
    assert_eq!(world.changes(), [SizeChange::InProgress]);
    world.mount(&p).unwrap_err();
    let [SizeChange::InProgress, SizeChange::Infeasible(why)] = &world.changes()[..] else { panic!() };
    assert!(why.contains("OutOfRange"), "{why}");
    world.mount(&p).unwrap();
    world.refresh(&p).unwrap();
    assert!(world.expansions().is_empty() && world.changes().is_empty());
    world.put_sized("v", "1Gi", "3Gi");
    world.driver.fault(Call::NodeExpandVolume, Fault::instead(Answer::Code(Code::Internal)));
    let failed = world.refresh(&p).unwrap_err().event();
    assert_eq!(failed.reason, "VolumeResizeFailed");
    assert!(failed.message.starts_with("NodeExpandVolume.NodeExpandVolume failed for volume \"v\" : "));
    let [SizeChange::InProgress, SizeChange::Failed(_)] = &world.changes()[..] else { panic!() };
    world.refresh(&p).unwrap();
    assert!(world.changes().is_empty(), "not before a pause");
    world.mount(&p).unwrap();
    assert_eq!((world.expansions(), world.changes()), (vec![3], finished("3Gi").to_vec()));
    world.node.volumes.unmount(&p.uid).unwrap();
    world.assert_free();
}

#[test]
fn a_volume_that_cannot_grow_in_use_or_for_a_reader_does_not_keep_a_pod() {
    let mut world = World::new(Options::default());
    world.put_sized("v", "1Gi", "2Gi");
    let p = claiming("a", &["v"]);
    world.driver.fault(Call::NodeExpandVolume, Fault::instead(Answer::Code(Code::FailedPrecondition)));
    world.mount(&p).unwrap();
    let [SizeChange::InProgress, SizeChange::Failed(_)] = &world.changes()[..] else { panic!() };
    world.refresh(&p).unwrap();
    assert!(world.expansions().is_empty() && world.changes().is_empty());
    world.node.volumes.unmount(&p.uid).unwrap();
    let mut reader = claiming("b", &[]);
    let claim = VolumeSource::PersistentVolumeClaim { claim: "v".into(), read_only: true };
    reader.volumes.push(volume("v", claim));
    reader.containers[0].mounts.push(mount("v", "/v"));
    for _ in 0..2 {
        world.mount(&reader).unwrap();
    }
    let text = "MountVolume.NodeExpandVolume failed for volume \"v\" requested read-only file system";
    assert_eq!(world.events(), [("FileSystemResizeFailed".to_owned(), text.to_owned())]);
    world.node.volumes.unmount(&reader.uid).unwrap();
    // The next mount asks once more.
    world.mount(&p).unwrap();
    assert_eq!(world.expansions(), [2]);
    world.node.volumes.unmount(&p.uid).unwrap();
    world.assert_free();
}

#[test]
fn tokens_go_among_the_secrets_where_the_driver_wants_them_there() {
    for among_secrets in [false, true] {
        let mut world = World::new(Options::default());
        world.object(CsiDriver {
            attach_required: false,
            token_requests: vec![TokenRequest { audience: "vault".into(), expiration_seconds: 600 }],
            tokens_are_secrets: among_secrets,
            ..CsiDriver::new("test.csi.example")
        });
        world.put(csi("v"));
        let p = claiming("a", &["v"]);
        let token = Token { text: "precious".into(), expires: berth_core::time::Wall(0) };
        world
            .objects
            .put_token(TokenRef::new(&p, Some("vault"), 600), berth_core::value::Value::Known(token));
        world.mount(&p).unwrap();
        let published = world.driver.journal().pop().unwrap().request;
        let key = "csi.storage.k8s.io/serviceAccount.tokens";
        let has = [&published.secrets, &published.volume_context].map(|map| map.contains_key(key));
        assert_eq!(has, [among_secrets, !among_secrets]);
        world.node.volumes.unmount(&p.uid).unwrap();
        world.assert_free();
    }
}
