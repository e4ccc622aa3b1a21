use super::*;
use crate::testing::{Node, config_map, facts, keyed, keys, plugin_of, pod, volume};
use berth_core::model::{
    ContainerSecurity, KeyToPath, PodSecurity, ProjectedSource, ResourceFieldRef, Token, VolumeSource,
};
use berth_core::time::Wall;

fn files(source: VolumeSource, objects: &Objects) -> Result<Vec<(String, String, u32)>, Error> {
    let (pod, volume, facts) = (pod("web"), volume("v", source), facts());
    let inputs = VolumeInputs { pod: &pod, volume: &volume, facts: &facts, objects };
    let node = Node::new();
    let payload = plugin_of(&node.volumes, &pod, &volume, objects)?.files(&inputs)?.unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    Ok(payload.into_iter().map(|(p, f)| (p.display().to_string(), text(f.bytes), f.mode)).collect())
}

fn file(path: &str, text: &str, mode: u32) -> (String, String, u32) {
    (path.into(), text.into(), mode)
}

fn item(key: &str, path: &str, mode: Option<u32>) -> KeyToPath {
    KeyToPath { key: key.into(), path: path.into(), mode }
}

#[test]
fn a_volume_has_all_keys_or_the_listed_items() {
    let objects = config_map("cm", &[("a", b"1"), ("b.conf", b"2")]);
    let all = files(VolumeSource::ConfigMap(keys("cm")), &objects).unwrap();
    assert_eq!(all, [file("a", "1", 0o644), file("b.conf", "2", 0o644)]);
    let mut some = keys("cm");
    some.items = vec![item("a", "x/./y//z", Some(0o400)), item("b.conf", "b", None)];
    some.default_mode = 0o600;
    let some = files(VolumeSource::ConfigMap(some), &objects).unwrap();
    assert_eq!(some, [file("b", "2", 0o600), file("x/y/z", "1", 0o400)]);
}

#[test]
fn a_missing_object_or_key_is_an_error_unless_optional() {
    let objects = config_map("cm", &[("a", b"1")]);
    let missing = files(VolumeSource::Secret(keys("cm")), &objects).unwrap_err();
    assert!(matches!(missing, Error::MissingObject { kind: ObjectKind::Secret, .. }));
    assert_eq!(
        missing.event().message,
        "MountVolume.SetUp failed for volume \"v\" : secret \"cm\" not found"
    );
    let mut k = keys("cm");
    k.items = vec![item("a", "a", None), item("nope", "n", None)];
    assert!(matches!(
        files(VolumeSource::ConfigMap(k.clone()), &objects),
        Err(Error::MissingKey { key, .. }) if key == "nope"
    ));
    k.optional = true;
    assert_eq!(files(VolumeSource::ConfigMap(k.clone()), &objects).unwrap(), [file("a", "1", 0o644)]);
    assert_eq!(files(VolumeSource::Secret(k), &objects).unwrap(), []);
}

#[test]
fn projected_sources_share_one_directory_and_the_later_wins() {
    let mut objects = config_map("cm", &[("a", b"map"), ("same", b"map")]);
    objects.put_secret(keyed("s", &[("same", b"secret")]));
    let items = vec![
        DownwardItem {
            path: "pod/name".into(),
            value: DownwardValue::Field("metadata.name".into()),
            mode: Some(0o440),
        },
        DownwardItem {
            path: "pod/cpu".into(),
            value: DownwardValue::Resource(ResourceFieldRef {
                container: Some("main".parse().unwrap()),
                resource: "limits.cpu".into(),
                divisor: None,
            }),
            mode: None,
        },
    ];
    let sources = vec![
        ProjectedSource::ConfigMap(keys("cm")),
        ProjectedSource::Secret(keys("s")),
        ProjectedSource::DownwardApi(items.clone()),
    ];
    let got = files(VolumeSource::Projected { sources, default_mode: 0o604 }, &objects).unwrap();
    assert_eq!(
        got,
        [
            file("a", "map", 0o604),
            file("pod/cpu", "4", 0o604),
            file("pod/name", "web", 0o440),
            file("same", "secret", 0o604)
        ]
    );
    let sources = vec![ProjectedSource::NotYet { kind: "serviceAccountToken".into() }];
    assert!(matches!(
        files(VolumeSource::Projected { sources, default_mode: 0o644 }, &objects),
        Err(Error::NotYet { kind, .. }) if kind == "projected serviceAccountToken"
    ));
    let bad = vec![DownwardItem { value: DownwardValue::Field("nope".into()), ..items[0].clone() }];
    assert!(matches!(
        files(VolumeSource::DownwardApi { items: bad, default_mode: 0o644 }, &objects),
        Err(Error::Downward { .. })
    ));
}

