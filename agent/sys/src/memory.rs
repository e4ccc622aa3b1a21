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
