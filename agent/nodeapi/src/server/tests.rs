//! The server over real sockets: certificates, answers, limits, the end.

use super::*;
use crate::{
    LogStart, NodeBackend, PodState,
    streams::Streams,
    testing::{FakeNode, FakePorts, FakeReviewer, FakeStatistics, pem},
    tls::{self, ClientCa, ServingFiles},
};
use berth_core::{
    ids::PodKey,
    model::{Container, Pod, QosClass},
    status::{ContainerState, ContainerStatus, Phase, PodStatus, Truth},
    sync::lock,
    time::Wall,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{fs, path::Path};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = pem("CERTIFICATE", parameters.self_signed(&key).unwrap().der());
        Authority { issuer: Issuer::new(parameters, key), pem }
    }

    /// Certificate and key of a leaf, in PEM.
    fn leaf(&self, name: &str, usage: ExtendedKeyUsagePurpose, valid: bool) -> (String, String) {
        let mut parameters = CertificateParams::new(vec!["localhost".into()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![usage];
        if !valid {
            parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2020, 1, 2);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", &key.serialize_der()))
    }

    fn client(&self, name: &str) -> Option<(String, String)> {
        Some(self.leaf(name, ExtendedKeyUsagePurpose::ClientAuth, true))
    }
}

struct World {
    dir: TempDir,
    ca: Authority,
    node: Arc<FakeNode>,
    reviewer: Arc<FakeReviewer>,
    address: SocketAddr,
    stop: watch::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new(limits: Limits) -> World {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let at = |name: &str| dir.path().join(name);
        let (certificate, key) = ca.leaf("server", ExtendedKeyUsagePurpose::ServerAuth, true);
        for (name, text) in [("ca.crt", &ca.pem), ("server.crt", &certificate), ("server.key", &key)] {
            fs::write(at(name), text).unwrap();
        }
        let serving = ServingFiles::open(at("server.crt"), at("server.key")).unwrap();
        let (node, reviewer) = (Arc::new(FakeNode::default()), Arc::new(FakeReviewer::default()));
        let api = NodeApi {
            tls: Arc::new(tls::config(Arc::new(serving)).unwrap()),
            authenticator: Authenticator::new(
                Some(ClientCa::open(at("ca.crt")).unwrap()),
                Some(reviewer.clone()),
                false,
            ),
            authorizer: Authorizer::new(reviewer.clone()),
            routes: Routes {
                streams: Streams::new(Arc::new(FakePorts::default())),
                node: node.clone() as Arc<dyn NodeBackend>,
                statistics: Arc::new(FakeStatistics),
                node_logs: at("log"),
            },
            limits,
        };
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(());
        let server = tokio::spawn(api.run(listener, stopped));
        World { dir, ca, node, reviewer, address, stop, server }
    }

    async fn connect(&self, client: Option<(String, String)>) -> TlsStream<TcpStream> {
        self.connect_from("127.0.0.1", client).await
    }

    /// A connection from this address.
    async fn connect_from(&self, from: &str, client: Option<(String, String)>) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        let stream = timeout(PATIENCE, socket.connect(self.address)).await.unwrap().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap().unwrap()
    }

    /// Status and body of the answer to a request, on a connection of its own.
    async fn ask(&self, client: Option<(String, String)>, request: &str) -> (u16, String) {
        let mut stream = self.connect(client).await;
        let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
        let text = format!("{line} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        answer_of(&read_all(&mut stream).await)
    }

    /// A connection of the user `alice`, who may do everything with the node.
    async fn alice(&self) -> TlsStream<TcpStream> {
        self.allow_alice();
        self.connect(self.ca.client("alice")).await
    }

    fn allow_alice(&self) {
        for access in ["get proxy", "create proxy", "get metrics", "get stats", "get log"] {
            self.reviewer.allow(&format!("alice {access}"));
        }
    }
}

async fn read_all(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    // A server may end without TLS's own goodbye.
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until the text has come.
async fn read_until(stream: &mut TlsStream<TcpStream>, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let mut bytes = [0; 1024];
        let read = timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0, "the connection ended after {text:?}");
        text += &String::from_utf8_lossy(&bytes[..read]);
    }
    text
}

fn answer_of(text: &str) -> (u16, String) {
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (code, body)
}

fn unauthorized() -> (u16, String) {
    (401, "Unauthorized".to_owned())
}

