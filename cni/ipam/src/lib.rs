//! Address allocation of pods: a crash-safe journal of one network's allocations.
//!
//! Owns one directory a network: `journal` (allocations and releases, replaced when it has grown)
//! and `lock` (a flock, held while a [`Store`] exists). There is no task, thread or channel.
//!
//! The decisions are pure ([`State`]: the next address, and the effect of a [`Record`]). [`Store`]
//! is the thin shell that reads, appends to and replaces the file.
//!
//! Invariants:
//! - No address belongs to two keys, whatever the journal contains.
//! - An allocation that [`Store::allocate`] returned is in the journal: the record is written
//!   before it returns.
//! - A process killed at any instruction leaves a journal from which all returned allocations can
//!   be read. The allocation in progress is either complete (and is found under its key) or
//!   missing.
//! - In another boot every sandbox is gone: allocations of another boot are dropped.
//!
//! Nothing is synced to the disk. A killed process loses nothing that it wrote, because the page
//! cache survives it. After a loss of power the boot id differs, so all that could be missing would
//! be dropped anyway.
//!
//! Damage: the torn end of a journal is cut off and kept as `journal.torn`. A journal with other
//! damage is kept as `journal.corrupt`, its valid records are used, and the caller is asked for
//! allocations that the kernel still has.

mod range;
mod record;
mod state;
mod store;

pub use range::{Range, RangeError, RangeSet};
pub use record::{Key, KeyError, Record};
pub use state::{Exhausted, Planned, State};
pub use store::{Damage, Error, Options, Store, boot_id, now};
