//! Report of the kernel's programs, maps and links, for the command `berth bpf` and the benches.

use crate::{
    Error, Pins, Result,
    pins::list,
    pins::open_link,
    sys::{self, LinkInfo, MapFd, MapInfo, ProgInfo, fdinfo, info, obj_get},
};
use berth_ebpf_abi::maps;
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

/// All pinned objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Sorted by name.
    pub programs: Vec<ProgramReport>,
    /// Sorted by name.
    pub links: Vec<LinkReport>,
    /// Sorted by name.
    pub maps: Vec<MapReport>,
}

/// A pinned program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramReport {
    /// The program's name in the object.
    pub name: String,
    /// The kernel's id.
    pub id: u32,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Instructions that the verifier processed to accept the program.
    pub verified: u32,
    /// Number of runs while a [`StatsGuard`] was held.
    pub runs: u64,
    /// Total time of these runs, in nanoseconds.
    pub run_ns: u64,
    /// Kernel memory, in bytes.
    pub memory: u64,
}

/// A pinned link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkReport {
    /// The name of its pin: of the hook, or `tcx-<ifindex>-<place>`.
    pub name: String,
    /// The kernel's id.
    pub id: u32,
    /// The kernel's id of the program.
    pub program: u32,
    /// Whether the link's target still exists.
    pub live: bool,
}

/// A pinned map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapReport {
    /// The map's name in [`maps`].
    pub name: String,
    /// The kernel's id.
    pub id: u32,
    /// The kernel's `enum bpf_map_type`.
    pub kind: u32,
    /// Maximum number of entries.
    pub max_entries: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Kernel memory, in bytes.
    pub memory: u64,
    /// Number of entries; `None` where the number has no meaning (arrays, socket storage) or was not
    /// requested.
    pub entries: Option<usize>,
}

impl Report {
    /// Kernel memory of all maps, in bytes.
    pub fn map_memory(&self) -> u64 {
        self.maps.iter().map(|map| map.memory).sum()
    }
}

/// Reads the pinned objects. With `count`, also counts the entries of the maps, which reads them whole.
///
/// # Errors
/// The kernel refuses. A missing pin is no error and is left out.
pub fn report(pins: &Pins, count: bool) -> Result<Report> {
    let mut report = Report::default();
    for (name, path) in list(&pins.programs())? {
        let failed = |op| {
            let program = name.clone();
            move |source| Error::Program { op, program, source }
        };
        let fd = obj_get(&path, false).map_err(failed("open"))?;
        let found: ProgInfo = info(fd.as_fd()).map_err(failed("examine"))?;
        report.programs.push(ProgramReport {
            id: found.id,
            instructions: found.xlated_len / 8,
            machine_code: found.jited_len,
            verified: found.verified_instructions,
            runs: found.run_count,
            run_ns: found.run_time_ns,
            memory: fdinfo(fd.as_fd(), "memlock").map_err(failed("read the memory of"))?,
            name,
        });
    }
    for (name, path) in list(&pins.links())? {
        let Some(fd) = open_link(&path)? else { continue };
        let found: LinkInfo =
            info(fd.as_fd()).map_err(|source| Error::Link { op: "examine", link: name.clone(), source })?;
        let live = if name.starts_with("tcx-") { found.ifindex() != 0 } else { found.target != 0 };
        report.links.push(LinkReport { id: found.id, program: found.program, live, name });
    }
    for (name, path) in list(&pins.maps())? {
        let failed = |op| {
            let map = name.clone();
            move |source| Error::Map { op, map, source }
        };
        let fd = obj_get(&path, true).map_err(failed("open"))?;
        let found: MapInfo = info(fd.as_fd()).map_err(failed("examine"))?;
        report.maps.push(MapReport {
            id: found.id,
            kind: found.kind,
            max_entries: found.max_entries,
            key_size: found.key_size,
            value_size: found.value_size,
            memory: fdinfo(fd.as_fd(), "memlock").map_err(failed("read the memory of"))?,
            entries: if count { entries(&name, fd, &found)? } else { None },
            name,
        });
    }
    Ok(report)
}

/// A function of a pinned program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionReport {
    /// The function's symbol in the object.
    pub name: String,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
}

/// The functions of a pinned program, the program's main function first. `object` is the object that the
/// program was loaded from.
///
/// # Errors
/// The program is not pinned, the kernel refuses, or the program comes from another object.
pub fn functions(pins: &Pins, object: &[u8], program: &str) -> Result<Vec<FunctionReport>> {
    let failed = |op| move |source| Error::Program { op, program: program.to_owned(), source };
    let fd = obj_get(&pins.programs().join(program), false).map_err(failed("open"))?;
    let (found, total) = sys::functions(fd.as_fd()).map_err(failed("examine"))?;
    let object = aya_obj::Object::parse(object)?;
    let ends = found.iter().skip(1).map(|next| next.begin).chain([total]);
    found
        .iter()
        .zip(ends)
        .map(|(one, end)| {
            let symbol = object
                .functions
                .values()
                .find(|known| known.func_info.func_info.iter().any(|info| info.type_id == one.type_id));
            let name = symbol.map(|symbol| symbol.name.clone());
            let stranger = || io::Error::new(io::ErrorKind::NotFound, "a function that the object lacks");
            let name = name.ok_or_else(|| failed("name the functions of")(stranger()))?;
            Ok(FunctionReport { name, instructions: end.saturating_sub(one.begin) })
        })
        .collect()
}

/// Hash kinds: plain and LRU.
const HASHES: [u32; 2] = [1, 9];

fn entries(name: &str, fd: OwnedFd, found: &MapInfo) -> Result<Option<usize>> {
    if !HASHES.contains(&found.kind) || [maps::CONFIG, maps::COUNT].contains(&name) {
        return Ok(None);
    }
    let failed = |source| Error::Map { op: "count", map: name.to_owned(), source };
    MapFd::new(fd, 1).and_then(|map| map.count_all()).map(Some).map_err(failed)
}

/// Guard of the kernel's statistics. While it lives, the kernel counts runs and run time of all programs of
/// the machine, which costs each run some 20 ns.
#[derive(Debug)]
pub struct StatsGuard {
    _fd: OwnedFd,
}

/// Starts the kernel's counting of runs and run time.
///
/// # Errors
/// The kernel refuses.
pub fn enable_stats() -> Result<StatsGuard> {
    Ok(StatsGuard { _fd: sys::enable_stats().map_err(Error::Stats)? })
}
