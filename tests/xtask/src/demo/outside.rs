//! A network beside the node's: a namespace behind a pair of devices, whose near end bears the node's address.

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// The namespace. It stays with the node until [`Outside::remove`].
pub(super) struct Outside {
    netns: String,
    near: String,
    node: String,
    far: String,
}

impl Outside {
    /// Named after the node's cgroup; `subnet` is one of the node's own (`10.x.y.0/24`), whose numbers make the link's.
    pub(super) fn of(cgroup: &str, subnet: &str) -> Outside {
        let mut parts = subnet.split('.').skip(1);
        let (a, b) = (parts.next().unwrap_or("0"), parts.next().unwrap_or("0"));
        // 198.18.0.0/15 is for such networks (RFC 2544).
        let net = |last: u8| format!("198.18.{b}.{last}");
        Outside { netns: format!("{cgroup}-outside"), near: format!("bo{a}x{b}"), node: net(1), far: net(2) }
    }

    /// The device at the node's end.
    pub(super) fn device(&self) -> &str {
        &self.near
    }

    /// The node's address on that device.
    pub(super) fn node_address(&self) -> &str {
        &self.node
    }

    /// Makes it; what is there already stays.
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

    /// Takes it away with its devices.
    pub(super) fn remove(&self) -> Result<()> {
        if std::path::Path::new("/run/netns").join(&self.netns).exists() {
            ip(&["netns", "del", &self.netns])?;
        }
        Ok(())
    }

    /// Runs a command in there and returns its standard output.
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
