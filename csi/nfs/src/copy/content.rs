//! The bytes of a file: copied by the server itself where it can (NFSv4.2), and holes stay holes.

use super::{Copied, Failure, system};
use crate::error::Result;
use rustix::{
    fd::BorrowedFd,
    fs::{SeekFrom, copy_file_range, ftruncate, seek},
    io::{Errno, pread, pwrite},
};

/// Bytes of one call, so that progress is seen and an end is obeyed.
const STEP: u64 = 32 << 20;

/// Bytes of one read where the server cannot copy.
const BUFFER: usize = 1 << 20;

/// Copies the first `size` bytes; `sparse` says whether there may be holes, for which the server is asked then. A file that shrinks meanwhile has a hole at its end; bytes added meanwhile are left.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    size: u64,
    sparse: bool,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Copied<()> {
    let mut by_server = true;
    let mut at = 0;
    while at < size {
        let next = if sparse { next_data(from, at, size)? } else { Some((at, size)) };
        let Some((data, hole)) = next else { break };
        at = data;
        while at < hole {
            let step = (hole - at).min(STEP);
            let done = if by_server { by_kernel(from, to, at, step)? } else { None };
            let done = match done {
                Some(done) => done,
                None => {
                    by_server = false;
                    by_hand(from, to, at, step)?
                }
            };
            if done == 0 {
                at = size;
                break;
            }
            at += done;
            progress(done).map_err(Failure::Ended)?;
        }
    }
    ftruncate(to, size).map_err(system("set the size of a file in the copy of"))
}

/// The next bytes that are no hole: from, to. A file system that knows no holes has data everywhere.
fn next_data(from: BorrowedFd<'_>, at: u64, size: u64) -> Copied<Option<(u64, u64)>> {
    let data = match seek(from, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(e) => return Err(Failure::System("find the data of a file in", e)),
    };
    // A server may answer nonsense: the copy goes forward all the same.
    let data = data.clamp(at, size);
    let hole = seek(from, SeekFrom::Hole(data)).unwrap_or(size);
    let hole = if hole <= data { size } else { hole.min(size) };
    Ok((data < size).then_some((data, hole)))
}

/// Has the kernel copy, which asks the server to. `None` where it cannot.
fn by_kernel(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, length: u64) -> Copied<Option<u64>> {
    let (mut read, mut write) = (at, at);
    let length = usize::try_from(length).unwrap_or(BUFFER);
    match copy_file_range(from, Some(&mut read), to, Some(&mut write), length) {
        // At the end of the file, but also where the kernel cannot tell: the plain copy decides.
        Ok(0) => Ok(None),
        Ok(done) => Ok(Some(done as u64)),
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => Ok(None),
        Err(e) => Err(Failure::System("copy a file of", e)),
    }
}

/// Reads and writes.
fn by_hand(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: u64, length: u64) -> Copied<u64> {
    let length = usize::try_from(length).unwrap_or(BUFFER).min(BUFFER);
    let mut buffer = vec![0; length];
    let read = pread(from, &mut buffer, at).map_err(system("read a file of"))?;
    let mut rest = buffer.get(..read).unwrap_or_default();
    let mut write = at;
    while !rest.is_empty() {
        let done = pwrite(to, rest, write).map_err(system("write a file in the copy of"))?;
        if done == 0 {
            return Err(Failure::System("write a file in the copy of", Errno::IO));
        }
        write += done as u64;
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(read as u64)
}
