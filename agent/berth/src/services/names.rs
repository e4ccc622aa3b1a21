//! `<runtime_state>/services.json`: what the ids in the tables stand for, for commands that run without an agent
//! ([`berth_api::services`]), and the next id, so that a new agent does not give one out again.

use berth_api::services::{NamedPort, ServicesFile, file};
use berth_core::{roots::Roots, time::Boottime};
use berth_services::{Allocator, Notice};
use berth_sys::clock;
use serde_json::Value;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// A burst of changes is written once.
const SETTLE: Duration = Duration::from_millis(200);

/// The most that is read: some hundred thousand Services.
const MOST: usize = 256 << 20;

/// So many notices are kept.
const NOTICES: usize = 1000;

/// Beside what [`ServicesFile`] has.
const NEXT_ID: &str = "next_id";

/// The file.
pub(super) struct NamesFile {
    path: PathBuf,
    next_id: u32,
    /// When it is to be written.
    due: Option<Boottime>,
    dirty: bool,
    /// What is not carried, newest last.
    notices: Vec<String>,
    told: bool,
}

impl NamesFile {
    pub(super) fn open(roots: &Roots) -> NamesFile {
        let path = file(roots);
        let read = berth_sys::fs::read_limited(&path, MOST).ok();
        let next = read.and_then(|bytes| {
            let file: Value = serde_json::from_slice(&bytes).ok()?;
            u32::try_from(file.get(NEXT_ID)?.as_u64()?).ok()
        });
        NamesFile {
            path,
            next_id: next.unwrap_or(1),
            due: None,
            dirty: true,
            notices: Vec::new(),
            told: false,
        }
    }

    /// Where ids go on.
    pub(super) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// A Service is new, other or gone.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    /// Writes the file when it is time; otherwise says when that is.
    pub(super) fn keep(
        &mut self,
        allocator: &Allocator,
        notices: &[Notice],
        now: Boottime,
    ) -> Option<Boottime> {
        self.dirty |= !notices.is_empty();
        self.notices.extend(notices.iter().map(|n| format!("{}: {}: {}", n.service, n.why.reason(), n.why)));
        let surplus = self.notices.len().saturating_sub(NOTICES);
        self.notices.drain(..surplus);
        if !self.dirty {
            return None;
        }
        let due = *self.due.get_or_insert(now + SETTLE);
        if now < due {
            return Some(due);
        }
        (self.due, self.dirty) = (None, false);
        if let Err(error) = self.write(allocator)
            && !std::mem::replace(&mut self.told, true)
        {
            tracing::warn!(error = format!("{error:#}"), "names of Services are not kept for commands");
        }
        None
    }

    fn write(&self, allocator: &Allocator) -> anyhow::Result<()> {
        let mut ports: Vec<NamedPort> = allocator
            .names()
            .map(|n| NamedPort {
                id: n.id,
                v6: n.v6,
                service: n.service,
                port: n.port.as_ref().to_owned(),
                protocol: n.transport.to_string(),
                fronts: n.fronts.iter().map(|(address, port)| SocketAddr::new(*address, *port)).collect(),
            })
            .collect();
        ports.sort_by_key(|p| (p.v6, p.id));
        let file = ServicesFile { as_of: clock::wall(), ports, notices: self.notices.clone() };
        let mut file = serde_json::to_value(file)?;
        if let Some(object) = file.as_object_mut() {
            object.insert(NEXT_ID.to_owned(), allocator.next_id().into());
        }
        berth_sys::fs::write_atomic(&self.path, &serde_json::to_vec(&file)?, 0o644)?;
        Ok(())
    }
}
