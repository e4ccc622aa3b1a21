//! How long a caller waits: the header `grpc-timeout` of its call.

use std::time::Duration;
use tonic::Request;

/// Longest time that a call is answered after.
const MOST: Duration = Duration::from_secs(50);

/// Time for the answer itself.
const MARGIN: Duration = Duration::from_millis(500);

/// The time after which a call has to be answered.
pub(super) fn of<T>(request: &Request<T>) -> Duration {
    let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let given = header.and_then(parse).unwrap_or(MOST);
    given.saturating_sub(MARGIN.min(given / 10)).min(MOST)
}

/// Reads at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = Some(digits).filter(|d| d.len() <= 8)?.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_answered_before_its_caller_gives_up() {
        assert_eq!(parse("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse("9999m"), Some(Duration::from_millis(9999)));
        for bad in ["", "S", "10", "123456789S", "-1S", "1ä"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let mut request = Request::new(());
        assert_eq!(of(&request), MOST - MARGIN);
        request.set_timeout(Duration::from_secs(10));
        assert_eq!(of(&request), Duration::from_millis(9500));
        request.set_timeout(Duration::from_secs(3600));
        assert_eq!(of(&request), MOST);
    }

    proptest! {
        #[test]
        fn mutated_headers_never_panic(text in "[0-9]{0,9}.{0,2}") {
            _ = parse(&text);
        }
    }
}
