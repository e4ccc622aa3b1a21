//! Suites that run a whole node: each file in `tests/` covers one capability. Each test starts a node of its
//! own ([`berth_harness::node`]) and leaves the machine as before.
//!
//! `BERTH_SCALE=full` runs the kill and output suites in full; otherwise they run a tenth. `BERTH_SEED` seeds
//! the random moments of the kills.
