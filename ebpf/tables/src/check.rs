//! Checks of the tables: a reading in itself, and a reading beside the wanted entries.

mod compare;
mod consistency;
#[cfg(test)]
mod tests;

pub use compare::{Difference, differences};
pub use consistency::{Inconsistency, inconsistencies};
