//! Pulls from a registry on loopback: each fault gives its error or is overcome, and nothing stays leased.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use berth_core::image::{Credential, Hidden, PullProgress};
use berth_harness::{
    oci::{Entry, Image},
    registry::{Auth, Encoding, Fault, Part, Registry},
};
use berth_runtime::{Kind, Pulled, Runtime, RuntimeConfig};
use serde_json::json;
use std::time::Duration;
use support::{Node, until};
use tokio::sync::watch;

/// An image with one file of so many bytes in each of its layers.
fn image(layers: usize, bytes: usize) -> Image {
    let layer = |n: usize| vec![Entry::noise(&format!("f{n}"), n as u64 + 1, bytes)];
    Image { name: "x".into(), layers: (0..layers).map(layer).collect(), config: json!({"Cmd": ["/f0"]}) }
}

async fn pull(
    runtime: &Runtime,
    name: &str,
    credential: Option<&Credential>,
) -> Result<Pulled, (Kind, String)> {
    let progress = watch::channel(PullProgress::default()).0;
    let pulled = tokio::time::timeout(support::PATIENCE, runtime.pull(name, credential, &progress)).await;
    pulled.expect("the pull ends").map_err(|e| (e.kind(), e.cause()))
}

fn leases(node: &Node) -> String {
    node.ctr(&["leases", "ls", "-q"])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_unpacked_and_named_and_nothing_stays_leased() {
    let (node, registry) = (Node::start().await, Registry::start().unwrap());
    let runtime = node.connect().await;
    for (tag, encoding) in [("tar", Encoding::Tar), ("gzip", Encoding::Gzip), ("zstd", Encoding::Zstd)] {
        let pushed = registry.push("team/app", tag, &image(3, 100_000), encoding).unwrap();
        let name = registry.image("team/app", tag);
        let pulled = pull(&runtime, &name, None).await.unwrap();
        assert_eq!(pulled.image.name, name);
        assert_eq!(pulled.image.image_id, format!("{}/team/app@{}", registry.host(), pushed.digest));
        assert!(
            pulled.size > pushed.bytes && pulled.size < pushed.bytes + 2000,
            "{} {pushed:?}",
            pulled.size
        );
        assert!(node.ctr(&["snapshots", "info", &pulled.image.chain_id]).contains("Committed"));
        // The same again fetches nothing.
        registry.forget();
        pull(&runtime, &name, None).await.unwrap();
        assert_eq!(registry.sent(), 0, "{:?}", registry.asked());
    }
    let many = image(100, 200);
    registry.push("many", "1", &many, Encoding::Gzip).unwrap();
    pull(&runtime, &registry.image("many", "1"), None).await.unwrap();
    assert_eq!(leases(&node), "");
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_log_in_is_answered() {
    let (node, registry) = (Node::start().await, Registry::start().unwrap());
    let runtime = node.connect().await;
    let good = Credential::basic("me", "pass-word");
    let token = Credential { identity_token: Hidden::new("iden-tity"), ..Credential::default() };
    for (n, (auth, right)) in [
        (Auth::Basic("me".into(), "pass-word".into()), &good),
        (Auth::Token("me".into(), "pass-word".into()), &good),
        (Auth::Identity("iden-tity".into()), &token),
    ]
    .into_iter()
    .enumerate()
    {
        let (repository, tag) = (format!("app{n}"), "1");
        registry.push(&repository, tag, &image(1, 1000 + n), Encoding::Tar).unwrap();
        registry.set_auth(auth.clone());
        let name = registry.image(&repository, tag);
        let wrong = Credential::basic("me", "wrong-word");
        for refused in [None, Some(&wrong)] {
            let (kind, why) = pull(&runtime, &name, refused).await.unwrap_err();
            assert!(kind == Kind::Refused && !why.contains("wrong-word"), "{auth:?}: {kind:?} {why}");
            eprintln!("{auth:?} {refused:?}: {why}");
        }
        pull(&runtime, &name, Some(right)).await.unwrap_or_else(|e| panic!("{auth:?}: {e:?}"));
    }
    assert_eq!(leases(&node), "", "a pull that fetched nothing keeps no lease");
    let log = std::fs::read_to_string(node.dir.path().join("containerd/log")).unwrap();
    assert!(
        !["pass-word", "iden-tity", "wrong-word"].iter().any(|s| log.contains(s)),
        "containerd logs none"
    );
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_does_wrong_fails_with_its_reason_or_is_overcome() {
    let (node, registry) = (Node::start().await, Registry::start().unwrap());
    let runtime = node.connect().await;
    let push = |name: &str, seed: usize| {
        registry.push(name, "1", &image(2, 200_000 + seed), Encoding::Tar).unwrap();
        registry.image(name, "1")
    };
    let absent = pull(&runtime, &registry.image("absent", "1"), None).await.unwrap_err();
    assert!(absent.0 == Kind::NotFound && absent.1.contains("absent:1: not found"), "{absent:?}");

    registry.push_schema1("old", "1");
    let old = pull(&runtime, &registry.image("old", "1"), None).await.unwrap_err();
    assert!(old.1.contains("schema 1"), "{old:?}");

    registry.push_foreign("foreign", "1", &image(1, 10)).unwrap();
    let foreign = pull(&runtime, &registry.image("foreign", "1"), None).await.unwrap_err();
    assert!(foreign.1.contains("has no manifest for linux/"), "{foreign:?}");

    assert!(runtime.resolve_image(&registry.image("foreign", "1")).await.unwrap().is_none(), "no name stays");

    let wrong = push("wrong", 1);
    registry.set_wrong_digest("wrong", "1").unwrap();
    let wrong = pull(&runtime, &wrong, None).await.unwrap_err();
    eprintln!("{wrong:?}");
    assert!(wrong.1.contains("digest"), "{wrong:?}");
    assert_eq!(leases(&node), "");

    // A server that fails for a while.
    for (n, status) in [429, 500, 503].into_iter().enumerate() {
        let name = push(&format!("s{n}"), 10 + n);
        registry.add_fault(Fault::Status(Part::Manifest, status, 40));
        let failed = pull(&runtime, &name, None).await.unwrap_err();
        assert!(failed.1.contains(&status.to_string()), "{failed:?}");
        registry.heal();
        pull(&runtime, &name, None).await.unwrap();
    }

    // A layer that is not what the manifest says is fetched again by the next pull, not continued.
    let corrupt = push("corrupt", 20);
    registry.add_fault(Fault::Corrupt(Part::Blob(100_000), 10));
    let failed = pull(&runtime, &corrupt, None).await.unwrap_err();
    eprintln!("{failed:?}");
    registry.heal();
    pull(&runtime, &corrupt, None).await.unwrap();
    assert_eq!(leases(&node), "");
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_continued_where_it_was_cut() {
    let (node, registry) = (Node::start().await, Registry::start().unwrap());
    let runtime = node.connect().await;
    let pushed = registry.push("cut", "1", &image(1, 4 << 20), Encoding::Tar).unwrap();
    registry.add_fault(Fault::Cut(Part::Blob(1 << 20), 3 << 20, 50));
    let name = registry.image("cut", "1");
    let mut ended = pull(&runtime, &name, None).await;
    registry.heal();
    if ended.is_err() {
        eprintln!("{ended:?}");
        ended = pull(&runtime, &name, None).await;
    }
    ended.unwrap();
    assert!(registry.sent() < pushed.bytes * 11 / 10, "{} of {}", registry.sent(), pushed.bytes);
    assert_eq!(leases(&node), "");
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_without_progress_is_given_up_and_continued_later() {
    let (node, registry) = (Node::start().await, Registry::start().unwrap());
    let config = RuntimeConfig { pull_patience: Duration::from_secs(3), ..node.config() };
    let runtime = Runtime::connect(config).await.unwrap();
    let pushed = registry.push("stalls", "1", &image(1, 4 << 20), Encoding::Tar).unwrap();
    registry.add_fault(Fault::Stall(Part::Blob(1 << 20), 3 << 20));
    let name = registry.image("stalls", "1");
    let (kind, why) = pull(&runtime, &name, None).await.unwrap_err();
    assert!(kind == Kind::Deadline && why.contains("no progress"), "{kind:?} {why}");
    registry.heal();
    pull(&runtime, &name, None).await.unwrap();
    assert!(registry.sent() < pushed.bytes * 5 / 4, "{} of {}", registry.sent(), pushed.bytes);
    assert_eq!(leases(&node), "");
    runtime.shutdown().await;
}

/// How far a pull is when something dies.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The manifest is asked for.
    Manifest,
    /// The first bytes of layers are there.
    Begun,
    /// Two thirds of the layers are there.
    TwoThirds,
    /// All bytes are sent, and layers are unpacked.
    Unpacking,
}

const PHASES: [Phase; 4] = [Phase::Manifest, Phase::Begun, Phase::TwoThirds, Phase::Unpacking];

/// Starts a pull of an image of 48 MB or 96 MB that comes slowly, and waits until it is in this phase.
///
/// containerd writes a layer to its store in pieces of 1 MiB, so its death loses up to 3 MiB of the three layers:
/// the image is large enough that these are less than a tenth.
async fn under_way(
    node: &Node,
    registry: &Registry,
    phase: Phase,
) -> (u64, tokio::task::JoinHandle<Result<(), String>>, Runtime) {
    // Early, nearly all that was sent is still on its way, in containerd's pieces and in sockets.
    let layer = if let Phase::Begun = phase { 32 << 20 } else { 16 << 20 };
    let pushed = registry.push("big", "1", &image(3, layer), Encoding::Tar).unwrap();
    registry.set_rate(8 << 20);
    if let Phase::Manifest = phase {
        registry.add_fault(Fault::Stall(Part::Manifest, 0));
    }
    let runtime = node.connect().await;
    let (pulling, name) = (runtime.clone(), registry.image("big", "1"));
    let (progress, shown) = watch::channel(PullProgress::default());
    let task =
        tokio::spawn(
            async move { pulling.pull(&name, None, &progress).await.map(drop).map_err(|e| e.cause()) },
        );
    match phase {
        Phase::Manifest => {
            until("the manifest is asked for", || async { !registry.asked().is_empty() }).await
        }
        Phase::Begun => until("it begins", || async { registry.sent() > pushed.bytes / 40 }).await,
        Phase::TwoThirds => {
            until("two thirds are fetched", || async { registry.sent() > pushed.bytes * 2 / 3 }).await;
            until("the progress shows it", || async { shown.borrow().fetched() > pushed.bytes / 2 }).await;
            assert_eq!(shown.borrow().layers.len(), 3);
        }
        Phase::Unpacking => until("all is sent", || async { registry.sent() >= pushed.bytes }).await,
    }
    (pushed.bytes, task, runtime)
}

/// Waits until the connections of the pull that was cut have ended.
///
/// Without the limit of the rate, what the registry sends until then would fill the buffers of sockets that nobody
/// reads any more: up to 6 MB a layer.
async fn nothing_is_sent(registry: &Registry) {
    until("the connections of the cut pull end", || async { registry.sending() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_survives_the_death_of_containerd() {
    for phase in PHASES {
        let (mut node, registry) = (Node::start().await, Registry::start().unwrap());
        let (bytes, task, runtime) = under_way(&node, &registry, phase).await;
        node.kill_containerd();
        nothing_is_sent(&registry).await;
        registry.heal();
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.start_containerd().await;
        task.await.unwrap().unwrap_or_else(|why| panic!("{phase:?}: {why}"));
        let sent = registry.sent();
        eprintln!("containerd killed, {phase:?}: {sent} bytes sent for {bytes}");
        assert!(sent < bytes * 11 / 10, "{phase:?}: {sent} bytes sent for {bytes}");
        assert_eq!(leases(&node), "", "{phase:?}");
        runtime.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_continued_by_the_next_agent() {
    for phase in PHASES {
        let (node, registry) = (Node::start().await, Registry::start().unwrap());
        let (bytes, task, runtime) = under_way(&node, &registry, phase).await;
        // The agent's death cuts its calls, as the end of the task does.
        task.abort();
        runtime.shutdown().await;
        drop(runtime);
        nothing_is_sent(&registry).await;
        registry.heal();
        let next = node.connect().await;
        // What nobody holds would be collected now.
        node.ctr(&["leases", "create", "--id", "other"]);
        node.ctr(&["leases", "delete", "--sync", "other"]);
        let pulled = pull(&next, &registry.image("big", "1"), None).await;
        pulled.unwrap_or_else(|why| panic!("{phase:?}: {why:?}"));
        let sent = registry.sent();
        eprintln!("agent killed, {phase:?}: {sent} bytes sent for {bytes}");
        assert!(sent < bytes * 11 / 10, "{phase:?}: {sent} bytes sent for {bytes}");
        assert_eq!(leases(&node), "", "{phase:?}");
        next.shutdown().await;
    }
}

/// A registry over TLS, and its certificate as PEM.
fn with_tls() -> (Registry, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let secret = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], secret)
        .unwrap();
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, certificate.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    (Registry::start_with(Some(config)).unwrap(), pem)
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_and_private_certificates_are_those_of_hosts_toml() {
    let (node, registry) = (Node::start().await, Registry::start().unwrap());
    let runtime = node.connect().await;
    let hosts = |host: &str, text: &str| {
        let dir = node.roots.registry_hosts.join(host);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    };
    // An image of a registry that does not exist comes from its mirror, under its own name.
    registry.push("team/app", "1", &image(1, 1000), Encoding::Gzip).unwrap();
    let mirror = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", registry.host());
    hosts("registry.invalid", &mirror);
    let pulled = pull(&runtime, "registry.invalid/team/app:1", None).await.unwrap();
    assert_eq!(pulled.image.name, "registry.invalid/team/app:1");
    // A certificate that nobody knows is refused, and taken once the file names it.
    let (secure, pem) = with_tls();
    secure.push("app", "1", &image(1, 2000), Encoding::Tar).unwrap();
    let name = "secure.invalid/app:1".to_owned();
    let ca = node.dir.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let server = format!("[host.\"https://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", secure.host());
    hosts("secure.invalid", &server);
    let unknown = pull(&runtime, &name, None).await.unwrap_err();
    assert!(unknown.1.contains("certificate"), "{unknown:?}");
    hosts("secure.invalid", &format!("{server}ca = \"{}\"\n", ca.display()));
    secure.set_auth(Auth::Token("me".into(), "pass-word".into()));
    pull(&runtime, &name, Some(&Credential::basic("me", "pass-word"))).await.unwrap();
    runtime.shutdown().await;
}
