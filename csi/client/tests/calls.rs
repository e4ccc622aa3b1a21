//! The client against a driver that answers late, twice, never, wrongly, or dies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use berth_csi_client::{
    testing::{Answer, Fault, Options, Outcome, TestDriver},
    *,
};
use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

fn capability() -> VolumeCapability {
    let mount =
        MountVolume { fs_type: "ext4".into(), mount_flags: vec!["ro".into()], volume_mount_group: Some(7) };
    VolumeCapability { access_mode: AccessMode::SingleNodeMultiWriter, access_type: AccessType::Mount(mount) }
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn volume() -> VolumeId {
    VolumeId::new("vol/../1").unwrap()
}

fn stage(dir: &Path) -> Stage {
    Stage {
        volume: volume(),
        publish_context: map(&[("device", "7")]),
        staging_target_path: dir.join("staging"),
        capability: capability(),
        secrets: Secrets::new(map(&[("password", "hunter2")])),
        volume_context: map(&[("share", "a")]),
    }
}

fn publish(dir: &Path) -> Publish {
    Publish {
        volume: volume(),
        publish_context: map(&[("device", "7")]),
        staging_target_path: Some(dir.join("staging")),
        target_path: dir.join("target"),
        capability: capability(),
        readonly: true,
        secrets: Secrets::new(map(&[("password", "hunter2")])),
        volume_context: map(&[("token", "hunter2")]),
    }
}

fn expand(dir: &Path) -> Expand {
    Expand {
        volume: volume(),
        volume_path: dir.join("target"),
        required_bytes: u64::MAX,
        staging_target_path: Some(dir.join("staging")),
        capability: capability(),
        secrets: Secrets::default(),
    }
}

fn create() -> Create {
    Create {
        name: volume().to_string(),
        required_bytes: Some(1 << 30),
        capabilities: vec![capability()],
        parameters: map(&[("share", "a")]),
        secrets: Secrets::new(map(&[("password", "hunter2")])),
        topology: map(&[("zone", "a")]),
    }
}

fn delete() -> Delete {
    let secrets = Secrets::new(map(&[("password", "hunter2")]));
    Delete { volume: VolumeId::new("made-vol/../1").unwrap(), secrets }
}

/// Every call of a volume, and those about the driver.
const CALLS: [Call; 11] = [
    Call::GetPluginInfo,
    Call::NodeGetInfo,
    Call::NodeGetCapabilities,
    Call::NodeStageVolume,
    Call::NodePublishVolume,
    Call::NodeGetVolumeStats,
    Call::NodeExpandVolume,
    Call::NodeUnpublishVolume,
    Call::NodeUnstageVolume,
    Call::CreateVolume,
    Call::DeleteVolume,
];

/// Makes one call.
async fn call(driver: &Driver, call: Call, dir: &Path) -> Result<(), Error> {
    let (volume, staging_target_path, target_path) = (volume(), dir.join("staging"), dir.join("target"));
    match call {
        Call::GetPluginInfo => driver.plugin_info().await.map(drop),
        Call::NodeGetInfo => driver.node_info().await.map(drop),
        Call::NodeGetCapabilities => driver.node_capabilities().await.map(drop),
        Call::NodeStageVolume => driver.stage(&stage(dir)).await,
        Call::NodeUnstageVolume => driver.unstage(&Unstage { volume, staging_target_path }).await,
        Call::NodePublishVolume => driver.publish(&publish(dir)).await,
        Call::NodeUnpublishVolume => driver.unpublish(&Unpublish { volume, target_path }).await,
        Call::NodeGetVolumeStats => {
            let stats = GetVolumeStats { volume, volume_path: target_path, staging_target_path: None };
            driver.volume_stats(&stats).await.map(drop)
        }
        Call::NodeExpandVolume => driver.expand(&expand(dir)).await.map(drop),
        Call::CreateVolume => driver.create(&create()).await.map(drop),
        Call::DeleteVolume => driver.delete(&delete()).await,
    }
}

/// A driver and its client in a directory with a staging path.
fn start() -> (tempfile::TempDir, TestDriver, Driver) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("staging")).unwrap();
    let server = TestDriver::start(dir.path(), Options::default()).unwrap();
    let driver = server.client().unwrap();
    (dir, server, driver)
}

