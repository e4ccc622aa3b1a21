//! `cargo xtask takeover`: Berth takes the place of kube-proxy on a node of the real kubelet and gives it back, under new
//! connections and datagrams from a pod, from the node and from another machine. None may fail.

use crate::{
    cluster::{self, AGENT, Audit, BERTH_IMAGES, Cluster, Cni, Etcd, KUBE_PROXY, Node, Options, ProxyMode},
    out,
};
use anyhow::{Context, Result, ensure};
use berth_harness::{image::BUSYBOX, tools, wait};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longest wait for a step of the take-over.
const STEP: Duration = Duration::from_secs(60);

/// Time for which nothing changes between two steps.
const CALM: Duration = Duration::from_secs(2);

/// Pods behind the Service: the server of each accepts nine connections that it has not begun to serve.
const PODS: usize = 8;

/// Ports of the node: of the web servers, and of the cluster's DNS over TCP.
const NODE_PORT: u16 = 30080;
const DNS_NODE_PORT: u16 = 30053;

const WEB: &str = include_str!("takeover/web.yaml");

/// Options of `cargo xtask takeover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often Berth takes over and gives back.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How often the agent is killed and started again in each round.
    #[arg(long, default_value_t = 2)]
    upgrades: usize,
    /// New connections and datagrams a second of each client.
    #[arg(long, default_value_t = 50)]
    per_second: u32,
    /// How kube-proxy carries Services.
    #[arg(long, value_enum, default_value = "nftables")]
    proxy_mode: ProxyMode,
    /// How pods are attached.
    #[arg(long, value_enum, default_value = "ptp")]
    cni: Cni,
    /// Take over by `deploy/daemonset/services.yaml` and an image, as users do, and upgrade by a rollout; without it the
    /// agent is a process of the node, which is killed.
    #[arg(long)]
    daemon_set: bool,
    /// Directory of the cluster's files; `berth/takeover` of the cache directory where none is named.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the cluster running where it failed.
    #[arg(long)]
    keep: bool,
}

/// Runs the rounds. Returns whether nothing failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let dir = tools::dir_or_cached(args.dir.as_deref(), "takeover")?;
    let load = tools::load()?;
    let options = Options {
        keep: args.keep,
        proxy_mode: args.proxy_mode,
        cni: args.cni,
        ..Options::new(Node::Kubelet, Etcd::Old, Audit::ToNodes)
    };
    let cluster = cluster::start(&dir, &options)?;
    let done = rounds(&cluster, &load, args);
    if args.keep && !matches!(done, Ok(true)) {
        return done;
    }
    let ended = cluster.end();
    done.and_then(|good| ended.map(|()| good))
}

fn rounds(cluster: &Cluster, load: &Path, args: &Args) -> Result<bool> {
    if args.daemon_set {
        cluster.import_berth()?;
    }
    cluster.apply("web", &WEB.replace("IMAGE", BUSYBOX))?;
    cluster.kubectl(&["rollout", "status", "deployment", "web", "--timeout=60s"])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "client", "--timeout=60s"])?;
    let stage = Stage {
        load,
        pod: pod_network(&cluster.kubectl(&["get", "pod", "client", "-o", "jsonpath={.metadata.uid}"])?)?,
        cluster_ip: cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?,
        cluster,
        args,
    };
    let mut good = true;
    for round in 1..=args.rounds {
        let (said, failed) = stage.round().with_context(|| format!("round {round}"))?;
        out::line(&format!("round {round}: {said}"));
        good &= !failed;
    }
    Ok(good)
}

/// The network namespace of a pod, by a process of its cgroup.
pub(crate) fn pod_network(uid: &str) -> Result<PathBuf> {
    let uid = uid.trim();
    let processes = fs::read_dir("/proc").context("cannot read /proc")?.flatten().map(|entry| entry.path());
    let mut of_pod = processes
        .filter(|process| fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(uid)));
    Ok(of_pod.next().context("the pod has no process")?.join("ns/net"))
}

struct Stage<'a> {
    cluster: &'a Cluster,
    load: &'a Path,
    pod: PathBuf,
    cluster_ip: String,
    args: &'a Args,
}

