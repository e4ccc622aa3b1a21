//! Pulls of a real agent from a registry on loopback: pods start, credentials are found, failures have the kubelet's
//! words, and an agent that is killed in a pull continues it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, ensure};
use berth_harness::{
    node::Node,
    oci::{Entry, Image},
    registry::{Auth, Encoding, Registry},
    tools::Build,
    wait::{self, PATIENCE},
};
use support::on_a_node;

/// Busybox with one more layer of so many bytes, and no others like it.
fn image(seed: u64, bytes: usize) -> anyhow::Result<Image> {
    let mut image = Image::busybox("x")?;
    image.layers.push(vec![Entry::noise("noise", seed, bytes)]);
    Ok(image)
}

fn manifest(name: &str, image: &str, spec: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\
         \x20 containers:\n  - name: main\n    image: {image}\n    command: [sh, -c, 'exec sleep infinity']\n{container}"
    )
}

/// The messages of the pod's events with this reason.
fn messages(node: &Node, pod: &str, reason: &str) -> anyhow::Result<Vec<String>> {
    let out = node.berth(&["describe", "pod", pod, "-o", "json"])?;
    let page: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let events = page["events"].as_array().context("it has events")?;
    let of = events.iter().filter(|e| e["event"]["reason"] == reason);
    Ok(of.filter_map(|e| e["event"]["message"].as_str()).map(str::to_owned).collect())
}

fn leases(node: &Node) -> anyhow::Result<Vec<String>> {
    let all = node.containerd.ctr(&["leases", "ls", "-q"])?;
    Ok(all.lines().filter(|l| l.contains("pull")).map(str::to_owned).collect())
}

