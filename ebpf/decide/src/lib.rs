//! The decision core: what becomes of a connection, a datagram or a packet that asks for a Service.
//!
//! Owns no state and has no effects: tables are reached through [`Maps`]. The same code runs in the eBPF programs
//! (kernel maps), in tests (`memory::Tables`, feature `std`) and in `berth trace` (`trace::Trace` around pinned maps).
//!
//! Invariants:
//! - A backend is never given that was not, at some moment of the call, in the wanted set of the dialled Service: a
//!   value is taken only when its tag fits and the key still leads to it after it was read.
//! - No panic, no slice index, no allocation: what the kernel's verifier cannot follow has no place here. Everything
//!   is inlined; a call that returns an `Option` in two registers is refused by it.
//!
//! On failure: what cannot be read consistently twice in a row is dropped, and the sender's retry decides anew.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(feature = "std", test))]
extern crate std;

mod family;
pub mod flow;
mod maps;
#[cfg(feature = "std")]
pub mod memory;
pub mod ring;
mod service;
#[cfg(feature = "std")]
pub mod socket;
mod socket_client;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "std")]
pub mod trace;

pub use family::Family;
pub use maps::{Header, Maps};
pub use service::{
    Aligned, Choice, ClientIdentity, ClientLocation, Decision, DropReason, MemberQuery, RejectReason,
    Selection, Verdict, backend_hash, decide, decide_into, may_keep_backend,
};
pub use socket_client::{
    ECONNREFUSED, EHOSTUNREACH, SocketClient, is_host, left_alone, refusal, socket_client,
};