/// A client that waits this long.
fn patient(driver: &Driver, millis: u64) -> Driver {
    let within = Duration::from_millis(millis);
    driver.clone().with_deadlines(Deadlines { volume: within, info: within, stats: within })
}

#[tokio::test]
async fn each_call_carries_what_it_was_given() {
    let (dir, server, driver) = start();
    server.change(|o| {
        o.info.max_volumes = Some(12);
        o.info.topology = map(&[("zone", "a")]);
    });
    assert_eq!(driver.plugin_info().await.unwrap().name, "test.csi.example");
    let info = driver.node_info().await.unwrap();
    assert_eq!((info.node_id.as_str(), info.max_volumes), ("node-1", Some(12)));
    assert_eq!(info.topology, map(&[("zone", "a")]));
    let can = driver.node_capabilities().await.unwrap();
    assert!(can.stage_unstage && can.expand && !can.volume_mount_group);
    for c in &CALLS[3..] {
        call(&driver, *c, dir.path()).await.unwrap();
    }
    let journal: Vec<_> = server.journal().into_iter().filter(|e| !e.volume.is_empty()).collect();
    assert_eq!(journal.iter().map(|e| e.call).collect::<Vec<_>>(), CALLS[3..]);
    assert!(journal.iter().all(|e| e.volume.ends_with("vol/../1") && e.outcome == Outcome::Done));
    let staged = &journal[0];
    assert_eq!(staged.path, dir.path().join("staging"));
    assert_eq!(staged.request.volume_context, map(&[("share", "a")]));
    assert_eq!(staged.request.publish_context, map(&[("device", "7")]));
    assert_eq!(staged.request.secrets, map(&[("password", "hunter2")]));
    assert_eq!((staged.request.fs_type.as_str(), staged.request.volume_mount_group.as_str()), ("ext4", "7"));
    assert_eq!(staged.request.access_mode, "SINGLE_NODE_MULTI_WRITER");
    let published = &journal[1];
    assert!(published.request.readonly);
    assert_eq!(published.path, dir.path().join("target"));
    assert_eq!(published.request.staging_target_path, dir.path().join("staging"));
    assert_eq!(journal[3].request.required_bytes, i64::MAX);
    let made = &journal[6].request;
    assert_eq!((made.required_bytes, &made.parameters), (1 << 30, &map(&[("share", "a")])));
    assert_eq!(made.secrets, map(&[("password", "hunter2")]));
    assert_eq!((server.staged().len(), server.published().len(), server.made().len()), (0, 0, 0));
    let made = driver.create(&create()).await.unwrap();
    assert_eq!((made.volume.as_str(), made.bytes), ("made-vol/../1", Some(1 << 30)));
    assert_eq!(made.context, map(&[("made", "yes")]));
}

#[tokio::test]
async fn late_and_double_answers_are_answers() {
    let (dir, server, driver) = start();
    for c in CALLS {
        server.fault(c, Fault::after(Answer::Late(Duration::from_millis(50))));
        call(&driver, c, dir.path()).await.unwrap();
    }
    for c in CALLS {
        server.fault(c, Fault::after(Answer::Twice));
        call(&driver, c, dir.path()).await.unwrap();
    }
}