impl Stage<'_> {
    /// Berth takes over, is killed and started again, and gives back. Returns what became of the load, and whether any of
    /// it failed.
    fn round(&self) -> Result<(String, bool)> {
        self.until("kube-proxy's rules are there", || self.carried())?;
        let clients = self.clients()?;
        let begun = Instant::now();
        let step = |what: &str| out::line(&format!("{:6.1} s: {what}", begun.elapsed().as_secs_f32()));
        thread::sleep(CALM);
        step("Berth is started");
        self.take_over()?;
        step("Berth answers");
        thread::sleep(CALM);
        step("kube-proxy is killed");
        self.cluster.kill(KUBE_PROXY)?;
        self.until("kube-proxy's rules are removed", || Ok(!self.rules()?))?;
        step("kube-proxy's rules are removed");
        for upgrade in 0..self.args.upgrades {
            thread::sleep(CALM);
            step("an upgrade begins");
            self.upgrade(upgrade)?;
            step("an upgrade is done");
        }
        thread::sleep(CALM);
        step("kube-proxy is started");
        self.cluster.start(KUBE_PROXY)?;
        self.until("kube-proxy's rules are there", || self.carried())?;
        thread::sleep(CALM);
        step("kube-proxy's rules are there; Berth is removed");
        self.give_back()?;
        step("Berth is gone");
        thread::sleep(CALM);
        let (mut told, mut failed) = (Vec::new(), false);
        for (name, mut client) in clients {
            // The end of its input ends the client early, so it is held.
            let done = wait::some(&format!("the client {name} ends"), 2 * STEP, || {
                client.try_wait().ok().flatten()
            })?;
            ensure!(done.success(), "the client {name} failed");
            let said = std::io::read_to_string(client.stdout.take().context("no output")?)?;
            let all: BTreeMap<String, serde_json::Value> =
                serde_json::from_str(&said).with_context(|| format!("{name} said {said}"))?;
            for (target, result) in all {
                failed |= result["failed"].as_object().is_none_or(|failures| !failures.is_empty());
                told.push(format!("{name} {target} {result}"));
            }
        }
        Ok((told.join("; "), failed))
    }

    /// Berth answers, beside kube-proxy.
    fn take_over(&self) -> Result<()> {
        if self.args.daemon_set {
            return self.cluster.roll_out_daemon_set();
        }
        self.cluster.start_services()?;
        self.until("Berth answers", || Ok(self.cluster.agent_status()?.contains("\"answered\"")))
    }

    /// The agent is replaced: by one of another image, or it is killed and started again.
    fn upgrade(&self, number: usize) -> Result<()> {
        if self.args.daemon_set {
            let [old, new] = BERTH_IMAGES;
            return self.cluster.upgrade_daemon_set(if number.is_multiple_of(2) { new } else { old });
        }
        self.cluster.kill(AGENT)?;
        thread::sleep(CALM);
        self.cluster.start(AGENT)
    }

    /// The agent ends, and its programs are removed.
    fn give_back(&self) -> Result<()> {
        if self.args.daemon_set {
            return self.cluster.remove_daemon_set();
        }
        self.cluster.kill(AGENT)?;
        self.cluster.reset_services()
    }

    /// Time of a round's load in seconds.
    fn seconds(&self) -> u64 {
        let (steps, upgrade) = if self.args.daemon_set { (50, 12) } else { (26, 5) };
        steps + upgrade * self.args.upgrades as u64
    }

    fn clients(&self) -> Result<Vec<(&'static str, Child)>> {
        let web = format!("http:{}:80", self.cluster_ip.trim());
        let dns = |kind: &str| format!("{kind}:{}:53", cluster::DNS);
        let node_port = format!("http:{}:{NODE_PORT}", self.cluster.address()?);
        let kept_node_port = format!("dns-stream:{}:{DNS_NODE_PORT}", self.cluster.address()?);
        let host = self.cluster.namespace("net");
        let of_node = self.cluster.hooked_cgroup()?;
        Ok(vec![
            (
                "pod",
                self.client(
                    Some((&self.pod, &of_node)),
                    &[web.clone(), dns("dns"), dns("dns-kept"), dns("dns-stream")],
                )?,
            ),
            (
                "node",
                self.client(
                    Some((&host, &of_node)),
                    &[web, dns("dns"), dns("dns-stream"), node_port.clone()],
                )?,
            ),
            // The machine of the test is another one to the node's network.
            ("outside", self.client(None, &[node_port, kept_node_port])?),
        ])
    }

    /// A client in a network namespace and a cgroup; without them in those of the test.
    fn client(&self, place: Option<(&Path, &Path)>, targets: &[String]) -> Result<Child> {
        let mut command = Command::new(self.load);
        if let Some((net, group)) = place {
            command.arg("--netns").arg(net).arg("--cgroup").arg(group);
        }
        command.args(["connections", "--seconds", &self.seconds().to_string()]);
        command.args(["--per-second", &self.args.per_second.to_string()]);
        for target in targets {
            command.args(["--to", target]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().context("cannot start berth-load")
    }

    /// Whether kube-proxy has rules in the node's network.
    fn rules(&self) -> Result<bool> {
        Ok(match self.args.proxy_mode {
            ProxyMode::Nftables => self.cluster.run(&["nft", "list", "tables"])?.contains("kube-proxy"),
            ProxyMode::Iptables => self.cluster.run(&["iptables-save"])?.contains("KUBE-SERVICES"),
        })
    }

    /// Whether kube-proxy's rules have every endpoint: it makes its table before it knows them.
    fn carried(&self) -> Result<bool> {
        if !self.rules()? {
            return Ok(false);
        }
        if self.args.proxy_mode == ProxyMode::Iptables {
            let rules = self.cluster.run(&["iptables-save", "-t", "nat"])?;
            let of_endpoints =
                rules.lines().filter(|l| l.starts_with("-A KUBE-SVC-") && l.contains("\"default/web -> "));
            return Ok(of_endpoints.count() == PODS);
        }
        let table = self.cluster.run(&["nft", "list", "table", "ip", "kube-proxy"])?;
        let chain = table.split("chain ").find(|chain| {
            chain
                .lines()
                .next()
                .is_some_and(|name| name.starts_with("service-") && name.contains("-default/web/"))
        });
        Ok(chain.is_some_and(|chain| chain.contains(&format!("mod {PODS} "))))
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        wait::ok(what, STEP, || {
            ensure!(holds()?, "not yet");
            Ok(())
        })
    }
}
