//! What the user reads.

use std::time::Instant;

/// A line on standard output.
#[expect(clippy::print_stdout, reason = "this program's output is what it is for")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Tells what begins, and when it has ended how long it took.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    line(&format!("… {what}"));
    let begun = Instant::now();
    let done = work();
    let mark = if done.is_ok() { "✓" } else { "✗" };
    line(&format!("{mark} {what} ({:.1} s)", begun.elapsed().as_secs_f64()));
    done
}
