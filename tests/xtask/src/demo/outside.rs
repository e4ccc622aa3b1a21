//! A network outside the node: a network namespace behind a veth pair whose near end has the node's address.

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// The network namespace. It exists until [`Outside::remove`].
pub(super) struct Outside {
    netns: String,
    near: String,
    node: String,
    far: String,
}

impl Outside {
    /// Describes the namespace, named after the node's cgroup. The address range of the link is derived from
    /// `subnet`, a subnet of the node (`10.x.y.0/24`).
    pub(super) fn of(cgroup: &str, subnet: &str) -> Outside {
        let mut parts = subnet.split('.').skip(1);
        let (a, b) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
        // 198.18.0.0/15 is reserved for test networks (RFC 2544).
        let net = |last: u8| format!("198.18.{b}.{last}");
        Outside { netns: format!("{cgroup}-outside"), near: format!("bo{a}x{b}"), node: net(1), far: net(2) }
    }

    /// Name of the device at the node's end.
    pub(super) fn device(&self) -> &str {
        &self.near
    }

    /// Address of the node on that device.
    pub(super) fn node_address(&self) -> &str {
        &self.node
    }

    /// Makes the namespace with its devices; does nothing where the namespace exists.
    pub(super) fn make(&self) -> Result<()> {
        if std::path::Path::new("/run/netns").join(&self.netns).exists() {
            return Ok(());
        }
        ip(&["netns", "add", &self.netns])?;
        ip(&["link", "add", &self.near, "type", "veth", "peer", "name", "eth0", "netns", &self.netns])?;
        ip(&["addr", "add", &format!("{}/30", self.node), "dev", &self.near])?;
        ip(&["link", "set", &self.near, "up"])?;
        ip(&["-n", &self.netns, "addr", "add", &format!("{}/30", self.far), "dev", "eth0"])?;
        ip(&["-n", &self.netns, "link", "set", "eth0", "up"])?;
        ip(&["-n", &self.netns, "link", "set", "lo", "up"])
    }

    /// Removes the namespace with its devices.
    pub(super) fn remove(&self) -> Result<()> {
        if std::path::Path::new("/run/netns").join(&self.netns).exists() {
            ip(&["netns", "del", &self.netns])?;
        }
        Ok(())
    }

    /// Runs a command in the namespace and returns its standard output.
    pub(super) fn run(&self, command: &[&str]) -> Result<String> {
        let out = Command::new("ip")
            .args(["netns", "exec", &self.netns])
            .args(command)
            .output()
            .context("run ip netns exec")?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "{command:?} in {}: {} {}", self.netns, out.status, said.trim());
        String::from_utf8(out.stdout).context("its output")
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let out = Command::new("ip").args(args).output().context("run ip")?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.success(), "ip {}: {}", args.join(" "), said.trim());
    Ok(())
}