#[tokio::test]
async fn a_bad_certificate_is_401_and_never_a_broken_handshake() {
    let world = World::new(Limits::default()).await;
    world.allow_alice();
    let pods = (200, "{\"kind\":\"PodList\"}".to_owned());
    assert_eq!(world.ask(world.ca.client("alice"), "GET /pods").await, pods);
    assert_eq!(world.ask(None, "GET /pods").await, unauthorized());
    assert_eq!(world.ask(Authority::new().client("alice"), "GET /pods").await, unauthorized());
    let expired = world.ca.leaf("alice", ExtendedKeyUsagePurpose::ClientAuth, false);
    assert_eq!(world.ask(Some(expired), "GET /pods").await, unauthorized());
    let server = world.ca.leaf("alice", ExtendedKeyUsagePurpose::ServerAuth, true);
    assert_eq!(world.ask(Some(server), "GET /pods").await, unauthorized());
    assert_eq!(world.ask(None, "GET /pods\nAuthorization: Bearer alice\r\n").await, pods);
    assert_eq!(world.ask(None, "GET /pods\nAuthorization: Bearer unknown\r\n").await, unauthorized());
    // A CA that is replaced counts from the next request on.
    let (before, other) = (world.ca.client("alice"), Authority::new());
    fs::write(world.dir.path().join("ca.crt"), &other.pem).unwrap();
    assert_eq!(world.ask(before, "GET /pods").await, unauthorized());
    assert_eq!(world.ask(other.client("alice"), "GET /pods").await, pods);
}

#[tokio::test]
async fn answers_have_the_kubelets_codes_and_texts() {
    let world = World::new(Limits::default()).await;
    let alice = || world.ca.client("alice");
    let forbidden = "Forbidden (user=alice, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    assert_eq!(world.ask(alice(), "GET /pods").await, (403, forbidden.to_owned()));
    world.reviewer.fail(1, false);
    let unknown = "Authorization error (user=alice, verb=get, resource=nodes, subresource=metrics)";
    assert_eq!(world.ask(alice(), "GET /metrics").await, (500, unknown.to_owned()));
    world.allow_alice();
    let bob = || world.ca.client("bob");
    for access in ["get proxy", "get stats", "get metrics", "get log", "create proxy", "delete proxy"] {
        world.reviewer.allow(&format!("bob {access}"));
    }
    for (request, code, body) in [
        ("GET /healthz", 200, "ok"),
        ("GET /healthz?verbose", 200, "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n"),
        ("GET /healthz/syncloop", 200, "ok"),
        ("GET /configz", 200, "{\"kubeletconfig\":{}}"),
        ("GET /runningpods/", 500, "containerd is away\n"),
        ("GET /stats/summary?only_cpu_and_memory=true", 200, "cpu and memory"),
        ("GET /metrics/cadvisor", 200, "cadvisor"),
        ("GET /metrics/probes", 200, "probes"),
        ("GET /statusz", 403, "Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[statusz])\n"),
        ("GET /pods/x", 404, "404: Page Not Found"),
        ("DELETE /pods", 405, "405: Method Not Allowed"),
        ("GET /debug/pprof/heap", 405, "profiling endpoint is disabled.\n"),
        ("GET /nothing", 404, "404 page not found\n"),
        ("GET /pods/../healthz", 400, "the path has a segment that leads elsewhere\n"),
        ("GET /logs/x", 404, "404 page not found\n"),
        ("GET /containerLogs/ns/p/c", 404, "pod \"p\" does not exist"),
        ("GET /containerLogs/ns/p/c?tailLines=x", 400, "{\"message\": \"Unable to decode query.\"}"),
        ("GET /containerLogs/ns/p/c?limitBytes=0", 422, "{\"message\": \"Invalid request.\"}"),
    ] {
        fs::create_dir_all(world.dir.path().join("log")).unwrap();
        assert_eq!(world.ask(bob(), request).await, (code, body.to_owned()), "{request}");
    }
    for access in ["get configz", "get statusz"] {
        world.reviewer.allow(&format!("carol {access}"));
    }
    let warning = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                   guarantees and is for debugging purposes only.\n";
    for (path, text) in [("flagz", "port 10250\n"), ("statusz", "Up  0 hr 00 min 01 sec\n")] {
        let page = (200, format!("\nberth {path}\n{warning}{text}"));
        assert_eq!(world.ask(world.ca.client("carol"), &format!("GET /{path}")).await, page);
    }
    let slis = world.ask(bob(), "GET /metrics/slis").await.1;
    assert!(slis.ends_with("kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1\n"), "{slis}");
    // Nobody needs to be known for a path that is not there.
    assert_eq!(world.ask(None, "GET /nothing").await.0, 404);
    assert_eq!(world.ask(None, "GET /exec/x").await, unauthorized());
}