#[test]
fn paths_that_lead_out_or_hide_are_refused() {
    let objects = config_map("cm", &[("a", b"1")]);
    let long = "x".repeat(256);
    let deep = "x/".repeat(2100);
    for bad in [
        "",
        ".",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "..data",
        "..data/x",
        "..2026_01",
        "a\0b",
        &long,
        &deep,
    ] {
        let mut k = keys("cm");
        k.items = vec![item("a", bad, None)];
        assert!(
            matches!(files(VolumeSource::ConfigMap(k), &objects), Err(Error::FilePath { .. })),
            "{bad:?}"
        );
    }
    let mut k = keys("cm");
    k.items = vec![item("a", "x", None), item("a", "x/y", None)];
    assert!(matches!(files(VolumeSource::ConfigMap(k.clone()), &objects), Err(Error::FilePath { .. })));
    k.items = vec![item("a", "x..y", None), item("a", "d/..hidden", None)];
    assert_eq!(files(VolumeSource::ConfigMap(k), &objects).unwrap().len(), 2);
}

#[test]
fn modes_have_no_more_than_permission_bits() {
    let objects = config_map("cm", &[("a", b"1")]);
    let mut k = keys("cm");
    k.default_mode = 0o7777;
    assert_eq!(files(VolumeSource::ConfigMap(k), &objects).unwrap(), [file("a", "1", 0o777)]);
}

#[test]
fn a_file_is_not_shown_in_logs() {
    let file = PayloadFile { bytes: b"hunter2".to_vec(), mode: 0o400, owner: None };
    assert_eq!(format!("{file:?}"), "7 bytes, mode 400");
}

#[test]
fn a_token_is_its_readers_alone_where_the_pod_names_the_reader() {
    let source = ProjectedSource::ServiceAccountToken {
        audience: Some("vault".into()),
        expiration_seconds: 3607,
        path: "token".into(),
    };
    let volume = volume("v", VolumeSource::Projected { sources: vec![source], default_mode: 0o644 });
    let container = |user: Option<u32>| Container {
        security: ContainerSecurity { run_as_user: user, ..ContainerSecurity::default() },
        ..Container::new("c".parse().unwrap(), "image")
    };
    let node = Node::new();
    let file = |pod: &Pod| {
        let mut objects = Objects::default();
        let token = Token { text: "abc".into(), expires: Wall(0) };
        objects.put_token(TokenRef::new(pod, Some("vault"), 3607), Value::Known(token));
        let inputs = VolumeInputs { pod, volume: &volume, facts: &facts(), objects: &objects };
        let files =
            plugin_of(&node.volumes, pod, &volume, &objects).unwrap().files(&inputs).unwrap().unwrap();
        let file = &files[Path::new("token")];
        assert_eq!(file.bytes, b"abc");
        (file.mode, file.owner)
    };
    let mut pod = pod("web");
    assert_eq!(file(&pod), (0o644, None), "the user is the image's");
    pod.containers = vec![container(Some(7)), container(Some(7))];
    assert_eq!(file(&pod), (0o600, Some(7)));
    pod.init_containers = vec![container(Some(8))];
    assert_eq!(file(&pod), (0o644, None), "two users");
    pod.init_containers = vec![container(None)];
    assert_eq!(file(&pod), (0o644, None));
    pod.security.run_as_user = Some(7);
    assert_eq!(file(&pod), (0o600, Some(7)), "the pod's user counts where a container names none");
    pod.security = PodSecurity { fs_group: Some(9), ..PodSecurity::default() };
    assert_eq!(file(&pod), (0o600, None), "the group is added when the file is written");
    // Standalone nodes have no tokens.
    let listed = Objects::listed();
    let inputs = VolumeInputs { pod: &pod, volume: &volume, facts: &facts(), objects: &listed };
    assert!(matches!(
        plugin_of(&node.volumes, &pod, &volume, &listed).unwrap().files(&inputs),
        Err(Error::NotYet { .. })
    ));
}
