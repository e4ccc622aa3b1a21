//! Parsers of cgroup files. Unknown lines and keys are passed over, and a number that does not parse counts as
//! missing.

use super::{CpuTime, DeviceIo, MemoryUse, Pressure, Stall, Throttling};

/// Nanoseconds of a clock tick in files of version 1 (`USER_HZ` is 100 on every machine that Linux runs on).
const TICK_NS: u64 = 10_000_000;

/// The single number of a file.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The pairs of a file with a key and a number in each line.
pub fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// CPU time from `cpuacct.usage` and `cpuacct.stat` (version 1).
pub fn cpu_v1(usage: &str, stat: Option<&str>) -> Option<CpuTime> {
    let mut cpu = CpuTime { total: number(usage)?, ..CpuTime::default() };
    for (key, ticks) in stat.map(pairs).into_iter().flatten() {
        match key {
            "user" => cpu.user = ticks.saturating_mul(TICK_NS),
            "system" => cpu.system = ticks.saturating_mul(TICK_NS),
            _ => {}
        }
    }
    Some(cpu)
}

/// CPU time and throttling from `cpu.stat`. In version 1 the file has no CPU time; in version 2 the numbers
/// are microseconds. Throttling is missing for a group without the controller.
pub fn cpu_stat(text: &str) -> (Option<CpuTime>, Option<Throttling>) {
    let (mut cpu, mut throttling) = (CpuTime::default(), Throttling::default());
    let (mut has_cpu, mut has_throttling) = (false, false);
    for (key, value) in pairs(text) {
        let micros = || value.saturating_mul(1000);
        match key {
            "usage_usec" => (cpu.total, has_cpu) = (micros(), true),
            "user_usec" => cpu.user = micros(),
            "system_usec" => cpu.system = micros(),
            "nr_periods" => (throttling.periods, has_throttling) = (value, true),
            "nr_throttled" => throttling.throttled_periods = value,
            "throttled_usec" => throttling.throttled = micros(),
            "throttled_time" => throttling.throttled = value,
            "nr_bursts" => throttling.burst_periods = value,
            "burst_usec" => throttling.burst = micros(),
            "burst_time" => throttling.burst = value,
            _ => {}
        }
    }
    (has_cpu.then_some(cpu), has_throttling.then_some(throttling))
}

/// Memory from `memory.stat` of version 1 and the usage. The values with children begin with `total_`.
pub fn memory_v1(usage: u64, stat: &str) -> MemoryUse {
    let mut memory = MemoryUse { usage, ..MemoryUse::default() };
    for (key, value) in pairs(stat) {
        match key {
            "total_cache" => memory.cache = value,
            "total_rss" => memory.rss = value,
            "total_swap" => memory.swap = value,
            "total_mapped_file" => memory.mapped_file = value,
            "total_active_file" => memory.active_file = value,
            "total_inactive_file" => memory.inactive_file = value,
            "total_pgfault" => memory.pgfault = value,
            "total_pgmajfault" => memory.pgmajfault = value,
            _ => {}
        }
    }
    memory
}

/// Memory from `memory.stat` of version 2, the usage and the swap.
pub fn memory_v2(usage: u64, swap: u64, stat: &str) -> MemoryUse {
    let mut memory = MemoryUse { usage, swap, ..MemoryUse::default() };
    for (key, value) in pairs(stat) {
        match key {
            "file" => memory.cache = value,
            "anon" => memory.rss = value,
            "file_mapped" => memory.mapped_file = value,
            "kernel" => memory.kernel = value,
            "active_file" => memory.active_file = value,
            "inactive_file" => memory.inactive_file = value,
            "pgfault" => memory.pgfault = value,
            "pgmajfault" => memory.pgmajfault = value,
            _ => {}
        }
    }
    memory
}

/// The root group of version 2 has no `memory.current`: its usage is that of its anonymous memory and files,
/// as cAdvisor counts it.
pub fn root_usage_v2(stat: &str) -> u64 {
    pairs(stat)
        .filter(|(key, _)| matches!(*key, "anon" | "file"))
        .fold(0, |sum, (_, n)| sum.saturating_add(n))
}

/// The number of a key in a file of pairs.
pub fn value_of(text: &str, key: &str) -> Option<u64> {
    pairs(text).find(|(own, _)| *own == key).map(|(_, value)| value)
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The entry of a device; the entries stay sorted.
fn entry(io: &mut Vec<DeviceIo>, device: (u32, u32)) -> Option<&mut DeviceIo> {
    let at = match io.binary_search_by_key(&device, |d| d.device) {
        Ok(at) => at,
        Err(at) => {
            io.insert(at, DeviceIo { device, ..DeviceIo::default() });
            at
        }
    };
    io.get_mut(at)
}

/// Adds `blkio.throttle.io_service_bytes_recursive` (`bytes`) or `io_serviced_recursive` of version 1.
pub fn io_v1(io: &mut Vec<DeviceIo>, text: &str, bytes: bool) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(numbers), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (Some(device), Ok(value)) = (device(numbers), value.parse()) else { continue };
        let Some(entry) = entry(io, device) else { continue };
        match (kind, bytes) {
            ("Read", true) => entry.read_bytes = value,
            ("Write", true) => entry.write_bytes = value,
            ("Read", false) => entry.reads = value,
            ("Write", false) => entry.writes = value,
            _ => {}
        }
    }
}

