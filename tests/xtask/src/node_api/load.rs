//! `cargo xtask node-api --load`: what a node's API has to bear. Clients of `berth-load` run in a network namespace of
//! their own beside a cluster of this run's own: commands at a fixed rate, clients that vanish, slow ones, and bytes of
//! any shape. After each the agent is as it was: no panic, and no descriptor, process, file or cgroup more.

mod count;

use crate::{
    cluster::{self, Audit, Cluster, Etcd, Node, Options},
    out,
};
use anyhow::{Context, Result, bail, ensure};
use berth_harness::{image::BUSYBOX, netns::Netns, rng, tools, wait};
use count::Count;
use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest wait until the agent is as it was. TCP finds out that a client has vanished after two and a half minutes.
const SETTLE: Duration = Duration::from_secs(300);

/// Commands before the first count, so that pools and caches are filled.
const WARM: &str = "5";

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: load}\nspec:\n  containers:\n  - name: c\n    image: IMAGE\n    \
    imagePullPolicy: Never\n    stdin: true\n    command: [sh, -c, \"httpd -f -p 80 -h /bin & l=$(head -c 1000 /dev/zero | tr '\\\\0' x); \
    while :; do echo $l; usleep 20000; done\"]\n";

/// Options of the load.
#[derive(Debug, clap::Args)]
pub(super) struct LoadArgs {
    /// Load the node's API of Berth instead of comparing it.
    #[arg(long)]
    pub(super) load: bool,
    /// Run only these loads: exec, vanish, slow, fuzz.
    #[arg(long, value_name = "NAME", requires = "load")]
    only: Vec<String>,
    /// Duration of each load but `vanish`; that of the fuzzer is cut in three.
    #[arg(long, default_value_t = 600, value_name = "SECONDS", requires = "load")]
    seconds: u64,
    /// Commands a second.
    #[arg(long, default_value_t = 100, value_name = "N", requires = "load")]
    per_second: u64,
    /// Clients that vanish.
    #[arg(long, default_value_t = 200, value_name = "N", requires = "load")]
    vanish: u64,
}

struct Stage<'a> {
    cluster: &'a Cluster,
    load: PathBuf,
    /// The clients' network.
    net: Netns,
    args: &'a LoadArgs,
}

type Load = fn(&Stage<'_>) -> Result<String>;

const LOADS: [(&str, Load); 4] = [
    ("exec", |stage| stage.exec()),
    ("vanish", |stage| stage.vanish()),
    ("slow", |stage| stage.slow()),
    ("fuzz", |stage| stage.fuzz()),
];

/// Runs the loads, and returns whether the agent was as before after each.
pub(super) fn run(args: &LoadArgs, dir: &Path, keep: bool) -> Result<bool> {
    let names = LOADS.map(|(name, _)| name);
    if let Some(name) = args.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no load {name}; there are: {}", names.join(", "));
    }
    let load = tools::load()?;
    let options = Options { keep, ..Options::new(Node::Berth, Etcd::Old, Audit::ToNodes) };
    let cluster = cluster::start(dir, &options)?;
    let done = loads(args, &cluster, load);
    if keep && !matches!(done, Ok(true)) {
        return done;
    }
    cluster.end()?;
    done
}

fn loads(args: &LoadArgs, cluster: &Cluster, load: PathBuf) -> Result<bool> {
    let net = Netns::unique("load")?;
    cluster.connect(net.name())?;
    cluster.apply("load", &POD.replace("IMAGE", BUSYBOX))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/load", "--timeout=60s"])?;
    let stage = Stage { cluster, load, net, args };
    stage.told(&["exec", "--seconds", WARM, "--per-second", "10"])?;
    let mut good = true;
    for (name, load) in LOADS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        let before = Count::now(cluster)?;
        let done = out::timed(name, || load(&stage))?;
        out::line(&format!("{name}: {done}"));
        let peak = Count::now(cluster)?;
        let began = Instant::now();
        let settled = wait::ok("the agent is as it was", SETTLE, || before.is_reached(cluster));
        let after = Count::now(cluster)?;
        let took = began.elapsed().as_secs();
        out::line(&format!("{name}: before {before}; at the end {peak}; after {took} s {after}"));
        if let Err(error) = settled {
            out::line(&format!("{name}: failed: {error:#}"));
            good = false;
        }
    }
    Ok(good)
}

