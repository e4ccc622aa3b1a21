//! `reach`: dials addresses until each has answered once, and tells when the last one has.

use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Longest wait for one answer: an address that nobody serves yet must not hold up the next try.
const ANSWER: Duration = Duration::from_millis(20);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(2);

/// Options of `reach`.
#[derive(Debug, clap::Args)]
pub(crate) struct Reach {
    /// Servers that are to answer one byte.
    #[arg(long = "to", required = true, value_name = "ADDRESS:PORT")]
    targets: Vec<SocketAddr>,
    /// How long they are waited for.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    seconds: u64,
}

/// Dials until all have answered. Prints `dialling` at the start and `reached` at the end.
pub(crate) fn run(reach: &Reach) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(reach.seconds);
    let dialling: Vec<_> = reach
        .targets
        .iter()
        .map(|target| {
            let target = *target;
            thread::spawn(move || until_answered(target, end))
        })
        .collect();
    tell("dialling")?;
    for thread in dialling {
        let Ok(answered) = thread.join() else { bail!("a thread panicked") };
        answered?;
    }
    tell("reached")
}

fn tell(word: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{word}").and_then(|()| out.flush()).context("cannot write the result")
}

fn until_answered(target: SocketAddr, end: Instant) -> Result<()> {
    while !answers(target).unwrap_or(false) {
        ensure!(Instant::now() < end, "{target} does not answer");
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn answers(target: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&target, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"?")?;
    Ok(stream.read(&mut [0])? == 1)
}
