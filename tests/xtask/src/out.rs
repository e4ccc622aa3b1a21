//! Output for the user.

use std::time::Instant;

/// Prints a line to standard output.
#[expect(clippy::print_stdout, reason = "this program's output is what it is for")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Prints the start of a step and, at the end, the step's duration.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    line(&format!("… {what}"));
    let begun = Instant::now();
    let done = work();
    let mark = if done.is_ok() { "✓" } else { "✗" };
    line(&format!("{mark} {what} ({:.1} s)", begun.elapsed().as_secs_f64()));
    done
}
