//! Which pod has which address: a crash-safe journal of one network's allocations.
//!
//! Owns one directory a network: `journal` (what was given and given back, replaced whole when it has grown) and
//! `lock` (one flock, held for as long as a [`Store`] lives). No task, no thread, no channel.
//!
//! The decisions are pure ([`State`]: which address next, what a [`Record`] changes); [`Store`] is the thin shell
//! that reads, appends and replaces the file.
//!
//! Invariants:
//! - No address belongs to two keys, whatever the journal's bytes are.
//! - An allocation that [`Store::allocate`] returned is in the journal: the record is written before it returns.
//! - A process killed at any instruction leaves a journal from which all returned allocations are read back.
//!   The one that was under way is either there whole (and is found again under its key) or not at all.
//! - Another boot means that every sandbox is gone: allocations of another boot are dropped.
//!
//! Nothing is synced to the disk. A killed process loses nothing of what it wrote, the page cache outlives it; after a
//! loss of power the boot id differs, and all that could be missing would be dropped anyway.
//!
//! On damage: the torn end of a journal is cut off and kept as `journal.torn`; a journal with other damage is kept as
//! `journal.corrupt`, what can be read of it is used, and the caller is asked what it still finds in the kernel.

mod range;
mod record;
mod state;
mod store;

pub use range::{Range, RangeError, RangeSet};
pub use record::{Key, KeyError, Record};
pub use state::{Exhausted, Planned, State};
pub use store::{Damage, Error, Options, Store, boot_id, now};
