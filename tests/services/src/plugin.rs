//! Pods without containers: network namespaces that a CNI plugin attaches.

use crate::tell;
use anyhow::{Context, Result, ensure};
use berth_harness::netns::{Netns, mac};
use serde_json::Value;
use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A network: a plugin, its configuration, and the node to which it attaches pods.
#[derive(Debug)]
pub struct Network<'a> {
    /// Namespace of the node.
    pub node: &'a Netns,
    /// Directory of the plugin and of the plugins that it calls.
    pub plugins: PathBuf,
    /// Configuration of the plugin.
    pub config: Value,
}

/// The namespace of a pod, detached when this value is dropped.
#[derive(Debug)]
pub struct Pod<'a> {
    network: &'a Network<'a>,
    /// Namespace of the pod.
    pub netns: Netns,
    /// Address of the pod.
    pub address: Ipv4Addr,
    /// Index and hardware address of the pod's device on the node.
    pub host: (u32, [u8; 6]),
    /// Hardware address of `eth0` in the pod.
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

    /// Creates a namespace of this name and attaches it.
    ///
    /// # Errors
    /// The plugin fails, or assigns no IPv4 address.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>> {
        let netns = Netns::router(name)?;
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
        // The list names a bridge before the pod's own device, so the last device counts.
        let mut host =
            interfaces.iter().filter(|i| i["sandbox"].as_str().is_none_or(str::is_empty)).filter_map(at);
        let host = host.next_back().context("the plugin names no device of the node")?;
        let host = self.node.device(&host)?;
        Ok(Pod { network: self, netns, address, host, mac: own })
    }
}

impl Pod<'_> {
    /// Namespace of the pod's node.
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
