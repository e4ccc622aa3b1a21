//! Gives the agent's freed memory back to the kernel, whatever it was freed from: pods, Services, answers, sessions.
//!
//! The C library keeps what is freed between pieces in use, and the pages of a program stay once they were read. Both go
//! once the process has grown and then stopped growing.

use berth_sys::memory;
use procfs::process::Process;
use std::time::Duration;

/// Time between two looks at the process's memory.
const LOOK: Duration = Duration::from_secs(15);

/// Growth since memory was last given back, in bytes, for which it is given back again.
const GROWN: u64 = 1 << 20;

/// Change between two looks, in bytes, up to which a process counts as no longer growing.
const SETTLED: u64 = 256 << 10;

/// What the last looks saw.
#[derive(Debug, Default)]
struct Looks {
    /// Resident bytes at the last look.
    last: u64,
    /// Resident bytes just after memory was last given back.
    least: u64,
}

impl Looks {
    /// Whether memory shall be given back, at these resident bytes.
    fn is_due(&mut self, resident: u64) -> bool {
        let settled = resident.abs_diff(self.last) <= SETTLED;
        self.last = resident;
        self.least = self.least.min(resident);
        settled && resident > self.least + GROWN
    }

    /// Takes what giving back has left.
    fn given_back(&mut self, resident: u64) {
        (self.last, self.least) = (resident, resident);
    }
}

/// Resident bytes of this process.
fn resident() -> Option<u64> {
    let pages = Process::myself().and_then(|process| process.statm()).ok()?.resident;
    Some(pages.saturating_mul(procfs::page_size()))
}

/// Looks at the process's memory for as long as the agent runs.
pub(super) async fn give_back() {
    let mut looks = Looks::default();
    loop {
        tokio::time::sleep(LOOK).await;
        if !resident().is_some_and(|bytes| looks.is_due(bytes)) {
            continue;
        }
        let given = tokio::task::spawn_blocking(|| {
            memory::give_back();
            memory::let_go_of_text();
        });
        if given.await.is_err() {
            tracing::warn!("cannot return freed memory to the kernel: the task panicked");
        }
        if let Some(bytes) = resident() {
            looks.given_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_goes_back_once_the_process_stops_growing() {
        let mut looks = Looks::default();
        // A start: the process grows, then rests.
        assert!(!looks.is_due(30 * MIB));
        assert!(!looks.is_due(50 * MIB));
        assert!(looks.is_due(50 * MIB + SETTLED));
        looks.given_back(40 * MIB);
        // Nothing happens for long: nothing is done.
        for _ in 0..10 {
            assert!(!looks.is_due(40 * MIB + GROWN));
        }
        // Work that goes on does not stop for it; its end does.
        for n in 1..10 {
            assert!(!looks.is_due(40 * MIB + GROWN + n * MIB));
        }
        assert!(looks.is_due(50 * MIB));
        looks.given_back(50 * MIB);
        // The process shrank by itself, and grows again.
        assert!(!looks.is_due(20 * MIB));
        assert!(!looks.is_due(30 * MIB));
        assert!(looks.is_due(30 * MIB));
    }

    #[test]
    fn the_resident_bytes_are_those_of_this_process() {
        let before = resident().unwrap();
        let used = std::hint::black_box(vec![1_u8; 32 << 20]);
        let with = resident().unwrap();
        assert!(with >= before + (30 << 20), "{before} and {with} bytes with {} more", used.len());
    }
}