impl Stage<'_> {
    /// A command of `berth-load node` with the API server's certificate.
    fn client(&self, words: &[&str], within: bool) -> Result<Command> {
        let pki = |name: &str| self.cluster.file(&format!("pki/{name}"));
        let mut command = Command::new(&self.load);
        if within {
            command.arg("--netns").arg(self.net.path());
        }
        command.arg("node").args(words);
        command.arg("--address").arg(format!("{}:{}", self.cluster.address()?, super::PORT));
        command.arg("--ca").arg(pki("ca.crt")).arg("--cert").arg(pki("apiserver-kubelet-client.crt"));
        command.arg("--key").arg(pki("apiserver-kubelet-client.key"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }

    /// What clients tell when they have done their work.
    fn told(&self, words: &[&str]) -> Result<String> {
        told(self.client(words, true)?.spawn().context("cannot start berth-load")?)
    }

    fn exec(&self) -> Result<String> {
        let (seconds, rate) = (self.args.seconds.to_string(), self.args.per_second.to_string());
        let said = self.told(&["exec", "--seconds", &seconds, "--per-second", &rate])?;
        ensure!(said.contains("\"failed\":{}"), "commands failed: {said}");
        Ok(said)
    }

    fn vanish(&self) -> Result<String> {
        let number = self.args.vanish.to_string();
        let mut clients = self
            .client(&["vanish", "--connections", &number], true)?
            .spawn()
            .context("cannot start berth-load")?;
        let mut said = String::new();
        BufReader::new(clients.stdout.take().context("no output")?).read_line(&mut said)?;
        let reached = Count::now(self.cluster)?;
        // Nothing of the clients' end gets out, and nothing gets in that the kernel would answer.
        self.net.nft(
            "table inet vanished {\n chain out { type filter hook output priority 0; policy drop; }\n \
             chain in { type filter hook input priority 0; policy drop; }\n}\n",
        )?;
        drop(clients.stdin.take());
        clients.wait().context("cannot wait for berth-load")?;
        ensure!(!said.is_empty(), "the clients did not get to their states");
        let gone = wait::ok("the clients are forgotten", SETTLE, || {
            let now = Count::now(self.cluster)?;
            // Those who know nothing yet may be gone sooner; everything else is there until TCP finds out.
            ensure!(now.descriptors < reached.descriptors / 2, "{now}");
            Ok(())
        });
        self.net.nft("delete table inet vanished\n")?;
        gone?;
        Ok(format!("{}; reached {reached}", said.trim()))
    }

    fn slow(&self) -> Result<String> {
        let seconds = self.args.seconds.to_string();
        let clients = self.client(&["slow", "--seconds", &seconds], true)?.spawn();
        let clients = clients.context("cannot start berth-load")?;
        // Whoever comes from elsewhere is served as ever.
        let words = ["exec", "--seconds", &seconds, "--per-second", "1", "--at-once", "4"];
        let others = told(self.client(&words, false)?.spawn().context("cannot start berth-load")?)?;
        let said = told(clients)?;
        ensure!(others.contains("\"failed\":{}"), "commands beside them failed: {others}; {said}");
        Ok(format!("{said}; commands beside them: {others}"))
    }

    fn fuzz(&self) -> Result<String> {
        let mut said = Vec::new();
        for part in 0..3 {
            let seconds = (self.args.seconds / 3).max(1).to_string();
            let mut fuzzer = self.client(&["fuzz", "--seconds", &seconds], true)?;
            fuzzer.env("BERTH_SEED", (rng::seed().wrapping_add(part)).to_string());
            said.push(told(fuzzer.spawn().context("cannot start berth-load")?)?);
        }
        Ok(said.join("; "))
    }
}

/// The last line of clients that have done their work.
fn told(mut clients: Child) -> Result<String> {
    // They end where their standard input does.
    let _input = clients.stdin.take();
    let done = clients.wait_with_output().context("cannot wait for berth-load")?;
    ensure!(done.status.success(), "berth-load: {}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}