#[tokio::test]
async fn commands_need_create_whatever_the_method() {
    let world = World::new(Limits::default()).await;
    world.reviewer.allow("alice get proxy");
    let denied = "Forbidden (user=alice, verb=create, resource=nodes, subresource(s)=[proxy])\n";
    for path in ["/exec/ns/p/c", "/attach/ns/p/c", "/run/ns/p/c", "/portForward/ns/p"] {
        let answer = world.ask(world.ca.client("alice"), &format!("GET {path}")).await;
        assert_eq!(answer, (403, denied.to_owned()), "{path}");
    }
    assert_eq!(world.ask(world.ca.client("alice"), "GET /configz").await.0, 200);
}

fn pod_with(state: ContainerState) -> PodState {
    let key = PodKey { namespace: "ns".parse().unwrap(), name: "p".parse().unwrap() };
    let mut pod = Pod::new("u".parse().unwrap(), key, "n".parse().unwrap());
    pod.containers.push(Container::new("c".parse().unwrap(), "i"));
    let mut status = PodStatus::new(Phase::Running, QosClass::BestEffort);
    status.containers.push(ContainerStatus {
        name: "c".parse().unwrap(),
        image: "i".into(),
        image_id: String::new(),
        id: Some("a".repeat(64).parse().unwrap()),
        ready: Truth::True,
        started: Some(true),
        restart_count: 2,
        state,
        last_state: None,
        user: None,
        resources: None,
    });
    PodState { pod: Arc::new(pod), status: Arc::new(status) }
}

