//! Program of the test containers: small roles whose every step shows in the output.
//!
//! - `write LINES RATE WIDTH`: writes LINES numbered lines (0: without end) of WIDTH bytes at RATE bytes per
//!   second. Standard error gets `slow <milliseconds>` for each line whose write took long, and `slowest
//!   <microseconds>` at the end.

use std::{
    env,
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    process::exit,
    thread,
    time::{Duration, Instant},
};

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |n: usize| args.get(n).and_then(|a| a.parse::<u64>().ok());
    match args.first().map(String::as_str) {
        Some("write") => {
            let (Some(lines), Some(rate), Some(width)) = (number(1), number(2), number(3)) else { usage() };
            write_lines(lines, rate, width as usize);
        }
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("usage: berth-test write LINES RATE WIDTH");
    exit(2);
}

/// Writes lines `<number> <padding>`, each by one write(2), so that its time can be measured.
fn write_lines(lines: u64, rate: u64, width: usize) {
    // The lock and the buffer of `stdout()` would distort the time of a line.
    let Ok(descriptor) = io::stdout().as_fd().try_clone_to_owned() else { exit(9) };
    let mut out = File::from(descriptor);
    let begun = Instant::now();
    let (mut sent, mut slowest) = (0_u64, Duration::ZERO);
    let mut n = 0_u64;
    while lines == 0 || n < lines {
        n += 1;
        let mut line = format!("{n} ");
        while line.len() + 1 < width {
            line.push('x');
        }
        line.push('\n');
        let before = Instant::now();
        if out.write_all(line.as_bytes()).is_err() {
            exit(9);
        }
        let took = before.elapsed();
        slowest = slowest.max(took);
        if took > Duration::from_millis(50) {
            eprintln!("slow {}", took.as_millis());
        }
        sent += line.len() as u64;
        if let Some(due) = sent.checked_mul(1_000_000).and_then(|s| s.checked_div(rate)) {
            let due = Duration::from_micros(due);
            let now = begun.elapsed();
            if due > now + Duration::from_millis(1) {
                thread::sleep(due - now);
            }
        }
    }
    eprintln!("slowest {}", slowest.as_micros());
    io::stderr().flush().ok();
}
