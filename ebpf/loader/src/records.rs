//! Records of the translations of sockets (the REVERSE maps, socket storage), read from outside of the
//! sockets.
//!
//! The loading child creates the iterators that read the records, and pins them beside the programs: creation
//! needs the kernel's types, some 20 MB for as long as they are read. Where the kernel has no such iterators,
//! a dangling symbolic link in their place holds the reason, so that the next start does not load everything
//! again because of them.

use crate::{
    Error, Pins, Plain, Result,
    pins::{failed, list, pin_over, remove},
    plain::bytes_mut,
    sys::{LinkInfo, STORAGE_ITERATOR, info, obj_get, read_iterator, storage_iterator},
};
use aya_obj::btf::{Btf, BtfKind};
use berth_ebpf_abi::{Reverse, Reverses, V4, V6, maps};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    slice,
};

/// The maps that are read, and the size of their values in bytes.
const MAPS: [(&str, usize); 2] =
    [(maps::REVERSE4, size_of::<Reverses<V4>>()), (maps::REVERSE6, size_of::<Reverses<V6>>())];

/// Version of the output format of the iterators' program, a part of their pins' names. Every change of the
/// format raises it.
const VERSION: u32 = 1;

const LINK_TYPE_ITERATOR: u32 = 4;

/// Maximum length of a reason: the target of a symbolic link cannot be longer than a path.
const LONGEST_REASON: usize = 1000;

fn pin(pins: &Pins, map: &str) -> PathBuf {
    // A name with a dot is reserved for the kernel on a BPF file system.
    pins.iterators().join(format!("{map}-{VERSION}"))
}

/// The symbolic link that holds the reason for missing iterators.
fn without(pins: &Pins) -> PathBuf {
    pins.iterators().join(format!("without-{VERSION}"))
}

