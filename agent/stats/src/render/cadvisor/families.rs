//! The families of `/metrics/cadvisor`, as a table.

use crate::{
    cgroup::{DeviceIo, MemoryUse, Pressure, Throttling},
    network::Interface,
    reading::{Group, NodeReading},
    text::{Exposition, Value},
};
use berth_core::{
    metrics::FamilyType::{self, Counter, Gauge},
    resources::CPU_PERIOD_US,
};

/// A family of which each group may have samples.
pub(super) struct GroupFamily {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: FamilyType,
    /// Whether samples have the time of the reading.
    pub(super) timed: bool,
    pub(super) write: fn(&Group, &mut Samples<'_>),
}

/// Writer of one group's samples of one family.
pub(super) struct Samples<'a> {
    pub(super) text: &'a mut Exposition,
    pub(super) labels: &'a str,
    pub(super) reading: &'a NodeReading,
    pub(super) timed: bool,
}

impl Samples<'_> {
    fn put(&mut self, value: impl Into<Value>) {
        self.put_with(&[], value);
    }

    fn put_with(&mut self, more: &[(&str, &str)], value: impl Into<Value>) {
        let at = self.timed.then_some(self.reading.at.wall);
        self.text.sample(self.labels, more, value.into(), at);
    }

    fn put_known(&mut self, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(value);
        }
    }
}

