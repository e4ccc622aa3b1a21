//! FUSE's requests and answers (`include/uapi/linux/fuse.h`), as far as reading and removing need them.

use super::{Answers, Attributes, Entry};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READLINK: u32 = 5;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const NOENT: i32 = 2;
const NOSYS: i32 = 38;

/// Bytes before a request's own.
const HEADER: usize = 40;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// The answer to a request; `None` for one that has none.
pub(super) fn answer(request: &[u8], answers: &mut impl Answers) -> Option<Vec<u8>> {
    let (kind, id, node) = (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
    let body = request.get(HEADER..).unwrap_or_default();
    let name = body.split(|b| *b == 0).next().unwrap_or_default();
    let done = match kind {
        FORGET | BATCH_FORGET | INTERRUPT => return None,
        INIT => Ok(init()),
        LOOKUP => {
            answers.lookup(node, name).map(|found| entry(found, answers.attributes(found))).ok_or(NOENT)
        }
        GETATTR => Ok([vec![0; 16], attributes(answers.attributes(node))].concat()),
        READLINK => Ok(answers.link(node)),
        // Read from here each time, whatever size was told.
        OPEN => Ok([&[0; 8][..], &1u32.to_ne_bytes(), &[0; 4]].concat()),
        OPENDIR => Ok(vec![0; 16]),
        READ => {
            let size = u32_at(body, 16);
            let mut content = answers.read(node, u64_at(body, 8), size);
            content.truncate(usize::try_from(size).unwrap_or(0));
            Ok(content)
        }
        READDIR => Ok(listing(&answers.entries(node, u64_at(body, 8)), u64_at(body, 8), u32_at(body, 16))),
        UNLINK | RMDIR => {
            if answers.remove(node, name) {
                Ok(Vec::new())
            } else {
                Err(NOENT)
            }
        }
        STATFS => Ok(vec![0; 80]),
        RELEASE | RELEASEDIR | FLUSH => Ok(Vec::new()),
        _ => Err(NOSYS),
    };
    let (error, body) = match done {
        Ok(body) => (0, body),
        Err(error) => (-error, Vec::new()),
    };
    let length = u32::try_from(16 + body.len()).unwrap_or(16);
    Some([&length.to_ne_bytes()[..], &error.to_ne_bytes(), &id.to_ne_bytes(), &body].concat())
}

/// Version 7.31 with few features.
fn init() -> Vec<u8> {
    let words = [7u32, 31, 1 << 16, 0, 0, 1 << 16, 1, 0];
    [words.iter().flat_map(|w| w.to_ne_bytes()).collect(), vec![0; 32]].concat()
}

/// An answer to a lookup that holds for no time.
fn entry(node: u64, found: Attributes) -> Vec<u8> {
    [node.to_ne_bytes().to_vec(), vec![0; 32], attributes(found)].concat()
}

fn attributes(found: Attributes) -> Vec<u8> {
    let longs = [found.inode, found.size, found.size.div_ceil(512), 0, 0, 0];
    let words = [0, 0, 0, found.mode, found.links, 0, 0, 0, 4096, 0u32];
    longs.iter().flat_map(|l| l.to_ne_bytes()).chain(words.iter().flat_map(|w| w.to_ne_bytes())).collect()
}

/// As many entries as have room.
fn listing(entries: &[Entry], from: u64, room: u32) -> Vec<u8> {
    let mut all = Vec::new();
    for (entry, next) in entries.iter().zip(from + 1..) {
        let length = u32::try_from(entry.name.len()).unwrap_or(0);
        let mut one = [&next.to_ne_bytes()[..], &next.to_ne_bytes(), &length.to_ne_bytes()].concat();
        one.extend(u32::from(entry.kind).to_ne_bytes());
        one.extend_from_slice(&entry.name);
        one.resize(one.len().next_multiple_of(8), 0);
        if all.len() + one.len() > usize::try_from(room).unwrap_or(0) {
            break;
        }
        all.extend(one);
    }
    all
}
