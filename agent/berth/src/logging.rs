//! Logging of the agent and its helpers to standard error, one line for each change of state.
//!
//! A line for systemd's journal begins with its priority (`sd-daemon(3)`) and has no time, which
//! the journal adds.

use std::fmt;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Writer},
    },
    registry::LookupSpan,
};

/// Starts logging; the variable `BERTH_LOG` sets the level.
pub(crate) fn to_stderr() {
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if berth_sys::service::is_journal(std::io::stderr()) {
        logs.event_format(Journal::new()).init();
    } else {
        logs.with_target(false).init();
    }
}

/// Format of lines for systemd's journal.
struct Journal(Format<Full, ()>);

impl Journal {
    fn new() -> Journal {
        Journal(Format::default().without_time().with_target(false).with_ansi(false))
    }
}

/// The priority of `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_for_the_journal_has_a_priority_and_no_time() {
        let kept = Kept::default();
        let writer = kept.clone();
        let logs = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_writer(move || writer.clone())
            .event_format(Journal::new())
            .finish();
        tracing::subscriber::with_default(logs, || {
            tracing::error!("a");
            tracing::warn!(pod = "b", "c");
            tracing::info!("d");
            tracing::debug!("e");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>ERROR a\n<4> WARN c pod=\"b\"\n<6> INFO d\n<7>DEBUG e\n");
    }
}
