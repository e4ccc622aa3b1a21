//! Stop signals as images name them: `SIGQUIT`, `quit`, `SIGRTMIN+3`, `37`.

use nix::sys::signal::Signal;

/// The first and the last real-time signal that glibc leaves to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal. `None` where the name is no signal's.
pub(crate) fn number(name: &str) -> Option<i32> {
    let named = |n: i32| (1..=RTMAX).contains(&n).then_some(n);
    if let Ok(n) = name.parse::<i32>() {
        return named(n);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| text.parse::<i32>().ok().filter(|n| (0..=RTMAX - RTMIN).contains(n));
    match short {
        "RTMIN" => return Some(RTMIN),
        "RTMAX" => return Some(RTMAX),
        "IOT" => return Some(Signal::SIGABRT as i32),
        "CLD" => return Some(Signal::SIGCHLD as i32),
        "POLL" => return Some(Signal::SIGIO as i32),
        "UNUSED" => return Some(Signal::SIGSYS as i32),
        _ => {}
    }
    if let Some(n) = short.strip_prefix("RTMIN+") {
        return offset(n).map(|n| RTMIN + n);
    }
    if let Some(n) = short.strip_prefix("RTMAX-") {
        return offset(n).map(|n| RTMAX - n);
    }
    format!("SIG{short}").parse::<Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn stop_signals_in_every_spelling() {
        for (name, wanted) in [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("usr1", Some(10)),
            ("37", Some(37)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmin+3", Some(37)),
            ("SIGRTMAX-2", Some(62)),
            ("RTMAX", Some(64)),
            ("SIGPOLL", Some(29)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN+-1", None),
            ("SIGRTMAX-31", None),
            ("SIGNOPE", None),
            ("", None),
            ("0", None),
            ("65", None),
        ] {
            assert_eq!(number(name), wanted, "{name:?}");
        }
    }
}
