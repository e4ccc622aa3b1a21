//! Test runs of a pinned packet program on a caller's packet, with the pinned maps: for tests and diagnosis.

use crate::{Error, Pins, Result, TestRunAnswer, pins::open_program, sys::test_run};
use std::os::fd::{AsFd, OwnedFd};

/// A pinned packet program.
#[derive(Debug)]
pub struct PacketProgram {
    name: String,
    program: OwnedFd,
    id: u32,
}

impl PacketProgram {
    /// Opens a program by its name in the object.
    ///
    /// # Errors
    /// The program is not pinned.
    pub fn open(pins: &Pins, name: &str) -> Result<PacketProgram> {
        let (program, id) = open_program(pins, name)?;
        Ok(PacketProgram { name: name.to_owned(), program, id })
    }

    /// The kernel's id of the program.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Runs the program once on an Ethernet frame. No device receives the frame.
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
