//! The node inside the machine: containerd's stock network, the agent with few options, a few pods.

use super::machine;
use anyhow::{Context, Result, ensure};
use berth_core::{ids::NodeName, roots::Roots};
use berth_harness::{containerd::Containerd, image, node::Node, tools};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

/// The conflist that containerd's own scripts install.
const CONFLIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "containerd-net",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:db8:4860::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Manifests of a web server in the pod network with a host port, a web server in the host's network, and a
/// client.
fn manifests() -> String {
    let pod = |name: &str, more: &str, command: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{more}\
             \x20 containers:\n  - name: main\n    image: {}\n    command: [sh, -c, \"{command}\"]\n",
            image::BUSYBOX
        )
    };
    let serve = |name: &str, port: u16| {
        format!("mkdir /www; echo {name} > /www/index.html; exec httpd -f -p {port} -h /www")
    };
    let ready = |port: u16| format!("    readinessProbe: {{httpGet: {{port: {port}}}, periodSeconds: 1}}\n");
    let service = |name: &str, address: &str, port: u16, node_port: u16| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: NodePort\n  clusterIP: {address}\n  selector: {{app: {name}}}\n  \
             ports:\n  - {{port: 80, targetPort: {port}, nodePort: {node_port}}}\n"
        )
    };
    let host = "  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet\n";
    [
        pod("web", "", &serve("web", 8080))
            + "    ports: [{containerPort: 8080, hostPort: 8088}]\n"
            + &ready(8080),
        pod("on-host", host, &serve("on-host", 9090)) + &ready(9090),
        pod("client", "", "exec sleep 100000"),
        service("web", "10.96.0.50", 8080, 30080),
        service("on-host", "10.96.0.51", 9090, 30081),
    ]
    .concat()
}

/// A node with the default roots, in namespaces of its own.
pub(crate) struct Production {
    pub(crate) node: Node,
}

impl Production {
    pub(crate) fn new() -> Result<Production> {
        let roots = Roots::defaults(NodeName::new("production").context("a name")?);
        let socket = roots.containerd_socket.parent().context("containerd's directory")?;
        let containerd = Containerd::new(socket, &PathBuf::from("/run/s"), &roots.containerd_namespace)?;
        let node = Node {
            dir: "/var/lib/berth-test".into(),
            containerd,
            cgroup: "kubepods".to_owned(),
            programs: machine::programs()?,
            agent_env: BTreeMap::new(),
            agent_args: ["--serve-dns", "--cluster-dns", "10.96.0.10", "--masquerade"]
                .map(String::from)
                .into(),
            roots,
        };
        for dir in [&node.manifests(), &node.roots.cni_conf, &node.roots.cni_bin] {
            fs::create_dir_all(dir)?;
        }
        node.write_roots()?;
        fs::write(node.roots.cni_conf.join("10-containerd-net.conflist"), CONFLIST)?;
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            std::os::unix::fs::symlink(tools::find(plugin)?, node.roots.cni_bin.join(plugin))?;
        }
        fs::remove_file("/etc/resolv.conf")
            .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        fs::write("/etc/resolv.conf", "nameserver 192.0.2.53\n")?;
        Ok(Production { node })
    }

    pub(crate) fn start_containerd(&self) -> Result<()> {
        self.node.containerd.start()?;
        image::import_busybox(&self.node.containerd, &self.node.dir)
    }

    pub(crate) fn start_agent(&self) -> Result<()> {
        self.node.start_agent().map(drop)
    }

    pub(crate) fn apply_all(&self) -> Result<()> {
        self.node.apply("all.yaml", &manifests())
    }

    /// Problems of the node that `berth status` lists, without those of pods, one per line.
    pub(crate) fn problems(&self) -> Result<String> {
        let out = self.node.berth(&["status", "-o", "json"])?;
        let page: Value = serde_json::from_slice(&out.stdout).context("read the status page")?;
        let problems = page["problems"].as_array().context("problems")?;
        let told = problems.iter().filter_map(Value::as_str).filter(|p| !p.starts_with("pod "));
        Ok(told.collect::<Vec<_>>().join("\n"))
    }

    /// Ends pods, agent and helpers in order. The machine's namespaces take the rest.
    pub(crate) fn end(&self) -> Result<()> {
        self.node.end_pods()?;
        self.node.stop_agent()?;
        let reset = self.node.berth(&["reset"])?;
        ensure!(reset.status.success(), "berth reset: {}", String::from_utf8_lossy(&reset.stderr).trim());
        for role in ["probe-exec", "logd", "dns"] {
            for helper in self.node.helpers(role) {
                helper.terminate(Duration::from_secs(5))?;
            }
        }
        self.node.containerd.stop()
    }
}
