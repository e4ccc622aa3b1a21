//! The eBPF programs: they parse, ask `berth-ebpf-decide`, and act.
//!
//! Owns the maps (named in `berth_ebpf_abi::maps`) and two groups of programs: socket hooks (`connect4/6`,
//! `sendmsg4/6`, `recvmsg4/6`, `getpeername4/6`), which replace a Service's address before a packet exists,
//! and packet programs at devices (`tc_*`), for packets that pass no socket hook.
//!
//! Invariants:
//! - Every function that returns or takes an `Option` is `#[inline(always)]`: the verifier refuses one in two
//!   registers.
//! - No slice index, no panic path, no division by a variable: the object has no `core::panicking` symbol.
//! - A socket's translation is stored before the call's address is changed.
//!
//! On failure: a call or packet that is not understood passes unchanged.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod asm;
mod kernel;
mod maps;
mod reverse;
mod sock_addr;
mod socket;
mod tc;
mod wide;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the build checks that no panic path is left in the object.
    loop {}
}

/// The programs call helpers that are reserved for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
