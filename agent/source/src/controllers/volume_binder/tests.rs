use super::*;
use crate::manifest::{ManifestContext, Mode, parse_file};
use berth_core::{time::Wall, value::Value};

const STORAGE: &str = r"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk.one}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  local: {path: /data/one}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
";

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
";

fn read(text: &str) -> crate::manifest::ParsedFile {
    let node = "n1".parse().unwrap();
    let context = ManifestContext { node, mode: Mode::Manifests, now: Wall(0), services: None };
    parse_file(Path::new("f.yaml"), text.as_bytes(), &context).unwrap()
}

fn manifests(text: &str) -> Manifests {
    let storage = read(text).storage.into_iter();
    Arc::new(storage.map(|manifest| (manifest.key(), Arc::new(manifest))).collect())
}

fn pods(text: &str) -> Pods {
    let all = read(text).pods.into_iter().map(|entry| {
        let pod = DesiredPod::of_file(Arc::new(entry.pod), &entry.raw);
        (pod.pod.uid.clone(), Arc::new(pod))
    });
    Arc::new(all.collect())
}

fn binder(folder: &Path) -> VolumeBinder {
    let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "n1".to_owned())]);
    VolumeBinder::open(NodeInfo { labels, ..NodeInfo::new("n1".parse().unwrap()) }, folder)
}

fn volume_of(objects: &Objects) -> Option<String> {
    let namespace: Namespace = "default".parse().unwrap();
    let Value::Known(claim) = objects.claim(&namespace, "data") else { panic!("no claim") };
    claim.volume.clone().filter(|_| claim.bound)
}

#[test]
fn a_claim_is_bound_with_its_first_pod_and_keeps_its_volume_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let listed = Arc::new(Objects::listed());
    let (storage, pods) = (manifests(STORAGE), pods(POD));
    let mut first = binder(folder.path());
    let before = first.fill(&listed, &storage, &Pods::default(), None, true);
    assert_eq!(volume_of(&before), None, "the class waits for the first pod");
    let bound = first.fill(&listed, &storage, &pods, None, true);
    assert_eq!(volume_of(&bound).as_deref(), Some("disk.one"));
    assert!(Arc::ptr_eq(&bound, &first.fill(&listed, &storage, &pods, None, true)));
    let pod = &pods.values().next().unwrap().pod;
    let node = NodeInfo { labels: first.node.labels.clone(), ..NodeInfo::new("n1".parse().unwrap()) };
    let found = berth_core::volume::resolve(pod, &pod.volumes[0], &bound, &node);
    assert!(matches!(found, Ok(berth_core::volume::Resolved::Persistent(_))), "{found:?}");
    first.save().unwrap();
    let mut next = binder(folder.path());
    let smaller = STORAGE.replace("disk.one", "disk.two").replace("5Gi", "2Gi");
    let mut both = BTreeMap::clone(&storage);
    both.extend(BTreeMap::clone(&manifests(&smaller)));
    assert_eq!(
        volume_of(&next.fill(&listed, &Arc::new(both), &pods, None, true)).as_deref(),
        Some("disk.one")
    );
}

#[test]
fn a_volume_is_taken_until_its_own_manifest_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let listed = Arc::new(Objects::listed());
    let mut binder = binder(folder.path());
    let pods = pods(POD);
    binder.fill(&listed, &manifests(STORAGE), &pods, None, true);
    let (with_volume, claim) = STORAGE.rsplit_once("---").unwrap();
    let other = format!("{with_volume}---{}", claim.replace("name: data", "name: other"));
    let filled = binder.fill(&listed, &manifests(&other), &Pods::default(), None, true);
    let namespace: Namespace = "default".parse().unwrap();
    let Value::Known(other) = filled.claim(&namespace, "other") else { panic!() };
    assert!(!other.bound, "the data is another claim's");
    assert_eq!(binder.bindings.len(), 1);
    // Nothing is forgotten while the directory is not listed.
    binder.fill(&Arc::default(), &Manifests::default(), &pods, None, true);
    assert_eq!(binder.bindings.len(), 1);
    binder.fill(&listed, &Manifests::default(), &pods, None, true);
    assert_eq!(binder.bindings.len(), 0);
}