/// Creates the iterators over the pinned maps and replaces existing ones, or writes the reason for their
/// absence.
pub(crate) fn pin_iterators(pins: &Pins) -> Result<()> {
    let mut now = Vec::new();
    match make_iterators(pins) {
        Ok(links) => {
            for (map, link) in links {
                let path = pin(pins, map);
                pin_over(link.as_fd(), &path)?;
                now.push(path);
            }
        }
        Err(why) => {
            let (path, mut reason) = (without(pins), why.to_string());
            reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
            remove(&path)?;
            symlink(&reason, &path).map_err(failed("make", &path))?;
            now.push(path);
        }
    }
    for (_, path) in list(&pins.iterators())? {
        if !now.contains(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn make_iterators(pins: &Pins) -> io::Result<Vec<(&'static str, OwnedFd)>> {
    let btf = Btf::from_sys_fs().map_err(io::Error::other)?;
    let function = btf.id_by_type_name_kind(STORAGE_ITERATOR, BtfKind::Func).map_err(io::Error::other)?;
    let make = |(name, len): (&'static str, usize)| {
        let map = obj_get(&pins.maps().join(name), false)?;
        let len = u32::try_from(len).map_err(io::Error::other)?;
        Ok((name, storage_iterator(map.as_fd(), len, function)?))
    };
    MAPS.into_iter().map(make).collect()
}

/// Why this kernel allows no iterators, for tests; `None` where it does.
#[cfg(test)]
pub(crate) fn refused_by_the_kernel() -> Option<String> {
    let btf = Btf::from_sys_fs().ok()?;
    let function = btf.id_by_type_name_kind(STORAGE_ITERATOR, BtfKind::Func).ok()?;
    crate::sys::refusal_of_iterators(function).map(|error| error.to_string())
}

/// Whether the iterators, or the reason for their absence, are pinned: then another load adds nothing.
pub(crate) fn are_pinned(pins: &Pins) -> Result<bool> {
    let is_there = |path: &Path| match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true).map_err(failed("examine", path)),
    };
    if is_there(&without(pins))? {
        return Ok(true);
    }
    for (map, _) in MAPS {
        if !is_there(&pin(pins, map))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A frontend of a Service, as stale peers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The dialled address; `None` for a node port, which any address of the node serves.
    pub address: Option<IpAddr>,
    /// The port that is dialled.
    pub port: u16,
}

/// A backend that one Service port no longer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StalePeer {
    /// The backend.
    pub backend: SocketAddr,
    /// One of the Service port's frontends; `None` where the frontends are unknown and any counts.
    pub frontend: Option<Frontend>,
}

/// Reader of the sockets' records. The caller opens it for one change and drops it afterwards, so that it
/// always belongs to the pinned maps.
#[derive(Debug)]
pub struct SocketRecords {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl SocketRecords {
    /// Opens the iterators that the loading child pinned for the maps of this program's own schema. Takes
    /// some microseconds.
    ///
    /// # Errors
    /// The pin is missing or is no iterator, or the kernel has no such iterators.
    pub fn open(pins: &Pins) -> Result<SocketRecords> {
        let open = |map: &str| {
            let path = pin(pins, map);
            let opened = obj_get(&path, false).and_then(|link| {
                let found: LinkInfo = info(link.as_fd())?;
                let is_one = found.kind == LINK_TYPE_ITERATOR;
                if is_one { Ok(link) } else { Err(io::Error::other("it is no iterator")) }
            });
            opened.map_err(|source| {
                let why = fs::read_link(without(pins)).ok();
                let source = why.map_or(source, |why| io::Error::other(why.to_string_lossy().into_owned()));
                Error::OpenPin { path, source }
            })
        };
        Ok(SocketRecords { v4: open(maps::REVERSE4)?, v6: open(maps::REVERSE6)? })
    }

    /// The current records of all sockets.
    pub(crate) fn read(&self) -> Result<Remembered> {
        let failed = |map: &'static str| move |source| Error::Map { op: "read", map: map.to_owned(), source };
        let v4 = read_iterator(self.v4.as_fd()).and_then(|bytes| parse::<V4>(&bytes));
        let v6 = read_iterator(self.v6.as_fd()).and_then(|bytes| parse::<V6>(&bytes));
        Ok(Remembered { v4: v4.map_err(failed(maps::REVERSE4))?, v6: v6.map_err(failed(maps::REVERSE6))? })
    }
}

/// The record ring of each socket by its cookie. An IPv6 socket that speaks IPv4 has its records in the IPv4
/// map.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    v4: HashMap<u64, Reverses<V4>>,
    v6: HashMap<u64, Reverses<V6>>,
}

/// Parses alternating cookies and values.
fn parse<A: Copy + Default>(bytes: &[u8]) -> io::Result<HashMap<u64, Reverses<A>>>
where
    Reverses<A>: Plain,
{
    let chunks = bytes.chunks_exact(8 + size_of::<Reverses<A>>());
    if !chunks.remainder().is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut all = HashMap::with_capacity(chunks.len());
    for chunk in chunks {
        let (cookie, value) = chunk.split_first_chunk::<8>().ok_or(io::ErrorKind::InvalidData)?;
        let mut ring = Reverses::<A>::default();
        bytes_mut(slice::from_mut(&mut ring)).copy_from_slice(value);
        all.insert(u64::from_ne_bytes(*cookie), ring);
    }
    Ok(all)
}

trait Address: Copy + PartialEq {
    fn ip(self) -> IpAddr;
}

impl Address for V4 {
    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self.to_ne_bytes()).into()
    }
}

impl Address for V6 {
    fn ip(self) -> IpAddr {
        let mut octets = [0; 16];
        for (to, word) in octets.chunks_exact_mut(4).zip(self) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

/// The way a socket came to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// Through a Service: the application dialled this address, and the hook replaced it by the peer.
    Through(SocketAddr),
    /// The application dialled the peer itself.
    Itself,
    /// The ring is full of later translations, so the record of this peer may be overwritten.
    Forgotten,
}

fn came<A: Address>(ring: Option<&Reverses<A>>, peer: SocketAddr) -> Came {
    let Some(ring) = ring else { return Came::Itself };
    let at = |e: &&Reverse<A>| {
        e.port != 0 && SocketAddr::new(e.backend.ip(), u16::from_be(e.backend_port)) == peer
    };
    match ring.entries.iter().find(at) {
        Some(entry) => Came::Through(SocketAddr::new(entry.addr.ip(), u16::from_be(entry.port))),
        None if ring.entries.iter().all(|e| e.port != 0) => Came::Forgotten,
        None => Came::Itself,
    }
}

/// The frontends that lost a backend, by backend.
#[derive(Debug, Default)]
pub(crate) struct Losses(HashMap<SocketAddr, HashSet<Option<Frontend>>>);

impl Losses {
    pub(crate) fn new(lost: &[StalePeer]) -> Losses {
        let mut losses = Losses::default();
        for StalePeer { backend, frontend } in lost {
            losses.0.entry(*backend).or_default().insert(*frontend);
        }
        losses
    }

