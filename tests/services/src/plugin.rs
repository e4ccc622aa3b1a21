//! Pods without containers: namespaces that a CNI plugin attaches.

use crate::netns::{Netns, mac, tell};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A network: a plugin, its configuration, and the node that it attaches pods to.
#[derive(Debug)]
pub struct Network<'a> {
    /// The node's namespace.
    pub node: &'a Netns,
    /// The directory of the plugin, and of those that it calls.
    pub plugins: PathBuf,
    /// The configuration that it reads.
    pub config: Value,
}

/// A pod's namespace, attached until this value goes.
#[derive(Debug)]
pub struct Pod<'a> {
    network: &'a Network<'a>,
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node's side: index and hardware address.
    pub host: (u32, [u8; 6]),
    /// Hardware address of its own side.
    pub mac: [u8; 6],
}

impl Network<'_> {
    fn call(&self, verb: &str, netns: &Path, id: &str) -> Result<Vec<u8>> {
        let name = self.config["type"].as_str().context("a configuration without a type")?;
        let plugin = self.plugins.join(name);
        self.node.enter(|| {
            let mut child = Command::new(&plugin)
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", id)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", &self.plugins)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("run {}", plugin.display()))?;
            child
                .stdin
                .take()
                .context("the plugin's input")?
                .write_all(self.config.to_string().as_bytes())?;
            let out = child.wait_with_output()?;
            let said = || [out.stdout.as_slice(), &out.stderr].concat();
            ensure!(
                out.status.success(),
                "{} {verb}: {}",
                plugin.display(),
                String::from_utf8_lossy(&said()).trim()
            );
            Ok(out.stdout)
        })?
    }

    /// Attaches a new namespace of that name.
    ///
    /// # Errors
    /// The plugin fails, or gives no IPv4 address.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>> {
        let netns = Netns::new(name)?;
        let out: Value = serde_json::from_slice(&self.call("ADD", &netns.path(), name)?)
            .context("read the plugin's answer")?;
        let ips = out["ips"].as_array().into_iter().flatten();
        let address = ips
            .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
            .next()
            .context("the plugin gave no IPv4 address")?;
        let interfaces = out["interfaces"].as_array().context("the plugin names no interfaces")?;
        let at = |device: &Value| device["name"].as_str().map(str::to_owned);
        let own = interfaces.iter().find(|i| at(i).as_deref() == Some("eth0")).context("no eth0")?;
        let own = own["mac"].as_str().and_then(mac).context("eth0 has no hardware address")?;
        // A bridge comes before the pod's own device.
        let mut host =
            interfaces.iter().filter(|i| i["sandbox"].as_str().is_none_or(str::is_empty)).filter_map(at);
        let host = host.next_back().context("the plugin names no device of the node")?;
        let host = self.node.device(&host)?;
        Ok(Pod { network: self, netns, address, host, mac: own })
    }
}

impl Pod<'_> {
    /// The namespace of its node.
    pub fn node(&self) -> &Netns {
        self.network.node
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.network.call("DEL", &self.netns.path(), self.netns.name()) {
            tell(&format!("{error:#}"));
        }
    }
}
