//! Compares the set after single updates with a merge of all files at once.

use super::*;
use crate::{
    directory::first_seen::FirstSeen,
    manifest::{ManifestContext, Mode, parse_file},
};
use berth_core::time::Wall;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Objects and problem of each file by its name.
type Files = BTreeMap<String, (Option<Arc<FileObjects>>, Option<ManifestError>)>;

#[derive(Debug, Default, PartialEq)]
struct All {
    pods: BTreeMap<PodUid, Arc<DesiredPod>>,
    objects: Objects,
    services: Vec<Arc<DesiredService>>,
    slices: Vec<Arc<EndpointSlice>>,
    errors: Vec<ManifestError>,
}

/// The model: merges all files in order; the first file that defines a name owns the name.
fn fresh(files: &Files) -> All {
    let mut next = All::default();
    let mut objects = Objects::default();
    let mut taken = Taken::default();
    for (name, (good, problem)) in files {
        let path = Path::new("/m").join(name);
        next.errors.extend(problem.clone());
        let Some(good) = good else { continue };
        next.errors.extend(good.warnings.iter().cloned());
        for (document, pod) in &good.pods {
            let clash = taken.pod(&path, &pod.pod.key).or_else(|| taken.uid(pod));
            match clash {
                None => {
                    next.pods.insert(pod.pod.uid.clone(), Arc::clone(pod));
                }
                Some(reason) => next.errors.push(ManifestError {
                    file: path.clone(),
                    document: Some(*document),
                    field: Some("metadata.name".to_owned()),
                    reason,
                }),
            }
        }
        let mut clash = |what: &'static str, name: String| {
            taken.object(&path, what, name).map(|reason| {
                next.errors.push(ManifestError {
                    file: path.clone(),
                    document: None,
                    field: Some("metadata.name".to_owned()),
                    reason,
                });
            })
        };
        for object in &good.config_maps {
            if clash("ConfigMap", format!("{}/{}", object.namespace, object.name)).is_none() {
                objects.put_config_map(Arc::clone(object));
            }
        }
        for object in &good.secrets {
            if clash("Secret", format!("{}/{}", object.namespace, object.name)).is_none() {
                objects.put_secret(Arc::clone(object));
            }
        }
        for service in &good.services {
            if clash("Service", service.service.key.to_string()).is_none() {
                next.services.push(Arc::clone(service));
            }
        }
        for slice in &good.slices {
            if clash("EndpointSlice", slice.key.to_string()).is_none() {
                next.slices.push(Arc::clone(slice));
            }
        }
    }
    next.objects = objects;
    next.services.sort_by(|a, b| a.key().cmp(b.key()));
    next.slices.sort_by(|a, b| a.key().cmp(b.key()));
    next
}

/// The file that first defined each name.
#[derive(Default)]
struct Taken {
    pods: BTreeMap<PodKey, PathBuf>,
    uids: BTreeSet<String>,
    objects: BTreeMap<(&'static str, String), PathBuf>,
}

impl Taken {
    fn pod(&mut self, file: &Path, key: &PodKey) -> Option<String> {
        let first = self.pods.get(key).map(|first| twice("pod", &key.to_string(), first));
        if first.is_none() {
            self.pods.insert(key.clone(), file.to_owned());
        }
        first
    }

    fn uid(&mut self, pod: &DesiredPod) -> Option<String> {
        let uid = pod.pod.uid.to_string();
        (!self.uids.insert(uid.clone()))
            .then(|| format!("uid {uid} is already taken by another pod of this directory"))
    }

