//! Behaviour tests of the workers and their manager on an in-memory node with a paused clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]
#![expect(unreachable_pub, reason = "shared by the parts of this test alone")]

mod admission;
mod adoption;
mod api;
mod fake;
mod many;
mod one;
mod outage;
