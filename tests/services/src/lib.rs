//! Shared parts of the Service suites and of `service-bench`: cgroups and pins, pods attached by a CNI plugin,
//! programs that load and answer, and Services by the thousand.
//!
//! Every object is owned by a value and removed when the value is dropped, also after an error. Objects that
//! were on the machine before are left alone. No task outlives the value that started it.

pub mod group;
pub mod load;
pub mod objects;
pub mod plane;
pub mod plugin;

/// Reports a failure of a dropped value, which cannot return an error.
#[expect(clippy::print_stderr, reason = "the user of a suite reads it there")]
pub(crate) fn tell(text: &str) {
    eprintln!("{text}");
}
