//! Rotated log files and their names.

use berth_api::logd::log_name;
use berth_core::{ids::Attempt, time::Wall};

/// A rotated file that may be compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RotatedFile {
    /// The pod's and the container's directory below the log root.
    pub(crate) dir: [String; 2],
    /// File name.
    pub(crate) name: String,
}

/// Name of a rotated file: `<attempt>.log.<YYYYMMDD-hhmmss>[-NNN][.gz]`. The number is there only
/// if several files were rotated within one second.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rotated {
    /// Time of the rotation, UTC.
    pub stamp: String,
    /// Count within one second, from 0.
    pub serial: u32,
    /// The file is compressed.
    pub gz: bool,
}

impl Rotated {
    /// Parses a file name. Returns None if it is not a rotated file of this attempt.
    pub fn parse(attempt: Attempt, name: &str) -> Option<Rotated> {
        let rest = name.strip_prefix(&log_name(attempt))?.strip_prefix('.')?;
        let (rest, gz) = rest.strip_suffix(".gz").map_or((rest, false), |r| (r, true));
        let (stamp, serial) = rest.split_at_checked(15)?;
        let ok = stamp.bytes().enumerate().all(|(i, b)| if i == 8 { b == b'-' } else { b.is_ascii_digit() });
        let serial = match serial.strip_prefix('-') {
            Some(n) if n.len() >= 3 && n.bytes().all(|b| b.is_ascii_digit()) => n.parse().ok()?,
            None if serial.is_empty() => 0,
            _ => return None,
        };
        ok.then(|| Rotated { stamp: stamp.to_owned(), serial, gz })
    }

    /// The file name.
    pub fn name(&self, attempt: Attempt) -> String {
        let serial = if self.serial == 0 { String::new() } else { format!("-{:03}", self.serial) };
        let gz = if self.gz { ".gz" } else { "" };
        format!("{attempt}.log.{}{serial}{gz}", self.stamp)
    }

    /// The name for a file that is rotated now. It always sorts after `last`, even if the clock was
    /// set back.
    pub fn next(now: Wall, last: Option<&Rotated>) -> Rotated {
        let time = jiff::Timestamp::from_second(now.seconds()).unwrap_or_default();
        let stamp = time.strftime("%Y%m%d-%H%M%S").to_string();
        match last {
            Some(last) if last.stamp >= stamp => {
                Rotated { stamp: last.stamp.clone(), serial: last.serial.saturating_add(1), gz: false }
            }
            _ => Rotated { stamp, serial: 0, gz: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_names_come_back_and_only_grow() {
        let now = Wall(1_700_000_000_000_000_000);
        let a = Rotated::next(now, None);
        assert_eq!(a.name(Attempt(2)), "2.log.20231114-221320");
        let b = Rotated::next(now, Some(&a));
        assert_eq!(b.name(Attempt(2)), "2.log.20231114-221320-001");
        let c = Rotated::next(Wall(0), Some(&b));
        assert!(a < b && b < c, "a clock set back must not reorder");
        for r in [&a, &b, &c, &Rotated { gz: true, ..c.clone() }] {
            assert_eq!(Rotated::parse(Attempt(2), &r.name(Attempt(2))).as_ref(), Some(r));
        }
        for other in [
            "2.log",
            "2.log.20231114-221320.gz.tmp",
            "12.log.20231114-221320",
            "2.log.x",
            "2.log.20231114-221320-1",
            "2.log.2023111422-1320",
        ] {
            assert_eq!(Rotated::parse(Attempt(2), other), None, "{other}");
        }
    }
}
