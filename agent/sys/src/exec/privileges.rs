//! The command's user and privileges: from root to what the command may be.

use super::{
    Command, Stage,
    child::{Step, check},
};
use rustix::{
    fs::{FileType, fstat},
    io::Errno,
    termios::isatty,
};
use std::{
    ffi::{CStr, c_int, c_long},
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Changes from root to the command's user. The order is runc's, because each step needs a privilege that a
/// later step drops.
pub(super) fn become_user(command: &Command) -> Step<()> {
    let entered = change_directory(&command.cwd);
    drop_bounding(command.capabilities.bounding)?;
    if command.uid != 0 {
        (0..3).for_each(|stream| own_stream(stream, command.uid));
    }
    // SAFETY: the group list is as long as stated; the other calls take no pointers.
    unsafe {
        check(Stage::Credentials, c_long::from(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)))?;
        let groups = libc::setgroups(command.groups.len(), command.groups.as_ptr());
        check(Stage::Credentials, c_long::from(groups))?;
        let (uid, gid) = (command.uid, command.gid);
        check(Stage::Credentials, c_long::from(libc::setresgid(gid, gid, gid)))?;
        check(Stage::Credentials, c_long::from(libc::setresuid(uid, uid, uid)))?;
        check(Stage::Credentials, c_long::from(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0)))?;
    }
    // The user may have access to a directory on a file system that denies it to root.
    entered.or_else(|_| change_directory(&command.cwd))?;
    still_inside()?;
    set_capabilities(command)?;
    if command.no_new_privs {
        // SAFETY: takes no pointers.
        let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        check(Stage::NoNewPrivs, c_long::from(set))?;
    }
    Ok(())
}

/// Lets a command under another user open /dev/stdout and the like again. Only pipes and terminals are the command's
/// alone; a device such as /dev/null is the node's.
fn own_stream(stream: c_int, uid: u32) {
    // SAFETY: the descriptor is open as long as the process.
    let stream = unsafe { BorrowedFd::borrow_raw(stream) };
    let pipe = fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if pipe || isatty(stream) {
        // SAFETY: takes no pointers. A failure only means that the stream cannot be opened again.
        unsafe { libc::fchown(stream.as_raw_fd(), uid, libc::gid_t::MAX) };
    }
}

fn change_directory(cwd: &CStr) -> Step<()> {
    // SAFETY: the path ends with NUL.
    check(Stage::WorkingDirectory, c_long::from(unsafe { libc::chdir(cwd.as_ptr()) })).map(|_| ())
}

/// Checks that the working directory is inside the mount namespace: for a directory outside, the kernel's
/// getcwd returns a path without a leading slash.
fn still_inside() -> Step<()> {
    let mut path = [0u8; 4096];
    // SAFETY: the buffer is as long as stated.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    check(Stage::WorkingDirectory, length)?;
    if path.first() == Some(&b'/') { Ok(()) } else { Err((Stage::WorkingDirectory, Errno::XDEV)) }
}

fn drop_bounding(keep: u64) -> Step<()> {
    for capability in 0..64u32 {
        // SAFETY: take no pointers.
        unsafe {
            match libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) {
                0 => {}
                1 if keep & (1 << capability) != 0 => {}
                1 => {
                    let dropped = libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                    check(Stage::Bounding, c_long::from(dropped))?;
                }
                // The number is past the last capability that this kernel knows.
                _ => break,
            }
        }
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and `struct __user_cap_data_struct[2]` of `linux/capability.h`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn set_capabilities(command: &Command) -> Step<()> {
    let sets = command.capabilities;
    let half = |shift: u32| {
        let part = |set: u64| u32::try_from(set >> shift & 0xFFFF_FFFF).unwrap_or_default();
        CapData {
            effective: part(sets.effective),
            permitted: part(sets.permitted),
            inheritable: part(sets.inheritable),
        }
    };
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: header and both halves live across the call and have the layout of version 3.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    check(Stage::Capabilities, set)?;
    // SAFETY: takes no pointers.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(Stage::Capabilities, c_long::from(cleared))?;
    for capability in (0..64u32).filter(|c| sets.ambient & (1 << c) != 0) {
        // SAFETY: takes no pointers.
        let raised =
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) };
        check(Stage::Capabilities, c_long::from(raised))?;
    }
    Ok(())
}
