//! A program for tests that need any program.

use super::iter::load;
use std::{io, os::fd::OwnedFd};

const SCHED_CLS: u32 = 3;

/// A tc program that returns `value`.
pub(crate) fn load_classifier(value: i32) -> io::Result<OwnedFd> {
    let mut code = Vec::new();
    // r0 = value; exit
    code.extend([0xb7, 0, 0, 0]);
    code.extend(value.to_ne_bytes());
    code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    load(SCHED_CLS, [0; 16], &code, 0, 0)
}
