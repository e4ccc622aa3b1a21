//! The bytes of the helpers' protocols do not change, so that a helper and an agent of neighbouring
//! versions understand each other.
#![allow(clippy::unwrap_used, reason = "a test that fails says so by a panic")]

use berth_api::{
    dns, exec, frame,
    logd::{self, Envelope, FinishReport, StreamPaths, StreamSpec, StreamStatus},
};
use berth_core::{
    ids::{Attempt, ContainerId, ContainerName, Namespace, PodKey, PodName, PodUid},
    model::CapabilitySets,
};
use serde::{Serialize, de::DeserializeOwned};

/// The frame of this JSON text.
fn framed(json: &str) -> Vec<u8> {
    [&u32::try_from(json.len()).unwrap().to_le_bytes(), json.as_bytes()].concat()
}

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn spec() -> StreamSpec {
    StreamSpec {
        id: ContainerId::new(ID).unwrap(),
        uid: PodUid::new("u-1").unwrap(),
        key: PodKey { namespace: Namespace::new("ns").unwrap(), name: PodName::new("web").unwrap() },
        container: ContainerName::new("app").unwrap(),
        attempt: Attempt(2),
        tty: false,
        stdin: true,
        stdin_once: false,
    }
}

/// JSON of [`spec`].
fn spec_text() -> String {
    format!(
        r#"{{"id":"{ID}","uid":"u-1","key":{{"namespace":"ns","name":"web"}},"container":"app","attempt":2,"tty":false,"stdin":true,"stdin_once":false}}"#
    )
}