/// Adds `io.stat` of version 2.
pub fn io_v2(io: &mut Vec<DeviceIo>, text: &str) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(device) = words.next().and_then(device) else { continue };
        let Some(entry) = entry(io, device) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => entry.read_bytes = value,
                "wbytes" => entry.write_bytes = value,
                "rios" => entry.reads = value,
                "wios" => entry.writes = value,
                _ => {}
            }
        }
    }
}

/// A pressure file. Some kernels have no line `full` for CPU, which then counts as zero.
pub fn pressure(text: &str) -> Option<Pressure> {
    let mut found = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next();
        let mut stall = Stall::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let [ten, sixty, three_hundred] = &mut stall.averages;
            match key {
                "avg10" => *ten = value.parse().unwrap_or_default(),
                "avg60" => *sixty = value.parse().unwrap_or_default(),
                "avg300" => *three_hundred = value.parse().unwrap_or_default(),
                "total" => stall.total = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        let pressure = found.get_or_insert_with(Pressure::default);
        match kind {
            Some("some") => pressure.some = stall,
            Some("full") => pressure.full = stall,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cpu_of_both_versions() {
        let v1 = cpu_v1("1500000007\n", Some("user 100\nsystem 49\n"));
        assert_eq!(v1, Some(CpuTime { total: 1_500_000_007, user: 1_000_000_000, system: 490_000_000 }));
        assert_eq!(cpu_v1("", Some("user 1")), None);
        let throttled = "nr_periods 7\nnr_throttled 3\nthrottled_time 900\nnr_bursts 2\nburst_time 5\n";
        let want =
            Throttling { periods: 7, throttled_periods: 3, throttled: 900, burst_periods: 2, burst: 5 };
        assert_eq!(cpu_stat(throttled), (None, Some(want)));
        let v2 = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnice_usec 0\nnr_periods 7\n\
                  nr_throttled 3\nthrottled_usec 900\nnr_bursts 2\nburst_usec 5\n";
        let (cpu, throttling) = cpu_stat(v2);
        assert_eq!(cpu, Some(CpuTime { total: 1_500_000, user: 1_000_000, system: 500_000 }));
        assert_eq!(throttling, Some(Throttling { throttled: 900_000, burst: 5000, ..want }));
        // A group without the controller has its CPU time alone.
        assert_eq!(cpu_stat("usage_usec 1\nuser_usec 1\nsystem_usec 0\n").1, None);
    }

    #[test]
    fn memory_of_both_versions_and_its_working_set() {
        let v1 = memory_v1(
            1000,
            "cache 1\nrss 2\ninactive_file 9\ntotal_cache 400\ntotal_rss 500\ntotal_swap 7\n\
             total_mapped_file 8\ntotal_inactive_file 300\ntotal_active_file 100\ntotal_pgfault 11\n\
             total_pgmajfault 12\n",
        );
        let want = MemoryUse {
            usage: 1000,
            cache: 400,
            rss: 500,
            swap: 7,
            mapped_file: 8,
            active_file: 100,
            inactive_file: 300,
            pgfault: 11,
            pgmajfault: 12,
            ..MemoryUse::default()
        };
        assert_eq!((v1, v1.working_set()), (want, 700));
        let stat = "anon 500\nfile 400\nkernel 30\nfile_mapped 8\ninactive_file 300\nactive_file 100\n\
                    pgfault 11\npgmajfault 12\n";
        assert_eq!(memory_v2(1000, 7, stat), MemoryUse { kernel: 30, ..want });
        assert_eq!(root_usage_v2(stat), 900);
        assert_eq!(MemoryUse { usage: 1, inactive_file: 2, ..want }.working_set(), 0);
        assert_eq!(value_of("low 0\noom_kill 3\n", "oom_kill"), Some(3));
    }

    #[test]
    fn io_of_both_versions() {
        let mut v1 = Vec::new();
        io_v1(&mut v1, "8:16 Read 4\n8:16 Write 5\n8:16 Sync 9\n8:0 Read 1\nTotal 10\n", true);
        io_v1(&mut v1, "8:16 Read 2\n8:16 Write 3\n", false);
        let mut v2 = Vec::new();
        io_v2(&mut v2, "8:16 rbytes=4 wbytes=5 rios=2 wios=3 dbytes=0 dios=0\n8:0 rbytes=1\n\n7:x a=1\n");
        assert_eq!(v1, v2);
        let second = DeviceIo { device: (8, 16), read_bytes: 4, write_bytes: 5, reads: 2, writes: 3 };
        assert_eq!(v1, [DeviceIo { device: (8, 0), read_bytes: 1, ..DeviceIo::default() }, second]);
    }

    #[test]
    fn pressure_with_and_without_its_second_line() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.03 total=123\n";
        let some = Stall { total: 123, averages: [1.5, 0.2, 0.03] };
        assert_eq!(pressure(text), Some(Pressure { some, full: Stall::default() }));
        let both = format!("{text}full avg10=0.00 avg60=0.00 avg300=0.00 total=9\n");
        assert_eq!(pressure(&both).map(|p| p.full.total), Some(9));
        assert_eq!(pressure(""), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,300}", lines in "([a-z_0-9:= .\n]|total=|8:0 ){0,80}") {
            for text in [text, lines] {
                let mut io = Vec::new();
                io_v1(&mut io, &text, true);
                io_v2(&mut io, &text);
                prop_assert!(io.is_sorted_by_key(|d| d.device));
                let _ = (cpu_stat(&text), cpu_v1(&text, Some(&text)), memory_v1(1, &text), pressure(&text));
                prop_assert!(memory_v2(0, 0, &text).working_set() == 0);
            }
        }
    }
}
