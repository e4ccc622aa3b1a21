//! What a cgroup has used: CPU, memory, block devices, processes, pressure. One value for both versions.
//!
//! [`reader`] opens the files; [`parse`] is pure. A file that is missing, because the kernel or the hierarchy
//! has no such controller or because the group ended meanwhile, leaves its part empty: an unknown amount is
//! never shown as 0.

pub mod parse;
mod reader;

pub use reader::{Depth, GroupMounts, GroupReader};

/// What one cgroup has used, with its children.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupUsage {
    /// CPU time.
    pub cpu: Option<CpuTime>,
    /// Waits for CPU because of a quota.
    pub throttling: Option<Throttling>,
    /// Use of memory; `None` where it cannot be read.
    pub memory: Option<MemoryUse>,
    /// Reads and writes of block devices, sorted by device.
    pub io: Vec<DeviceIo>,
    /// Number of processes and threads.
    pub tasks: Option<u64>,
    /// Time lost for lack of CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time lost for lack of memory.
    pub memory_pressure: Option<Pressure>,
    /// Time lost for lack of I/O.
    pub io_pressure: Option<Pressure>,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// All of the time.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

/// Waits because of a CPU quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which the group could run.
    pub periods: u64,
    /// Periods in which the group used up its quota.
    pub throttled_periods: u64,
    /// Nanoseconds that the group waited.
    pub throttled: u64,
    /// Periods in which the group borrowed from earlier ones.
    pub burst_periods: u64,
    /// Nanoseconds that it borrowed.
    pub burst: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// All memory that is charged to the group.
    pub usage: u64,
    /// The highest usage so far.
    pub max_usage: Option<u64>,
    /// How often the limit was hit.
    pub failcnt: Option<u64>,
    /// The page cache.
    pub cache: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Swapped out memory.
    pub swap: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// Memory of the kernel for the group.
    pub kernel: u64,
    /// Page cache in recent use.
    pub active_file: u64,
    /// Page cache that the kernel drops first.
    pub inactive_file: u64,
    /// Page faults.
    pub pgfault: u64,
    /// Page faults that waited for a disk.
    pub pgmajfault: u64,
    /// Processes that the kernel's OOM killer ended.
    pub oom_kills: Option<u64>,
}

impl MemoryUse {
    /// The working set, as cAdvisor defines it: the usage without page cache that is not in recent use.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// What a group did to one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Number of read operations.
    pub reads: u64,
    /// Number of write operations.
    pub writes: u64,
}

/// Pressure stall information of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// All of the time lost, in microseconds.
    pub total: u64,
    /// Per cent of the time, over 10, 60 and 300 seconds.
    pub averages: [f64; 3],
}
