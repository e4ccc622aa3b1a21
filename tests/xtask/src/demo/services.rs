//! The demo's Service steps: one Service name, one node port and one headless name, with the agent and
//! without.

use super::outside::Outside;
use crate::out;
use anyhow::{Result, bail, ensure};
use berth_harness::{
    logs,
    node::Node,
    socket::Pod,
    wait::{self, PATIENCE},
};
use std::{collections::BTreeSet, time::Instant};

/// Names of the web pods; each pod's page contains its name.
const WEB: [&str; 2] = ["web-a", "web-b"];
const PAGE: &str = "/live/prepared.txt";
const NODE_PORT: u16 = 30080;
const NAME: &str = "web.default.svc.cluster.local";
const HEADLESS: &str = "web-headless.default.svc.cluster.local";

/// Shows the Services, then the same with the agent killed.
pub(super) fn show(node: &Node, outside: &Outside) -> Result<()> {
    out::timed("ask for the Service's name from the client pod: both web pods answer", || by_name(node))?;
    out::timed("ask its port on the node, from the node itself: both answer", || from_node(node, outside))?;
    out::timed("ask its port on the node, from another network: both answer", || from_outside(outside))?;
    out::timed("look up the headless name: it has the addresses of both", || headless(node))?;
    out::timed(
        "one web pod is not Ready for a while: it leaves the Service and the name, and comes back",
        || leaves(node),
    )?;
    out::timed("none is Ready: the connection is refused at once", || refused(node))?;
    out::timed("kill the agent: name, node port and headless name answer on, new connections too", || {
        without_agent(node, outside)
    })?;
    out::timed(
        "start the agent again: it takes up what it finds, a pod leaves and comes back as before",
        || {
            node.start_agent()?;
            leaves(node)
        },
    )
}

/// The web pod that gave this answer.
fn who(answer: &str) -> Option<&'static str> {
    WEB.into_iter().find(|name| answer.contains(&format!("prepared by {name}")))
}

/// Sends requests until each pod of `wanted` has answered. An answer of another pod is an error.
fn all_answer(wanted: &[&str], mut ask: impl FnMut() -> Result<String>) -> Result<()> {
    let (begun, mut seen, mut asked) = (Instant::now(), BTreeSet::new(), 0);
    while seen.len() < wanted.len() {
        ensure!(begun.elapsed() < PATIENCE, "after {asked} answers only {seen:?} of {wanted:?}");
        let answer = ask()?;
        let Some(name) = who(&answer) else { bail!("the answer is {answer:?}") };
        ensure!(wanted.contains(&name), "{name} answered, and only {wanted:?} may");
        seen.insert(name);
        asked += 1;
    }
    out::line(&format!("    {} answered, in {asked} connections", wanted.join(" and ")));
    Ok(())
}

/// Shell command that resolves the name with nslookup first: a static busybox has no resolver in a bare
/// image.
const GET: &str = "timeout 3 wget -q -O - \"http://$(nslookup -type=a \"$0\" | awk '/^Address/ {a = $2} END {print a}'):80$1\"";

fn ask_by_name(node: &Node) -> Result<String> {
    node.exec("default/client/client", &["sh", "-c", GET, NAME, PAGE])
}

fn by_name(node: &Node) -> Result<()> {
    // The DNS record and the Service table follow the pods' readiness after a short delay.
    wait::ok("the name answers", PATIENCE, || ask_by_name(node))?;
    all_answer(&WEB, || ask_by_name(node))
}

fn from_node(node: &Node, outside: &Outside) -> Result<()> {
    for address in [outside.node_address(), "127.0.0.1"] {
        let url = format!("http://{address}:{NODE_PORT}{PAGE}");
        all_answer(&WEB, || node.on_host(&["timeout", "3", "busybox", "wget", "-q", "-O", "-", &url]))?;
    }
    Ok(())
}

fn from_outside(outside: &Outside) -> Result<()> {
    let url = format!("http://{}:{NODE_PORT}{PAGE}", outside.node_address());
    let ask = || outside.run(&["timeout", "3", "busybox", "wget", "-q", "-O", "-", &url]);
    wait::ok("the port answers", PATIENCE, ask)?;
    all_answer(&WEB, ask)
}

/// Addresses expected under the headless name: those of the Ready web pods.
fn addresses(node: &Node) -> Result<BTreeSet<String>> {
    let pods = node.pods()?;
    let web = WEB.iter().filter_map(|name| pods.get(&format!("default/{name}")));
    Ok(web.filter(|p| p.ready()).map(|p| p.ip().to_owned()).collect())
}

