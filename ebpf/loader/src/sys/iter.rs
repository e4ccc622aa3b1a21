//! Iterator over the socket storage of a map, of all sockets in all network namespaces (bpf_iter,
//! `bpf_sk_storage_map`). Its program writes each socket's cookie and value.

use super::{LINK_CREATE, address, bpf, number, owned, size};
use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{BorrowedFd, OwnedFd},
};

const PROG_LOAD: u32 = 5;
const ITER_CREATE: u32 = 33;
const TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const GET_SOCKET_COOKIE: i32 = 46;
const SEQ_WRITE: i32 = 127;

/// The kernel function that represents the programs of this iterator.
pub(crate) const STORAGE_ITERATOR: &str = "bpf_iter_bpf_sk_storage_map";

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
    btf: [u32; 2],
    functions: [u32; 4],
    lines: [u32; 3],
    attach_btf_id: u32,
}

#[repr(C)]
struct LinkIterator {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    pad: u32,
}

#[repr(C)]
struct IteratorCreate {
    link: u32,
    flags: u32,
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; 8] {
    let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    [code, registers, o0, o1, v0, v1, v2, v3]
}

/// The program that writes the cookie and the first `len` bytes of the value. Its context is `{meta, map, sk,
/// value}`; the first word of `meta` is the file that is written to. A call without socket or value follows
/// the last socket.
fn program(len: i32) -> Vec<u8> {
    const LOAD: u8 = 0x79;
    const STORE: u8 = 0x7b;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const IF_ZERO: u8 = 0x15;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    [
        instruction(COPY, 6, 1, 0, 0),
        instruction(LOAD, 8, 6, 16, 0),
        instruction(IF_ZERO, 8, 0, 16, 0),
        instruction(LOAD, 9, 6, 24, 0),
        instruction(IF_ZERO, 9, 0, 14, 0),
        instruction(LOAD, 7, 6, 0, 0),
        instruction(LOAD, 7, 7, 0, 0),
        instruction(COPY, 1, 8, 0, 0),
        instruction(CALL, 0, 0, 0, GET_SOCKET_COOKIE),
        instruction(STORE, 10, 0, -8, 0),
        instruction(COPY, 1, 7, 0, 0),
        instruction(COPY, 2, 10, 0, 0),
        instruction(ADD, 2, 0, 0, -8),
        instruction(SET, 3, 0, 0, 8),
        instruction(CALL, 0, 0, 0, SEQ_WRITE),
        instruction(COPY, 1, 7, 0, 0),
        instruction(COPY, 2, 9, 0, 0),
        instruction(SET, 3, 0, 0, len),
        instruction(CALL, 0, 0, 0, SEQ_WRITE),
        instruction(SET, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]
    .concat()
}

/// Loads a program of these instructions. `attach_type` and `attach_btf_id` are 0 for kinds without them.
pub(super) fn load(
    kind: u32,
    name: [u8; 16],
    code: &[u8],
    attach_type: u32,
    attach_btf_id: u32,
) -> io::Result<OwnedFd> {
    // Some helpers require a GPL-compatible licence.
    let license = c"Dual BSD/GPL";
    let mut load = Load {
        kind,
        count: size(code.len() / 8)?,
        instructions: address(code.as_ptr()),
        license: address(license.as_ptr()),
        log: [0; 4],
        kernel_version: 0,
        flags: 0,
        name,
        ifindex: 0,
        attach_type,
        btf: [0; 2],
        functions: [0; 4],
        lines: [0; 3],
        attach_btf_id,
    };
    // SAFETY: `count` instructions and the terminated licence live through the call; the answer is a new file
    // descriptor.
    unsafe { bpf(PROG_LOAD, &mut load).map(|fd| owned(fd)) }
}

/// Loads the program for values of `len` bytes and attaches it to the map. `function` is the BTF id of
/// [`STORAGE_ITERATOR`]. The link keeps the program alive.
pub(crate) fn storage_iterator(map: BorrowedFd<'_>, len: u32, function: u32) -> io::Result<OwnedFd> {
    let code = program(i32::try_from(len).map_err(io::Error::other)?);
    let program = load(TRACING, *b"berth_storage\0\0\0", &code, TRACE_ITER, function)?;
    let info = number(map);
    let mut link = LinkIterator {
        program: number(std::os::fd::AsFd::as_fd(&program)),
        target: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        info: address(&raw const info),
        info_len: 4,
        pad: 0,
    };
    // SAFETY: the information is the 4 bytes that its length says and lives through the call; the answer is a
    // new file descriptor.
    unsafe { bpf(LINK_CREATE, &mut link).map(|fd| owned(fd)) }
}

/// Why this kernel loads no program of this kind at all, for tests: a locked-down kernel may refuse every one with `EPERM`.
/// Asked with a program that does nothing.
#[cfg(test)]
pub(crate) fn refusal_of_iterators(function: u32) -> Option<io::Error> {
    // Its last two instructions return 0.
    let code = program(0);
    let code = code.get(code.len().saturating_sub(16)..).unwrap_or_default();
    load(TRACING, *b"berth_nothing\0\0\0", code, TRACE_ITER, function).err()
}

/// Runs the iterator over all current sockets and returns the program's output.
pub(crate) fn read_iterator(link: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut create = IteratorCreate { link: number(link), flags: 0 };
    // SAFETY: the command takes numbers only; the answer is a new descriptor.
    let run = unsafe { bpf(ITER_CREATE, &mut create).map(|fd| owned(fd)) }?;
    let mut bytes = Vec::new();
    File::from(run).read_to_end(&mut bytes)?;
    Ok(bytes)
}
