//! The pause program as bytes. Its source is `program/main.rs`; it is started by `berth_sys::pause`.

/// The program: a static executable for this machine.
pub static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
