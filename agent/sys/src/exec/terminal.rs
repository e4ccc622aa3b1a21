//! The terminal of a command: a new pseudoterminal of the container's own `/dev/pts`.
//!
//! The container controls its files, and may have put anything in the place of `/dev/pts` or of a file in it. Only the
//! multiplexer of a devpts file system is opened, and the command's side is taken from it and from no path.

use super::{
    Stage,
    child::{Step, check},
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, major, minor, openat2},
    io::{Errno, IoSlice},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
};
use std::{
    ffi::c_long,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS: i64 = 0x1cd1;

/// Device number of the multiplexer.
const MULTIPLEXER: (u32, u32) = (5, 2);

/// Makes a terminal, sends its other side over the socket, and makes it the standard streams. The calling process is
/// in the container's mount namespace and still root.
pub(super) fn make(console: OwnedFd) -> Step<()> {
    let made = || -> Result<(), Errno> {
        let other = open()?;
        unlockpt(&other)?;
        let terminal = ioctl_tiocgptpeer(&other, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        send(&console, &other)?;
        for number in 0..3 {
            // SAFETY: takes no pointers; the replaced descriptors are placeholders.
            check(Stage::Terminal, c_long::from(unsafe { libc::dup2(terminal.as_raw_fd(), number) }))
                .map_err(|(_, errno)| errno)?;
        }
        Ok(())
    };
    made().map_err(|errno| (Stage::Terminal, errno))
}

/// Opens the multiplexer, which makes a new terminal.
fn open() -> Result<OwnedFd, Errno> {
    let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat2(CWD, "/dev/pts", dir, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    if fstatfs(&dir)?.f_type != DEVPTS {
        return Err(Errno::NODEV);
    }
    // Nobody makes or replaces files in a devpts, but a mount may lie over one.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = openat2(&dir, "ptmx", flags, Mode::empty(), ResolveFlags::NO_XDEV)?;
    let device = fstat(&opened)?.st_rdev;
    if (major(device), minor(device)) == MULTIPLEXER { Ok(opened) } else { Err(Errno::NODEV) }
}

fn send(console: &OwnedFd, terminal: &OwnedFd) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors = [terminal.as_fd()];
    if !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(console, &[IoSlice::new(b"t")], &mut rights, SendFlags::NOSIGNAL).map(drop)
}

/// Makes the terminal on standard input the controlling one of the calling process, which leads a session.
pub(super) fn control(has_terminal: bool) -> Step<()> {
    if !has_terminal {
        return Ok(());
    }
    // SAFETY: takes no pointers.
    check(Stage::Terminal, c_long::from(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })).map(drop)
}
