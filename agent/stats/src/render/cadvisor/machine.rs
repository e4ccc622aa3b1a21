//! The families `machine_*`, `cadvisor_version_info` and those of the scrape itself.

use crate::{
    reading::NodeReading,
    text::{Exposition, labels},
};
use berth_core::{metrics::FamilyType::Gauge, time::Wall};

/// Facts of the machine, read once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/sys/class/dmi/id/product_uuid`.
    pub system_uuid: String,
    /// The id of the boot.
    pub boot_id: String,
    /// Logical processors.
    pub cores: u64,
    /// Physical cores, each with one processor or more.
    pub physical_cores: u64,
    /// Processor sockets.
    pub sockets: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of swap.
    pub swap: u64,
    /// `uname -r`.
    pub kernel_version: String,
    /// Name of the operating system (`PRETTY_NAME` of os-release).
    pub os_version: String,
    /// When these facts were read.
    pub read_at: Wall,
}

impl Machine {
    pub(super) fn render(&self, text: &mut Exposition, reading: &NodeReading) {
        text.family("cadvisor_version_info", "1, with the versions of kernel and system as labels.", Gauge);
        let versions = labels(&[
            ("cadvisorRevision", ""),
            ("cadvisorVersion", ""),
            ("dockerVersion", ""),
            ("kernelVersion", &self.kernel_version),
            ("osVersion", &self.os_version),
        ]);
        text.sample(&versions, &[], 1.into(), None);
        text.family("container_scrape_error", "1 where the groups could not be read, 0 otherwise.", Gauge);
        text.sample("", &[], u64::from(reading.root.usage.cpu.is_none()).into(), None);
        let ids = labels(&[
            ("boot_id", &self.boot_id),
            ("machine_id", &self.machine_id),
            ("system_uuid", &self.system_uuid),
        ]);
        for (name, help, value) in [
            ("machine_cpu_cores", "Logical processors.", self.cores),
            ("machine_cpu_physical_cores", "Processor cores.", self.physical_cores),
            ("machine_cpu_sockets", "Processor sockets.", self.sockets),
            ("machine_memory_bytes", "Bytes of memory.", self.memory),
            ("machine_swap_bytes", "Bytes of swap.", self.swap),
        ] {
            text.family(name, help, Gauge);
            text.sample(&ids, &[], value.into(), Some(self.read_at));
        }
        text.family("machine_scrape_error", "1 where the machine could not be read, 0 otherwise.", Gauge);
        text.sample("", &[], u64::from(self.cores == 0 || self.memory == 0).into(), None);
    }
}
