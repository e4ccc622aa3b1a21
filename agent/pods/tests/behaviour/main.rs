//! Workers and their manager on a node in memory, in a clock that passes at once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]
#![expect(unreachable_pub, reason = "shared by the parts of this test alone")]

mod admission;
mod adoption;
mod fake;
mod many;
mod one;
mod outage;