/// Asserts that the call fails in this way, names its parts, and that the next one gets through.
async fn fails(
    server: &TestDriver,
    driver: &Driver,
    c: Call,
    dir: &Path,
    fault: Fault,
    is_final: bool,
    text: &str,
) {
    server.fault(c, fault.clone());
    let error = call(driver, c, dir).await.expect_err("a faulty call succeeds");
    let shown = error.to_string();
    assert!(shown.starts_with(&format!("cannot {c}")), "{fault:?}: {shown}");
    assert!(shown.contains(" by driver test.csi.example: "), "{fault:?}: {shown}");
    assert!(shown.contains(text), "{fault:?}: {shown}");
    assert_eq!(shown.contains("vol/../1"), CALLS.iter().position(|x| *x == c) > Some(2), "{shown}");
    assert_eq!(error.is_final(), is_final, "{fault:?}: {shown}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_code_is_final_unless_the_driver_may_still_be_at_work() {
    let (dir, server, driver) = start();
    for c in CALLS {
        for (code, is_final) in [
            (Code::Internal, true),
            (Code::Unknown, true),
            (Code::NotFound, true),
            (Code::Aborted, false),
            (Code::Unavailable, false),
            (Code::DeadlineExceeded, false),
            (Code::Cancelled, false),
            (Code::ResourceExhausted, false),
        ] {
            let (fault, text) = (Fault::instead(Answer::Code(code)), format!("{code:?}: injected fault"));
            fails(&server, &driver, c, dir.path(), fault, is_final, &text).await;
        }
        call(&driver, c, dir.path()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_answer_leaves_the_state_unknown() {
    let (dir, server, driver) = start();
    for c in CALLS {
        for answer in [Answer::Garbage, Answer::Large(ANSWER_MAX + 1), Answer::Large(5 << 20)] {
            fails(&server, &driver, c, dir.path(), Fault::instead(answer), false, "no usable answer: ").await;
        }
        call(&driver, c, dir.path()).await.unwrap();
    }
}

#[tokio::test]
async fn a_driver_that_never_answers_costs_the_deadline_and_nobody_else() {
    let (dir, server, driver) = start();
    for c in CALLS {
        let began = Instant::now();
        server.fault(c, Fault::instead(Answer::Never));
        server.fault(c, Fault::instead(Answer::Never));
        let hasty = patient(&driver, 300);
        let (first, second) = tokio::join!(call(&hasty, c, dir.path()), call(&hasty, c, dir.path()));
        for error in [first.unwrap_err(), second.unwrap_err()] {
            assert!(matches!(error, Error::Deadline { .. }), "{error}");
            assert!(!error.is_final());
            assert!(error.to_string().ends_with("no answer within 0.3 s"), "{error}");
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        call(&driver, c, dir.path()).await.unwrap();
    }
}

#[tokio::test]
async fn a_driver_that_dies_in_the_middle_is_reached_again_after_its_restart() {
    let (dir, mut server, driver) = start();
    for effect in [false, true] {
        for c in CALLS {
            let fault = Fault { effect, answer: Answer::Dies };
            fails(&server, &driver, c, dir.path(), fault, false, "no usable answer: ").await;
            let error = call(&driver, c, dir.path()).await.expect_err("a dead driver answers");
            assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
            server.restart().unwrap();
            call(&driver, c, dir.path()).await.unwrap();
        }
    }
    // The effect came before the death, so that the second call had nothing left to do.
    let repeated =
        |c| server.journal().iter().filter(|e| e.call == c && e.outcome == Outcome::Repeated).count();
    assert_eq!((repeated(Call::NodeStageVolume), repeated(Call::NodePublishVolume)), (1, 1));
}

#[tokio::test]
async fn what_serves_at_the_socket_may_be_anything() {
    let dir = tempfile::tempdir().unwrap();
    let name = DriverName::parse("odd.example").unwrap();
    let socket = dir.path().join("s");
    let driver = Driver::new(name.clone(), &socket);
    // Nothing, a file, a directory, and a path that is too long for a socket.
    let reason = driver.node_info().await.unwrap_err().to_string();
    assert!(reason.contains("No such file"), "{reason}");
    std::fs::write(&socket, "x").unwrap();
    let reason = driver.node_info().await.unwrap_err().to_string();
    assert!(reason.contains("onnection refused"), "{reason}");
    std::fs::remove_file(&socket).unwrap();
    let long = dir.path().join("x".repeat(200));
    assert!(!Driver::new(name, &long).node_info().await.unwrap_err().is_final());
    // Somebody who closes at once, talks another protocol, or talks without an end.
    for text in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xff; 200_000], &[0; 200_000]] {
        let listener = UnixListener::bind(&socket).unwrap();
        let text = text.to_vec();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The client may hang up before the end.
            stream.write_all(&text).ok();
        });
        let error = patient(&driver, 5_000).node_info().await.unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
        server.join().unwrap();
        std::fs::remove_file(&socket).unwrap();
    }
    // A listener that nobody serves: the connection is made and silent.
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = patient(&driver, 200).node_info().await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn an_observer_hears_of_every_call_and_its_end() {
    let (dir, mut server, driver) = start();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let out = std::sync::Arc::clone(&heard);
    let hear = move |ended: EndedCall<'_>| {
        assert_eq!(ended.driver.as_str(), "test.csi.example");
        out.lock().unwrap().push((ended.call.method(), ended.code));
    };
    let driver = patient(&driver, 2_000).observed_by(Observer::new(hear));
    for c in CALLS {
        call(&driver, c, dir.path()).await.unwrap();
        let (name, code) = heard.lock().unwrap().pop().unwrap();
        assert_eq!((name.rsplit('/').next(), code), (Some(format!("{c:?}").as_str()), Code::Ok));
    }
    server.fault(Call::NodeStageVolume, Fault::instead(Answer::Code(Code::NotFound)));
    server.fault(Call::NodeStageVolume, Fault::instead(Answer::Never));
    for _ in 0..2 {
        call(&driver, Call::NodeStageVolume, dir.path()).await.unwrap_err();
    }
    server.kill();
    call(&driver, Call::NodeStageVolume, dir.path()).await.unwrap_err();
    let codes: Vec<Code> = heard.lock().unwrap().iter().map(|(_, code)| *code).collect();
    assert_eq!(codes, [Code::NotFound, Code::DeadlineExceeded, Code::Unavailable]);
}

#[tokio::test]
async fn a_call_that_hangs_holds_up_no_other() {
    let (dir, server, driver) = start();
    server.fault(Call::NodeGetInfo, Fault::after(Answer::Never));
    let hung = tokio::spawn({
        let driver = driver.clone();
        async move { driver.node_info().await }
    });
    for c in &CALLS[3..] {
        call(&driver, *c, dir.path()).await.unwrap();
    }
    assert!(!hung.is_finished());
    hung.abort();
}

#[tokio::test]
async fn a_path_that_no_message_can_carry_is_refused_before_the_call() {
    use std::os::unix::ffi::OsStringExt;
    let (dir, server, driver) = start();
    let path = PathBuf::from(std::ffi::OsString::from_vec(b"/x/\xff".to_vec()));
    let error = driver.publish(&Publish { target_path: path, ..publish(dir.path()) }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"cannot publish volume vol/../1 by driver test.csi.example: path "/x/\xFF" is not UTF-8"#
    );
    assert!(error.is_final());
    assert_eq!(server.journal(), []);
}

#[test]
fn no_secret_is_shown() {
    let dir = Path::new("/x");
    let (create, delete) = (format!("{:?}", create()), format!("{:?}", delete()));
    let (stage, publish) = (format!("{:?}", stage(dir)), format!("{:?}", publish(dir)));
    for text in [stage, publish, format!("{:?}", expand(dir)), create, delete] {
        assert!(text.contains("vol/../1") && !text.contains("hunter2"), "{text}");
    }
    assert_eq!(format!("{:?}", Secrets::new(map(&[("a", "hunter2")]))), "Secrets(1 hidden)");
}