fn of_logd<T: Serialize + DeserializeOwned>(message: T, body: &str) {
    let json = format!(r#"{{"v":1,"seq":7,"body":{body}}}"#);
    assert_eq!(logd::encode(7, message).unwrap(), framed(&json), "{body}");
    let decoded: Envelope<T> = logd::decode(json.as_bytes()).unwrap();
    assert_eq!(logd::encode(decoded.seq, decoded.body).unwrap(), framed(&json), "{body}");
}

#[test]
fn requests_to_logd_have_the_same_bytes_as_ever() {
    use logd::Request;
    let id = ContainerId::new(ID).unwrap();
    of_logd(Request::Hello, r#"{"op":"hello"}"#);
    of_logd(Request::Register { spec: spec() }, &format!(r#"{{"op":"register","spec":{}}}"#, spec_text()));
    of_logd(Request::Finish { id }, &format!(r#"{{"op":"finish","id":"{ID}"}}"#));
    of_logd(
        Request::RemoveAttempt { spec: spec() },
        &format!(r#"{{"op":"remove-attempt","spec":{}}}"#, spec_text()),
    );
    of_logd(
        Request::RemovePod { key: spec().key, uid: spec().uid },
        r#"{"op":"remove-pod","key":{"namespace":"ns","name":"web"},"uid":"u-1"}"#,
    );
    of_logd(Request::List, r#"{"op":"list"}"#);
    of_logd(Request::Takeover, r#"{"op":"takeover"}"#);
    of_logd(Request::Commit, r#"{"op":"commit"}"#);
}

#[test]
fn replies_of_logd_have_the_same_bytes_as_ever() {
    use logd::Reply;
    of_logd(
        Reply::Hello(logd::Hello { pid: 5, version: "1.0".into(), streams: 3 }),
        r#"{"kind":"hello","pid":5,"version":"1.0","streams":3}"#,
    );
    let paths = StreamPaths {
        stdin: None,
        stdout: "/f/stdout".into(),
        stderr: Some("/f/e".into()),
        log: "/l".into(),
    };
    of_logd(
        Reply::Paths(paths),
        r#"{"kind":"paths","stdin":null,"stdout":"/f/stdout","stderr":"/f/e","log":"/l"}"#,
    );
    of_logd(
        Reply::Finished(FinishReport { known: true, bytes: 9, lost: 0 }),
        r#"{"kind":"finished","known":true,"bytes":9,"lost":0}"#,
    );
    let status = StreamStatus { spec: spec(), bytes: 9, lost: 1, failing: Some("disk full".into()) };
    of_logd(
        Reply::Streams { streams: vec![status] },
        &format!(
            r#"{{"kind":"streams","streams":[{{"spec":{},"bytes":9,"lost":1,"failing":"disk full"}}]}}"#,
            spec_text()
        ),
    );
    of_logd(Reply::Done, r#"{"kind":"done"}"#);
    of_logd(Reply::Failed { message: "m".into() }, r#"{"kind":"failed","message":"m"}"#);
    of_logd(Reply::Unsupported { message: "m".into() }, r#"{"kind":"unsupported","message":"m"}"#);
    of_logd(Reply::Handover { containers: 2 }, r#"{"kind":"handover","containers":2}"#);
    of_logd(
        Reply::Handed { spec: spec(), bytes: 9, lost: 1 },
        &format!(r#"{{"kind":"handed","spec":{},"bytes":9,"lost":1}}"#, spec_text()),
    );
    of_logd(Reply::Released, r#"{"kind":"released"}"#);
}

fn of_dns<T: Serialize + DeserializeOwned>(message: T, json: &str) {
    assert_eq!(dns::encode(&message).unwrap(), framed(json));
    let decoded: T = frame::decode(json.as_bytes()).unwrap();
    assert_eq!(dns::encode(&decoded).unwrap(), framed(json));
}

#[test]
fn messages_of_cluster_dns_have_the_same_bytes_as_ever() {
    use dns::{Counts, Reply, Request, Status};
    of_dns(Request::Status, r#"{"op":"status"}"#);
    of_dns(Request::HandOver, r#"{"op":"hand-over"}"#);
    of_dns(Request::End, r#"{"op":"end"}"#);
    let status = Status {
        version: "1.0".into(),
        pid: 5,
        addresses: vec!["10.96.0.10".parse().unwrap()],
        serial: Some(4),
        services: 2,
        zone_error: None,
        upstreams: vec!["192.0.2.1:53".parse().unwrap()],
        cached: 1,
        counts: Counts { udp: 1, tcp: 2, zone: 3, cache: 4, upstream: 5, failed: 6, refused: 7 },
    };
    of_dns(
        Reply::Status(Box::new(status)),
        concat!(
            r#"{"reply":"status","version":"1.0","pid":5,"addresses":["10.96.0.10"],"serial":4,"services":2,"#,
            r#""zone_error":null,"upstreams":["192.0.2.1:53"],"cached":1,"counts":{"udp":1,"tcp":2,"zone":3,"#,
            r#""cache":4,"upstream":5,"failed":6,"refused":7}}"#
        ),
    );
    of_dns(Reply::HandedOver, r#"{"reply":"handed-over"}"#);
    of_dns(Reply::Busy, r#"{"reply":"busy"}"#);
    of_dns(Reply::Ending, r#"{"reply":"ending"}"#);
    of_dns(Reply::Unsupported, r#"{"reply":"unsupported"}"#);
}

#[test]
fn messages_of_the_exec_helper_have_the_same_bytes_as_ever() {
    use exec::{ExecOutcome, ExecProcess, ExecTarget, Reply, Request, Rlimit, SessionStreams};
    let target = ExecTarget {
        command: vec!["true".into()],
        pid: 5,
        start_time: 6,
        process: ExecProcess {
            uid: 1,
            gid: 2,
            groups: vec![3],
            umask: 18,
            env: vec!["A=b".into()],
            cwd: "/".into(),
            capabilities: CapabilitySets {
                bounding: 1,
                effective: 2,
                permitted: 3,
                inheritable: 4,
                ambient: 5,
            },
            no_new_privs: true,
            rlimits: vec![Rlimit { resource: 7, soft: 8, hard: 9 }],
            oom_score_adj: Some(-3),
            seccomp: None,
        },
        cgroup_dirs: vec!["/c".into()],
    };
    let target_text = concat!(
        r#"{"command":["true"],"pid":5,"start_time":6,"process":{"uid":1,"gid":2,"groups":[3],"umask":18,"#,
        r#""env":["A=b"],"cwd":"/","capabilities":{"bounding":1,"effective":2,"permitted":3,"inheritable":4,"#,
        r#""ambient":5},"no_new_privs":true,"rlimits":[{"resource":7,"soft":8,"hard":9}],"oom_score_adj":-3,"#,
        r#""seccomp":null},"cgroup_dirs":["/c"]}"#
    );
    let requests = [
        (Request::Clean { roots: vec!["/r".into()] }, r#"{"Clean":{"roots":["/r"]}}"#.to_owned()),
        (
            Request::Exec { id: 1, timeout_ms: 2, target: Box::new(target.clone()) },
            format!(r#"{{"Exec":{{"id":1,"timeout_ms":2,"target":{target_text}}}}}"#),
        ),
        (
            Request::Session {
                id: 1,
                start_ms: 2,
                streams: SessionStreams::Terminal,
                target: Box::new(target),
            },
            format!(r#"{{"Session":{{"id":1,"start_ms":2,"streams":"Terminal","target":{target_text}}}}}"#),
        ),
        (Request::Cancel { id: 1 }, r#"{"Cancel":{"id":1}}"#.to_owned()),
    ];
    for (request, json) in requests {
        assert_eq!(exec::encode(&request).unwrap(), framed(&json));
        let taken: Request = exec::take(&mut framed(&json)).unwrap().unwrap();
        assert_eq!(exec::encode(&taken).unwrap(), framed(&json));
    }
    let output = || "o".to_owned();
    for (outcome, json) in [
        (ExecOutcome::Exited { code: 1, output: output() }, r#"{"Exited":{"code":1,"output":"o"}}"#),
        (ExecOutcome::Killed { signal: 9, output: output() }, r#"{"Killed":{"signal":9,"output":"o"}}"#),
        (ExecOutcome::TimedOut { output: output() }, r#"{"TimedOut":{"output":"o"}}"#),
        (ExecOutcome::NotRun("w".into()), r#"{"NotRun":"w"}"#),
        (ExecOutcome::Unsupported("w".into()), r#"{"Unsupported":"w"}"#),
    ] {
        let json = format!(r#"{{"Ended":{{"id":1,"outcome":{json}}}}}"#);
        let reply = Reply::Ended { id: 1, outcome };
        assert_eq!(exec::encode(&reply).unwrap(), framed(&json));
        let taken: Reply = exec::take(&mut framed(&json)).unwrap().unwrap();
        assert_eq!(exec::encode(&taken).unwrap(), framed(&json));
    }
    let json = r#"{"Started":{"id":1,"pid":2}}"#;
    assert_eq!(exec::encode(&Reply::Started { id: 1, pid: 2 }).unwrap(), framed(json));
}