#[tokio::test]
async fn output_is_sent_as_it_comes_and_ends_with_the_run() {
    let world = World::new(Limits::default()).await;
    *lock(&world.node.pod) = Some(pod_with(ContainerState::Running { started_at: Wall(0) }));
    world.node.write("before");
    let mut stream = world.alice().await;
    stream
        .write_all(b"GET /containerLogs/ns/p/c?follow=true&tailLines=7 HTTP/1.1\r\nHost: n\r\n\r\n")
        .await
        .unwrap();
    let head = read_until(&mut stream, "before\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("transfer-encoding: chunked"), "{head}");
    for line in ["one", "two"] {
        world.node.write(line);
        read_until(&mut stream, &format!("{line}\n")).await;
    }
    // The last line is written while the run ends.
    world.node.write("last");
    world.node.closed.send_replace(true);
    read_until(&mut stream, "0\r\n\r\n").await;
    let opened = lock(&world.node.opened).clone();
    assert_eq!((opened[0].0.attempt_by_status, opened[0].1), (2, LogStart::Tail(7)));
    // Without following, the answer ends where the log does, and the connection serves the next request.
    stream.write_all(b"GET /containerLogs/ns/p/c HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
    *lock(&world.node.pod) =
        Some(pod_with(ContainerState::Waiting { reason: "ContainerCreating".into(), message: None }));
    let text = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
    assert_eq!(
        world.ask(world.ca.client("alice"), "GET /containerLogs/ns/p/c").await,
        (400, text.to_owned())
    );
    let text = "container \"x\" not found in pod \"p\"";
    assert_eq!(
        world.ask(world.ca.client("alice"), "GET /containerLogs/ns/p/x").await,
        (404, text.to_owned())
    );
}

#[tokio::test]
async fn a_client_that_goes_ends_its_following() {
    let world = World::new(Limits::default()).await;
    *lock(&world.node.pod) = Some(pod_with(ContainerState::Running { started_at: Wall(0) }));
    let mut stream = world.alice().await;
    stream.write_all(b"GET /containerLogs/ns/p/c?follow=true HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    let follows = async {
        while world.node.closed.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, follows).await.unwrap();
    drop(stream);
    // The task's end takes its receiver away.
    timeout(PATIENCE, world.node.closed.closed()).await.unwrap();
}

#[tokio::test]
async fn slow_and_idle_clients_lose_their_connection() {
    let short = Duration::from_millis(300);
    let world =
        World::new(Limits { first_request: short, idle: short, handshake: short, ..Limits::default() }).await;
    // Nothing but TCP, half a handshake, a head that never ends, and a request followed by silence.
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(timeout(PATIENCE, tcp.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    let mut slow = world.connect(None).await;
    slow.write_all(b"GET /pods HTTP/1.1\r\nHost: n\r\n").await.unwrap();
    assert_eq!(read_all(&mut slow).await, "");
    let mut idle = world.alice().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    assert!(read_all(&mut idle).await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn long_heads_are_refused() {
    let world = World::new(Limits { headers: 8 << 10, ..Limits::default() }).await;
    let long = format!("GET /healthz\nX: {}\r\n", "x".repeat(9 << 10));
    assert_eq!(world.ask(world.ca.client("alice"), &long).await.0, 431);
    let long = format!("GET /{}", "x".repeat(9 << 10));
    assert!([414, 431].contains(&world.ask(world.ca.client("alice"), &long).await.0));
}

#[tokio::test]
async fn requests_with_two_readings_end_their_connection() {
    let world = World::new(Limits::default()).await;
    world.allow_alice();
    let healthz = |headers: &str| format!("POST /healthz HTTP/1.1\r\n{headers}\r\n");
    for (head, code) in [
        (healthz("Host: n\r\nTransfer-Encoding: identity, chunked\r\n"), 501),
        (healthz("Host: n\r\nHost: m\r\n"), 400),
        (healthz(""), 400),
        (healthz("Host: n\r\nContent-Length: 3\r\nContent-Length: 30\r\n"), 400),
        (healthz("Host: n\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 200),
    ] {
        let mut stream = world.alice().await;
        let next = "GET /configz HTTP/1.1\r\nHost: n\r\n\r\n";
        stream.write_all((head.clone() + next).as_bytes()).await.unwrap();
        let text = read_all(&mut stream).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {code} ")), "{head}: {text}");
        assert!(!text.contains("kubeletconfig"), "what follows was served: {head}: {text}");
    }
}

#[tokio::test]
async fn strangers_do_not_keep_the_known_out() {
    let world = World::new(Limits { newcomers: 4, ..Limits::default() }).await;
    let mut known = world.alice().await;
    known.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut known, "ok").await;
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(TcpStream::connect(world.address).await.unwrap());
    }
    known.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut known, "ok").await;
    // Whoever comes from elsewhere waits for none of them.
    let began = std::time::Instant::now();
    let mut other = world.connect_from("127.0.0.2", world.ca.client("alice")).await;
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut other, "ok").await;
    assert!(began.elapsed() < Limits::default().handshake, "{:?}", began.elapsed());
    let mut refused = strangers.pop().unwrap();
    assert_eq!(timeout(Duration::from_secs(5), refused.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn who_may_nothing_stays_a_newcomer() {
    let world = World::new(Limits { newcomers: 4, ..Limits::default() }).await;
    world.allow_alice();
    let mut forbidden = Vec::new();
    for _ in 0..2 {
        let mut bob = world.connect(world.ca.client("bob")).await;
        bob.write_all(b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
        read_until(&mut bob, "403").await;
        forbidden.push(bob);
    }
    let mut refused = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(5), refused.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    // A request that is allowed gives the place back.
    let request = b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n";
    world.reviewer.allow("bob get proxy");
    forbidden[0].write_all(request).await.unwrap();
    read_until(&mut forbidden[0], "ok").await;
    let mut alice = world.alice().await;
    alice.write_all(request).await.unwrap();
    read_until(&mut alice, "ok").await;
}

#[tokio::test]
async fn tcp_asks_silent_clients_for_a_sign_of_life() {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    set_options(&stream);
    assert!(sockopt::socket_keepalive(&stream).unwrap() && sockopt::tcp_nodelay(&stream).unwrap());
    assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), SILENCE);
    assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), SILENCE);
    assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), QUESTIONS);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_connections() {
    let drain = Duration::from_millis(300);
    let world = World::new(Limits { drain, ..Limits::default() }).await;
    *lock(&world.node.pod) = Some(pod_with(ContainerState::Running { started_at: Wall(0) }));
    let mut following = world.alice().await;
    following.write_all(b"GET /containerLogs/ns/p/c?follow=true HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut following, "\r\n\r\n").await;
    let mut idle = world.alice().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    read_until(&mut idle, "ok").await;
    world.stop.send(()).unwrap();
    timeout(PATIENCE, world.server).await.unwrap().unwrap();
    assert_eq!(read_all(&mut idle).await, "");
    read_all(&mut following).await;
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[test]
fn a_port_that_is_taken_is_one_line() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _guard = runtime.enter();
    let taken = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = taken.local_addr().unwrap();
    let error = listen(address).unwrap_err();
    let text = berth_core::error::Chain(&error).to_string();
    assert_eq!(text, format!("cannot listen on {address}: Address already in use (os error 98)"));
}

#[test]
fn the_files_are_needed() {
    let error = ClientCa::open(Path::new("/nowhere/ca.crt").into()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nowhere/ca.crt");
}
