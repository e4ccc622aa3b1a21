//! Mutations of indices, manifests, configurations and the records that name them.

use super::*;
use crate::{image_files, import};
use berth_core::error::Chain;
use berth_harness::{
    mutate::{Bytes, Reached, json::Corpus, run, wire},
    rng::Rng,
};
use containerd_client::{
    services::v1::{Image as Record, ListImagesResponse, snapshots::ViewSnapshotResponse},
    to_any,
    types::{
        Mount,
        transfer::{Progress, WindowUpdate},
    },
};
use prost::Message;
use prost_types::{Any, Timestamp};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

const TEXTS: &[&str] = &["linux", "amd64", "arm64", "s390x", "sha256:", "sha256:00", "latest"];

fn digest(of: &str) -> String {
    format!("sha256:{}", of.repeat(64))
}

fn documents() -> [Value; 3] {
    let layer = |d: &str, size: i64| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(d), "size": size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("a"), "size": 2},
        "layers": [layer("b", 1000), layer("c", 5)],
    });
    let other = json!({"os": "linux", "architecture": "s390x"});
    let own = json!({"os": "linux", "architecture": architecture(), "variant": "v8"});
    let index = json!({
        "schemaVersion": 2,
        "manifests": [
            {"digest": digest("d"), "size": 1, "platform": other, "annotations": {"a": "b"}},
            {"digest": digest("e"), "size": 1, "platform": own},
            {"digest": digest("f"), "size": 1},
        ],
    });
    let configuration = json!({
        "os": "linux",
        "architecture": architecture(),
        "config": {"Entrypoint": ["/a"], "Cmd": ["b"], "Env": ["A=b"], "User": "7:8", "WorkingDir": "/w",
                   "Volumes": {"/v": {}}, "StopSignal": "SIGQUIT", "Labels": {"x": "y"}},
        "rootfs": {"type": "layers", "diff_ids": [digest("1"), digest("2")]},
        "history": [{"created_by": "x", "empty_layer": true}],
    });
    [manifest, index, configuration]
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

#[test]
fn mutated_image_indices() {
    let [manifest, index, _] = documents();
    let corpus = Corpus::new(vec![index, manifest], TEXTS);
    for document in corpus.documents() {
        Manifest::parse("i", document.to_string().as_bytes()).unwrap().of_index("i").unwrap();
    }
    run(
        "image indices",
        |rng| corpus.text(rng),
        |text| {
            let chosen = Manifest::parse("i", text).and_then(|m| Ok(m.of_index("i")?.cloned()));
            match chosen {
                Err(_) if !is_json(text) => Reached::Syntax,
                Err(e) => {
                    assert!(!e.is_unknown() && Chain(&e).to_string().contains("image i"), "{}", Chain(&e));
                    Reached::Checks
                }
                Ok(chosen) => {
                    let platform = chosen.and_then(|c| c.platform);
                    assert!(platform.is_none_or(|p| {
                        (p.os == "linux" && p.architecture == architecture())
                            || (p.os.is_empty() && p.architecture.is_empty())
                    }));
                    Reached::Taken
                }
            }
        },
    );
}

