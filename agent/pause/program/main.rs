//! The pause program: holds a pod's namespaces, and reaps orphans as process 1 of a shared PID namespace.
//!
//! The program blocks every signal and waits for one at a time: SIGCHLD makes it reap the children that
//! ended, SIGTERM and SIGINT make it exit with 0, other signals do nothing. It has no libc and no allocation,
//! opens no file, and makes only a dozen system calls.
#![no_std]
#![no_main]

use core::{
    arch::{asm, global_asm},
    panic::PanicInfo,
    ptr,
};

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
}

/// # Safety
/// The arguments must be what that system call takes.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let ret;
    // SAFETY: the kernel's calling convention: it changes rax, rcx, r11 and the memory that its arguments
    // name.
    unsafe {
        asm!("syscall", inlateout("rax") number => ret, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// # Safety
/// The arguments must be what that system call takes.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let ret;
    // SAFETY: the kernel's calling convention: it changes x0 and the memory that its arguments name.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => ret, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    ret
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: a number only.
        unsafe { syscall(number::EXIT_GROUP, code, 0, 0, 0) };
    }
}

// The kernel jumps to `_start` with arguments and environment on the stack, which the program does not read.
// The kernel aligns the stack as before a call; compiled code expects the alignment after a call.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "and rsp, -16", "call {main}", "ud2", main = sym main);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "b {main}", main = sym main);

extern "C" fn main() -> ! {
    let all = u64::MAX;
    let set = ptr::addr_of!(all) as usize;
    // SAFETY: the kernel reads eight bytes at `set`.
    unsafe { syscall(number::RT_SIGPROCMASK, SIG_SETMASK, set, 0, size_of::<u64>()) };
    loop {
        reap();
        // SAFETY: as above; the call gets neither a siginfo nor a timeout.
        match unsafe { syscall(number::RT_SIGTIMEDWAIT, set, 0, 0, size_of::<u64>()) } {
            SIGTERM | SIGINT => exit(0),
            SIGCHLD => {}
            // Other signals do nothing, and neither does an interrupted wait.
            _ => {}
        }
    }
}

/// Reaps all children that ended. One SIGCHLD may stand for many children, and some ended before this program
/// began.
fn reap() {
    loop {
        // SAFETY: the call gets no pointer to a status or a usage.
        let pid = unsafe { syscall(number::WAIT4, usize::MAX, 0, WNOHANG, 0) };
        if pid <= 0 {
            return;
        }
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}
