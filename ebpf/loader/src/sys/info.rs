//! The kernel's information about its objects.

use super::{address, bpf, number, size};
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

const OBJ_GET_INFO_BY_FD: u32 = 15;

#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

/// A prefix of one of the kernel's information structures, with integers only.
///
/// # Safety
/// `repr(C)`, no padding, every pattern of bytes is a value, and all zeros requests no side buffers.
pub(crate) unsafe trait Info: Default {}

/// The used prefix of `bpf_map_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) name: [u8; 16],
}

// SAFETY: integers alone, 4 * 6 + 16 bytes.
unsafe impl Info for MapInfo {}

/// The used prefix of `bpf_prog_info`; fields without a reader here are only placeholders.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProgInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    pub(crate) jited_len: u32,
    pub(crate) xlated_len: u32,
    instructions: [u64; 2],
    pub(crate) load_time: u64,
    uid: u32,
    map_count: u32,
    map_ids: u64,
    pub(crate) name: [u8; 16],
    ifindex: u32,
    gpl: u32,
    netns: [u64; 2],
    ksym_counts: [u32; 2],
    ksyms: [u64; 2],
    btf_id: u32,
    func_info_size: u32,
    func_info: u64,
    functions: u32,
    lines: u32,
    line_info: [u64; 2],
    jited_lines: [u32; 4],
    tags: u64,
    pub(crate) run_time_ns: u64,
    pub(crate) run_count: u64,
    recursion_misses: u64,
    pub(crate) verified_instructions: u32,
    room: u32,
}

// SAFETY: integers alone, in the kernel's order; its own padding is spelled out as `room`.
unsafe impl Info for ProgInfo {}

/// `bpf_link_info`, with its kind-dependent part as numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    room: u32,
    /// A cgroup's id; a tcx link's ifindex (low half) and attach type.
    pub(crate) target: u64,
    pub(crate) cgroup_attach_type: u32,
    room2: u32,
}

// SAFETY: integers alone, in the kernel's order.
unsafe impl Info for LinkInfo {}

impl LinkInfo {
    /// The device of a tcx link; 0 where the device is gone.
    pub(crate) fn ifindex(&self) -> u32 {
        let [a, b, c, d, ..] = self.target.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// The kernel's information about an object.
pub(crate) fn info<I: Info>(fd: BorrowedFd<'_>) -> io::Result<I> {
    let mut info = I::default();
    ask(fd, &mut info)?;
    Ok(info)
}

fn ask<I: Info>(fd: BorrowedFd<'_>, info: &mut I) -> io::Result<()> {
    let mut attr =
        InfoByFd { fd: number(fd), len: size(size_of::<I>())?, info: address(std::ptr::from_mut(info)) };
    // SAFETY: the structure lives through the call and the kernel writes at most `len` bytes of integers into
    // it. A side buffer that the structure names has the length that it states, see `functions`.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(())
}

/// `bpf_func_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FuncInfo {
    /// The function's first instruction, after the verifier's rewriting.
    pub(crate) begin: u32,
    /// The function's type in the type information that the program was loaded with.
    pub(crate) type_id: u32,
}

/// A program's functions in order, and its total number of instructions.
pub(crate) fn functions(fd: BorrowedFd<'_>) -> io::Result<(Vec<FuncInfo>, u32)> {
    let found: ProgInfo = info(fd)?;
    let count = usize::try_from(found.functions).map_err(io::Error::other)?;
    let mut functions = vec![FuncInfo::default(); count];
    let mut request = ProgInfo {
        func_info_size: size(size_of::<FuncInfo>())?,
        func_info: address(functions.as_mut_ptr()),
        functions: found.functions,
        ..ProgInfo::default()
    };
    ask(fd, &mut request)?;
    Ok((functions, found.xlated_len / 8))
}

/// A number from the object's `/proc/self/fdinfo`, such as `memlock`.
pub(crate) fn fdinfo(fd: BorrowedFd<'_>, field: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.split_once(':').filter(|(name, _)| *name == field))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {field} in fdinfo")))
}
