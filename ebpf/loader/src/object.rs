//! The embedded eBPF object and its definitions.

use crate::{Error, Result, sys::MapInfo};
use aya_obj::{Object, ProgramSection};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// The programs and map definitions, as `cargo xtask ebpf` builds them.
#[cfg(not(feature = "other-build"))]
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../programs/berth.bpf.o");

/// The same programs in an object of another digest, as another release brings them: an agent that adopts the
/// pins of the plain build loads these programs again and swaps them into the links.
#[cfg(feature = "other-build")]
pub static OBJECT: &[u8] = &other_build::OBJECT.0;

#[cfg(feature = "other-build")]
mod other_build {
    const PLAIN: &[u8] = include_bytes!("../../programs/berth.bpf.o");
    /// Extra bytes. Bytes behind the last section belong to no section.
    const MORE: usize = 16;

    /// Alignment that the object's parser needs.
    #[repr(C, align(32))]
    pub(super) struct Aligned(pub(super) [u8; PLAIN.len() + MORE]);

    pub(super) static OBJECT: Aligned = Aligned(longer());

    const fn longer() -> [u8; PLAIN.len() + MORE] {
        let mut all = [0; PLAIN.len() + MORE];
        all.split_at_mut(PLAIN.len()).0.copy_from_slice(PLAIN);
        all
    }
}

/// The SHA-256 of an object, in hexadecimal.
pub fn digest(object: &[u8]) -> String {
    let sum = Sha256::digest(object);
    sum.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// A socket hook: a program that is attached to the cgroup of pods and host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the kernel's own names")]
pub enum SocketHook {
    Recvmsg4,
    Recvmsg6,
    Getpeername4,
    Getpeername6,
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
}

impl SocketHook {
    /// All hooks in the order of attachment: hooks that translate answers back come before hooks that
    /// redirect requests.
    pub const ALL: [SocketHook; 8] = [
        SocketHook::Recvmsg4,
        SocketHook::Recvmsg6,
        SocketHook::Getpeername4,
        SocketHook::Getpeername6,
        SocketHook::Connect4,
        SocketHook::Connect6,
        SocketHook::Sendmsg4,
        SocketHook::Sendmsg6,
    ];

    /// The name of the hook's program and of its link's pin.
    pub fn name(self) -> &'static str {
        match self {
            SocketHook::Recvmsg4 => "recvmsg4",
            SocketHook::Recvmsg6 => "recvmsg6",
            SocketHook::Getpeername4 => "getpeername4",
            SocketHook::Getpeername6 => "getpeername6",
            SocketHook::Connect4 => "connect4",
            SocketHook::Connect6 => "connect6",
            SocketHook::Sendmsg4 => "sendmsg4",
            SocketHook::Sendmsg6 => "sendmsg6",
        }
    }

    /// The kernel's `enum bpf_attach_type`.
    pub(crate) fn attach_type(self) -> u32 {
        match self {
            SocketHook::Connect4 => 10,
            SocketHook::Connect6 => 11,
            SocketHook::Sendmsg4 => 14,
            SocketHook::Sendmsg6 => 15,
            SocketHook::Recvmsg4 => 19,
            SocketHook::Recvmsg6 => 20,
            SocketHook::Getpeername4 => 29,
            SocketHook::Getpeername6 => 30,
        }
    }
}

/// The maps and programs of an object that are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) maps: Vec<MapSpec>,
    pub(crate) programs: Vec<String>,
}

/// A map as an object defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MapSpec {
    pub(crate) name: String,
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

impl MapSpec {
    /// Checks whether a pinned map can serve as this one. The number of entries may differ.
    pub(crate) fn check(&self, found: &MapInfo) -> Result<()> {
        let fields = [
            ("kind", self.kind, found.kind),
            ("key size", self.key_size, found.key_size),
            ("value size", self.value_size, found.value_size),
            ("flags", self.flags, found.flags),
        ];
        match fields.into_iter().find(|(_, want, found)| want != found) {
            Some((field, want, found)) => {
                Err(Error::MapMismatch { map: self.name.clone(), field, want, found })
            }
            None => Ok(()),
        }
    }
}

impl Contents {
    /// Reads an object's definitions.
    ///
    /// # Errors
    /// The bytes are no eBPF object.
    pub(crate) fn parse(object: &[u8]) -> Result<Contents> {
        let object = Object::parse(object)?;
        let mut maps: Vec<MapSpec> = object
            .maps
            .iter()
            // Names with a dot are the compiler's sections of constants: each load creates its own.
            .filter(|(name, _)| !name.contains('.'))
            .map(|(name, map)| MapSpec {
                name: name.clone(),
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            })
            .collect();
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        let wanted = |section: &_| {
            matches!(section, ProgramSection::CgroupSockAddr { .. } | ProgramSection::SchedClassifier)
        };
        let mut programs: Vec<String> = object
            .programs
            .iter()
            .filter(|(_, program)| wanted(&program.section))
            .map(|(name, _)| name.clone())
            .collect();
        programs.sort();
        Ok(Contents { maps, programs })
    }
}
