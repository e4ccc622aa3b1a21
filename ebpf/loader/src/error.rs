//! Errors of the loader, with the operation and its object.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// The outcome of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation and its object. The kernel's answer is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pinned object could not be opened.
    #[error("cannot open the pin {}", path.display())]
    OpenPin {
        /// Path of the pin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An object could not be pinned.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// Path of the pin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A pin, directory or link on the BPF file system could not be made, renamed, read or removed.
    #[error("cannot {op} {}", path.display())]
    File {
        /// The operation, a verb.
        op: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The directory lies on no BPF file system, and none can be mounted over what it holds.
    #[error("{} is on no BPF file system and not empty", path.display())]
    NotBpffs {
        /// The parent of the pin directory.
        path: PathBuf,
    },
    /// The directory is a volume of a container that passes no mount on: pins would end with the container.
    #[error(
        "cannot pin programs in {0}: it is on no BPF file system, and one that is mounted in a container would end with \
         it; mount one on the host: mount -t bpf bpf {0}",
        path.display()
    )]
    BpffsOfContainer {
        /// The parent of the pin directory.
        path: PathBuf,
    },
    /// A pinned map differs from the wanted one. Nothing was changed.
    #[error("the pinned map {map} has {field} {found}, the programs want {want}")]
    MapMismatch {
        /// Name of the map.
        map: String,
        /// Name of the differing property.
        field: &'static str,
        /// Value that the programs want.
        want: u32,
        /// Value of the pinned map.
        found: u32,
    },
    /// An operation on a map failed.
    #[error("cannot {op} the map {map}")]
    Map {
        /// The operation, a verb.
        op: &'static str,
        /// Name of the map.
        map: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An operation on a program failed.
    #[error("cannot {op} the program {program}")]
    Program {
        /// The operation, a verb.
        op: &'static str,
        /// Name of the program.
        program: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An operation on a link failed.
    #[error("cannot {op} the link {link}")]
    Link {
        /// The operation, a verb.
        op: &'static str,
        /// Name of the link's pin.
        link: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The embedded object cannot be read.
    #[error("cannot read the eBPF object")]
    Object(#[from] aya_obj::ParseError),
    /// The maps cannot be created or the object cannot be relocated.
    #[error("cannot load the eBPF object")]
    Maps(#[from] Box<aya::EbpfError>),
    /// The kernel refuses a program.
    #[error("cannot load the program {program}")]
    Verify {
        /// Name of the program.
        program: String,
        /// The refusal, with the verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The object has no program of this name, or a program of another kind.
    #[error("the eBPF object has no program {program} of the wanted kind")]
    NoProgram {
        /// Name of the program.
        program: String,
    },
    /// The loading child could not be started or waited for.
    #[error("cannot {op} the loading child {}", exe.display())]
    Child {
        /// The operation, a verb.
        op: &'static str,
        /// Path of the child's binary.
        exe: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The loading child failed.
    #[error("loading the eBPF programs ended with {status}: {message}")]
    ChildFailed {
        /// Exit status of the child.
        status: ExitStatus,
        /// Standard error of the child.
        message: String,
    },
    /// The loading child exceeded its deadline and was killed.
    #[error("loading the eBPF programs took longer than {0:?}")]
    ChildDeadline(Duration),
    /// An operation in a network namespace failed.
    #[error("cannot {op} in the network namespace")]
    Netns {
        /// The operation, a verb.
        op: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot count runs of programs.
    #[error("cannot make the kernel count runs of programs")]
    Stats(#[source] io::Error),
}