    pub(crate) fn backends(&self) -> HashSet<SocketAddr> {
        self.0.keys().copied().collect()
    }

    /// Whether the socket with this cookie and peer must be destroyed. A socket with an unknown origin is
    /// destroyed: if it stayed, it could send to a removed backend for ever, while a destroyed one connects
    /// again.
    pub(crate) fn must_end(&self, remembered: &Remembered, cookie: u64, peer: SocketAddr) -> bool {
        let Some(frontends) = self.0.get(&peer) else { return false };
        let came = match peer {
            SocketAddr::V4(_) => came(remembered.v4.get(&cookie), peer),
            SocketAddr::V6(_) => came(remembered.v6.get(&cookie), peer),
        };
        match came {
            Came::Itself => false,
            Came::Forgotten => true,
            Came::Through(dialled) => {
                let port = dialled.port();
                let ways = [
                    None,
                    Some(Frontend { address: None, port }),
                    Some(Frontend { address: Some(dialled.ip()), port }),
                ];
                ways.iter().any(|way| frontends.contains(way))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ring(entries: &[(&str, &str)]) -> Reverses<V4> {
        let mut ring = Reverses::default();
        let word = |a: SocketAddr| match a.ip() {
            IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
            IpAddr::V6(_) => panic!("{a}"),
        };
        for (place, (frontend, backend)) in ring.entries.iter_mut().zip(entries) {
            let (frontend, backend) = (addr(frontend), addr(backend));
            *place = Reverse {
                addr: word(frontend),
                backend: word(backend),
                port: frontend.port().to_be(),
                backend_port: backend.port().to_be(),
            };
        }
        ring
    }

    #[test]
    fn only_sockets_of_a_frontend_that_lost_the_backend_are_ended() {
        let (one, other, gone) = ("10.96.0.1:53", "10.96.0.2:53", "10.0.0.9:5353");
        let full: Vec<(String, String)> =
            (0..8).map(|i| (one.to_owned(), format!("10.0.1.{i}:53"))).collect();
        let full: Vec<(&str, &str)> = full.iter().map(|(f, b)| (f.as_str(), b.as_str())).collect();
        let rings = [
            ring(&[(one, gone)]),
            ring(&[(other, gone)]),
            ring(&[(one, "10.0.0.8:5353")]),
            ring(&full),
            ring(&[("192.0.2.1:30053", gone)]),
        ];
        let v4 = (0..).zip(rings).collect();
        let remembered = Remembered { v4, v6: HashMap::new() };
        // Cookie 99 has no ring at all.
        let selected = |frontend| {
            let losses = Losses::new(&[StalePeer { backend: addr(gone), frontend }]);
            [0, 1, 2, 3, 4, 99].map(|cookie| losses.must_end(&remembered, cookie, addr(gone)))
        };
        let at = |text: &str| {
            let at = addr(text);
            Some(Frontend { address: Some(at.ip()), port: at.port() })
        };
        assert_eq!(selected(at(one)), [true, false, false, true, false, false]);
        assert_eq!(selected(at(other)), [false, true, false, true, false, false]);
        let node_port = Some(Frontend { address: None, port: 30053 });
        assert_eq!(selected(node_port), [false, false, false, true, true, false]);
        assert_eq!(selected(None), [true, true, false, true, true, false]);
        let losses = Losses::new(&[StalePeer { backend: addr(gone), frontend: None }]);
        assert!(!losses.must_end(&remembered, 0, addr("10.0.0.9:5354")));
    }

    #[test]
    fn torn_records_are_an_error() {
        let mut bytes = 7_u64.to_ne_bytes().to_vec();
        bytes.extend([0; 100]);
        assert_eq!(parse::<V4>(&bytes).unwrap().keys().collect::<Vec<_>>(), [&7]);
        bytes.push(0);
        assert!(parse::<V4>(&bytes).is_err());
    }
}
