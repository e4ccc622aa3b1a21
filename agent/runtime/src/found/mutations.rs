//! Mutations of containerd's lists: records and tasks.

use super::*;
use crate::record::{Mark, exit_extension, extensions, labels};
use berth_core::{
    error::Chain,
    ids::{Namespace, PodName},
};
use berth_harness::{
    mutate::{Bytes, Reached, json::Corpus, run, wire},
    rng::Rng,
};
use containerd_client::services::v1::{ListContainerMessage, ListTasksResponse, container};
use prost::Message;
use prost_types::{Any, Timestamp};
use serde::de::IgnoredAny;
use serde_json::json;

const MARK: &str = "berth.dev/container";

fn listed() -> ListContainerMessage {
    let id = ContainerId::new("a".repeat(64)).unwrap();
    let mark = Mark {
        pod: PodUid::new("1b4e28ba-2fa1-11d2-883f-0016d3cca427").unwrap(),
        key: PodKey {
            namespace: Namespace::new("default").unwrap(),
            name: PodName::new("web-0.example").unwrap(),
        },
        container: ContainerName::new("app").unwrap(),
        attempt: Attempt(3),
        sandbox_attempt: SandboxAttempt(1),
        boot: BootId::new("7c9e6679-7425-40de-944b-e07fc1f90ae7").unwrap(),
        image_id: "sha256:0123".into(),
        extension: json!({"grace": 30, "hooks": [{"exec": ["a", "b"]}], "spec": null}),
    };
    let exit = ExitRecord {
        code: 137,
        at: Wall(1_700_000_000_000_000_000),
        oom: true,
        reason: Some("OOMKilled".into()),
        message: Some("last words".into()),
        started_at: Some(Wall(1)),
    };
    let shim = ShimAssignment { address: "ttrpc+unix:///run/s".into(), group: "u-1".into() };
    let mut documents = extensions(&id, &mark, Some(&shim)).unwrap();
    documents.extend(exit_extension(&id, &exit).unwrap());
    let time = Some(Timestamp { seconds: 1_700_000_000, nanos: 5 });
    let container = Container {
        id: id.to_string(),
        labels: labels(&mark),
        image: "docker.io/library/busybox:latest".into(),
        runtime: Some(container::Runtime { name: "io.containerd.runc.v2".into(), options: None }),
        spec: Some(Any { type_url: "spec".into(), value: b"{}".to_vec() }),
        snapshotter: "overlayfs".into(),
        snapshot_key: id.to_string(),
        created_at: time,
        updated_at: time,
        extensions: documents,
        sandbox: id.to_string(),
    };
    ListContainerMessage { container: Some(container) }
}

fn message(rng: &mut Rng, corpora: &[(String, Corpus)]) -> Bytes {
    let mut listed = listed();
    let whole = rng.below(2) == 0;
    if let Some(container) = listed.container.as_mut().filter(|_| whole) {
        for (key, corpus) in corpora {
            if rng.below(2) == 0
                && let Some(any) = container.extensions.get_mut(key)
            {
                any.value = corpus.text(rng).0;
            }
        }
    }
    let mut raw = listed.encode_to_vec();
    if !whole {
        wire::message(rng, &mut raw);
    }
    Bytes(raw)
}

#[test]
fn mutated_container_records() {
    let container = listed().container.unwrap();
    let corpora: Vec<(String, Corpus)> = container
        .extensions
        .iter()
        .map(|(key, any)| {
            let document = serde_json::from_slice(&any.value).unwrap();
            (key.clone(), Corpus::new(vec![document], &["default", "a-b", "sha256:00", "A", "../x", "a_b"]))
        })
        .collect();
    assert_eq!(corpora.len(), 3);
    assert!(candidate(container).unwrap().is_some());
    run(
        "container records",
        |rng| message(rng, &corpora),
        |raw| {
            let Ok(ListContainerMessage { container: Some(container) }) = Message::decode(&raw[..]) else {
                return Reached::Syntax;
            };
            let any = container.extensions.get(MARK).map(|any| any.value.clone());
            let is_json = any.as_ref().is_none_or(|m| serde_json::from_slice::<IgnoredAny>(m).is_ok());
            match candidate(container) {
                Err(_) if !is_json => Reached::Syntax,
                Err(e) => {
                    assert!(!e.is_unknown() && !Chain(&e).to_string().is_empty());
                    Reached::Checks
                }
                Ok(None) => {
                    assert_eq!(any, None, "a mark is not passed over");
                    Reached::Checks
                }
                Ok(Some(c)) => {
                    assert_eq!(c.id.as_str().len(), 64);
                    // Writing a record that was read gives the same record.
                    let again = extensions(&c.id, &c.found.mark, c.found.shim.as_ref()).unwrap();
                    assert_eq!(record::read("c", &again).unwrap().unwrap().mark, c.found.mark);
                    Reached::Taken
                }
            }
        },
    );
}

#[test]
fn mutated_task_lists() {
    let me = std::process::id();
    let tasks = |status: Status, pid: u32| Process {
        container_id: "c".repeat(64),
        id: "c".repeat(64),
        pid,
        status: status.into(),
        stdout: "/run/fifo/out".into(),
        exit_status: 137,
        exited_at: Some(Timestamp { seconds: 1_700_000_000, nanos: 999_999_999 }),
        ..Process::default()
    };
    let reply = ListTasksResponse {
        tasks: vec![
            tasks(Status::Running, me),
            tasks(Status::Created, me),
            tasks(Status::Stopped, 0),
            tasks(Status::Paused, 1),
            tasks(Status::Pausing, u32::MAX),
        ],
    };
    let make = |rng: &mut Rng| {
        let mut raw = reply.encode_to_vec();
        wire::message(rng, &mut raw);
        Bytes(raw)
    };
    run("task lists", make, |raw| {
        let Ok(reply) = ListTasksResponse::decode(&raw[..]) else { return Reached::Syntax };
        let mut known = true;
        for process in &reply.tasks {
            match state_of(process, process::runs_program) {
                FoundState::Unknown => known = false,
                FoundState::NoTask => panic!("a listed task is there"),
                FoundState::Created { pid } => assert_eq!(pid, process.pid),
                FoundState::Running { pid, start_time, started_at } => {
                    assert_eq!((pid, start_time == 0), (process.pid, started_at.is_none()));
                }
                FoundState::Stopped { code, at } => assert!(code >= 0 && at.0 > 0),
            }
        }
        if known && !reply.tasks.is_empty() { Reached::Taken } else { Reached::Checks }
    });
}
