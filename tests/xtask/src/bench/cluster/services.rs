//! Many Services on Berth: memory, and how soon a changed endpoint serves.

use super::{
    super::millis,
    api::Api,
    pods::{PODS, follow, is_ready, manifest},
};
use crate::{cluster::JoinedNode, out};
use anyhow::{Context, Result, bail};
use berth_harness::stats::quantile;
use serde_json::json;
use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Threads that make objects.
const MAKERS: usize = 4;

/// Makes the Services `from..to` with ten endpoints each.
pub(super) fn make(api: &Api, from: usize, to: usize) -> Result<()> {
    thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| {
                scope.spawn(move || {
                    for n in (from..to).filter(|n| n % MAKERS == maker) {
                        let addresses = (1..=10).map(|a| format!("10.{}.{}.{a}", 100 + n / 250, n % 250));
                        make_one(api, &format!("many-{n}"), None, &addresses.collect::<Vec<_>>())?;
                    }
                    Ok::<_, anyhow::Error>(())
                })
            })
            .collect();
        for maker in makers {
            maker.join().map_err(|_panic| anyhow::anyhow!("a thread failed"))??;
        }
        Ok(())
    })
}

/// Makes a Service with these endpoints.
pub(super) fn make_one(api: &Api, name: &str, ip: Option<&str>, addresses: &[String]) -> Result<()> {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]},
    });
    if let Some(ip) = ip {
        service["spec"]["clusterIP"] = json!(ip);
    }
    api.request("POST", SERVICES, &service.to_string())?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "endpoints": endpoints(addresses), "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
    });
    api.request("POST", SLICES, &slice.to_string()).map(drop)
}

fn endpoints(addresses: &[String]) -> serde_json::Value {
    addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect()
}

/// Two web servers that answer with their names, and their addresses.
fn servers(api: &Api, node: &JoinedNode) -> Result<Vec<(String, String)>> {
    let events = api.watch(PODS)?;
    let mut all = Vec::new();
    for letter in ["a", "b"] {
        let name = format!("server-{letter}-{}", node.name());
        let mut pod = manifest(&name, node.name(), "server");
        pod["spec"]["containers"][0]["command"] =
            json!(["sh", "-c", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"]);
        pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"port": 80}, "periodSeconds": 1});
        api.request("POST", PODS, &pod.to_string())?;
        let mut address = String::new();
        follow(&events, "a server is Ready", |event| {
            let found = event.object["metadata"]["name"] == *name && is_ready(&event.object);
            if found {
                address = event.object["status"]["podIP"].as_str().unwrap_or_default().to_owned();
            }
            found
        })?;
        all.push((name, address));
    }
    Ok(all)
}

/// Times from the answer to a PATCH of an EndpointSlice to the first answer of the new backend, in milliseconds. The Service
/// is made with this address; `pause` is the time between two changes.
pub(super) fn changes(
    api: &Api,
    node: &JoinedNode,
    ip: &str,
    rounds: usize,
    pause: Duration,
) -> Result<Vec<f64>> {
    let servers = servers(api, node)?;
    let changing = format!("changing-{}", node.name());
    let first = servers.first().context("no server")?;
    make_one(api, &changing, Some(ip), std::slice::from_ref(&first.1))?;
    let asking = format!(
        "while :; do exec 3<>/dev/tcp/{ip}/80 || continue; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; mapfile -t all <&3; \
         exec 3<&-; echo \"${{all[-1]}}\"; done"
    );
    let mut command = node.command()?;
    command.args(["bash", "-c", &asking]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = command.spawn().context("cannot start a client")?;
    let said = client.stdout.take().context("the client has no output")?;
    let (sender, answers) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            if sender.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    let measured = (|| {
        let mut times = Vec::new();
        let answered = |name: &str, since: Instant| -> Result<Instant> {
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                let left = end.saturating_duration_since(Instant::now());
                match answers.recv_timeout(left) {
                    Ok((at, line)) if line == name && at >= since => return Ok(at),
                    Ok(_) => {}
                    Err(_) => bail!("{name} does not answer"),
                }
            }
        };
        answered(&first.0, Instant::now())?;
        for round in 1..=rounds {
            let Some((name, address)) = servers.get(round % servers.len()) else { continue };
            thread::sleep(pause);
            let patch = json!({"endpoints": endpoints(std::slice::from_ref(address))});
            api.request("PATCH", &format!("{SLICES}/{changing}"), &patch.to_string())?;
            let patched = Instant::now();
            times.push(millis(answered(name, patched)?.saturating_duration_since(patched)));
        }
        Ok(times)
    })();
    client.kill().context("cannot end the client")?;
    client.wait().context("cannot end the client")?;
    if let Ok(times) = &measured {
        out::line(&format!(
            "a changed endpoint serves after p50 {:.1}, p99 {:.1} ms",
            quantile(times, 0.5),
            quantile(times, 0.99)
        ));
    }
    measured
}
