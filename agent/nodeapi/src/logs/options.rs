//! Parameters of a request for logs (`core/v1` `PodLogOptions`). Pure.

use crate::query::{first, pairs};
use berth_core::time::Wall;

/// What the client wants of the output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// `follow`: the answer goes on until the run ends.
    pub(crate) follow: bool,
    /// `previous`: the run before the current one.
    pub(crate) previous: bool,
    /// `timestamps`: each line begins with its time.
    pub(crate) timestamps: bool,
    /// `sinceSeconds` or `sinceTime`: records of this time or later.
    pub(crate) since: Option<Wall>,
    /// `tailLines`: the last so many lines, before `since` is applied.
    pub(crate) tail: Option<u64>,
    /// `limitBytes`: the answer ends after so many bytes.
    pub(crate) limit: Option<u64>,
    /// `stream`, where the client asks for one of the two.
    pub(crate) stream: Option<String>,
}

/// Parameters that cannot be used, with the kubelet's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WrongOptions {
    /// A value does not have the form of its type.
    #[error("{{\"message\": \"Unable to decode query.\"}}")]
    Undecodable,
    /// A value is out of range, or values exclude each other.
    #[error("{{\"message\": \"Invalid request.\"}}")]
    Invalid,
}

impl LogOptions {
    /// Reads the parameters of a query; `now` is the time from which `sinceSeconds` counts.
    pub(crate) fn read(query: Option<&str>, now: Wall) -> Result<LogOptions, WrongOptions> {
        let pairs = pairs(query);
        let flag = |name| {
            let off = |text: &str| text == "0" || text.eq_ignore_ascii_case("false");
            first(&pairs, name).is_some_and(|text| !off(text))
        };
        let number = |text: &str| text.parse::<i64>().map_err(|_invalid| WrongOptions::Undecodable);
        let of = |name| first(&pairs, name).map(number).transpose();
        // `tail` is the older name, and "all" is its default.
        let tail = match first(&pairs, "tail").filter(|text| !text.is_empty()) {
            Some("all") => None,
            Some(text) => Some(number(text)?),
            None => of("tailLines")?,
        };
        let (limit, since_seconds) = (of("limitBytes")?, of("sinceSeconds")?);
        let since_time = first(&pairs, "sinceTime").map(time).transpose()?;
        let stream = first(&pairs, "stream").map(str::to_owned);
        let since = match (since_seconds, since_time) {
            (Some(_), Some(_)) => return Err(WrongOptions::Invalid),
            (Some(seconds), None) if seconds < 1 => return Err(WrongOptions::Invalid),
            (Some(seconds), None) => Some(Wall(now.0.saturating_sub(seconds.saturating_mul(1_000_000_000)))),
            (None, time) => time,
        };
        if tail.is_some_and(|lines| lines < 0) || limit.is_some_and(|bytes| bytes < 1) {
            return Err(WrongOptions::Invalid);
        }
        if let Some(stream) = &stream
            && (!["All", "Stdout", "Stderr"].contains(&stream.as_str())
                || (stream != "All" && tail.is_some()))
        {
            return Err(WrongOptions::Invalid);
        }
        let positive = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok());
        Ok(LogOptions {
            follow: flag("follow"),
            previous: flag("previous"),
            timestamps: flag("timestamps"),
            since,
            tail: positive(tail),
            limit: positive(limit),
            stream: stream.filter(|stream| stream != "All"),
        })
    }
}

/// A time as RFC 3339; an empty text and `null` are the beginning of time.
fn time(text: &str) -> Result<Wall, WrongOptions> {
    if text.is_empty() || text == "null" {
        return Ok(Wall(i64::MIN));
    }
    // The reader of times takes a space and other forms too.
    if text.as_bytes().get(10) != Some(&b'T') || text.contains('[') {
        return Err(WrongOptions::Undecodable);
    }
    let time: jiff::Timestamp = text.parse().map_err(|_invalid| WrongOptions::Undecodable)?;
    Ok(Wall(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Wall = Wall(100_000_000_000);

    fn read(query: &str) -> Result<LogOptions, WrongOptions> {
        LogOptions::read(Some(query), NOW)
    }

    #[test]
    fn parameters_are_read_as_by_the_kubelet() {
        assert_eq!(LogOptions::read(None, NOW).unwrap(), LogOptions::default());
        let all =
            read("follow=true&previous=1&timestamps=&tailLines=5&limitBytes=7&sinceSeconds=40&stream=All")
                .unwrap();
        let wanted = LogOptions {
            follow: true,
            previous: true,
            timestamps: true,
            since: Some(Wall(60_000_000_000)),
            tail: Some(5),
            limit: Some(7),
            stream: None,
        };
        assert_eq!(all, wanted);
        assert!(!read("follow=False").unwrap().follow);
        assert_eq!(read("sinceTime=1970-01-01T00:00:01Z").unwrap().since, Some(Wall(1_000_000_000)));
        assert_eq!(read("tail=all&tailLines=3").unwrap().tail, None);
        assert_eq!(read("tail=2&tailLines=3").unwrap().tail, Some(2));
        assert_eq!(read("stream=Stderr").unwrap().stream.as_deref(), Some("Stderr"));
    }

    #[test]
    fn wrong_parameters_are_refused_as_by_the_kubelet() {
        for bad in [
            "sinceTime=2020-01-01+00:00:00Z",
            "sinceTime=2020-01-01t00:00:00Z",
            "sinceTime=2020-01-01T00:00:00Z[UTC]",
            "sinceTime=2020-01-01T00:00:00",
        ] {
            assert_eq!(read(bad), Err(WrongOptions::Undecodable), "{bad}");
        }
        for bad in ["tailLines=x", "limitBytes=", "sinceSeconds=1.5", "sinceTime=yesterday", "tail=x"] {
            assert_eq!(read(bad), Err(WrongOptions::Undecodable), "{bad}");
        }
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=1970-01-01T00:00:01Z",
            "stream=both",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(read(bad), Err(WrongOptions::Invalid), "{bad}");
        }
        assert_eq!(WrongOptions::Invalid.to_string(), r#"{"message": "Invalid request."}"#);
    }
}