fn headless(node: &Node) -> Result<()> {
    wait::ok("the headless name has the addresses of the Ready pods", PATIENCE, || {
        let wanted = addresses(node)?;
        let told = node.exec("default/client/client", &["nslookup", HEADLESS])?;
        let missing: Vec<_> = wanted.iter().filter(|ip| !told.contains(ip.as_str())).collect();
        ensure!(!wanted.is_empty() && missing.is_empty(), "{missing:?} of {wanted:?} are not in:\n{told}");
        Ok(())
    })?;
    out::line(&format!("    {HEADLESS}: {}", addresses(node)?.into_iter().collect::<Vec<_>>().join(", ")));
    Ok(())
}

fn set_ready(node: &Node, name: &str, ready: bool) -> Result<()> {
    let container = format!("default/{name}/web");
    let command: &[&str] = if ready { &["touch", "/www/live/ready"] } else { &["rm", "/www/live/ready"] };
    node.exec(&container, command)?;
    node.pod("changes its readiness", &format!("default/{name}"), PATIENCE, |p| p.ready() == ready).map(drop)
}

fn leaves(node: &Node) -> Result<()> {
    let (left, rest) = (WEB[0], [WEB[1]]);
    let gone = node.ready(&format!("default/{left}"))?.ip().to_owned();
    set_ready(node, left, false)?;
    let begun = Instant::now();
    // The last answer of the pod that left may still be under way, so the loop retries.
    wait::ok("only the other answers", PATIENCE, || {
        for _ in 0..8 {
            let answer = ask_by_name(node)?;
            ensure!(who(&answer) == Some(rest[0]), "the answer is {answer:?}");
        }
        Ok(())
    })?;
    out::line(&format!("    {left} answers no more, seen after {:.2} s", begun.elapsed().as_secs_f64()));
    wait::ok("its address leaves the headless name", PATIENCE, || {
        let told = node.exec("default/client/client", &["nslookup", HEADLESS])?;
        ensure!(!told.contains(&gone), "{gone} is in:\n{told}");
        Ok(())
    })?;
    set_ready(node, left, true)?;
    all_answer(&WEB, || ask_by_name(node))?;
    headless(node)
}

fn refused(node: &Node) -> Result<()> {
    for name in WEB {
        set_ready(node, name, false)?;
    }
    let begun = Instant::now();
    let said = wait::ok("the connection is refused", PATIENCE, || {
        let args = ["exec", "default/client/client", "--", "sh", "-c", GET, NAME, PAGE];
        let out = node.berth(&args)?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success() && said.contains("refused"), "wget says {said:?}");
        Ok(said)
    })?;
    out::line(&format!("    {} after {:.2} s", said.trim(), begun.elapsed().as_secs_f64()));
    for name in WEB {
        set_ready(node, name, true)?;
    }
    wait::ok("the Service answers again", PATIENCE, || ask_by_name(node))?;
    all_answer(&WEB, || ask_by_name(node))
}

/// Output of the pod `asker` so far.
fn asked(node: &Node, asker: &Pod) -> Result<String> {
    let run = u32::try_from(asker.restarts("asker"))?;
    logs::text(&node.log_dir(asker, "asker"), run, "stdout")
}

fn without_agent(node: &Node, outside: &Outside) -> Result<()> {
    let asker = node.ready("default/asker")?;
    let addresses = addresses(node)?;
    ensure!(addresses.len() == WEB.len(), "not both web pods are Ready");
    node.kill_agent()?;
    let before = asked(node, &asker)?.len();
    let mut written = String::new();
    wait::ok("the pod asker hears from both by name, and of both by the headless name", PATIENCE, || {
        written = asked(node, &asker)?.get(before..).unwrap_or_default().to_owned();
        // The first line may come from before the kill and is left out; the last line may be cut.
        let lines: Vec<&str> = written.lines().skip(1).collect();
        let names: BTreeSet<_> =
            lines.iter().filter(|l| l.starts_with("name:")).filter_map(|l| who(l)).collect();
        let whole =
            |l: &&&str| l.starts_with("headless:") && addresses.iter().all(|ip| l.contains(ip.as_str()));
        ensure!(names.len() == WEB.len() && lines.iter().any(|l| whole(&l)), "so far: {written}");
        Ok(())
    })?;
    if let Some(wrong) =
        written.lines().skip(1).find(|l| l.contains("can't connect") || l.contains("refused"))
    {
        bail!("with the agent dead a connection failed: {wrong}");
    }
    out::line("    from a pod, by name: both answered; the headless name has both addresses");
    from_node(node, outside)?;
    from_outside(outside)?;
    ensure!(node.agent().is_none(), "the agent was not dead all the time");
    let told = node.berth(&["services"])?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(told.status.success() && text.contains("web"), "berth services says: {text}");
    out::line("$ berth services   (the agent is dead)");
    text.lines().for_each(out::line);
    Ok(())
}
