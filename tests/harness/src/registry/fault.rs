//! Faults of a registry: each is for one part of its interface and for a number of requests.

/// A part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Manifests and indexes.
    Manifest,
    /// Configurations and layers of at least this size.
    Blob(u64),
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An answer with this status instead of the content, so many times.
    Status(Part, u16, usize),
    /// The connection ends after so many bytes of the body, so many times.
    Cut(Part, u64, usize),
    /// Nothing more is sent after so many bytes of the body, until [`super::Registry::heal`].
    Stall(Part, u64),
    /// A byte of the body is another one, so many times.
    Corrupt(Part, usize),
}

/// What to do with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Status(u16),
    Cut(u64),
    Stall(u64),
    Corrupt,
}

/// The faults that are left.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The effect on an answer; it counts as one time of its fault.
    pub(super) fn take(&mut self, manifest: bool, size: u64) -> Option<Effect> {
        let is = |part: &Part| match part {
            Part::Manifest => manifest,
            Part::Blob(least) => !manifest && size >= *least,
        };
        for fault in &mut self.0 {
            let (effect, times) = match fault {
                Fault::Status(part, status, times) if is(part) => (Effect::Status(*status), times),
                Fault::Cut(part, after, times) if is(part) => (Effect::Cut(*after), times),
                Fault::Corrupt(part, times) if is(part) => (Effect::Corrupt, times),
                Fault::Stall(part, after) if is(part) => return Some(Effect::Stall(*after)),
                _ => continue,
            };
            if *times > 0 {
                *times -= 1;
                return Some(effect);
            }
        }
        None
    }

    /// Whether an answer stalls still.
    pub(super) fn stalls(&self) -> bool {
        self.0.iter().any(|fault| matches!(fault, Fault::Stall(..)))
    }
}
