//! `cargo xtask demo`: runs a node with the pods of `deploy/examples` step by step; `--down` removes the
//! node.

mod outside;
mod services;

use crate::{out, setup};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::{
    image,
    node::Node,
    socket::{Change, Pod},
    tools::{self, Build},
    wait::{self, PATIENCE},
};
use outside::Outside;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// End the demo's node and remove everything that the node made.
    #[arg(long)]
    down: bool,
    /// Keep the node for inspection where a step fails.
    #[arg(long)]
    keep: bool,
    /// Directory of the demo's files.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/berth-demo")]
    dir: PathBuf,
    /// Directory of the demo's state of this boot.
    #[arg(long, value_name = "DIR", default_value = "/run/berth-demo")]
    run_dir: PathBuf,
}

/// The first restart comes at once, the second after 10 s.
const BACK_OFF: Duration = Duration::from_secs(90);

const EXAMPLES: [&str; 5] = ["web.yaml", "services.yaml", "client.yaml", "crash.yaml", "never-ready.yaml"];

/// Shows the node, or ends it (`--down`).
pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.down {
        return down(args);
    }
    setup::run()?;
    let programs = out::timed("build berth", || tools::programs(Build::Plain))?;
    let (node, outside) = demo_node(args, programs)?;
    if node.agent().is_some() && node.containerd.process().is_some() {
        out::line("the demo's node runs already: only looking whether it is well");
        still_well(&node)?;
        report(&node)?;
        out::line("nothing was changed; end it with `cargo xtask demo --down`");
        return Ok(true);
    }
    let begun = Instant::now();
    match show(&node, &outside) {
        Ok(()) => {
            report(&node)?;
            out::line(&format!(
                "all of it was seen, in {:.0} s. The node runs on: end it with `cargo xtask demo --down`",
                begun.elapsed().as_secs_f64()
            ));
            Ok(true)
        }
        Err(error) => {
            out::line(&format!("the agent's last words:\n{}", node.last_words()));
            if args.keep {
                out::line("the node is left as it is; end it with `cargo xtask demo --down`");
            } else if let Err(error) = node.down().and_then(|()| outside.remove()) {
                out::line(&format!("the node could not be ended: {error:#}"));
            }
            Err(error)
        }
    }
}

fn down(args: &Args) -> Result<bool> {
    if !args.dir.exists() && !args.run_dir.exists() {
        out::line("there is no demo to end");
        return Ok(true);
    }
    let programs = tools::programs(Build::Plain)?;
    let (node, outside) = demo_node(args, programs)?;
    out::timed("end the pods, the agent, its helpers and containerd", || node.down())?;
    outside.remove()?;
    Ok(true)
}

/// The demo's node: Services and DNS enabled, node ports on an address of the demo's own.
fn demo_node(args: &Args, programs: PathBuf) -> Result<(Node, Outside)> {
    let mut node = Node::new(&args.dir, &args.run_dir, "demo", programs)?;
    let outside = Outside::of(&node.cgroup, &node.subnets().0);
    let (network, dns) = node.services();
    let more = [
        ["--service-cidr", &network],
        ["--cluster-dns", &dns],
        ["--node-ip", outside.node_address()],
        ["--uplink", outside.device()],
    ];
    node.agent_args =
        more.concat().into_iter().map(str::to_owned).chain(["--serve-dns".to_owned()]).collect();
    Ok((node, outside))
}

fn show(node: &Node, outside: &Outside) -> Result<()> {
    out::timed("make a network beside the node's, to ask from", || outside.make())?;
    out::timed("start containerd", || node.containerd.start())?;
    out::timed("import the image busybox:1, made from this machine's busybox", || {
        image::import_busybox(&node.containerd, &node.dir)
    })?;
    out::timed("start the agent", || node.start_agent())?;
    out::timed(
        "put the manifests of deploy/examples in place and see the pods get Ready, each step in order",
        || ready_in_order(node),
    )?;
    out::timed("fetch from both web pods by address, from the client pod", || fetch(node))?;
    out::timed("end a web server's health: its container alone is killed and started again", || {
        liveness(node)
    })?;
    services::show(node, outside)?;
    out::timed("edit the page: it reaches both running pods", || edit(node))?;
    out::timed("the pod that crashes is held back", || backs_off(node))?;
    out::timed("the pod that never gets ready says why", || never_ready(node))
}

