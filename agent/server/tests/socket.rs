//! Tests of the local socket from outside: greetings, lists, watches, malformed bytes, slow readers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_api::{
    client::Client,
    frame::{self, FrameReader, REPLY_MAX},
    message::{ErrorCode, ExecPaths, ExecSpec, Hello, Reply, Request, Size},
    view::{Health, ImageDetails, ImageView, NodeView, PodView},
};
use berth_core::{
    event::{Event, EventRecord, Involved},
    ids::NodeName,
    image::{LayerProgress, LayerState, PullProgress},
    time::Wall,
};
use berth_harness::rng::Rng;
use berth_server::{ApiError, Backend, ExecSession, PullSession, Server, WatchCache, bind};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

/// A fake backend whose commands end on a resize.
#[derive(Default)]
struct Fake {
    killed: Arc<AtomicUsize>,
    made: AtomicUsize,
}

struct FakeExec {
    spec: ExecSpec,
    ended: bool,
    killed: Arc<AtomicUsize>,
}

impl Drop for FakeExec {
    fn drop(&mut self) {
        if !self.ended {
            self.killed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl ExecSession for FakeExec {
    fn paths(&self) -> ExecPaths {
        ExecPaths { stdout: "/out".into(), ..ExecPaths::default() }
    }
    async fn start(&mut self) -> Result<u32, ApiError> {
        Ok(7)
    }
    async fn wait(&mut self) -> Result<i32, ApiError> {
        if self.spec.command.first().is_some_and(|c| c == "sleep") && !self.ended {
            std::future::pending::<()>().await;
        }
        self.ended = true;
        Ok(42)
    }
    async fn resize(&mut self, _size: Size) -> Result<(), ApiError> {
        self.ended = true;
        Ok(())
    }
    async fn close_stdin(&mut self) -> Result<(), ApiError> {
        Err(ApiError::new(ErrorCode::Failed, "no input"))
    }
}

/// A pull of one layer in two steps.
struct FakePull {
    image: String,
    steps: u64,
}

impl PullSession for FakePull {
    async fn progress(&mut self) -> Option<PullProgress> {
        self.steps = self.steps.checked_sub(1)?;
        let digest = "sha256:0123456789abcdef".to_owned();
        let state = if self.steps > 0 { LayerState::Downloading } else { LayerState::Extracted };
        let layers = vec![LayerProgress { digest, state, done: 2048 - 1024 * self.steps, total: 2048 }];
        Some(PullProgress { layers })
    }
    async fn end(self) -> Result<ImageView, ApiError> {
        match self.image.as_str() {
            "absent" => Err(ApiError::new(ErrorCode::Failed, "failed to pull: not found")),
            _ => Ok(ImageView { name: self.image, digest: "sha256:aa".into(), size: Some(5), created: None }),
        }
    }
}

impl Backend for Fake {
    type Exec = FakeExec;
    type Pull = FakePull;

    async fn status(&self) -> NodeView {
        NodeView {
            node: NodeName::new("n1").unwrap(),
            version: "9".into(),
            pid: 1,
            start_time: 1,
            since: Wall(0),
            containerd: Health::good("2"),
            network: Health::bad("none"),
            logd: Health::default(),
            services: None,
            dns: None,
            image_disk: None,
            csi: None,
            addresses: None,
            sources: Vec::new(),
            control_plane: None,
            as_of: Wall(1),
        }
    }
    async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        Err(ApiError::new(ErrorCode::Unavailable, "no containerd"))
    }
    async fn import(&self, path: PathBuf) -> Result<Vec<String>, ApiError> {
        Ok(vec![path.display().to_string()])
    }
    async fn pull(&self, image: String) -> Result<FakePull, ApiError> {
        Ok(FakePull { image, steps: 2 })
    }
    async fn remove_image(&self, image: String, _force: bool) -> Result<Vec<String>, ApiError> {
        Ok(vec![image])
    }
    async fn tag_image(&self, _image: String, name: String) -> Result<String, ApiError> {
        Ok(name)
    }
    async fn inspect_image(&self, image: String) -> Result<ImageDetails, ApiError> {
        Ok(ImageDetails { names: vec![image], ..ImageDetails::default() })
    }
    async fn prepare_exec(&self, spec: ExecSpec) -> Result<FakeExec, ApiError> {
        self.made.fetch_add(1, Ordering::SeqCst);
        Ok(FakeExec { spec, ended: false, killed: Arc::clone(&self.killed) })
    }
}

struct Node {
    dir: tempfile::TempDir,
    cache: WatchCache,
    fake: Arc<Fake>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Node {
    async fn start() -> Node {
        let dir = tempfile::Builder::new().prefix("berth-server-").tempdir().unwrap();
        let (cache, fake) = (WatchCache::default(), Arc::new(Fake::default()));
        let listener = bind(&dir.path().join("agent.sock")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = Server { cache: cache.clone(), backend: Arc::clone(&fake) };
        let task = tokio::spawn(server.run(listener, stopped));
        Node { dir, cache, fake, stop: Some(stop), task }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    async fn client(&self) -> Client {
        Client::connect(&self.socket()).await.unwrap()
    }

    async fn end(mut self) {
        drop(self.stop.take());
        timeout(SOON, &mut self.task).await.unwrap().unwrap();
    }
}

fn pod(n: usize) -> PodView {
    let object = serde_json::json!({"metadata": {"name": format!("p{n}")}});
    serde_json::from_value(serde_json::json!({
        "uid": format!("u{n}"), "key": {"namespace": "d", "name": format!("p{n}")}, "object": object,
    }))
    .unwrap()
}

async fn next(client: &mut Client) -> Reply {
    timeout(SOON, client.next()).await.unwrap().unwrap()
}

async fn until_synced(client: &mut Client) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        match next(client).await {
            Reply::Pod { pod } => keys.push(pod.key.to_string()),
            Reply::Synced => return keys,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn every_request_is_answered_on_one_connection() {
    let node = Node::start().await;
    node.cache.publish(pod(1));
    let mut client = node.client().await;
    assert_eq!(client.agent, Hello::ours());
    assert_eq!(client.pods(SOON).await.unwrap(), [pod(1)]);
    let asked = client.ask(&Request::Pod { uid: pod(1).uid }, SOON).await.unwrap();
    assert_eq!(asked, Reply::Pod { pod: Box::new(pod(1)) });
    let missing = client.ask(&Request::Pod { uid: pod(2).uid }, SOON).await.unwrap_err();
    assert!(matches!(missing, berth_api::Error::Agent { code: ErrorCode::NotFound, .. }), "{missing}");
    let Reply::Status(view) = client.ask(&Request::Status, SOON).await.unwrap() else { panic!() };
    assert_eq!((view.node.as_str(), view.network.message.as_str()), ("n1", "none"));
    let refused = client.ask(&Request::Images, SOON).await.unwrap_err();
    assert!(matches!(refused, berth_api::Error::Agent { code: ErrorCode::Unavailable, .. }));
    let imported = client.ask(&Request::ImportImage { path: "/a".into() }, SOON).await.unwrap();
    assert_eq!(imported, Reply::Imported { names: vec!["/a".into()] });
    let involved = Involved::Pod { key: pod(1).key, uid: pod(1).uid };
    let event = EventRecord::once(involved, Event::normal("Started", "m"), Wall(1));
    node.cache.event(event.clone());
    let events = client.ask(&Request::Events { pod: None }, SOON).await.unwrap();
    assert_eq!(events, Reply::Events { events: vec![event] });
    node.end().await;
}

#[tokio::test]
async fn a_watch_delivers_changes_at_once_and_in_order() {
    let node = Node::start().await;
    node.cache.publish(pod(1));
    let mut watch = node.client().await;
    watch.send(&Request::Pods { watch: true }).await.unwrap();
    assert_eq!(until_synced(&mut watch).await, ["d/p1"]);
    node.cache.publish(pod(2));
    node.cache.publish(PodView { ready: true, ..pod(1) });
    assert_eq!(next(&mut watch).await, Reply::Pod { pod: Box::new(pod(2)) });
    assert_eq!(next(&mut watch).await, Reply::Pod { pod: Box::new(PodView { ready: true, ..pod(1) }) });
    node.cache.remove(&pod(1).uid);
    assert_eq!(next(&mut watch).await, Reply::Removed { uid: pod(1).uid, key: pod(1).key });
    // Time from publishing to reading in another task, without polling in between.
    let mut took = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        node.cache.publish(pod(3));
        next(&mut watch).await;
        took.push(begun.elapsed());
    }
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("a change is read {median:?} after it was published, {worst:?} at worst");
    assert!(median < Duration::from_millis(5) && worst < Duration::from_millis(500), "{median:?} {worst:?}");
    node.end().await;
}

#[tokio::test]
async fn a_slow_watcher_delays_no_other_and_gets_one_resync() {
    let node = Node::start().await;
    let mut slow = node.client().await;
    slow.send(&Request::Pods { watch: true }).await.unwrap();
    let mut quick = node.client().await;
    quick.send(&Request::Pods { watch: true }).await.unwrap();
    until_synced(&mut quick).await;
    assert_eq!(until_synced(&mut slow).await, Vec::<String>::new());
    let filler = "x".repeat(4000);
    let object = serde_json::json!({ "filler": filler });
    // The pods exceed the queue of a watch, and their bytes the socket's buffer. All but the last are removed
    // again.
    let all = 3 * berth_server::local::watch_cache::QUEUE;
    for n in 0..all {
        node.cache.publish(PodView { object: object.clone(), ..pod(n) });
        let told = next(&mut quick).await;
        assert!(matches!(&told, Reply::Pod { pod: p } if p.uid == pod(n).uid), "{told:?}");
        if n + 1 < all {
            node.cache.remove(&pod(n).uid);
            assert!(matches!(next(&mut quick).await, Reply::Removed { .. }));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut resyncs = 0;
    loop {
        match next(&mut slow).await {
            Reply::Pod { pod } => drop(seen.insert(pod.uid)),
            Reply::Removed { uid, .. } => drop(seen.remove(&uid)),
            Reply::Resync => {
                resyncs += 1;
                seen.clear();
            }
            Reply::Synced => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(resyncs, 1);
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [pod(all - 1).uid]);
    node.end().await;
}

#[tokio::test]
async fn a_command_ends_with_its_client() {
    let node = Node::start().await;
    let spec = |command: &str| ExecSpec {
        uid: pod(1).uid,
        container: "c".parse().unwrap(),
        command: vec![command.into()],
        tty: false,
        stdin: false,
        size: None,
    };
    let mut client = node.client().await;
    let ready = client.ask(&Request::Exec(spec("true")), SOON).await.unwrap();
    assert!(matches!(ready, Reply::ExecReady(p) if p.stdout == Path::new("/out")));
    assert_eq!(client.ask(&Request::ExecGo, SOON).await.unwrap(), Reply::ExecStarted { pid: 7 });
    assert_eq!(next(&mut client).await, Reply::ExecExited { code: 42 });
    // The connection can be used again. The end of input and the resize reach the running command.
    client.ask(&Request::Exec(spec("sleep")), SOON).await.unwrap();
    client.ask(&Request::ExecGo, SOON).await.unwrap();
    client.send(&Request::CloseStdin).await.unwrap();
    client.send(&Request::Resize(Size { width: 1, height: 1 })).await.unwrap();
    assert_eq!(next(&mut client).await, Reply::ExecExited { code: 42 });
    assert_eq!(node.fake.killed.load(Ordering::SeqCst), 0);
    client.ask(&Request::Exec(spec("sleep")), SOON).await.unwrap();
    client.ask(&Request::ExecGo, SOON).await.unwrap();
    drop(client);
    let killed = Arc::clone(&node.fake.killed);
    timeout(SOON, async {
        while killed.load(Ordering::SeqCst) != 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let mut client = node.client().await;
    let stray = client.ask(&Request::ExecGo, SOON).await.unwrap_err();
    assert!(matches!(stray, berth_api::Error::Agent { code: ErrorCode::Invalid, .. }));
    node.end().await;
}

#[tokio::test]
async fn incompatible_clients_get_the_versions_and_newer_ones_are_served() {
    let node = Node::start().await;
    let mut stream = UnixStream::connect(node.socket()).await.unwrap();
    let later = serde_json::json!({"protocol": 9, "oldest": 8, "version": "later"});
    stream.write_all(&frame::encode(&later, 1000).unwrap()).await.unwrap();
    let mut reader = FrameReader::new(&mut stream, REPLY_MAX);
    assert_eq!(reader.message::<Hello>().await.unwrap().unwrap(), Hello::ours());
    assert!(timeout(SOON, reader.bytes()).await.unwrap().unwrap().is_none());

    let mut stream = UnixStream::connect(node.socket()).await.unwrap();
    let later = serde_json::json!({"protocol": 2, "oldest": 1, "colour": "blue"});
    stream.write_all(&frame::encode(&later, 1000).unwrap()).await.unwrap();
    for request in [r#"{"op":"paint","colour":"blue"}"#, r#"{"op":"pods","watch":7}"#, "7", ""] {
        stream.write_all(&frame::of_parts(&[request.as_bytes()], 1000).unwrap()).await.unwrap();
    }
    stream.write_all(&frame::encode(&Request::Status, 1000).unwrap()).await.unwrap();
    let mut reader = FrameReader::new(&mut stream, REPLY_MAX);
    reader.message::<Hello>().await.unwrap().unwrap();
    let mut codes = Vec::new();
    while let Some(reply) = timeout(SOON, reader.message::<Reply>()).await.unwrap().unwrap() {
        match reply {
            Reply::Error { code, .. } => codes.push(code),
            Reply::Status(_) => break,
            other => panic!("{other:?}"),
        }
    }
    let invalid = ErrorCode::Invalid;
    assert_eq!(codes, [ErrorCode::Unsupported, invalid, invalid, invalid]);
    node.end().await;
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_even_while_its_descriptor_is_open() {
    let node = Node::start().await;
    let mode = std::fs::metadata(node.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let path = node.socket();
    let next = bind(&path).unwrap();
    let (met, accepted) = tokio::join!(UnixStream::connect(&path), tokio::time::timeout(SOON, next.accept()));
    met.unwrap();
    accepted.unwrap().unwrap();
    drop(next);
    let Node { dir, stop, task, .. } = node;
    drop(stop);
    task.await.unwrap();
    assert!(path.exists(), "a dead agent leaves its socket");
    let gone = Client::connect(&path).await.unwrap_err();
    assert!(gone.is_unreachable(), "{gone}");
    drop(bind(&path).unwrap());
    drop(dir);
}

/// Sends 100,000 frames, most of them broken: the server answers or closes the connection, and continues to
/// serve. At least 30 % pass the framing and the JSON syntax.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_at_most_their_connection() {
    const FRAMES: usize = 100_000;
    const PER_CONNECTION: usize = 250;
    let node = Node::start().await;
    (0..3).for_each(|n| node.cache.publish(pod(n)));
    let corpus: Vec<String> = [
        r#"{"op":"status"}"#,
        r#"{"op":"pods","watch":false}"#,
        r#"{"op":"pod","uid":"u1"}"#,
        r#"{"op":"events","pod":"u1"}"#,
        r#"{"op":"images"}"#,
        r#"{"op":"import-image","path":"/a/b.tar"}"#,
        r#"{"op":"resize","width":80,"height":24}"#,
        r#"{"op":"close-stdin"}"#,
        r#"{"op":"exec-go"}"#,
        r#"{"op":"pods","watch":true}"#,
        r#"{"op":"exec","uid":"u1","container":"c","command":["true"],"tty":true,"size":{"width":1,"height":2}}"#,
    ]
    .map(str::to_owned)
    .to_vec();
    let mut rng = Rng::new(0x9e37_79b9_7f4a_7c15);
    let (mut sent, mut parsed) = (0, 0);
    while sent < FRAMES {
        let mut bytes = frame::encode(&Hello::ours(), 1000).unwrap();
        if rng.index(40) == 0 {
            let at = rng.index(bytes.len());
            *bytes.get_mut(at).unwrap() ^= 1 << rng.index(8);
        }
        for _ in 0..PER_CONNECTION {
            // The last two requests take over the connection, so they come up less often.
            let kinds = if rng.index(100) == 0 { corpus.len() } else { corpus.len() - 2 };
            let mut text = corpus.get(rng.index(kinds)).unwrap().clone().into_bytes();
            mutate(&mut text, &mut rng);
            sent += 1;
            parsed += usize::from(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
            let mut framed = frame::of_parts(&[&text], REPLY_MAX).unwrap();
            if rng.index(500) == 0 {
                let at = rng.index(4);
                *framed.get_mut(at).unwrap() ^= 1 << rng.index(8);
            }
            bytes.extend(framed);
        }
        let (mut from, mut to) = UnixStream::connect(node.socket()).await.unwrap().into_split();
        let writing = async move {
            // The server may have closed the connection.
            drop(to.write_all(&bytes).await);
            drop(to);
        };
        let reading = async move {
            let mut answers = Vec::new();
            drop(from.read_to_end(&mut answers).await);
        };
        timeout(SOON, async { tokio::join!(writing, reading) }).await.expect("the server hangs");
    }
    println!("{sent} frames, {} % past the syntax", parsed * 100 / sent);
    assert!(parsed * 100 / sent >= 30, "{parsed} of {sent}");
    assert_eq!(node.client().await.pods(SOON).await.unwrap().len(), 3);
    node.end().await;
}

fn mutate(text: &mut Vec<u8>, rng: &mut Rng) {
    match rng.index(8) {
        0 => {
            let at = rng.index(text.len());
            *text.get_mut(at).unwrap() ^= 1 << rng.index(8);
        }
        1 => text.truncate(rng.index(text.len())),
        2 => {
            let at = rng.index(text.len());
            text.insert(at, b"\"{}[]:,0\\\xff"[rng.index(10)]);
        }
        3 => {
            let at = rng.index(text.len());
            text.remove(at);
        }
        // Values are replaced by others, so that the frame passes the syntax check.
        4 | 5 => {
            let whole = String::from_utf8_lossy(text).into_owned();
            let values = ["null", "true", "-1", "1e99", "[]", "{}", "\"\"", "\"../../x\"", "\"\\u0000\""];
            let with = values[rng.index(values.len())];
            if let Some((head, rest)) = whole.rsplit_once(':') {
                let end = rest.find([',', '}', ']']).unwrap_or(rest.len());
                *text = format!("{head}:{with}{}", &rest[end..]).into_bytes();
            }
        }
        6 => {
            let deep = rng.index(300);
            let nested = format!("{{\"op\":\"status\",\"x\":{}{}}}", "[".repeat(deep), "]".repeat(deep));
            *text = nested.into_bytes();
        }
        _ => {}
    }
}
