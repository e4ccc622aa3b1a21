//! A program for tests that need any.

use super::{address, bpf, owned, size};
use std::{io, os::fd::OwnedFd};

const PROG_LOAD: u32 = 5;
const SCHED_CLS: u32 = 3;

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// A tc program that returns `value`.
pub(crate) fn load_classifier(value: i32) -> io::Result<OwnedFd> {
    let mut code = Vec::new();
    // r0 = value; exit
    code.extend([0xb7, 0, 0, 0]);
    code.extend(value.to_ne_bytes());
    code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    let license = c"GPL";
    let mut attr = Load {
        kind: SCHED_CLS,
        count: size(code.len() / 8)?,
        instructions: address(code.as_ptr()),
        license: address(license.as_ptr()),
    };
    // SAFETY: `count` instructions and the terminated licence live through the call; the answer is a new descriptor.
    unsafe { bpf(PROG_LOAD, &mut attr).map(|fd| owned(fd)) }
}
