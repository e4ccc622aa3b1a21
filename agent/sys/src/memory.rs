//! The C library's allocator, kept small: the agent's blocking threads come in bursts and would each leave an arena.

/// Allocations share this many arenas.
const ARENAS: libc::c_int = 2;

/// Bounds the number of arenas. Call before the first thread starts; a refusal leaves the default.
pub fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes the allocator's settings only; it takes plain integers and reports refusal by its result.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives memory that the allocator holds free back to the kernel. Takes a few milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory of the allocator only, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
