//! bpf(2): the commands that the crates below this one lack or hide. Each call checks the sizes of the
//! buffers that the kernel reads and writes, so all of them are safe to call. No call blocks except on the
//! kernel's own locks.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

mod info;
mod iter;
mod map;
#[cfg(test)]
mod testing;

pub(crate) use info::{LinkInfo, MapInfo, ProgInfo, fdinfo, functions, info};
#[cfg(test)]
pub(crate) use iter::refusal_of_iterators;
pub(crate) use iter::{STORAGE_ITERATOR, read_iterator, storage_iterator};
#[cfg(test)]
pub(crate) use map::create_map;
pub(crate) use map::{MapFd, Progress};
#[cfg(test)]
pub(crate) use testing::load_classifier;

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const ENABLE_STATS: u32 = 32;
const F_RDONLY: u32 = 1 << 3;

/// Makes one call. Returns the kernel's non-negative answer.
///
/// # Safety
/// `A` is the kernel's structure for this command (or a prefix of it), without padding, and each address in
/// it points to memory that lives through the call and is as large as the command says.
unsafe fn bpf<A>(command: u32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(done).map_err(io::Error::other) }
}

/// Takes ownership of the descriptor that a command returned.
///
/// # Safety
/// `fd` is such a descriptor, new and without another owner.
unsafe fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the caller's promise. The kernel sets close-on-exec on every descriptor of bpf(2).
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    // A pointer is never wider than 64 bits on a machine that has bpf(2).
    of.cast::<u8>().expose_provenance() as u64
}

fn size(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(io::Error::other)
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned map, program or link.
pub(crate) fn obj_get(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let flags = if read_only { F_RDONLY } else { 0 };
    let mut attr = Pin { path: address(name.as_ptr()), fd: 0, flags };
    // SAFETY: the path is terminated and outlives the call; the answer is a new descriptor.
    unsafe { bpf(OBJ_GET, &mut attr).map(|fd| owned(fd)) }
}

/// Pins an object; fails where the path is already pinned.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Pin { path: address(name.as_ptr()), fd: number(fd), flags: 0 };
    // SAFETY: the path is terminated and outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr).map(drop) }
}

/// Target of an attachment.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Cgroup(BorrowedFd<'a>),
    Device(u32),
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program behind the programs that are attached already.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let target = match target {
        Target::Cgroup(fd) => number(fd),
        Target::Device(ifindex) => ifindex,
    };
    let mut attr = LinkCreate { program: number(program), target, attach_type, flags: 0 };
    // SAFETY: the command takes numbers only; the answer is a new descriptor.
    unsafe { bpf(LINK_CREATE, &mut attr).map(|fd| owned(fd)) }
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Replaces a link's program atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link: number(link), program: number(program), flags: 0, old_program: 0 };
    // SAFETY: the command takes numbers only.
    unsafe { bpf(LINK_UPDATE, &mut attr).map(drop) }
}

#[repr(C)]
struct TestRun {
    program: u32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Result of a test run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRunAnswer {
    /// The program's return value.
    pub value: u32,
    /// The packet after the run.
    pub packet: Vec<u8>,
    /// The mean time of one run, in nanoseconds.
    pub mean_ns: u32,
}

/// Runs a program over a packet, `repeat` times.
pub(crate) fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<TestRunAnswer> {
    // Programs may lengthen a packet; the kernel answers ENOSPC where this margin is too small.
    let mut out = vec![0; packet.len() + 256];
    let mut attr = TestRun {
        program: number(program),
        answer: 0,
        size_in: size(packet.len())?,
        size_out: size(out.len())?,
        data_in: address(packet.as_ptr()),
        data_out: address(out.as_mut_ptr()),
        repeat,
        duration: 0,
    };
    // SAFETY: both buffers live through the call and are as long as their sizes say.
    unsafe { bpf(PROG_TEST_RUN, &mut attr)? };
    out.truncate(usize::try_from(attr.size_out).map_err(io::Error::other)?);
    Ok(TestRunAnswer { value: attr.answer, packet: out, mean_ns: attr.duration })
}

/// Makes the kernel count runs and run time of all programs while the descriptor is open.
pub(crate) fn enable_stats() -> io::Result<OwnedFd> {
    // `BPF_STATS_RUN_TIME` of `enum bpf_stats_type`.
    let mut attr = 0_u32;
    // SAFETY: the command takes one number; the answer is a new descriptor.
    unsafe { bpf(ENABLE_STATS, &mut attr).map(|fd| owned(fd)) }
}

/// The cookie of the network namespace that this socket was made in.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: value and length outlive the call, and the length is the value's.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
