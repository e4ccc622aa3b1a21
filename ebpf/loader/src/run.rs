//! Runs a pinned packet program on a packet of the caller's, with the pinned maps: for tests and for diagnosis.

use crate::{Error, Pins, Result, TestRunAnswer, attach::open_program, sys::test_run};
use std::os::fd::{AsFd, OwnedFd};

/// A pinned packet program.
#[derive(Debug)]
pub struct PacketProgram {
    name: String,
    program: OwnedFd,
}

impl PacketProgram {
    /// Opens a program by its name in the object.
    ///
    /// # Errors
    /// It is not pinned.
    pub fn open(pins: &Pins, name: &str) -> Result<PacketProgram> {
        let (program, _) = open_program(pins, name)?;
        Ok(PacketProgram { name: name.to_owned(), program })
    }

    /// Runs it once on an Ethernet frame, which no device sees.
    ///
    /// # Errors
    /// The kernel refuses the frame.
    pub fn run(&self, frame: &[u8]) -> Result<TestRunAnswer> {
        test_run(self.program.as_fd(), frame, 1).map_err(|source| Error::Program {
            op: "run",
            program: self.name.clone(),
            source,
        })
    }
}