#[test]
fn a_torn_journal_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("volume-bindings.json"), "{").unwrap();
    assert!(binder(folder.path()).bindings.is_empty());
    assert!(folder.path().join("volume-bindings.json.torn").exists());
}

#[test]
fn a_claim_that_no_volume_fits_asks_its_driver_for_one_and_keeps_it() {
    const DYNAMIC: &str = r"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast}
provisioner: d.io
volumeBindingMode: WaitForFirstConsumer
parameters: {share: /srv}
mountOptions: [noatime]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: fast
  resources: {requests: {storage: 1Gi}}
";
    use berth_core::volume::provision::{MadeVolume, Provisioning};
    let folder = tempfile::tempdir().unwrap();
    let listed = Arc::new(Objects::listed());
    let (storage, pods) = (manifests(DYNAMIC), pods(POD));
    let mut binder = binder(folder.path());
    let pending = |objects: &Objects| {
        let Value::Known(claim) = objects.claim(&"default".parse().unwrap(), "data") else { panic!() };
        claim.pending.clone().unwrap_or_default()
    };
    let filled = binder.fill(&listed, &storage, &Pods::default(), None, true);
    assert_eq!(pending(&filled), "no pod uses it yet");
    assert!(binder.claims(true).requests.is_empty());
    let filled = binder.fill(&listed, &storage, &pods, None, true);
    assert_eq!(pending(&filled), "CSI driver d.io has to make its volume");
    let claims = binder.claims(true);
    assert!(claims.whole && !binder.claims(false).whole);
    let [request] = &claims.requests[..] else { panic!("{claims:?}") };
    assert_eq!((request.class.parameters["share"].as_str(), claims.used.len()), ("/srv", 1));
    let problems = BTreeMap::from([(request.claim_name(), "no room".to_owned())]);
    let problem = Arc::new(Provisioned { problems, ..Provisioned::default() });
    let filled = binder.fill(&listed, &storage, &pods, Some(&problem), true);
    assert_eq!(pending(&filled), "no room");
    let pod = &pods.values().next().unwrap().pod;
    let node = NodeInfo::new("n1".parse().unwrap());
    let waits = berth_core::volume::resolve(pod, &pod.volumes[0], &filled, &node).unwrap_err().to_string();
    assert_eq!(waits, "error processing PVC default/data: PVC is not bound: no room");
    let made = MadeVolume { handle: "h".into(), attributes: BTreeMap::new(), bytes: Some(1 << 30) };
    let made = Provisioning { made: Some(made), ..Provisioning::new(request.clone()) };
    let made = Provisioned { volumes: vec![Arc::new(made.volume().unwrap())], ..Provisioned::default() };
    let made = Arc::new(made);
    let filled = binder.fill(&listed, &storage, &pods, Some(&made), true);
    assert_eq!(volume_of(&filled).unwrap(), format!("pvc-{}", request.claim.uid));
    assert!(binder.claims(true).requests.is_empty());
    // A volume of a manifest that would suit as well changes nothing.
    let mut more = BTreeMap::clone(&storage);
    let static_one = BTreeMap::clone(&manifests(&STORAGE.replace("local\n  local", "fast\n  local")));
    more.extend(static_one.into_iter().filter(|(key, _)| key.0 == "PersistentVolume"));
    assert_eq!(more.len(), 3);
    let filled = binder.fill(&listed, &Arc::new(more), &pods, Some(&made), true);
    assert_eq!(volume_of(&filled).unwrap(), format!("pvc-{}", request.claim.uid));
    // Without its claim it is nobody's, and once it is deleted nothing is left.
    let class_alone = manifests(DYNAMIC.rsplit_once("---").unwrap().0);
    binder.fill(&listed, &class_alone, &Pods::default(), Some(&made), true);
    assert!(binder.claims(true).claims.is_empty() && binder.claims(true).whole);
    assert_eq!(binder.bindings.len(), 1, "a claim that comes back has its volume again");
    binder.fill(&listed, &Manifests::default(), &Pods::default(), None, true);
    assert!(binder.bindings.is_empty() && binder.claims(true).whole);
}