const fn family(
    name: &'static str,
    kind: FamilyType,
    help: &'static str,
    write: fn(&Group, &mut Samples<'_>),
) -> GroupFamily {
    GroupFamily { name, help, kind, timed: true, write }
}

/// A family about what the group is, whose samples have no time.
const fn fact(name: &'static str, help: &'static str, write: fn(&Group, &mut Samples<'_>)) -> GroupFamily {
    GroupFamily { name, help, kind: Gauge, timed: false, write }
}

fn throttling(group: &Group, out: &mut Samples<'_>, value: fn(Throttling) -> Value) {
    out.put_known(group.usage.throttling.map(value));
}

fn memory(group: &Group, out: &mut Samples<'_>, value: fn(&MemoryUse) -> u64) {
    out.put_known(group.usage.memory.as_ref().map(value));
}

fn io(group: &Group, out: &mut Samples<'_>, value: fn(&DeviceIo) -> u64) {
    let reading = out.reading;
    for io in &group.usage.io {
        out.put_with(&[("device", reading.device(io.device))], value(io));
    }
}

/// Microseconds of stall as seconds.
fn stalled(pressure: Option<Pressure>, out: &mut Samples<'_>, full: bool) {
    let micros = pressure.map(|p| if full { p.full.total } else { p.some.total });
    out.put_known(micros.map(|micros| Value::Nanos(micros.saturating_mul(1000))));
}

/// Limits of groups that exist; the root has none to show.
fn limit(group: &Group, out: &mut Samples<'_>, value: Option<u64>) {
    if group.usage.memory.is_some() {
        out.put(value.unwrap_or(0));
    }
}

pub(super) const GROUP_FAMILIES: &[GroupFamily] = &[
    fact("container_start_time_seconds", "Start of the container, in seconds since 1970.", |g, out| {
        out.put_known(g.started.map(|at| u64::try_from(at.seconds()).unwrap_or(0)));
    }),
    fact("container_spec_cpu_period", "Period of the CPU quota, in microseconds.", |g, out| {
        out.put_known(g.limits.cpu_shares.map(|_| CPU_PERIOD_US));
    }),
    fact("container_spec_cpu_quota", "CPU quota in microseconds a period.", |g, out| {
        out.put_known(g.limits.cpu_quota);
    }),
    fact("container_spec_cpu_shares", "CPU shares.", |g, out| out.put_known(g.limits.cpu_shares)),
    fact("container_spec_memory_limit_bytes", "Limit of memory; 0 is none.", |g, out| {
        limit(g, out, g.limits.memory);
    }),
    fact("container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0 is none.", |g, out| {
        limit(g, out, g.limits.memory);
    }),
    fact("container_spec_memory_reservation_limit_bytes", "Reserved memory; 0 is none.", |g, out| {
        limit(g, out, None);
    }),
    family("container_last_seen", Gauge, "Time of the reading, in seconds since 1970.", |g, out| {
        if g.usage.cpu.is_some() {
            out.put(u64::try_from(out.reading.at.wall.seconds()).unwrap_or(0));
        }
    }),
    family("container_cpu_user_seconds_total", Counter, "CPU time in user mode, in seconds.", |g, out| {
        out.put_known(g.usage.cpu.map(|cpu| Value::Nanos(cpu.user)));
    }),
    family("container_cpu_system_seconds_total", Counter, "CPU time in the kernel, in seconds.", |g, out| {
        out.put_known(g.usage.cpu.map(|cpu| Value::Nanos(cpu.system)));
    }),
    family("container_cpu_usage_seconds_total", Counter, "CPU time, in seconds.", |g, out| {
        if let Some(cpu) = g.usage.cpu {
            out.put_with(&[("cpu", "total")], Value::Nanos(cpu.total));
        }
    }),
    family(
        "container_cpu_cfs_periods_total",
        Counter,
        "Periods of the CPU quota that have passed.",
        |g, out| {
            throttling(g, out, |t| t.periods.into());
        },
    ),
    family(
        "container_cpu_cfs_throttled_periods_total",
        Counter,
        "Periods in which the CPU quota was used up.",
        |g, out| throttling(g, out, |t| t.throttled_periods.into()),
    ),
    family(
        "container_cpu_cfs_throttled_seconds_total",
        Counter,
        "Time of waiting for the next period of the CPU quota.",
        |g, out| throttling(g, out, |t| Value::Nanos(t.throttled)),
    ),
    family(
        "container_cpu_cfs_burst_periods_total",
        Counter,
        "Periods that borrowed from the CPU quota of earlier ones.",
        |g, out| throttling(g, out, |t| t.burst_periods.into()),
    ),
    family(
        "container_cpu_cfs_burst_seconds_total",
        Counter,
        "Time borrowed from the CPU quota of earlier periods.",
        |g, out| throttling(g, out, |t| Value::Nanos(t.burst)),
    ),
    family("container_memory_cache", Gauge, "Bytes of page cache.", |g, out| memory(g, out, |m| m.cache)),
    family("container_memory_rss", Gauge, "Bytes of anonymous memory.", |g, out| memory(g, out, |m| m.rss)),
    family("container_memory_kernel_usage", Gauge, "Bytes of the kernel's memory.", |g, out| {
        memory(g, out, |m| m.kernel);
    }),
    family("container_memory_mapped_file", Gauge, "Bytes of mapped files.", |g, out| {
        memory(g, out, |m| m.mapped_file);
    }),
    family("container_memory_swap", Gauge, "Bytes of swapped out memory.", |g, out| {
        memory(g, out, |m| m.swap)
    }),
    family("container_memory_failcnt", Counter, "Times that the memory limit was hit.", |g, out| {
        out.put_known(g.usage.memory.and_then(|m| m.failcnt));
    }),
    family("container_memory_usage_bytes", Gauge, "Bytes of memory, with all page cache.", |g, out| {
        memory(g, out, |m| m.usage);
    }),
    family(
        "container_memory_max_usage_bytes",
        Gauge,
        "Highest usage of memory so far, in bytes.",
        |g, out| {
            out.put_known(g.usage.memory.and_then(|m| m.max_usage));
        },
    ),
    family("container_memory_working_set_bytes", Gauge, "Working set, in bytes.", |g, out| {
        memory(g, out, MemoryUse::working_set);
    }),
    family(
        "container_memory_total_active_file_bytes",
        Gauge,
        "Bytes of page cache in recent use.",
        |g, out| memory(g, out, |m| m.active_file),
    ),
    family(
        "container_memory_total_inactive_file_bytes",
        Gauge,
        "Bytes of page cache that the kernel drops first.",
        |g, out| memory(g, out, |m| m.inactive_file),
    ),
    family("container_memory_failures_total", Counter, "Page faults.", |g, out| {
        if let Some(memory) = g.usage.memory {
            for scope in ["container", "hierarchy"] {
                out.put_with(&[("failure_type", "pgfault"), ("scope", scope)], memory.pgfault);
                out.put_with(&[("failure_type", "pgmajfault"), ("scope", scope)], memory.pgmajfault);
            }
        }
    }),
    family("container_fs_reads_bytes_total", Counter, "Bytes read from the device.", |g, out| {
        io(g, out, |io| io.read_bytes);
    }),
    family("container_fs_reads_total", Counter, "Reads from the device.", |g, out| io(g, out, |io| io.reads)),
    family("container_fs_writes_bytes_total", Counter, "Bytes written to the device.", |g, out| {
        io(g, out, |io| io.write_bytes);
    }),
    family("container_fs_writes_total", Counter, "Writes to the device.", |g, out| {
        io(g, out, |io| io.writes)
    }),
    family("container_blkio_device_usage_total", Counter, "Bytes by device and operation.", |g, out| {
        let reading = out.reading;
        for io in &g.usage.io {
            let (major, minor) = (io.device.0.to_string(), io.device.1.to_string());
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
                let more = [
                    ("device", reading.device(io.device)),
                    ("major", &*major),
                    ("minor", &*minor),
                    ("operation", operation),
                ];
                out.put_with(&more, bytes);
            }
        }
    }),
    family("container_threads", Gauge, "Processes and threads.", |g, out| out.put_known(g.usage.tasks)),
    family("container_threads_max", Gauge, "Limit of processes and threads; 0 is none.", |g, out| {
        out.put_known(g.usage.tasks.map(|_| g.limits.tasks.unwrap_or(0)));
    }),
    family("container_oom_events_total", Counter, "Processes that the OOM killer ended.", |g, out| {
        out.put_known(g.usage.memory.and_then(|m| m.oom_kills));
    }),
    family(
        "container_pressure_cpu_stalled_seconds_total",
        Counter,
        "Time in which no task could run for lack of CPU.",
        |g, out| stalled(g.usage.cpu_pressure, out, true),
    ),
    family(
        "container_pressure_cpu_waiting_seconds_total",
        Counter,
        "Time in which some task waited for CPU.",
        |g, out| stalled(g.usage.cpu_pressure, out, false),
    ),
    family(
        "container_pressure_memory_stalled_seconds_total",
        Counter,
        "Time in which no task could run for lack of memory.",
        |g, out| stalled(g.usage.memory_pressure, out, true),
    ),
    family(
        "container_pressure_memory_waiting_seconds_total",
        Counter,
        "Time in which some task waited for memory.",
        |g, out| stalled(g.usage.memory_pressure, out, false),
    ),
    family(
        "container_pressure_io_stalled_seconds_total",
        Counter,
        "Time in which no task could run for lack of I/O.",
        |g, out| stalled(g.usage.io_pressure, out, true),
    ),
    family(
        "container_pressure_io_waiting_seconds_total",
        Counter,
        "Time in which some task waited for I/O.",
        |g, out| stalled(g.usage.io_pressure, out, false),
    ),
];

/// A family of which each interface has a sample.
pub(super) struct NetworkFamily {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) value: fn(&Interface) -> u64,
}

const fn network(name: &'static str, help: &'static str, value: fn(&Interface) -> u64) -> NetworkFamily {
    NetworkFamily { name, help, value }
}

pub(super) const NETWORK_FAMILIES: &[NetworkFamily] = &[
    network("container_network_receive_bytes_total", "Bytes received.", |i| i.receive.bytes),
    network("container_network_receive_packets_total", "Packets received.", |i| i.receive.packets),
    network("container_network_receive_packets_dropped_total", "Received packets that were dropped.", |i| {
        i.receive.dropped
    }),
    network("container_network_receive_errors_total", "Errors of receiving.", |i| i.receive.errors),
    network("container_network_transmit_bytes_total", "Bytes sent.", |i| i.transmit.bytes),
    network("container_network_transmit_packets_total", "Packets sent.", |i| i.transmit.packets),
    network("container_network_transmit_packets_dropped_total", "Packets to send that were dropped.", |i| {
        i.transmit.dropped
    }),
    network("container_network_transmit_errors_total", "Errors of sending.", |i| i.transmit.errors),
];