#[test]
fn a_pod_pulls_its_image_as_its_policy_wants() {
    let registry = Registry::start().unwrap();
    registry.push("team/app", "1", &image(1, 100_000).unwrap(), Encoding::Gzip).unwrap();
    on_a_node(Build::Plain, |node| {
        let image = registry.image("team/app", "1");
        node.apply("one.yaml", &manifest("one", &image, "", ""))?;
        let one = node.ready("default/one")?;
        let id = one.container("main")["imageID"].as_str().unwrap_or_default().to_owned();
        ensure!(id.contains("/team/app@sha256:"), "image id {id:?}");
        ensure!(messages(node, "one", "Pulling")? == [format!("Pulling image {image:?}")]);
        let pulled = messages(node, "one", "Pulled")?;
        let words =
            [format!("Successfully pulled image {image:?} in "), " including waiting). Image size: ".into()];
        ensure!(pulled.len() == 1 && words.iter().all(|w| pulled[0].contains(w)), "{pulled:?}");
        // The second finds it; Always asks the registry again and fetches nothing.
        registry.forget();
        node.apply("two.yaml", &manifest("two", &image, "", ""))?;
        node.ready("default/two")?;
        let there =
            format!("Container image {image:?} already present on machine and can be accessed by the pod");
        ensure!(messages(node, "two", "Pulled")? == [there] && registry.asked().is_empty());
        node.apply("three.yaml", &manifest("three", &image, "", "    imagePullPolicy: Always\n"))?;
        node.ready("default/three")?;
        ensure!(messages(node, "three", "Pulling")?.len() == 1 && registry.sent() == 0);
        ensure!(!registry.asked().is_empty(), "the registry was asked");
        let never = manifest("never", &registry.image("absent", "1"), "", "    imagePullPolicy: Never\n");
        node.apply("never.yaml", &never)?;
        let why = |p: &berth_harness::socket::Pod| p.container("main")["state"]["waiting"]["reason"].clone();
        node.pod("is refused", "default/never", PATIENCE, |p| why(p) == "ErrImageNeverPull")?;
        node.apply("absent.yaml", &manifest("absent", &registry.image("absent", "1"), "", ""))?;
        node.pod("cannot pull", "default/absent", PATIENCE, |p| why(p) == "ErrImagePull")?;
        let absent = node.pod("backs off", "default/absent", PATIENCE, |p| why(p) == "ImagePullBackOff")?;
        let message =
            absent.container("main")["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(message.contains("ErrImagePull: failed to pull and unpack image"), "{message}");
        ensure!(message.ends_with("absent:1: not found"), "{message}");
        // Commands of a person.
        let other = registry.image("team/app", "1");
        let out = node.berth(&["image", "inspect", &other])?;
        ensure!(String::from_utf8_lossy(&out.stdout).contains("default/one/main"), "{out:?}");
        ensure!(!node.berth(&["image", "rm", &other])?.status.success(), "it is in use");
        ensure!(node.berth(&["image", "tag", &other, "mine:1"])?.status.success());
        ensure!(node.berth(&["image", "pull", &other])?.status.success());
        ensure!(leases(node)?.is_empty(), "{:?}", leases(node)?);
        Ok(())
    });
}

#[test]
fn pull_secrets_and_the_nodes_own_credentials_are_tried_in_turn() {
    let registry = Registry::start().unwrap();
    registry.push("private", "1", &image(2, 1000).unwrap(), Encoding::Tar).unwrap();
    registry.push("private", "2", &image(3, 1000).unwrap(), Encoding::Tar).unwrap();
    registry.push("private", "3", &image(4, 1000).unwrap(), Encoding::Tar).unwrap();
    registry.set_auth(Auth::Token("me".into(), "pass-word".into()));
    on_a_node(Build::Plain, |node| {
        let host = registry.host();
        let secret = |name: &str, kind: &str, key: &str, json: String| {
            format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/{kind}\n\
                 stringData:\n  {key}: '{json}'\n"
            )
        };
        let auths = |password: &str| format!(r#"{{"{host}":{{"username":"me","password":"{password}"}}}}"#);
        let json = format!(r#"{{"auths":{}}}"#, auths("wrong-word"));
        node.apply("wrong.yaml", &secret("wrong", "dockerconfigjson", ".dockerconfigjson", json))?;
        node.apply("right.yaml", &secret("right", "dockercfg", ".dockercfg", auths("pass-word")))?;
        let spec = "  imagePullSecrets: [{name: wrong}, {name: right}]\n";
        node.apply("both.yaml", &manifest("both", &registry.image("private", "1"), spec, ""))?;
        node.ready("default/both")?;
        node.apply("none.yaml", &manifest("none", &registry.image("private", "2"), "", ""))?;
        let why = |p: &berth_harness::socket::Pod| p.container("main")["state"]["waiting"]["reason"].clone();
        node.pod("is refused", "default/none", PATIENCE, |p| why(p) == "ErrImagePull")?;
        // The node's own configuration serves every pod.
        let config = format!(r#"{{"auths":{}}}"#, auths("pass-word"));
        std::fs::write(node.roots.pod_state.join("config.json"), config)?;
        node.apply("node.yaml", &manifest("node", &registry.image("private", "3"), "", ""))?;
        node.ready("default/node")?;
        node.ready("default/none")?;
        for log in [node.agent_log(), node.dir.join("containerd/log")] {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            ensure!(
                !text.contains("pass-word") && !text.contains("wrong-word"),
                "{} has a password",
                log.display()
            );
        }
        Ok(())
    });
}

#[test]
fn an_agent_killed_in_a_pull_continues_it() {
    let registry = Registry::start().unwrap();
    let pushed = registry.push("big", "1", &image(5, 16 << 20).unwrap(), Encoding::Tar).unwrap();
    on_a_node(Build::Plain, |node| {
        registry.set_rate(4 << 20);
        node.apply("big.yaml", &manifest("big", &registry.image("big", "1"), "", ""))?;
        wait::until("most is fetched", PATIENCE, || registry.sent() > pushed.bytes * 2 / 3)?;
        let shown = node.berth(&["pods"])?;
        ensure!(String::from_utf8_lossy(&shown.stdout).contains("pulling"), "{shown:?}");
        node.kill_agent()?;
        // What is sent to sockets that nobody reads any more would count as sent twice.
        wait::until("the pull's connections end", PATIENCE, || registry.sending() == 0)?;
        registry.heal();
        node.start_agent()?;
        node.ready("default/big")?;
        let sent = registry.sent();
        eprintln!("{sent} bytes sent for {}", pushed.bytes);
        ensure!(sent < pushed.bytes * 11 / 10, "{sent} bytes sent for {}", pushed.bytes);
        ensure!(leases(node)?.is_empty(), "{:?}", leases(node)?);
        Ok(())
    });
}

#[test]
fn a_present_image_serves_the_pods_with_the_secret_that_pulled_it() {
    let registry = Registry::start().unwrap();
    registry.push("private", "1", &image(5, 1000).unwrap(), Encoding::Tar).unwrap();
    registry.set_auth(Auth::Token("me".into(), "pass-word".into()));
    on_a_node(Build::Plain, |node| {
        let auths = format!(r#"{{"{}":{{"username":"me","password":"pass-word"}}}}"#, registry.host());
        let secret = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/dockercfg\n\
                 stringData:\n  .dockercfg: '{auths}'\n"
            )
        };
        let image = registry.image("private", "1");
        node.apply("secret.yaml", &secret("one"))?;
        node.apply("same.yaml", &secret("two"))?;
        let with = |name: &str| format!("  imagePullSecrets: [{{name: {name}}}]\n");
        node.apply("first.yaml", &manifest("first", &image, &with("one"), ""))?;
        node.ready("default/first")?;
        // The same secret, and another with the same credential, are granted the image without the registry.
        registry.forget();
        for (pod, secret) in [("second", "one"), ("third", "two")] {
            node.apply(&format!("{pod}.yaml"), &manifest(pod, &image, &with(secret), ""))?;
            node.ready(&format!("default/{pod}"))?;
        }
        ensure!(registry.asked().is_empty(), "{:?}", registry.asked());
        // Without a secret the pod has to pull, which the registry refuses. It does not learn that the image is there.
        let why = |p: &berth_harness::socket::Pod| p.container("main")["state"]["waiting"]["reason"].clone();
        node.apply("bare.yaml", &manifest("bare", &image, "", ""))?;
        node.pod("is refused", "default/bare", PATIENCE, |p| why(p) == "ErrImagePull")?;
        node.apply("never.yaml", &manifest("never", &image, "", "    imagePullPolicy: Never\n"))?;
        node.pod("is refused", "default/never", PATIENCE, |p| why(p) == "ErrImageNeverPull")?;
        let text = format!("Container image {image:?} is not present with pull policy of Never");
        ensure!(messages(node, "never", "ErrImageNeverPull")?.contains(&text), "upstream's words");
        // The records are the kubelet's, name no password, and count for a restarted agent.
        let dir = node.roots.pod_state.join("image_manager");
        let record = std::fs::read_dir(dir.join("pulled"))?.next().context("there is a record")??;
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record.path())?)?;
        ensure!(record["kind"] == "ImagePulledRecord", "{record}");
        let repository = image.trim_end_matches(":1");
        let secrets = &record["credentialMapping"][repository]["kubernetesSecrets"];
        ensure!(secrets[0]["name"] == "one" && secrets[1]["name"] == "two", "{record}");
        ensure!(!record.to_string().contains("pass-word"));
        node.kill_agent()?;
        node.start_agent()?;
        node.apply("late.yaml", &manifest("late", &image, &with("one"), ""))?;
        node.ready("default/late")?;
        node.pod("is refused", "default/never", PATIENCE, |p| why(p) == "ErrImageNeverPull")?;
        // An image that was there before serves everyone.
        let preloaded = manifest("preloaded", berth_harness::image::TEST, "", "    imagePullPolicy: Never\n");
        node.apply("preloaded.yaml", &preloaded)?;
        node.ready("default/preloaded")?;
        Ok(())
    });
}