    fn object(&mut self, file: &Path, what: &'static str, name: String) -> Option<String> {
        let key = (what, name);
        let first = self.objects.get(&key).map(|first| twice(what, &key.1, first));
        if first.is_none() {
            self.objects.insert(key, file.to_owned());
        }
        first
    }
}

fn twice(what: &str, name: &str, first: &Path) -> String {
    format!("{what} {name} is already defined in {}; that one is used", first.display())
}

/// An object with one of few names, so that many objects clash.
fn object(kind: u8, name: u8, value: u8) -> String {
    let meta = format!("name: n{name}, creationTimestamp: \"2024-01-01T00:00:00Z\"");
    match kind {
        0 => format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{{meta}}}, spec: {{containers: [{{name: c, image: i{value}}}]}}}}"
        ),
        // Few UIDs, so that they clash as well.
        1 => format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{{meta}, uid: u{value}}}, spec: {{containers: [{{name: c, image: i}}]}}}}"
        ),
        2 => format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{{meta}}}, data: {{k: v{value}}}}}"),
        3 => format!("{{apiVersion: v1, kind: Secret, metadata: {{{meta}}}, stringData: {{k: v{value}}}}}"),
        4 => format!(
            "{{apiVersion: v1, kind: Service, metadata: {{{meta}}}, spec: {{ports: [{{port: {}}}]}}}}",
            value + 1
        ),
        _ => format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{{meta}, labels: {{kubernetes.io/service-name: s{value}}}}}, addressType: IPv4, endpoints: [], ports: []}}"
        ),
    }
}

fn good(objects: &[(u8, u8, u8)], before: Option<&FileObjects>) -> FileObjects {
    let ctx =
        ManifestContext { node: "n".parse().unwrap(), mode: Mode::Manifests, now: Wall(0), services: None };
    let text: String = objects.iter().map(|(k, n, v)| object(*k, *n, *v) + "\n---\n").collect();
    let mut parsed =
        parse_file(Path::new("f.yaml"), text.as_bytes(), &ctx).unwrap_or_else(|e| panic!("{e}\n{text}"));
    if objects.len() == 3 {
        let of = |reason: &str| ManifestError {
            file: "f".into(),
            document: Some(1),
            field: None,
            reason: reason.into(),
        };
        parsed.warnings = vec![of("one"), of("two")];
    }
    FileObjects::new(parsed, before, &mut FirstSeen::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn changes_one_by_one_give_the_set_that_all_files_give(
        steps in prop::collection::vec(
            (0..4_u8, 0..8_u8, prop::collection::vec((0..6_u8, 0..3_u8, 0..3_u8), 1..5), any::<bool>()),
            1..60,
        ),
    ) {
        let mut index = ObjectIndex::new("/m".into());
        let mut files = Files::new();
        for (file, what, objects, settle) in steps {
            let name = format!("f{file}.yaml");
            let (before, _) = files.get(&name).cloned().unwrap_or_default();
            let problem = ManifestError { file: "f".into(), document: None, field: None, reason: format!("bad {what}") };
            let now = match what {
                0 => None,
                1 | 2 => Some((before, Some(problem))),
                3 => Some((before.map(|b| Arc::new(b.held("held"))), Some(problem))),
                _ => Some((Some(Arc::new(good(&objects, before.as_deref()))), None)),
            };
            let (shown, problem) = now.clone().unwrap_or_default();
            index.update(&name, shown, problem.as_ref());
            match now {
                None => drop(files.remove(&name)),
                Some(now) => drop(files.insert(name, now)),
            }
            if settle {
                check(&mut index, &files)?;
            }
        }
        check(&mut index, &files)?;
        for name in files.keys() {
            index.update(name, None, None);
        }
        check(&mut index, &Files::new())?;
        prop_assert!(index.files.is_empty() && index.named.is_empty());
    }
}

fn check(index: &mut ObjectIndex, files: &Files) -> Result<(), TestCaseError> {
    let before = index.settle().clone();
    // A second `settle` without updates changes nothing.
    let merged = index.settle();
    prop_assert!(Arc::ptr_eq(&before.pods, &merged.pods) && Arc::ptr_eq(&before.objects, &merged.objects));
    prop_assert!(before.services.is(&merged.services) && before.slices.is(&merged.slices));
    let model = fresh(files);
    let pods = merged.pods.values().zip(model.pods.values());
    prop_assert!(pods.into_iter().all(|(a, b)| Arc::ptr_eq(a, b)), "the very same objects");
    let all = All {
        pods: BTreeMap::clone(&merged.pods),
        objects: Objects::clone(&merged.objects),
        services: merged.services.iter().cloned().collect(),
        slices: merged.slices.iter().cloned().collect(),
        errors: index.errors().cloned().collect(),
    };
    prop_assert_eq!(all, model);
    Ok(())
}
