//! Two nodes on one machine, each with its own roots and network namespace, joined by plain routes: pods of
//! each node reach Services whose endpoints are on the other.

mod support;

use anyhow::{Context, Result, ensure};
use berth_harness::netns::join;
use berth_harness::{image, wait};
use std::{collections::BTreeSet, net::Ipv4Addr, path::Path};
use support::{Guest, plain, slice};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 96, 2, 2);

/// A pod that serves its node's name, and a client pod.
fn pods(node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
         image: {image}\n    command: [sh, -c, \"mkdir /www; echo {node} > /www/index.html; exec httpd -f -p 8080 -h /www\"]\n    \
         readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: \
         client}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {image}\n    command: [sleep, infinity]\n",
        image = image::TEST
    )
}

fn service(name: &str, address: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  clusterIP: {address}\n  ports:\n  - {{name: \
         t, port: 80, targetPort: 8080}}\n"
    )
}

fn start(guest: &Guest, name: &str) -> Result<Ipv4Addr> {
    guest.containerd()?;
    guest.agent()?;
    guest.node.apply("pods.yaml", &pods(name))?;
    guest.node.ready("default/client")?;
    let web = guest.node.ready("default/web")?;
    let address = web.status()["podIP"].as_str().context("the pod has no address")?;
    Ok(address.parse()?)
}

fn fetch(guest: &Guest, from: Ipv4Addr) -> Result<String> {
    let url = format!("http://{from}:80/index.html");
    let text = guest.node.exec("default/client/main", &["timeout", "5", "wget", "-q", "-O", "-", &url])?;
    Ok(text.trim().to_owned())
}

/// Fetches from the Service by an exec of containerd's own command, without the agent.
fn fetch_without_agent(guest: &Guest, id: &str, n: u32) -> Result<String> {
    let (exec, url) = (format!("fetch-{n}"), format!("http://{VIP}:80/index.html"));
    let text = guest.node.containerd.ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        &exec,
        id,
        "timeout",
        "5",
        "wget",
        "-q",
        "-O",
        "-",
        &url,
    ])?;
    Ok(text.trim().to_owned())
}

#[test]
fn pods_reach_services_with_endpoints_on_the_other_node() {
    if let Err(error) = run(&plain().unwrap()) {
        panic!("{error:?}");
    }
}

fn run(programs: &Path) -> Result<()> {
    let a = Guest::new("node-a", programs.to_path_buf())?;
    let b = Guest::new("node-b", programs.to_path_buf())?;
    join((&a.netns, "uplink", &["192.0.2.1/24"]), (&b.netns, "uplink", &["192.0.2.2/24"]))?;
    ensure!(a.node.subnets() != b.node.subnets(), "both nodes have the pods' network {:?}", a.node.subnets());
    for (here, there, via) in [(&a, &b, "192.0.2.2"), (&b, &a, "192.0.2.1")] {
        here.netns.ip(&format!("route add {} via {via}", there.node.subnets().0))?;
        here.netns.ip(&format!("route add default via {via}"))?;
    }
    let web = [start(&a, "node-a")?, start(&b, "node-b")?];
    ensure!(web[0] != web[1], "both pods have the address {}", web[0]);

    for (here, there, far) in [(&a, "node-b", web[1]), (&b, "node-a", web[0])] {
        here.node.apply("both.yaml", &service("both", VIP))?;
        here.node.apply("far.yaml", &service("far", FAR))?;
        let both = slice("both", None, 8080, &web);
        here.node.apply("both-slice.yaml", &both)?;
        here.node.apply("far-slice.yaml", &slice("far", Some(there), 8080, &[far]))?;
        let said = wait::ok("the far Service answers", wait::PATIENCE, || fetch(here, FAR))?;
        ensure!(said == there, "{said} answers for {there}");
        let mut seen = BTreeSet::new();
        wait::until("both nodes answer", wait::PATIENCE, || {
            seen.extend(fetch(here, VIP));
            seen.len() == 2
        })?;
        ensure!(seen.iter().map(String::as_str).eq(["node-a", "node-b"]), "who answered: {seen:?}");
    }

    // The nodes' tables are separate: an object removed from one node stays on the other.
    a.node.remove("far-slice.yaml")?;
    wait::until("the Service without endpoints is refused on one node", wait::PATIENCE, || {
        fetch(&a, FAR).is_err()
    })?;
    ensure!(fetch(&b, FAR)? == "node-a", "the other node lost its Service too");
    // The data plane works while an agent is dead.
    for (guest, other) in [(&a, &b), (&b, &a)] {
        let client = guest.node.ready("default/client")?;
        let id = client.0["containers"][0]["id"].as_str().context("the client has no container")?.to_owned();
        guest.node.kill_agent()?;
        let seen: Result<BTreeSet<String>> = (0..40).map(|n| fetch_without_agent(guest, &id, n)).collect();
        let seen = seen?;
        ensure!(seen.len() == 2, "with the agent dead only {seen:?} answered");
        ensure!(fetch(other, VIP).is_ok(), "the other node fails without this one's agent");
        guest.agent()?;
    }
    Guest::end_all([a, b])
}
