//! Times as the API server keeps them: RFC 3339 in whole seconds, UTC (`metav1.Time`).

use berth_core::time::Wall;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The text of a time. `None` outside the years -9999 to 9999.
pub(super) fn text(at: Wall) -> Option<Value> {
    crate::status::time(at)
}

/// Cuts the time of a member to whole seconds. A text that is no time stays, for the API server to refuse.
pub(super) fn truncate(of: &mut Map<String, Value>, name: &str) {
    let Some(Value::String(given)) = of.get(name) else { return };
    // The form of nearly all times needs no change.
    if given.len() == "2006-01-02T15:04:05Z".len() && given.ends_with('Z') {
        return;
    }
    let Ok(at) = given.parse::<Timestamp>() else { return };
    let whole = Wall(at.as_second().saturating_mul(1_000_000_000));
    // Rounds down, also before 1970.
    let down = if at.subsec_nanosecond() < 0 { Wall(whole.0.saturating_sub(1_000_000_000)) } else { whole };
    if let Some(text) = text(down) {
        of.insert(name.to_owned(), text);
    }
}
