//! Certificates, tokens and exec plugins that change, expire or are refused, and servers that cannot be
//! trusted or reached.

use super::{SECOND, following, lists};
use crate::support::{Cluster, certificates::Authority, consumer::Consumer, proxy::Mode, replace, until};
use berth_kube::{pool::Pool, request::Request};
use std::fs;

#[tokio::test(start_paused = true)]
async fn a_replaced_certificate_is_used_on_new_connections_and_nothing_is_listed_anew() {
    let cluster = Cluster::new().await;
    let (pool, consumer) = following(&cluster).await;
    cluster.server.requests();
    // Between the two renames certificate and key do not belong together.
    let (certificate, key) = cluster.authority.client("system:node:b", 4000);
    replace(&cluster.dir.path().join("client.pem"), &certificate);
    pool.look().await;
    let view = pool.view();
    assert_eq!(view.common_name.as_deref(), Some("system:node:a"), "the old pair stays");
    assert!(view.problem.unwrap().contains("the key does not belong to the client certificate"));
    cluster.server.put("w1", 31);
    until("news as before", || consumer.is_equal(&cluster.server)).await;
    replace(&cluster.dir.path().join("client.key"), &key);
    cluster.server.know(&["system:node:b"], &[]);
    let took =
        until("the new identity", || pool.view().common_name.as_deref() == Some("system:node:b")).await;
    assert!(took <= 11 * SECOND, "{took:?}");
    cluster.server.put("w1", 32);
    until("news as the new one", || consumer.is_equal(&cluster.server) && consumer.is_ok()).await;
    let clients = cluster.server.connections(|c| c.client.clone().unwrap());
    assert_eq!(clients, ["system:node:b"], "no connection of the old certificate is left");
    assert_eq!((lists(&cluster.server.requests()), consumer.lists(), pool.view().problem), (0, 1, None));
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_told_and_its_successor_is_taken_at_once() {
    let cluster = Cluster::new().await;
    let (certificate, key) = cluster.authority.client("system:node:a", 2020);
    replace(&cluster.dir.path().join("client.pem"), &certificate);
    replace(&cluster.dir.path().join("client.key"), &key);
    cluster.server.know(&[], &[]);
    let pool = cluster.pool().await;
    let consumer = Consumer::start(&pool, "");
    until("the refusal", || consumer.why().contains("401")).await;
    let told = "client.pem) expired at 2020-01-01T00:00:00Z, and this node's clock says";
    assert!(consumer.why().contains(told), "{}", consumer.why());
    assert!(pool.view().problem.unwrap().contains(told));
    cluster.client("system:node:b");
    cluster.server.know(&["system:node:b"], &[]);
    until("the successor", || consumer.is_ok()).await;
    assert_eq!(pool.view().problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_token_file_is_read_anew_without_a_new_connection() {
    let cluster = Cluster::new().await;
    let token = cluster.dir.path().join("token");
    fs::write(&token, "one\n").unwrap();
    cluster.kubeconfig("tokenFile: token");
    cluster.server.know(&[], &["one"]);
    let pool = cluster.pool().await;
    pool.send(&Request::get("/api/v1/widgets")).await.unwrap();
    replace(&token, "two\n");
    cluster.server.know(&[], &["two"]);
    let refused = pool.send(&Request::get("/api/v1/widgets")).await.unwrap_err();
    assert!(refused.refusal().is_some_and(|r| r.is_unauthorized()), "{refused}");
    pool.send(&Request::get("/api/v1/widgets")).await.unwrap();
    assert_eq!(cluster.server.all_connections(|_| ()).len(), 1);
}

/// The plugin runs in real time.
#[tokio::test]
async fn an_exec_plugin_is_run_again_when_its_token_is_refused() {
    let cluster = Cluster::new().await;
    let script = "#!/bin/sh\necho run >> runs\nprintf '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"%s\"}}' \"$(cat plugin-token)\"\n";
    let dir = cluster.dir.path();
    fs::write(
        dir.join("plugin"),
        script
            .replace("runs", dir.join("runs").to_str().unwrap())
            .replace("plugin-token", dir.join("plugin-token").to_str().unwrap()),
    )
    .unwrap();
    fs::set_permissions(dir.join("plugin"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(dir.join("plugin-token"), "one").unwrap();
    cluster.kubeconfig(
        "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never}",
    );
    cluster.server.know(&[], &["one"]);
    let pool = cluster.pool().await;
    let get = Request::get("/api/v1/widgets");
    for _ in 0..3 {
        pool.send(&get).await.unwrap();
    }
    let runs = || fs::read_to_string(dir.join("runs")).unwrap().lines().count();
    assert_eq!(runs(), 1);
    fs::write(dir.join("plugin-token"), "two").unwrap();
    cluster.server.know(&[], &["two"]);
    // The plugin runs at most once in ten seconds.
    tokio::time::pause();
    tokio::time::advance(11 * SECOND).await;
    tokio::time::resume();
    pool.send(&get).await.unwrap_err();
    pool.send(&get).await.unwrap();
    assert_eq!(runs(), 2);
    cluster.server.know(&[], &[]);
    for _ in 0..20 {
        pool.send(&get).await.unwrap_err();
    }
    assert_eq!(runs(), 2, "a plugin whose tokens are refused is not run for each request");
}

/// The error text for a server that cannot be reached or trusted.
async fn told(pool: &Pool) -> String {
    let error = pool.send(&Request::get("/api/v1/widgets").within(2 * SECOND)).await.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[tokio::test(start_paused = true)]
async fn servers_that_cannot_be_trusted_or_reached_are_told_with_what_to_do() {
    let cluster = Cluster::new().await;
    let other = Authority::new();
    let (ours, url) = (&cluster.authority, format!("https://127.0.0.1:{}", cluster.proxy.port));
    for (authority, name, years, expected) in [
        (
            &other,
            "127.0.0.1",
            (2000, 4000),
            "is of an unknown CA; put the cluster's CA into certificate-authority",
        ),
        (ours, "127.0.0.1", (2000, 2020), "expired at 2020-01-01T00:00:00Z, and this node's clock says"),
        (
            ours,
            "127.0.0.1",
            (3000, 4000),
            "is valid from 3000-01-01T00:00:00Z on, and this node's clock says",
        ),
        (ours, "10.9.9.9", (2000, 4000), "is not for 127.0.0.1"),
    ] {
        cluster.server.present(authority, name, years);
        let pool = cluster.pool().await;
        let text = told(&pool).await;
        assert!(text.starts_with(&format!("cannot reach {url}: the server's certificate ")), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    cluster.server.present(ours, "10.9.9.9", (2000, 4000));
    cluster.kubeconfig_for(
        &format!("server: \"{url}/\", certificate-authority: ca.pem, tls-server-name: 10.9.9.9"),
        "client-certificate: client.pem, client-key: client.key",
    );
    let pool = cluster.pool().await;
    pool.send(&Request::get("/api/v1/widgets")).await.unwrap();
    cluster.server.present(&other, "a.example", (2000, 2020));
    cluster.kubeconfig_for(
        &format!("server: \"{url}\", insecure-skip-tls-verify: true"),
        "client-certificate: client.pem, client-key: client.key",
    );
    let pool = cluster.pool().await;
    pool.send(&Request::get("/api/v1/widgets")).await.unwrap();

    cluster.proxy.set(Mode::Refuse);
    pool.close_all();
    let text = told(&pool).await;
    assert!(text.starts_with(&format!("cannot reach {url}: ")), "{text}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    cluster.kubeconfig_for(
        &format!("server: \"https://127.0.0.1:{nobody}\", certificate-authority: ca.pem"),
        "token: t",
    );
    let pool = cluster.pool().await;
    let text = told(&pool).await;
    assert!(text.ends_with(&format!("127.0.0.1:{nobody}: connection refused")), "{text}");
}
