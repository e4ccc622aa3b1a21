//! A data plane for tests: the programs and maps that the agent loads, pinned below a directory of the test.

use crate::{plugin::Pod, tell};
use anyhow::{Context, Result};
use berth_ebpf_abi::{Client, Config, LocalPod, NodeAddress, PodDevice, Prefix, V4, config, local_pod};
use berth_ebpf_loader::{
    Access, Datapath, DeviceRole, Pins, attach, attach_device, detach, load, netns_cookie,
};
use berth_services::Net as _;
use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// Network and mask of the ClusterIPs of [`crate::objects`].
const SERVICES: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 96, 0, 0), Ipv4Addr::new(255, 255, 0, 0));

/// Loaded programs with their maps, detached and unpinned when this value is dropped.
#[derive(Debug)]
pub struct Plane {
    /// Directory of the pins.
    pub pins: Pins,
    /// The maps.
    pub maps: Datapath,
}

impl Plane {
    /// Loads an object, usually [`berth_ebpf_loader::OBJECT`], and attaches no program yet.
    ///
    /// # Errors
    /// The kernel refuses the object.
    pub fn new(dir: &Path, object: &[u8]) -> Result<Plane> {
        let pins = Pins::new(dir);
        let made = load(&pins, object, |_| {}).and_then(|()| Datapath::open(&pins, Access::Write));
        match made {
            Ok(maps) => Ok(Plane { pins, maps }),
            Err(error) => {
                detach(&pins)?;
                Err(error).context("load the programs")
            }
        }
    }

    /// Writes the node's configuration: packets go directly to pods' devices, and the node masquerades as
    /// `node`.
    ///
    /// # Errors
    /// The kernel refuses an entry.
    pub fn configure(&self, node: Ipv4Addr) -> Result<()> {
        let mut wanted = Config {
            flags: config::REDIRECT,
            masquerade_ports: [20_000, 29_999],
            masquerade4: v4(node),
            ..Config::default()
        };
        wanted.service4[0] = Prefix { net: [v4(SERVICES.0), 0, 0, 0], mask: [v4(SERVICES.1), 0, 0, 0] };
        self.maps.config.put(&0, &wanted)?;
        self.maps.node4.put(&v4(node), &NodeAddress { node_ports: 1 })?;
        Ok(())
    }

    /// Attaches the socket hooks to a cgroup.
    ///
    /// # Errors
    /// The kernel refuses a program.
    pub fn hook(&self, group: &Path) -> Result<()> {
        attach(&self.pins, group).map(drop).context("attach the socket hooks")
    }

    /// Enters the pod as a client. With `device`, also enters the pod as a destination and attaches a program
    /// to its device.
    ///
    /// # Errors
    /// The kernel refuses an entry or the program.
    pub fn pod(&self, pod: &Pod<'_>, device: bool) -> Result<()> {
        let file = File::open(pod.netns.path()).context("open the pod's namespace")?;
        let client = Client { v4: v4(pod.address), ..Client::default() };
        self.maps.client.put(&netns_cookie(&file)?, &client)?;
        if device {
            let (ifindex, host_mac) = pod.host;
            let local = LocalPod { ifindex, flags: local_pod::DIRECT, mac: pod.mac, host_mac };
            let device = PodDevice { v4: v4(pod.address), flags: local.flags, ..PodDevice::default() };
            self.maps.pod_device.put(&ifindex, &device)?;
            self.maps.pod4.put(&v4(pod.address), &local)?;
            pod.node().enter(|| attach_device(&self.pins, ifindex, DeviceRole::Pod))??;
        }
        Ok(())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.pins) {
            tell(&format!("remove the pins: {error}"));
        }
    }
}

/// An address in the form of the maps.
pub fn v4(address: Ipv4Addr) -> V4 {
    V4::of(IpAddr::V4(address)).unwrap_or_default()
}
