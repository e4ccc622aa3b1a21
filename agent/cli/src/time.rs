//! Times as people read them.

use berth_core::time::Wall;
use jiff::Timestamp;
use std::time::Duration;

/// A time of Kubernetes' JSON; nothing where there is none.
pub(crate) fn parse(text: &str) -> Option<Wall> {
    let at: Timestamp = text.parse().ok()?;
    Some(Wall(i64::try_from(at.as_nanosecond()).ok()?))
}

/// UTC in whole seconds.
pub(crate) fn stamp(at: Wall) -> String {
    match Timestamp::from_second(at.seconds()) {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_out_of_range) => "?".to_owned(),
    }
}

/// How long ago, as `kubectl` writes ages; `<unknown>` where there is no time.
pub(crate) fn age(at: Option<Wall>, now: Wall) -> String {
    at.map_or_else(
        || "<unknown>".to_owned(),
        |at| short(now.0.saturating_sub(at.0).div_euclid(1_000_000_000)),
    )
}

/// Until when, in words.
pub(crate) fn until(at: Wall, now: Wall) -> String {
    let left = at.0.saturating_sub(now.0);
    if left <= 0 {
        return "now".to_owned();
    }
    // Rounded up: "in 0s" would be now.
    format!("in {}", short(left.saturating_add(999_999_999).div_euclid(1_000_000_000)))
}

/// Seconds in at most two units.
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

/// Milliseconds of something done.
pub(crate) fn millis(ms: f64) -> String {
    if ms >= 10_000.0 { format!("{:.1} s", ms / 1000.0) } else { format!("{ms:.1} ms") }
}

/// A span such as `90s`, `10m`, `1h30m`, `2d`.
pub(crate) fn span(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.chars().next()?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = rest.get(1..)?;
    }
    (!text.is_empty()).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
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
    fn spans_add_up_and_nonsense_is_none() {
        assert_eq!(span("90s"), Some(Duration::from_secs(90)));
        assert_eq!(span("1h30m"), Some(Duration::from_secs(5400)));
        for bad in ["", "5", "m", "1x", "1h-3m", "99999999999999999999s", "é"] {
            assert_eq!(span(bad), None, "{bad}");
        }
    }
}
