//! Suites of a real node, in `tests/`: one file a capability. Each test has a node of its own ([`berth_harness::node`])
//! and leaves the machine as it found it.
//!
//! `BERTH_SCALE=full` runs the kill and output suites in full, anything else a tenth; `BERTH_SEED` chooses the moments.