fn apply(node: &Node, name: &str) -> Result<()> {
    let path = crate::root().join("deploy/examples").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    node.apply(name, &text)
}

/// Stage that a pod has reached; each stage requires the one before.
fn stage(pod: &Pod) -> Result<&'static str> {
    let ended = |name: &str| pod.container(name)["state"]["terminated"]["exitCode"] == 0;
    let running = |name: &str| pod.container(name)["state"]["running"].is_object();
    let started = |name: &str| pod.container(name)["started"] == true;
    let name = pod.name();
    if running("clock") {
        ensure!(ended("prepare"), "{name}: the sidecar ran before the init container had ended");
    }
    if running("web") {
        ensure!(started("clock"), "{name}: the main container ran before the sidecar had started");
    }
    if pod.ready() {
        ensure!(started("web"), "{name}: Ready before its startup probe succeeded");
        return Ok("Ready");
    }
    Ok(if running("web") {
        "web runs"
    } else if running("clock") {
        "prepare has ended, the sidecar clock runs"
    } else if running("prepare") {
        "the init container prepare runs"
    } else {
        "begun"
    })
}

fn ready_in_order(node: &Node) -> Result<()> {
    let mut watch = node.socket()?.watch()?;
    for name in EXAMPLES {
        apply(node, name)?;
    }
    let begun = Instant::now();
    let mut told: BTreeSet<(String, &str)> = BTreeSet::new();
    let mut ready: BTreeSet<String> = BTreeSet::new();
    let mut wrong = None;
    watch.until("the web pods and the client are Ready", PATIENCE, |change| {
        let Change::Pod(pod) = change else { return false };
        let name = pod.name();
        if name.starts_with("default/web-") {
            match stage(pod) {
                Ok(stage) => {
                    if told.insert((name.clone(), stage)) {
                        out::line(&format!("    {:6.2} s  {name}: {stage}", begun.elapsed().as_secs_f64()));
                    }
                }
                Err(error) => wrong = Some(error),
            }
        }
        if pod.ready() && ready.insert(name.clone()) && !name.starts_with("default/web-") {
            out::line(&format!("    {:6.2} s  {name}: Ready", begun.elapsed().as_secs_f64()));
        }
        wrong.is_some()
            || ["default/web-a", "default/web-b", "default/client"].iter().all(|n| ready.contains(*n))
    })?;
    wrong.map_or(Ok(()), Err)
}

const WEB: [&str; 2] = ["default/web-a", "default/web-b"];

/// Fetches a page of a web pod from the client pod.
fn get(node: &Node, pod: &str, path: &str) -> Result<String> {
    let pods = node.pods()?;
    let ip = pods
        .get(pod)
        .map(Pod::ip)
        .filter(|ip| !ip.is_empty())
        .with_context(|| format!("{pod} has no address"))?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    node.exec(
        "default/client/client",
        &["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{host}:8080{path}")],
    )
}

fn fetch(node: &Node) -> Result<()> {
    for pod in WEB {
        let page = get(node, pod, "/page/index.html")?;
        ensure!(page.contains("<h1>"), "{pod} serves {page:?}");
        let prepared = get(node, pod, "/live/prepared.txt")?;
        let name = pod.trim_start_matches("default/");
        ensure!(prepared.contains(&format!("prepared by {name}")), "{pod} serves {prepared:?}");
        out::line(&format!("    {pod}: {} / {}", page.trim(), prepared.trim()));
    }
    Ok(())
}

fn liveness(node: &Node) -> Result<()> {
    let pod = WEB[0];
    let before = node.ready(pod)?;
    let restarts = before.restarts("web");
    node.exec("default/web-a/web", &["rm", "/www/live/healthy"])?;
    let after = node.pod("has its web server restarted and is Ready again", pod, PATIENCE, |p| {
        p.restarts("web") > restarts && p.ready()
    })?;
    ensure!(
        after.processes().get("clock") == before.processes().get("clock"),
        "the sidecar was restarted with the web server"
    );
    out::line(&format!(
        "    {pod}: restart {}, the last run ended with code {}",
        after.restarts("web"),
        after.exit_code("web").map_or_else(|| "?".into(), |c| c.to_string())
    ));
    get(node, pod, "/page/index.html").map(drop)
}

