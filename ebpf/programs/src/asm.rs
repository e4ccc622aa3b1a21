//! Instructions that the compiler cannot see through: numbers and addresses of unknown value, and accesses of
//! eight bytes. Owns no state.
//!
//! Values in maps are aligned to four bytes only. The compiler keeps to that alignment, but the processors of
//! these programs (x86-64, arm64) do not need it, and the verifier requires no more of a map's value. On the
//! stack the verifier requires an alignment of eight bytes for an access of eight bytes.

use core::arch::asm;

/// See [`berth_ebpf_decide::Maps::number`].
#[inline(always)]
pub(crate) fn number<const N: u32>() -> u32 {
    let hidden: u64;
    // SAFETY: loads a constant into a register.
    unsafe { asm!("{} = {}", out(reg) hidden, const N, options(nomem, nostack, preserves_flags)) };
    (hidden & 0xffff_ffff) as u32
}

/// See [`berth_ebpf_decide::Maps::opaque`].
#[inline(always)]
pub(crate) fn opaque(number: u32) -> u32 {
    let hidden: u64;
    // SAFETY: moves a number from register to register.
    unsafe {
        asm!("{} = {}", out(reg) hidden, in(reg) u64::from(number), options(nomem, nostack, preserves_flags));
    }
    (hidden & 0xffff_ffff) as u32
}

/// See [`berth_ebpf_decide::Maps::opaque_ref`].
#[inline(always)]
pub(crate) fn opaque_ref<T>(at: &mut T) -> &mut T {
    let hidden: *mut T;
    // SAFETY: moves an address from register to register; the borrow stays the same.
    unsafe {
        asm!("{} = {}", out(reg) hidden, in(reg) core::ptr::from_mut(at), options(nostack, preserves_flags));
        &mut *hidden
    }
}

/// Eight bytes of zeros. For zeros that the compiler knows of, it calls a function that writes byte by byte.
#[inline(always)]
pub(crate) fn zeros() -> u64 {
    let zeros: u64;
    // SAFETY: loads a constant into a register.
    unsafe { asm!("{} = 0", out(reg) zeros, options(nomem, nostack, preserves_flags)) };
    zeros
}

/// Reads the eight bytes at `OFFSET` of a map's value.
///
/// # Safety
/// The bytes lie in a value of a map of this run.
#[inline(always)]
pub(crate) unsafe fn load<const OFFSET: usize, T>(at: *const T) -> u64 {
    let half: u64;
    // SAFETY: the caller's. Other processors may write there in the meantime, so each access is one load.
    unsafe {
        asm!(
            "{} = *(u64 *)({} + {})",
            out(reg) half,
            in(reg) at,
            const OFFSET,
            options(nostack, preserves_flags)
        );
    }
    half
}

/// Writes the eight bytes at `OFFSET` of a map's value.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn store<const OFFSET: usize, T>(at: *mut T, half: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "*(u64 *)({} + {}) = {}",
            in(reg) at,
            const OFFSET,
            in(reg) half,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies the eight bytes at each of these offsets. For a copy of more than sixteen bytes the compiler calls
/// a function that copies byte by byte.
macro_rules! copy {
    ($from:expr, $to:expr; $($offset:literal)+) => {
        { $($crate::asm::store::<$offset, _>($to, $crate::asm::load::<$offset, _>($from));)+ }
    };
}
pub(crate) use copy;
