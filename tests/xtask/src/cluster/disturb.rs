//! What suites do to a running cluster, and what they ask of it.

use super::{
    Cluster,
    audit::{AUDIT, Asked, AuditLog},
    berth,
    control_plane::{GOAWAY, SIGNING},
    fault_proxy::FaultProxy,
    look::Look,
};
use crate::setup::succeed;
use anyhow::{Context, Result, ensure};
use berth_harness::{
    cgroup,
    process::Process,
    tools::Build,
    wait::{self, PATIENCE},
};
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

/// Name of the agent among the daemons.
pub(crate) const AGENT: &str = berth::DAEMON;

/// Name of the API server among the daemons.
pub(crate) const API_SERVER: &str = "kube-apiserver";

/// Name of kube-proxy among the daemons.
pub(crate) const KUBE_PROXY: &str = "kube-proxy";

/// Deadline of an answer of a pod.
const ANSWER: Duration = Duration::from_secs(5);

/// Port of the API server.
const API_PORT: u16 = 6443;

impl Cluster {
    /// Runs kubectl as the administrator and returns its standard output.
    ///
    /// # Errors
    /// kubectl fails.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl.run(args)
    }

    /// Starts `kubectl proxy` on a free port, by which the administrator's requests need no encryption. Its first line of
    /// output ends in its address.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn kubectl_proxy(&self) -> Result<Child> {
        self.kubectl.proxy()
    }

    /// Applies a manifest, which stays in the cluster's directory under this name.
    ///
    /// # Errors
    /// The API server refuses it.
    pub(crate) fn apply(&self, name: &str, manifest: &str) -> Result<()> {
        self.kubectl.apply(&self.place.write(&format!("manifests/{name}.yaml"), manifest)?)
    }

    /// What the API server says of all pods, EndpointSlices and nodes.
    ///
    /// # Errors
    /// The API server does not answer.
    pub(crate) fn look(&self) -> Result<Look> {
        Look::read(&self.kubectl(&["get", "pods,endpointslices,nodes", "-A", "-o", "json"])?)
    }

    /// The requests in the audit log from now on.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn audit(&self) -> Result<AuditLog> {
        AuditLog::from_now(self.file(AUDIT))
    }

    /// The process of a daemon; `None` where it does not run.
    pub(crate) fn daemon(&self, name: &str) -> Option<Process> {
        self.world.process(name)
    }

    /// Number of the cgroups of the cluster.
    pub(crate) fn cgroups(&self) -> usize {
        cgroup::groups(&self.place.cgroup).iter().map(|group| below(group)).sum()
    }

    /// Connects a network namespace of this machine to the node, as another machine of the cluster's network.
    ///
    /// # Errors
    /// `ip` fails.
    pub(crate) fn connect(&self, netns: &str) -> Result<()> {
        let init = self.world.init().pid.to_string();
        let ip = |words: &str| succeed(Command::new("ip").args(words.split(' ')));
        ip(&format!("-n {netns} link add node type veth peer name others netns {init}"))?;
        ip(&format!("-n {netns} addr add 198.18.255.1/30 dev node"))?;
        ip(&format!("-n {netns} link set node up"))?;
        self.run(&["ip", "addr", "add", "198.18.255.2/30", "dev", "others"])?;
        self.run(&["ip", "link", "set", "others", "up"])?;
        ip(&format!("-n {netns} route add default via 198.18.255.2"))
    }

    /// A namespace of the cluster, such as `net`.
    pub(crate) fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.world.init().pid).into()
    }

    /// The cgroup to whose sockets the agent's hooks are attached.
    ///
    /// # Errors
    /// The machine has no cgroup2 hierarchy.
    pub(crate) fn hooked_cgroup(&self) -> Result<PathBuf> {
        let v2 = cgroup::v2().context("this machine has no cgroup2 hierarchy")?;
        Ok(v2.join(&self.place.cgroup).join("system"))
    }

    /// Starts the agent for the Services of the node, whose pods a kubelet runs.
    ///
    /// # Errors
    /// The agent does not start.
    pub(crate) fn start_services(&self) -> Result<()> {
        berth::start_services(&self.world, &self.place, Build::Plain)
    }

    /// Removes the hooks and tables of an agent that does not run.
    ///
    /// # Errors
    /// `berth reset` fails.
    pub(crate) fn reset_services(&self) -> Result<()> {
        berth::reset_services(&self.world, &self.place, Build::Plain)
    }

    /// Address of the node and of the API server.
    ///
    /// # Errors
    /// It is no address.
    pub(crate) fn address(&self) -> Result<IpAddr> {
        self.place.address.parse().context("cannot read the cluster's address")
    }

    /// Kills a daemon by SIGKILL.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        self.world.kill(name)
    }

    /// Starts a daemon that was killed.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start(&self, name: &str) -> Result<()> {
        self.world.start(name)
    }

    /// Starts the API server, which does not run, with another chance of GOAWAY.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start_api_server_with_goaway(&self, chance: f64) -> Result<()> {
        self.world.start_with(API_SERVER, GOAWAY, &chance.to_string())
    }

    /// Starts the controllers, which do not run, with another life of the certificates that they sign.
    ///
    /// # Errors
    /// They do not start.
    pub(crate) fn start_controllers_with_signing_duration(&self, life: &str) -> Result<()> {
        self.world.start_with("kube-controller-manager", SIGNING, life)
    }

    /// What `berth status` says of the node, as JSON.
    ///
    /// # Errors
    /// There is no program or no agent. A node with problems is no error.
    pub(crate) fn agent_status(&self) -> Result<String> {
        let berth = self.place.dir.join("processes/berth.command");
        let text = fs::read_to_string(&berth).with_context(|| format!("cannot read {}", berth.display()))?;
        let words: Vec<String> = serde_json::from_str(&text).context("cannot read the agent's command")?;
        let mut command = self.world.enter()?;
        command.args(words.iter().take_while(|word| *word != "agent")).args(["status", "-o", "json"]);
        let out = command.output().context("cannot run berth status")?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The kubeconfig that a node writes when it bootstraps.
    pub(crate) fn node_kubeconfig(&self) -> PathBuf {
        berth::written_kubeconfig(&self.place)
    }

    /// Waits until the API server answers.
    ///
    /// # Errors
    /// It ended, or does not get ready in time.
    pub(crate) fn api_server_ready(&self) -> Result<()> {
        self.world.ready(API_SERVER, || self.kubectl(&["get", "--raw", "/readyz"]).map(drop))
    }

    /// Waits until the agent, which was started, runs. `before` is its number of starts in its log before.
    ///
    /// # Errors
    /// It ended, or does not say so in time.
    pub(crate) fn agent_runs(&self, before: usize) -> Result<()> {
        let done = || {
            ensure!(self.agent_starts()? > before, "the agent's log does not say that it runs");
            Ok(())
        };
        self.world.ready(AGENT, done)
    }

    /// How often the agent's log says that the agent runs.
    ///
    /// # Errors
    /// The log cannot be read.
    pub(crate) fn agent_starts(&self) -> Result<usize> {
        let log = self.place.log(AGENT);
        let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(text.lines().filter(|line| line.contains("agent runs")).count())
    }

    /// Starts a proxy before the API server, and the agent anew behind it.
    ///
    /// # Errors
    /// The proxy cannot listen, or the agent does not start.
    pub(crate) fn put_proxy_before_agent(&self) -> Result<FaultProxy> {
        let proxy = FaultProxy::start(&self.place.host, SocketAddr::new(self.address()?, API_PORT))?;
        let path = self.place.kubeconfig("node");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let direct = format!("server: {}\n", self.place.server());
        ensure!(text.contains(&direct), "{} does not name the API server", path.display());
        let behind =
            format!("server: https://{}\n    tls-server-name: {}\n", proxy.address(), self.place.address);
        self.kill(AGENT)?;
        self.place.write("node.kubeconfig", &text.replace(&direct, &behind))?;
        let before = self.agent_starts()?;
        self.start(AGENT)?;
        self.agent_runs(before)?;
        Ok(proxy)
    }

    /// Waits until the nodes send nothing but their own leases and statuses between two renewals of a lease. Returns
    /// all requests since the last reading of `log`.
    ///
    /// # Errors
    /// They go on to send; the message names the last requests.
    pub(crate) fn quiet(&self, log: &mut AuditLog) -> Result<Vec<Asked>> {
        let (mut all, mut clean) = (Vec::new(), false);
        wait::ok("the node sends nothing but its lease", 2 * PATIENCE, || {
            for asked in log.news()? {
                let renews = asked.resource == "leases" && asked.verb == "update" && asked.code == 200;
                let is_own = asked.is_of_the_node();
                all.push(asked);
                if renews && clean {
                    return Ok(());
                }
                clean = (renews || clean) && is_own;
            }
            let last: Vec<_> = all.iter().rev().filter(|a| !a.is_of_the_node()).take(5).collect();
            anyhow::bail!("the last requests: {last:?}")
        })?;
        all.extend(log.news()?);
        Ok(all)
    }

    /// Answer of a web server, asked from this machine.
    ///
    /// # Errors
    /// No answer.
    pub(crate) fn http(&self, address: SocketAddr) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(ANSWER)).context("cannot set a deadline")?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").context("cannot send a request")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).with_context(|| format!("cannot read the answer of {address}"))?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
        ensure!(text.contains(" 200 "), "{address} answers {text:?}");
        body.context("an answer without an end of its headers")
    }
}

/// Number of a cgroup and of those below it.
fn below(group: &Path) -> usize {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    1 + entries.filter(|entry| entry.path().is_dir()).map(|entry| below(&entry.path())).sum::<usize>()
}
