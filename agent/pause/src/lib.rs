//! The pause program as bytes. Its source is `program/main.rs`; `berth_sys::pause` starts it.

/// The program: a static executable for this machine.
pub static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
