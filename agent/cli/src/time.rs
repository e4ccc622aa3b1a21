//! Times and durations as people read and write them.

use berth_core::time::Wall;
use jiff::Timestamp;
use std::time::Duration;

/// Parses a time of Kubernetes' JSON (RFC 3339); `None` where the text is no time.
pub(crate) fn parse(text: &str) -> Option<Wall> {
    let at: Timestamp = text.parse().ok()?;
    Some(Wall(i64::try_from(at.as_nanosecond()).ok()?))
}

/// A time as RFC 3339 in UTC, in whole seconds.
pub(crate) fn stamp(at: Wall) -> String {
    match Timestamp::from_second(at.seconds()) {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_out_of_range) => "?".to_owned(),
    }
}

/// The age of a time as `kubectl` writes it; `<unknown>` without a time.
pub(crate) fn age(at: Option<Wall>, now: Wall) -> String {
    at.map_or_else(
        || "<unknown>".to_owned(),
        |at| short(now.0.saturating_sub(at.0).div_euclid(1_000_000_000)),
    )
}

/// The duration until a time: `in 5s`, or `now`.
pub(crate) fn until(at: Wall, now: Wall) -> String {
    let left = at.0.saturating_sub(now.0);
    if left <= 0 {
        return "now".to_owned();
    }
    // Rounded up, so that "in 0s" never appears.
    format!("in {}", short(left.saturating_add(999_999_999).div_euclid(1_000_000_000)))
}

/// Seconds in at most two units, as `kubectl` writes durations (`HumanDuration`).
pub(crate) fn short(seconds: i64) -> String {
    let s = seconds.max(0);
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    let two = |a: i64, unit: &str, b: i64, small: &str| {
        if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{small}") }
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => two(m, "m", s % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => two(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        _ if d < 730 => format!("{d}d"),
        _ if d < 2920 => two(d / 365, "y", d % 365, "d"),
        _ => format!("{}y", d / 365),
    }
}

/// The duration of an action, given in milliseconds.
pub(crate) fn millis(ms: f64) -> String {
    if ms >= 10_000.0 { format!("{:.1} s", ms / 1000.0) } else { format!("{ms:.1} ms") }
}

/// Parses a duration such as `90s`, `10m`, `1h30m`, `500ms` or `1.5h`, as Go does; and `2d`.
pub(crate) fn span(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u128); 9] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    let mut total: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.get(..rest.find(|c: char| !c.is_ascii_digit() && c != '.')?)?;
        rest = rest.get(number.len()..)?;
        let (name, unit) = UNITS.into_iter().find(|(name, _)| rest.starts_with(name))?;
        rest = rest.get(name.len()..)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.len() > 18 {
            return None;
        }
        let part = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let value =
            part(whole)?.checked_mul(unit)?.checked_add(part(fraction)?.checked_mul(unit)? / scale)?;
        total = total.checked_add(value)?;
    }
    let nanos = u64::try_from(total).ok()?;
    (!text.is_empty()).then(|| Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (130, "2m10s"),
            (600, "10m"),
            (10_860, "3h1m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (8 * 86_400, "8d"),
            (800 * 86_400, "2y70d"),
            (9 * 365 * 86_400, "9y"),
        ] {
            assert_eq!(short(seconds), text);
        }
        assert_eq!(until(Wall(1), Wall(0)), "in 1s");
        assert_eq!(until(Wall(0), Wall(0)), "now");
        assert_eq!(age(None, Wall(0)), "<unknown>");
        assert_eq!(parse("2023-11-14T22:13:20Z"), Some(Wall(1_700_000_000_000_000_000)));
        assert_eq!(stamp(Wall(1_700_000_000_999_999_999)), "2023-11-14T22:13:20Z");
        assert_eq!(stamp(Wall(i64::MAX)), "2262-04-11T23:47:16Z");
    }

    #[test]
    fn durations_add_up_and_malformed_ones_are_none() {
        assert_eq!(span("90s"), Some(Duration::from_secs(90)));
        assert_eq!(span("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(span("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(span("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(span("2d"), Some(Duration::from_secs(172_800)));
        for bad in ["", "5", "m", ".s", "1.2.3s", "1x", "1h-3m", "99999999999999999999s", "é"] {
            assert_eq!(span(bad), None, "{bad}");
        }
    }
}