#[test]
fn mutated_image_manifests_and_configurations() {
    let [manifest, _, configuration] = documents();
    let (manifests, configurations) =
        (Corpus::new(vec![manifest.clone()], TEXTS), Corpus::new(vec![configuration.clone()], TEXTS));
    let whole = |one: &[u8], two: &[u8]| {
        let mut manifest = Manifest::parse("i", one)?;
        let config = manifest.config.take().ok_or_else(|| inconsistent("i", "no configuration"))?;
        Content::new("i", manifest, one.len(), config.digest, two)
    };
    whole(manifest.to_string().as_bytes(), configuration.to_string().as_bytes()).unwrap();
    let make = |rng: &mut Rng| {
        let which = rng.below(3);
        let as_it_is = |value: &Value| Bytes(value.to_string().into_bytes());
        let one = if which == 0 { as_it_is(&manifest) } else { manifests.text(rng) };
        let two = if which == 1 { as_it_is(&configuration) } else { configurations.text(rng) };
        (one, two)
    };
    run("image manifests and configurations", make, |(one, two)| match whole(one, two) {
        Err(_) if !is_json(one) || !is_json(two) => Reached::Syntax,
        Err(e) => {
            assert!(!e.is_unknown() && Chain(&e).to_string().contains("image i"), "{}", Chain(&e));
            Reached::Checks
        }
        Ok(content) => {
            assert_eq!(content.layers.len(), content.diff_ids.len());
            assert_eq!(
                content.chain_id.is_empty(),
                content.diff_ids.last().is_none_or(String::is_empty) && content.diff_ids.len() < 2
            );
            assert!(content.size >= (one.len() + two.len()) as u64);
            Reached::Taken
        }
    });
}

#[test]
fn mutated_image_lists() {
    let record = |name: &str| Record {
        name: name.into(),
        labels: [("io.cri-containerd.kind".to_owned(), "x".to_owned())].into(),
        target: Some(Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            digest: digest("a"),
            size: 7,
            annotations: [("a".to_owned(), "b".to_owned())].into(),
        }),
        created_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 1 }),
        updated_at: None,
    };
    let reply = ListImagesResponse {
        images: vec![record("docker.io/library/busybox:latest"), record("reg:5000/a/b@sha256:00")],
    };
    let make = |rng: &mut Rng| {
        let mut raw = reply.encode_to_vec();
        wire::message(rng, &mut raw);
        Bytes(raw)
    };
    run("image lists", make, |raw| {
        let Ok(reply) = ListImagesResponse::decode(&raw[..]) else { return Reached::Syntax };
        let mut whole = !reply.images.is_empty();
        for image in &reply.images {
            assert!(image.name.starts_with(reference::repository(&image.name)));
            let candidates = reference::candidates(&image.name);
            assert!(candidates[0].contains('/'), "a full name has its registry: {candidates:?}");
            assert!(candidates.contains(&image.name), "what is there is found by its name: {candidates:?}");
            whole &= image.target.is_some() && wire_time(image).is_some();
        }
        if whole { Reached::Taken } else { Reached::Checks }
    });
}

fn wire_time(image: &Record) -> Option<Wall> {
    crate::wire::wall(image.created_at.as_ref())
}

#[test]
fn mutated_views_and_transfers() {
    let mount = |kind: &str, source: &str, options: &[&str]| Mount {
        r#type: kind.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
    };
    let view = ViewSnapshotResponse {
        mounts: vec![
            mount("overlay", "overlay", &["ro", "lowerdir=/a:/b:/c", "index=off"]),
            mount("bind", "/d", &["ro", "rbind"]),
        ],
    };
    let progress = Progress { event: "saved".into(), name: "docker.io/a/b:c".into(), ..Progress::default() };
    let make = |rng: &mut Rng| {
        let mut raw = match rng.below(3) {
            0 => view.encode_to_vec(),
            1 => to_any(&progress).encode_to_vec(),
            _ => to_any(&WindowUpdate { update: 1 << 20 }).encode_to_vec(),
        };
        wire::message(rng, &mut raw);
        Bytes(raw)
    };
    run("views and transfers", make, |raw| {
        let (view, any) = (ViewSnapshotResponse::decode(&raw[..]), Any::decode(&raw[..]));
        if view.is_err() && any.is_err() {
            return Reached::Syntax;
        }
        let layers = view.map(|v| image_files::layers(&v.mounts)).unwrap_or_default();
        let any = any.unwrap_or_default();
        let (granted, saved) = (import::granted(&any), import::saved(&any));
        assert_ne!(saved.as_deref(), Some(""));
        if layers.is_empty() && granted == 0 && saved.is_none() { Reached::Checks } else { Reached::Taken }
    });
}