fn edit(node: &Node) -> Result<()> {
    let file = node.manifests().join("web.yaml");
    let text = fs::read_to_string(&file)?;
    let now = format!("<h1>Edited at {:?}</h1>", std::time::SystemTime::now());
    let line =
        text.lines().find(|l| l.contains("<h1>")).context("the manifest has no page")?.trim().to_owned();
    let before: Vec<_> = WEB.iter().map(|pod| Ok(node.ready(pod)?.processes())).collect::<Result<_>>()?;
    node.apply("web.yaml", &text.replace(&line, &now))?;
    let begun = Instant::now();
    for pod in WEB {
        wait::ok(&format!("{pod} serves the new page"), PATIENCE, || {
            let page = get(node, pod, "/page/index.html")?;
            ensure!(page.trim() == now, "it serves {page:?}");
            Ok(())
        })?;
        out::line(&format!("    {pod} serves it after {:.2} s", begun.elapsed().as_secs_f64()));
    }
    for (pod, before) in WEB.iter().zip(before) {
        ensure!(node.ready(pod)?.processes() == before, "{pod} was restarted for it");
    }
    Ok(())
}

fn backs_off(node: &Node) -> Result<()> {
    let pod = node.pod("waits in CrashLoopBackOff after its second run", "default/crash", BACK_OFF, |p| {
        p.restarts("crash") >= 1 && p.container("crash")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    ensure!(pod.exit_code("crash") == Some(3), "exit code {:?}", pod.exit_code("crash"));
    let last = &pod.container("crash")["lastState"]["terminated"];
    ensure!(
        last["message"].as_str().is_some_and(|m| m.trim() == "the cause"),
        "its termination message is not there: {last}"
    );
    out::line(&format!(
        "    default/crash: {} restarts, {}",
        pod.restarts("crash"),
        pod.waiting_for().trim()
    ));
    Ok(())
}

fn never_ready(node: &Node) -> Result<()> {
    let pod = node.pod("runs and is not Ready", "default/never-ready", PATIENCE, |p| {
        p.phase() == "Running"
            && !p.ready()
            && p.condition("ContainersReady") == "False"
            && !p.waiting_for().is_empty()
    })?;
    out::line(&format!("    default/never-ready: {}", pod.waiting_for().trim()));
    let told = node.berth(&["describe", "pod", "default/never-ready"])?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(told.status.success() && text.contains("readiness"), "berth describe says: {text}");
    Ok(())
}

/// Output of `berth pods`.
fn report(node: &Node) -> Result<()> {
    let told = node.berth(&["pods"])?;
    // Exit code 1 means that a pod is not well, which is expected here.
    let code = told.status.code();
    ensure!(
        matches!(code, Some(0 | 1)),
        "berth pods: {} {}",
        told.status,
        String::from_utf8_lossy(&told.stderr)
    );
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    for name in ["web-a", "web-b", "client", "crash", "never-ready"] {
        ensure!(text.contains(name), "berth pods does not tell of {name}:\n{text}");
    }
    out::line("$ berth pods");
    text.lines().for_each(out::line);
    out::line(&format!(
        "try: {} --roots {} pods",
        node.programs.join("berth").display(),
        relative(&node.roots_file()).display()
    ));
    Ok(())
}

fn relative(path: &Path) -> PathBuf {
    std::env::current_dir().ok().and_then(|d| path.strip_prefix(d).ok()).unwrap_or(path).to_path_buf()
}

fn still_well(node: &Node) -> Result<()> {
    let pods = node.pods()?;
    for name in ["default/web-a", "default/web-b", "default/client"] {
        let Some(pod) = pods.get(name) else { bail!("{name} is not there") };
        ensure!(pod.ready(), "{name} is not Ready: {}", pod.waiting_for());
    }
    fetch(node)
}
