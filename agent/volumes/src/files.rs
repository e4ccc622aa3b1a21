//! The files that the containers of a pod share: hosts, resolver configuration, hostname, and /dev/shm.

use crate::{Error, PodFacts, PodHostname, Volumes, hosts, layout::NODE_DIR, os, resolv_conf};
use berth_core::{event::Event, model::Pod};
use berth_sys::fs::read_limited;
use rustix::{fs::OFlags, mount::MountFlags};
use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// Limit of the node's hosts and resolver files, in bytes; the rest is not read.
const MAX_NODE_FILE: usize = 10 << 20;
/// Mode of the shared files.
const MODE: u32 = 0o644;
/// Mount options of a pod's `/dev/shm`: 64 MiB, as with other container runtimes.
const SHM_OPTIONS: &str = "mode=1777,size=67108864";

impl Volumes {
    /// Writes the pod's hosts, resolver and hostname files and mounts its `/dev/shm`. May be repeated: a file that differs
    /// is rewritten in place, so that running containers see the change.
    ///
    /// The events say which parts of the pod's DNS settings were left out (`DNSConfigForming`, `MissingClusterDNS`).
    pub fn prepare_files(&self, pod: &Pod, facts: &PodFacts) -> Result<Vec<Event>, Error> {
        let dir = self.pod_dir(&pod.uid);
        os::make_dirs(&dir, NODE_DIR).map_err(Error::io("create", dir))?;
        let (hosts, hostname) = if pod.namespaces.host_network {
            let hosts = hosts::host_network(pod, &read_node_file(&self.roots.hosts_file)?)?;
            (hosts, host_name())
        } else {
            let name = PodHostname::of(pod, facts.node.cluster_domain.as_deref())?;
            (hosts::managed(pod, &name, &facts.ips)?.into_bytes(), name.kernel)
        };
        let (conf, events) = resolv_conf::pod_conf(pod, facts, self.node_resolv_conf(pod)?)?;
        write_in_place(&self.hosts_path(&pod.uid), &hosts)?;
        write_in_place(&self.resolv_conf_path(&pod.uid), conf.text().as_bytes())?;
        write_in_place(&self.hostname_path(&pod.uid), format!("{hostname}\n").as_bytes())?;
        if !pod.namespaces.host_ipc {
            mount_shm(&self.shm_path(&pod.uid))?;
        }
        Ok(events)
    }

    /// The node's resolver configuration; `None` if its path is empty, so that it is not used (`resolvConf: ""`).
    fn node_resolv_conf(&self, pod: &Pod) -> Result<Option<resolv_conf::ResolvConf>, Error> {
        let path = &self.roots.resolv_conf;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        if pod.dns.policy == berth_core::model::DnsPolicy::None {
            return Ok(Some(resolv_conf::ResolvConf::default()));
        }
        let bytes = read_node_file(path)?;
        Ok(Some(resolv_conf::ResolvConf::parse(&String::from_utf8_lossy(&bytes))))
    }
}

/// The host's own name, which host-network pods have too.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn read_node_file(path: &Path) -> Result<Vec<u8>, Error> {
    os::sys(read_limited(path, MAX_NODE_FILE)).map_err(Error::io("read", path))
}

/// Makes `bytes` the content of the file. The inode stays the same, because containers have the file itself mounted.
fn write_in_place(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = os::open_or_make(path, OFlags::RDWR, MODE)?;
        let found = file.metadata()?;
        os::set_mode(&file, MODE)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if found.len() == length {
            let mut old = Vec::new();
            io::Read::by_ref(&mut file).take(length).read_to_end(&mut old)?;
            if old == bytes {
                return Ok(());
            }
        }
        file.write_all_at(bytes, 0)?;
        file.set_len(length)?;
        file.flush()
    };
    write().map_err(Error::io("write", path))
}

fn mount_shm(path: &Path) -> Result<(), Error> {
    os::make_dirs(path, 0o700).map_err(Error::io("create", path))?;
    if os::sys(berth_sys::mount::is_mount_point(path)).map_err(Error::io("examine", path))? {
        return Ok(());
    }
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    let mount = || os::mount_tmpfs("shm", path, flags, SHM_OPTIONS);
    berth_sys::failpoint::step("mount-shm", mount).map_err(Error::io("mount a tmpfs at", path))
}

#[cfg(test)]
mod tests;
