//! What can go wrong between the loader, the kernel and what is pinned.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// The outcome of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation and what it was about. The kernel's answer is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pinned object could not be opened.
    #[error("cannot open the pin {}", path.display())]
    OpenPin {
        /// Where it is pinned.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An object could not be pinned.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pin, directory or link on the BPF file system could not be made, renamed, read or removed.
    #[error("cannot {op} {}", path.display())]
    File {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory lies on no BPF file system, and none can be mounted over what it holds.
    #[error("{} is on no BPF file system and not empty", path.display())]
    NotBpffs {
        /// The parent of the pin directory.
        path: PathBuf,
    },
    /// A pinned map is not what the programs want. Nothing was changed.
    #[error("the pinned map {map} has {field} {found}, the programs want {want}")]
    MapMismatch {
        /// Its name.
        map: String,
        /// What differs.
        field: &'static str,
        /// What the programs want.
        want: u32,
        /// What is pinned.
        found: u32,
    },
    /// An operation on a map failed.
    #[error("cannot {op} the map {map}")]
    Map {
        /// What was tried.
        op: &'static str,
        /// Its name.
        map: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An operation on a program failed.
    #[error("cannot {op} the program {program}")]
    Program {
        /// What was tried.
        op: &'static str,
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An operation on a link failed.
    #[error("cannot {op} the link {link}")]
    Link {
        /// What was tried.
        op: &'static str,
        /// The name of its pin.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The embedded object cannot be read.
    #[error("cannot read the eBPF object")]
    Object(#[from] aya_obj::ParseError),
    /// The maps cannot be made or the object cannot be relocated.
    #[error("cannot load the eBPF object")]
    Maps(#[from] Box<aya::EbpfError>),
    /// The kernel refuses a program.
    #[error("cannot load the program {program}")]
    Verify {
        /// Its name.
        program: String,
        /// Why; the verifier's log among it.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The object has no program of this name, or one of another kind.
    #[error("the eBPF object has no program {program} of the wanted kind")]
    NoProgram {
        /// Its name.
        program: String,
    },
    /// The loading child could not be started or waited for.
    #[error("cannot {op} the loading child {}", exe.display())]
    Child {
        /// What was tried.
        op: &'static str,
        /// What was run.
        exe: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The loading child failed.
    #[error("loading the eBPF programs ended with {status}: {message}")]
    ChildFailed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// The loading child took too long and was killed.
    #[error("loading the eBPF programs took longer than {0:?}")]
    ChildDeadline(Duration),
    /// Something in a network namespace failed.
    #[error("cannot {op} in the network namespace")]
    Netns {
        /// What was tried.
        op: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not count what programs cost.
    #[error("cannot make the kernel count runs of programs")]
    Stats(#[source] io::Error),
}
