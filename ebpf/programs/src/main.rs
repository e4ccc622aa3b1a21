//! The programs in the kernel: they parse, ask `berth-ebpf-decide`, and act.
//!
//! Owns the maps (named in `berth_ebpf_abi::maps`) and two groups of programs: socket hooks (`connect4/6`,
//! `sendmsg4/6`, `recvmsg4/6`, `getpeername4/6`: a Service's address is replaced before a packet exists) and packet
//! programs at devices (`tc_*`: for what passes no socket hook).
//!
//! Invariants:
//! - Everything that returns or takes an `Option` is `#[inline(always)]`: in two registers the verifier refuses it.
//! - No slice index, no panic path, no division by what is not a constant: the object has no `core::panicking` symbol.
//! - What a socket remembers is written before its address is changed.
//!
//! On failure: whatever is not understood passes unchanged.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod kernel;
mod maps;
mod naming;
mod reverse;
mod socket;
mod tc;
mod wide;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: no panic path is left in the object, which its build checks.
    loop {}
}

/// Helpers reserved for programs under a GPL-compatible licence are used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
