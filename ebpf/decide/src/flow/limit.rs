//! Limit of answers to refused packets: a flood of packets must not cause a flood of answers.

/// Maximum number of answers at once (`net.ipv4.icmp_msgs_burst`).
const BURST: u32 = 50;

/// Answers that one processor may still send. The number grows by one per millisecond
/// (`net.ipv4.icmp_msgs_per_sec`), up to [`BURST`]. Any content is valid.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// Time of the last update in milliseconds of CLOCK_MONOTONIC, wrapping.
    seen_ms: u32,
    /// Number of answers left.
    left: u32,
}

impl Bucket {
    /// Takes one answer; false if none is left.
    #[inline(always)]
    pub fn take(&mut self, now_ms: u32) -> bool {
        let gained = now_ms.wrapping_sub(self.seen_ms);
        self.seen_ms = now_ms;
        self.left = self.left.saturating_add(gained).min(BURST);
        let any = self.left != 0;
        self.left -= u32::from(any);
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_answered_and_then_one_a_millisecond() {
        for mut bucket in [Bucket::default(), Bucket { seen_ms: 77, left: u32::MAX }] {
            let now_ms = 1_000_000;
            assert_eq!((0..200).filter(|_| bucket.take(now_ms)).count(), 50);
            assert_eq!((1..=3000).filter(|ms| bucket.take(now_ms + ms / 3)).count(), 1000);
            assert_eq!((0..200).filter(|_| bucket.take(now_ms + 1_000_000)).count(), 50);
        }
    }

    #[test]
    fn the_clock_may_wrap() {
        let mut bucket = Bucket::default();
        let last = u32::MAX - 9;
        while bucket.take(last) {}
        assert_eq!((0..200).filter(|_| bucket.take(last.wrapping_add(20))).count(), 20);
    }
}
