//! Keeps the memory of the C library's allocator small: the agent's blocking threads start in bursts, and
//! each would leave an arena behind.

/// Number of arenas that all allocations share. Each thread keeps some free pieces of its own, so few allocations meet; with
/// a second arena the same pods took a megabyte more.
const ARENAS: libc::c_int = 1;

/// Limits the number of arenas. Call it before the first thread starts; a refusal leaves the default.
pub fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes the allocator's settings only; it takes plain integers and reports refusal by
    // its result.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Returns the allocator's free memory to the kernel. Takes a few milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory of the allocator only, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Drops the read-only pages of the program and its libraries from this process's memory. The pages stay in
/// the page cache: a page in use comes back by a minor fault, a page used only at start stays out.
///
/// Breakpoints that a debugger has set are lost.
pub fn let_go_of_text() {
    // SAFETY: the callback has the required signature, does not unwind, and keeps no reference past its call.
    unsafe {
        libc::dl_iterate_phdr(Some(let_go_of_object), std::ptr::null_mut());
    }
}

/// Drops the pages of one object's read-only segments. A segment without write permission equals its file:
/// relocated data lies in a writable segment, part of which the loader makes read-only later, and 64-bit code
/// has no relocations in its text.
extern "C" fn let_go_of_object(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: sysconf reads a constant.
    let Ok(page) = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return 0 };
    // SAFETY: the loader passes a record that is valid during the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() || page == 0 {
        return 0;
    }
    // SAFETY: the record states the number of headers at its pointer.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let start = (info.dlpi_addr + header.p_vaddr).next_multiple_of(page);
        let end = (info.dlpi_addr + header.p_vaddr + header.p_memsz) / page * page;
        let (Ok(at), Ok(size)) = (usize::try_from(start), usize::try_from(end.saturating_sub(start))) else {
            continue;
        };
        // SAFETY: the range covers whole pages of a file mapping without write permission. The kernel reads a
        // dropped page again unchanged, and code that runs in it faults and continues. A refusal leaves the
        // pages in memory.
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(at), size, libc::MADV_DONTNEED);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident kilobytes of file mappings (`/proc/self/status`).
    fn rss_file() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("RssFile:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn text_that_is_not_in_use_leaves_and_comes_back() {
        // Formatting uses relocated tables; the results before and after must be equal.
        let before = format!("{:?}", std::net::Ipv6Addr::LOCALHOST);
        let resident = rss_file();
        let_go_of_text();
        assert!(rss_file() < resident, "nothing left memory of {resident} kB");
        assert_eq!(format!("{:?}", std::net::Ipv6Addr::LOCALHOST), before);
    }
}
