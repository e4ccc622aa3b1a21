//! HTTP, TCP and gRPC probes against servers on loopback that answer correctly, wrongly, late,
//! endlessly or not at all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use berth_core::probe::ProbeResult;
use berth_probe::{Endpoint, Host, HttpAction, Prober, ProberConfig, ResolvedAction, http_hook};
use std::{
    future::Future,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(200);

fn prober() -> Prober {
    Prober::new(ProberConfig::new("/nonexistent", vec![])).unwrap()
}

fn endpoint(at: SocketAddr) -> Endpoint {
    Endpoint { host: Host::Address(at.ip()), port: at.port(), node_local: true }
}

fn http(at: SocketAddr) -> HttpAction {
    HttpAction { endpoint: endpoint(at), https: false, path: "/".into(), headers: vec![], host_header: None }
}

async fn ask(action: HttpAction, timeout: Duration) -> ProbeResult {
    prober().ask(&ResolvedAction::Http(action), timeout).await
}

/// Serves each connection on its own task.
async fn serve<F, R>(handle: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    at
}

/// The head of the request, as text.
async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(b) => text.push(b),
            Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// A server that answers each request with the same bytes and then waits for the other end to
/// close.
async fn fixed(answer: &'static str) -> SocketAddr {
    serve(move |mut stream| async move {
        head(&mut stream).await;
        drop(stream.write_all(answer.as_bytes()).await);
        drop(stream.read(&mut [0; 16]).await);
    })
    .await
}

fn failed_with(answer: ProbeResult, part: &str) {
    match answer {
        ProbeResult::Failure(text) if text.contains(part) => {}
        other => panic!("{other:?} instead of a failure with {part:?}"),
    }
}

#[tokio::test]
async fn http_statuses_decide_the_probe() {
    for (line, good) in [
        ("HTTP/1.1 200 OK", true),
        ("HTTP/1.1 204 No Content", true),
        ("HTTP/1.0 200 OK", true),
        ("HTTP/1.1 400 Bad", false),
        ("HTTP/1.1 503 Unavailable", false),
    ] {
        let at = fixed(Box::leak(format!("{line}\r\nContent-Length: 0\r\n\r\n").into_boxed_str())).await;
        let answer = ask(http(at), LONG).await;
        assert_eq!(answer == ProbeResult::Success, good, "{line}: {answer:?}");
    }
}

fn warning(body: &str) -> ProbeResult {
    ProbeResult::Warning(format!("Probe terminated redirects, Response body: {body}"))
}

#[tokio::test]
async fn an_answer_that_stays_a_redirect_is_a_warning_and_good() {
    for line in ["302 Found", "304 Not Modified", "399 Odd"] {
        let answer = format!("HTTP/1.1 {line}\r\nConnection: close\r\n\r\n").into_boxed_str();
        let at = serve({
            let answer: &'static str = Box::leak(answer);
            move |mut stream| async move {
                head(&mut stream).await;
                drop(stream.write_all(answer.as_bytes()).await);
            }
        })
        .await;
        assert_eq!(ask(http(at), LONG).await, warning(""), "{line}");
    }
    let at = fixed("HTTP/1.1 300 Choose\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(ask(http(at), LONG).await, warning("hello"));
}

#[tokio::test]
async fn large_heads_are_read() {
    let many = (0..500).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let long = format!("X-Long: {}\r\n", "y".repeat(70_000));
    for fields in [many, long] {
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n").into_boxed_str();
        assert_eq!(ask(http(fixed(Box::leak(text)).await), LONG).await, ProbeResult::Success);
    }
}

#[tokio::test]
async fn the_request_is_the_kubelets() {
    let seen = Arc::new(Mutex::new(String::new()));
    let at = serve({
        let seen = Arc::clone(&seen);
        move |mut stream| {
            let seen = Arc::clone(&seen);
            async move {
                let text = head(&mut stream).await;
                *seen.lock().unwrap() = text;
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody to the end").await);
            }
        }
    })
    .await;
    let mut action = http(at);
    action.path = "/health?deep=1".into();
    action.headers = vec![("X-Probe".into(), "yes".into())];
    assert_eq!(ask(action, LONG).await, ProbeResult::Success);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{seen}");
    let host = format!("Host: {at}\r\n");
    for line in [
        "X-Probe: yes\r\n",
        "User-Agent: kube-probe/1.36\r\n",
        "Accept: */*\r\n",
        "Connection: close\r\n",
        &host,
    ] {
        assert!(seen.contains(line), "{line:?} in {seen}");
    }
    assert_eq!(seen.lines().count(), 7, "nothing else: {seen}");
}

#[tokio::test]
async fn late_answers_fail_at_the_deadline() {
    let silent = serve(|mut stream| async move {
        head(&mut stream).await;
        std::future::pending::<()>().await;
    })
    .await;
    let dripping = serve(|mut stream| async move {
        head(&mut stream).await;
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await);
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    for at in [silent, dripping] {
        let started = Instant::now();
        failed_with(ask(http(at), SHORT).await, "no answer within 200ms");
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test]
async fn endless_bodies_and_heads_are_cut() {
    let sent = Arc::new(AtomicUsize::new(0));
    let body = serve({
        let sent = Arc::clone(&sent);
        move |mut stream| {
            let sent = Arc::clone(&sent);
            async move {
                head(&mut stream).await;
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await);
                while let Ok(n) = stream.write(&[b'x'; 4096]).await {
                    sent.fetch_add(n, Ordering::Relaxed);
                }
            }
        }
    })
    .await;
    assert_eq!(ask(http(body), LONG).await, ProbeResult::Success);
    let head_only = serve(|mut stream| async move {
        head(&mut stream).await;
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await);
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    failed_with(ask(http(head_only), LONG).await, "HTTP exchange");
}

#[tokio::test]
async fn servers_without_http_fail_the_probe() {
    failed_with(ask(http(fixed("SSH-2.0-OpenSSH_9\r\n\r\n").await), LONG).await, "HTTP exchange");
    let closing = serve(|stream| async move { drop(stream) }).await;
    failed_with(ask(http(closing), LONG).await, "");
    let half = serve(|mut stream| async move {
        head(&mut stream).await;
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").await);
    })
    .await;
    failed_with(ask(http(half), LONG).await, "HTTP exchange");
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    let hits = Arc::new(AtomicUsize::new(0));
    let at = serve({
        let hits = Arc::clone(&hits);
        move |mut stream| {
            let hits = Arc::clone(&hits);
            async move {
                let request = head(&mut stream).await;
                hits.fetch_add(1, Ordering::Relaxed);
                let path = request.split(' ').nth(1).unwrap_or_default();
                let answer = match path {
                    "/once" => "302 Found\r\nLocation: /bad",
                    "/away" => "302 Found\r\nLocation: http://169.254.169.254/latest/meta-data",
                    "/loop" => "307 Temporary\r\nLocation: /loop",
                    _ => "500 Bad",
                };
                drop(
                    stream
                        .write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                        .await,
                );
            }
        }
    })
    .await;
    let to = |path: &str| HttpAction { path: path.into(), ..http(at) };
    failed_with(ask(to("/once"), LONG).await, "statuscode: 500");
    assert_eq!(hits.swap(0, Ordering::Relaxed), 2);
    assert_eq!(ask(to("/away"), LONG).await, warning(""), "not followed, and well");
    assert_eq!(hits.swap(0, Ordering::Relaxed), 1);
    failed_with(ask(to("/loop"), LONG).await, "10 redirects");
    assert_eq!(hits.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn refused_fails_and_node_addresses_are_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let guarded = Endpoint { node_local: false, ..endpoint(at) };
    failed_with(prober().ask(&ResolvedAction::Tcp(guarded.clone()), LONG).await, "the node's own");
    let by_name = Endpoint { host: Host::Name("localhost".into()), ..guarded };
    failed_with(prober().ask(&ResolvedAction::Tcp(by_name.clone()), LONG).await, "the node's own");
    assert!(
        tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err(),
        "no connection came"
    );
    let by_name = Endpoint { node_local: true, ..by_name };
    assert_eq!(prober().ask(&ResolvedAction::Tcp(by_name), LONG).await, ProbeResult::Success);
    drop(listener);
    failed_with(prober().ask(&ResolvedAction::Tcp(endpoint(at)), LONG).await, "refused");
    failed_with(ask(http(at), LONG).await, "refused");
}

#[tokio::test]
async fn tcp_ends_in_order_and_leaves_no_time_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    for _ in 0..20 {
        assert_eq!(prober().ask(&ResolvedAction::Tcp(endpoint(at)), LONG).await, ProbeResult::Success);
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "an orderly end of stream");
    }
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", at.port());
    // State 06 is TIME_WAIT, 04 and 05 are FIN_WAIT1 and FIN_WAIT2.
    let left = table.lines().filter(|l| {
        let mut fields = l.split_whitespace().skip(1);
        let ours = fields.next().is_some_and(|a| a.ends_with(&port))
            | fields.next().is_some_and(|a| a.ends_with(&port));
        ours && matches!(fields.next(), Some("04" | "05" | "06"))
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_full_backlog_is_a_timeout() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let at = listener.local_addr().unwrap();
    let mut held = vec![];
    while let Ok(Ok(stream)) = tokio::time::timeout(SHORT, TcpStream::connect(at)).await {
        held.push(stream);
    }
    failed_with(prober().ask(&ResolvedAction::Tcp(endpoint(at)), SHORT).await, "no answer within");
}

#[tokio::test]
async fn probes_reach_ipv6_addresses() {
    let listener = TcpListener::bind((IpAddr::V6(Ipv6Addr::LOCALHOST), 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    assert_eq!(prober().ask(&ResolvedAction::Tcp(endpoint(at)), LONG).await, ProbeResult::Success);
}

#[tokio::test]
async fn hooks_take_any_status_and_fall_back_to_http() {
    let at = fixed("HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n").await;
    let reply = http_hook(&prober(), &http(at), LONG).await.unwrap();
    assert_eq!((reply.status, reply.fell_back_to_http), (500, false));
    let chatty = serve(|mut stream| async move {
        // Answers any input, as a plain HTTP server does to a TLS greeting.
        let mut first = [0; 1];
        drop(stream.read_exact(&mut first).await);
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await);
        drop(stream.read(&mut [0; 4096]).await);
    })
    .await;
    let reply = http_hook(&prober(), &HttpAction { https: true, ..http(chatty) }, LONG).await.unwrap();
    assert!(reply.fell_back_to_http);
    let plain = "http: server gave HTTP response to HTTPS client";
    failed_with(ask(HttpAction { https: true, ..http(chatty) }, LONG).await, plain);
    assert!(http_hook(&prober(), &http("127.0.0.1:1".parse().unwrap()), LONG).await.is_err());
}

/// An expired certificate for another name.
#[tokio::test]
async fn https_probes_accept_any_certificate() {
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![rustls::pki_types::CertificateDer::from_slice(include_bytes!("data/expired-cert.der"))],
                rustls::pki_types::PrivateKeyDer::try_from(&include_bytes!("data/expired-key.der")[..])
                    .unwrap(),
            )
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let at = serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            drop(stream.read(&mut [0; 4096]).await);
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await);
            drop(stream.shutdown().await);
        }
    })
    .await;
    assert_eq!(ask(HttpAction { https: true, ..http(at) }, LONG).await, ProbeResult::Success);
}

/// Budget: 600 HTTP probes a minute in well under 0.2 s of CPU. The server runs on its own thread,
/// which is not counted.
#[test]
fn http_probes_are_cheap() {
    const ROUNDS: u32 = 600;
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        rt.block_on(async {
            send.send(fixed("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let action = ResolvedAction::Http(http(receive.recv().unwrap()));
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let prober = prober();
    let cpu = || {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(t).unwrap()
    };
    let spent = rt.block_on(async {
        assert_eq!(prober.ask(&action, LONG).await, ProbeResult::Success);
        let before = cpu();
        for _ in 0..ROUNDS {
            assert_eq!(prober.ask(&action, LONG).await, ProbeResult::Success);
        }
        cpu() - before
    });
    println!("{ROUNDS} HTTP probes: {spent:?} of CPU, {:?} each", spent / ROUNDS);
    // An unoptimised build on a busy machine; the bench measures the real figure.
    assert!(spent < Duration::from_secs(1), "{spent:?}");
}

mod grpc {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Response};

    /// Answers each call with this message and trailers.
    async fn server(message: &'static [u8], status: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::new(Mutex::new(vec![]));
        let at = serve({
            let seen = Arc::clone(&seen);
            move |stream| {
                let seen = Arc::clone(&seen);
                async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        seen.lock().unwrap().push(request.uri().path().to_owned());
                        let head =
                            Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                        let mut body = respond.send_response(head, false).unwrap();
                        body.send_data(Bytes::from_static(message), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static(status));
                        body.send_trailers(trailers).unwrap();
                    }
                }
            }
        })
        .await;
        (at, seen)
    }

    async fn ask(at: SocketAddr, timeout: Duration) -> ProbeResult {
        let action = ResolvedAction::Grpc { endpoint: endpoint(at), service: "web".into() };
        prober().ask(&action, timeout).await
    }

    #[tokio::test]
    async fn grpc_health_answers_decide_the_probe() {
        let (at, seen) = server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
        assert_eq!(ask(at, LONG).await, ProbeResult::Success);
        assert_eq!(*seen.lock().unwrap(), ["/grpc.health.v1.Health/Check"]);
        failed_with(ask(server(&[0, 0, 0, 0, 2, 8, 2], "0").await.0, LONG).await, "NOT_SERVING");
        failed_with(ask(server(&[], "12").await.0, LONG).await, "does not implement");
        failed_with(ask(server(&[], "5").await.0, LONG).await, "status 5");
        failed_with(ask(server(&[0; 5000], "0").await.0, LONG).await, "larger");
    }

    #[tokio::test]
    async fn grpc_probes_of_other_servers_fail() {
        failed_with(ask(fixed("HTTP/1.1 400 Bad\r\n\r\n").await, LONG).await, "");
        failed_with(ask(serve(|s| async move { drop(s) }).await, LONG).await, "");
        let silent = serve(|s| async move {
            let _held = s;
            std::future::pending::<()>().await;
        })
        .await;
        failed_with(ask(silent, SHORT).await, "no answer within");
        failed_with(ask("127.0.0.1:1".parse().unwrap(), LONG).await, "refused");
    }
}