#[test]
fn a_plugin_gives_the_credentials_and_is_asked_once() {
    let registry = Registry::start().unwrap();
    for (n, tag) in ["1", "2"].iter().enumerate() {
        registry.push("private", tag, &image(6 + n as u64, 1000).unwrap(), Encoding::Tar).unwrap();
    }
    registry.set_auth(Auth::Token("me".into(), "pass-word".into()));
    support::on_a_prepared_node(
        Build::Plain,
        |node| {
            use std::os::unix::fs::PermissionsExt as _;
            let dir = node.dir.join("plugins");
            std::fs::create_dir_all(&dir)?;
            let version = "credentialprovider.kubelet.k8s.io/v1";
            let answer = format!(
                r#"{{"kind":"CredentialProviderResponse","apiVersion":"{version}","cacheKeyType":"Registry","cacheDuration":"1h","auth":{{"{}":{{"username":"me","password":"pass-word"}}}}}}"#,
                registry.host()
            );
            let script = format!("#!/bin/sh\ncat >> {0}/asked\necho '{answer}'\n", dir.display());
            std::fs::write(dir.join("helper"), script)?;
            std::fs::set_permissions(dir.join("helper"), std::fs::Permissions::from_mode(0o755))?;
            let config = format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: helper\n  \
                 matchImages: ['{}']\n  defaultCacheDuration: 1m\n  apiVersion: {version}\n",
                registry.host()
            );
            std::fs::write(dir.join("config.yaml"), config)?;
            node.agent_args.extend([
                format!("--image-credential-provider-config={}", dir.join("config.yaml").display()),
                format!("--image-credential-provider-bin-dir={}", dir.display()),
            ]);
            Ok(())
        },
        |node| {
            for tag in ["1", "2"] {
                let pod = format!("p{tag}");
                let text = manifest(&pod, &registry.image("private", tag), "", "");
                node.apply(&format!("{pod}.yaml"), &text)?;
                node.ready(&format!("default/{pod}"))?;
            }
            let asked = std::fs::read_to_string(node.dir.join("plugins/asked"))?;
            ensure!(asked.lines().count() == 1, "{asked}");
            ensure!(asked.contains(&format!("\"image\":\"{}/private\"", registry.host())), "{asked}");
            let log = std::fs::read_to_string(node.agent_log())?;
            ensure!(!log.contains("pass-word"), "the log has the password");
            Ok(())
        },
    );
}
