//! The decision core: the verdict about a connection, a datagram or a packet to a Service.
//!
//! Owns no state and has no effects; [`Maps`] gives access to the tables. The same code runs in the programs
//! (kernel maps), in tests (`memory::Tables`, feature `std`) and in `berth trace` (`trace::Trace`).
//!
//! Invariants:
//! - A selected backend was in the dialled Service's wanted set at some moment of the call: a value is used
//!   only if its tag matches and the key still leads to it after the read.
//! - No panic, slice index or allocation, which the kernel's verifier cannot follow. Everything is inlined:
//!   the verifier refuses a call that returns an `Option` in two registers.
//!
//! On failure: a value that changes during two reads in a row means a drop; the sender's retry is a new decision.
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
    ECONNREFUSED, EHOSTUNREACH, SocketCall, SocketClient, Unserved, is_host, left_alone, refusal,
    socket_client,
};
